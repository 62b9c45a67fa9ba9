//! What an open store is to its verbs and to whoever listens: connections, what was seen, how it is with the server.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

use hoplite_store::{Announcer, Reach, Revision, StoreError};
use tokio::runtime;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::connect::Connector;
use crate::failure::Failure;
use crate::session::{Expected, Session};

/// What the verbs and whoever listens share.
pub(crate) struct Shared {
    pub(crate) me: Weak<Self>,
    pub(crate) connector: Connector,
    pub(crate) expected: Arc<Expected>,
    pub(crate) handle: runtime::Handle,
    pub(crate) keep: u64,
    pub(crate) permits: Semaphore,
    pub(crate) idle: Mutex<Vec<Arc<Session>>>,
    /// Gone once the store is closed.
    pub(crate) announcer: Mutex<Option<Announcer>>,
    pub(crate) standing: Mutex<Standing>,
}

/// How it is with the server.
#[derive(Default)]
pub(crate) struct Standing {
    /// Why it cannot be reached; none while it can.
    pub(crate) away: Option<String>,
    /// It is another store, or an older one: nothing is read or written any more.
    pub(crate) is_stopped: bool,
}

// === impl Shared ===

impl Shared {
    /// The newest revision that this process knows of.
    pub(crate) fn seen(&self) -> Revision {
        self.expected.seen.load(Ordering::Acquire)
    }

    /// Tells watchers, whoever learned it.
    pub(crate) fn announce(&self, reach: Reach) {
        self.expected.seen.fetch_max(reach.newest, Ordering::AcqRel);
        if let Some(announcer) = &*lock(&self.announcer) {
            announcer.announce(reach);
        }
    }

    /// The server has answered.
    pub(crate) fn is_there(&self) {
        if let Some(problem) = lock(&self.standing).away.take() {
            tracing::info!(store = self.connector.location, problem, "the database is back");
        }
    }

    /// What the server's failures say about the store as a whole.
    pub(crate) fn failed(&self, failure: &Failure) {
        let mut standing = lock(&self.standing);
        let problem = match failure {
            Failure::Away { problem, .. } | Failure::Refused { problem, .. } => problem,
            Failure::Damaged(_) => return,
            Failure::Another(problem) => {
                if !standing.is_stopped {
                    standing.is_stopped = true;
                    tracing::error!(
                        store = self.connector.location,
                        problem,
                        "the store is not the one that was opened"
                    );
                }
                return;
            }
        };
        if standing.away.is_none() {
            tracing::warn!(
                store = self.connector.location,
                problem,
                "the database cannot be reached; what is known is still served"
            );
        }
        standing.away = Some(problem.clone());
    }

    /// Has `work` done on a session, and waits for it; it says how far history reaches now. It is done again on a new connection if
    /// an idle one turns out to be dead, unless a commit was sent.
    pub(crate) fn call<T, F, Fut>(&self, deadline: Duration, action: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(Arc<Session>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(Reach, T), Failure>> + Send,
    {
        let location = || self.connector.location.clone();
        let stopped = || StoreError::Stopped { location: location() };
        let shared = self.me.upgrade().ok_or_else(stopped)?;
        {
            let standing = lock(&self.standing);
            if standing.is_stopped {
                return Err(stopped());
            }
            // Whoever listens tries all the time: nobody else need wait to be told the same.
            if let Some(problem) = standing.away.clone() {
                let location = location();
                return Err(StoreError::Away { location, problem });
            }
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            let done = timeout(deadline, shared.done(&work)).await;
            let done = done.unwrap_or_else(|_| Err(Failure::away("the server does not answer").sent()));
            let done = done.map(|(reach, value)| {
                shared.announce(reach);
                value
            });
            if let Err(failure @ Failure::Another(_)) = &done {
                shared.failed(failure);
            }
            drop(shared);
            let _ = answer.send(done); // whoever asked waits for it
        });
        match answered.recv() {
            Ok(done) => done.map_err(|failure| failure.told(&self.connector.location, action)),
            Err(_) => Err(stopped()),
        }
    }

    async fn done<T, F, Fut>(&self, work: &F) -> Result<(Reach, T), Failure>
    where
        F: Fn(Arc<Session>) -> Fut,
        Fut: Future<Output = Result<(Reach, T), Failure>>,
    {
        let permit = self.permits.acquire().await;
        let _permit = permit.map_err(|_| Failure::away("the store is closed"))?;
        loop {
            let idle = lock(&self.idle).pop();
            let is_idle = idle.is_some();
            let session = match idle {
                Some(session) => session,
                None => Arc::new(Session::open(&self.connector, Arc::clone(&self.expected)).await?),
            };
            session.begin();
            match work(Arc::clone(&session)).await {
                Ok(done) => {
                    lock(&self.idle).push(session);
                    return Ok(done);
                }
                // The others have been idle for as long, and are likely dead too.
                Err(failure) if is_idle && failure.may_be_tried_again() => lock(&self.idle).clear(),
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// The lock itself, whoever panicked with it: each of these is set in one step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
