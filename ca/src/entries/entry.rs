//! Registration entries as operators send them, and the names they are given.

use std::time::{Duration, SystemTime};

use hoplite_identity::{Entry, EntryId, InvalidEntry, TrustDomain};
use hoplite_wire::ca as wire;
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::TTL_MIN;
use crate::record;

/// Checks what an operator sent. `id`, `revision` and `created_at_unix` in it mean nothing.
pub(crate) fn parse(
    message: wire::Entry,
    trust_domain: &TrustDomain,
    ttl_limit: Duration,
    now: SystemTime,
) -> Result<Entry, InvalidEntry> {
    let entry = Entry {
        created_at: record::unix_seconds(now),
        ..Entry::try_from(message)?
    };
    entry.check(trust_domain)?;
    entry.check_ttl(TTL_MIN..ttl_limit)?;
    Ok(entry)
}

/// An id that no other entry has; none when the system gives no random numbers.
pub(crate) fn new_id() -> Option<EntryId> {
    let mut bits = [0; 16];
    SystemRandom::new().fill(&mut bits).ok()?;
    Some(EntryId::from_entropy(bits))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    pub(crate) fn sample(path: &str, node: &str) -> wire::Entry {
        wire::Entry {
            spiffe_id: format!("spiffe://prod.example{path}"),
            parent_id: format!("spiffe://prod.example/hoplite/agent/{node}"),
            selectors: vec![selector("unix:uid", "1000")],
            ..wire::Entry::default()
        }
    }

    pub(crate) fn parse(message: wire::Entry) -> Result<Entry, InvalidEntry> {
        let domain = TrustDomain::parse("prod.example").unwrap();
        super::parse(message, &domain, Duration::from_secs(86400), UNIX_EPOCH)
    }

    fn selector(kind: &str, value: &str) -> wire::Selector {
        wire::Selector {
            kind: kind.into(),
            value: value.into(),
        }
    }

    /// The rules themselves are tested where they are; this is that each kind of them is asked.
    #[test]
    fn what_cannot_be_registered_is_refused() {
        let check = |change: &dyn Fn(&mut wire::Entry), expected: &str| {
            let mut message = sample("/orders", "n1");
            change(&mut message);
            let result = parse(message).map_or_else(|e| e.to_string(), |_| "good".into());
            assert!(result.contains(expected), "expected `{expected}`, got `{result}`");
        };
        check(&|_| (), "good");
        check(&|e| e.spiffe_id = "spiffe://prod.example/a/../b".into(), "`spiffe_id`");
        check(
            &|e| e.spiffe_id = "spiffe://prod.example/hoplite/ca".into(),
            "Hoplite's own parts",
        );
        check(
            &|e| e.parent_id = "spiffe://other.example/hoplite/agent/a".into(),
            "`parent_id`",
        );
        check(&|e| e.selectors.clear(), "every process");
        check(
            &|e| e.selectors.push(selector("unix:uidd", "1")),
            "did you mean `unix:uid:1`?",
        );
        check(
            &|e| e.selectors.push(selector("unix", "uid:0")),
            "`unix` is no selector kind",
        );
        check(
            &|e| e.selectors.push(selector("unix:uid", "root")),
            "did you mean `unix:user:root`?",
        );
        check(&|e| e.selectors.push(selector("unix:path", "./x")), "an absolute path");
        check(&|e| e.x509_ttl_seconds = 4, "`x509_ttl_seconds`: `4`");
        check(&|e| e.x509_ttl_seconds = 5, "good");
        check(&|e| e.x509_ttl_seconds = 86400, "out of bounds");
        check(&|e| e.hint = "a\nb".into(), "`hint`");
        check(&|e| e.dns_names = vec!["*.a".into()], "`dns_names`");
    }

    #[test]
    fn the_same_twice() {
        let entry = parse(sample("/orders", "n1")).unwrap();
        let mut twice = sample("/orders", "n1");
        twice.selectors.push(twice.selectors[0].clone());
        assert_eq!(parse(twice).unwrap().subject(), entry.subject());
        let mut other = sample("/orders", "n1");
        other.x509_ttl_seconds = 60;
        let other = parse(other).unwrap();
        assert_eq!(other.subject(), entry.subject());
        let later = Entry {
            created_at: 9,
            ..entry.clone()
        };
        assert!(!other.differences(&entry).is_empty() && entry.differences(&later).is_empty());
    }

    #[test]
    fn the_name_is_not_the_senders() {
        assert_ne!(new_id(), new_id());
    }
}
