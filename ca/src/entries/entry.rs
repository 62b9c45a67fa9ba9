//! Registration entries: which workload on which agent is who.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hoplite_identity::{InvalidSpiffeId, SpiffeId, TrustDomain};
use hoplite_store::Revision;
use hoplite_wire::ca as wire;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::config::TTL_MIN;
use crate::record;

/// The first segment of what Hoplite's own parts are called. No workload gets such a name.
const RESERVED: &str = "hoplite";

/// A process is described by a handful of facts; all of an entry's must be checked for each process.
const SELECTORS_MAX: usize = 32;
/// A selector's value is a path or a digest.
const SELECTOR_BYTES_MAX: usize = 1024;
/// Each is copied into every certificate.
const DNS_NAMES_MAX: usize = 32;
/// A hint is a word for the workload.
const HINT_BYTES_MAX: usize = 128;
/// The store's keys hold an agent's whole SPIFFE ID.
const AGENT_NAME_BYTES_MAX: usize = 128;

/// 128 random bits, in hex.
pub(crate) type EntryId = String;

/// What is registered. Everything in it was checked when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) spiffe_id: SpiffeId,
    /// The agent that may have it.
    pub(crate) parent_id: SpiffeId,
    /// A workload must have all of them. Never empty: an entry without selectors would be everybody's.
    pub(crate) selectors: BTreeSet<Selector>,
    /// Seconds; 0 means what the configuration says.
    pub(crate) x509_ttl: u32,
    pub(crate) hint: String,
    pub(crate) dns_names: Vec<String>,
    /// Unix seconds.
    pub(crate) created_at: u64,
}

/// A fact about a process: `unix:uid` = `1000` has the kind `unix:uid`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Selector {
    pub(crate) kind: String,
    pub(crate) value: String,
}

/// Why an entry cannot be registered. The caller's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidEntry {
    #[error("`{field}`: {reason}")]
    SpiffeId {
        field: &'static str,
        reason: InvalidSpiffeId,
    },
    #[error("`{field}`: `{id}` is not in the trust domain `{expected}`")]
    OtherTrustDomain {
        field: &'static str,
        id: SpiffeId,
        expected: TrustDomain,
    },
    #[error("`spiffe_id`: `{0}` has no path; a workload's SPIFFE ID needs one")]
    NoPath(SpiffeId),
    #[error("`spiffe_id`: `{0}` begins with `/{RESERVED}`, which is for Hoplite's own parts; choose another path")]
    Reserved(SpiffeId),
    #[error("`parent_id`: `{0}` is not an agent; write `spiffe://<trust domain>/{RESERVED}/agent/<node>`")]
    NotAnAgent(SpiffeId),
    #[error("`selectors`: none given; an entry without any would fit every process")]
    NoSelectors,
    #[error("`{field}`: {count} given; at most {max}")]
    TooMany {
        field: &'static str,
        count: usize,
        max: usize,
    },
    #[error(
        "`selectors`: `{kind}` = `{value}` is not a selector; kinds are of `a-z`, `0-9`, `:`, `_` and `-`, values are not empty, printable and at most {SELECTOR_BYTES_MAX} bytes"
    )]
    Selector { kind: String, value: String },
    #[error("`x509_ttl_seconds`: `{ttl}` is out of bounds; write 0 for the default, or from {min} to less than {max}")]
    Ttl { ttl: u32, min: u64, max: u64 },
    #[error("`hint`: not printable, or longer than {HINT_BYTES_MAX} bytes")]
    Hint,
    #[error("`dns_names`: `{0}` is not a DNS name in lower case without wildcards")]
    DnsName(String),
}

/// The SPIFFE ID of the agent on a node.
pub(crate) fn agent_id(trust_domain: &TrustDomain, node: &str) -> Result<SpiffeId, InvalidNode> {
    let invalid = || InvalidNode(node.chars().take(AGENT_NAME_BYTES_MAX).collect());
    if node.is_empty() || node.len() > AGENT_NAME_BYTES_MAX || node.contains('/') {
        return Err(invalid());
    }
    trust_domain
        .member(&format!("/{RESERVED}/agent/{node}"))
        .map_err(|_| invalid())
}

