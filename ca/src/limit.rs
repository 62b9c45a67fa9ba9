//! A limit on failed attempts per address: guessing is slow, and those who do not guess never meet it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hoplite_host::bucket::{Bucket, Rate};

/// Failures at once, before the rate counts: a fleet behind one address may have a bad day. One more is forgiven in each
/// second.
const FORGIVEN: Rate = Rate {
    burst: 20,
    every: Duration::from_secs(1),
};

/// Addresses remembered. When there are more, those forgiven are forgotten; then everybody shares one.
const ADDRESSES_MAX: usize = 8192;

/// Failures by address.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// One that lacks nothing need not be remembered.
    by_source: HashMap<Source, Bucket>,
}

/// IPv6 hands out whole networks, so a source is one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6Network([u16; 4]),
    Overflow,
}

// === impl Failures ===

impl Failures {
    /// Whether an attempt from this address may be made now.
    pub(crate) fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        let source = self.source(address);
        self.by_source.get(&source).is_none_or(|bucket| bucket.has_token(now))
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self, address: IpAddr, now: Instant) {
        if self.by_source.len() >= ADDRESSES_MAX {
            self.by_source.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = self.by_source.entry(self.source(address));
        bucket.or_insert_with(|| Bucket::new(FORGIVEN, now)).charge(now);
    }

    fn source(&self, address: IpAddr) -> Source {
        let source = match address.to_canonical() {
            IpAddr::V4(v4) => Source::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Source::V6Network([a, b, c, d])
            }
        };
        let is_known = self.by_source.contains_key(&source);
        if is_known || self.by_source.len() < ADDRESSES_MAX {
            source
        } else {
            Source::Overflow
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_forgiven_one_by_one() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let guesser: IpAddr = "10.0.0.1".parse().unwrap();
        for n in 0..FORGIVEN.burst {
            assert!(failures.may_try(guesser, start), "failure {n}");
            failures.failed(guesser, start);
        }
        assert!(!failures.may_try(guesser, start));
        assert!(
            !failures.may_try("::ffff:10.0.0.1".parse().unwrap(), start),
            "the same address"
        );
        assert!(
            failures.may_try("10.0.0.2".parse().unwrap(), start),
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
            failures.failed(format!("2001:db8::{n:x}").parse().unwrap(), now);
        }
        assert!(!failures.may_try("2001:db8::ffff".parse().unwrap(), now));
        for n in 0..20_000u32 {
            failures.failed(IpAddr::from(n.to_be_bytes()), now);
        }
        assert!(failures.by_source.len() <= ADDRESSES_MAX + 1);
    }
}
