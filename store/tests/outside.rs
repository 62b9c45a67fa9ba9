//! A store in another crate, with what is public: a server with tables on a thread of its own, replicas that send it
//! requests, and notices as the wake-up. It has the shape of a store on PostgreSQL, and passes the conformance suite.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use hoplite_store::conformance::KEEP;
use hoplite_store::{
    Announcer, Batch, Change, CommitError, History, LargeError, LargeId, Reach, Revision, Snapshot, Store, StoreError,
    Versioned, Watch, WatchError,
};

hoplite_store::conformance!(outside, || Box::new(Replica::connect(&Server::start())));

/// What a replica sends: a statement, run inside the one transaction that the server runs at a time.
type Statement = Box<dyn FnOnce(&mut Tables) + Send>;

/// The server's tables. A row of `named` for each large value that a key names would be a foreign key elsewhere.
struct Tables {
    reach: Reach,
    entries: BTreeMap<Vec<u8>, Versioned>,
    named: BTreeMap<Vec<u8>, Vec<LargeId>>,
    changes: BTreeMap<Revision, Change>,
    large: BTreeMap<LargeId, (Vec<u8>, SystemTime)>,
    /// Who listens.
    notices: Vec<mpsc::Sender<Reach>>,
}

/// Where the server is; it ends with its last replica.
#[derive(Clone)]
struct Server(mpsc::Sender<Statement>);

/// One CA's connection.
struct Replica {
    client: Arc<Client>,
    announcer: Arc<Mutex<Option<Announcer>>>,
}

struct Client(Mutex<mpsc::Sender<Statement>>);

impl Server {
    fn start() -> Self {
        let (sender, statements) = mpsc::channel::<Statement>();
        thread::spawn(move || {
            let mut tables = Tables {
                reach: Reach::START,
                entries: BTreeMap::new(),
                named: BTreeMap::new(),
                changes: BTreeMap::new(),
                large: BTreeMap::new(),
                notices: Vec::new(),
            };
            for statement in statements {
                statement(&mut tables);
            }
        });
        Self(sender)
    }
}

impl Client {
    fn run<T: Send + 'static>(
        &self,
        statement: impl FnOnce(&mut Tables) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = mpsc::channel();
        let send: Statement = Box::new(move |tables| drop(answer.send(statement(tables))));
        self.0.lock().unwrap().send(send).ok();
        answered.recv().map_err(|error| StoreError::Io {
            location: "toy://server".to_owned(),
            action: "ask the server",
            problem: error.to_string(),
            remedy: "look whether it runs",
        })
    }
}

impl History for Client {
    fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError> {
        self.run(move |tables| tables.changes.get(&revision).cloned())
    }
}

impl Replica {
    fn connect(server: &Server) -> Self {
        let client = Arc::new(Client(Mutex::new(server.0.clone())));
        let (sender, notices) = mpsc::channel();
        let reach = client.run(move |tables| {
            tables.notices.push(sender);
            tables.reach
        });
        let announcer = Arc::new(Mutex::new(Some(Announcer::new(reach.unwrap()))));
        let listening = Arc::clone(&announcer);
        // LISTEN: wakes the watchers of this replica when another one has committed.
        thread::spawn(move || {
            for reach in notices {
                match &*listening.lock().unwrap() {
                    Some(announcer) => announcer.announce(reach),
                    None => return,
                }
            }
        });
        Self { client, announcer }
    }

    fn announcer<T>(&self, ask: impl FnOnce(&Announcer) -> T) -> T {
        ask(self
            .announcer
            .lock()
            .unwrap()
            .as_ref()
            .expect("open until it is dropped"))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.announcer.lock().unwrap().take();
    }
}

impl Store for Replica {
    fn revision(&self) -> Revision {
        self.announcer(|announcer| announcer.reach().newest)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        let key = key.to_vec();
        self.client.run(move |tables| tables.entries.get(&key).cloned())
    }

    fn page(&self, after: Option<&[u8]>, bytes: usize) -> Result<Snapshot, StoreError> {
        let mut page = self.range(b"")?;
        page.entries
            .retain(|(key, _)| after.is_none_or(|after| key.as_slice() > after));
        let mut taken = 0;
        let held = page.entries.iter().take_while(|(key, versioned)| {
            let (before, size) = (taken, key.len() + versioned.value.len());
            taken += size;
            before == 0 || taken <= bytes
        });
        let held = held.count();
        page.entries.truncate(held);
        Ok(page)
    }