/// A node name that cannot become an agent's SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a node name; use `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`, at most {AGENT_NAME_BYTES_MAX} of them")]
pub(crate) struct InvalidNode(String);

/// Whether an ID is of the form that [`agent_id`] makes.
pub(crate) fn is_agent(id: &SpiffeId) -> bool {
    let segments: Vec<_> = id.segments().collect();
    matches!(segments.as_slice(), [RESERVED, "agent", node] if node.len() <= AGENT_NAME_BYTES_MAX)
}

/// An id that no other entry has; none when the system gives no random numbers.
pub(crate) fn new_id() -> Option<EntryId> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(HEXLOWER.encode(&bytes))
}

// === impl Entry ===

impl Entry {
    /// Checks what an operator sent. `id`, `revision` and `created_at_unix` in it mean nothing.
    pub(crate) fn from_wire(
        message: wire::Entry,
        trust_domain: &TrustDomain,
        ttl_limit: Duration,
        now: SystemTime,
    ) -> Result<Self, InvalidEntry> {
        let spiffe_id = member("spiffe_id", &message.spiffe_id, trust_domain)?;
        if spiffe_id.is_trust_domain() {
            return Err(InvalidEntry::NoPath(spiffe_id));
        }
        if spiffe_id.segments().next() == Some(RESERVED) {
            return Err(InvalidEntry::Reserved(spiffe_id));
        }
        let parent_id = member("parent_id", &message.parent_id, trust_domain)?;
        if !is_agent(&parent_id) {
            return Err(InvalidEntry::NotAnAgent(parent_id));
        }
        at_most("selectors", message.selectors.len(), SELECTORS_MAX)?;
        let selectors = message
            .selectors
            .into_iter()
            .map(Selector::try_from)
            .collect::<Result<BTreeSet<_>, _>>()?;
        if selectors.is_empty() {
            return Err(InvalidEntry::NoSelectors);
        }
        let ttl = message.x509_ttl_seconds;
        if ttl != 0 && !(TTL_MIN..ttl_limit).contains(&Duration::from_secs(ttl.into())) {
            return Err(InvalidEntry::Ttl {
                ttl,
                min: TTL_MIN.as_secs(),
                max: ttl_limit.as_secs(),
            });
        }
        if message.hint.len() > HINT_BYTES_MAX || message.hint.chars().any(char::is_control) {
            return Err(InvalidEntry::Hint);
        }
        at_most("dns_names", message.dns_names.len(), DNS_NAMES_MAX)?;
        if let Some(name) = message.dns_names.iter().find(|name| !is_dns_name(name)) {
            return Err(InvalidEntry::DnsName(name.clone()));
        }
        Ok(Self {
            spiffe_id,
            parent_id,
            selectors,
            x509_ttl: ttl,
            hint: message.hint,
            dns_names: message.dns_names,
            created_at: record::unix_seconds(now),
        })
    }

    /// What operators and agents see.
    pub(crate) fn to_wire(&self, id: &EntryId, revision: Revision) -> wire::Entry {
        wire::Entry {
            id: id.clone(),
            spiffe_id: self.spiffe_id.to_string(),
            parent_id: self.parent_id.to_string(),
            selectors: self
                .selectors
                .iter()
                .map(|selector| wire::Selector {
                    kind: selector.kind.clone(),
                    value: selector.value.clone(),
                })
                .collect(),
            x509_ttl_seconds: self.x509_ttl,
            hint: self.hint.clone(),
            dns_names: self.dns_names.clone(),
            revision,
            created_at_unix: i64::try_from(self.created_at).unwrap_or(i64::MAX),
        }
    }

    /// The life of its certificates.
    pub(crate) fn ttl(&self, default: Duration) -> Duration {
        if self.x509_ttl == 0 {
            default
        } else {
            Duration::from_secs(self.x509_ttl.into())
        }
    }

