//! What is stored: writes go to the store, answers come from memory.
//!
//! A write reads the store, decides, and commits on condition that nothing it read has changed. One thread follows the
//! store and keeps the [`Index`]; a write returns once the index has it, so whoever wrote reads what it wrote.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hoplite_host::clock;
use hoplite_identity::TrustBundle;
use hoplite_store::{CommitError, Revision, Store, StoreError, Watch, WatchError};
use hoplite_telemetry::{Exposition, Histogram, Kind};
use tokio::sync::watch;

use crate::index::Index;
use crate::record::{self, BadRecord};
use crate::wakes::{Concerned, Wakes};
use crate::write::{self, ReadError, Write, WriteError};

/// How often the follower looks whether it should stop.
const TICK: Duration = Duration::from_millis(50);

/// A store that cannot be reached for longer is lost from sight: those who watch look for a CA that sees it.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// What one trust domain has stored. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Registry {
    store: Arc<dyn Store>,
    index: Arc<RwLock<Index>>,
    revisions: watch::Receiver<Revision>,
    bundles: watch::Receiver<Arc<TrustBundle>>,
    wakes: Wakes,
    stopped: Arc<watch::Sender<Option<StoreError>>>,
    is_lost: Arc<AtomicBool>,
    commits: Histogram,
}

/// A registry that does not keep its store open.
#[derive(Clone)]
pub(crate) struct WeakRegistry {
    store: Weak<dyn Store>,
    index: Arc<RwLock<Index>>,
    revisions: watch::Receiver<Revision>,
    bundles: watch::Receiver<Arc<TrustBundle>>,
    wakes: Wakes,
    stopped: Arc<watch::Sender<Option<StoreError>>>,
    is_lost: Arc<AtomicBool>,
    commits: Histogram,
}

