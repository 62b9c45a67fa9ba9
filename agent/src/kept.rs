//! What the agent keeps on the disk, sealed, so that a restarted one serves while the CA is away: entries, SVIDs with their
//! keys, the trust bundle, and how far the CA was heard.
//!
//! It is written in the background, at most once a second, and costs what changed. What is read back is believed whole or
//! not at all, and every SVID of it is verified by the newest trust bundle before it is handed out.

pub(crate) mod early;
pub(crate) mod key;
pub(crate) mod lock;
pub(crate) mod log;
pub(crate) mod record;
pub(crate) mod restored;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{EntryId, SpiffeId, TrustBundle, X509Svid};
use hoplite_wire::ca;
use tokio::sync::{Notify, watch};

use crate::kept::early::Early;
use crate::kept::key::{KeySource, StorageKey};
use crate::kept::lock::sole_writer;
use crate::kept::log::{Content, Log, Unusable};
use crate::kept::record::{Change, Position, SvidRecord, unix};
use crate::kept::restored::Restored;
use crate::node::epoch::Epoch;
use crate::node::link::Credentials;
use crate::supply::foreign::Foreign;
use crate::supply::named::{NamedEntry, Registered};

/// The bound on how often is written: what changes meanwhile goes together.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// A disk that is full is not tried more often.
const RETRY_EVERY: Duration = Duration::from_secs(10);

/// Keeps what the agent has. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Kept(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    /// None when nothing can be kept; `state` says why.
    key: Option<StorageKey>,
    /// Nobody else writes here while this is open.
    _lock: Option<File>,
    log: Mutex<Option<Log>>,
    pending: Mutex<Pending>,
    wake: Notify,
    state: Mutex<State>,
    reading: watch::Sender<Reading>,
    /// What was said of foreign trust domains last.
    foreign: Mutex<Option<Arc<Foreign>>>,
    restored: watch::Sender<Option<Arc<Restored>>>,
}

/// How far what was kept is read.
#[derive(Debug, Clone, Default)]
enum Reading {
    #[default]
    Unread,
    /// It can be looked at, and is being taken over.
    Early(Arc<Early>),
    /// It is where it belongs, or there was nothing.
    Over,
}

/// What is not on the disk yet: of each entry the last change only.
#[derive(Debug, Default)]
struct Pending {
    /// The CA has dismissed this node: whatever was on its way is dropped, until the CA says anew what is registered.
    dismissed: bool,
    entries: BTreeMap<EntryId, Option<Registered>>,
    svids: BTreeMap<EntryId, NewSvid>,
    position: Option<Position>,
    /// What is held of foreign trust domains, when that changed.
    foreign: Option<Arc<Foreign>>,
}

#[derive(Debug, Clone)]
struct NewSvid {
    entry_revision: u64,
    svid: Arc<X509Svid>,
    renew_at: SystemTime,
}

/// How it stands with what is kept, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Where the key is from: `credential`, `file` or `beside`; empty when nothing is kept.
    pub(crate) key: &'static str,
    /// The same, as a sentence goes on.
    pub(crate) key_text: String,
    /// Why nothing is kept, or why the last change is not.
    pub(crate) failure: Option<String>,
    /// Why what was kept before was not used.
    pub(crate) doubt: Option<String>,
    /// When it was written last.
    pub(crate) written: Option<SystemTime>,
    /// When the CA was heard last before the start, if what was kept then is served.
    pub(crate) restored: Option<SystemTime>,
    /// When the CA was heard last since the start.
    heard: Option<SystemTime>,
    /// Something is not on the disk yet.
    pub(crate) waiting: bool,
}

// === impl Kept ===

