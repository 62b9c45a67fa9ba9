//! The course of authorities: prepared, active, old, tainted, revoked. Pure: what is due at a moment, and what may be asked for.
//!
//! There is one active authority, which signs. Its successor is prepared, and in the trust bundle, long before it signs
//! anything. The states go one way only. Nothing here knows what kind of key an authority has.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::record;

/// An authority's name: the SHA-256 of its certificate, in hex.
pub(crate) type Name = String;

/// Authorities in the trust bundle: each is tried with every handshake of every workload.
pub(crate) const AUTHORITIES_MAX: usize = 16;

/// The last part of a life, in which a successor signs. Nothing that was signed before may live longer.
pub(crate) const LAST_PART: u32 = 6;

/// An authority that nobody has heard of signs nothing for so long (seconds), or a twelfth of the active one's life if that is less.
/// When all agents that are in contact have said that they know it, it need not wait for others.
const KNOWN_AFTER: u64 = 30;

/// So long (seconds) it waits in any case, for what hears of it from an agent.
const SPREADS_IN: u64 = 2;

/// Where an authority stands. They go one way only, from left to right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It is in the trust bundle and signs nothing yet.
    Prepared,
    /// It signs.
    Active,
    /// It signs no more; what it has signed is good.
    Old,
    /// What it has signed is good and is replaced at once.
    Tainted,
    /// It is in no trust bundle, and what it has signed is good for nothing.
    Revoked,
}

/// One authority's course so far, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) state: State,
    /// When it came into the trust bundle.
    pub(crate) made: u64,
    /// When it came into this state.
    pub(crate) since: u64,
    /// The end of its certificate.
    pub(crate) not_after: u64,
}

/// All authorities at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Course(pub(crate) BTreeMap<Name, Life>);

/// What is due by time alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    /// These have ended, and nothing of theirs can be valid.
    Leave(Vec<Name>),
    /// A successor is to be made.
    Prepare,
    /// The prepared one is to sign.
    Activate(Name),
}

/// Why something is not done. For the operator who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CourseError {
    /// No authority has this name.
    #[error("no authority's fingerprint begins with `{0}`; `hoplite authority list` shows them")]
    NoSuch(String),
    /// Several have.
    #[error("`{0}` begins the fingerprints of several authorities; write more of it")]
    Several(String),
    /// There is nothing to activate.
    #[error("no authority is prepared; `hoplite authority prepare` makes one")]
    NonePrepared,
    /// It is in another state than it has to be.
    #[error("the authority `{name}` is {state}; {remedy}")]
    NotNow {
        /// The beginning of its name.
        name: String,
        /// Its state.
        state: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// Agents have not heard of it.
    #[error(
        "the authority `{name}` was made only now, and not all agents know it yet; in {seconds} s it may sign in any case"
    )]
    NotKnown {
        /// The beginning of its name.
        name: String,
        /// How long it waits at most.
        seconds: u64,
    },
    /// More would slow each handshake down.
    #[error(
        "there are {AUTHORITIES_MAX} authorities in the trust bundle already; revoke one that nothing needs any more"
    )]
    TooMany,
    /// What was made has ended, or is not made for now.
    #[error("the authority ends before it could sign; look at the clock, and at `authority_ttl`")]
    TooShort,
}

// === impl State ===

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Old => "old",
            Self::Tainted => "tainted",
            Self::Revoked => "revoked",
        }
    }

    /// Whether it signs, or will.
    pub(crate) fn has_key(self) -> bool {
        matches!(self, Self::Prepared | Self::Active)
    }

    /// Whether members of the trust domain are verified with it.
    pub(crate) fn is_trusted(self) -> bool {
        self != Self::Revoked
    }
}

// === impl Life ===

impl Life {
    /// Of one that is made now.
    pub(crate) fn new(state: State, now: SystemTime, not_after: SystemTime) -> Self {
        let now = record::unix_seconds(now);
        Self {
            state,
            made: now,
            since: now,
            not_after: record::unix_seconds(not_after),
        }
    }

    /// After it signed: what it signed is good.
    pub(crate) fn ended_turn(self, now: SystemTime) -> Self {
        Self {
            state: State::Old,
            since: record::unix_seconds(now),
            ..self
        }
    }

