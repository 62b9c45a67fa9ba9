//! What this node is entitled to: a watch on the CA that never falls behind unnoticed.
//!
//! Every change at the CA has the next revision. The agent holds a revision and gets what came after it; with each update
//! comes a digest of all it should now hold. When that differs, it asks for everything anew, and until then hands out
//! what it last knew to be right. While the CA is away everything stays as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{EntryId, EntrySum, InvalidEntryId, RegisteredEntry, TrustDomain};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{self, PolicyState, WatchRequest};
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::Channel;

use crate::kept::Kept;
use crate::kept::restored::Restored;
use crate::node::epoch::Epoch;
use crate::node::keeper::Keeper;
use crate::node::link::{CaError, CaLink, Credentials, RETRY};
use crate::supply::changes::{Changed, Changes};
use crate::supply::foreign::{Foreign, NotHeld};
use crate::supply::named::Registered;

/// Room for some 100 000 entries in the first update.
const UPDATE_BYTES_MAX: usize = 64 << 20;

/// The CA answers a watch at once, if only to say that there is nothing new.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A watch that lasted this long was a good one, though nothing changed: the next try need not wait long.
const STEADY: Duration = Duration::from_secs(10);

/// At a CA that does not see its database, an agent that knows others looks among them again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How far what is registered under this node is known. The entries themselves are in [`Changes`].
#[derive(Debug)]
pub(crate) struct Registrations {
    /// The CA's revision.
    pub(crate) revision: u64,
    /// Over all entries, those that are not served among them.
    pub(crate) digest: [u8; 32],
    /// When the CA said it.
    pub(crate) heard: SystemTime,
    /// What is held of foreign trust domains.
    pub(crate) foreign: Arc<Foreign>,
    /// The CA's word, when it has dismissed this node.
    pub(crate) dismissed: Option<Arc<str>>,
}

/// Whom the watch tells what.
pub(crate) struct Told {
    /// Told after `changes`.
    pub(crate) registrations: watch::Sender<Option<Arc<Registrations>>>,
    pub(crate) changes: Changes,
    pub(crate) policy: watch::Sender<Option<Arc<PolicyState>>>,
    /// The connection that is watched on, for whatever else is said on it.
    pub(crate) connections: watch::Sender<Option<Channel>>,
    /// What outlives the agent.
    pub(crate) kept: Kept,
    /// Names this process to the CA.
    pub(crate) process: Vec<u8>,
}

/// The pure part: what the CA said so far.
#[derive(Debug)]
struct View {
    trust_domain: TrustDomain,
    /// Of the CA's store, the highest ever seen: each restore from a backup begins a higher one.
    epoch: Epoch,
    /// The highest revision ever seen in it. The CA must not go back behind it.
    seen: u64,
    /// Whether `entries` is what the CA said at `seen`; else only a full update will do.
    sound: bool,
    entries: BTreeMap<EntryId, HeldEntry>,
    /// Of `entries`.
    sum: EntrySum,
    /// What is held of foreign trust domains; as of an update that added up.
    foreign: Arc<Foreign>,
    /// What of `entries` is not released yet: it came with an update that did not add up.
    unreleased: Changed,
}

#[derive(Debug, PartialEq, Eq)]
struct HeldEntry {
    revision: u64,
    /// None for one that this agent cannot serve; it counts in the digest all the same.
    entry: Option<Registered>,
}

/// Why an update was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum BadUpdate {
    #[error(
        "the CA sent revision {got}, but {seen} was seen before: its store is an older copy, which `hoplite ca restore` did not make"
    )]
    Stale { got: u64, seen: u64 },
    #[error("the CA began a new epoch and did not send everything")]
    NotFull,
    #[error(
        "what this agent holds at revision {revision} is not what the CA says it should; asking for everything anew"
    )]
    Differs { revision: u64 },
    #[error("the CA sent changes to a state that this agent does not hold; asking for everything anew")]
    NoBase,
    #[error("the CA takes this agent to hold the trust bundle of `{0}`, and it does not; asking for everything anew")]
    Foreign(String),
    #[error("the CA sent an entry that cannot be named: {0}")]
    Id(#[from] InvalidEntryId),
}

