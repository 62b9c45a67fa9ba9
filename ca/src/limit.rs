//! A limit on failed attempts: guessing is slow, and those who do not guess never meet it.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use hoplite_host::bucket::{Bucket, Rate};

/// Failures at once, before the rate counts: a fleet behind one address may have a bad day. One more is forgiven in each
/// second.
const FORGIVEN: Rate = Rate {
    burst: 20,
    every: Duration::from_secs(1),
};

/// Those remembered. When there are more, those forgiven are forgotten; then everybody shares one.
const REMEMBERED_MAX: usize = 8192;

/// Failures by what they are counted against: an address, or a token.
#[derive(Debug)]
pub(crate) struct Failures<K> {
    /// One that lacks nothing need not be remembered. None is for all those for whom there is no room.
    by: HashMap<Option<K>, Bucket>,
}

// === impl Failures ===

impl<K> Default for Failures<K> {
    fn default() -> Self {
        Self { by: HashMap::new() }
    }
}

impl<K: Eq + Hash> Failures<K> {
    /// Whether an attempt may be made now.
    pub(crate) fn may_try(&self, by: K, now: Instant) -> bool {
        self.by.get(&self.key(by)).is_none_or(|bucket| bucket.has_token(now))
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self, by: K, now: Instant) {
        if self.by.len() >= REMEMBERED_MAX {
            self.by.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = self.by.entry(self.key(by));
        bucket.or_insert_with(|| Bucket::new(FORGIVEN, now)).charge(now);
    }

    fn key(&self, by: K) -> Option<K> {
        let by = Some(by);
        if self.by.contains_key(&by) || self.by.len() < REMEMBERED_MAX {
            by
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_host::slots::Source;

    fn address(text: &str) -> Source {
        Source::address(text.parse().unwrap())
    }

    #[test]
    fn failures_are_forgiven_one_by_one() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let guesser = address("10.0.0.1");
        for n in 0..FORGIVEN.burst {
            assert!(failures.may_try(guesser, start), "failure {n}");
            failures.failed(guesser, start);
        }
        assert!(!failures.may_try(guesser, start));
        assert!(!failures.may_try(address("::ffff:10.0.0.1"), start), "the same address");
        assert!(
            failures.may_try(address("10.0.0.2"), start),
            "another one is not held up"
        );
        assert!(failures.may_try(guesser, start + FORGIVEN.every));
        failures.failed(guesser, start + FORGIVEN.every);
        assert!(!failures.may_try(guesser, start + FORGIVEN.every));
    }

    #[test]
    fn a_network_is_one_source_and_memory_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for n in 0..FORGIVEN.burst {
            failures.failed(address(&format!("2001:db8::{n:x}")), now);
        }
        assert!(!failures.may_try(address("2001:db8::ffff"), now));
        for n in 0..20_000u32 {
            failures.failed(Source::address(std::net::IpAddr::from(n.to_be_bytes())), now);
        }
        assert!(failures.by.len() <= REMEMBERED_MAX + 1);
    }
}
