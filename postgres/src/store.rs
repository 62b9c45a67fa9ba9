//! The seven verbs, each of which waits for a runtime of the store's own.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_store::{
    Announcer, Batch, Change, CommitError, HISTORY_COMMITS, History, LargeError, LargeId, Reach, Revision, Snapshot,
    Store, StoreError, Versioned, Watch, WatchError,
};
use tokio::runtime::{self, Runtime};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::commit;
use crate::connect::Connector;
use crate::failure::Failure;
use crate::listen;
use crate::rows::{self, Digest, Row};
use crate::schema::{self, STATE, STATE_COLUMNS, State};
use crate::session::{self, Expected, Session};
use crate::settings::Settings;
use crate::shared::{Shared, lock};

/// Connections beside the one that listens. Writers wait for one row anyway.
const SESSIONS_MAX: usize = 4;

/// Whoever asks for a key or commits is told within this time, connecting included.
const DEADLINE: Duration = Duration::from_secs(9);

/// The same for what may be all of the store, or a large value.
const LONG_DEADLINE: Duration = Duration::from_secs(120);

/// Rows in a page, however small.
const PAGE_ROWS_MAX: i64 = 4096;

/// A store in one schema of a database, for any number of processes at a time.
pub struct PostgresStore {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

// === impl PostgresStore ===

impl PostgresStore {
    /// Opens the store, and makes its tables if they are not there.
    ///
    /// # Errors
    /// [`StoreError`] when the server cannot be reached, refuses, or is not one to rely on.
    pub fn open(settings: &Settings) -> Result<Self, StoreError> {
        Self::open_keeping(settings, HISTORY_COMMITS)
    }

    /// Opens a store that keeps so many commits of history.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_keeping(settings: &Settings, keep: u64) -> Result<Self, StoreError> {
        Self::begin(settings, keep, false)
    }

    /// Whether there is a store; looks, and makes nothing.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn is_there(settings: &Settings) -> Result<bool, StoreError> {
        let schema = settings.schema.clone();
        on_its_own(settings, move |client| async move {
            schema::is_there(&client, &schema).await
        })
        .map(|(_, _, is_there)| is_there)
    }

    /// Opens a store, or one that a restore is about to fill.
    pub(crate) fn begin(settings: &Settings, keep: u64, unfinished: bool) -> Result<Self, StoreError> {
        let schema = settings.schema.clone();
        let (runtime, connector, state) = on_its_own(settings, move |client| async move {
            let state = schema::found(&client, &schema, unfinished).await?;
            if unfinished { Ok(state) } else { state.finished() }
        })?;
        let shared = Arc::new_cyclic(|me| Shared {
            me: me.clone(),
            connector,
            expected: Arc::new(Expected {
                id: state.id.clone(),
                seen: state.reach.newest.into(),
                is_unfinished: unfinished,
            }),
            handle: runtime.handle().clone(),
            keep,
            permits: Semaphore::new(SESSIONS_MAX),
            idle: Mutex::default(),
            announcer: Mutex::new(Some(Announcer::new(state.reach))),
            standing: Mutex::default(),
        });
        if !unfinished {
            runtime.spawn(listen::listen(Arc::clone(&shared)));
        }
        let runtime = Some(runtime);
        Ok(Self { shared, runtime })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        // Watchers hear of the end at once.
        lock(&self.shared.announcer).take();
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it is not allowed everywhere a store may be dropped.
            runtime.shutdown_background();
        }
    }
}

impl Store for PostgresStore {
    fn revision(&self) -> Revision {
        self.shared.seen()
    }

    fn away(&self) -> Option<String> {
        lock(&self.shared.standing).away.clone()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        let key = key.to_vec();
        self.shared.call(DEADLINE, "read", move |session| {
            let key = key.clone();
            async move {
                let sql = format!("SELECT {STATE}, {ITEM} FROM state s LEFT JOIN item i ON i.key = $1");
                let row = session.one(&sql, &[(&key, Type::BYTEA)]).await?;
                let state = session.expected(State::read(&row)?)?;
                Ok((state.reach, item(&row)?.map(|found| found.versioned)))
            }
        })
    }

