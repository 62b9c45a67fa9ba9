//! What is registered: decisions go to the store, answers come from memory.
//!
//! Writers read the store, decide, and commit on condition that nothing they read has changed. One thread follows the
//! store and keeps the [`Index`]; a write returns once the index has it, so whoever wrote reads what it wrote.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hoplite_identity::{SpiffeId, TrustDomain};
use hoplite_store::{Batch, CommitError, Condition, Revision, Store, StoreError, Versioned, Watch, WatchError};
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tonic::Status;

use crate::agents::agent::{Agent, Denied, Issued};
use crate::entries::entry::{Entry, EntryId};
use crate::index::{AGENTS, ENTRIES, Index};
use crate::issuance::{MintError, Minted};
use crate::policy::published::PolicyError;
use crate::record::{self, BadRecord};
use crate::tokens::token::{JoinRefused, Token, TokenText, digest_of};

/// Where tokens lie in the store: this and the token's digest.
const TOKENS: &str = "token/";
/// What makes an entry unique: this and the digest of its subject, with the id as value.
const SUBJECTS: &str = "entry-subject/";

/// A write that lost against others this often gives up: somebody always wins, so this needs a crowd.
const ATTEMPTS_MAX: usize = 128;

/// How often the follower looks whether it should stop.
const TICK: Duration = Duration::from_millis(50);

/// The registry of one trust domain. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Registry {
    store: Arc<dyn Store>,
    index: Arc<RwLock<Index>>,
    revisions: watch::Receiver<Revision>,
}

