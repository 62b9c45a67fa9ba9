//! How long to wait before trying again: doubling, bounded, and never in step with other agents.

use std::time::{Duration, SystemTime};

use ring::rand::{SecureRandom, SystemRandom};

const FIRST: Duration = Duration::from_millis(100);

/// A CA that comes back should have its agents back within this.
const LONGEST: Duration = Duration::from_secs(15);

/// Counts failures in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After one more failure: how long to wait. `jitter` in 0..=1 takes away up to half.
    pub(crate) fn failed(&mut self, jitter: f64) -> Duration {
        let doubled = FIRST.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1).min(31);
        doubled.min(LONGEST).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// Whether it is too early to try again. No wait is longer than the longest one: what seems to be was reckoned before the
/// clock was set back.
pub(crate) fn rests(until: SystemTime, now: SystemTime) -> bool {
    let left = until.duration_since(now).unwrap_or_default();
    !left.is_zero() && left <= LONGEST
}

/// A random number in 0..=1 from the system's generator.
pub(crate) fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness everything still works, only in step.
    let _ = SystemRandom::new().fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_a_bound_and_starts_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.failed(0.0)).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800].map(Duration::from_millis));
        assert!(
            waits.windows(2).all(|w| w[0] <= w[1]) && waits[39] == LONGEST,
            "{waits:?}"
        );
        assert_eq!(backoff.failed(1.0), LONGEST / 2);
        backoff.succeeded();
        assert_eq!(backoff.failed(0.5), Duration::from_millis(75));
    }
}
