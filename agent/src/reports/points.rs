//! What those that decide on this node said of themselves last: one place for each attested process and name.
//!
//! Nobody can speak for another: the name under which something is kept is one that the process is entitled to, by its own
//! attestation. Nobody can crowd out others: a name has so many places, whoever has that name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_decision::reporting::unix;
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_wire::report::{Point, PointState};
use hoplite_wire::reporting::{self, POINT_BYTES_MAX, POINTS_MAX, TEXT_CHARS_MAX};
use tokio::sync::{Notify, watch};

use crate::attest::LocalProcess;

/// Processes with one name. A node has one proxy of a service, or one for each of its instances.
const PER_NAME_MAX: usize = 32;

/// Whoever says something more often is not heard.
const GAP: Duration = Duration::from_millis(100);

/// They report every five seconds or more often.
const SILENT_AFTER: Duration = Duration::from_secs(16);

/// For so long it is told that a process ended without a word. Whoever was meant to be there is then somebody else's finding.
const ENDED_TOLD: Duration = Duration::from_secs(600);

/// … and for so long with which error it did: whoever looks in the morning shall read it.
const FAILURE_TOLD: Duration = Duration::from_secs(24 * 3600);

/// Before the CA has said it.
const PERIOD_FIRST: Duration = Duration::from_secs(30);

/// All of them.
#[derive(Debug)]
pub(crate) struct Points {
    held: Mutex<Held>,
    news: Notify,
    period: watch::Sender<Duration>,
}

/// The pure part.
#[derive(Debug, Default)]
struct Held {
    slots: BTreeMap<Owner, Slot>,
    number: u64,
}

/// Whose it is: a process, and which of its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    spiffe_id: String,
    pid: i32,
}

#[derive(Debug)]
struct Slot {
    /// Counts the slots: another process with the same number has another.
    number: u64,
    point: Point,
    heard: SystemTime,
    ended: Option<SystemTime>,
    /// The error with which it left; empty for none.
    failure: String,
}

/// Why something is not kept. Whoever says it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotKept {
    #[error("{PER_NAME_MAX} processes with this SPIFFE ID report already")]
    NameFull,
    #[error("{POINTS_MAX} processes report already")]
    Full,
    #[error("a report is at most {POINT_BYTES_MAX} bytes long")]
    TooLong,
    #[error("this process reported less than 100 ms ago")]
    TooSoon,
}

// === impl Points ===

impl Points {
    pub(crate) fn new() -> Self {
        Self {
            held: Mutex::default(),
            news: Notify::new(),
            period: watch::Sender::new(PERIOD_FIRST),
        }
    }

    /// Whether this process has said something a moment ago, under whatever name; asked before anything that costs.
    pub(crate) fn is_too_soon(&self, pid: i32, now: SystemTime) -> bool {
        self.held().is_too_soon(pid, now)
    }