/// Follows the CA until the agent stops.
pub(crate) async fn run(
    link: CaLink,
    keeper: Arc<Keeper>,
    trust_domain: TrustDomain,
    told: Told,
    mut shutdown: Shutdown,
) {
    let mut view = View::new(trust_domain.clone(), keeper.epoch());
    let restored = tokio::select! {
        restored = told.kept.restored() => restored,
        () = shutdown.wait() => return,
    };
    if let Some(heard) = restored.heard {
        view.restore(&restored);
        told.changes.add(view.release());
        let registrations = Registrations {
            heard,
            ..view.registrations(heard)
        };
        told.registrations.send_replace(Some(Arc::new(registrations)));
    }
    drop(restored);
    let mut credentials = link.credentials();
    let mut backoff = RETRY;
    let (mut moves, mut dismissals) = (link.moves(), link.dismissals());
    // CAs in a row that could not be had, or do not see their database.
    let mut in_vain = 0;
    loop {
        // To a node whose SVID has ended it is said where it would come back by the key.
        if dismissals.has_changed().unwrap_or(false) {
            let reason = dismissals.borrow_and_update().clone();
            if let Some(reason) = reason {
                told.dismissed(&mut view, &reason).await;
            }
        }
        let own = async {
            credentials
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|own| own.clone())
        };
        let own = tokio::select! {
            own = own => own,
            Ok(()) = dismissals.changed() => {
                dismissals.mark_changed();
                continue;
            }
            () = shutdown.wait() => return,
        };
        let Some(own) = own else { return };
        let ended = tokio::select! {
            ended = follow(&link, &own, &keeper, &mut view, &told, (&mut backoff, &mut in_vain)) => ended,
            // A connection made with the old certificate ends when that expires; better to move over in good time.
            () = replaced(&own, link.credentials()) => continue,
            Ok(()) = moves.changed() => continue,
            Ok(()) = dismissals.changed() => {
                dismissals.mark_changed();
                continue;
            }
            () = shutdown.wait() => return,
        };
        link.pass_over();
        let Some(ended) = ended else { continue };
        link.metrics().contact.lost();
        // Whoever answers that it does not see its database serves those who are connected all the same.
        if !matches!(
            &ended,
            CaError::Failed {
                code: Code::Unavailable,
                ..
            }
        ) || in_vain <= 1
        {
            told.connections.send_replace(None);
        }
        link.troubles().watch(ended.trouble());
        if let CaError::Dismissed(reason) = &ended {
            told.dismissed(&mut view, reason).await;
        }
        if matches!(ended, CaError::Refused(_) | CaError::Dismissed(_)) {
            link.refused();
        }
        let wait = backoff.failed(jitter());
        if told.is_dismissed() {
            tracing::debug!(error = %ended, retry_ms = wait.as_millis(), "the CA is asked again");
        } else {
            tracing::warn!(error = %ended, retry_ms = wait.as_millis(), "no word from the CA; what is known stays in force");
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = moves.changed() => {}
            Ok(()) = dismissals.changed() => dismissals.mark_changed(),
            () = shutdown.wait() => return,
        }
    }
}