    fn range(&self, prefix: &[u8]) -> Result<Snapshot, StoreError> {
        let (from, to) = (prefix.to_vec(), beyond(prefix));
        let is_whole = prefix.is_empty();
        self.shared.call(LONG_DEADLINE, "read", move |session| {
            let (from, to) = (from.clone(), to.clone());
            async move {
                let sql = format!(
                    "SELECT {STATE}, {ITEM} FROM state s LEFT JOIN \
                     (SELECT * FROM item WHERE key >= $1 AND ($2::bytea IS NULL OR key < $2)) i ON true ORDER BY i.key"
                );
                let rows = session.many(&sql, &[(&from, Type::BYTEA), (&to, Type::BYTEA)]).await?;
                let (state, found) = read(&session, &rows)?;
                let mut contents = Digest::default();
                for row in &found {
                    contents.add(row.sum);
                }
                if is_whole && contents != state.contents {
                    return Err(Failure::Damaged(format!(
                        "it holds {} values and should hold {}, or one of them is an older version",
                        contents.count, state.contents.count
                    )));
                }
                Ok((state.reach, snapshot(&state, found)))
            }
        })
    }

    fn page(&self, after: Option<&[u8]>, bytes: usize) -> Result<Snapshot, StoreError> {
        let after = after.map(<[u8]>::to_vec);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.shared.call(LONG_DEADLINE, "read", move |session| {
            let after = after.clone();
            async move {
                let sql = format!(
                    "SELECT {STATE}, {ITEM} FROM state s LEFT JOIN (SELECT * FROM \
                     (SELECT *, row_number() OVER by_key AS number, sum(length(key) + length(value)) OVER by_key AS taken \
                      FROM item WHERE $1::bytea IS NULL OR key > $1 WINDOW by_key AS (ORDER BY key) ORDER BY key LIMIT {PAGE_ROWS_MAX}) \
                     counted WHERE number = 1 OR taken <= $2) i ON true ORDER BY i.key"
                );
                let rows = session.many(&sql, &[(&after, Type::BYTEA), (&bytes, Type::INT8)]).await?;
                let (state, found) = read(&session, &rows)?;
                Ok((state.reach, snapshot(&state, found)))
            }
        })
    }

    fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
        let keep = self.shared.keep;
        self.shared.call(DEADLINE, "commit", move |session| {
            let batch = batch.clone();
            async move {
                match commit::commit(&session, batch, keep).await? {
                    Ok((_, reach)) => Ok((reach, Ok(reach.newest))),
                    Err(wrong) => Ok((Reach::START, Err(wrong))),
                }
            }
        })?
    }

    fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
        let history: Weak<Shared> = Arc::downgrade(&self.shared);
        match &*lock(&self.shared.announcer) {
            Some(announcer) => announcer.watch(from, history),
            None => Err(WatchError::Closed),
        }
    }

    fn put_large(&self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError> {
        let id = LargeId::of_bounded(bytes)?;
        let (bytes, put_at): (Arc<[u8]>, _) = (bytes.into(), micros(now));
        self.shared.call(LONG_DEADLINE, "keep a large value", move |session| {
            let bytes = Arc::clone(&bytes);
            async move {
                let sql = "INSERT INTO large (id, bytes, put_at) VALUES ($1, $2, $3) \
                     ON CONFLICT (id) DO UPDATE SET bytes = excluded.bytes, put_at = excluded.put_at";
                let (id, bytes) = (&id.0[..], &*bytes);
                session
                    .run(sql, &[(&id, Type::BYTEA), (&bytes, Type::BYTEA), (&put_at, Type::INT8)])
                    .await?;
                Ok((Reach::START, ()))
            }
        })?;
        Ok(id)
    }

    fn large(&self, id: &LargeId) -> Result<Option<Vec<u8>>, StoreError> {
        let id = *id;
        self.shared.call(LONG_DEADLINE, "read a large value", move |session| async move {
            let sql = format!(
                "SELECT {STATE}, l.bytes, EXISTS (SELECT FROM named WHERE id = $1) FROM state s LEFT JOIN large l ON l.id = $1"
            );
            let row = session.one(&sql, &[(&&id.0[..], Type::BYTEA)]).await?;
            let state = session.expected(State::read(&row)?)?;
            match row.try_get::<_, Option<Vec<u8>>>(STATE_COLUMNS)? {
                Some(bytes) if LargeId::of(&bytes) == id => Ok((state.reach, Some(bytes))),
                Some(_) => Err(Failure::Damaged(format!(
                    "the large value `{id}` is not what was put; put it again"
                ))),
                None if row.try_get(STATE_COLUMNS + 1)? => Err(Failure::Damaged(format!(
                    "the large value `{id}` is gone; put it again"
                ))),
                None => Ok((state.reach, None)),
            }
        })
    }

    fn sweep_large(&self, put_before: SystemTime) -> Result<Vec<LargeId>, StoreError> {
        let before = micros(put_before);
        self.shared
            .call(LONG_DEADLINE, "sweep large values", move |session| async move {
                session.client.batch_execute("BEGIN").await?;
                // No commit takes for there what is about to go: it needs the same row.
                let row = session
                    .one(&format!("SELECT {STATE} FROM state s FOR UPDATE"), &[])
                    .await?;
                let state = session.expected(State::read(&row)?)?;
                let rows = session
                    .many(
                        "DELETE FROM large l WHERE put_at < $1 AND NOT EXISTS (SELECT FROM named n WHERE n.id = l.id) \
                         RETURNING id",
                        &[(&before, Type::INT8)],
                    )
                    .await?;
                session.client.batch_execute("COMMIT").await?;
                let mut swept = BTreeSet::new();
                for row in rows {
                    let id: Vec<u8> = row.try_get(0)?;
                    swept.extend(id.try_into().ok().map(LargeId));
                }
                Ok((state.reach, swept.into_iter().collect()))
            })
    }
}

