//! What stands between this agent and its CA now, as the parts that meet it say: for whoever asks how the agent is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use hoplite_identity::Moment;

/// All of it. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Troubles(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    /// Of the node's own certificate.
    node: Option<String>,
    /// Of the watch on the CA.
    watch: Option<String>,
    /// When the node's own certificate ends.
    ends: Option<SystemTime>,
}

// === impl Troubles ===

impl Troubles {
    /// How the last attempt to get a certificate for the node ended: why the CA said no, if it did.
    pub(crate) fn node(&self, trouble: Option<String>) {
        self.lock().node = trouble;
    }

    /// Why the CA is not followed, if there is more to it than that it is away.
    pub(crate) fn watch(&self, trouble: Option<String>) {
        self.lock().watch = trouble;
    }

    /// When the node's own certificate ends.
    pub(crate) fn node_ends(&self, ends: Option<SystemTime>) {
        self.lock().ends = ends;
    }

    /// A sentence for each; empty while all is well.
    pub(crate) fn now(&self, now: SystemTime) -> Vec<String> {
        let found = self.lock();
        let ended = found.ends.filter(|ends| *ends <= now).map(|ends| {
            format!(
                "this node's own certificate ended at {}, so the CA is not heard",
                Moment::from(ends)
            )
        });
        // The CA says of the certificate what it says of the watch, mostly.
        let watch = found.watch.clone().filter(|watch| Some(watch) != found.node.as_ref());
        ended.into_iter().chain(found.node.clone()).chain(watch).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn what_is_said_twice_is_one_trouble_and_an_end_is_one_from_then_on() {
        let troubles = Troubles::default();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        troubles.node_ends(Some(at(7)));
        assert!(troubles.now(at(6)).is_empty());
        assert!(troubles.now(at(7)).concat().contains("ended at 1970-01-01T00:00:07"));
        troubles.node(Some("the CA refused: two".to_owned()));
        troubles.watch(Some("the CA refused: two".to_owned()));
        assert_eq!(troubles.now(at(6)), ["the CA refused: two"]);
        troubles.node(None);
        troubles.watch(None);
        assert!(troubles.now(at(6)).is_empty());
    }
}