    /// Two entries with the same SPIFFE ID, parent and selectors say the same twice. SHA-256 of those, in hex.
    pub(crate) fn subject(&self) -> String {
        let mut parts = vec![self.spiffe_id.as_str(), self.parent_id.as_str()];
        for selector in &self.selectors {
            parts.extend([selector.kind.as_str(), selector.value.as_str()]);
        }
        // No part contains NUL: SPIFFE IDs cannot, selectors are printable.
        HEXLOWER.encode(digest(&SHA256, parts.join("\0").as_bytes()).as_ref())
    }

    /// Whether registering this again would change nothing.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Self {
            created_at: other.created_at,
            ..self.clone()
        } == *other
    }
}

fn member(field: &'static str, text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, InvalidEntry> {
    let id = SpiffeId::parse(text).map_err(|reason| InvalidEntry::SpiffeId { field, reason })?;
    if id.trust_domain() == trust_domain {
        Ok(id)
    } else {
        Err(InvalidEntry::OtherTrustDomain {
            field,
            id,
            expected: trust_domain.clone(),
        })
    }
}

fn at_most(field: &'static str, count: usize, max: usize) -> Result<(), InvalidEntry> {
    if count > max {
        Err(InvalidEntry::TooMany { field, count, max })
    } else {
        Ok(())
    }
}

/// RFC 1123 host names, lower case as certificates compare them.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        let ldh = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(ldh) && !label.starts_with('-') && !label.ends_with('-')
    };
    // A name whose last label is a number is an IPv4 address to some verifiers.
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !numeric
}

// === impl Selector ===

impl TryFrom<wire::Selector> for Selector {
    type Error = InvalidEntry;

