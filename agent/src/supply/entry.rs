//! Selectors and registration entries, as the agent holds them.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use hoplite_identity::{SpiffeId, TrustDomain};
use hoplite_wire::ca;
use ring::digest;

/// One attested property of a process, for example `unix:uid:1000`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Selector {
    /// Who attests it: `unix`, `launch`.
    pub(crate) kind: String,
    /// What is attested: `uid:1000`, `name:edge`.
    pub(crate) value: String,
}

/// One registration: a process with all these selectors is this workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) spiffe_id: SpiffeId,
    /// Never empty: an entry without selectors would be everybody's.
    pub(crate) selectors: BTreeSet<Selector>,
    pub(crate) ttl: Duration,
    pub(crate) hint: String,
    pub(crate) dns_names: Vec<String>,
    pub(crate) revision: u64,
    pub(crate) created: SystemTime,
}

/// Why an entry from the CA is not served. Fail closed: what this agent does not understand it does not hand out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnusableEntry {
    #[error("its SPIFFE ID is not one: {0}")]
    SpiffeId(#[from] hoplite_identity::InvalidSpiffeId),
    #[error("`{0}` is not a workload of this trust domain")]
    Foreign(SpiffeId),
    #[error("`{0}` is reserved for Hoplite itself")]
    Reserved(SpiffeId),
    #[error("it has no selectors, so it would be everybody's")]
    NoSelectors,
}

/// What the CA and the agent compare: SHA-256 over the entries' (id, revision) pairs, sorted by id.
pub(crate) fn digest<'a>(sorted: impl Iterator<Item = (&'a str, u64)>) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for (id, revision) in sorted {
        context.update(id.as_bytes());
        context.update(&[0]);
        context.update(&revision.to_be_bytes());
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

// === impl Selector ===

impl Selector {
    pub(crate) fn new(kind: &str, value: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            value: value.into(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

// === impl Entry ===

impl Entry {
    /// Parses the CA's word.
    pub(crate) fn parse(message: ca::Entry, trust_domain: &TrustDomain) -> Result<Self, UnusableEntry> {
        let spiffe_id = SpiffeId::parse(&message.spiffe_id)?;
        if spiffe_id.trust_domain() != trust_domain || spiffe_id.is_trust_domain() {
            return Err(UnusableEntry::Foreign(spiffe_id));
        }
        if spiffe_id.segments().next() == Some("hoplite") {
            // A workload that were `/hoplite/ca` could command every agent.
            return Err(UnusableEntry::Reserved(spiffe_id));
        }
        let selectors: BTreeSet<_> = message
            .selectors
            .into_iter()
            .map(|s| Selector {
                kind: s.kind,
                value: s.value,
            })
            .collect();
        if selectors.is_empty() {
            return Err(UnusableEntry::NoSelectors);
        }
        let created = Duration::from_secs(u64::try_from(message.created_at_unix).unwrap_or(0));
        Ok(Self {
            id: message.id,
            spiffe_id,
            selectors,
            ttl: Duration::from_secs(message.x509_ttl_seconds.into()),
            hint: message.hint,
            dns_names: message.dns_names,
            revision: message.revision,
            created: SystemTime::UNIX_EPOCH
                .checked_add(created)
                .unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    /// Whether an SVID minted for the one is right for the other.
    pub(crate) fn same_certificate(&self, other: &Self) -> bool {
        self.spiffe_id == other.spiffe_id && self.ttl == other.ttl && self.dns_names == other.dns_names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_the_agent_does_not_serve() {
        let domain = TrustDomain::parse("prod.example").unwrap();
        let check = |spiffe_id: &str, selectors: &[(&str, &str)], expected: &str| {
            let message = ca::Entry {
                id: "e".into(),
                spiffe_id: spiffe_id.into(),
                selectors: selectors
                    .iter()
                    .map(|(k, v)| ca::Selector {
                        kind: (*k).into(),
                        value: (*v).into(),
                    })
                    .collect(),
                created_at_unix: -1,
                ..ca::Entry::default()
            };
            match Entry::parse(message, &domain) {
                Ok(entry) => assert_eq!((expected, entry.created), ("", SystemTime::UNIX_EPOCH), "{spiffe_id}"),
                Err(error) => assert!(
                    !expected.is_empty() && error.to_string().contains(expected),
                    "{spiffe_id}: {error}"
                ),
            }
        };
        let one: &[(&str, &str)] = &[("unix", "uid:1")];
        check("spiffe://prod.example/a", one, "");
        check("spiffe://prod.example/hoplites", one, "");
        check("spiffe://prod.example/a", &[], "everybody");
        check("spiffe://prod.example", one, "not a workload");
        check("spiffe://other.example/a", one, "not a workload");
        check("spiffe://prod.example/hoplite/ca", one, "reserved");
        check("spiffe://prod.example/hoplite/agent/n", one, "reserved");
        check("nonsense", one, "SPIFFE ID");
    }

    #[test]
    fn the_digest_sees_every_change() {
        let base = digest([("a", 1), ("b", 2)].into_iter());
        for other in [
            &[("a", 1)][..],
            &[("a", 1), ("b", 3)],
            &[("a", 1), ("c", 2)],
            &[("a", 2), ("b", 1)],
            &[],
        ] {
            assert_ne!(base, digest(other.iter().copied()), "{other:?}");
        }
        assert_eq!(base, digest([("a", 1), ("b", 2)].into_iter()));
    }
}