    fn range(&self, prefix: &[u8]) -> Result<Snapshot, StoreError> {
        let prefix = prefix.to_vec();
        self.client.run(move |tables| {
            let entries = tables.entries.iter().filter(|(key, _)| key.starts_with(&prefix));
            Snapshot {
                revision: tables.reach.newest,
                entries: entries.map(|(key, found)| (key.clone(), found.clone())).collect(),
            }
        })
    }

    fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
        let reach = self.client.run(move |tables| tables.commit(batch))??;
        // Its own commits too: whoever wrote reads what it wrote, whenever the notice comes.
        self.announcer(|announcer| announcer.announce(reach));
        Ok(reach.newest)
    }

    fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
        let history: Arc<dyn History> = self.client.clone();
        self.announcer(|announcer| announcer.watch(from, Arc::downgrade(&history)))
    }

    fn put_large(&self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError> {
        let id = LargeId::of_bounded(bytes)?;
        let bytes = bytes.to_vec();
        self.client.run(move |tables| tables.large.insert(id, (bytes, now)))?;
        Ok(id)
    }

    fn large(&self, id: &LargeId) -> Result<Option<Vec<u8>>, StoreError> {
        let id = *id;
        self.client
            .run(move |tables| tables.large.get(&id).map(|(bytes, _)| bytes.clone()))
    }

    fn sweep_large(&self, put_before: SystemTime) -> Result<Vec<LargeId>, StoreError> {
        self.client.run(move |tables| {
            let named: BTreeSet<LargeId> = tables.named.values().flatten().copied().collect();
            let mut swept = Vec::new();
            tables.large.retain(|id, (_, put)| {
                let stays = named.contains(id) || *put >= put_before;
                swept.extend((!stays).then_some(*id));
                stays
            });
            swept
        })
    }
}

impl Tables {
    fn commit(&mut self, batch: Batch) -> Result<Reach, CommitError> {
        let writes = batch.check(
            |key| Ok(self.entries.get(key).map(|found| found.revision)),
            |id| Ok(self.large.contains_key(id)),
        )?;
        self.reach = self.reach.grown(KEEP);
        let revision = self.reach.newest;
        let mut mutations = Vec::new();
        for write in writes {
            let key = write.mutation.key.clone();
            self.named.insert(key.clone(), write.names.clone());
            match write.mutation.value.clone() {
                Some(value) => {
                    let names = write.names;
                    self.entries.insert(key, Versioned { value, revision, names })
                }
                None => self.entries.remove(&key),
            };
            mutations.push(write.mutation);
        }
        self.changes.insert(revision, Change { revision, mutations });
        self.changes.retain(|revision, _| *revision >= self.reach.oldest);
        self.notices.retain(|listener| listener.send(self.reach).is_ok());
        Ok(self.reach)
    }
}

#[test]
fn replicas_see_each_others_commits_and_large_values() {
    let server = Server::start();
    let (one, other) = (Replica::connect(&server), Replica::connect(&server));
    let mut watch = other.watch(0).unwrap();
    let bundle = one.put_large(b"bundle", SystemTime::UNIX_EPOCH).unwrap();
    one.commit(Batch::new().put_naming("bundle", "1", [bundle])).unwrap();
    let change = watch.next(Duration::from_secs(30)).unwrap().expect("a notice in time");
    assert_eq!((change.revision, other.revision()), (1, 1));
    assert_eq!(other.large(&bundle).unwrap().unwrap(), b"bundle");
    assert_eq!(other.sweep_large(SystemTime::now()).unwrap(), []);
    assert_eq!(other.commit(Batch::new().delete("bundle")).unwrap(), 2);
    assert_eq!(one.sweep_large(SystemTime::now()).unwrap(), [bundle]);
    drop(other);
    assert!(matches!(
        watch.next(Duration::ZERO),
        Ok(Some(_)) | Err(WatchError::Closed)
    ));
}

#[test]
fn a_backend_that_gives_another_change_is_found_out() {
    struct Wrong;
    impl History for Wrong {
        fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError> {
            Ok(Some(Change {
                revision: revision + 1,
                mutations: Vec::new(),
            }))
        }
    }
    let wrong: Arc<dyn History> = Arc::new(Wrong);
    let announcer = Announcer::new(Reach { oldest: 1, newest: 3 });
    let mut watch = announcer.watch(0, Arc::downgrade(&wrong)).unwrap();
    let error = watch.next(Duration::ZERO).unwrap_err();
    assert!(
        matches!(error, WatchError::WrongChange { wanted: 1, got: 2 }),
        "{error}"
    );
    // A notice that comes late takes nothing back.
    announcer.announce(Reach { oldest: 1, newest: 2 });
    assert_eq!(announcer.reach().newest, 3);
}
