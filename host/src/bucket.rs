//! Token buckets: so many at once, and one more in each interval. Pure: `now` is an argument.

use std::time::{Duration, Instant};

/// How much a bucket holds, and how fast it fills. Choose a burst of at least 1: none is the same as 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens in a full bucket.
    pub burst: u32,
    /// One more token comes in each of these.
    pub every: Duration,
}

/// A bucket of tokens, full at first. It remembers one moment: when it will be full again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    rate: Rate,
    full_at: Instant,
}

// === impl Bucket ===

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    /// Whether there is a token.
    pub fn has_token(&self, now: Instant) -> bool {
        self.full_at <= now + self.rate.every * self.rate.burst.saturating_sub(1)
    }

    /// Takes a token if there is one, and says whether there was.
    pub fn take(&mut self, now: Instant) -> bool {
        let has_token = self.has_token(now);
        if has_token {
            self.charge(now);
        }
        has_token
    }

    /// Takes a token even when there is none: it is then owed.
    pub fn charge(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.rate.every;
    }

    /// Whether nothing is missing, so that a new bucket would be the same.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(burst: u32, start: Instant) -> Bucket {
        let every = Duration::from_millis(10);
        Bucket::new(Rate { burst, every }, start)
    }

    #[test]
    fn a_burst_and_then_one_in_each_interval() {
        let start = Instant::now();
        let mut bucket = bucket(2, start);
        let mut take = |millis| bucket.take(start + Duration::from_millis(millis));
        let taken = [0, 1, 8, 9, 15, 19, 20].map(&mut take);
        // Half an interval is not lost: what came at 15 waited since 10, and the next is there at 20.
        assert_eq!(taken, [true, true, false, false, true, false, true]);
        let after_a_quiet_day = [86_400_000, 86_400_000, 86_400_000].map(take);
        assert_eq!(
            after_a_quiet_day,
            [true, true, false],
            "no more than the burst is saved"
        );
    }

    #[test]
    fn what_is_owed_comes_first() {
        let start = Instant::now();
        let mut bucket = bucket(1, start);
        assert!(bucket.is_full(start));
        for _ in 0..3 {
            bucket.charge(start);
        }
        let after = |millis| start + Duration::from_millis(millis);
        assert!(!bucket.has_token(after(29)) && bucket.has_token(after(30)));
        assert!(!bucket.is_full(after(29)) && bucket.is_full(after(30)));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut bucket = bucket(1, start);
        assert!(bucket.take(start));
        assert!(!bucket.take(start - Duration::from_secs(30)));
        assert!(bucket.take(start + Duration::from_millis(10)));
    }
}
