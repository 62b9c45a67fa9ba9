//! The rules of what is held: one bundle of each stage, which gives way only to a newer one, and grants until they end.
//!
//! They know of a bundle what it is called and when it expires, and not what lies in it. So whoever holds bundles whole (an
//! agent, a decision point) and whoever holds records of where they lie (the CA) go by the same rules, and the CA
//! publishes nothing that a holding would not take.

use std::time::SystemTime;

use super::not_restored::NotRestored;
use crate::bundle::{Refused, Seen, Stage, in_order};

/// A bundle, as somebody holds it: whole, or as a record of where it lies.
pub trait BundleRef: Clone {
    /// What it is for.
    fn stage(&self) -> Stage;
    /// Its name, and its place among all of its stage.
    fn seen(&self) -> Seen;
    /// From when it is stale.
    fn expires(&self) -> SystemTime;
}

/// A grant, as somebody holds it.
pub trait GrantRef: Clone {
    /// Until just before when it gives access.
    fn until(&self) -> SystemTime;

    /// Whether its time is over.
    fn is_over(&self, now: SystemTime) -> bool {
        self.until() <= now
    }
}

/// What is held.
#[derive(Debug, Clone)]
pub struct Slots<B, G> {
    live: Slot<B>,
    shadow: Slot<B>,
    grants: Vec<G>,
    /// The live revision whose expiry was announced since the start.
    announced: Option<u64>,
}

/// The bundle of one stage.
#[derive(Debug, Clone)]
struct Slot<B> {
    /// The highest that was ever accepted.
    seen: Option<Seen>,
    held: Option<B>,
    /// Why what was kept is not held.
    lost: Option<NotRestored>,
}

/// What ended by itself.
#[derive(Debug)]
pub struct Ended<B, G> {
    /// The grants that are over; they are no longer held.
    pub grants: Vec<G>,
    /// The live bundle, if it expired. It stays in force, and every record says that it is stale.
    pub expired: Option<B>,
}

// === impl Slots ===

impl<B: BundleRef, G: GrantRef> Slots<B, G> {
    /// Goes on with what was kept of a stage: the highest that was ever accepted, and the bundle, or why it is not there.
    pub fn restore(&mut self, stage: Stage, seen: Option<Seen>, held: Result<Option<B>, NotRestored>) {
        *self.slot_mut(stage) = match held {
            Ok(held) => Slot {
                // A bundle that was kept just before the end counts, though nobody noted yet that it was accepted.
                seen: [seen, held.as_ref().map(B::seen)]
                    .into_iter()
                    .flatten()
                    .max_by_key(|seen| seen.revision),
                held,
                lost: None,
            },
            Err(why) => Slot {
                seen,
                held: None,
                lost: Some(why),
            },
        };
    }

    /// Says why the bundle of a stage that was kept is not held, or that it need not be.
    pub(super) fn set_lost(&mut self, stage: Stage, lost: Option<NotRestored>) {
        self.slot_mut(stage).lost = lost;
    }

    /// Whether this one may be taken. What was accepted before and is held no more is welcome again.
    ///
    /// # Errors
    /// It does not follow what was accepted before; [`Refused::AlreadyHave`] among it, which is no fault.
    pub fn follows(&self, stage: Stage, offered: Seen) -> Result<(), Refused> {
        let slot = self.slot(stage);
        match in_order(slot.seen, offered) {
            Err(Refused::AlreadyHave(_)) if slot.held.is_none() => Ok(()),
            order => order,
        }
    }

    /// Takes a bundle that was verified. From here on nothing older is accepted.
    ///
    /// # Errors
    /// As [`follows`](Self::follows). Nothing changes then.
    pub fn take(&mut self, bundle: B) -> Result<(), Refused> {
        let (stage, seen) = (bundle.stage(), bundle.seen());
        self.follows(stage, seen)?;
        *self.slot_mut(stage) = Slot {
            seen: Some(seen),
            held: Some(bundle),
            lost: None,
        };
        Ok(())
    }

    /// There is no shadow any more. Whether there was one.
    pub fn clear_shadow(&mut self) -> bool {
        self.shadow.lost = None;
        self.shadow.held.take().is_some()
    }

    /// Holds these grants, which were verified, and no others.
    pub fn take_grants(&mut self, grants: Vec<G>) {
        self.grants = grants;
    }

    /// Lets go of the grants that are over, and says, once for each bundle, that the live one has expired.
    pub fn end_what_is_over(&mut self, now: SystemTime) -> Ended<B, G> {
        let grants = self.grants.extract_if(.., |grant| grant.is_over(now)).collect();
        let expired = self.live.held.clone().filter(|live| {
            let revision = Some(live.seen().revision);
            live.expires() <= now && std::mem::replace(&mut self.announced, revision) != revision
        });
        Ended { grants, expired }
    }

    /// When something will be over next; none when nothing will.
    pub fn next_end(&self, now: SystemTime) -> Option<SystemTime> {
        let expiry = self.live.held.as_ref().map(B::expires);
        let ends = self.grants.iter().map(G::until);
        ends.chain(expiry).filter(|end| *end > now).min()
    }

    /// The bundle of a stage, if there is one.
    pub fn bundle(&self, stage: Stage) -> Option<&B> {
        self.slot(stage).held.as_ref()
    }

    /// The highest of a stage that was ever accepted.
    pub fn seen(&self, stage: Stage) -> Option<Seen> {
        self.slot(stage).seen
    }

    /// Why the bundle of a stage that was kept is not held; until one is taken.
    pub fn lost(&self, stage: Stage) -> Option<&NotRestored> {
        self.slot(stage).lost.as_ref()
    }

    /// The grants, those among them that have yet to begin.
    pub fn grants(&self) -> &[G] {
        &self.grants
    }

    fn slot(&self, stage: Stage) -> &Slot<B> {
        match stage {
            Stage::Live => &self.live,
            Stage::Shadow => &self.shadow,
        }
    }

    fn slot_mut(&mut self, stage: Stage) -> &mut Slot<B> {
        match stage {
            Stage::Live => &mut self.live,
            Stage::Shadow => &mut self.shadow,
        }
    }
}

impl<B, G> Default for Slots<B, G> {
    fn default() -> Self {
        Self {
            live: Slot::default(),
            shadow: Slot::default(),
            grants: Vec::new(),
            announced: None,
        }
    }
}

impl<B> Default for Slot<B> {
    fn default() -> Self {
        Self {
            seen: None,
            held: None,
            lost: None,
        }
    }
}
