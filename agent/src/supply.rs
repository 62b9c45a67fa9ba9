//! What the agent has to hand out: an SVID for each entry, renewed at half life, and the trust bundles.
//!
//! Keys are made here and go to nobody but their workload. A renewal that fails keeps the SVID that is still valid.

mod agenda;
pub(crate) mod changes;
pub(crate) mod crowds;
pub(crate) mod foreign;
pub(crate) mod held;
pub(crate) mod named;
pub(crate) mod near;
pub(crate) mod shelf;
mod stock;
pub(crate) mod sync;
pub(crate) mod templates;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{InvalidSvid, PeerRejected, PeerRole, PeerVerifier, SpiffeId, X509Svid};
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{IssueItem, IssueRequest};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::kept::Kept;
use crate::node::key::Key;
use crate::node::link::{CaError, CaLink, Credentials, RETRY};
use crate::supply::changes::Changes;
use crate::supply::named::NamedEntry;
use crate::supply::shelf::Supply;
use crate::supply::stock::Stock;
use crate::supply::sync::Registrations;

/// A batch takes milliseconds; a CA that needs longer than this is stuck.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Of a reason that workloads are told.
const REASON_CHARS_MAX: usize = 300;

/// Where streams look: None until the first synchronisation. It is always the same supply; whoever waits is told when what is
/// on its shelves changes.
pub(crate) type SupplyReceiver = watch::Receiver<Option<Arc<Supply>>>;

