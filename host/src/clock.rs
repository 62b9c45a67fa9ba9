//! The one place that looks at the clock, and the one that waits for a time of day: whoever decides by time is given `now`.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the place that the ban on other places names"
)]

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// How often it is looked whether the clock was set: what ends with a time of day ends this much later at the most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Less than this is a clock that is kept in step, and no step.
const STEP_MIN: Duration = Duration::from_millis(500);

/// The time of day, for certificates, records and whatever else people read. It may be set back.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// A moment to measure from: it never goes back, and means nothing outside this process.
#[must_use]
pub fn moment() -> Instant {
    Instant::now()
}

/// Returns when it is that time of day, within a second, however the clock is set meanwhile and however long the machine
/// sleeps: a timer alone counts neither. May be dropped at any time.
///
/// However many wait, one thread of the process looks at the clock for all of them.
pub async fn reached(at: SystemTime) {
    let mut steps = steps();
    loop {
        steps.borrow_and_update();
        let Ok(left) = at.duration_since(now()) else { return };
        if left.is_zero() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            Ok(()) = steps.changed() => {}
        }
    }
}

/// Changes each time that the clock has been set, or the machine has slept.
pub fn steps() -> watch::Receiver<u64> {
    static STEPS: OnceLock<watch::Sender<u64>> = OnceLock::new();
    let steps = STEPS.get_or_init(|| {
        let steps = watch::Sender::new(0);
        let told = steps.clone();
        let looking = std::thread::Builder::new().name("clock".to_owned()).spawn(move || {
            let mut clock = Clock::new(now(), moment());
            loop {
                std::thread::sleep(LOOK_EVERY);
                if let Some(step) = clock.step(now(), moment()) {
                    step.say();
                    told.send_modify(|steps| *steps += 1);
                }
            }
        });
        if let Err(error) = looking {
            tracing::error!(%error, "no thread to look at the clock: what a step of it ends, ends late");
        }
        steps
    });
    steps.subscribe()
}

/// A clock and a stopwatch that were in step.
#[derive(Debug)]
struct Clock {
    now: SystemTime,
    moment: Instant,
}

/// How far a clock has gone besides what passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Ahead(Duration),
    Back(Duration),
}

// === impl Clock ===

impl Clock {
    fn new(now: SystemTime, moment: Instant) -> Self {
        Self { now, moment }
    }

    /// The step since it was asked last, if there was one.
    fn step(&mut self, now: SystemTime, moment: Instant) -> Option<Step> {
        let expected = self.now + moment.saturating_duration_since(self.moment);
        *self = Self { now, moment };
        let step = match now.duration_since(expected) {
            Ok(ahead) if ahead >= STEP_MIN => Step::Ahead(ahead),
            Err(back) if back.duration() >= STEP_MIN => Step::Back(back.duration()),
            _ => return None,
        };
        Some(step)
    }
}

// === impl Step ===

impl Step {
    fn say(self) {
        match self {
            Self::Ahead(by) => tracing::warn!(
                seconds = by.as_secs(),
                "the clock has gone ahead, or the machine has slept: what has ended meanwhile ends now"
            ),
            Self::Back(by) => tracing::warn!(
                seconds = by.as_secs(),
                "the clock has been set back: what had ended may be valid again"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn steps_are_told_from_time_that_passes() {
        let (start, day) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let mut clock = Clock::new(day, start);
        // Milliseconds that passed, and what the clock then says, in milliseconds after the start.
        let mut check = |passed: u64, says: u64, expected: Option<Step>| {
            let step = clock.step(day + Duration::from_millis(says), start + Duration::from_millis(passed));
            assert_eq!(step, expected, "{passed}");
        };
        check(1_000, 1_000, None);
        check(2_000, 2_400, None);
        check(3_000, 3_300, None);
        check(4_000, 90_004_300, Some(Step::Ahead(Duration::from_secs(90_000))));
        check(5_000, 90_005_300, None);
        check(6_000, 6_300, Some(Step::Back(Duration::from_secs(90_000))));
        check(9_000, 9_300, None);
    }

    #[tokio::test]
    async fn what_has_been_reached_is_not_waited_for() {
        reached(now() - Duration::from_secs(5)).await;
        let at = now() + Duration::from_millis(20);
        reached(at).await;
        assert!(at <= now());
    }
}
