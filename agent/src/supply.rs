//! What the agent has to hand out: an SVID for each entry, renewed at half life, and the trust bundles.
//!
//! Keys are made here and go to nobody but their workload. A renewal that fails keeps the SVID that is still valid.

pub(crate) mod held;
pub(crate) mod near;
pub(crate) mod sync;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{
    BundleSet, EntryId, InvalidSvid, PeerRejected, PeerRole, PeerVerifier, RegisteredEntry, Selector, SpiffeId,
    TrustBundle, X509Svid,
};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{IssueItem, IssueRequest};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::kept::Kept;
use crate::kept::record::SvidRecord;
use crate::node::key::Key;
use crate::node::link::{CaError, CaLink, Credentials, RETRY};
use crate::supply::held::HeldSvid;
use crate::supply::sync::Registrations;

/// SVIDs asked for in one call: enough to make the round trip cheap, few enough to be answered at once.
const BATCH: usize = 200;

/// A batch takes milliseconds; a CA that needs longer than this is stuck.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest sleep: clocks are set and machines suspended, and both must be noticed.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// Everything that callers may be given, at one moment. Immutable; a change is a new one.
#[derive(Debug, Default)]
pub(crate) struct Supply {
    entries: Vec<Supplied>,
    /// Positions in `entries` by the rarest selector of each, so that a look-up sees few candidates.
    index: HashMap<Selector, Vec<usize>>,
    bundles: BundleSet,
    /// The CA's word when it has dismissed this node, so that nobody is given anything.
    dismissed: Option<Arc<str>>,
}

/// An entry and its SVID.
#[derive(Debug, Clone)]
pub(crate) struct Supplied {
    pub(crate) entry: Arc<RegisteredEntry>,
    /// None while it is being minted, or when it expired while the CA was away.
    pub(crate) svid: Option<Arc<HeldSvid>>,
}

/// Where streams look: None until the first synchronisation.
pub(crate) type SupplyReceiver = watch::Receiver<Option<Arc<Supply>>>;

/// Keeps the stock filled and publishes it.
pub(crate) struct Supplier {
    link: CaLink,
    channel: Option<(Arc<X509Svid>, Channel)>,
    stock: Stock,
    supply: watch::Sender<Option<Arc<Supply>>>,
    away: Backoff,
    kept: Kept,
}

/// The pure part: what is wanted, what is there, what is due.
#[derive(Debug, Default)]
struct Stock {
    wanted: BTreeMap<EntryId, Arc<RegisteredEntry>>,
    minted: HashMap<EntryId, Minted>,
    failed: HashMap<EntryId, Failed>,
    bundle: Option<Arc<TrustBundle>>,
    /// From the disk: those whose entry was not named yet.
    restored: HashMap<EntryId, SvidRecord>,
    dismissed: Option<Arc<str>>,
}

/// An SVID and the entry it was minted for.
#[derive(Debug)]
struct Minted {
    entry: Arc<RegisteredEntry>,
    svid: Arc<HeldSvid>,
    renew_at: SystemTime,
}

/// Failures in a row for one entry.
#[derive(Debug)]
struct Failed {
    backoff: Backoff,
    retry_at: SystemTime,
}

