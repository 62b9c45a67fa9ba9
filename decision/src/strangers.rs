//! Callers without an identity: their refusals are recorded one by one until there are too many, and then counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoplite_host::bucket::{Bucket, Rate};

/// Refusals that are recorded one by one. The rest is counted: whoever has no identity must not be able to fill our
/// disk.
const ONE_BY_ONE: Rate = Rate {
    burst: 1_000,
    every: Duration::from_millis(10),
};

/// Says which refusals of strangers are recorded.
#[derive(Debug)]
pub(crate) struct Strangers(Mutex<Counted>);

/// A token bucket, and how many it held back.
#[derive(Debug)]
struct Counted {
    bucket: Bucket,
    suppressed: u64,
}

// === impl Strangers ===

impl Strangers {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Counted {
            bucket: Bucket::new(ONE_BY_ONE, now),
            suppressed: 0,
        }))
    }

    /// How many were held back since the last admitted one; none if this one is held back too.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    }
}

// === impl Counted ===

impl Counted {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.bucket.take(now) {
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_bounded_and_counted() {
        let start = Instant::now();
        let rate = Rate { burst: 2, ..ONE_BY_ONE };
        let mut bucket = Counted {
            bucket: Bucket::new(rate, start),
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
        let after_a_quiet_day = [(); 3].map(|()| bucket.admit(after(1_000_000)));
        assert_eq!(
            after_a_quiet_day,
            [Some(0), Some(0), None],
            "it saves no more than the burst"
        );
    }
}