/// The thread that follows the store. Ends when it is dropped.
pub(crate) struct Follower {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Created {
    /// It is new.
    New {
        id: EntryId,
        entry: Entry,
        revision: Revision,
    },
    /// It was there, the same.
    Existed {
        id: EntryId,
        entry: Entry,
        revision: Revision,
    },
    /// Its SPIFFE ID, parent and selectors are taken by an entry that differs in the rest.
    Differs {
        id: EntryId,
        entry: Entry,
        revision: Revision,
    },
}

/// Why the registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Commit(CommitError),
    #[error(transparent)]
    Record(#[from] BadRecord),
    #[error("too many writes at the same time; try again")]
    Contention,
    #[error("the CA no longer follows its store; restart it")]
    NotFollowing,
    #[error("the system gives no random numbers")]
    NoEntropy,
    #[error("`{0}` is not a known agent; `hoplite agent list` shows those that joined")]
    NoSuchAgent(SpiffeId),
    #[error("`{0}` is banned; evict it before it may join anew")]
    Banned(SpiffeId),
    #[error(transparent)]
    Refused(#[from] JoinRefused),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Mint(#[from] MintError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// What a write decided: what to commit (nothing, perhaps) and what to answer.
pub(crate) struct Decision<T> {
    pub(crate) batch: Batch,
    pub(crate) answer: T,
}

// === impl Registry ===

impl Registry {
    /// Reads everything, and follows from there.
    pub(crate) fn open(store: Arc<dyn Store>) -> Result<(Self, Follower), RegistryError> {
        let index = Index::new(store.snapshot()?)?;
        let watch = store.watch(index.revision()).map_err(not_following)?;
        let (sender, revisions) = watch::channel(index.revision());
        let index = Arc::new(RwLock::new(index));
        let registry = Self {
            store,
            index,
            revisions,
        };
        Ok((registry.clone(), Follower::spawn(&registry, watch, sender)))
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

    /// A new join token. Forgets those that have expired.
    pub(crate) async fn create_token(
        &self,
        agent_id: SpiffeId,
        expires_at: u64,
        now: SystemTime,
    ) -> Result<TokenText, RegistryError> {
        let text = TokenText::generate().ok_or(RegistryError::NoEntropy)?;
        let key = format!("{TOKENS}{}", digest_of(&text.reveal()));
        self.write(move |store| {
            if read::<Agent>(store, &agent_key(&agent_id))?.is_some_and(|(agent, _)| agent.banned) {
                return Err(RegistryError::Banned(agent_id.clone()));
            }
            let token = Token::new(agent_id.clone(), expires_at);
            let mut batch = Batch::new().put(key.as_str(), record::encode(key.as_bytes(), &token)?);
            for (key, token) in tokens(store)? {
                if token.is_expired(now) {
                    batch = batch.delete(key);
                }
            }
            Ok(Decision { batch, answer: () })
        })
        .await?;
        Ok(text)
    }

    /// Admits a key by a token, once. `mint` makes the certificate of the agent the token names.
    pub(crate) async fn join(
        &self,
        token: &str,
        key: String,
        now: SystemTime,
        mint: impl Fn(&SpiffeId) -> Result<Minted, MintError> + Send + 'static,
    ) -> Result<Minted, RegistryError> {
        let token_key = format!("{TOKENS}{}", digest_of(token));
        self.write(move |store| {
            let (token, token_at) = read::<Token>(store, &token_key)?.ok_or(JoinRefused::Unknown)?;
            let agent_key = agent_key(&token.agent_id);
            let (agent, agent_at) = match read::<Agent>(store, &agent_key)? {
                Some((agent, revision)) => (Some(agent), Condition::At(revision)),
                None => (None, Condition::Absent),
            };
            let token = token.admit(&key, agent.as_ref(), now)?;
            let minted = mint(&token.agent_id)?;
            let agent = Agent::joined(agent, token.agent_id.clone(), key.clone(), Issued::from(&minted.leaf));
            let batch = Batch::new()
                .require(token_key.as_str(), Condition::At(token_at))
                .require(agent_key.as_str(), agent_at)
                .put(token_key.as_str(), record::encode(token_key.as_bytes(), &token)?)
                .put(agent_key.as_str(), record::encode(agent_key.as_bytes(), &agent)?);
            Ok(Decision { batch, answer: minted })
        })
        .await
    }

    /// Notes a new certificate of an agent, which asked for it with the certificate `shown`. Its standing is decided here
    /// once more: since the call began another key may have joined in its place, or an operator have banned it.
    pub(crate) async fn renewed(&self, id: &SpiffeId, shown: &str, issued: Issued) -> Result<(), RegistryError> {
        let shown = shown.to_owned();
        self.change_agent(id, move |agent| agent.renewed(&shown, issued.clone()))
            .await
    }

    /// Notes that an agent used its newest certificate.
    pub(crate) async fn activate(&self, id: &SpiffeId, serial: &str) -> Result<(), RegistryError> {
        let serial = serial.to_owned();
        self.change_agent(id, move |agent| Ok(agent.activate(&serial))).await
    }

    /// Refuses an agent from now on, and its tokens.
    pub(crate) async fn ban(&self, id: &SpiffeId) -> Result<(), RegistryError> {
        let id = id.clone();
        self.write(move |store| {
            let key = agent_key(&id);
            let (agent, at) = read::<Agent>(store, &key)?.ok_or_else(|| RegistryError::NoSuchAgent(id.clone()))?;
            let agent = agent.banned();
            let batch = Batch::new()
                .require(key.as_str(), Condition::At(at))
                .put(key.as_str(), record::encode(key.as_bytes(), &agent)?);
            Ok(Decision {
                batch: without_tokens(store, batch, &id)?,
                answer: (),
            })
        })
        .await
    }

    /// Forgets an agent, and its tokens: one it joined with would let it in again.
    pub(crate) async fn evict(&self, id: &SpiffeId) -> Result<(), RegistryError> {
        let id = id.clone();
        self.write(move |store| {
            let key = agent_key(&id);
            let (_, at) = read::<Agent>(store, &key)?.ok_or_else(|| RegistryError::NoSuchAgent(id.clone()))?;
            let batch = Batch::new()
                .require(key.as_str(), Condition::At(at))
                .delete(key.as_str());
            Ok(Decision {
                batch: without_tokens(store, batch, &id)?,
                answer: (),
            })
        })
        .await
    }

    /// Registers entries, all in one commit, and answers for each in order.
    pub(crate) async fn create_entries(&self, entries: Vec<Entry>) -> Result<Vec<Created>, RegistryError> {
        let mut with_ids = Vec::with_capacity(entries.len());
        for entry in entries {
            with_ids.push((new_id()?, entry));
        }
        let (mut answers, revision) = self
            .write_at(move |store| {
                let mut batch = Batch::new();
                let mut answers = Vec::with_capacity(with_ids.len());
                // A batch may say the same twice; the first is then what the second finds.
                let mut seen: BTreeMap<String, (EntryId, Entry, Revision)> = BTreeMap::new();
                for (id, entry) in &with_ids {
                    let subject = format!("{SUBJECTS}{}", entry.subject());
                    let found = match seen.get(&subject) {
                        Some(found) => Some(found.clone()),
                        None => find(store, &subject)?,
                    };
                    let answer = match found {
                        None => {
                            let key = format!("{ENTRIES}{id}");
                            let value = record::encode(key.as_bytes(), entry)?;
                            batch = batch
                                .require(subject.as_str(), Condition::Absent)
                                .put(subject.as_str(), id.as_str())
                                .put(key, value);
                            seen.insert(subject, (id.clone(), entry.clone(), UNCOMMITTED));
                            Created::New {
                                id: id.clone(),
                                entry: entry.clone(),
                                revision: UNCOMMITTED,
                            }
                        }
                        Some((id, found, revision)) if found.is_same(entry) => Created::Existed {
                            id,
                            entry: found,
                            revision,
                        },
                        Some((id, found, revision)) => Created::Differs {
                            id,
                            entry: found,
                            revision,
                        },
                    };
                    answers.push(answer);
                }
                Ok(Decision { batch, answer: answers })
            })
            .await?;
        for answer in &mut answers {
            answer.committed(revision);
        }
        Ok(answers)
    }

    /// Deletes entries, all in one commit. For each in order: whether it was there.
    pub(crate) async fn delete_entries(&self, ids: Vec<EntryId>) -> Result<Vec<bool>, RegistryError> {
        self.write(move |store| {
            let mut batch = Batch::new();
            let mut answers = Vec::with_capacity(ids.len());
            for id in &ids {
                let key = format!("{ENTRIES}{id}");
                let found = read::<Entry>(store, &key)?;
                answers.push(found.is_some());
                if let Some((entry, at)) = found {
                    batch = batch
                        .require(key.as_str(), Condition::At(at))
                        .delete(format!("{SUBJECTS}{}", entry.subject()))
                        .delete(key);
                }
            }
            Ok(Decision { batch, answer: answers })
        })
        .await
    }

    async fn change_agent(
        &self,
        id: &SpiffeId,
        change: impl Fn(Agent) -> Result<Agent, Denied> + Send + 'static,
    ) -> Result<(), RegistryError> {
        let id = id.clone();
        self.write(move |store| {
            let key = agent_key(&id);
            let (agent, at) = read::<Agent>(store, &key)?.ok_or_else(|| RegistryError::NoSuchAgent(id.clone()))?;
            let changed = change(agent.clone())?;
            let batch = match changed == agent {
                true => Batch::new(),
                false => Batch::new()
                    .require(key.as_str(), Condition::At(at))
                    .put(key.as_str(), record::encode(key.as_bytes(), &changed)?),
            };
            Ok(Decision { batch, answer: () })
        })
        .await
    }

    /// Reads, decides, commits on condition; again from the start when somebody else was faster.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        decide: impl Fn(&dyn Store) -> Result<Decision<T>, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        Ok(self.write_at(decide).await?.0)
    }

    /// Reads, decides, commits on condition; again from the start when somebody else was faster. Returns when the index
    /// has it, with the revision (0 when there was nothing to write).
    async fn write_at<T: Send + 'static>(
        &self,
        decide: impl Fn(&dyn Store) -> Result<Decision<T>, RegistryError> + Send + 'static,
    ) -> Result<(T, Revision), RegistryError> {
        let store = Arc::clone(&self.store);
        let attempts = move || {
            for _ in 0..ATTEMPTS_MAX {
                let Decision { batch, answer } = decide(&*store)?;
                if batch.is_empty() {
                    return Ok((answer, 0));
                }
                match store.commit(batch) {
                    Ok(revision) => return Ok((answer, revision)),
                    Err(CommitError::Precondition { .. }) => {}
                    Err(error) => return Err(RegistryError::Commit(error)),
                }
            }
            Err(RegistryError::Contention)
        };
        // A failed join here is a panic of ours in there, or the runtime's end.
        let done = tokio::task::spawn_blocking(attempts)
            .await
            .map_err(|_| RegistryError::NotFollowing)?;
        let (answer, revision) = done?;
        let mut revisions = self.revisions();
        revisions
            .wait_for(|reached| *reached >= revision)
            .await
            .map_err(|_| RegistryError::NotFollowing)?;
        Ok((answer, revision))
    }
}

/// Stands for the revision of the commit that is being put together.
const UNCOMMITTED: Revision = 0;

/// The SPIFFE ID of the agent on a node, as a key of the store.
fn agent_key(id: &SpiffeId) -> String {
    format!("{AGENTS}{id}")
}

pub(crate) fn read<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<(T, Revision)>, RegistryError> {
    let Some(Versioned { value, revision }) = store.get(key.as_bytes())? else {
        return Ok(None);
    };
    Ok(Some((record::decode(key.as_bytes(), &value)?, revision)))
}

/// The entry that has a subject.
fn find(store: &dyn Store, subject: &str) -> Result<Option<(EntryId, Entry, Revision)>, RegistryError> {
    let Some(Versioned { value, .. }) = store.get(subject.as_bytes())? else {
        return Ok(None);
    };
    let id = String::from_utf8_lossy(&value).into_owned();
    // Both are written and deleted in one commit; between two reads it may have been deleted.
    Ok(read::<Entry>(store, &format!("{ENTRIES}{id}"))?.map(|(entry, revision)| (id, entry, revision)))
}

fn tokens(store: &dyn Store) -> Result<Vec<(Vec<u8>, Token)>, RegistryError> {
    let mut tokens = Vec::new();
    for (key, versioned) in store.range(TOKENS.as_bytes())?.entries {
        let token = record::decode(&key, &versioned.value)?;
        tokens.push((key, token));
    }
    Ok(tokens)
}

fn without_tokens(store: &dyn Store, mut batch: Batch, agent: &SpiffeId) -> Result<Batch, RegistryError> {
    for (key, token) in tokens(store)? {
        if token.agent_id == *agent {
            batch = batch.delete(key);
        }
    }
    Ok(batch)
}

fn new_id() -> Result<EntryId, RegistryError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| RegistryError::NoEntropy)?;
    Ok(HEXLOWER.encode(&bytes))
}

