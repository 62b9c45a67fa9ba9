//! What is to be done next about the node's identity, by the clock and by what is known. Pure.

use std::time::{Duration, SystemTime};

use crate::node::link::RETRY;
use crate::renewal;

/// A CA that said no to the key of an SVID that has ended is asked again after this: an operator may have changed its mind.
pub(super) const REATTEST_AGAIN: Duration = Duration::from_secs(300);

/// What is to be done about the node's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Join,
    Renew,
    /// The SVID has ended, or its authority was revoked; its key may still count.
    Reattest,
    Sleep {
        until: SystemTime,
    },
    /// There is no valid SVID and no unspent token.
    NeedToken,
    /// The SVID is of the future: the clock is wrong.
    ClockBehind,
}

/// All that the next step depends on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    pub(super) svid: Option<Validity>,
    /// A token is there that has not bought an SVID yet.
    pub(super) token: bool,
    /// The CA refuses the SVID, though it is valid: the agent was evicted, or the CA founded anew.
    pub(super) refused: bool,
    /// Nothing vouches for the SVID any more; its key may still count.
    pub(super) cut_off: bool,
    /// Not before this, after a failure.
    pub(super) retry_at: Option<SystemTime>,
    /// Until then the CA need not be asked again whether the key of an SVID that has ended counts: it said no.
    pub(super) no_reattest_before: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    pub(super) not_before: SystemTime,
    pub(super) renew_at: SystemTime,
    pub(super) not_after: SystemTime,
}

// === impl Facts ===

impl Facts {
    pub(super) fn next(&self, now: SystemTime) -> Step {
        let resting = self.retry_at.filter(|at| RETRY.rests(*at, now));
        let counts = |svid: &Validity| now < svid.not_after && !self.cut_off;
        let Some(svid) = self.svid.filter(counts) else {
            return match (self.token, resting) {
                (false, _) if self.svid.is_none() || self.is_refused_for_good(now) => Step::NeedToken,
                (_, Some(until)) => Step::Sleep { until },
                (false, None) => Step::Reattest,
                (true, None) => Step::Join,
            };
        };
        if now < svid.not_before && !self.token {
            return Step::ClockBehind;
        }
        if let Some(until) = resting {
            return Step::Sleep { until };
        }
        if (self.refused || now < svid.not_before) && self.token {
            return Step::Join;
        }
        if now < svid.renew_at {
            Step::Sleep { until: svid.renew_at }
        } else {
            Step::Renew
        }
    }
}

impl Facts {
    /// However the clock is set: not for longer than that.
    fn is_refused_for_good(&self, now: SystemTime) -> bool {
        let left = self
            .no_reattest_before
            .and_then(|before| before.duration_since(now).ok());
        left.is_some_and(|left| !left.is_zero() && left <= REATTEST_AGAIN)
    }
}

// === impl Validity ===

