//! What this node is entitled to: a watch on the CA that never falls behind unnoticed.
//!
//! Every change at the CA has the next revision. The agent holds a revision and gets what came after it; with each update
//! comes a digest of all it should now hold. When that differs, it asks for everything anew, and until then hands out
//! what it last knew to be right. While the CA is away everything stays as it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hoplite_host::shutdown::Shutdown;
use hoplite_identity::TrustDomain;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{self, PolicyState, WatchRequest};
use tokio::sync::watch;

use crate::backoff::{Backoff, jitter};
use crate::node::Keeper;
use crate::node::link::{CaError, CaLink, Credentials};
use crate::supply::entry::{self, Entry, UnusableEntry};

/// Room for some 100 000 entries in the first update.
const UPDATE_BYTES_MAX: usize = 64 << 20;

/// The CA answers a watch at once, if only to say that there is nothing new.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A watch that lasted this long was a good one, though nothing changed: the next try need not wait long.
const STEADY: Duration = Duration::from_secs(10);

/// What is registered under this node, at one revision.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    /// By entry id.
    pub(crate) entries: BTreeMap<String, Arc<Entry>>,
}

/// The pure part: what the CA said so far.
#[derive(Debug)]
struct View {
    trust_domain: TrustDomain,
    /// The highest revision ever seen. The CA must not go back behind it.
    seen: u64,
    /// Whether `entries` is what the CA said at `seen`; else only a full update will do.
    sound: bool,
    entries: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    revision: u64,
    /// None for one that this agent cannot serve; it counts in the digest all the same.
    entry: Option<Arc<Entry>>,
}

/// Why an update was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum BadUpdate {
    #[error(
        "the CA sent revision {got}, but {seen} was seen before; if the CA was restored from a backup, restart this agent"
    )]
    Stale { got: u64, seen: u64 },
    #[error(
        "what this agent holds at revision {revision} is not what the CA says it should; asking for everything anew"
    )]
    Differs { revision: u64 },
    #[error("the CA sent changes to a state that this agent does not hold; asking for everything anew")]
    NoBase,
}

/// Follows the CA until the agent stops.
pub(crate) async fn run(
    link: CaLink,
    keeper: Arc<Keeper>,
    trust_domain: TrustDomain,
    registrations: watch::Sender<Option<Arc<Registrations>>>,
    policy: watch::Sender<Option<Arc<PolicyState>>>,
    mut shutdown: Shutdown,
) {
    let mut view = View::new(trust_domain);
    let mut credentials = link.credentials();
    let mut backoff = Backoff::default();
    loop {
        let own = async {
            credentials
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|own| own.clone())
        };
        let own = tokio::select! {
            own = own => own,
            () = shutdown.wait() => return,
        };
        let Some(own) = own else { return };
        let ended = tokio::select! {
            ended = follow(&link, &own, &keeper, &mut view, &registrations, &policy, &mut backoff) => ended,
            // A connection made with the old certificate ends when that expires; better to move over in good time.
            () = replaced(&own, link.credentials()) => continue,
            () = shutdown.wait() => return,
        };
        if matches!(ended, CaError::Refused(_)) {
            link.refused();
        }
        let wait = backoff.failed(jitter());
        tracing::warn!(error = %ended, retry_ms = wait.as_millis(), "no word from the CA; what is known stays in force");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.wait() => return,
        }
    }
}