/// Keeps the stock filled and publishes it.
pub(crate) struct Supplier {
    link: CaLink,
    /// As whom it was made, and where to.
    channel: Option<(Arc<X509Svid>, usize, Channel)>,
    stock: Stock,
    /// What the watch said, on its way.
    changes: Changes,
    /// What is published, from the first synchronisation on.
    shelves: Arc<Supply>,
    supply: watch::Sender<Option<Arc<Supply>>>,
    away: Backoff,
    kept: Kept,
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

// === impl Supplier ===

impl Supplier {
    pub(crate) fn new(link: CaLink, supply: watch::Sender<Option<Arc<Supply>>>, changes: Changes, kept: Kept) -> Self {
        Self {
            link,
            channel: None,
            stock: Stock::default(),
            changes,
            shelves: Arc::default(),
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
        self.stock.remember(restored.take_svids(), restored.take_names());
        drop(restored);
        loop {
            let registered = registrations.borrow_and_update().clone();
            let own = credentials.borrow_and_update().clone();
            let sleep = async {
                match (registered, own) {
                    (Some(registered), Some(own)) => self.fill(&registered, &own, &registrations, &credentials).await,
                    _ => stock::SLEEP_MAX,
                }
            };
            let sleep = tokio::select! {
                sleep = sleep => sleep,
                () = shutdown.wait() => return,
            };
            let changed = tokio::select! {
                () = tokio::time::sleep(sleep) => Ok(()),
                () = self.shelves.is_asked() => Ok(()),
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
        self.stock.dismiss(registered.dismissed.as_ref());
        self.stock.want(self.changes.take());
        self.stock.federate(&registered.foreign);
        if self.stock.restore(&own.verifier) {
            self.stock.catch_up(clock::now(), jitter);
        }
        self.stock
            .trust(&own.bundle, &own.verifier, own.sound.as_ref(), clock::now());
        // What was deleted is gone now, and what is at hand is there now, not after the next call to the CA. Whoever comes
        // for what is still to be minted waits a moment for it.
        self.publish();
        let mut wait = None;
        // What is news is handed out first, between two batches: an entry that went, a trust bundle with another authority.
        let is_news = || registrations.has_changed().unwrap_or(true) || credentials.has_changed().unwrap_or(true);
        while wait.is_none() && !is_news() {
            let was_away = self.away.is_failing();
            self.stock
                .rest_unused(clock::now(), |selectors| self.shelves.is_awaited(selectors));
            let mut due = self.stock.due(self.shelves.asked(), clock::now());
            if was_away {
                due.truncate(1); // to learn whether the CA is back
            }
            if due.is_empty() {
                break;
            }
            match self.mint(own, &due).await {
                Ok(()) => {
                    self.away.succeeded();
                    self.shelves.set_dry(false);
                    if was_away {
                        self.stock.catch_up(clock::now(), jitter);
                    }
                }
                Err(error) => {
                    for _ in &due {
                        self.link.metrics().asked("workload", false);
                    }
                    self.channel = None;
                    self.shelves.set_dry(true);
                    tracing::warn!(%error, due = due.len(), "no SVIDs could be issued; what is still valid stays in use");
                    wait = Some(self.away.failed(jitter()));
                }
            }
            self.publish();
        }
        wait.unwrap_or_else(|| self.stock.idle(clock::now()))
    }

    /// One batch. Fails as a whole only when the CA cannot be reached.
    async fn mint(&mut self, own: &Credentials, due: &[Arc<NamedEntry>]) -> Result<(), CaError> {
        let mut keys = Vec::with_capacity(due.len());
        let mut items = Vec::with_capacity(due.len());
        for entry in due {
            let key = Key::generate()?;
            items.push(IssueItem {
                entry_id: entry.registered_id().to_string(),
                csr: key.csr()?,
                values: entry.values(),
            });
            keys.push(key);
        }
        let mut request = tonic::Request::new(IssueRequest { items });
        request.set_timeout(ISSUE_TIMEOUT);
        let channel = match &self.channel {
            // Where the watch is: a CA that was left may not know of what is registered.
            Some((svid, place, channel)) if Arc::ptr_eq(svid, &own.svid) && *place == self.link.place() => {
                channel.clone()
            }
            _ => {
                let channel = self.link.connect(own).await?;
                self.channel = Some((Arc::clone(&own.svid), self.link.place(), channel.clone()));
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
                    self.stock.failed(entry, &one_line(&error), now, jitter());
                    let expires = self.stock.expires(entry, now).map(humantime);
                    tracing::warn!(%error, spiffe_id = %entry.spiffe_id, entry = %entry.registered_id(), expires, "no new SVID");
                }
            }
        }
        Ok(())
    }

    /// Puts on the shelves what is new, and tells those who wait if any of them could tell.
    fn publish(&mut self) {
        let is_new = self.shelves.put(self.stock.restock(clock::now()));
        self.kept.forgotten(self.stock.take_forgotten());
        self.supply.send_if_modified(|current| match current {
            Some(_) => is_new,
            None => {
                *current = Some(Arc::clone(&self.shelves));
                true
            }
        });
        self.kept.taken_over();
    }
}

/// Believes nothing that can be checked: the key is ours, the name is the entry's, the trust bundle vouches for it.
fn accept(
    entry: &NamedEntry,
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

/// Why there is no SVID, for those who wait for it: the CA's words are as long as it likes.
fn one_line(error: &MintError) -> String {
    let text = error.to_string();
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(REASON_CHARS_MAX).collect()
}

/// Seconds left, for log lines.
fn humantime(left: Duration) -> String {
    format!("in {} s", left.as_secs())
}

/// Supplies for the tests of those who hand them out.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::supply::named::{Registered, Template};
    use hoplite_identity::{Entry, EntryId, EntryName, Parent, RegisteredEntry};

    /// An entry with selectors like `unix:uid:0`, named like its path.
    pub(crate) fn entry(id: &str, spiffe_id: &SpiffeId, selectors: &[String]) -> NamedEntry {
        NamedEntry {
            id: EntryId::parse(&id.replace('/', "-")).unwrap(),
            entry: Entry {
                spiffe_id: spiffe_id.clone(),
                parent: Parent::Agent(spiffe_id.trust_domain().agent("n1").unwrap()),
                selectors: selectors.iter().map(|text| text.parse().unwrap()).collect(),
                x509_ttl: 3600,
                hint: String::new(),
                dns_names: Vec::new(),
                created_at: 0,
                owner: String::new(),
                jwt_ttl: 0,
                is_default: false,
                federates_with: std::collections::BTreeSet::new(),
            },
            revision: 1,
            origin: None,
        }
    }

    /// A template of `prod.example`.
    pub(crate) fn template(id: &str, path: &str, selectors: &[&str]) -> Template {
        let name = EntryName::parse(&format!("spiffe://prod.example{path}")).unwrap();
        let selectors: Vec<String> = selectors.iter().map(|text| (*text).to_owned()).collect();
        let NamedEntry {
            id, entry, revision, ..
        } = entry(id, name.fixed(), &selectors);
        let entry = entry.named(name);
        match Registered::from(RegisteredEntry { id, entry, revision }) {
            Registered::Template(template) => Template::clone(&template),
            Registered::Named(_) => panic!("{path} has no placeholder"),
        }
    }

    /// The entry with this difference.
    pub(crate) fn with(mut registered: NamedEntry, change: impl FnOnce(&mut Entry<SpiffeId>)) -> NamedEntry {
        change(&mut registered.entry);
        registered
    }
}

#[cfg(test)]
mod tests {
    use super::testing::entry;
    use super::*;
    use hoplite_identity::testing::TestAuthority;

    const HOUR: Duration = Duration::from_secs(3600);

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap()
    }

    #[test]
    fn what_workloads_are_told_is_one_line_within_a_bound() {
        let check = |refusal: &str, expected: &str| {
            assert_eq!(one_line(&MintError::Refused(refusal.to_owned())), expected);
        };
        check("too many names", "the CA refused: too many names");
        check("too\nmany\tnames", "the CA refused: too many names");
        let long = one_line(&MintError::Refused("\u{e9}".repeat(1_000)));
        assert_eq!(long.chars().count(), REASON_CHARS_MAX);
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
}