impl Validity {
    /// However far our clock is ahead of the CA's: what has just been issued is not due at once. With `crowd`, in 0..=1, it was
    /// asked for by many at the same time.
    pub(super) fn just_issued(self, now: SystemTime, crowd: Option<f64>) -> Self {
        let renew_at = match crowd {
            Some(jitter) => renewal::after_a_crowd(self.not_after, now, jitter),
            None => renewal::in_time(self.renew_at, self.not_after, now),
        };
        Self { renew_at, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::SLEEP_MAX;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn the_next_step() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let svid = Some(Validity {
            not_before: at(100),
            renew_at: at(200),
            not_after: at(300),
        });
        let check =
            |now: u64, svid: Option<Validity>, token: bool, refused: bool, retry: Option<u64>, expected: Step| {
                let facts = Facts {
                    svid,
                    token,
                    refused,
                    retry_at: retry.map(at),
                    cut_off: false,
                    no_reattest_before: None,
                };
                assert_eq!(facts.next(at(now)), expected, "{now} {facts:?}");
            };
        let sleep = |until| Step::Sleep { until: at(until) };
        check(150, None, false, false, None, Step::NeedToken);
        check(150, None, true, false, None, Step::Join);
        check(150, None, true, false, Some(151), sleep(151));
        check(150, None, true, false, Some(150), Step::Join);
        check(99, svid, false, true, None, Step::ClockBehind);
        check(99, svid, true, false, None, Step::Join);
        check(100, svid, true, false, None, sleep(200));
        check(199, svid, false, false, Some(120), sleep(200));
        check(200, svid, false, false, None, Step::Renew);
        check(200, svid, true, false, None, Step::Renew);
        check(200, svid, true, false, Some(201), sleep(201));
        check(299, svid, false, true, None, Step::Renew);
        check(150, svid, true, true, None, Step::Join);
        check(150, svid, false, true, None, sleep(200));
        check(300, svid, false, false, None, Step::Reattest);
        check(300, svid, false, false, Some(301), sleep(301));
        check(9_999_999, svid, false, true, None, Step::Reattest); // the CA knows how long is too long
        for (now, expected) in [(400, Step::NeedToken), (500, Step::Reattest), (100_000, Step::Reattest)] {
            let facts = Facts {
                svid,
                no_reattest_before: Some(at(500)),
                ..Facts::default()
            };
            assert_eq!(facts.next(at(now)), expected, "{now}");
        }
        check(300, svid, true, false, None, Step::Join);
        check(301, svid, true, false, Some(305), sleep(305));
        check(150, None, true, false, Some(3700), Step::Join); // the clock was set back by an hour
        check(200, svid, true, false, Some(3700), Step::Renew);

        let issued = svid.map(|svid| svid.just_issued(at(260), None));
        check(260, issued, false, false, None, sleep(270)); // our clock is far ahead of the CA's
        check(270, issued, false, false, None, Step::Renew);
        let issued = svid.map(|svid| svid.just_issued(at(110), None));
        check(110, issued, false, false, None, sleep(200));
    }

    /// A year of hourly certificates with a CA that is away now and then: no gap while it is there, no storm while it is not.
    #[test]
    fn a_simulated_year() {
        let start = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let hour = Duration::from_secs(3600);
        let issue = |now: SystemTime| Validity {
            not_before: now,
            renew_at: now + hour / 2,
            not_after: now + hour,
        };
        // Away for 20 minutes each day, and once for two days.
        let away = |now: SystemTime| {
            let since = now.duration_since(start).unwrap().as_secs();
            since % 86_400 < 1200 && since > 86_400 || (100 * 86_400..102 * 86_400).contains(&since)
        };
        let mut facts = Facts {
            token: true,
            ..Facts::default()
        };
        let (mut backoff, mut now) = (RETRY, start);
        let (mut joins, mut renewals, mut reattested, mut failures) = (0u32, 0u32, 0u32, 0u32);
        let mut without = Duration::ZERO;
        while now < start + DAY * 365 {
            let before = now;
            match facts.next(now) {
                Step::Join | Step::Renew | Step::Reattest if away(now) => {
                    failures += 1;
                    facts.retry_at = Some(now + backoff.failed(0.5));
                    now += Duration::from_millis(10);
                }
                step @ (Step::Join | Step::Renew | Step::Reattest) => {
                    *(match step {
                        Step::Join => &mut joins,
                        Step::Reattest => &mut reattested,
                        _ => &mut renewals,
                    }) += 1;
                    backoff.succeeded();
                    facts = Facts {
                        svid: Some(issue(now)),
                        ..Facts::default()
                    };
                    now += Duration::from_millis(10);
                }
                Step::Sleep { until } => {
                    assert!(until > now);
                    now = until.min(now + SLEEP_MAX);
                }
                Step::NeedToken => panic!("it has joined"),
                Step::ClockBehind => panic!("the clock is right"),
            }
            if facts.svid.is_none_or(|svid| svid.not_after <= before) {
                without += now.duration_since(before).unwrap();
            }
        }
        assert_eq!((joins, reattested), (1, 1), "the first, and after the two days");
        assert!((17_300..17_600).contains(&renewals), "{renewals}");
        assert!(
            DAY < without && without < DAY * 2 + Duration::from_secs(60),
            "{without:?}"
        );
        assert!(failures < 2 * 86_400 / 10 + 365 * 1200 / 7, "{failures}");
    }
}