    /// Keeps what a process says under a name that it has, for as long as it runs.
    pub(crate) fn put(
        self: &Arc<Self>,
        process: &Arc<LocalProcess>,
        point: Point,
        (begins, ends): (SystemTime, SystemTime),
        shutdown: &Shutdown,
    ) -> Result<(), NotKept> {
        let fresh = self.held().put(process.pid, point, (begins, ends), clock::now())?;
        self.news.notify_one();
        if let Some((owner, number)) = fresh {
            let (points, process, mut shutdown) = (Arc::clone(self), Arc::clone(process), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = process.exited() => {
                        points.held().ended(&owner, number, clock::now());
                        points.news.notify_one();
                    }
                    () = shutdown.wait() => {}
                }
            });
        }
        Ok(())
    }

    /// It stops: in good order, or with an error that is not empty.
    pub(crate) fn leave(&self, pid: i32, spiffe_id: &str, failure: &str) {
        self.held().leave(pid, spiffe_id, failure, clock::now());
        self.news.notify_one();
    }

    /// What each said last, in the order of keys.
    pub(crate) fn now(&self, now: SystemTime) -> Vec<Point> {
        self.held().now(now)
    }

    /// Returns when something new was said, or somebody has ended.
    pub(crate) async fn changed(&self) {
        self.news.notified().await;
    }

    /// How often the CA is told, which is how often it wants to be.
    pub(crate) fn period(&self) -> Duration {
        *self.period.borrow()
    }

    pub(crate) fn set_period(&self, period: Duration) {
        self.period.send_replace(period);
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Held ===

impl Held {
    fn is_too_soon(&self, pid: i32, now: SystemTime) -> bool {
        let own = self
            .slots
            .iter()
            .filter(|(owner, slot)| owner.pid == pid && slot.ended.is_none());
        // Under each of its names, if it has several.
        let lately = own.map(|(_, slot)| now.duration_since(slot.heard).unwrap_or(GAP) < GAP);
        lately.reduce(|all, one| all && one).unwrap_or(false)
    }

    /// The owner and number of a slot that is new.
    fn put(
        &mut self,
        pid: i32,
        mut point: Point,
        (begins, ends): (SystemTime, SystemTime),
        now: SystemTime,
    ) -> Result<Option<(Owner, u64)>, NotKept> {
        reporting::clean_point(&mut point);
        if reporting::point_length(&point) > POINT_BYTES_MAX {
            return Err(NotKept::TooLong);
        }
        let about = point.about.clone().unwrap_or_default();
        let owner = Owner {
            spiffe_id: about.spiffe_id,
            pid,
        };
        let state = PointState {
            svid_not_before_unix: unix(begins),
            svid_not_after_unix: unix(ends),
            pid,
            ..PointState::default()
        };
        point.state = Some(state);
        if let Some(slot) = self.slots.get_mut(&owner).filter(|slot| slot.ended.is_none()) {
            if now.duration_since(slot.heard).unwrap_or(GAP) < GAP {
                return Err(NotKept::TooSoon);
            }
            point.key.clone_from(&slot.point.key);
            (slot.point, slot.heard) = (point, now);
            return Ok(None);
        }
        // Whoever ended and is back is not missing; and those that ended make room for those that run.
        let name = about.name;
        self.slots.retain(|held, slot| {
            let is_same = slot.point.about.as_ref().is_some_and(|about| about.name == name);
            slot.ended.is_none() || held.spiffe_id != owner.spiffe_id || !is_same
        });
        let of_name =
            |slots: &BTreeMap<Owner, Slot>| slots.keys().filter(|held| held.spiffe_id == owner.spiffe_id).count();
        if of_name(&self.slots) >= PER_NAME_MAX {
            self.slots
                .retain(|held, slot| slot.ended.is_none() || held.spiffe_id != owner.spiffe_id);
        }
        if of_name(&self.slots) >= PER_NAME_MAX {
            return Err(NotKept::NameFull);
        }
        if self.slots.len() >= POINTS_MAX {
            self.slots.retain(|_, slot| slot.ended.is_none());
        }
        if self.slots.len() >= POINTS_MAX {
            return Err(NotKept::Full);
        }
        self.number += 1;
        point.key = format!("p{:08}", self.number);
        let slot = Slot {
            number: self.number,
            point,
            heard: now,
            ended: None,
            failure: String::new(),
        };
        self.slots.insert(owner.clone(), slot);
        Ok(Some((owner, self.number)))
    }

    /// Whoever stops in good order is not missing; whoever stops with an error is, until it is back.
    fn leave(&mut self, pid: i32, spiffe_id: &str, failure: &str, now: SystemTime) {
        let owner = Owner {
            spiffe_id: spiffe_id.to_owned(),
            pid,
        };
        if failure.is_empty() {
            self.slots.remove(&owner);
        } else if let Some(slot) = self.slots.get_mut(&owner) {
            slot.ended = Some(now);
            slot.failure = failure.chars().take(TEXT_CHARS_MAX).collect();
        }
    }

    fn ended(&mut self, owner: &Owner, number: u64, now: SystemTime) {
        if let Some(slot) = self.slots.get_mut(owner).filter(|slot| slot.number == number) {
            slot.ended.get_or_insert(now);
        }
    }

    fn now(&mut self, now: SystemTime) -> Vec<Point> {
        self.slots.retain(|_, slot| {
            let told = if slot.failure.is_empty() {
                ENDED_TOLD
            } else {
                FAILURE_TOLD
            };
            let is_told = |ended: SystemTime| now.duration_since(ended).unwrap_or_default() < told;
            slot.ended.is_none_or(is_told)
        });
        let points = self.slots.values().map(|slot| {
            let mut point = slot.point.clone();
            if let Some(state) = &mut point.state {
                let is_silent = now.duration_since(slot.heard).unwrap_or_default() > SILENT_AFTER;
                state.silent_since_unix = if is_silent { unix(slot.heard) } else { 0 };
                state.ended_unix = slot.ended.map(unix).unwrap_or_default();
                state.failure.clone_from(&slot.failure);
            }
            point
        });
        let mut points: Vec<Point> = points.collect();
        points.sort_by(|a, b| a.key.cmp(&b.key));
        points
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_wire::report::{Fired, PointAbout};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn point(spiffe_id: &str, name: &str) -> Point {
        Point {
            key: "what it says means nothing".into(),
            about: Some(PointAbout {
                spiffe_id: spiffe_id.into(),
                name: name.into(),
                ..PointAbout::default()
            }),
            state: Some(PointState {
                pid: 1,
                ended_unix: 7,
                ..PointState::default()
            }),
            ..Point::default()
        }
    }

    fn put(held: &mut Held, pid: i32, spiffe_id: &str, now: u64) -> Result<bool, NotKept> {
        let put = held.put(pid, point(spiffe_id, "ledger"), (at(0), at(900)), at(now));
        put.map(|fresh| fresh.is_some())
    }

    #[test]
    fn a_process_has_one_place_and_the_agent_names_it() {
        let mut held = Held::default();
        assert_eq!(put(&mut held, 7, "a", 0), Ok(true));
        assert_eq!(put(&mut held, 7, "a", 0), Err(NotKept::TooSoon));
        assert_eq!(put(&mut held, 7, "a", 1), Ok(false));
        let now = held.now(at(1));
        let [only] = now.as_slice() else { panic!("{now:?}") };
        let state = only.state.clone().unwrap();
        assert_eq!((&*only.key, state.pid, state.ended_unix), ("p00000001", 7, 0));
        assert_eq!(state.svid_not_after_unix, unix(at(900)));
        assert_eq!(
            held.now(at(18))[0].state.as_ref().unwrap().silent_since_unix,
            unix(at(1))
        );
    }

    #[test]
    fn who_ended_is_told_until_it_is_back_or_nobody_asks_any_more() {
        let mut held = Held::default();
        let (owner, number) = held
            .put(7, point("a", "ledger"), (at(0), at(900)), at(0))
            .unwrap()
            .unwrap();
        held.ended(&owner, number + 1, at(1));
        assert_eq!(
            held.now(at(1))[0].state.as_ref().unwrap().ended_unix,
            0,
            "another process of this number"
        );
        held.ended(&owner, number, at(2));
        assert_eq!(held.now(at(3))[0].state.as_ref().unwrap().ended_unix, unix(at(2)));
        // The same number again is another process.
        assert_eq!(put(&mut held, 7, "a", 4), Ok(true));
        assert_eq!(held.now(at(4)).len(), 1);
        let (owner, number) = (held.slots.keys().next().unwrap().clone(), held.number);
        held.ended(&owner, number, at(5));
        assert_eq!(held.now(at(604)).len(), 1);
        assert_eq!(held.now(at(605)).len(), 0);
    }

    #[test]
    fn who_ends_with_an_error_is_missing_until_it_is_back() {
        let mut held = Held::default();
        let (owner, number) = held
            .put(7, point("a", "ledger"), (at(0), at(900)), at(0))
            .unwrap()
            .unwrap();
        held.leave(7, "b", "not its name", at(1));
        held.leave(7, "a", &"the disk is full ".repeat(100), at(1));
        held.ended(&owner, number, at(2));
        let now = held.now(at(3));
        let state = now[0].state.as_ref().unwrap();
        assert_eq!((now.len(), state.ended_unix), (1, unix(at(1))));
        assert!(state.failure.starts_with("the disk is full"));
        assert_eq!(state.failure.chars().count(), TEXT_CHARS_MAX);
        assert_eq!(held.now(at(3_600)).len(), 1, "for longer than an end without a word");
        // It is back, and leaves in good order.
        assert_eq!(put(&mut held, 8, "a", 4_000), Ok(true));
        let now = held.now(at(4_000));
        assert_eq!((now.len(), &*now[0].state.as_ref().unwrap().failure), (1, ""));
        held.leave(8, "a", "", at(4_001));
        assert!(held.now(at(4_001)).is_empty());
        held.put(9, point("a", "ledger"), (at(0), at(900)), at(5_000)).unwrap();
        held.leave(9, "a", "again", at(5_000));
        assert_eq!(held.now(at(5_000 + 24 * 3600)).len(), 0, "nobody asks any more");
    }

    #[test]
    fn one_name_does_not_crowd_out_others() {
        let mut held = Held::default();
        for pid in 0..100 {
            let expected = if pid < 32 { Ok(true) } else { Err(NotKept::NameFull) };
            assert_eq!(put(&mut held, pid, "evil", 0), expected);
        }
        assert_eq!(put(&mut held, 200, "good", 0), Ok(true));
        // Those that ended make room.
        let owner = held.slots.keys().next().unwrap().clone();
        let number = held.slots[&owner].number;
        held.ended(&owner, number, at(1));
        assert_eq!(put(&mut held, 101, "evil", 1), Ok(true));
        for name in 0..POINTS_MAX + 10 {
            let _ = put(&mut held, 300, &format!("n{name}"), 1);
        }
        assert_eq!(put(&mut held, 301, "last", 1), Err(NotKept::Full));
        assert_eq!(held.now(at(1)).len(), POINTS_MAX);
    }

    #[test]
    fn a_report_that_is_too_long_is_not_kept() {
        let mut held = Held::default();
        let mut long = point("a", "ledger");
        long.fired = Some(Fired {
            ids: vec!["x".repeat(256); 512],
            left_out: 0,
        });
        assert_eq!(held.put(1, long, (at(0), at(900)), at(0)), Err(NotKept::TooLong));
        assert!(held.now(at(0)).is_empty());
    }
}
