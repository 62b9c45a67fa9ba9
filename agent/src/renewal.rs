//! When SVIDs are renewed, so that many agents never ask their CA all at once. Pure: the time is an argument.
//!
//! A renewal in its time keeps its place among the others. What was asked for late, or for the first time, was asked for by
//! everybody at the same moment: after an outage, a restart, a power cut. So what is overdue is asked for one by one within a
//! while, and the next renewal of it falls anywhere in a quarter of its life.

use std::time::{Duration, SystemTime};

/// What is overdue when the CA is back is asked for within this, and sooner where less is left of it.
const CATCH_UP: Duration = Duration::from_secs(60);

/// When to renew what has just been issued in its time: half life, earlier by up to a tenth of the life. However much a CA
/// back-dates: not at once.
pub(crate) fn in_time(half_life: SystemTime, not_after: SystemTime, now: SystemTime) -> SystemTime {
    half_life.max(now + left(not_after, now) / 4)
}

/// When to renew what has been issued for the first time, or late: within the second quarter of its life. `jitter` is in 0..=1.
pub(crate) fn after_a_crowd(not_after: SystemTime, now: SystemTime, jitter: f64) -> SystemTime {
    now + left(not_after, now).mul_f64(0.5 - 0.25 * jitter.clamp(0.0, 1.0))
}

/// When to renew what should have been renewed already, now that the CA is back: before half of what is left of it is gone.
pub(crate) fn catch_up(not_after: SystemTime, now: SystemTime, jitter: f64) -> SystemTime {
    now + CATCH_UP.min(left(not_after, now) / 2).mul_f64(jitter.clamp(0.0, 1.0))
}

fn left(not_after: SystemTime, now: SystemTime) -> Duration {
    not_after.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_host::backoff::Backoff;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    const LIFE: Duration = Duration::from_secs(300);

    proptest! {
        /// Whatever the times: never at once for what is fresh, never after its end, never later than half of what is left.
        #[test]
        fn each_moment_lies_within_the_life(left in 1u64..10_000_000, jitter in -1.0f64..2.0, late in any::<bool>()) {
            let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
            let (left, not_after) = (Duration::from_millis(left), now + Duration::from_millis(left));
            let at = after_a_crowd(not_after, now, jitter);
            prop_assert!(now + left.mul_f64(0.249) <= at && at <= now + left.mul_f64(0.501));
            let at = catch_up(not_after, now, jitter);
            prop_assert!(now <= at && at <= now + left.mul_f64(0.501) && at <= now + CATCH_UP);
            let half = if late { now - left } else { now + left / 2 };
            let at = in_time(half, not_after, now);
            prop_assert!(now + left.mul_f64(0.249) <= at && at <= now + left.mul_f64(0.501));
            prop_assert_eq!(catch_up(now - left, now, jitter), now, "past its end: at once");
        }
    }

    /// Numbers in 0..1 that are the same in each run.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self) -> f64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(self.0 >> 33).unwrap()) / f64::from(u32::MAX >> 1)
        }
    }

    /// How many ask in each second after the CA is back, of 200 agents with 20 SVIDs each after 60 s without it.
    fn rates(spread: bool) -> Vec<u32> {
        let (outage, back) = (1_000.0, 1_060.0);
        let at = |seconds: f64| UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let (mut dice, mut rates) = (Dice(7), vec![0; 600]);
        for _ in 0..200 {
            // This agent's tries while the CA is away, and the first after.
            let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
            let mut returns = outage + dice.roll();
            while returns < back {
                returns += backoff.failed(dice.roll()).as_secs_f64();
            }
            for _ in 0..20 {
                // Somewhere in its round when the CA went.
                let issued = outage - dice.roll() * LIFE.as_secs_f64() * 0.45;
                let mut due = issued + LIFE.as_secs_f64() * (0.5 - 0.1 * dice.roll());
                let mut ends = issued + LIFE.as_secs_f64();
                while due < back + 600.0 {
                    let is_late = due < returns;
                    let asked = match (is_late, spread) {
                        (false, _) => due,
                        (true, false) => returns,
                        (true, true) => seconds(catch_up(at(ends), at(returns), dice.roll())),
                    };
                    if asked >= back && asked < back + 600.0 {
                        rates[(asked - back) as usize] += 1;
                    }
                    ends = asked + LIFE.as_secs_f64();
                    let half = at(asked + LIFE.as_secs_f64() * (0.5 - 0.1 * dice.roll()));
                    due = match is_late && spread {
                        true => seconds(after_a_crowd(at(ends), at(asked), dice.roll())),
                        false => seconds(in_time(half, at(ends), at(asked))),
                    };
                }
            }
        }
        rates
    }

    /// In the steady state 4 000 SVIDs of 300 s make some 30 renewals a second. After 60 s without a CA no second has more than
    /// three times as many, and no later one more than two and a quarter times; without the spread the first ones had seven times.
    #[test]
    fn after_an_outage_no_second_has_more_than_its_share() {
        let (spread, at_once) = (rates(true), rates(false));
        let peak = |rates: &[u32]| rates.iter().copied().max().unwrap();
        let mean = spread.iter().sum::<u32>() / 600;
        println!("renewals a second, 200 agents of 20 SVIDs, after 60 s without a CA; in the mean {mean}:");
        for (name, rates) in [("spread", &spread), ("at once", &at_once)] {
            let tens: Vec<u32> = rates.chunks(10).map(peak).collect();
            println!("{name:8} the highest of each ten seconds: {tens:?}");
        }
        assert!(peak(&spread) <= 3 * mean, "{} of {mean}", peak(&spread));
        assert!(4 * peak(&spread[60..]) <= 9 * mean, "{} of {mean}", peak(&spread[60..]));
        assert!(
            peak(&at_once) > 4 * mean,
            "the test would notice: {} of {mean}",
            peak(&at_once)
        );
    }
}
