//! Whether somebody else is heard, and for how long not.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hoplite_host::clock;

/// While it is heard, nothing is counted; else the time since it was heard last, or since the start.
#[derive(Debug)]
pub struct Contact {
    began: Instant,
    /// Nanoseconds from `began` to the loss; [`HEARD`] while there is none.
    lost: AtomicU64,
}

const HEARD: u64 = u64::MAX;

// === impl Contact ===

impl Contact {
    /// It is heard, and from now on until it is lost.
    pub fn heard(&self) {
        self.lost.store(HEARD, Relaxed);
    }

    /// It is heard no longer. Said again, the first time counts.
    pub fn lost(&self) {
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(HEARD - 1);
        let _ = self.lost.compare_exchange(HEARD, nanos, Relaxed, Relaxed);
    }

    /// For how long it has not been heard.
    pub fn silence(&self) -> Duration {
        match self.lost.load(Relaxed) {
            HEARD => Duration::ZERO,
            lost => self.began.elapsed().saturating_sub(Duration::from_nanos(lost)),
        }
    }
}

impl Default for Contact {
    /// Nothing was heard yet.
    fn default() -> Self {
        Self {
            began: clock::moment(),
            lost: AtomicU64::new(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_the_loss() {
        let contact = Contact::default();
        std::thread::sleep(Duration::from_millis(2));
        assert!(contact.silence() >= Duration::from_millis(2), "nothing was heard yet");
        contact.heard();
        assert_eq!(contact.silence(), Duration::ZERO);
        contact.lost();
        std::thread::sleep(Duration::from_millis(2));
        contact.lost();
        assert!(contact.silence() >= Duration::from_millis(2));
    }
}
