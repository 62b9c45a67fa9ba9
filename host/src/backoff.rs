//! How long to wait before trying again: doubling, bounded, and never in step with others. Pure but for [`jitter`].

use std::time::{Duration, SystemTime};

use ring::rand::{SecureRandom, SystemRandom};

/// Counts failures in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

// === impl Backoff ===

impl Backoff {
    /// No failure yet; the wait after the first, and the longest.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            failures: 0,
        }
    }

    /// After one more failure: how long to wait. `jitter` in 0..=1 takes away up to half.
    pub fn failed(&mut self, jitter: f64) -> Duration {
        let wait = self.whole_wait();
        self.failures = self.failures.saturating_add(1).min(31);
        wait.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// The next failure is the first again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Whether the last try failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Whether the next wait is the longest there is: the moment to say so to people.
    pub fn is_at_longest(&self) -> bool {
        self.whole_wait() >= self.longest
    }

    /// Whether it is too early to try again at `now` what should rest until `until`. No wait is longer than the longest
    /// one: what seems to be was reckoned before the clock was set back.
    pub fn rests(&self, until: SystemTime, now: SystemTime) -> bool {
        let left = until.duration_since(now).unwrap_or_default();
        !left.is_zero() && left <= self.longest
    }

    fn whole_wait(&self) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

/// A random number in 0..=1 from the system's generator.
pub fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness everything still works, only in step.
    let _ = SystemRandom::new().fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(15);

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_millis(100), LONGEST)
    }

    #[test]
    fn doubles_to_a_bound_and_starts_over() {
        let mut backoff = backoff();
        assert!(!backoff.is_failing());
        let waits: Vec<_> = (0..40).map(|_| backoff.failed(0.0)).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800].map(Duration::from_millis));
        assert!(
            waits.windows(2).all(|w| w[0] <= w[1]) && waits[39] == LONGEST,
            "{waits:?}"
        );
        assert!(backoff.is_failing() && backoff.is_at_longest());
        assert_eq!(backoff.failed(1.0), LONGEST / 2);
        backoff.succeeded();
        assert!(!backoff.is_failing() && !backoff.is_at_longest());
        assert_eq!(backoff.failed(0.5), Duration::from_millis(75));
    }

    #[test]
    fn a_rest_ends_and_is_never_longer_than_the_longest_wait() {
        let now = SystemTime::now();
        let rests = |until| backoff().rests(until, now);
        assert!(rests(now + Duration::from_millis(1)) && rests(now + LONGEST));
        assert!(!rests(now) && !rests(now - LONGEST));
        assert!(
            !rests(now + LONGEST + Duration::from_millis(1)),
            "the clock was set back"
        );
    }

    #[test]
    fn jitter_is_a_part_of_one() {
        assert!((0..100).all(|_| (0.0..=1.0).contains(&jitter())));
    }
}
