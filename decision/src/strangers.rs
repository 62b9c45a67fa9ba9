//! Callers without an identity: their refusals are recorded one by one until there are too many, and then counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals that are recorded one by one: this many at once …
const BURST: u32 = 1_000;

/// … and one more in each of these. The rest is counted: whoever has no identity must not be able to fill our disk.
const EVERY: Duration = Duration::from_millis(10);

/// Says which refusals of strangers are recorded.
#[derive(Debug)]
pub(crate) struct Strangers(Mutex<Bucket>);

/// A token bucket that counts what it held back.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

// === impl Strangers ===

impl Strangers {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Bucket {
            tokens: BURST,
            refilled: now,
            suppressed: 0,
        }))
    }

    /// How many were held back since the last admitted one; none if this one is held back too.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    }
}

// === impl Bucket ===

impl Bucket {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.refilled);
        let fresh = passed.as_nanos() / EVERY.as_nanos();
        if fresh > 0 {
            let fresh = u32::try_from(fresh).unwrap_or(BURST).min(BURST);
            self.tokens = self.tokens.saturating_add(fresh).min(BURST);
            // What is left of the last interval still counts towards the next token.
            self.refilled = if self.tokens == BURST {
                now
            } else {
                self.refilled + EVERY * fresh
            };
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_bounded_and_counted() {
        let start = Instant::now();
        let mut bucket = Bucket {
            tokens: 2,
            refilled: start,
            suppressed: 0,
        };
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(bucket.admit(after(0)), Some(0));
        assert_eq!(bucket.admit(after(1)), Some(0));
        assert_eq!(bucket.admit(after(8)), None);
        assert_eq!(bucket.admit(after(9)), None);
        assert_eq!(
            bucket.admit(after(15)),
            Some(2),
            "the next record counts those held back"
        );
        assert_eq!(bucket.admit(after(19)), None);
        assert_eq!(bucket.admit(after(20)), Some(1), "half an interval was not lost");
        bucket.admit(after(1_000_000));
        assert_eq!(bucket.tokens, BURST - 1, "a quiet day saves no more than the burst");
    }
}