/// Why one SVID is not there.
#[derive(Debug, thiserror::Error)]
enum MintError {
    #[error("the CA refused: {0}")]
    Refused(String),
    #[error("the CA issued something that is no SVID: {0}")]
    Svid(#[from] InvalidSvid),
    #[error("the CA issued `{got}` where `{wanted}` was asked for")]
    Other { wanted: SpiffeId, got: SpiffeId },
    #[error("the trust bundle does not vouch for the SVID that the CA issued: {0}")]
    Unverified(#[from] PeerRejected),
}

// === impl Supply ===

impl Supply {
    /// Puts entries into the order of the default identity (W-10), an explicit rule: of all that a caller matches, first
    /// comes the entry with the most selectors, the most specific one; then the oldest; then by SPIFFE ID.
    pub(crate) fn new(mut entries: Vec<Supplied>, bundles: BundleSet) -> Self {
        entries.sort_by(|a, b| {
            let key = |s: &Supplied| (Reverse(s.entry.selectors.len()), s.entry.created_at);
            key(a)
                .cmp(&key(b))
                .then_with(|| (&a.entry.spiffe_id, &a.entry.id).cmp(&(&b.entry.spiffe_id, &b.entry.id)))
        });
        let mut frequency = HashMap::<&Selector, usize>::new();
        for selector in entries.iter().flat_map(|supplied| &supplied.entry.selectors) {
            *frequency.entry(selector).or_default() += 1;
        }
        let mut index = HashMap::<Selector, Vec<usize>>::new();
        for (position, supplied) in entries.iter().enumerate() {
            if let Some(rarest) = supplied.entry.selectors.iter().min_by_key(|s| frequency.get(s)) {
                index.entry(rarest.clone()).or_default().push(position);
            }
        }
        Self {
            entries,
            index,
            bundles,
            dismissed: None,
        }
    }

    /// Why nobody is given anything, when the CA has dismissed this node.
    pub(crate) fn dismissed(&self) -> Option<&str> {
        self.dismissed.as_deref()
    }

    /// The entries whose every selector is among these, the default identity first.
    pub(crate) fn matching(&self, selectors: &BTreeSet<Selector>) -> Vec<&Supplied> {
        let mut positions: Vec<usize> = selectors
            .iter()
            .filter_map(|s| self.index.get(s))
            .flatten()
            .copied()
            .collect();
        positions.sort_unstable();
        positions
            .into_iter()
            .filter_map(|position| self.entries.get(position))
            .filter(|supplied| supplied.entry.selectors.is_subset(selectors))
            .collect()
    }

    /// All of them.
    pub(crate) fn entries(&self) -> &[Supplied] {
        &self.entries
    }

    pub(crate) fn bundles(&self) -> &BundleSet {
        &self.bundles
    }

    /// Whether no caller could tell the one from the other.
    fn same(&self, other: &Self) -> bool {
        self.bundles == other.bundles
            && self.dismissed == other.dismissed
            && self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|(a, b)| {
                let svids = match (&a.svid, &b.svid) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (None, None) => true,
                    _ => false,
                };
                svids && a.entry == b.entry
            })
    }
}

// === impl Supplier ===

impl Supplier {
    pub(crate) fn new(link: CaLink, supply: watch::Sender<Option<Arc<Supply>>>, kept: Kept) -> Self {
        Self {
            link,
            channel: None,
            stock: Stock::default(),
            supply,
            away: RETRY,
            kept,
        }
    }