/// One watch, until it breaks.
async fn follow(
    link: &CaLink,
    own: &Credentials,
    keeper: &Keeper,
    view: &mut View,
    registrations: &watch::Sender<Option<Arc<Registrations>>>,
    policy: &watch::Sender<Option<Arc<PolicyState>>>,
    backoff: &mut Backoff,
) -> CaError {
    let opened = async {
        let mut client = NodeClient::new(link.connect(own).await?).max_decoding_message_size(UPDATE_BYTES_MAX);
        let request = WatchRequest {
            from_revision: view.revision(),
        };
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.watch(request))
            .await
            .map_err(|_| CaError::Timeout)?;
        Ok(opened?.into_inner())
    };
    let mut updates = match opened.await {
        Ok(updates) => updates,
        Err(error) => return error,
    };
    let since = Instant::now();
    loop {
        let message = updates.message().await;
        if since.elapsed() > STEADY {
            backoff.succeeded();
        }
        let mut update = match message {
            Ok(Some(update)) => update,
            Ok(None) => return CaError::Answer("it ended the watch".to_owned()),
            Err(status) => return status.into(),
        };
        if let Some(bundle) = update.bundle.take()
            && let Err(error) = keeper.adopt_bundle(bundle)
        {
            return error;
        }
        // It says whom it is from by itself, whatever becomes of the entries.
        if let Some(state) = update.policy.take() {
            policy.send_replace(Some(Arc::new(state)));
        }
        if let Err(error) = view.apply(update) {
            return CaError::Answer(error.to_string());
        }
        backoff.succeeded();
        tracing::debug!(
            revision = view.seen,
            entries = view.entries.len(),
            "in step with the CA"
        );
        registrations.send_replace(Some(Arc::new(view.registrations())));
    }
}

/// Returns when the node has another SVID than this.
async fn replaced(own: &Credentials, mut credentials: watch::Receiver<Option<Arc<Credentials>>>) {
    let is_other = |now: &Option<Arc<Credentials>>| now.as_ref().is_none_or(|now| !Arc::ptr_eq(&now.svid, &own.svid));
    if credentials.wait_for(is_other).await.is_err() {
        std::future::pending().await
    }
}

// === impl View ===

