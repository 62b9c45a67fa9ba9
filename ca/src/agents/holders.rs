//! Who watches with an agent's key: one process at a time, unless two have it.
//!
//! An agent names its process by a random number of its start. Another number takes the place of the one before, whose watch
//! ends: of an agent that was started anew there is none any more. One that comes back after another took its place is alive
//! beside it, so the key has two holders. Whoever has two is not parted again: both go on as far as their certificates reach.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hoplite_identity::SpiffeId;
use tokio::sync::watch;

/// Names one process of an agent. Empty for an agent that names none.
pub(crate) type Process = Vec<u8>;

/// A longer name is none.
const PROCESS_BYTES_MAX: usize = 16;

/// Earlier processes that are remembered of each agent.
const FORMER_MAX: usize = 8;

/// Agents that are remembered.
const AGENTS_MAX: usize = 200_000;

/// Who watches, by agent. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holders(Arc<Mutex<HashMap<SpiffeId, Seen>>>);

#[derive(Debug)]
struct Seen {
    current: watch::Sender<Process>,
    /// Where it is.
    from: IpAddr,
    former: VecDeque<Process>,
}

/// The place of one watch: it ends when another process takes it.
#[derive(Debug)]
pub(crate) struct Place {
    process: Process,
    current: Option<watch::Receiver<Process>>,
}

/// Where the two are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TwoHolders {
    /// The one that came back.
    pub(crate) here: IpAddr,
    /// The one that had taken its place.
    pub(crate) there: IpAddr,
}

// === impl Holders ===

impl Holders {
    /// A process of this agent begins to watch. Says so when two have its key, unless that is
    /// `known` already.
    pub(crate) fn watches(
        &self,
        agent: &SpiffeId,
        process: Process,
        from: IpAddr,
        known: bool,
    ) -> (Place, Option<TwoHolders>) {
        if process.is_empty() || process.len() > PROCESS_BYTES_MAX || known {
            return (Place::unbound(), None);
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= AGENTS_MAX && !all.contains_key(agent) {
            // Whoever watches no more is forgotten first.
            all.retain(|_, seen| seen.current.receiver_count() > 0);
        }
        let seen = all.entry(agent.clone()).or_insert_with(|| Seen {
            current: watch::Sender::new(process.clone()),
            from,
            former: VecDeque::new(),
        });
        let before = seen.current.borrow().clone();
        let mut two = None;
        if before != process {
            two = seen.former.contains(&process).then_some(TwoHolders {
                here: from,
                there: seen.from,
            });
            seen.former.retain(|former| *former != process);
            seen.former.push_back(before);
            if seen.former.len() > FORMER_MAX {
                seen.former.pop_front();
            }
            if two.is_none() {
                seen.current.send_replace(process.clone());
            } else {
                // Both stay.
                seen.current = watch::Sender::new(process.clone());
            }
        }
        seen.from = from;
        let place = Place {
            current: two.is_none().then(|| seen.current.subscribe()),
            process,
        };
        (place, two)
    }
}

// === impl Place ===

impl Place {
    /// One that nobody takes.
    fn unbound() -> Self {
        Self {
            process: Process::new(),
            current: None,
        }
    }

    /// Returns when another process has taken it.
    pub(crate) async fn taken(&mut self) {
        let Some(current) = &mut self.current else {
            return std::future::pending().await;
        };
        let process = &self.process;
        if current.wait_for(|current| current != process).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[tokio::test]
    async fn who_comes_back_after_another_took_its_place_is_a_second_holder() {
        let id = SpiffeId::parse("spiffe://prod.example/hoplite/agent/n1").unwrap();
        let holders = Holders::default();
        let watches = |process: &[u8], from| holders.watches(&id, process.to_vec(), from, false);
        // An agent that connects again and again, and is started anew now and then.
        for process in [b"a", b"a", b"b", b"b", b"c"] {
            let (mut place, two) = watches(process, HERE);
            assert!(two.is_none() && is_pending(place.taken()));
        }
        let (mut old, _) = watches(b"c", HERE);
        let (mut new, two) = watches(b"d", THERE);
        assert_eq!(two, None, "an agent started anew, or the first sight of another");
        old.taken().await; // so that it shows itself, if it is alive
        assert!(is_pending(new.taken()));
        let (mut back, two) = watches(b"c", HERE);
        let expected = TwoHolders {
            here: HERE,
            there: THERE,
        };
        assert_eq!(two, Some(expected));
        // From here on nobody ends the other's.
        assert!(is_pending(back.taken()) && is_pending(new.taken()));
        let (mut known, two) = holders.watches(&id, b"d".to_vec(), THERE, true);
        assert!(two.is_none() && is_pending(known.taken()) && is_pending(back.taken()));
    }

    #[tokio::test]
    async fn another_agent_is_another_matter_and_none_is_remembered_for_ever() {
        let id = |n: usize| SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/n{n}")).unwrap();
        let holders = Holders::default();
        let (mut first, _) = holders.watches(&id(1), b"a".to_vec(), HERE, false);
        assert!(holders.watches(&id(2), b"b".to_vec(), HERE, false).1.is_none());
        assert!(is_pending(first.taken()));
        // One that names no process, and one that names too much, are neither taken for others nor parted.
        for process in [Vec::new(), vec![7; PROCESS_BYTES_MAX + 1]] {
            assert!(holders.watches(&id(1), process, HERE, false).1.is_none());
        }
        assert!(is_pending(first.taken()));
        for n in 0..100u8 {
            assert!(holders.watches(&id(1), vec![b'p', n], HERE, false).1.is_none());
        }
        let all = holders.0.lock().unwrap();
        assert!(all[&id(1)].former.len() <= FORMER_MAX);
    }

    fn is_pending(taken: impl Future<Output = ()>) -> bool {
        pin!(taken).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}