/// One watch, until it breaks; none when it is good, and another CA may be better.
async fn follow(
    link: &CaLink,
    own: &Credentials,
    keeper: &Keeper,
    view: &mut View,
    told: &Told,
    (backoff, in_vain): (&mut Backoff, &mut usize),
) -> Option<CaError> {
    // All of them were asked whether they see the database.
    let stays = *in_vain >= link.addresses() || link.addresses() == 1;
    let opened = async {
        let channel = link.connect(own).await?;
        let mut client = NodeClient::new(channel.clone()).max_decoding_message_size(UPDATE_BYTES_MAX);
        let request = WatchRequest {
            from_revision: view.revision(),
            digest: view.digest().to_vec(),
            process: told.process.clone(),
            epoch: Some(view.epoch.into()),
            stays_when_cut_off: stays,
        };
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.watch(request))
            .await
            .map_err(|_| CaError::Timeout)?;
        Ok((opened?.into_inner(), channel))
    };
    let mut updates = match opened.await {
        Ok((updates, channel)) => {
            told.connections.send_replace(Some(channel));
            updates
        }
        Err(error) => {
            *in_vain += 1;
            return Some(error);
        }
    };
    let since = clock::moment();
    let mut is_cut_off = false;
    loop {
        let left = LOOK_AGAIN.saturating_sub(since.elapsed());
        let message = tokio::select! {
            message = updates.message() => message,
            () = tokio::time::sleep(left), if is_cut_off && link.addresses() > 1 => {
                *in_vain = 0;
                return None;
            }
        };
        if since.elapsed() > STEADY {
            backoff.succeeded();
        }
        let mut update = match message {
            Ok(Some(update)) => update,
            Ok(None) => return Some(CaError::Answer("it ended the watch".to_owned())),
            Err(status) => {
                *in_vain += 1;
                return Some(status.into());
            }
        };
        is_cut_off = update.cut_off;
        if !is_cut_off {
            *in_vain = 0;
        }
        link.metrics().contact.heard();
        // Before anything that it says is believed: a CA of an older epoch was overtaken by a restore.
        if let Err(error) = keeper.adopt_epoch(Epoch::of(update.epoch)) {
            return Some(error);
        }
        if let Some(bundle) = update.bundle.take()
            && let Err(error) = keeper.adopt_bundle(bundle)
        {
            return Some(error);
        }
        // It says whom it is from by itself, whatever becomes of the entries.
        if let Some(state) = update.policy.take() {
            told.policy.send_replace(Some(Arc::new(state)));
        }
        if let Err(error) = view.apply(update) {
            return Some(CaError::Answer(error.to_string()));
        }
        backoff.succeeded();
        link.troubles().watch(None);
        tracing::debug!(
            revision = view.seen,
            entries = view.entries.len(),
            "in step with the CA"
        );
        let (first_bundle, bundle) = keeper.bundles();
        let changed = view.release();
        told.kept.federated(&view.foreign);
        told.kept.registered(
            changed.clone(),
            (view.epoch, view.revision()),
            Some(&bundle),
            &first_bundle,
        );
        told.changes.add(changed);
        let registrations = view.registrations(clock::now());
        told.registrations.send_replace(Some(Arc::new(registrations)));
    }
}

/// Returns when the node has another SVID than this.
async fn replaced(own: &Credentials, mut credentials: watch::Receiver<Option<Arc<Credentials>>>) {
    let is_other = |now: &Option<Arc<Credentials>>| now.as_ref().is_none_or(|now| !Arc::ptr_eq(&now.svid, &own.svid));
    if credentials.wait_for(is_other).await.is_err() {
        std::future::pending().await
    }
}

// === impl Told ===

impl Told {
    /// The CA's word, when it has dismissed this node.
    fn dismissal(&self) -> Option<Arc<str>> {
        self.registrations.borrow().as_ref()?.dismissed.clone()
    }

    fn is_dismissed(&self) -> bool {
        self.dismissal().is_some()
    }

    /// The CA has dismissed this node: it has nothing to hand out any more, in memory and on the disk.
    async fn dismissed(&self, view: &mut View, reason: &str) {
        if self.dismissal().as_deref() == Some(reason) {
            return; // it is asked again and again
        }
        tracing::error!(
            reason,
            "the CA has dismissed this node: no workload is given anything any more"
        );
        view.forget();
        self.changes.add(view.release());
        let registrations = Registrations {
            dismissed: Some(reason.into()),
            ..view.registrations(clock::now())
        };
        self.registrations.send_replace(Some(Arc::new(registrations)));
        self.kept.dismiss().await;
    }
}

// === impl View ===