/// The thread that follows the store. Ends when it is dropped.
pub(crate) struct Follower {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Why the store cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it holds is not what this program writes.
    #[error(transparent)]
    Record(#[from] BadRecord),
    /// It does not tell what changes.
    #[error("cannot follow the store: {0}")]
    Watch(#[from] WatchError),
    /// There is no trust bundle.
    #[error("the store holds no authority; restore it from a backup")]
    NoAuthority,
}

/// Who is told of what is new.
struct News {
    revisions: watch::Sender<Revision>,
    bundles: watch::Sender<Arc<TrustBundle>>,
    wakes: Wakes,
}

// === impl Registry ===

impl Registry {
    /// Reads everything, and follows from there.
    pub(crate) fn open(store: Arc<dyn Store>) -> Result<(Self, Follower), FollowError> {
        let index = Index::new(&store.snapshot()?)?;
        let watch = store.watch(index.revision())?;
        let bundle = index.authority.bundle().cloned().ok_or(FollowError::NoAuthority)?;
        let news = News {
            revisions: watch::Sender::new(index.revision()),
            bundles: watch::Sender::new(bundle),
            wakes: Wakes::default(),
        };
        let registry = Self {
            store,
            index: Arc::new(RwLock::new(index)),
            revisions: news.revisions.subscribe(),
            bundles: news.bundles.subscribe(),
            wakes: news.wakes.clone(),
            stopped: Arc::default(),
            is_lost: Arc::default(),
            commits: Histogram::default(),
        };
        Ok((registry.clone(), Follower::spawn(&registry, watch, news)))
    }

    /// The store itself, for what copies all of it.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// The index, locked: keep it for less than a moment, and not across an await.
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        // INVARIANT: a panic while applying ends the follower, and with it the CA; until then reads are of whole records.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of every new revision. An error from it means that nothing will ever be new again.
    pub(crate) fn revisions(&self) -> watch::Receiver<Revision> {
        self.revisions.clone()
    }

    /// Those who wait for what concerns one agent.
    pub(crate) fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    /// What members of the trust domain are verified with, now and after each change of it.
    pub(crate) fn bundles(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundles.clone()
    }

    /// Does a write, and returns when the index has it.
    pub(crate) async fn write<W: Write>(&self, write: W) -> Result<W::Answer, WriteError<W::Error>> {
        Ok(self.write_at(write).await?.0)
    }

    /// Does a write, and returns when the index has it, with the revision (0 when there was nothing to write).
    pub(crate) async fn write_at<W: Write>(&self, write: W) -> Result<(W::Answer, Revision), WriteError<W::Error>> {
        let store = Arc::clone(&self.store);
        let started = clock::moment();
        // A failed join here is a panic of ours in there, or the runtime's end.
        let done = tokio::task::spawn_blocking(move || write::commit(&*store, &write))
            .await
            .map_err(|_| WriteError::NotFollowing)?;
        let (answer, revision) = done.inspect_err(|error| self.note_if_stopped(error))?;
        if revision != 0 {
            self.commits.observe(started.elapsed());
        }
        let mut revisions = self.revisions();
        revisions
            .wait_for(|reached| *reached >= revision)
            .await
            .map_err(|_| WriteError::NotFollowing)?;
        Ok((answer, revision))
    }
}

impl Registry {
    /// Without keeping the store open.
    pub(crate) fn downgrade(&self) -> WeakRegistry {
        WeakRegistry {
            store: Arc::downgrade(&self.store),
            index: self.index.clone(),
            revisions: self.revisions.clone(),
            bundles: self.bundles.clone(),
            wakes: self.wakes.clone(),
            stopped: self.stopped.clone(),
            is_lost: self.is_lost.clone(),
            commits: self.commits.clone(),
        }
    }

    /// Whether the store is lost from sight: whoever may find a CA that sees it goes there.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }

    /// Why the store takes nothing more, if it has come to that.
    pub(crate) fn stopped_because(&self) -> Option<StoreError> {
        self.stopped.borrow().clone()
    }

    /// Whether nobody keeps the index up to date any more.
    pub(crate) fn is_left_behind(&self) -> bool {
        self.revisions.has_changed().is_err()
    }

    /// Adds what is stored to what is shown.
    pub(crate) fn register(&self, to: &mut Exposition) {
        to.register(
            "store_commit_duration_seconds",
            "What a write takes: reading, deciding, and the store's own commit",
            self.commits.clone(),
        );
        let held = self.downgrade();
        let store = Arc::downgrade(&self.store);
        to.sampled(
            Kind::Gauge,
            "store_away",
            "1 while the database cannot be reached: nothing is written, and what is known is still served",
            move |to| to.put(u64::from(store.upgrade().is_some_and(|store| store.away().is_some()))),
        );
        let mut gauge = |name, help, read: fn(&Index) -> Option<u64>| {
            let held = held.clone();
            to.sampled(Kind::Gauge, name, help, move |to| {
                if let Some(value) = read(&held.index.read().unwrap_or_else(PoisonError::into_inner)) {
                    to.put(value);
                }
            });
        };
        gauge("entries", "Registered workloads", |index| {
            Some(index.entries.iter().len() as u64)
        });
        gauge("tokens_open", "Invitations that may still be used", |index| {
            Some(index.tokens.open(clock::now()))
        });
        gauge("store_revision", "The number of the last commit", |index| {
            Some(index.revision())
        });
        gauge(
            "authority_not_after_timestamp_seconds",
            "When the authority that signs ends, in seconds since 1970",
            |index| Some(index.authority.course().active()?.1.not_after),
        );
        gauge(
            "authority_lacks_successor",
            "1 when the authority that signs has less than a quarter of its life left and no successor",
            |index| Some(index.authority.course().lacks_successor(clock::now()).into()),
        );
        gauge(
            "policy_revision",
            "The revision of the policy in force; 0 before the first",
            |index| {
                let live = index.policy.in_force(clock::now()).live;
                Some(live.map_or(0, |live| live.revision))
            },
        );
        gauge(
            "agents_contested",
            "Agents whose key two have, so that neither gets another certificate",
            |index| Some(index.agents.iter().filter(|agent| agent.contested.is_some()).count() as u64),
        );
        to.sampled(
            Kind::Gauge,
            "agents",
            "Agents that have joined, by state: `active`, `expired` (its newest certificate has ended), `banned`",
            move |to| {
                let (mut active, mut expired, mut banned) = (0, 0, 0);
                let now = record::unix_seconds(clock::now());
                for agent in held.index.read().unwrap_or_else(PoisonError::into_inner).agents.iter() {
                    let state = match (agent.banned, agent.newest().not_after <= now) {
                        (true, _) => &mut banned,
                        (false, true) => &mut expired,
                        (false, false) => &mut active,
                    };
                    *state += 1;
                }
                for (state, agents) in [("active", active), ("expired", expired), ("banned", banned)] {
                    to.put_for(&[("state", state)], agents);
                }
            },
        );
    }

    /// Returns when the store takes nothing more, with the first reason. That does not mend itself: the store says of what it
    /// holds only when it is opened again.
    pub(crate) async fn store_stopped(&self) -> StoreError {
        let mut stopped = self.stopped.subscribe();
        let first = stopped
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|first| first.clone());
        match first {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// A failed write may have been the store's last: then it says so itself.
    fn note_if_stopped<E>(&self, error: &WriteError<E>) {
        let (WriteError::Commit(CommitError::Store(error)) | WriteError::Read(ReadError::Store(error))) = error else {
            return;
        };
        if matches!(self.store.get(b""), Err(StoreError::Stopped { .. })) {
            self.stopped.send_if_modified(|first| {
                let is_first = first.is_none();
                first.get_or_insert_with(|| error.clone());
                is_first
            });
        }
    }
}

// === impl WeakRegistry ===

impl WeakRegistry {
    /// The registry, while its store is open.
    pub(crate) fn upgrade(&self) -> Option<Registry> {
        Some(Registry {
            store: self.store.upgrade()?,
            index: self.index.clone(),
            revisions: self.revisions.clone(),
            bundles: self.bundles.clone(),
            wakes: self.wakes.clone(),
            stopped: self.stopped.clone(),
            is_lost: self.is_lost.clone(),
            commits: self.commits.clone(),
        })
    }
}

// === impl Follower ===

impl Follower {
    fn spawn(registry: &Registry, watch: Watch, news: News) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, index, store) = (
            Arc::clone(&stop),
            Arc::clone(&registry.index),
            Arc::clone(&registry.store),
        );
        let is_lost = Arc::clone(&registry.is_lost);
        let thread = std::thread::spawn(move || {
            if let Err(error) = follow(&*store, watch, &index, &news, &is_lost, &stopping) {
                tracing::error!(%error, "the CA no longer follows its store");
            }
            let wakes = news.wakes.clone();
            drop(news); // so that those who are woken see that there will be none
            wakes.wake(&Concerned::everyone());
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Ends it, and waits for that.
    pub(crate) fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was reported when it happened
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn follow(
    store: &dyn Store,
    mut watch: Watch,
    index: &RwLock<Index>,
    news: &News,
    is_lost: &AtomicBool,
    stopping: &AtomicBool,
) -> Result<(), FollowError> {
    let mut away_since = None;
    while !stopping.load(Ordering::Relaxed) {
        away_since = store.away().map(|_| away_since.unwrap_or_else(clock::moment));
        let now_lost = away_since.is_some_and(|since: Instant| since.elapsed() >= LOST_AFTER);
        if is_lost.swap(now_lost, Ordering::AcqRel) != now_lost && now_lost {
            news.wakes.wake(&Concerned::everyone());
        }
        let concerned = match watch.next(TICK) {
            Ok(None) => continue,
            Ok(Some(change)) => index.write().unwrap_or_else(PoisonError::into_inner).apply(&change)?,
            Err(WatchError::Compacted { .. }) => match store.snapshot() {
                Ok(snapshot) => {
                    let fresh = Index::new(&snapshot)?;
                    watch = store.watch(fresh.revision())?;
                    *index.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                    Concerned::everyone()
                }
                Err(StoreError::Away { .. }) => {
                    std::thread::sleep(TICK);
                    continue;
                }
                Err(error) => return Err(error.into()),
            },
            // What is known is served on; the same change is asked for until the store is back.
            Err(WatchError::Store(StoreError::Away { .. })) => {
                std::thread::sleep(TICK);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        news.tell(&index.read().unwrap_or_else(PoisonError::into_inner), &concerned);
    }
    Ok(())
}

// === impl News ===

impl News {
    fn tell(&self, index: &Index, concerned: &Concerned) {
        // The bundle first: whoever waits for a revision finds what came with it.
        if let Some(bundle) = index.authority.bundle() {
            self.bundles.send_if_modified(|current| {
                let is_new = current != bundle;
                if is_new {
                    *current = Arc::clone(bundle);
                }
                is_new
            });
        }
        self.revisions.send_replace(index.revision());
        self.wakes.wake(concerned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::agent::{Denied, Issued};
    use crate::agents::writes::{AgentError, Ban, Evict, Renew};
    use crate::authority::writes::{Found, Trusting};
    use crate::authority::x509::Authority;
    use crate::entries::entry::tests::{parse, sample};
    use crate::entries::may::May;
    use crate::entries::writes::{CreateEntries, Created, DeleteEntries, Fate};
    use crate::issuance::{MintError, Minted, SubjectKey};
    use crate::issuer::{Issuer, Lives};
    use crate::tokens::token::{JoinRefused, Token, TokenText, digest_of};
    use crate::tokens::writes::{CreateToken, Join, TokenError};
    use crate::write::View;
    use hoplite_identity::{Entry, EntryId};
    use hoplite_identity::{Leaf, SpiffeId, TrustDomain};
    use hoplite_store::{MemoryStore, SledStore};
    use std::time::{SystemTime, UNIX_EPOCH};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn agent(node: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/{node}")).unwrap()
    }

    const DAY: Duration = Duration::from_secs(86400);

    fn authority() -> Authority {
        Authority::ephemeral(&TrustDomain::parse("prod.example").unwrap(), now(), DAY)
    }

    /// A registry over a store in which an authority is founded.
    fn open(store: Arc<dyn Store>) -> (Registry, Follower) {
        let found = Found::itself(
            TrustDomain::parse("prod.example").unwrap(),
            authority().certificate().clone(),
            now() + DAY,
            now(),
        );
        write::commit(&*store, &found).unwrap();
        Registry::open(store).unwrap()
    }

    fn memory() -> (Registry, Follower) {
        open(Arc::new(MemoryStore::new()))
    }

    /// Mints for a key of its own each time; what is minted does not matter here.
    fn minter() -> impl Fn(&SpiffeId) -> Result<Minted, MintError> + Clone + Send + 'static {
        let issuer = {
            let minute = Duration::from_secs(60);
            let lives = Lives {
                agent: minute,
                operator: minute,
                x509: minute,
                jwt: Duration::from_secs(300),
                reattest_within: minute,
                template_names_per_node: 1000,
            };
            Issuer::new(authority(), lives)
        };
        let key = SubjectKey::of_pair(&rcgen::KeyPair::generate().unwrap());
        move |id| issuer.agent(id, &key, now())
    }

    async fn create_token(
        registry: &Registry,
        agent_id: &SpiffeId,
        expires_at: u64,
        now: SystemTime,
    ) -> Result<String, WriteError<TokenError>> {
        let text = TokenText::generate().unwrap().reveal();
        let write = CreateToken {
            digest: digest_of(&text),
            agent_id: agent_id.clone(),
            grants: std::collections::BTreeSet::new(),
            expires_at,
            expired: registry.index().tokens.expired(now),
        };
        registry.write(write).await?;
        Ok(text)
    }

    fn join<F>(token: &str, key: &str, mint: F) -> Join<F> {
        Join {
            digest: digest_of(token),
            key: key.to_owned(),
            now: now(),
            mint,
        }
    }

    async fn a_hundred_keys_with_one_token(store: Arc<dyn Store>) {
        let (registry, follower) = open(store);
        let token = create_token(&registry, &agent("n1"), u64::MAX, now()).await.unwrap();
        let mint = minter();
        let joins: Vec<_> = (0..100)
            .map(|n| {
                let (registry, token, mint) = (registry.clone(), token.clone(), mint.clone());
                tokio::spawn(async move { registry.write(join(&token, &format!("key {n}"), mint)).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (n, joined) in joins.into_iter().enumerate() {
            match joined.await.unwrap() {
                Ok(_) => winners.push(n),
                Err(error) => assert!(
                    matches!(error, WriteError::Refused(TokenError::Refused(JoinRefused::OtherKey))),
                    "{error}"
                ),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let key = format!("key {}", winners[0]);
        assert_eq!(registry.index().agents.get(&agent("n1")).unwrap().joined_key, key);
        registry
            .write(join(&token, &key, mint))
            .await
            .expect("the same key may try again");
        follower.stop();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_key_wins_a_token_in_memory() {
        a_hundred_keys_with_one_token(Arc::new(MemoryStore::new())).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_key_wins_a_token_in_sled() {
        let dir = tempfile::tempdir().unwrap();
        a_hundred_keys_with_one_token(Arc::new(SledStore::open(dir.path().join("store")).unwrap())).await;
    }

    /// A hundred callers, half of them at each of two CAs over one database.
    #[tokio::test(flavor = "multi_thread")]
    async fn one_key_wins_a_token_at_two_cas() {
        if !hoplite_postgres::testing::possible("one_key_wins_a_token_at_two_cas") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let server = hoplite_postgres::testing::Server::start(dir.path());
        let settings = server.settings();
        let store = || Arc::new(hoplite_postgres::PostgresStore::open(&settings).unwrap());
        let ((one, one_follows), other) = (open(store()), Registry::open(store()));
        let (other, other_follows) = other.unwrap();
        let token = create_token(&one, &agent("n1"), u64::MAX, now()).await.unwrap();
        let mint = minter();
        let joins: Vec<_> = (0..100)
            .map(|n| {
                let registry = if n % 2 == 0 { one.clone() } else { other.clone() };
                let (token, mint) = (token.clone(), mint.clone());
                tokio::spawn(async move { registry.write(join(&token, &format!("key {n}"), mint)).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (n, joined) in joins.into_iter().enumerate() {
            match joined.await.unwrap() {
                Ok(_) => winners.push(n),
                Err(WriteError::Refused(TokenError::Refused(JoinRefused::OtherKey))) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let key = format!("key {}", winners[0]);
        for registry in [&one, &other] {
            let mut revisions = registry.revisions();
            let has_it = |_: &u64| registry.index().agents.get(&agent("n1")).is_some();
            revisions.wait_for(has_it).await.unwrap();
            assert_eq!(registry.index().agents.get(&agent("n1")).unwrap().joined_key, key);
        }
        one_follows.stop();
        other_follows.stop();
    }

    #[tokio::test]
    async fn an_evicted_agent_cannot_come_back_by_its_old_token() {
        let (registry, follower) = memory();
        let (mint, id) = (minter(), agent("n1"));
        let token = create_token(&registry, &id, u64::MAX, now()).await.unwrap();
        registry.write(join(&token, "a", mint.clone())).await.unwrap();
        registry.write(Evict { id: id.clone() }).await.unwrap();
        assert!(registry.index().agents.get(&id).is_none());
        let error = registry.write(join(&token, "a", mint.clone())).await.unwrap_err();
        let unknown = WriteError::Refused(TokenError::Refused(JoinRefused::Unknown));
        assert_eq!(error.to_string(), unknown.to_string());
        let again = registry.write(Evict { id: id.clone() }).await;
        assert!(matches!(again, Err(WriteError::Refused(AgentError::NoSuchAgent(_)))));

        let token = create_token(&registry, &id, u64::MAX, now()).await.unwrap();
        registry.write(join(&token, "b", mint)).await.unwrap();
        registry.write(Ban { id: id.clone() }).await.unwrap();
        assert!(registry.index().agents.get(&id).unwrap().banned);
        assert!(matches!(
            create_token(&registry, &id, u64::MAX, now()).await,
            Err(WriteError::Refused(TokenError::Banned(_)))
        ));
        follower.stop();
    }

    #[tokio::test]
    async fn a_renewal_that_was_overtaken_by_another_join_or_a_ban_counts_for_nothing() {
        let (registry, follower) = memory();
        let (mint, id) = (minter(), agent("n1"));
        let joined = async |key: &str| {
            let token = create_token(&registry, &id, u64::MAX, now()).await.unwrap();
            registry.write(join(&token, key, mint.clone())).await.unwrap().leaf
        };
        let renewed = async |shown: &Leaf| {
            let renew = Renew {
                id: id.clone(),
                shown: shown.serial().to_owned(),
                issued: Issued::from(&mint(&id).unwrap().leaf),
            };
            registry.write(renew).await
        };
        let old = joined("a").await;
        renewed(&old).await.unwrap();
        let new = joined("b").await;
        let error = renewed(&old).await.unwrap_err();
        assert!(
            matches!(error, WriteError::Refused(AgentError::Denied(Denied::Superseded))),
            "{error}"
        );
        registry.write(Ban { id: id.clone() }).await.unwrap();
        let error = renewed(&new).await.unwrap_err();
        assert!(
            matches!(error, WriteError::Refused(AgentError::Denied(Denied::Banned(_)))),
            "{error}"
        );
        follower.stop();
    }

    /// Whichever of them comes first, afterwards no token of the banned agent is there, and the agent is banned.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_ban_that_races_new_tokens_and_renewals_leaves_neither() {
        for round in 0..20 {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let (registry, follower) = open(Arc::clone(&store));
            let (mint, id) = (minter(), agent("n1"));
            let token = create_token(&registry, &id, u64::MAX, now()).await.unwrap();
            let leaf = registry.write(join(&token, "a", mint.clone())).await.unwrap().leaf;
            let tokens: Vec<_> = (0..8)
                .map(|_| {
                    let (registry, id) = (registry.clone(), id.clone());
                    tokio::spawn(async move { create_token(&registry, &id, u64::MAX, now()).await.is_ok() })
                })
                .collect();
            let renew = Renew {
                id: id.clone(),
                shown: leaf.serial().to_owned(),
                issued: Issued::from(&mint(&id).unwrap().leaf),
            };
            let renewing = {
                let registry = registry.clone();
                tokio::spawn(async move { registry.write(renew).await.is_ok() })
            };
            registry.write(Ban { id: id.clone() }).await.unwrap();
            for token in tokens {
                token.await.unwrap();
            }
            renewing.await.unwrap();
            assert!(registry.index().agents.get(&id).unwrap().banned, "round {round}");
            let left = View::new(&*store).passing::<Token>().unwrap();
            assert!(left.is_empty(), "round {round}: {left:?}");
            follower.stop();
        }
    }

    #[tokio::test]
    async fn another_authority_is_told_of() {
        let (registry, follower) = memory();
        let mut bundles = registry.bundles();
        assert_eq!(bundles.borrow_and_update().sequence(), 1);
        let certificate = authority().certificate().clone();
        assert_eq!(registry.write(Trusting::old(certificate, now())).await.unwrap(), 2);
        // Who sees the revision sees the bundle.
        assert!(bundles.has_changed().unwrap());
        assert_eq!(bundles.borrow_and_update().authorities().len(), 2);
        create_token(&registry, &agent("n1"), u64::MAX, now()).await.unwrap();
        assert!(!bundles.has_changed().unwrap());
        follower.stop();
    }

    #[tokio::test]
    async fn no_token_is_stored() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (registry, follower) = open(Arc::clone(&store));
        let expires_at = record::unix_seconds(now()) + 1;
        let token = create_token(&registry, &agent("n1"), expires_at, now()).await.unwrap();
        for (key, versioned) in store.snapshot().unwrap().entries {
            for bytes in [&key, &versioned.value] {
                assert!(!String::from_utf8_lossy(bytes).contains(&token));
            }
        }
        let later = now() + Duration::from_secs(1);
        create_token(&registry, &agent("n2"), u64::MAX, later).await.unwrap();
        let tokens = View::new(&*store).passing::<Token>().unwrap();
        assert_eq!(tokens.len(), 1, "the expired one is gone");
        follower.stop();
    }

    #[tokio::test]
    async fn entries_are_unique_and_answered_one_by_one() {
        let (registry, follower) = memory();
        let (a, b) = (parse(sample("/a", "n1")).unwrap(), parse(sample("/b", "n1")).unwrap());
        let other_hint = Entry {
            hint: "h".into(),
            ..a.clone()
        };
        let id = |text: &str| EntryId::parse(text).unwrap();
        let mut ids = 0..;
        let mut create = async |entries: &[&Entry]| {
            let with_id = |entry: &&Entry| (id(&format!("id{}", ids.next().unwrap())), Entry::clone(entry));
            let entries = entries.iter().map(with_id).collect();
            registry.write_at(CreateEntries { entries }).await.unwrap()
        };
        let (first, revision) = create(&[&a, &b, &a, &other_hint]).await;
        let created = |id: &str, entry: &Entry, revision: Option<Revision>, fate: Fate| Created {
            id: EntryId::parse(id).unwrap(),
            entry: entry.clone(),
            revision,
            fate,
        };
        let expected = [
            created("id0", &a, None, Fate::New),
            created("id1", &b, None, Fate::New),
            created("id0", &a, None, Fate::Existed),
            created("id0", &a, None, Fate::Differs(a.differences(&other_hint))),
        ];
        assert_eq!(first, expected);
        let (again, nothing) = create(&[&a]).await;
        assert_eq!(again, [created("id0", &a, Some(revision), Fate::Existed)]);
        assert_eq!(nothing, 0);
        let ids = ["id0", "no-such", "id0"].map(id).to_vec();
        assert_eq!(
            registry
                .write(DeleteEntries {
                    ids,
                    may: May::anything()
                })
                .await
                .unwrap(),
            [true, false, true]
        );
        assert!(registry.index().entries.get("id0").is_none());
        assert_eq!(create(&[&a]).await.0[0].fate, Fate::New);
        follower.stop();
    }
}
