//! What a backup is made of, part by part, while the CA goes on: a page at a time, and after each page what changed meanwhile.
//!
//! A page is of its own moment. Whatever is written after it is read again, since history names its key; when history says that
//! nothing is left, all that was given out is as of the last revision. So nobody waits for a backup, and it holds one page.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hoplite_host::program::Program;
use hoplite_identity::{Fingerprint, TrustBundle};
use hoplite_store::{LargeId, Revision, Store, StoreError, Versioned, Watch, WatchError};
use hoplite_wire::ca::backup_part::Part;
use hoplite_wire::ca::{BackupEnd, BackupFile, BackupHead, BackupLarge, BackupValue, BackupValues};

use crate::backup::contents::FORMAT;
use crate::backup::files::{self, BadFiles};
use crate::record::unix_seconds;

/// Values in one part, and a piece of a large value.
const PART_BYTES: usize = 256 << 10;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store changed too fast to be followed ({0}); try again")]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Files(#[from] BadFiles),
    #[error("the large value `{0}` is named and is not in the store; publish the policy again and try again")]
    Missing(LargeId),
    /// Whoever asked went away, or the CA stops.
    #[error("it was broken off")]
    BrokenOff,
}

/// What the parts are given to.
pub(crate) trait Take {
    fn take(&mut self, part: Part) -> Result<(), BackupError>;
}

/// One backup under way.
struct Walk<'a, T> {
    store: &'a dyn Store,
    to: &'a mut T,
    /// What keys name, of those that name something.
    naming: BTreeMap<Vec<u8>, Vec<LargeId>>,
    sent: BTreeSet<LargeId>,
    values: u64,
}

/// The first part.
pub(crate) fn head(bundle: &TrustBundle, config: Option<String>, now: SystemTime) -> BackupHead {
    BackupHead {
        format: FORMAT,
        trust_domain: bundle.trust_domain().to_string(),
        begun_at_unix: i64::try_from(unix_seconds(now)).unwrap_or(i64::MAX),
        version: Program::this().version.to_owned(),
        authorities: bundle
            .authorities()
            .iter()
            .map(|authority| Fingerprint::of(authority).as_bytes().to_vec())
            .collect(),
        config: config.unwrap_or_default(),
    }
}

