//! Refusals that the log tells of, and not as often as somebody can be refused: one line for each cause in a while, with how
//! many there were.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who is refused may try again as fast as it can; the log says it once in this.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Causes told apart. When there are more at once, the rest shares one line.
const CAUSES_MAX: usize = 1024;

/// Refusals by cause: whom a bound refuses, or what was asked for that is not there.
#[derive(Debug)]
pub struct Refusals<K>(Mutex<Causes<K>>);

#[derive(Debug)]
struct Causes<K> {
    /// Those told of lately, or not told of yet.
    told: HashMap<K, Told>,
    rest: Told,
    total: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    at: Option<Instant>,
    /// Refused since then.
    since: u64,
}

// === impl Refusals ===

impl<K> Default for Refusals<K> {
    fn default() -> Self {
        Self(Mutex::new(Causes {
            told: HashMap::new(),
            rest: Told::default(),
            total: 0,
        }))
    }
}

impl<K: Eq + Hash> Refusals<K> {
    /// Counts one. When it is time for a line about this cause: how many there were since the last one, this among them.
    pub fn count(&self, cause: K, now: Instant) -> Option<u64> {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        causes.total += 1;
        if causes.told.len() >= CAUSES_MAX && !causes.told.contains_key(&cause) {
            causes.told.retain(|_, told| !told.is_due(now) || told.since > 0);
        }
        if causes.told.len() < CAUSES_MAX || causes.told.contains_key(&cause) {
            causes.told.entry(cause).or_default().count(now)
        } else {
            causes.rest.count(now)
        }
    }

    /// All there ever were.
    pub fn total(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

// === impl Told ===

impl Told {
    fn is_due(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| now.saturating_duration_since(at) >= TOLD_EVERY)
    }

    fn count(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if !self.is_due(now) {
            return None;
        }
        self.at = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once_in_a_while_and_all_are_counted() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(refusals.count("a", at(0)), Some(1));
        assert_eq!(refusals.count("a", at(1)), None);
        assert_eq!(refusals.count("b", at(1)), Some(1), "another cause is told at once");
        assert_eq!(refusals.count("a", at(9)), None);
        assert_eq!(refusals.count("a", at(10)), Some(3), "with those that were not told");
        assert_eq!(refusals.count("a", at(11)), None);
        assert_eq!(refusals.total(), 6);
    }

    #[test]
    fn many_causes_share_a_line_and_memory_is_bounded() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let told = (0..3 * CAUSES_MAX)
            .filter(|n| refusals.count(*n, start).is_some())
            .count();
        assert_eq!(told, CAUSES_MAX + 1);
        assert_eq!(refusals.total(), 3 * CAUSES_MAX as u64);
        assert_eq!(refusals.0.lock().unwrap().told.len(), CAUSES_MAX);
        let later = start + TOLD_EVERY;
        assert_eq!(
            refusals.count(9_999_999, later),
            Some(1),
            "those told of long ago make room"
        );
    }
}