impl Kept {
    /// Begins, in the data directory of an agent, with the key that its configuration names. Nothing is read yet. What
    /// stands against keeping anything is no error: identities are served without, and [`say`](Self::say) says why.
    pub(crate) fn open(dir: &Path, key_file: Option<&Path>) -> Self {
        let (mut state, mut key, mut lock) = (State::default(), None, None);
        match sole_writer(dir) {
            Err(error) => state.failure = Some(error.to_string()),
            Ok(held) => {
                lock = Some(held);
                match StorageKey::open(key_file, dir) {
                    Ok(found) => {
                        state.key = found.source().word();
                        state.key_text = found.source().to_string();
                        key = Some(found);
                    }
                    Err(error) => state.failure = Some(error.to_string()),
                }
            }
        }
        Self(Arc::new(Shared {
            dir: dir.to_owned(),
            key,
            _lock: lock,
            log: Mutex::default(),
            pending: Mutex::default(),
            wake: Notify::new(),
            state: Mutex::new(state),
            reading: watch::Sender::new(Reading::Unread),
            foreign: Mutex::default(),
            restored: watch::Sender::new(None),
        }))
    }

    /// Tells the log whether anything is kept. For an agent that starts: one that does not, because another runs here, has
    /// that to say and nothing else.
    pub(crate) fn say(&self) {
        if let Some(reason) = self.state().failure {
            tracing::error!(reason, "no SVID is kept on the disk: a restart needs the CA");
        }
        match self.0.key.as_ref().map(StorageKey::source) {
            None => {}
            Some(key @ KeySource::Beside(_)) => tracing::info!(%key, "SVIDs are kept on the disk, sealed"),
            Some(key) => tracing::info!(notice = true, %key, "SVIDs are kept on the disk, sealed"),
        }
    }

    /// Keeps nothing, had nothing, and has heard from a CA.
    #[cfg(test)]
    pub(crate) fn nothing() -> Self {
        let kept = Self(Arc::new(Shared {
            dir: PathBuf::new(),
            key: None,
            _lock: None,
            log: Mutex::default(),
            pending: Mutex::default(),
            wake: Notify::new(),
            state: Mutex::default(),
            reading: watch::Sender::new(Reading::Unread),
            foreign: Mutex::default(),
            restored: watch::Sender::new(None),
        }));
        kept.lock_state().heard = Some(clock::now());
        kept.0.reading.send_replace(Reading::Over);
        kept.0.restored.send_replace(Some(Arc::default()));
        kept
    }

    /// Reads what was kept of this node, off the threads that serve. `first_bundle` is the digest of the operator's trust
    /// bundle: with another one nothing of before counts. `trust` is given the newest bundle that was seen, before anything
    /// is served, and answers what it is verified by.
    pub(crate) async fn restore(
        &self,
        owner: Option<SpiffeId>,
        first_bundle: String,
        trust: impl FnOnce(ca::Bundle) -> Option<Arc<Credentials>>,
    ) {
        let (kept, trust_domain) = (self.clone(), owner.as_ref().map(|owner| owner.trust_domain().clone()));
        let reading = tokio::task::spawn_blocking(move || kept.read(&owner?, &first_bundle));
        let read = reading.await.ok().flatten().zip(trust_domain);
        let restored = match read {
            Some((content, trust_domain)) => {
                let own = content.position.bundle.clone().and_then(trust);
                let kept = self.clone();
                let taking = tokio::task::spawn_blocking(move || {
                    if let Some(own) = own {
                        let verifier = Arc::clone(&own.verifier);
                        let early = Early::new(&content, trust_domain.clone(), &own.bundle, verifier);
                        kept.0.reading.send_replace(Reading::Early(Arc::new(early)));
                    }
                    Restored::of(content, &trust_domain, clock::now())
                });
                taking.await.unwrap_or_default()
            }
            None => Restored::default(),
        };
        if restored.heard.is_none() {
            self.taken_over();
        }
        self.lock_state().restored = restored.heard;
        if let Some(heard) = restored.heard {
            let silent = clock::now().duration_since(heard).unwrap_or_default();
            tracing::info!(
                notice = true,
                entries = restored.entries.len(),
                svids = restored.lock_svids().len(),
                revision = restored.revision,
                heard_seconds_ago = silent.as_secs(),
                "serving what was kept on the disk, until the CA is heard"
            );
        }
        self.0.restored.send_replace(Some(Arc::new(restored)));
    }