    fn whole(&self) -> u64 {
        self.not_after.saturating_sub(self.made)
    }

    /// When its successor is made: at half of its life.
    pub(crate) fn prepares_at(&self) -> u64 {
        self.made + self.whole() / 2
    }

    /// When its successor signs in its place: with a sixth of its life left.
    pub(crate) fn hands_over_at(&self) -> u64 {
        self.not_after - self.whole() / u64::from(LAST_PART)
    }

    /// When people are told that it has no successor: with a quarter of its life left.
    pub(crate) fn warns_at(&self) -> u64 {
        self.not_after - self.whole() / 4
    }

    fn to(&mut self, state: State, now: u64) {
        (self.state, self.since) = (state, now);
    }
}

// === impl Course ===

impl Course {
    /// The one that signs.
    pub(crate) fn active(&self) -> Option<(&Name, &Life)> {
        self.in_state(State::Active).next()
    }

    /// The one that will sign next: of several, which by hand only can be, the first that was made.
    pub(crate) fn prepared(&self) -> Option<(&Name, &Life)> {
        self.in_state(State::Prepared)
            .min_by_key(|(name, life)| (life.made, *name))
    }

    pub(crate) fn in_state(&self, state: State) -> impl Iterator<Item = (&Name, &Life)> {
        self.0.iter().filter(move |(_, life)| life.state == state)
    }

    /// The full name that begins so; a successor, for who names none.
    pub(crate) fn find(&self, prefix: &str) -> Result<Name, CourseError> {
        let prefix = prefix.to_ascii_lowercase();
        let mut found = self
            .0
            .keys()
            .filter(|name| !prefix.is_empty() && name.starts_with(&prefix));
        match (found.next(), found.next()) {
            (Some(name), None) => Ok(name.clone()),
            (Some(_), Some(_)) => Err(CourseError::Several(prefix)),
            (None, _) => Err(CourseError::NoSuch(prefix.escape_debug().to_string())),
        }
    }

    /// What is due now, one step at a time. `knows` says whether all agents in contact know the trust bundle of now.
    pub(crate) fn due(&self, now: SystemTime, rotates: bool, knows: bool) -> Option<Due> {
        let now = record::unix_seconds(now);
        let has_ended = |(_, life): &(&Name, &Life)| life.state != State::Active && life.not_after <= now;
        let ended: Vec<Name> = self.0.iter().filter(has_ended).map(|(name, _)| name.clone()).collect();
        if !ended.is_empty() {
            return Some(Due::Leave(ended));
        }
        let (_, active) = self.active()?;
        match self.prepared() {
            // Whoever rotates by hand is not left with nothing that signs.
            Some((name, _)) if now >= active.not_after => Some(Due::Activate(name.clone())),
            Some((name, next)) => {
                let is_due = rotates && now >= active.hands_over_at() && self.unknown_for(next, now, knows).is_none();
                is_due.then(|| Due::Activate(name.clone()))
            }
            None => (rotates && now >= active.prepares_at()).then_some(Due::Prepare),
        }
    }

    /// How long the prepared one has to wait still because somebody may not have heard of it, in seconds.
    fn unknown_for(&self, prepared: &Life, now: u64, knows: bool) -> Option<u64> {
        let whole = self.active().map_or(0, |(_, life)| life.whole());
        let waits = match knows {
            true => SPREADS_IN,
            false => KNOWN_AFTER.min(whole / 12).max(SPREADS_IN),
        };
        let left = (prepared.made + waits).saturating_sub(now);
        // A clock that was set back makes nobody wait for longer.
        (left > 0 && left <= waits).then_some(left)
    }

    /// That there is no successor though the end is near.
    pub(crate) fn lacks_successor(&self, now: SystemTime) -> bool {
        let now = record::unix_seconds(now);
        let is_near = |(_, life): (&Name, &Life)| now >= life.warns_at();
        self.active().is_none_or(is_near) && self.prepared().is_none()
    }