fn not_following(error: WatchError) -> RegistryError {
    tracing::error!(%error, "cannot follow the store");
    RegistryError::NotFollowing
}

/// A name of the trust domain that [`crate::entries::entry::is_agent`] accepts, from an operator's text.
pub(crate) fn parse_agent_id(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, Status> {
    let id = SpiffeId::parse(text).map_err(|e| Status::invalid_argument(e.to_string()))?;
    if id.trust_domain() != trust_domain || !crate::entries::entry::is_agent(&id) {
        let text = format!("`{id}` is not an agent of `{trust_domain}`; `hoplite agent list` shows those that joined");
        return Err(Status::invalid_argument(text));
    }
    Ok(id)
}

// === impl Created ===

impl Created {
    fn committed(&mut self, at: Revision) {
        let (Self::New { revision, .. } | Self::Existed { revision, .. } | Self::Differs { revision, .. }) = self;
        if *revision == UNCOMMITTED {
            *revision = at;
        }
    }
}

// === impl Follower ===

impl Follower {
    fn spawn(registry: &Registry, watch: Watch, sender: watch::Sender<Revision>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, index, store) = (
            Arc::clone(&stop),
            Arc::clone(&registry.index),
            Arc::clone(&registry.store),
        );
        let thread = std::thread::spawn(move || {
            if let Err(error) = follow(&*store, watch, &index, &sender, &stopping) {
                tracing::error!(%error, "the CA no longer follows its store");
            }
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
    sender: &watch::Sender<Revision>,
    stopping: &AtomicBool,
) -> Result<(), RegistryError> {
    while !stopping.load(Ordering::Relaxed) {
        match watch.next(TICK) {
            Ok(None) => continue,
            Ok(Some(change)) => index.write().unwrap_or_else(PoisonError::into_inner).apply(&change)?,
            Err(WatchError::Compacted { .. }) => {
                let fresh = Index::new(store.snapshot()?)?;
                watch = store.watch(fresh.revision()).map_err(not_following)?;
                *index.write().unwrap_or_else(PoisonError::into_inner) = fresh;
            }
            Err(error) => return Err(not_following(error)),
        }
        sender.send_replace(index.read().unwrap_or_else(PoisonError::into_inner).revision());
    }
    Ok(())
}

// === impl RegistryError ===

impl From<RegistryError> for Status {
    /// By blame. What is ours is logged here and not told.
    fn from(error: RegistryError) -> Self {
        let text = error.to_string();
        match error {
            RegistryError::Refused(_) => Self::permission_denied(text),
            RegistryError::Denied(denied) => denied.into(),
            RegistryError::NoSuchAgent(_) => Self::not_found(text),
            RegistryError::Banned(_) => Self::failed_precondition(text),
            RegistryError::Commit(CommitError::TooLarge(_)) => {
                Self::invalid_argument("too much for one call; split it")
            }
            RegistryError::Contention | RegistryError::Policy(PolicyError::Outdated { .. }) => Self::aborted(text),
            RegistryError::Policy(PolicyError::NoSuchGrant(_)) => Self::not_found(text),
            RegistryError::Policy(_) => Self::failed_precondition(text),
            _ => {
                tracing::error!(error = text, "the CA failed");
                Self::unavailable("the CA cannot do this now; its log says why")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::x509::{Authority, Serial};
    use crate::entries::entry::tests::{parse, sample};
    use crate::issuance::{SubjectKey, Template, mint};
    use hoplite_identity::Leaf;
    use hoplite_store::{MemoryStore, SledStore};
    use std::time::UNIX_EPOCH;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn agent(node: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/{node}")).unwrap()
    }

    /// Mints for a key of its own each time; what is minted does not matter here.
    fn minter() -> impl Fn(&SpiffeId) -> Result<Minted, MintError> + Clone + Send + 'static {
        let domain = TrustDomain::parse("prod.example").unwrap();
        let authority = Arc::new(Authority::ephemeral(&domain, now(), Duration::from_secs(86400)));
        let key = SubjectKey::of_pair(&rcgen::KeyPair::generate().unwrap());
        move |id| {
            let template = Template {
                spiffe_id: id,
                dns_names: &[],
                ttl: Duration::from_secs(60),
            };
            mint(&authority, &template, &key, Serial::random().unwrap(), now())
        }
    }

    async fn a_hundred_keys_with_one_token(store: Arc<dyn Store>) {
        let (registry, follower) = Registry::open(store).unwrap();
        let token = registry
            .create_token(agent("n1"), u64::MAX, now())
            .await
            .unwrap()
            .reveal();
        let mint = minter();
        let joins: Vec<_> = (0..100)
            .map(|n| {
                let (registry, token, mint) = (registry.clone(), token.clone(), mint.clone());
                tokio::spawn(async move { registry.join(&token, format!("key {n}"), now(), mint).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (n, join) in joins.into_iter().enumerate() {
            match join.await.unwrap() {
                Ok(_) => winners.push(n),
                Err(error) => assert!(
                    matches!(error, RegistryError::Refused(JoinRefused::OtherKey)),
                    "{error}"
                ),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let key = format!("key {}", winners[0]);
        assert_eq!(registry.index().agent(&agent("n1")).unwrap().joined_key, key);
        registry
            .join(&token, key, now(), mint)
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

    #[tokio::test]
    async fn an_evicted_agent_cannot_come_back_by_its_old_token() {
        let (registry, follower) = Registry::open(Arc::new(MemoryStore::new())).unwrap();
        let (mint, id) = (minter(), agent("n1"));
        let token = registry
            .create_token(id.clone(), u64::MAX, now())
            .await
            .unwrap()
            .reveal();
        registry.join(&token, "a".into(), now(), mint.clone()).await.unwrap();
        registry.evict(&id).await.unwrap();
        assert!(registry.index().agent(&id).is_none());
        let error = registry
            .join(&token, "a".into(), now(), mint.clone())
            .await
            .unwrap_err();
        assert!(matches!(error, RegistryError::Refused(JoinRefused::Unknown)), "{error}");
        assert!(matches!(registry.evict(&id).await, Err(RegistryError::NoSuchAgent(_))));

        let token = registry
            .create_token(id.clone(), u64::MAX, now())
            .await
            .unwrap()
            .reveal();
        registry.join(&token, "b".into(), now(), mint).await.unwrap();
        registry.ban(&id).await.unwrap();
        assert!(registry.index().agent(&id).unwrap().banned);
        assert!(matches!(
            registry.create_token(id, u64::MAX, now()).await,
            Err(RegistryError::Banned(_))
        ));
        follower.stop();
    }

    #[tokio::test]
    async fn a_renewal_that_was_overtaken_by_another_join_or_a_ban_counts_for_nothing() {
        let (registry, follower) = Registry::open(Arc::new(MemoryStore::new())).unwrap();
        let (mint, id) = (minter(), agent("n1"));
        let join = async |key: &str| {
            let token = registry.create_token(id.clone(), u64::MAX, now()).await.unwrap();
            registry
                .join(&token.reveal(), key.into(), now(), mint.clone())
                .await
                .unwrap()
                .leaf
        };
        let renewed = async |shown: &Leaf| {
            registry
                .renewed(&id, shown.serial(), Issued::from(&mint(&id).unwrap().leaf))
                .await
        };
        let old = join("a").await;
        renewed(&old).await.unwrap();
        let new = join("b").await;
        let error = renewed(&old).await.unwrap_err();
        assert!(matches!(error, RegistryError::Denied(Denied::Superseded)), "{error}");
        registry.ban(&id).await.unwrap();
        let error = renewed(&new).await.unwrap_err();
        assert!(matches!(error, RegistryError::Denied(Denied::Banned(_))), "{error}");
        follower.stop();
    }

    #[tokio::test]
    async fn no_token_is_stored() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (registry, follower) = Registry::open(Arc::clone(&store)).unwrap();
        let token = registry
            .create_token(agent("n1"), record::unix_seconds(now()) + 1, now())
            .await
            .unwrap()
            .reveal();
        for (key, versioned) in store.snapshot().unwrap().entries {
            for bytes in [&key, &versioned.value] {
                assert!(!String::from_utf8_lossy(bytes).contains(&token));
            }
        }
        let later = now() + Duration::from_secs(1);
        registry.create_token(agent("n2"), u64::MAX, later).await.unwrap();
        assert_eq!(tokens(&*store).unwrap().len(), 1, "the expired one is gone");
        follower.stop();
    }

    #[tokio::test]
    async fn entries_are_unique_and_answered_one_by_one() {
        let (registry, follower) = Registry::open(Arc::new(MemoryStore::new())).unwrap();
        let (a, b) = (parse(sample("/a", "n1")).unwrap(), parse(sample("/b", "n1")).unwrap());
        let other_hint = Entry {
            hint: "h".into(),
            ..a.clone()
        };
        let created = registry
            .create_entries(vec![a.clone(), b.clone(), a.clone(), other_hint])
            .await
            .unwrap();
        let [Created::New { id, revision, .. }, Created::New { .. }, third, fourth] = &created[..] else {
            panic!("{created:?}")
        };
        assert_eq!(
            *third,
            Created::Existed {
                id: id.clone(),
                entry: a.clone(),
                revision: *revision
            }
        );
        assert_eq!(
            *fourth,
            Created::Differs {
                id: id.clone(),
                entry: a.clone(),
                revision: *revision
            }
        );
        let again = registry.create_entries(vec![a.clone()]).await.unwrap();
        assert_eq!(
            again,
            [Created::Existed {
                id: id.clone(),
                entry: a.clone(),
                revision: *revision
            }]
        );
        let gone = registry
            .delete_entries(vec![id.clone(), "no such".into(), id.clone()])
            .await
            .unwrap();
        assert_eq!(gone, [true, false, true]);
        assert!(registry.index().entry(id).is_none());
        assert!(matches!(
            &registry.create_entries(vec![a]).await.unwrap()[..],
            [Created::New { .. }]
        ));
        follower.stop();
    }
}
