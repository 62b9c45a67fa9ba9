//! When the CA is told. Pure: `now` is an argument.

use std::time::{Duration, Instant};

/// What changes together is told together.
pub(crate) const TOGETHER: Duration = Duration::from_millis(250);

/// Whatever happens, the CA hears no more often.
const GAP: Duration = Duration::from_secs(1);

/// What a CA may ask for. Whatever it says, this agent neither floods it nor falls silent.
const PERIOD_MIN: Duration = Duration::from_secs(1);
const PERIOD_MAX: Duration = Duration::from_secs(3600);

/// Of one stream.
#[derive(Debug)]
pub(crate) struct Pace {
    period: Duration,
    sent: Option<Instant>,
}

// === impl Pace ===

impl Pace {
    pub(crate) fn new(period: Duration) -> Self {
        Self {
            period: period.clamp(PERIOD_MIN, PERIOD_MAX),
            sent: None,
        }
    }

    /// What the CA asks for.
    pub(crate) fn set_period(&mut self, period: Duration) {
        self.period = period.clamp(PERIOD_MIN, PERIOD_MAX);
    }

    pub(crate) fn period(&self) -> Duration {
        self.period
    }

    pub(crate) fn sent(&mut self, now: Instant) {
        self.sent = Some(now);
    }

    /// How long to wait before the next message; nothing when it is due. `jitter` is from 0 to 1: agents that were told at the
    /// same moment, as by a policy that was published, do not all answer at the same moment.
    pub(crate) fn wait(&self, now: Instant, urgent: bool, jitter: f64) -> Duration {
        let Some(sent) = self.sent else { return Duration::ZERO };
        // Always early enough: what the CA waits for is a whole period.
        let after = if urgent {
            GAP
        } else {
            self.period.mul_f64(0.75 + 0.2 * jitter)
        };
        let left = after.saturating_sub(now.saturating_duration_since(sent));
        // Drawn anew at each look, so what is nearly due is due.
        if left < Duration::from_millis(10) {
            Duration::ZERO
        } else {
            left
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_at_once_and_the_next_when_something_changed_or_a_period_is_over() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(Duration::from_secs(30));
        assert_eq!(pace.wait(at(0), false, 0.5), Duration::ZERO);
        pace.sent(at(0));
        assert_eq!(pace.wait(at(0), true, 0.5), GAP);
        assert_eq!(pace.wait(at(1), true, 0.5), Duration::ZERO);
        for jitter in [0.0, 0.5, 1.0] {
            let wait = pace.wait(at(0), false, jitter);
            assert!(
                wait >= Duration::from_secs(22) && wait < Duration::from_secs(29),
                "{wait:?}"
            );
            assert_eq!(pace.wait(at(29), false, jitter), Duration::ZERO);
        }
        for (asked, expected) in [(0, 1), (5, 5), (1 << 40, 3600)] {
            pace.set_period(Duration::from_secs(asked));
            assert_eq!(pace.period(), Duration::from_secs(expected));
        }
    }
}
