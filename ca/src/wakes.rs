//! Who has to look again after a commit: the watches of the agents that it concerns, and nobody else's.
//!
//! Pure but for the waking itself: [`Concerned`] is what a commit says, [`Wakes`] are those who wait for it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoplite_identity::SpiffeId;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Whom a commit concerns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Concerned {
    /// Whether every agent has to know: the trust bundle, the policy.
    pub(crate) everyone: bool,
    /// Those whose entries or whose own standing changed.
    pub(crate) agents: BTreeSet<SpiffeId>,
}

/// Those who wait. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wakes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    everyone: Notify,
    /// Of agents with a watch.
    agents: Mutex<HashMap<SpiffeId, Own>>,
}

/// Of one agent.
#[derive(Debug, Default)]
struct Own {
    notify: Arc<Notify>,
    watches: usize,
}

/// One watch's place among those who wait.
#[derive(Debug)]
pub(crate) struct Wake {
    wakes: Wakes,
    agent: SpiffeId,
    own: Arc<Notify>,
}

// === impl Concerned ===

impl Concerned {
    /// Whom a commit concerns of which nothing is known.
    pub(crate) fn everyone() -> Self {
        Self {
            everyone: true,
            ..Self::default()
        }
    }
}

// === impl Wakes ===

impl Wakes {
    /// A place for a watch of this agent.
    pub(crate) fn wait(&self, agent: &SpiffeId) -> Wake {
        let mut agents = self.agents();
        let own = agents.entry(agent.clone()).or_default();
        own.watches += 1;
        Wake {
            wakes: self.clone(),
            agent: agent.clone(),
            own: Arc::clone(&own.notify),
        }
    }

    /// Wakes whom it concerns. Those who look at the same moment look once more.
    pub(crate) fn wake(&self, concerned: &Concerned) {
        if concerned.everyone {
            return self.0.everyone.notify_waiters();
        }
        let waiting = self.agents();
        for agent in concerned.agents.iter().filter_map(|agent| waiting.get(agent)) {
            agent.notify.notify_waiters();
        }
    }

    fn agents(&self) -> MutexGuard<'_, HashMap<SpiffeId, Own>> {
        self.0.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Wake ===

impl Wake {
    /// Two of which either ends when there is something to look at. Made before looking, so that what comes meanwhile is
    /// not missed.
    pub(crate) fn before_looking(&self) -> (Notified<'_>, Notified<'_>) {
        // INVARIANT: `notify_waiters` reaches each of these that was made before it, whether it was polled or not.
        (self.own.notified(), self.wakes.0.everyone.notified())
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        let mut agents = self.wakes.agents();
        if let Entry::Occupied(mut own) = agents.entry(self.agent.clone()) {
            own.get_mut().watches -= 1;
            if own.get().watches == 0 {
                own.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn agent(node: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/{node}")).unwrap()
    }

    #[test]
    fn whom_it_concerns_is_woken_and_nobody_else() {
        let wakes = Wakes::default();
        let (one, twin, other) = (
            wakes.wait(&agent("n1")),
            wakes.wait(&agent("n1")),
            wakes.wait(&agent("n2")),
        );
        let check = |concerned: Concerned, expected: [bool; 3]| {
            // None of them was polled before: they may all be looking.
            let waiting = [&one, &twin, &other].map(Wake::before_looking);
            wakes.wake(&concerned);
            let woken = waiting.map(|(own, everyone)| {
                let mut context = Context::from_waker(Waker::noop());
                pin!(own).poll(&mut context).is_ready() | pin!(everyone).poll(&mut context).is_ready()
            });
            assert_eq!(woken, expected, "{concerned:?}");
        };
        let of = |nodes: &[&str]| Concerned {
            everyone: false,
            agents: nodes.iter().map(|node| agent(node)).collect(),
        };
        check(of(&[]), [false; 3]);
        check(of(&["n1"]), [true, true, false]);
        check(of(&["n2", "n3"]), [false, false, true]);
        check(Concerned::everyone(), [true; 3]);
    }

    #[test]
    fn who_no_longer_waits_is_forgotten() {
        let wakes = Wakes::default();
        let (one, twin) = (wakes.wait(&agent("n1")), wakes.wait(&agent("n1")));
        drop(one);
        assert_eq!(wakes.agents().len(), 1);
        drop(twin);
        assert!(wakes.agents().is_empty());
    }
}
