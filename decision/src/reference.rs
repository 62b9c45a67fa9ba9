//! One decision in so many is made twice: by the index, and by the reference over every policy.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After a check nothing is checked for this many times as long as it took: with 100 000 policies one takes a third of a
/// second, and checking must not eat the machine that it guards.
const PAUSE: u32 = 20;

/// A check that is being made. While there is one there is no other; it also ends where whoever asked went away.
#[derive(Debug)]
pub(crate) struct Check<'a>(&'a Sampler);

/// When to check.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// 0 for never.
    every: u64,
    count: AtomicU64,
    running: AtomicBool,
    not_before: Mutex<Option<Instant>>,
}

// === impl Sampler ===

impl Sampler {
    pub(crate) fn new(every: u64) -> Self {
        Self {
            every,
            count: AtomicU64::new(0),
            running: AtomicBool::new(false),
            not_before: Mutex::new(None),
        }
    }

    /// Whether to check this decision.
    pub(crate) fn due(&self, now: Instant) -> Option<Check<'_>> {
        if self.every == 0 || !self.count.fetch_add(1, Relaxed).is_multiple_of(self.every) {
            return None;
        }
        let not_before = *self.not_before.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = not_before.is_none_or(|not_before| now >= not_before);
        (is_time && !self.running.swap(true, Relaxed)).then_some(Check(self))
    }
}

// === impl Check ===

impl Check<'_> {
    /// The check has ended; it took this long.
    pub(crate) fn done(self, now: Instant, took: Duration) {
        *self.0.not_before.lock().unwrap_or_else(PoisonError::into_inner) = Some(now + took * PAUSE);
    }
}

impl Drop for Check<'_> {
    fn drop(&mut self) {
        self.0.running.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_and_no_more_than_one_part_in_twenty() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let sampler = Sampler::new(3);
        let due = |millis| (0..3).filter_map(|_| sampler.due(at(millis))).collect::<Vec<_>>();
        let mut first = due(0);
        assert_eq!((first.len(), due(0).len()), (1, 0), "one at a time");
        first.remove(0).done(at(10), Duration::from_millis(10));
        assert_eq!(due(209).len(), 0, "and then a pause of twenty times as long");
        let second = due(210);
        assert_eq!(second.len(), 1);
        drop(second);
        assert_eq!(due(210).len(), 1, "a check that was broken off is over");
        let never = Sampler::new(0);
        assert!((0..10).all(|_| never.due(start).is_none()));
    }
}