    /// With one more, which is to follow the active one. When there is a successor already, by time nothing happens.
    pub(crate) fn prepare(&mut self, name: &str, life: Life, by_hand: bool) -> Result<bool, CourseError> {
        if self.0.contains_key(name) || (!by_hand && self.prepared().is_some()) {
            return Ok(false);
        }
        if self.0.values().filter(|life| life.state.is_trusted()).count() >= AUTHORITIES_MAX {
            return Err(CourseError::TooMany);
        }
        if life.not_after <= life.made {
            return Err(CourseError::TooShort);
        }
        self.0.insert(
            name.to_owned(),
            Life {
                state: State::Prepared,
                ..life
            },
        );
        Ok(true)
    }

    /// The prepared one signs, the active one is old. `knows` as for [`Course::due`]. False: it signs already.
    pub(crate) fn activate(&mut self, name: &str, now: SystemTime, knows: bool) -> Result<bool, CourseError> {
        let seconds = record::unix_seconds(now);
        let life = *self.get(name)?;
        match life.state {
            State::Active => return Ok(false),
            State::Prepared => {}
            _ => {
                return Err(not_now(
                    name,
                    life.state,
                    "only a prepared one can be activated: `hoplite authority prepare` makes one",
                ));
            }
        }
        if life.not_after <= seconds {
            return Err(CourseError::TooShort);
        }
        let is_needed = self.active().is_none_or(|(_, active)| active.not_after <= seconds);
        if let Some(left) = self.unknown_for(&life, seconds, knows).filter(|_| !is_needed) {
            return Err(CourseError::NotKnown {
                name: short(name),
                seconds: left,
            });
        }
        // INVARIANT: there is one active authority at most: whoever was active is old in the same commit.
        for other in self.0.values_mut().filter(|life| life.state == State::Active) {
            other.to(State::Old, seconds);
        }
        if let Some(life) = self.0.get_mut(name) {
            life.to(State::Active, seconds);
        }
        Ok(true)
    }

    /// Has all that it signed replaced. The active one needs a successor that agents know, which signs from then on.
    pub(crate) fn taint(&mut self, name: &str, now: SystemTime, knows: bool) -> Result<bool, CourseError> {
        let state = self.get(name)?.state;
        match state {
            State::Tainted => return Ok(false),
            State::Prepared => return Err(not_now(name, state, "it has signed nothing: revoke it")),
            State::Revoked => return Err(not_now(name, state, "nothing trusts it any more")),
            State::Active => {
                let next = self.prepared().ok_or(CourseError::NonePrepared)?.0.clone();
                self.activate(&next, now, knows)?;
            }
            State::Old => {}
        }
        if let Some(life) = self.0.get_mut(name) {
            life.to(State::Tainted, record::unix_seconds(now));
        }
        Ok(true)
    }

    /// Takes it out of the trust bundle for good.
    pub(crate) fn revoke(&mut self, name: &str, now: SystemTime) -> Result<bool, CourseError> {
        let state = self.get(name)?.state;
        match state {
            State::Revoked => return Ok(false),
            State::Prepared | State::Tainted => {}
            State::Active | State::Old => {
                let remedy = "taint it first, so that all that it has signed is replaced before it counts for nothing";
                return Err(not_now(name, state, remedy));
            }
        }
        if let Some(life) = self.0.get_mut(name) {
            life.to(State::Revoked, record::unix_seconds(now));
        }
        Ok(true)
    }

    /// Without those that have ended; the active one stays.
    pub(crate) fn leave(&mut self, now: SystemTime) -> Vec<Name> {
        match self.due(now, false, false) {
            Some(Due::Leave(ended)) => {
                self.0.retain(|name, _| !ended.contains(name));
                ended
            }
            _ => Vec::new(),
        }
    }

    fn get(&self, name: &str) -> Result<&Life, CourseError> {
        self.0.get(name).ok_or_else(|| CourseError::NoSuch(short(name)))
    }
}

/// The beginning of a name, for people.
pub(crate) fn short(name: &str) -> String {
    name.chars().take(12).collect()
}