/// Gives out all of it, and says how it ended. `entries` counts those of a revision, once that is known to it.
pub(crate) fn walk<T: Take>(
    store: &dyn Store,
    data_dir: &Path,
    head: BackupHead,
    entries: impl Fn(Revision) -> Option<u64>,
    to: &mut T,
) -> Result<BackupEnd, BackupError> {
    to.take(Part::Head(head))?;
    // Keys are written before what needs them and removed after it: before and after the store, both are kept.
    let mut kept = files::read(data_dir)?;
    let mut watch = store.watch(store.revision())?;
    let mut walk = Walk {
        store,
        to: &mut *to,
        naming: BTreeMap::new(),
        sent: BTreeSet::new(),
        values: 0,
    };
    let mut after = None;
    loop {
        let page = store.page(after.as_deref(), PART_BYTES)?.entries;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        walk.give(page.into_iter().map(|(key, held)| (key, Some(held))).collect())?;
        walk.catch_up(&mut watch)?;
    }
    let (revision, entries) = loop {
        walk.catch_up(&mut watch)?;
        // Whoever counts follows the store a moment later.
        match entries(watch.seen()) {
            Some(entries) => break (watch.seen(), entries),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let Walk {
        naming, sent, values, ..
    } = walk;
    if let Some(missing) = naming.values().flatten().find(|id| !sent.contains(id)) {
        return Err(BackupError::Missing(*missing));
    }
    kept.extend(files::read(data_dir)?);
    let files = kept.len() as u64;
    for (path, bytes) in kept {
        let bytes = bytes.to_vec();
        to.take(Part::File(BackupFile { path, bytes }))?;
    }
    let end = BackupEnd {
        revision,
        values,
        large: sent.len() as u64,
        files,
        entries,
    };
    to.take(Part::End(end))?;
    Ok(end)
}

// === impl Walk ===

impl<T: Take> Walk<'_, T> {
    /// What was written since, until nothing is left.
    fn catch_up(&mut self, watch: &mut Watch) -> Result<(), BackupError> {
        while let Some(change) = watch.next(Duration::ZERO)? {
            let mut now = Vec::with_capacity(change.mutations.len());
            for mutation in change.mutations {
                // As it is now, which may be newer: then that commit's turn comes, too.
                let held = self.store.get(&mutation.key)?;
                now.push((mutation.key, held));
            }
            self.give(now)?;
        }
        Ok(())
    }

    fn give(&mut self, held: Vec<(Vec<u8>, Option<Versioned>)>) -> Result<(), BackupError> {
        let mut values = Vec::with_capacity(held.len());
        let mut named = Vec::new();
        for (key, held) in held {
            let names = held.as_ref().map(|held| held.names.clone()).unwrap_or_default();
            named.extend(names.iter().copied());
            let value = BackupValue {
                deleted: held.is_none(),
                revision: held.as_ref().map_or(0, |held| held.revision),
                names: names.iter().map(|id| id.0.to_vec()).collect(),
                value: held.map(|held| held.value).unwrap_or_default(),
                key: key.clone(),
            };
            match names.is_empty() {
                true => drop(self.naming.remove(&key)),
                false => drop(self.naming.insert(key, names)),
            }
            values.push(value);
        }
        self.values += values.len() as u64;
        self.to.take(Part::Values(BackupValues { values }))?;
        for id in named {
            self.give_large(id)?;
        }
        Ok(())
    }

    fn give_large(&mut self, id: LargeId) -> Result<(), BackupError> {
        if self.sent.contains(&id) {
            return Ok(());
        }
        // Swept: then what named it has changed, and comes again.
        let Some(bytes) = self.store.large(&id)? else {
            return Ok(());
        };
        let mut pieces = bytes.chunks(PART_BYTES).peekable();
        loop {
            let piece = pieces.next().unwrap_or_default().to_vec();
            let last = pieces.peek().is_none();
            let sha256 = id.0.to_vec();
            self.to.take(Part::Large(BackupLarge { sha256, piece, last }))?;
            if last {
                break;
            }
        }
        self.sent.insert(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_store::{Batch, MemoryStore, SledStore};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// What comes of the parts, and what happens between them.
    struct Taken<'a> {
        values: BTreeMap<Vec<u8>, (Vec<u8>, Revision)>,
        large: BTreeSet<Vec<u8>>,
        files: BTreeSet<String>,
        end: Option<BackupEnd>,
        meanwhile: &'a mut dyn FnMut(),
    }

    impl<'a> Taken<'a> {
        fn new(meanwhile: &'a mut dyn FnMut()) -> Self {
            Self {
                values: BTreeMap::new(),
                large: BTreeSet::new(),
                files: BTreeSet::new(),
                end: None,
                meanwhile,
            }
        }
    }

    impl Take for Taken<'_> {
        fn take(&mut self, part: Part) -> Result<(), BackupError> {
            match part {
                Part::Values(values) => {
                    for value in values.values {
                        match value.deleted {
                            true => drop(self.values.remove(&value.key)),
                            false => drop(self.values.insert(value.key, (value.value, value.revision))),
                        }
                    }
                }
                Part::Large(part) if part.last => drop(self.large.insert(part.sha256)),
                Part::File(file) => drop(self.files.insert(file.path)),
                Part::End(end) => self.end = Some(end),
                Part::Head(_) | Part::Large(_) => {}
            }
            (self.meanwhile)();
            Ok(())
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// The state at a revision, by history alone.
    fn at(store: &dyn Store, revision: Revision) -> BTreeMap<Vec<u8>, (Vec<u8>, Revision)> {
        let mut state = BTreeMap::new();
        let mut watch = store.watch(0).unwrap();
        while watch.seen() < revision {
            let change = watch.next(Duration::ZERO).unwrap().unwrap();
            for mutation in change.mutations {
                match mutation.value {
                    Some(value) => drop(state.insert(mutation.key, (value, change.revision))),
                    None => drop(state.remove(&mutation.key)),
                }
            }
        }
        state
    }

    fn key(n: u64) -> String {
        format!("entry/{n:05}")
    }

    /// Commits one change by a number: puts and deletes all over the keys.
    fn commit(store: &dyn Store, n: u64) {
        let at = n.wrapping_mul(7919) % 3000;
        let batch = Batch::new().put(key(at), vec![7; 200]).put(key(at / 2), n.to_string());
        store.commit(batch.delete(key(3000 - at))).unwrap();
    }

    #[test]
    fn a_backup_is_as_of_one_revision_whatever_is_written_meanwhile() {
        let store = MemoryStore::new();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("authority.key"), "first").unwrap();
        for n in 0..1500 {
            commit(&store, n);
        }
        let mut next = 1500;
        // A change for each part.
        let mut meanwhile = || {
            // Who writes for ever, as fast as is read, is never caught up with.
            if next < 2500 {
                commit(&store, next);
                next += 1;
            }
            std::fs::write(dir.path().join("authority.2.key"), "second").unwrap();
        };
        let mut taken = Taken::new(&mut meanwhile);
        walk(&store, dir.path(), BackupHead::default(), |_| Some(0), &mut taken).unwrap();
        let (values, end) = (taken.values, taken.end.unwrap());
        assert_eq!(
            taken.files,
            BTreeSet::from(["authority.key".to_owned(), "authority.2.key".to_owned()])
        );
        assert!(end.revision > 1500, "{end:?}");
        assert_eq!(values, at(&store, end.revision));
    }

    #[test]
    fn a_backup_beside_threads_that_write_is_as_of_one_revision() {
        let store = MemoryStore::new();
        for n in 0..500 {
            commit(&store, n);
        }
        let (stop, next) = (AtomicBool::new(false), AtomicU64::new(500));
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) && next.load(Ordering::Relaxed) < 3500 {
                        commit(&store, next.fetch_add(1, Ordering::Relaxed));
                        std::thread::sleep(Duration::from_micros(50));
                    }
                });
            }
            for _ in 0..20 {
                let mut nothing = || {};
                let mut taken = Taken::new(&mut nothing);
                let end = walk(&store, dir.path(), BackupHead::default(), |_| Some(0), &mut taken).unwrap();
                assert_eq!(taken.values, at(&store, end.revision));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn large_values_that_go_meanwhile_are_not_missed_and_those_that_stay_are_there() {
        let store = MemoryStore::new();
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &[u8]| {
            let id = store.put_large(text, now()).unwrap();
            store.commit(Batch::new().put_naming(name, "x", [id])).unwrap();
            id
        };
        put("policy/a", b"swept meanwhile");
        let stays = put("policy/b", b"stays");
        let mut swept = false;
        let mut meanwhile = || {
            if !std::mem::replace(&mut swept, true) {
                store.commit(Batch::new().delete("policy/a")).unwrap();
                store.sweep_large(now() + Duration::from_secs(1)).unwrap();
            }
        };
        let mut taken = Taken::new(&mut meanwhile);
        walk(&store, dir.path(), BackupHead::default(), |_| Some(0), &mut taken).unwrap();
        assert!(taken.large.contains(stays.0.as_slice()));
        assert!(!taken.values.contains_key(b"policy/a".as_slice()));
    }

    fn memory(field: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// 30 MB of values, as a large trust domain has them.
    #[test]
    fn a_backup_of_100_000_entries_takes_no_memory_for_them() {
        const ENTRIES: u64 = 100_000;
        // Of this test alone, in a process of its own.
        if std::env::var_os("HOPLITE_ALONE").is_none() {
            let name = "backup::source::tests::a_backup_of_100_000_entries_takes_no_memory_for_them";
            let alone = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env("HOPLITE_ALONE", "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&alone.stdout);
            println!(
                "{}",
                said.lines()
                    .find(|line| line.contains(" entries: "))
                    .unwrap_or_default()
            );
            assert!(alone.status.success() && said.contains("1 passed"), "{alone:?}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path().join("store")).unwrap();
        for n in 0..ENTRIES / 5000 {
            let keys = (n * 5000..(n + 1) * 5000).map(key);
            let batch = keys.fold(Batch::new(), |batch, key| batch.put(key, vec![b'x'; 300]));
            store.commit(batch).unwrap();
        }
        // The highest from here on.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = memory("VmRSS:");
        struct Counted(u64, u64);
        impl Take for Counted {
            fn take(&mut self, part: Part) -> Result<(), BackupError> {
                let part = hoplite_wire::ca::BackupPart { part: Some(part) };
                let mut bytes = Vec::new();
                hoplite_wire::write_part(&mut bytes, &part).unwrap();
                (self.0, self.1) = (self.0 + bytes.len() as u64, self.1.max(bytes.len() as u64));
                Ok(())
            }
        }
        let mut counted = Counted(0, 0);
        let started = hoplite_host::clock::moment();
        let end = walk(&store, dir.path(), BackupHead::default(), |_| Some(0), &mut counted).unwrap();
        let (took, grown) = (started.elapsed(), memory("VmHWM:").saturating_sub(before));
        let Counted(bytes, longest) = counted;
        println!(
            "{ENTRIES} entries: {bytes} bytes in {took:?}, parts of at most {longest}, {} KiB more memory at most",
            grown >> 10
        );
        assert_eq!(end.values, ENTRIES);
        // What sled reads it keeps for a while, some 27 MiB of it; all entries at once would be 31 MiB besides.
        assert!(longest < 2 * PART_BYTES as u64 && grown < 40 << 20, "{longest} {grown}");
    }
}