/// Does a piece of work on a connection of its own, on a new runtime.
fn on_its_own<T, F, Fut>(settings: &Settings, work: F) -> Result<(Runtime, Connector, T), StoreError>
where
    T: Send + 'static,
    F: FnOnce(Client) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Failure>> + Send,
{
    let connector = Connector::new(settings.clone())?;
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("postgres")
        .enable_all()
        .build()
        .map_err(|error| StoreError::Io {
            location: connector.location.clone(),
            action: "start a thread",
            problem: error.to_string(),
            remedy: "see how many this process may have",
        })?;
    let (answer, answered) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        let done = timeout(DEADLINE, async {
            let client = session::open(&connector, None).await?;
            work(client).await
        });
        let done = done
            .await
            .unwrap_or_else(|_| Err(Failure::away("the server does not answer")));
        let _ = answer.send((connector, done));
    });
    let done = answered.recv();
    let location = settings.location();
    let outcome = match done {
        Ok((connector, Ok(value))) => return Ok((runtime, connector, value)),
        Ok((_, Err(failure))) => Err(failure.told(&location, "open it")),
        Err(_) => Err(StoreError::Stopped { location }),
    };
    runtime.shutdown_background();
    outcome
}

/// The columns of an item, after those of the state.
const ITEM: &str = "i.key, i.value, i.revision, i.names, i.checksum";

/// The item of a row that begins with the state, if it has one.
fn item(row: &tokio_postgres::Row) -> Result<Option<Row>, Failure> {
    let Some(key) = row.try_get::<_, Option<Vec<u8>>>(STATE_COLUMNS)? else {
        return Ok(None);
    };
    let name = key.escape_ascii().to_string();
    let revision = row.try_get::<_, i64>(STATE_COLUMNS + 2)?.cast_unsigned();
    let (value, names, sum) = (
        row.try_get(STATE_COLUMNS + 1)?,
        row.try_get(STATE_COLUMNS + 3)?,
        row.try_get(STATE_COLUMNS + 4)?,
    );
    let found = Row::read(key, value, revision, names, sum);
    let damaged = || Failure::Damaged(format!("the checksum of item `{name}` does not match"));
    found.ok_or_else(damaged).map(Some)
}

fn read(session: &Session, rows: &[tokio_postgres::Row]) -> Result<(State, Vec<Row>), Failure> {
    let Some(first) = rows.first() else {
        return Err(Failure::Damaged("the table `state` has no row".to_owned()));
    };
    let state = session.expected(State::read(first)?)?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        found.extend(item(row)?);
    }
    Ok((state, found))
}

fn snapshot(state: &State, found: Vec<Row>) -> Snapshot {
    Snapshot {
        revision: state.reach.newest,
        entries: found.into_iter().map(|row| (row.key, row.versioned)).collect(),
    }
}

/// The first key after all that begin so; none when there is no such key.
fn beyond(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut beyond = prefix.get(..=kept)?.to_vec();
    *beyond.last_mut()? += 1;
    Some(beyond)
}

fn micros(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl History for Shared {
    fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError> {
        self.call(DEADLINE, "read a change", move |session| async move {
            let sql = format!("SELECT {STATE}, c.mutations FROM state s LEFT JOIN change c ON c.revision = $1");
            let row = session.one(&sql, &[(&revision.cast_signed(), Type::INT8)]).await?;
            let state = session.expected(State::read(&row)?)?;
            let Some(bytes) = row.try_get::<_, Option<Vec<u8>>>(STATE_COLUMNS)? else {
                if revision >= state.reach.oldest {
                    return Err(Failure::Damaged(format!("the change of revision {revision} is gone")));
                }
                return Ok((state.reach, None));
            };
            let damaged = || Failure::Damaged(format!("the checksum of change {revision} does not match"));
            let mutations = rows::decode_change(revision, &bytes).ok_or_else(damaged)?;
            Ok((state.reach, Some(Change { revision, mutations })))
        })
    }
}