    fn try_from(message: wire::Selector) -> Result<Self, InvalidEntry> {
        let wire::Selector { kind, value } = message;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b':' | b'_' | b'-');
        let kind_is_good = (1..=64).contains(&kind.len()) && kind.bytes().all(plain);
        let value_is_good = (1..=SELECTOR_BYTES_MAX).contains(&value.len()) && !value.chars().any(char::is_control);
        if kind_is_good && value_is_good {
            Ok(Self { kind, value })
        } else {
            Err(InvalidEntry::Selector { kind, value })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    pub(crate) fn sample(path: &str, node: &str) -> wire::Entry {
        wire::Entry {
            spiffe_id: format!("spiffe://prod.example{path}"),
            parent_id: format!("spiffe://prod.example/hoplite/agent/{node}"),
            selectors: vec![wire::Selector {
                kind: "unix:uid".into(),
                value: "1000".into(),
            }],
            ..wire::Entry::default()
        }
    }

    pub(crate) fn parse(message: wire::Entry) -> Result<Entry, InvalidEntry> {
        Entry::from_wire(
            message,
            &TrustDomain::parse("prod.example").unwrap(),
            Duration::from_secs(86400),
            UNIX_EPOCH,
        )
    }

    fn check(change: impl FnOnce(&mut wire::Entry), expected: &str) {
        let mut message = sample("/orders", "n1");
        change(&mut message);
        let result = parse(message).map_or_else(|e| e.to_string(), |_| "good".into());
        assert!(result.contains(expected), "expected `{expected}`, got `{result}`");
    }

    #[test]
    fn spiffe_ids() {
        check(|_| (), "good");
        check(|e| e.spiffe_id = "spiffe://prod.example/hoplites".into(), "good");
        check(|e| e.spiffe_id = "spiffe://prod.example".into(), "has no path");
        check(
            |e| e.spiffe_id = "spiffe://other.example/a".into(),
            "not in the trust domain `prod.example`",
        );
        check(|e| e.spiffe_id = "spiffe://prod.example/a/../b".into(), "`spiffe_id`");
        check(
            |e| e.spiffe_id = "spiffe://prod.example/hoplite".into(),
            "Hoplite's own parts",
        );
        check(
            |e| e.spiffe_id = "spiffe://prod.example/hoplite/ca".into(),
            "Hoplite's own parts",
        );
        check(
            |e| e.spiffe_id = "spiffe://prod.example/hoplite/agent/n2".into(),
            "Hoplite's own parts",
        );
        check(|e| e.spiffe_id.clear(), "`spiffe_id`");
        check(
            |e| e.parent_id = "spiffe://prod.example/orders".into(),
            "is not an agent",
        );
        check(
            |e| e.parent_id = "spiffe://prod.example/hoplite/agent".into(),
            "is not an agent",
        );
        check(
            |e| e.parent_id = "spiffe://prod.example/hoplite/agent/a/b".into(),
            "is not an agent",
        );
        check(
            |e| e.parent_id = "spiffe://other.example/hoplite/agent/a".into(),
            "`parent_id`",
        );
    }

    #[test]
    fn selectors() {
        let selector = |kind: &str, value: &str| wire::Selector {
            kind: kind.into(),
            value: value.into(),
        };
        check(|e| e.selectors.clear(), "every process");
        check(|e| e.selectors.push(selector("", "1")), "not a selector");
        check(|e| e.selectors.push(selector("unix:uid", "")), "not a selector");
        check(|e| e.selectors.push(selector("Unix", "1")), "not a selector");
        check(|e| e.selectors.push(selector("unix:path", "/a\0b")), "not a selector");
        check(
            |e| e.selectors.push(selector("unix:path", &"a".repeat(1025))),
            "not a selector",
        );
        check(|e| e.selectors.push(selector("unix:path", "/opt/a b")), "good");
        check(
            |e| e.selectors = (0..33).map(|n| selector("a", &n.to_string())).collect(),
            "at most 32",
        );
    }

    #[test]
    fn the_rest() {
        check(|e| e.x509_ttl_seconds = 4, "`x509_ttl_seconds`: `4`");
        check(|e| e.x509_ttl_seconds = 5, "good");
        check(|e| e.x509_ttl_seconds = 86399, "good");
        check(|e| e.x509_ttl_seconds = 86400, "out of bounds");
        check(|e| e.hint = "internal".into(), "good");
        check(|e| e.hint = "a\nb".into(), "`hint`");
        check(|e| e.hint = "a".repeat(129), "`hint`");
        for good in ["orders", "orders.internal", "a-1.b"] {
            check(|e| e.dns_names = vec![good.into()], "good");
        }
        for bad in [
            "",
            ".",
            "a..b",
            "*.a",
            "A.b",
            "-a",
            "a-",
            "a_b",
            "10.0.0.1",
            "a.",
            "spiffe://a",
            "é",
        ] {
            check(|e| e.dns_names = vec![bad.into()], "`dns_names`");
        }
    }

    #[test]
    fn nodes() {
        let domain = TrustDomain::parse("prod.example").unwrap();
        let id = agent_id(&domain, "node-1.a_B").unwrap();
        assert_eq!(id.as_str(), "spiffe://prod.example/hoplite/agent/node-1.a_B");
        assert!(is_agent(&id));
        for bad in ["", "a/b", ".", "..", "a b", "é", &"a".repeat(129)] {
            assert!(agent_id(&domain, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_same_twice() {
        let entry = parse(sample("/orders", "n1")).unwrap();
        let mut twice = sample("/orders", "n1");
        twice.selectors.push(twice.selectors[0].clone());
        assert_eq!(parse(twice).unwrap().subject(), entry.subject());
        assert_ne!(parse(sample("/orders", "n2")).unwrap().subject(), entry.subject());
        let mut other = sample("/orders", "n1");
        other.x509_ttl_seconds = 60;
        let other = parse(other).unwrap();
        assert_eq!(other.subject(), entry.subject());
        assert!(
            !other.is_same(&entry)
                && entry.is_same(&Entry {
                    created_at: 9,
                    ..entry.clone()
                })
        );
    }
}