fn not_now(name: &str, state: State, remedy: &'static str) -> CourseError {
    CourseError::NotNow {
        name: short(name),
        state: state.as_str(),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const START: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        record::from_unix_seconds(START + seconds)
    }

    fn born(state: State, seconds: u64, ttl: u64) -> Life {
        Life::new(state, at(seconds), at(seconds + ttl))
    }

    fn first(ttl: u64) -> Course {
        Course([("a".to_owned(), born(State::Active, 0, ttl))].into())
    }

    #[test]
    fn half_a_life_prepares_and_the_last_sixth_activates() {
        let mut course = first(600);
        assert_eq!(course.due(at(299), true, true), None);
        assert_eq!(course.due(at(300), true, true), Some(Due::Prepare));
        assert_eq!(course.due(at(300), false, true), None, "by hand");
        assert!(!course.lacks_successor(at(449)) && course.lacks_successor(at(450)));
        assert_eq!(course.prepare("b", born(State::Prepared, 300, 600), false), Ok(true));
        assert!(!course.lacks_successor(at(599)));
        assert_eq!(course.due(at(499), true, true), None);
        assert_eq!(course.due(at(500), true, false), Some(Due::Activate("b".into())));
        assert_eq!(course.activate("b", at(500), false), Ok(true));
        assert_eq!(course.active().map(|(name, _)| name.as_str()), Some("b"));
        assert_eq!(course.0["a"].state, State::Old);
        assert_eq!(course.due(at(599), true, true), None);
        assert_eq!(course.due(at(600), true, true), Some(Due::Leave(vec!["a".into()])));
        assert_eq!((course.leave(at(600)), course.0.len()), (vec!["a".to_owned()], 1));
        assert_eq!(course.due(at(600), true, true), Some(Due::Prepare));
    }

    #[test]
    fn nothing_signs_before_it_is_known() {
        let check = |ttl: u64, knows: bool, waits: u64| {
            let mut course = first(ttl);
            course.prepare("b", born(State::Prepared, 10, ttl), true).unwrap();
            let error = course.activate("b", at(10 + waits - 1), knows).unwrap_err();
            assert!(error.to_string().contains("in 1 s"), "{error}");
            let error = course.taint("a", at(10 + waits - 1), knows).unwrap_err();
            assert!(matches!(error, CourseError::NotKnown { .. }), "{error}");
            assert_eq!(course.activate("b", at(10 + waits), knows), Ok(true));
        };
        check(31_536_000, true, SPREADS_IN);
        check(31_536_000, false, KNOWN_AFTER);
        check(120, false, 10);
        check(24, false, SPREADS_IN);
        // Nothing signs at all any more: then nobody waits.
        let mut course = first(600);
        course.prepare("b", born(State::Prepared, 600, 600), true).unwrap();
        assert_eq!(course.due(at(600), false, false), Some(Due::Activate("b".into())));
        assert_eq!(course.activate("b", at(600), false), Ok(true));
    }

    /// Whatever the clock says then, nothing comes back and nothing is done twice.
    #[test]
    fn a_clock_that_is_set_back_undoes_nothing() {
        let mut course = first(600);
        course.prepare("b", born(State::Prepared, 300, 600), false).unwrap();
        for back in [0, 150, 299] {
            assert_eq!(course.due(at(back), true, true), None, "{back}");
            assert!(!course.lacks_successor(at(back)));
        }
        assert_eq!(course.activate("b", at(500), true), Ok(true));
        let before = course.clone();
        for back in [499, 300, 0] {
            assert_eq!(course.due(at(back), true, true), None, "{back}");
            assert_eq!(course.activate("b", at(back), true), Ok(false));
            assert_eq!(course.leave(at(back)), Vec::<Name>::new());
        }
        assert_eq!(course, before);
        // By hand, with a clock that is behind the making of it: it waits for no longer than ever.
        course.prepare("c", born(State::Prepared, 550, 600), true).unwrap();
        assert_eq!(course.activate("c", at(100), false), Ok(true));
        assert_eq!(course.in_state(State::Active).count(), 1);
        // Set ahead, and back again: what has left for good is not missed, and the one that signs stays.
        assert_eq!(course.leave(at(700)), vec!["a".to_owned()]);
        assert_eq!(course.active().map(|(name, _)| name.as_str()), Some("c"));
        assert_eq!(course.due(at(100), true, true), None);
    }

    #[test]
    fn states_go_one_way() {
        let mut course = first(6000);
        assert_eq!(course.taint("a", at(1), true), Err(CourseError::NonePrepared));
        for n in 0..4_u64 {
            course
                .prepare(&format!("b{n}"), born(State::Prepared, 10 + n, 6000), true)
                .unwrap();
        }
        let refused = |error: Result<bool, CourseError>, says: &str| {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(course.taint("b0", at(20), true), "revoke it");
        refused(course.revoke("a", at(20)), "taint it first");
        assert_eq!(course.revoke("b3", at(20)), Ok(true));
        assert_eq!(course.revoke("b3", at(20)), Ok(false));
        refused(course.activate("b3", at(20), true), "is revoked");
        assert_eq!(course.taint("a", at(20), true), Ok(true));
        assert_eq!(
            course.active().map(|(name, _)| name.as_str()),
            Some("b0"),
            "the first that was prepared"
        );
        assert_eq!(course.taint("a", at(20), true), Ok(false));
        refused(course.activate("a", at(20), true), "is tainted");
        assert_eq!(course.revoke("a", at(21)), Ok(true));
        refused(course.taint("a", at(22), true), "nothing trusts it");
        assert_eq!(course.find("b1"), Ok("b1".to_owned()));
        refused(course.find("b").map(|_| true), "several");
        refused(course.find("").map(|_| true), "hoplite authority list");
        for n in 4..AUTHORITIES_MAX as u64 + 1 {
            course
                .prepare(&format!("b{n}"), born(State::Prepared, 10, 6000), true)
                .unwrap();
        }
        refused(
            course.prepare("c", born(State::Prepared, 10, 6000), true),
            "16 authorities",
        );
    }

    proptest! {
        /// Whatever people ask for, and however long nobody looks: never two that sign, never none, nothing signs before it was
        /// known for as long as it must be, and an authority that has ended is in no bundle.
        #[test]
        fn one_signs_whatever_happens(
            ttl in 24_u64..100_000,
            steps in proptest::collection::vec((0_u64..2_000, 0_u8..8, any::<prop::sample::Index>(), any::<bool>()), 1..120),
        ) {
            let (mut course, mut now, mut count) = (first(ttl), 0_u64, 0);
            for (wait, what, which, knows) in steps {
                now += wait.min(ttl / 13);
                count += 1;
                let names: Vec<Name> = course.0.keys().cloned().collect();
                let name = &names[which.index(names.len())];
                let before = course.clone();
                let made = format!("n{count}");
                let life = born(State::Prepared, now, ttl);
                let _ = match what {
                    0 => course.prepare(&made, life, true),
                    1 => course.activate(name, at(now), knows),
                    2 => course.taint(name, at(now), knows),
                    3 => course.revoke(name, at(now)),
                    _ => Ok(true),
                };
                while let Some(due) = course.due(at(now), true, knows) {
                    count += 1;
                    match due {
                        Due::Leave(_) => drop(course.leave(at(now))),
                        Due::Prepare => {
                            if course.prepare(&format!("n{count}"), born(State::Prepared, now, ttl), false).is_err() {
                                break;
                            }
                        }
                        Due::Activate(name) => prop_assert_eq!(course.activate(&name, at(now), knows), Ok(true)),
                    }
                }
                prop_assert_eq!(course.in_state(State::Active).count(), 1);
                for (name, life) in &course.0 {
                    prop_assert!(life.state == State::Active || life.not_after > START + now);
                    if let Some(was) = before.0.get(name) {
                        prop_assert!(was.state <= life.state);
                    }
                    let knew = SPREADS_IN.min(ttl);
                    if life.state == State::Active && name != "a" {
                        prop_assert!(life.since >= life.made + knew || life.since >= START + ttl);
                    }
                }
            }
            prop_assert!(Duration::from_secs(ttl) > Duration::ZERO);
        }

        /// What was signed in the last moment before the hand-over lives to its end, if it lives for a sixth at most.
        #[test]
        fn a_leaf_never_meets_the_end_of_its_authority(ttl in 30_u64..1_000_000) {
            let life = born(State::Active, 0, ttl);
            prop_assert!(life.not_after - life.hands_over_at() >= ttl / u64::from(LAST_PART));
            prop_assert!(life.prepares_at() < life.warns_at() && life.warns_at() <= life.hands_over_at());
        }
    }
}