impl View {
    fn new(trust_domain: TrustDomain, epoch: Epoch) -> Self {
        Self {
            trust_domain,
            epoch,
            seen: 0,
            sound: false,
            entries: BTreeMap::new(),
            sum: EntrySum::default(),
            foreign: Arc::default(),
            unreleased: Changed::new(),
        }
    }

    /// Begins with what an earlier agent kept. The CA's digest says whether it is right.
    fn restore(&mut self, restored: &Restored) {
        self.epoch = restored.epoch;
        self.seen = restored.revision;
        self.sound = restored.revision != 0;
        if let Some(Ok(foreign)) = restored
            .foreign
            .clone()
            .map(|kept| self.foreign.after(kept, &self.trust_domain))
        {
            self.foreign = Arc::new(foreign);
        }
        for (id, entry) in &restored.entries {
            let held = HeldEntry {
                revision: entry.revision(),
                entry: Some(entry.clone()),
            };
            self.put(id.clone(), held);
        }
    }

    /// Holds nothing any more; the CA must not go back all the same.
    fn forget(&mut self) {
        self.sound = false;
        for id in std::mem::take(&mut self.entries).into_keys() {
            self.unreleased.insert(id, None);
        }
        self.sum = EntrySum::default();
        self.foreign = Arc::default();
    }

    /// The revision to ask from; 0 asks for everything.
    fn revision(&self) -> u64 {
        if self.sound { self.seen } else { 0 }
    }

    /// Takes an update, or says why not.
    fn apply(&mut self, update: ca::Update) -> Result<(), BadUpdate> {
        // No lower one comes as far as this.
        let epoch = Epoch::of(update.epoch);
        if epoch != self.epoch {
            if !update.full {
                return Err(BadUpdate::NotFull);
            }
            // Its revisions are others: what was seen of the one before says nothing of them.
            self.epoch = epoch;
            (self.seen, self.sound) = (0, false);
        }
        if update.revision < self.seen {
            return Err(BadUpdate::Stale {
                got: update.revision,
                seen: self.seen,
            });
        }
        if !update.full && !self.sound {
            return Err(BadUpdate::NoBase);
        }
        // Until the digest says otherwise, and if this ends early.
        self.sound = false;
        let held = match update.full {
            true => Arc::default(),
            false => Arc::clone(&self.foreign),
        };
        let foreign = match update.foreign {
            Some(foreign) => {
                let next = held.after(foreign, &self.trust_domain);
                Arc::new(next.map_err(|NotHeld(domain)| BadUpdate::Foreign(domain))?)
            }
            None => held,
        };
        let mut left = BTreeSet::new();
        if update.full {
            left.extend(self.entries.keys().cloned());
        }
        for message in update.upserts {
            let (id, held) = self.parse(message)?;
            left.remove(&id);
            self.put(id, held);
        }
        for id in &update.deletes {
            self.remove(id);
        }
        for id in &left {
            self.remove(id);
        }
        self.seen = update.revision;
        self.sound = self.digest().as_slice() == update.digest;
        if self.sound {
            if self.foreign != foreign {
                self.foreign = foreign;
            }
            Ok(())
        } else {
            Err(BadUpdate::Differs {
                revision: update.revision,
            })
        }
    }

    /// Fail closed: what this agent does not understand it does not hand out.
    fn parse(&self, message: ca::Entry) -> Result<(EntryId, HeldEntry), InvalidEntryId> {
        let (id, revision) = (EntryId::parse(&message.id)?, message.revision);
        let checked = RegisteredEntry::try_from(message)
            .and_then(|registered| registered.check(&self.trust_domain).map(|()| registered));
        let entry = checked
            .inspect_err(|error| tracing::error!(entry = %id, %error, "this entry is not served"))
            .ok()
            .map(Registered::from);
        Ok((id, HeldEntry { revision, entry }))
    }

