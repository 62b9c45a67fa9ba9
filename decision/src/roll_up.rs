//! Refusals that are too many: recorded one by one up to a bound, and then counted in one record a second.
//!
//! Each caller has a bound of its own, and those without an identity have one together, so nobody can fill our disk and
//! nobody uses up another's share. Of what is held back the newest refusal of each kind is kept, and how many others there
//! were. When it is written it is a record as any other, and its `suppressed` says how many refusals it stands for besides
//! its own. So the number of refusals is at any time that of their records, plus all `suppressed`, plus what is still held
//! here: at most [`WRITTEN_EVERY`] old. What is allowed is never held back.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoplite_audit::{Outcome, Record};
use hoplite_host::bucket::{Bucket, Rate};

/// Refusals of those without an identity that are recorded one by one, all of them together.
const STRANGERS: Rate = Rate {
    burst: 1_000,
    every: Duration::from_millis(10),
};

/// Refusals of one caller that are recorded one by one: ten a second are less than half a gigabyte a day.
const CALLER: Rate = Rate {
    burst: 1_000,
    every: Duration::from_millis(100),
};

/// Callers with a bound of their own. Those beyond share one; who has not been refused for a while makes room.
const CALLERS_MAX: usize = 4_096;

/// Kinds of refusals of one caller that are counted apart: more than services, phases, outcomes and the routes that one
/// caller tries come to. Those beyond are counted with the last.
const KINDS_MAX: usize = 128;

/// How long what is held back waits for its record.
pub(crate) const WRITTEN_EVERY: Duration = Duration::from_secs(1);

/// How often it is said of a caller that it is counted.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Says which refusals are recorded, and holds the others.
#[derive(Debug)]
pub(crate) struct RollUp(Mutex<Held>);

/// What becomes of a refusal.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// It is to be recorded.
    Record(Box<Record>),
    /// It is held back, and counted in a record to come.
    Counted {
        /// Of whom to say so, the first time for a while: the caller, if that is known, and the service.
        say: Option<(Option<String>, String)>,
    },
}

#[derive(Debug)]
struct Held {
    rates: Rates,
    strangers: Bounded,
    callers: HashMap<String, Bounded>,
    /// Those for whom `callers` has no room.
    others: Bounded,
    /// Callers that could be forgotten were looked for then.
    swept_at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Rates {
    strangers: Rate,
    caller: Rate,
    callers_max: usize,
}

/// One bound, and what it has held back.
#[derive(Debug)]
struct Bounded {
    bucket: Bucket,
    kinds: Vec<Kind>,
    said_at: Option<Instant>,
}

/// The newest of some refusals that differ in nothing that is counted, and how many others there are.
#[derive(Debug)]
struct Kind {
    newest: Box<Record>,
    others: u64,
}

// === impl RollUp ===

impl RollUp {
    pub(crate) fn new(now: Instant) -> Self {
        Self::with(
            Rates {
                strangers: STRANGERS,
                caller: CALLER,
                callers_max: CALLERS_MAX,
            },
            now,
        )
    }

    fn with(rates: Rates, now: Instant) -> Self {
        Self(Mutex::new(Held {
            rates,
            strangers: Bounded::new(rates.strangers, now),
            callers: HashMap::new(),
            others: Bounded::new(rates.strangers, now),
            swept_at: now,
        }))
    }

    /// Whether it is recorded.
    pub(crate) fn admit(&self, record: Record, now: Instant) -> Admitted {
        let record = Box::new(record);
        if record.outcome == Outcome::Allow {
            return Admitted::Record(record);
        }
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.of(record.principal.as_deref(), now).admit(record, now)
    }

    /// What is held back, as records to be written now.
    pub(crate) fn take(&self, now: Instant) -> Vec<Record> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Held {
            strangers,
            callers,
            others,
            ..
        } = &mut *held;
        let all = callers.values_mut().chain([strangers, others]);
        let records = all.flat_map(Bounded::take).collect();
        held.sweep(now);
        records
    }
}

// === impl Held ===

impl Held {
    fn of(&mut self, principal: Option<&str>, now: Instant) -> &mut Bounded {
        let Some(principal) = principal else {
            return &mut self.strangers;
        };
        let is_known = self.callers.contains_key(principal);
        if !is_known && self.callers.len() >= self.rates.callers_max && self.swept_at + WRITTEN_EVERY <= now {
            self.sweep(now);
        }
        if !is_known && self.callers.len() >= self.rates.callers_max {
            return &mut self.others;
        }
        let rate = self.rates.caller;
        self.callers
            .entry(principal.to_owned())
            .or_insert_with(|| Bounded::new(rate, now))
    }

    /// Forgets who would be treated as a new caller anyway.
    fn sweep(&mut self, now: Instant) {
        self.swept_at = now;
        self.callers
            .retain(|_, caller| !caller.kinds.is_empty() || !caller.bucket.is_full(now));
    }
}

// === impl Bounded ===

impl Bounded {
    fn new(rate: Rate, now: Instant) -> Self {
        Self {
            bucket: Bucket::new(rate, now),
            kinds: Vec::new(),
            said_at: None,
        }
    }

    fn admit(&mut self, record: Box<Record>, now: Instant) -> Admitted {
        if self.bucket.take(now) {
            return Admitted::Record(record);
        }
        let say = self.said_at.is_none_or(|said| said + SAID_EVERY <= now).then(|| {
            self.said_at = Some(now);
            (record.principal.clone(), record.service.clone())
        });
        let is_full = self.kinds.len() >= KINDS_MAX;
        let alike = self.kinds.iter_mut().find(|kind| kind.counts(&record));
        match alike {
            Some(kind) => kind.add(record),
            None if is_full => {
                if let Some(last) = self.kinds.last_mut() {
                    last.add(record);
                }
            }
            None => self.kinds.push(Kind {
                newest: record,
                others: 0,
            }),
        }
        Admitted::Counted { say }
    }