    fn read(&self, owner: &SpiffeId, first_bundle: &str) -> Option<Content> {
        let key = self.0.key.as_ref()?;
        let opened = Log::open(&self.0.dir, key, owner.as_str());
        let (log, content) = match opened {
            Ok(opened) => opened?,
            Err(error) => {
                self.doubt(&error);
                return None;
            }
        };
        if content.position.first_bundle != first_bundle {
            let text = "the configuration's trust bundle is another than when it was written";
            tracing::warn!("what was kept on the disk is not used: {text}");
            self.lock_state().doubt = Some(text.to_owned());
            return None;
        }
        *self.lock_log() = Some(log);
        Some(content)
    }

    fn doubt(&self, error: &Unusable) {
        tracing::error!(%error, directory = %self.0.dir.display(), "what was kept on the disk is not used: the agent starts as without it");
        self.lock_state().doubt = Some(error.to_string());
    }

    /// Returns when what was kept can be looked at, or is over with.
    pub(crate) async fn is_read(&self) {
        let mut reading = self.0.reading.subscribe();
        let is_read = |reading: &Reading| !matches!(reading, Reading::Unread);
        let _ = reading.wait_for(is_read).await;
    }

    /// What was kept, until it is taken over.
    pub(crate) fn early(&self) -> Option<Arc<Early>> {
        match &*self.0.reading.borrow() {
            Reading::Early(early) => Some(Arc::clone(early)),
            Reading::Unread | Reading::Over => None,
        }
    }

    /// What was kept is where it belongs, and need not be looked up here any more.
    pub(crate) fn taken_over(&self) {
        self.0.reading.send_if_modified(|reading| {
            let was_over = matches!(reading, Reading::Over);
            *reading = Reading::Over;
            !was_over
        });
    }

    /// What was kept, once it is read.
    pub(crate) async fn restored(&self) -> Arc<Restored> {
        let mut restored = self.0.restored.subscribe();
        match restored.wait_for(Option::is_some).await {
            Ok(restored) => restored.clone().unwrap_or_default(),
            Err(_) => Arc::default(),
        }
    }

    /// Whether something was read that will be served in a moment.
    pub(crate) fn is_being_taken_over(&self) -> bool {
        let restored = self.0.restored.borrow();
        let had_some = restored.as_ref().is_some_and(|restored| restored.heard.is_some());
        self.early().is_some() || had_some
    }

    /// Changes of what is registered, and how far the CA was heard with them.
    pub(crate) fn registered(
        &self,
        changed: impl IntoIterator<Item = (EntryId, Option<Registered>)>,
        (epoch, revision): (Epoch, u64),
        bundle: Option<&TrustBundle>,
        first_bundle: &str,
    ) {
        self.lock_state().heard = Some(clock::now());
        if self.0.key.is_none() {
            return;
        }
        let mut pending = self.lock_pending();
        pending.dismissed = false;
        for (id, entry) in changed {
            if entry.is_none() {
                pending.svids.remove(&id);
            }
            pending.entries.insert(id, entry);
        }
        pending.position = Some(Position {
            epoch: Some(epoch.into()),
            revision,
            bundle: bundle.map(|bundle| ca::Bundle {
                trust_domain: bundle.trust_domain().to_string(),
                authorities: bundle
                    .authorities()
                    .iter()
                    .map(|authority| authority.to_vec())
                    .collect(),
                sequence: bundle.sequence(),
                tainted: bundle
                    .tainted()
                    .iter()
                    .map(|tainted| tainted.as_bytes().to_vec())
                    .collect(),
                jwks: bundle.jwt().to_jwks(),
                tainted_keys: bundle
                    .tainted_keys()
                    .iter()
                    .map(|key| key.as_bytes().to_vec())
                    .collect(),
                revoked_keys: bundle
                    .revoked_keys()
                    .iter()
                    .map(|key| key.as_bytes().to_vec())
                    .collect(),
            }),
            first_bundle: first_bundle.to_owned(),
            heard: unix(clock::now()),
        });
        drop(pending);
        self.0.wake.notify_one();
    }

