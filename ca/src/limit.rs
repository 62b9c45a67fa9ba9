//! A limit on failed attempts per address: guessing is slow, and those who do not guess never meet it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures at once, before the rate counts: a fleet behind one address may have a bad day.
const BURST: u32 = 20;

/// One more failure is forgiven after this.
const REFILL: Duration = Duration::from_secs(1);

/// Addresses remembered. When there are more, those forgiven are forgotten; then everybody shares one.
const ADDRESSES_MAX: usize = 8192;

/// Failures by address.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// When the last failure of an address will be forgiven.
    forgiven_at: HashMap<Source, Instant>,
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
        self.forgiven_at
            .get(&source)
            .is_none_or(|at| *at <= now + REFILL * (BURST - 1))
    }

    /// An attempt failed.
    pub(crate) fn failed(&mut self, address: IpAddr, now: Instant) {
        if self.forgiven_at.len() >= ADDRESSES_MAX {
            self.forgiven_at.retain(|_, at| *at > now);
        }
        let at = self.forgiven_at.entry(self.source(address)).or_insert(now);
        *at = (*at).max(now) + REFILL;
    }

    fn source(&self, address: IpAddr) -> Source {
        let source = match address.to_canonical() {
            IpAddr::V4(v4) => Source::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Source::V6Network([a, b, c, d])
            }
        };
        let is_known = self.forgiven_at.contains_key(&source);
        if is_known || self.forgiven_at.len() < ADDRESSES_MAX {
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
        for n in 0..BURST {
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
        assert!(failures.may_try(guesser, start + REFILL));
        failures.failed(guesser, start + REFILL);
        assert!(!failures.may_try(guesser, start + REFILL));
    }

    #[test]
    fn a_network_is_one_source_and_memory_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for n in 0..BURST {
            failures.failed(format!("2001:db8::{n:x}").parse().unwrap(), now);
        }
        assert!(!failures.may_try("2001:db8::ffff".parse().unwrap(), now));
        for n in 0..20_000u32 {
            failures.failed(IpAddr::from(n.to_be_bytes()), now);
        }
        assert!(failures.forgiven_at.len() <= ADDRESSES_MAX + 1);
    }
}