    fn take(&mut self) -> impl Iterator<Item = Record> + use<> {
        std::mem::take(&mut self.kinds).into_iter().map(|kind| Record {
            suppressed: kind.others,
            ..*kind.newest
        })
    }
}

// === impl Kind ===

impl Kind {
    fn counts(&self, record: &Record) -> bool {
        let told_apart = |record: &Record| (record.outcome, record.phase);
        told_apart(&self.newest) == told_apart(record)
            && self.newest.service == record.service
            && self.newest.route == record.route
    }

    fn add(&mut self, record: Box<Record>) {
        self.newest = record;
        self.others += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_audit::Phase;
    use std::time::UNIX_EPOCH;

    const RATES: Rates = Rates {
        strangers: Rate {
            burst: 2,
            every: Duration::from_millis(10),
        },
        caller: Rate {
            burst: 3,
            every: Duration::from_millis(100),
        },
        callers_max: 4,
    };

    fn refusal(principal: Option<&str>, outcome: Outcome) -> Record {
        let mut record = Record::new(Phase::Request, outcome, "ledger", UNIX_EPOCH);
        record.principal = principal.map(str::to_owned);
        record
    }

    fn is_recorded(roll_up: &RollUp, record: Record, now: Instant) -> bool {
        matches!(roll_up.admit(record, now), Admitted::Record(_))
    }

    #[test]
    fn one_bound_for_strangers_and_one_for_each_caller() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let roll_up = RollUp::with(RATES, start);
        let refused = |principal, millis| is_recorded(&roll_up, refusal(principal, Outcome::NoPermit), after(millis));
        assert_eq!(
            [0, 1, 8, 9, 15, 19, 20].map(|at| refused(None, at)),
            [true, true, false, false, true, false, true]
        );
        assert_eq!(
            [20; 5].map(|at| refused(Some("a"), at)),
            [true, true, true, false, false]
        );
        assert_eq!(
            [20; 4].map(|at| refused(Some("b"), at)),
            [true, true, true, false],
            "it has its own"
        );
        let mut taken: Vec<_> = roll_up
            .take(after(30))
            .iter()
            .map(|r| (r.principal.clone(), r.suppressed))
            .collect();
        taken.sort();
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(taken, [(None, 2), (some("a"), 1), (some("b"), 0)]);
        assert_eq!(roll_up.take(after(30)).len(), 0, "each is written once");
        assert!(refused(Some("a"), 20 + 100), "it is quieter");
    }

    #[test]
    fn what_is_allowed_is_always_recorded() {
        let start = Instant::now();
        let roll_up = RollUp::with(RATES, start);
        for _ in 0..10 {
            assert!(is_recorded(&roll_up, refusal(Some("a"), Outcome::Allow), start));
            is_recorded(&roll_up, refusal(Some("a"), Outcome::Forbid), start);
        }
    }

    #[test]
    fn kinds_are_counted_apart() {
        let start = Instant::now();
        let roll_up = RollUp::with(RATES, start);
        for n in 0..30 {
            let outcome = if n % 3 == 0 { Outcome::Forbid } else { Outcome::NoPermit };
            let mut record = refusal(Some("a"), outcome);
            record.path = Some(format!("/{n}"));
            roll_up.admit(record, start);
        }
        let taken = roll_up.take(start);
        let told: Vec<_> = taken
            .iter()
            .map(|r| (r.outcome, r.path.as_deref().unwrap_or_default(), r.suppressed))
            .collect();
        assert_eq!(told, [(Outcome::Forbid, "/27", 8), (Outcome::NoPermit, "/29", 17)]);
    }

    #[test]
    fn it_is_said_once_a_minute() {
        let start = Instant::now();
        let roll_up = RollUp::with(RATES, start);
        let said = |seconds| {
            let record = refusal(Some("a"), Outcome::Forbid);
            matches!(
                roll_up.admit(record, start + Duration::from_secs(seconds)),
                Admitted::Counted { say: Some(_) }
            )
        };
        let told: Vec<_> = [0, 0, 0, 0, 0].into_iter().map(said).collect();
        assert_eq!(told, [false, false, false, true, false]);
    }

    /// Whatever comes when, and from however many: nothing is lost and nothing counted twice.
    #[test]
    fn every_refusal_is_a_record_or_counted_in_one() {
        let mut seed = u64::from(std::process::id());
        println!("SEED={seed}");
        let mut next = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut now = Instant::now();
        let roll_up = RollUp::with(RATES, now);
        let (mut refused, mut told) = (0_u64, 0_u64);
        let mut tell = |records: Vec<Record>| told += records.iter().map(|record| 1 + record.suppressed).sum::<u64>();
        for _ in 0..20_000 {
            now += Duration::from_millis(next(5));
            let principal = match next(12) {
                0 | 1 => None,
                n => Some(format!("spiffe://prod.acme/{n}")),
            };
            let outcome = if next(2) == 0 {
                Outcome::Forbid
            } else {
                Outcome::Malformed
            };
            if let Admitted::Record(record) = roll_up.admit(refusal(principal.as_deref(), outcome), now) {
                tell(vec![*record]);
            }
            refused += 1;
            if next(100) == 0 {
                tell(roll_up.take(now));
            }
            assert!(roll_up.0.lock().unwrap().callers.len() <= RATES.callers_max);
        }
        tell(roll_up.take(now));
        assert_eq!(told, refused);
        roll_up.take(now + Duration::from_secs(60));
        assert_eq!(roll_up.0.lock().unwrap().callers.len(), 0, "who is quiet is forgotten");
    }
}