    /// What is held of foreign trust domains; the next [`registered`](Self::registered) has it written.
    pub(crate) fn federated(&self, foreign: &Arc<Foreign>) {
        if self.0.key.is_none() {
            return;
        }
        let mut last = self.0.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(foreign) {
            *last = Some(Arc::clone(foreign));
            self.lock_pending().foreign = Some(Arc::clone(foreign));
        }
    }

    /// A new SVID for an entry. Of a template's name the entry is kept beside it: the CA registers the template alone.
    pub(crate) fn minted(&self, entry: &Arc<NamedEntry>, svid: &Arc<X509Svid>, renew_at: SystemTime) {
        if self.0.key.is_none() {
            return;
        }
        let mut pending = self.lock_pending();
        if pending.dismissed {
            return;
        }
        if entry.origin.is_some() {
            let name = Registered::Named(Arc::clone(entry));
            pending.entries.insert(entry.id.clone(), Some(name));
        }
        pending.svids.insert(
            entry.id.clone(),
            NewSvid {
                entry_revision: entry.revision,
                svid: Arc::clone(svid),
                renew_at,
            },
        );
        drop(pending);
        self.0.wake.notify_one();
    }

    /// Names of templates that are wanted no more.
    pub(crate) fn forgotten(&self, names: Vec<EntryId>) {
        if self.0.key.is_none() || names.is_empty() {
            return;
        }
        let mut pending = self.lock_pending();
        if pending.dismissed {
            return;
        }
        for id in names {
            pending.svids.remove(&id);
            pending.entries.insert(id, None);
        }
        drop(pending);
        self.0.wake.notify_one();
    }

    /// Removes all that is kept, and what waits to be: the CA has dismissed this node.
    pub(crate) async fn dismiss(&self) {
        self.taken_over();
        *self.0.foreign.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.lock_pending() = Pending {
            dismissed: true,
            ..Pending::default()
        };
        {
            let mut state = self.lock_state();
            (state.restored, state.heard) = (None, Some(clock::now()));
            (state.written, state.failure) = (None, None);
        }
        let kept = self.clone();
        let removed = tokio::task::spawn_blocking(move || {
            // After whatever is being written.
            let mut log = kept.lock_log();
            *log = None;
            Log::remove(&kept.0.dir)
        });
        match removed.await {
            Ok(Ok(removed)) if removed.is_empty() => {}
            Ok(Ok(_)) => tracing::warn!("what was kept on the disk is removed"),
            Ok(Err(error)) => tracing::error!(%error, "what was kept on the disk is not removed"),
            Err(error) => tracing::error!(%error, "what was kept on the disk is not removed"),
        }
    }