    fn put(&mut self, id: EntryId, held: HeldEntry) {
        if self.entries.get(&id) == Some(&held) {
            return; // as of an update of all there is
        }
        self.sum.add(&id, held.revision);
        self.unreleased.insert(id.clone(), held.entry.clone());
        if let Some(old) = self.entries.insert(id.clone(), held) {
            self.sum.remove(&id, old.revision);
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some((id, old)) = self.entries.remove_entry(id) {
            self.sum.remove(&id, old.revision);
            self.unreleased.insert(id, None);
        }
    }

    fn digest(&self) -> [u8; 32] {
        self.sum.digest()
    }

    /// What changed since the last time. Only of a view that is sound.
    fn release(&mut self) -> Changed {
        std::mem::take(&mut self.unreleased)
    }

    fn registrations(&self, now: SystemTime) -> Registrations {
        Registrations {
            revision: self.seen,
            digest: self.digest(),
            heard: now,
            foreign: Arc::clone(&self.foreign),
            dismissed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::shelf::Supply;
    use crate::supply::stock::Stock;
    use proptest::prelude::*;

    fn message(id: &str, revision: u64) -> ca::Entry {
        ca::Entry {
            id: id.to_owned(),
            spiffe_id: format!("spiffe://prod.example/{id}"),
            parent_id: "spiffe://prod.example/hoplite/agent/n1".to_owned(),
            selectors: vec![ca::Selector {
                kind: "unix:uid".into(),
                value: "1".into(),
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
            foreign: None,
            revision,
            full,
            upserts: upserts.iter().map(|(id, revision)| message(id, *revision)).collect(),
            deletes: deletes.iter().map(|id| (*id).to_owned()).collect(),
            bundle: None,
            digest: digest(held),
            policy: None,
            epoch: None,
            cut_off: false,
        }
    }

    fn digest(held: &[(&str, u64)]) -> Vec<u8> {
        let held: Vec<_> = held.iter().map(|(id, n)| (EntryId::parse(id).unwrap(), *n)).collect();
        let sum: EntrySum = held.iter().map(|(id, revision)| (id, *revision)).collect();
        sum.digest().to_vec()
    }

    fn view() -> View {
        View::new(TrustDomain::parse("prod.example").unwrap(), Epoch::default())
    }

    /// What whoever takes each release has after this one.
    fn take(served: &mut Changed, view: &mut View) -> Vec<String> {
        served.extend(view.release());
        served.retain(|_, entry| entry.is_some());
        served.keys().map(ToString::to_string).collect()
    }

    /// What is served of a view of which nothing was taken before.
    fn ids(view: &mut View) -> Vec<String> {
        take(&mut Changed::new(), view)
    }

    #[test]
    fn full_delta_and_deletes() {
        let (mut view, mut served) = (view(), Changed::new());
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
        assert_eq!(take(&mut served, &mut view), ["b", "c"]);
        assert_eq!(view.revision(), 6);
        view.apply(update(7, true, &[("d", 7)], &[], &[("d", 7)])).unwrap();
        assert_eq!(take(&mut served, &mut view), ["d"]);
        assert_eq!(view.revision(), 7);
    }

    #[test]
    fn a_drift_is_found_and_healed_by_a_full_update_only() {
        let (mut view, mut served) = (view(), Changed::new());
        view.apply(update(1, true, &[("a", 1)], &[], &[("a", 1)])).unwrap();
        assert_eq!(take(&mut served, &mut view), ["a"]);
        let drifted = update(2, false, &[("b", 2)], &[], &[("a", 1), ("b", 2), ("lost", 1)]);
        assert_eq!(view.apply(drifted), Err(BadUpdate::Differs { revision: 2 }));
        assert_eq!(view.revision(), 0, "the next watch asks for everything");
        assert_eq!(
            view.apply(update(3, false, &[], &[], &[("a", 1), ("b", 2)])),
            Err(BadUpdate::NoBase)
        );
        view.apply(update(3, true, &[("a", 1), ("lost", 1)], &[], &[("a", 1), ("lost", 1)]))
            .unwrap();
        assert_eq!(
            take(&mut served, &mut view),
            ["a", "lost"],
            "and nothing of what did not add up"
        );
    }

    #[test]
    fn the_ca_must_not_go_back() {
        let mut view = view();
        view.apply(update(9, true, &[("a", 9)], &[], &[("a", 9)])).unwrap();
        for full in [true, false] {
            let old = update(8, full, &[], &["a"], &[]);
            assert_eq!(view.apply(old), Err(BadUpdate::Stale { got: 8, seen: 9 }));
        }
        assert_eq!(ids(&mut view), ["a"], "what is known stays in force");
        // Not even after a drift, when everything is asked for anew.
        view.apply(update(10, false, &[], &[], &[])).unwrap_err();
        assert_eq!(
            view.apply(update(9, true, &[], &[], &[])),
            Err(BadUpdate::Stale { got: 9, seen: 10 })
        );
    }

    #[test]
    fn a_higher_epoch_begins_anew_at_whatever_revision() {
        let (mut view, mut served) = (view(), Changed::new());
        let restored = |update: ca::Update| ca::Update {
            epoch: Some(ca::Epoch { number: 7, tie: 1 }),
            ..update
        };
        view.apply(update(9, true, &[("a", 9)], &[], &[("a", 9)])).unwrap();
        let delta = update(10, false, &[("b", 10)], &[], &[("a", 9), ("b", 10)]);
        assert_eq!(view.apply(restored(delta)), Err(BadUpdate::NotFull));
        assert_eq!(take(&mut served, &mut view), ["a"], "nothing of it was taken");
        view.apply(restored(update(4, true, &[("b", 4)], &[], &[("b", 4)])))
            .unwrap();
        assert_eq!(
            (take(&mut served, &mut view), view.revision()),
            (vec!["b".to_owned()], 4)
        );
        view.apply(restored(update(5, false, &[("c", 5)], &[], &[("b", 4), ("c", 5)])))
            .unwrap();
        assert_eq!(
            view.apply(restored(update(4, true, &[], &[], &[]))),
            Err(BadUpdate::Stale { got: 4, seen: 5 })
        );
    }

    #[test]
    fn entries_that_cannot_be_served_count_but_are_not_handed_out() {
        let check = |change: &dyn Fn(&mut ca::Entry), served: bool| {
            let mut view = view();
            let mut first = update(1, true, &[("a", 1), ("b", 1)], &[], &[("a", 1), ("b", 1)]);
            change(&mut first.upserts[0]);
            view.apply(first).unwrap();
            let expected: &[&str] = if served { &["a", "b"] } else { &["b"] };
            assert_eq!(ids(&mut view), expected);
        };
        check(&|_| (), true);
        check(&|e| e.created_at_unix = -1, true);
        check(&|e| e.spiffe_id = "spiffe://prod.example/hoplites".into(), true);
        check(&|e| e.selectors.clear(), false);
        check(&|e| e.selectors[0].kind = "unix:uidd".into(), false);
        check(&|e| e.selectors[0].value = "root".into(), false);
        check(&|e| e.spiffe_id = "spiffe://prod.example".into(), false);
        check(&|e| e.spiffe_id = "spiffe://other.example/a".into(), false);
        check(&|e| e.spiffe_id = "spiffe://prod.example/hoplite/ca".into(), false);
        check(&|e| e.spiffe_id = "spiffe://prod.example/hoplite/agent/n".into(), false);
        check(&|e| e.spiffe_id = "nonsense".into(), false);
    }

    #[test]
    fn an_entry_without_a_name_is_an_update_not_taken() {
        let mut view = view();
        let mut first = update(1, true, &[("a", 1)], &[], &[("a", 1)]);
        first.upserts[0].id = "a b".into();
        assert!(matches!(view.apply(first), Err(BadUpdate::Id(_))));
        assert_eq!(view.revision(), 0, "the next watch asks for everything");
    }

    /// `cargo test --workspace --lib what_a_change_costs -- --ignored --nocapture`; bench/README.md has the numbers.
    #[test]
    #[ignore = "a measurement"]
    fn what_a_change_costs() {
        const CHANGES: u32 = 1_000;
        for count in [100u64, 1_000, 10_000, 100_000] {
            let (mut view, mut stock, supply) = (view(), Stock::default(), Supply::default());
            let names: Vec<String> = (0..count).map(|n| format!("e{n}")).collect();
            let ids: Vec<EntryId> = names.iter().map(|name| EntryId::parse(name).unwrap()).collect();
            let mut sum: EntrySum = ids.iter().map(|id| (id, 1)).collect();
            let whole = ca::Update {
                digest: sum.digest().to_vec(),
                upserts: names.iter().map(|name| message(name, 1)).collect(),
                ..update(1, true, &[], &[], &[])
            };
            view.apply(whole).unwrap();
            let now = SystemTime::now();
            stock.want(view.release());
            assert!(supply.put(stock.restock(now)));
            // Streams of others, whom none of it concerns.
            let others = (0..1_000).map(|n| {
                let texts = ["unix:uid:2".to_owned(), format!("unix:path:/{n}")];
                supply.join(&texts.iter().map(|text| text.parse().unwrap()).collect())
            });
            let _others: Vec<_> = others.collect();
            let changed = names.iter().zip(&ids).cycle().take(CHANGES as usize).zip(2..);
            let mut held: BTreeMap<&EntryId, u64> = BTreeMap::new();
            let updates: Vec<ca::Update> = changed
                .map(|((name, id), revision)| {
                    sum.remove(id, held.insert(id, revision).unwrap_or(1));
                    sum.add(id, revision);
                    ca::Update {
                        digest: sum.digest().to_vec(),
                        ..update(revision, false, &[(name, revision)], &[], &[])
                    }
                })
                .collect();
            let began = std::time::Instant::now();
            for update in updates {
                view.apply(update).unwrap();
                stock.want(view.release());
                assert!(supply.put(stock.restock(now)));
                assert!(stock.idle(now) < Duration::from_secs(1));
            }
            println!("agent, {count} entries: {:.1?} a change", began.elapsed() / CHANGES);
        }
    }

    proptest! {
        /// Whatever changes in whatever order, is lost, or comes anew as a whole: who takes what is released has what there
        /// is, and the sum that is kept up is that of a look at all of it.
        #[test]
        fn deltas_add_up_to_the_whole(
            changes in proptest::collection::vec((0u8..6, any::<bool>(), 0u8..8), 1..60),
        ) {
            let mut truth = BTreeMap::<String, u64>::new();
            let (mut view, mut served) = (view(), Changed::new());
            view.apply(update(1, true, &[], &[], &[])).unwrap();
            for (n, (id, delete, how)) in changes.into_iter().enumerate() {
                let (revision, id) = (n as u64 + 2, id.to_string());
                if delete { truth.remove(&id); } else { truth.insert(id.clone(), revision); }
                let held: Vec<_> = truth.iter().map(|(id, revision)| (id.as_str(), *revision)).collect();
                let delta = match (delete, how) {
                    // It is lost on the way.
                    (_, 0) => update(revision, false, &[], &[], &held),
                    // The whole, as after a restart of the CA.
                    (_, 1) => update(revision, true, &held, &[], &held),
                    (true, _) => update(revision, false, &[], &[&id], &held),
                    (false, _) => update(revision, false, &[(&id, revision)], &[], &held),
                };
                if view.apply(delta).is_err() {
                    // A change that is lost is noticed, and the whole is asked for.
                    prop_assert_eq!(view.revision(), 0);
                    prop_assert_eq!(view.apply(update(revision, true, &held, &[], &held)), Ok(()));
                }
                let anew: EntrySum = view.entries.iter().map(|(id, held)| (id, held.revision)).collect();
                prop_assert_eq!(view.sum, anew);
                prop_assert_eq!(take(&mut served, &mut view), truth.keys().cloned().collect::<Vec<_>>());
                for (id, entry) in &served {
                    prop_assert_eq!(entry.as_ref().map(Registered::revision), truth.get(id.as_str()).copied());
                }
            }
        }
    }
}