impl View {
    fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            seen: 0,
            sound: false,
            entries: BTreeMap::new(),
        }
    }

    /// The revision to ask from; 0 asks for everything.
    fn revision(&self) -> u64 {
        if self.sound { self.seen } else { 0 }
    }

    /// Takes an update, or says why not.
    fn apply(&mut self, update: ca::Update) -> Result<(), BadUpdate> {
        if update.revision < self.seen {
            return Err(BadUpdate::Stale {
                got: update.revision,
                seen: self.seen,
            });
        }
        if !update.full && !self.sound {
            return Err(BadUpdate::NoBase);
        }
        if update.full {
            self.entries.clear();
        }
        for message in update.upserts {
            let held = self.parse(message);
            self.entries.insert(held.0, held.1);
        }
        for id in &update.deletes {
            self.entries.remove(id);
        }
        self.seen = update.revision;
        self.sound = self.digest().as_slice() == update.digest;
        if self.sound {
            Ok(())
        } else {
            Err(BadUpdate::Differs {
                revision: update.revision,
            })
        }
    }

    fn parse(&self, message: ca::Entry) -> (String, Held) {
        let (id, revision) = (message.id.clone(), message.revision);
        let entry = Entry::parse(message, &self.trust_domain)
            .inspect_err(|error: &UnusableEntry| tracing::error!(entry = id, %error, "this entry is not served"))
            .ok()
            .map(Arc::new);
        (id, Held { revision, entry })
    }

    fn digest(&self) -> [u8; 32] {
        entry::digest(self.entries.iter().map(|(id, held)| (id.as_str(), held.revision)))
    }

    fn registrations(&self) -> Registrations {
        let usable = |(id, held): (&String, &Held)| Some((id.clone(), Arc::clone(held.entry.as_ref()?)));
        Registrations {
            entries: self.entries.iter().filter_map(usable).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(id: &str, revision: u64) -> ca::Entry {
        ca::Entry {
            id: id.to_owned(),
            spiffe_id: format!("spiffe://prod.example/{id}"),
            selectors: vec![ca::Selector {
                kind: "unix".into(),
                value: "uid:1".into(),
            }],
            revision,
            ..ca::Entry::default()
        }
    }

    fn update(
        revision: u64,
        full: bool,
        upserts: &[(&str, u64)],
        deletes: &[&str],
        held: &[(&str, u64)],
    ) -> ca::Update {
        ca::Update {
            revision,
            full,
            upserts: upserts.iter().map(|(id, revision)| message(id, *revision)).collect(),
            deletes: deletes.iter().map(|id| (*id).to_owned()).collect(),
            bundle: None,
            digest: entry::digest(held.iter().copied()).to_vec(),
            policy: None,
        }
    }

    fn view() -> View {
        View::new(TrustDomain::parse("prod.example").unwrap())
    }

    fn ids(view: &View) -> Vec<String> {
        view.registrations().entries.into_keys().collect()
    }

    #[test]
    fn full_delta_and_deletes() {
        let mut view = view();
        assert_eq!(
            view.apply(update(4, false, &[("a", 4)], &[], &[("a", 4)])),
            Err(BadUpdate::NoBase)
        );
        view.apply(update(4, true, &[("a", 1), ("b", 4)], &[], &[("a", 1), ("b", 4)]))
            .unwrap();
        view.apply(update(5, false, &[("c", 5)], &["a"], &[("b", 4), ("c", 5)]))
            .unwrap();
        view.apply(update(6, false, &[], &["unknown"], &[("b", 4), ("c", 5)]))
            .unwrap();
        view.apply(update(6, false, &[], &[], &[("b", 4), ("c", 5)])).unwrap();
        assert_eq!((ids(&view), view.revision()), (vec!["b".to_owned(), "c".to_owned()], 6));
        view.apply(update(7, true, &[("d", 7)], &[], &[("d", 7)])).unwrap();
        assert_eq!((ids(&view), view.revision()), (vec!["d".to_owned()], 7));
    }

    #[test]
    fn a_drift_is_found_and_healed_by_a_full_update_only() {
        let mut view = view();
        view.apply(update(1, true, &[("a", 1)], &[], &[("a", 1)])).unwrap();
        let drifted = update(2, false, &[("b", 2)], &[], &[("a", 1), ("b", 2), ("lost", 1)]);
        assert_eq!(view.apply(drifted), Err(BadUpdate::Differs { revision: 2 }));
        assert_eq!(view.revision(), 0, "the next watch asks for everything");
        assert_eq!(
            view.apply(update(3, false, &[], &[], &[("a", 1), ("b", 2)])),
            Err(BadUpdate::NoBase)
        );
        view.apply(update(3, true, &[("a", 1), ("lost", 1)], &[], &[("a", 1), ("lost", 1)]))
            .unwrap();
        assert_eq!(ids(&view), ["a", "lost"]);
    }

    #[test]
    fn the_ca_must_not_go_back() {
        let mut view = view();
        view.apply(update(9, true, &[("a", 9)], &[], &[("a", 9)])).unwrap();
        for full in [true, false] {
            let old = update(8, full, &[], &["a"], &[]);
            assert_eq!(view.apply(old), Err(BadUpdate::Stale { got: 8, seen: 9 }));
        }
        assert_eq!(ids(&view), ["a"], "what is known stays in force");
        // Not even after a drift, when everything is asked for anew.
        view.apply(update(10, false, &[], &[], &[])).unwrap_err();
        assert_eq!(
            view.apply(update(9, true, &[], &[], &[])),
            Err(BadUpdate::Stale { got: 9, seen: 10 })
        );
    }

    #[test]
    fn entries_that_cannot_be_served_count_but_are_not_handed_out() {
        let mut view = view();
        let mut first = update(1, true, &[("a", 1), ("b", 1)], &[], &[("a", 1), ("b", 1)]);
        first.upserts[0].selectors.clear();
        view.apply(first).unwrap();
        assert_eq!(ids(&view), ["b"]);
    }

    proptest! {
        /// Whatever the order of changes: followed by deltas or fetched whole, it is the same.
        #[test]
        fn deltas_add_up_to_the_whole(changes in proptest::collection::vec((0u8..6, any::<bool>()), 1..40)) {
            let mut truth = BTreeMap::<String, u64>::new();
            let mut view = view();
            view.apply(update(1, true, &[], &[], &[])).unwrap();
            for (n, (id, delete)) in changes.into_iter().enumerate() {
                let (revision, id) = (n as u64 + 2, id.to_string());
                if delete { truth.remove(&id); } else { truth.insert(id.clone(), revision); }
                let held: Vec<_> = truth.iter().map(|(id, revision)| (id.as_str(), *revision)).collect();
                let delta = if delete {
                    update(revision, false, &[], &[&id], &held)
                } else {
                    update(revision, false, &[(&id, revision)], &[], &held)
                };
                prop_assert_eq!(view.apply(delta), Ok(()));
                prop_assert_eq!(ids(&view), truth.keys().cloned().collect::<Vec<_>>());
            }
        }
    }
}