    /// Writes in the background until the agent stops, and once more then.
    pub(crate) async fn run(self, credentials: watch::Receiver<Option<Arc<Credentials>>>, mut shutdown: Shutdown) {
        let mut stopping = false;
        while !stopping {
            tokio::select! {
                () = self.0.wake.notified() => {}
                () = shutdown.wait() => stopping = true,
            }
            let own = credentials.borrow().as_ref().map(|own| own.svid.spiffe_id().clone());
            let Some(owner) = own else { continue };
            let mut wait = WRITE_EVERY;
            if !self.write(owner).await {
                wait = RETRY_EVERY;
                self.0.wake.notify_one();
            }
            if !stopping {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = shutdown.wait() => {}
                }
            }
        }
    }

    /// Whether all that waited is on the disk.
    async fn write(&self, owner: SpiffeId) -> bool {
        let kept = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            // Whatever is written now is over when somebody else has this lock.
            let mut log = kept.lock_log();
            let taken = std::mem::take(&mut *kept.lock_pending());
            kept.lock_pending().dismissed = taken.dismissed;
            if taken.is_empty() {
                return Ok(false);
            }
            let key = kept.0.key.as_ref();
            let append = |log: &mut Option<Log>| {
                let Some(key) = key else { return Ok(()) };
                if log.as_ref().is_none_or(|log| log.owner() != owner.as_str()) {
                    *log = Some(Log::create(&kept.0.dir, key, owner.as_str())?);
                }
                match log {
                    Some(log) => log.append(taken.changes(), key),
                    None => Ok(()),
                }
            };
            match append(&mut log) {
                Ok(()) => Ok(true),
                Err(error) => {
                    kept.lock_pending().put_back(taken);
                    Err(error.to_string())
                }
            }
        });
        let written = written.await.unwrap_or_else(|error| Err(error.to_string()));
        let mut state = self.lock_state();
        match written {
            Ok(wrote) => {
                if wrote {
                    state.written = Some(clock::now());
                }
                if self.0.key.is_some() && state.failure.take().is_some() {
                    tracing::info!(notice = true, "what is supplied is kept on the disk again");
                }
                true
            }
            Err(reason) => {
                if state.failure.as_ref() != Some(&reason) {
                    tracing::error!(
                        reason,
                        "what is supplied is not kept on the disk: a restart would need the CA"
                    );
                }
                state.failure = Some(reason);
                false
            }
        }
    }

    /// When the CA was heard last, if it was since the start.
    pub(crate) fn heard(&self) -> Option<SystemTime> {
        self.lock_state().heard
    }

    /// How it stands.
    pub(crate) fn state(&self) -> State {
        // In this order: what is taken from the one is written under the other's lock.
        let waiting = !self.lock_pending().is_empty() || self.0.log.try_lock().is_err();
        State {
            waiting,
            ..self.lock_state().clone()
        }
    }

    fn lock_log(&self) -> MutexGuard<'_, Option<Log>> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_pending(&self) -> MutexGuard<'_, Pending> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Pending ===

impl Pending {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.svids.is_empty() && self.position.is_none() && self.foreign.is_none()
    }

    fn changes(&self) -> impl Iterator<Item = Change> {
        let entries = self.entries.iter().map(|(id, entry)| Change {
            entry_id: id.to_string(),
            entry: entry.as_ref().map(Registered::message),
            gone: entry.is_none(),
            ..Change::default()
        });
        let svids = self.svids.iter().map(|(id, new)| {
            let leaf = new.svid.leaf();
            Change {
                entry_id: id.to_string(),
                svid: Some(SvidRecord {
                    spiffe_id: leaf.spiffe_id().to_string(),
                    entry_revision: new.entry_revision,
                    chain: new
                        .svid
                        .chain()
                        .iter()
                        .map(|certificate| certificate.to_vec())
                        .collect(),
                    key: new.svid.key().secret_pkcs8_der().to_vec(),
                    not_before: unix(leaf.not_before()),
                    not_after: unix(leaf.not_after()),
                    renew_at: unix(new.renew_at),
                }),
                ..Change::default()
            }
        });
        let position = self.position.iter().map(|position| Change {
            position: Some(position.clone()),
            ..Change::default()
        });
        let foreign = self.foreign.iter().map(|foreign| Change {
            foreign: Some(foreign.message()),
            ..Change::default()
        });
        entries.chain(svids).chain(foreign).chain(position)
    }

    /// What could not be written waits again, but for what has been replaced meanwhile.
    fn put_back(&mut self, taken: Self) {
        if self.dismissed {
            return;
        }
        for (id, entry) in taken.entries {
            self.entries.entry(id).or_insert(entry);
        }
        for (id, svid) in taken.svids {
            if self.entries.get(&id).is_none_or(Option::is_some) {
                self.svids.entry(id).or_insert(svid);
            }
        }
        self.position = self.position.take().or(taken.position);
        self.foreign = self.foreign.take().or(taken.foreign);
    }
}