    /// Works until the agent stops.
    pub(crate) async fn run(
        mut self,
        mut registrations: watch::Receiver<Option<Arc<Registrations>>>,
        mut shutdown: Shutdown,
    ) {
        let mut credentials = self.link.credentials();
        let restored = tokio::select! {
            restored = self.kept.restored() => restored,
            () = shutdown.wait() => return,
        };
        self.stock.restored = restored.take_svids();
        loop {
            let registered = registrations.borrow_and_update().clone();
            let own = credentials.borrow_and_update().clone();
            let sleep = async {
                match (registered, own) {
                    (Some(registered), Some(own)) => self.fill(&registered, &own, &registrations, &credentials).await,
                    _ => SLEEP_MAX,
                }
            };
            let sleep = tokio::select! {
                sleep = sleep => sleep,
                () = shutdown.wait() => return,
            };
            let changed = tokio::select! {
                () = tokio::time::sleep(sleep) => Ok(()),
                changed = registrations.changed() => changed,
                changed = credentials.changed() => changed,
                () = shutdown.wait() => return,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Brings the stock up to what is registered, and says how long it will do.
    async fn fill(
        &mut self,
        registered: &Registrations,
        own: &Credentials,
        registrations: &watch::Receiver<Option<Arc<Registrations>>>,
        credentials: &watch::Receiver<Option<Arc<Credentials>>>,
    ) -> Duration {
        self.stock.dismissed.clone_from(&registered.dismissed);
        self.stock.want(registered.entries.clone());
        self.stock.restore(&own.verifier);
        self.stock.trust(&own.bundle, &own.verifier, clock::now());
        // What was deleted is gone now, and what is at hand is there now, not after the next call to the CA. Whoever comes
        // for what is still to be minted waits a moment for it.
        self.publish();
        let mut wait = None;
        // What is news is handed out first, between two batches: an entry that went, a trust bundle with another authority.
        let is_news = || registrations.has_changed().unwrap_or(true) || credentials.has_changed().unwrap_or(true);
        while wait.is_none() && !is_news() {
            let due = self.stock.due(clock::now());
            if due.is_empty() {
                break;
            }
            match self.mint(own, &due).await {
                Ok(()) => self.away.succeeded(),
                Err(error) => {
                    for _ in &due {
                        self.link.metrics().asked("workload", false);
                    }
                    self.channel = None;
                    tracing::warn!(%error, due = due.len(), "no SVIDs could be issued; what is still valid stays in use");
                    wait = Some(self.away.failed(jitter()));
                }
            }
        }
        self.publish();
        wait.unwrap_or_else(|| self.stock.idle(clock::now()))
    }

    /// One batch. Fails as a whole only when the CA cannot be reached.
    async fn mint(&mut self, own: &Credentials, due: &[Arc<RegisteredEntry>]) -> Result<(), CaError> {
        let mut keys = Vec::with_capacity(due.len());
        let mut items = Vec::with_capacity(due.len());
        for entry in due {
            let key = Key::generate()?;
            items.push(IssueItem {
                entry_id: entry.id.to_string(),
                csr: key.csr()?,
            });
            keys.push(key);
        }
        let mut request = tonic::Request::new(IssueRequest { items });
        request.set_timeout(ISSUE_TIMEOUT);
        let channel = match &self.channel {
            Some((svid, channel)) if Arc::ptr_eq(svid, &own.svid) => channel.clone(),
            _ => {
                let channel = self.link.connect(own).await?;
                self.channel = Some((Arc::clone(&own.svid), channel.clone()));
                channel
            }
        };
        let response = tokio::time::timeout(ISSUE_TIMEOUT, NodeClient::new(channel).issue(request)).await;
        let results = response.map_err(|_| CaError::Timeout)??.into_inner().results;
        if results.len() != due.len() {
            return Err(CaError::Answer(format!(
                "{} results for {} items",
                results.len(),
                due.len()
            )));
        }
        let now = clock::now();
        for ((entry, key), result) in due.iter().zip(keys).zip(results) {
            let minted = if result.error.is_empty() {
                accept(entry, result.chain, key, &own.verifier, now)
            } else {
                Err(MintError::Refused(result.error))
            };
            self.link.metrics().asked("workload", minted.is_ok());
            match minted {
                Ok(svid) => {
                    let svid = Arc::new(svid);
                    let renew_at = self.stock.minted(entry, &svid, now, jitter());
                    self.kept.minted(entry, &svid, renew_at);
                }
                Err(error) => {
                    self.stock.failed(entry, now, jitter());
                    let expires = self.stock.expires(entry, now).map(humantime);
                    tracing::warn!(%error, spiffe_id = %entry.spiffe_id, entry = %entry.id, expires, "no new SVID");
                }
            }
        }
        Ok(())
    }

    fn publish(&self) {
        let next = self.stock.supply(clock::now());
        self.supply.send_if_modified(|current| {
            if current.as_ref().is_some_and(|current| current.same(&next)) {
                return false;
            }
            *current = Some(Arc::new(next));
            true
        });
    }
}

/// Believes nothing that can be checked: the key is ours, the name is the entry's, the trust bundle vouches for it.
fn accept(
    entry: &RegisteredEntry,
    chain: Vec<Vec<u8>>,
    key: Key,
    verifier: &PeerVerifier,
    now: SystemTime,
) -> Result<X509Svid, MintError> {
    let svid = X509Svid::from_parts(chain.into_iter().map(Into::into).collect(), key.into_pkcs8())?;
    if svid.spiffe_id() != &entry.spiffe_id {
        return Err(MintError::Other {
            wanted: entry.spiffe_id.clone(),
            got: svid.spiffe_id().clone(),
        });
    }
    verifier.verify(svid.chain(), PeerRole::Client, now)?;
    Ok(svid)
}

/// Seconds left, for log lines.
fn humantime(left: Duration) -> String {
    format!("in {} s", left.as_secs())
}

// === impl Stock ===

impl Stock {
    /// What is registered now. What is no longer is forgotten, its key with it.
    fn want(&mut self, wanted: BTreeMap<EntryId, Arc<RegisteredEntry>>) {
        self.minted.retain(|id, minted| {
            wanted
                .get(id)
                .is_some_and(|entry| entry.spiffe_id == minted.entry.spiffe_id)
        });
        self.failed
            .retain(|id, _| wanted.get(id).is_some_and(|entry| self.wanted.get(id) == Some(entry)));
        self.wanted = wanted;
    }

    /// The bundle of now. What it no longer vouches for is not handed out any more.
    fn trust(&mut self, bundle: &Arc<TrustBundle>, verifier: &Arc<PeerVerifier>, now: SystemTime) {
        if self.bundle.as_ref() != Some(bundle) {
            self.minted
                .retain(|_, minted| minted.svid.is_vouched_for(verifier, now));
            self.bundle = Some(Arc::clone(bundle));
        }
    }

    /// The next batch of entries to have minted.
    fn due(&self, now: SystemTime) -> Vec<Arc<RegisteredEntry>> {
        // Of a clock that was set back an SVID is not valid yet.
        let is_good =
            |minted: &Minted| now < minted.renew_at && minted.svid.not_before() <= now && minted.svid.may_be_used();
        let missing = |entry: &RegisteredEntry| {
            self.minted
                .get(&entry.id)
                .is_none_or(|minted| !is_good(minted) || !minted.entry.has_same_certificate(entry))
        };
        let resting = |entry: &RegisteredEntry| {
            self.failed
                .get(&entry.id)
                .is_some_and(|failed| failed.backoff.rests(failed.retry_at, now))
        };
        self.wanted
            .values()
            .filter(|entry| missing(entry) && !resting(entry))
            .take(BATCH)
            .cloned()
            .collect()
    }

    /// Takes in an SVID, and says when it is to be renewed.
    fn minted(
        &mut self,
        entry: &Arc<RegisteredEntry>,
        svid: &Arc<X509Svid>,
        now: SystemTime,
        jitter: f64,
    ) -> SystemTime {
        self.failed.remove(&entry.id);
        // However much a CA back-dates: what has just been minted is not due at once.
        let left = svid.leaf().not_after().duration_since(now).unwrap_or_default();
        let renew_at = svid.renew_at(jitter).max(now + left / 4);
        self.minted.insert(
            entry.id.clone(),
            Minted {
                entry: Arc::clone(entry),
                svid: Arc::new(HeldSvid::new(Arc::clone(svid))),
                renew_at,
            },
        );
        renew_at
    }

    /// Takes in what an earlier agent kept of what is wanted, and forgets the rest of it.
    fn restore(&mut self, verifier: &Arc<PeerVerifier>) {
        for (id, record) in std::mem::take(&mut self.restored) {
            if let Some(entry) = self.wanted.get(&id) {
                let renew_at = SystemTime::UNIX_EPOCH + Duration::from_secs(record.renew_at);
                self.minted.entry(id).or_insert_with(|| Minted {
                    entry: Arc::clone(entry),
                    svid: Arc::new(HeldSvid::kept(record, verifier)),
                    renew_at,
                });
            }
        }
    }

    fn failed(&mut self, entry: &RegisteredEntry, now: SystemTime, jitter: f64) {
        let failed = self.failed.entry(entry.id.clone()).or_insert(Failed {
            backoff: RETRY,
            retry_at: now,
        });
        failed.retry_at = now + failed.backoff.failed(jitter);
    }

    /// How long the SVID at hand will still do.
    fn expires(&self, entry: &RegisteredEntry, now: SystemTime) -> Option<Duration> {
        let minted = self.minted.get(&entry.id)?;
        minted.svid.not_after().duration_since(now).ok()
    }

    /// How long there will be nothing to do: nothing due, nothing that expires.
    fn idle(&self, now: SystemTime) -> Duration {
        let due = self.wanted.keys().filter_map(|id| {
            self.failed
                .get(id)
                .map(|failed| failed.retry_at)
                .or_else(|| self.minted.get(id).map(|minted| minted.renew_at))
        });
        let expiries = self
            .minted
            .values()
            .map(|minted| minted.svid.not_after())
            .filter(|expiry| *expiry > now);
        let next = due.chain(expiries).min().unwrap_or(now + SLEEP_MAX);
        next.duration_since(now).unwrap_or_default().min(SLEEP_MAX)
    }

    /// What may be handed out now: nothing that has expired.
    fn supply(&self, now: SystemTime) -> Supply {
        let entries = self.wanted.values().map(|entry| Supplied {
            entry: Arc::clone(entry),
            svid: self
                .minted
                .get(&entry.id)
                .filter(|minted| now < minted.svid.not_after() && minted.svid.may_be_used())
                .map(|minted| Arc::clone(&minted.svid)),
        });
        let mut bundles = BundleSet::default();
        if let Some(bundle) = self.bundle.as_ref().filter(|_| self.dismissed.is_none()) {
            bundles.insert(Arc::clone(bundle));
        }
        Supply {
            dismissed: self.dismissed.clone(),
            ..Supply::new(entries.collect(), bundles)
        }
    }
}

/// Supplies for the tests of those who hand them out.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use hoplite_identity::Entry;

    /// An entry with selectors like `unix:uid:0`, named like its path.
    pub(crate) fn entry(id: &str, spiffe_id: &SpiffeId, selectors: &[String]) -> RegisteredEntry {
        RegisteredEntry {
            id: EntryId::parse(&id.replace('/', "-")).unwrap(),
            entry: Entry {
                spiffe_id: spiffe_id.clone(),
                parent_id: spiffe_id.trust_domain().agent("n1").unwrap(),
                selectors: selectors.iter().map(|text| text.parse().unwrap()).collect(),
                x509_ttl: 3600,
                hint: String::new(),
                dns_names: Vec::new(),
                created_at: 0,
                owner: String::new(),
            },
            revision: 1,
        }
    }

    /// The entry with this difference.
    pub(crate) fn with(mut registered: RegisteredEntry, change: impl FnOnce(&mut Entry)) -> RegisteredEntry {
        change(&mut registered.entry);
        registered
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{entry, with};
    use super::*;
    use hoplite_identity::Entry;
    use hoplite_identity::testing::TestAuthority;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap()
    }

    fn wanted(entries: impl IntoIterator<Item = RegisteredEntry>) -> BTreeMap<EntryId, Arc<RegisteredEntry>> {
        entries
            .into_iter()
            .map(|entry| (entry.id.clone(), Arc::new(entry)))
            .collect()
    }

    fn ids(entries: &[Arc<RegisteredEntry>]) -> Vec<&str> {
        entries.iter().map(|entry| entry.id.as_str()).collect()
    }

    #[test]
    fn w_10_the_default_identity_is_an_explicit_rule() {
        let make = |name: &str, path: &str, selectors: &[&str], created| Supplied {
            entry: Arc::new(with(
                entry(
                    name,
                    &id(path),
                    &selectors.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
                ),
                |entry| entry.created_at = created,
            )),
            svid: None,
        };
        let supply = Supply::new(
            vec![
                make("young", "/a", &["unix:uid:1"], 9),
                make("old-b", "/b", &["unix:uid:1"], 1),
                make("old-a", "/a", &["unix:gid:1"], 1),
                make("specific", "/z", &["unix:uid:1", "unix:path:/x"], 99),
                make("other", "/o", &["unix:uid:2"], 0),
            ],
            BundleSet::default(),
        );
        let check = |selectors: &[&str], expected: &[&str]| {
            let selectors = selectors.iter().map(|text| text.parse().unwrap()).collect();
            let found: Vec<_> = supply
                .matching(&selectors)
                .iter()
                .map(|s| s.entry.id.to_string())
                .collect();
            assert_eq!(found, expected, "{selectors:?}");
        };
        check(
            &["unix:uid:1", "unix:gid:1", "unix:path:/x"],
            &["specific", "old-a", "old-b", "young"],
        );
        check(&["unix:uid:1"], &["old-b", "young"]);
        check(&["unix:path:/x"], &[]);
        check(&["unix:uid:2", "unix:uid:3"], &["other"]);
        check(&[], &[]);
    }

    proptest! {
        /// The index is a shortcut, never a different answer.
        #[test]
        fn the_index_finds_what_a_scan_finds(
            entries in proptest::collection::vec(proptest::collection::btree_set(0u8..8, 1..4), 0..20),
            caller in proptest::collection::btree_set(0u8..8, 0..8),
        ) {
            let selector = |n: &u8| Selector::parse(&format!("unix:gid:{n}")).unwrap();
            let supplied = entries.iter().enumerate().map(|(n, set)| Supplied {
                entry: Arc::new(with(entry(&n.to_string(), &id("/a"), &[]), |entry| entry.selectors = set.iter().map(selector).collect())),
                svid: None,
            });
            let supply = Supply::new(supplied.collect(), BundleSet::default());
            let selectors: BTreeSet<_> = caller.iter().map(selector).collect();
            let found: BTreeSet<_> = supply.matching(&selectors).iter().map(|s| s.entry.id.to_string()).collect();
            let expected = entries.iter().enumerate().filter(|(_, set)| set.is_subset(&caller)).map(|(n, _)| n.to_string());
            prop_assert_eq!(found, expected.collect::<BTreeSet<_>>());
        }
    }

    #[test]
    fn svids_are_renewed_at_half_life_and_kept_when_that_fails() {
        let authority = TestAuthority::new("prod.example");
        let mut stock = Stock::default();
        stock.want(wanted([entry("e", &id("/a"), &[])]));
        let start = SystemTime::now();
        let e = stock.due(start).pop().unwrap();
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        assert!(stock.due(start).is_empty());
        let (renew_at, not_after) = (stock.minted["e"].renew_at, stock.minted["e"].svid.not_after());
        assert!(start + HOUR / 3 < renew_at && renew_at < start + HOUR * 2 / 3);
        assert_eq!(stock.idle(start), SLEEP_MAX);
        assert_eq!(stock.idle(renew_at - Duration::from_secs(1)), Duration::from_secs(1));

        let (mut now, mut tries) = (renew_at, 0);
        while now < not_after {
            assert!(
                stock.supply(now).entries[0].svid.is_some(),
                "still valid, so still served"
            );
            if let Some(due) = stock.due(now).pop() {
                stock.failed(&due, now, 0.0);
                tries += 1;
                assert!(stock.due(now).is_empty(), "it rests first");
            }
            now += stock.idle(now).max(Duration::from_millis(1));
        }
        assert!((100..1000).contains(&tries), "{tries}");
        assert!(
            stock.supply(not_after).entries[0].svid.is_none(),
            "an expired SVID is never served"
        );
        let due = stock.due(not_after + Duration::from_secs(60)).pop().unwrap();
        stock.minted(&due, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        assert!(stock.failed.is_empty() && stock.due(start).is_empty());
    }

    #[test]
    fn a_clock_that_is_set_back_makes_no_entry_rest_for_longer() {
        let mut stock = Stock::default();
        stock.want(wanted([entry("e", &id("/a"), &[])]));
        let now = SystemTime::now();
        let e = stock.due(now).pop().unwrap();
        stock.failed(&e, now, 0.0);
        assert!(stock.due(now).is_empty());
        assert_eq!(ids(&stock.due(now - HOUR)), ["e"]);
    }

    #[test]
    fn what_an_entry_change_means_for_its_svid() {
        let authority = TestAuthority::new("prod.example");
        let original = entry("e", &id("/a"), &["unix:uid:1".into()]);
        let check = |change: &dyn Fn(&mut Entry), served: bool, due: bool| {
            let mut stock = Stock::default();
            stock.want(wanted([original.clone()]));
            stock.minted(
                &Arc::new(original.clone()),
                &Arc::new(authority.svid("/a", HOUR)),
                SystemTime::now(),
                0.0,
            );
            let mut changed = with(original.clone(), change);
            changed.revision = 2;
            stock.want(wanted([changed]));
            let now = SystemTime::now();
            assert_eq!(
                (stock.supply(now).entries[0].svid.is_some(), !stock.due(now).is_empty()),
                (served, due)
            );
        };
        check(&|_| {}, true, false);
        check(&|e| e.hint = "h".into(), true, true);
        check(&|e| e.hint = "h".repeat(65), true, false);
        check(&|e| e.selectors.clear(), true, false);
        check(&|e| e.x509_ttl = 7200, true, true);
        check(&|e| e.dns_names = vec!["a".into()], true, true);
        check(&|e| e.spiffe_id = id("/b"), false, true);
    }

    #[test]
    fn deleted_entries_are_forgotten_with_their_keys() {
        let authority = TestAuthority::new("prod.example");
        let mut stock = Stock::default();
        let e = Arc::new(entry("e", &id("/a"), &[]));
        stock.want(wanted([(*e).clone()]));
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        stock.failed(&e, SystemTime::now(), 0.0);
        stock.want(BTreeMap::new());
        assert!(
            stock.minted.is_empty() && stock.failed.is_empty() && stock.supply(SystemTime::now()).entries.is_empty()
        );
    }

    #[test]
    fn batches_are_bounded() {
        let mut stock = Stock::default();
        stock.want(wanted((0..500).map(|n| entry(&format!("{n:03}"), &id("/a"), &[]))));
        let now = SystemTime::now();
        let first = stock.due(now);
        assert_eq!((first.len(), ids(&first)[0]), (BATCH, "000"));
        for entry in &first {
            stock.failed(entry, now, 0.0);
        }
        assert_eq!(ids(&stock.due(now))[0], "200");
    }

    #[test]
    fn a_bundle_that_no_longer_vouches_takes_the_svid_away() {
        let (old, new) = (TestAuthority::new("prod.example"), TestAuthority::new("prod.example"));
        let verifier = |authority: &TestAuthority| Arc::new(PeerVerifier::new(authority.bundles()).unwrap());
        let now = SystemTime::now();
        let mut stock = Stock::default();
        let e = Arc::new(entry("e", &id("/a"), &[]));
        stock.want(wanted([(*e).clone()]));
        stock.trust(&Arc::new(old.bundle()), &verifier(&old), now);
        stock.minted(&e, &Arc::new(old.svid("/a", HOUR)), SystemTime::now(), 0.0);
        stock.trust(&Arc::new(old.bundle()), &verifier(&old), now);
        assert!(stock.supply(now).entries[0].svid.is_some());
        stock.trust(&Arc::new(new.bundle()), &verifier(&new), now);
        assert!(stock.supply(now).entries[0].svid.is_none() && stock.due(now).len() == 1);
    }

    #[test]
    fn what_the_ca_issued_is_checked() {
        let (authority, foreign) = (TestAuthority::new("prod.example"), TestAuthority::new("prod.example"));
        let verifier = PeerVerifier::new(authority.bundles()).unwrap();
        let e = entry("e", &id("/a"), &[]);
        let check = |svid: &X509Svid, own_key: bool, expected: &str| {
            let key = if own_key {
                Key::from_pkcs8(svid.key()).unwrap()
            } else {
                Key::generate().unwrap()
            };
            let chain = svid.chain().iter().map(|c| c.to_vec()).collect();
            match accept(&e, chain, key, &verifier, SystemTime::now()) {
                Ok(svid) => assert_eq!((expected, svid.spiffe_id()), ("", &e.spiffe_id)),
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
            }
        };
        check(&authority.svid("/a", HOUR), true, "");
        check(&authority.svid("/a", HOUR), false, "no SVID");
        check(
            &authority.svid("/b", HOUR),
            true,
            "`spiffe://prod.example/a` was asked for",
        );
        check(&foreign.svid("/a", HOUR), true, "does not vouch");
        assert!(accept(&e, vec![], Key::generate().unwrap(), &verifier, SystemTime::now()).is_err());
    }

    #[test]
    fn a_supply_is_published_only_when_a_caller_could_tell() {
        let authority = TestAuthority::new("prod.example");
        let mut stock = Stock::default();
        let e = Arc::new(entry("e", &id("/a"), &[]));
        stock.want(wanted([(*e).clone()]));
        let now = SystemTime::now();
        let empty = stock.supply(now);
        assert!(empty.same(&stock.supply(now)));
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        let full = stock.supply(now);
        assert!(!full.same(&empty) && full.same(&stock.supply(now)));
        stock.minted(&e, &Arc::new(authority.svid("/a", HOUR)), SystemTime::now(), 0.0);
        assert!(!full.same(&stock.supply(now)), "renewed");
        stock.bundle = Some(Arc::new(authority.bundle()));
        assert!(!full.same(&stock.supply(now)), "another bundle");
    }
}
