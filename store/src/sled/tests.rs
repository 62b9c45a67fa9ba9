//! Reopening, damage and refusals of the store on sled.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use super::format::{FORMAT, HEAD_BYTES, decode_head};
use super::*;
use crate::Filling;
use crate::conformance::KEEP;

fn open(directory: &Path) -> Result<SledStore, StoreError> {
    SledStore::open_keeping(directory, KEEP)
}

/// A directory with ten commits over two keys.
fn filled() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("store");
    let store = open(&directory).unwrap();
    for i in 1..=10u64 {
        store
            .commit(Batch::new().put(format!("k{}", i % 2), format!("value {i}")))
            .unwrap();
    }
    (parent, directory)
}

#[test]
fn reopening_keeps_everything_and_history_begins_with_it() {
    let (_parent, directory) = filled();
    let before = open(&directory).unwrap().snapshot().unwrap();
    assert_eq!(before.revision, 10);
    for round in 0..3 {
        let store = open(&directory).unwrap();
        assert_eq!(store.snapshot().unwrap(), before, "round {round}");
        assert!(matches!(store.watch(9), Err(WatchError::Compacted { oldest: 11 })));
        assert!(matches!(store.watch(11), Err(WatchError::Future { current: 10, .. })));
        store.watch(10).unwrap();
    }
    let store = open(&directory).unwrap();
    let mut watch = store.watch(10).unwrap();
    assert_eq!(store.commit(Batch::new().put("k", "v")).unwrap(), 11);
    let change = watch.next(Duration::ZERO).unwrap().unwrap();
    assert_eq!((change.revision, change.mutations.len()), (11, 1));
}

#[test]
fn it_keeps_as_many_changes_as_it_is_told() {
    let (_parent, directory) = filled();
    let store = SledStore::open_keeping(&directory, 3).unwrap();
    for _ in 11..=20 {
        store.commit(Batch::new().put("k", "v")).unwrap();
    }
    assert!(matches!(store.watch(16), Err(WatchError::Compacted { oldest: 18 })));
    let change = store.watch(17).unwrap().next(Duration::ZERO).unwrap().unwrap();
    assert_eq!(change.revision, 18);
}

#[test]
fn a_second_opener_is_told() {
    let (_parent, directory) = filled();
    let first = open(&directory).unwrap();
    let error = open(&directory).err().unwrap();
    assert!(matches!(error, StoreError::InUse { .. }));
    assert!(error.to_string().contains(&directory.display().to_string()), "{error}");
    drop(first);
    open(&directory).unwrap();
}

#[test]
fn the_directory_is_private() {
    let (_parent, directory) = filled();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("head"))), (0o700, 0o600));
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let error = open(&file.join("store")).err().unwrap();
    assert!(matches!(error, StoreError::Io { .. }));
    assert!(error.to_string().contains("file/store"), "{error}");
}

/// Damage done through sled, which then finds nothing wrong: our own checks must.
#[test]
fn damage_beneath_is_recognised() {
    type Harm = fn(&sled::Db);
    let cases: &[(&str, &str, Harm)] = &[
        ("value changed", "checksum", |db| {
            let mut item = db.get("dk1").unwrap().unwrap().to_vec();
            *item.last_mut().unwrap() ^= 1;
            db.insert("dk1", item).unwrap();
        }),
        ("value under another's name", "checksum", |db| {
            let item = db.get("dk1").unwrap().unwrap();
            db.insert("dk0", item).unwrap();
        }),
        ("value lost", "should hold 2", |db| drop(db.remove("dk1").unwrap())),
        ("value of old", "older version", |db| {
            db.insert("dk1", Value::seal(b"dk1", 7, b"value 7", &[]).1).unwrap();
        }),
        ("value truncated", "checksum", |db| {
            drop(db.insert("dk1", b"abc").unwrap())
        }),
        ("revision lost", "revision is gone", |db| drop(db.remove(META).unwrap())),
        ("everything lost", "revision is gone", |db| db.clear().unwrap()),
        (
            "another format",
            "in format 4, and this version of the program reads 3",
            |db| {
                let mut body = Meta::START.encode();
                body[0] = FORMAT + 1;
                db.insert(META, seal(META, &body).1).unwrap();
            },
        ),
        ("newest commits lost", "10 was acknowledged", |db| {
            let meta = Meta {
                revision: 9,
                contents: Digest::default(),
            };
            db.insert(META, seal(META, &meta.encode()).1).unwrap();
        }),
    ];
    for (name, expected, harm) in cases {
        let (_parent, directory) = filled();
        let store = open(&directory).unwrap();
        harm(&store.disk.db);
        store.disk.db.flush().unwrap();
        drop(store);
        let error = open(&directory).err().unwrap_or_else(|| panic!("{name}: believed"));
        assert!(matches!(error, StoreError::Damaged { .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(expected) && text.contains("restore it from a backup"),
            "{name}: {text}"
        );
        assert!(text.contains(&directory.display().to_string()), "{name}: {text}");
    }
}

#[test]
fn damage_is_recognised_while_open() {
    let (_parent, directory) = filled();
    let store = open(&directory).unwrap();
    store.disk.db.insert("dk1", b"rubbish and more").unwrap();
    assert!(matches!(store.get(b"k1"), Err(StoreError::Damaged { .. })));
    assert!(matches!(store.snapshot(), Err(StoreError::Damaged { .. })));
    let refused = store.commit(Batch::new().put("k1", "new"));
    assert!(matches!(refused, Err(CommitError::Store(StoreError::Damaged { .. }))));
}

#[test]
fn after_a_failed_write_nothing_goes_on() {
    let (_parent, directory) = filled();
    let store = open(&directory).unwrap();
    // sled's files for large values cannot be listed any more, so the commit cannot be made durable.
    std::fs::remove_dir_all(directory.join("blobs")).unwrap();
    let failed = store.commit(Batch::new().put("k1", "new"));
    assert!(
        matches!(failed, Err(CommitError::Store(StoreError::Io { .. }))),
        "{failed:?}"
    );
    assert_eq!(store.revision(), 10, "not published");
    assert!(matches!(store.get(b"k0"), Err(StoreError::Stopped { .. })));
    let refused = store.commit(Batch::new().put("k1", "new"));
    assert!(matches!(refused, Err(CommitError::Store(StoreError::Stopped { .. }))));
}

/// Flipped bits, shortened files: the store either opens with exactly what was there, or says that it is damaged.
#[test]
fn damaged_files_are_never_believed() {
    let (_parent, directory) = filled();
    let expected = open(&directory).unwrap().snapshot().unwrap();
    let length = std::fs::metadata(directory.join("db")).unwrap().len();
    let used = usize::try_from(length).unwrap().min(6000);
    let mut refused = 0;
    for file in ["db", "head", "conf"] {
        let original = std::fs::read(directory.join(file)).unwrap();
        let step = if file == "db" { 61 } else { 3 };
        for at in (0..original.len().min(used)).step_by(step) {
            for cut in [false, true] {
                let mut bytes = original.clone();
                if cut {
                    bytes.truncate(at)
                } else {
                    bytes[at] ^= 0x10
                }
                let copy = tempfile::tempdir().unwrap();
                copy_all(&directory, copy.path());
                std::fs::write(copy.path().join(file), bytes).unwrap();
                match open(copy.path()) {
                    Ok(store) => assert_eq!(store.snapshot().unwrap(), expected, "{file} at {at}, cut {cut}"),
                    Err(StoreError::Damaged { .. } | StoreError::Io { .. }) => refused += 1,
                    Err(other) => panic!("{file} at {at}, cut {cut}: {other}"),
                }
            }
        }
    }
    assert!(refused > 10, "the damage reached something: {refused}");
}

fn copy_all(from: &Path, to: &Path) {
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn encodings_come_back() {
    let meta = Meta {
        revision: 9,
        contents: Digest { count: 4, sum: 5 },
    };
    assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
    assert!(Meta::decode(&meta.encode()[1..]).is_err() && Meta::decode(&meta.encode()[..9]).is_err());
    assert_eq!(decode_head(&encode_head(7)), Some(7));
    assert_eq!(decode_head(&[0; HEAD_BYTES]), None);
}

#[test]
fn a_damaged_large_value_is_told_and_mended_by_putting_it_again() {
    let (_parent, directory) = filled();
    let store = open(&directory).unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let id = store.put_large(b"a bundle", now).unwrap();
    store.commit(Batch::new().put_naming("bundle", "1", [id])).unwrap();
    let file = store.disk.large.path(&id);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let harms: [(&str, &dyn Fn()); 3] = [
        ("is not what was put", &|| std::fs::write(&file, b"a bundlE").unwrap()),
        ("is not what was put", &|| std::fs::write(&file, b"").unwrap()),
        ("is gone", &|| std::fs::remove_file(&file).unwrap()),
    ];
    for (expected, harm) in harms {
        harm();
        let error = store.large(&id).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(store.get(b"bundle").unwrap().unwrap().revision, 11, "the rest goes on");
        store.put_large(b"a bundle", now).unwrap();
        assert_eq!(store.large(&id).unwrap().unwrap(), b"a bundle");
    }
}

#[test]
fn large_values_and_who_names_them_outlive_a_restart_and_unfinished_ones_do_not() {
    let (_parent, directory) = filled();
    let store = open(&directory).unwrap();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let named = store.put_large(b"named", now).unwrap();
    store.commit(Batch::new().put_naming("bundle", "1", [named])).unwrap();
    let stray = store.put_large(b"stray", now).unwrap();
    let unfinished = store.disk.large.write(&stray, b"half", now).unwrap();
    drop((unfinished, store));
    let files = || std::fs::read_dir(directory.join("large")).unwrap().count();
    assert_eq!(files(), 3);
    let store = open(&directory).unwrap();
    assert_eq!(files(), 2, "what was never finished is gone");
    assert_eq!(store.sweep_large(now + Duration::from_secs(1)).unwrap().len(), 1);
    assert_eq!(store.large(&named).unwrap().unwrap(), b"named");
    assert_eq!(store.large(&stray).unwrap(), None);
}

#[test]
fn a_large_value_that_cannot_be_written_stops_nothing() {
    let (_parent, directory) = filled();
    let store = open(&directory).unwrap();
    std::fs::remove_dir_all(directory.join("large")).unwrap();
    let failed = store.put_large(b"bundle", SystemTime::UNIX_EPOCH);
    assert!(
        matches!(failed, Err(LargeError::Store(StoreError::Io { .. }))),
        "{failed:?}"
    );
    store.commit(Batch::new().put("k1", "new")).unwrap();
}

#[test]
fn a_store_that_was_filled_goes_on_where_the_other_was() {
    let (_parent, directory) = filled();
    let store = open(&directory).unwrap();
    let now = SystemTime::UNIX_EPOCH;
    let large = store.put_large(b"a bundle", now).unwrap();
    store.commit(Batch::new().put_naming("bundle", "1", [large])).unwrap();
    let expected = store.snapshot().unwrap();

    let parent = tempfile::tempdir().unwrap();
    let fill = |directory: &Path, finish: Option<u64>| {
        let mut filling = Filling::begin(directory).unwrap();
        filling.put_large(b"a bundle", now).unwrap();
        filling.delete(b"never put").unwrap();
        for (key, held) in &expected.entries {
            let old = Versioned {
                revision: 1,
                ..held.clone()
            };
            filling.put(key, &old).unwrap();
            filling.put(key, held).unwrap();
        }
        finish.map(|revision| filling.finish(revision))
    };
    let whole = parent.path().join("whole");
    assert_eq!(fill(&whole, Some(11)).unwrap().unwrap(), expected.entries.len() as u64);
    let copy = open(&whole).unwrap();
    assert_eq!(copy.snapshot().unwrap(), expected);
    assert_eq!(copy.large(&large).unwrap().unwrap(), b"a bundle");
    assert!(matches!(copy.watch(10), Err(WatchError::Compacted { .. })));
    let mut watch = copy.watch(11).unwrap();
    assert_eq!(copy.commit(Batch::new().put("k", "v")).unwrap(), 12);
    assert_eq!(watch.next(Duration::ZERO).unwrap().unwrap().revision, 12);
    assert_eq!(copy.sweep_large(now + Duration::from_secs(9)).unwrap(), []);
    drop(copy);
    assert_eq!(open(&whole).unwrap().revision(), 12);
    assert!(matches!(Filling::begin(&whole), Err(StoreError::Damaged { .. })));

    // One that was not finished, or not of one revision, is none.
    let half = parent.path().join("half");
    assert!(fill(&half, None).is_none());
    assert!(matches!(open(&half), Err(StoreError::Damaged { .. })));
    let newer = parent.path().join("newer");
    assert!(matches!(fill(&newer, Some(10)), Some(Err(StoreError::Damaged { .. }))));
}

/// A commit of many writes, as it is kept while sled takes it: what it leads to, and its redo.
fn a_large_commit() -> (Snapshot, Redo) {
    let (_parent, directory) = filled();
    let store = open(&directory).unwrap();
    let puts = |batch: Batch, n: usize| batch.put(format!("many {n:04}"), format!("value {n}"));
    let batch = (0..3 * PART_WRITES).fold(Batch::new().delete("k0").put("k1", "new"), puts);
    assert_eq!(store.commit(batch).unwrap(), 11);
    assert_eq!(
        store.disk.redo.read().unwrap(),
        None,
        "forgotten once it is on the disk"
    );
    let after = store.snapshot().unwrap();
    let put = |(key, held): &(Vec<u8>, Versioned)| {
        let name = named(DATA, key);
        let (_, item) = Value::seal(&name, held.revision, &held.value, &held.names);
        (name, Some(item))
    };
    let mut items = vec![(named(DATA, b"k0"), None)];
    items.extend(after.entries.iter().map(put));
    let meta = store.disk.meta().unwrap().unwrap();
    (after, Redo { meta, items })
}

/// Gives sled so many parts of it and no revision, as one who died then.
fn begin(store: &SledStore, redo: &Redo, parts: usize) {
    for part in redo.items.chunks(PART_WRITES).take(parts) {
        let mut batch = sled::Batch::default();
        for (name, item) in part {
            match item {
                Some(item) => batch.insert(name.clone(), item.clone()),
                None => batch.remove(name.clone()),
            }
        }
        store.disk.db.apply_batch(batch).unwrap();
    }
    store.disk.db.flush().unwrap();
}

#[test]
fn a_commit_in_parts_is_carried_out_to_its_end_wherever_it_died() {
    let (after, redo) = a_large_commit();
    for parts in 0..=4 {
        let (_parent, directory) = filled();
        let store = open(&directory).unwrap();
        store.disk.redo.write(&redo.meta, &redo.items).unwrap();
        begin(&store, &redo, parts);
        drop(store);
        for round in 0..2 {
            let store = open(&directory).unwrap();
            assert_eq!(store.snapshot().unwrap(), after, "{parts} parts, round {round}");
            assert_eq!(store.disk.redo.read().unwrap(), None, "{parts} parts, round {round}");
        }
        let store = open(&directory).unwrap();
        assert_eq!(store.commit(Batch::new().put("k", "v")).unwrap(), 12);
    }
    // The very first commit of a store.
    let parent = tempfile::tempdir().unwrap();
    let store = open(parent.path()).unwrap();
    let batch = (0..2 * PART_WRITES).fold(Batch::new(), |batch, n| batch.put(format!("{n:04}"), "v"));
    store.commit(batch).unwrap();
    let (after, meta) = (store.snapshot().unwrap(), store.disk.meta().unwrap().unwrap());
    drop(store);
    let parent = tempfile::tempdir().unwrap();
    let store = open(parent.path()).unwrap();
    let put = |(key, held): &(Vec<u8>, Versioned)| {
        let name = named(DATA, key);
        let item = Value::seal(&name, 1, &held.value, &[]).1;
        (name, Some(item))
    };
    let items: Vec<Item> = after.entries.iter().map(put).collect();
    let redo = Redo { meta, items };
    store.disk.redo.write(&redo.meta, &redo.items).unwrap();
    begin(&store, &redo, 1);
    drop(store);
    assert_eq!(open(parent.path()).unwrap().snapshot().unwrap(), after);
}

#[test]
fn a_redo_that_is_left_over_changes_nothing_and_one_that_fits_nothing_is_damage() {
    let (_, redo) = a_large_commit();
    let (_parent, directory) = filled();
    let store = open(&directory).unwrap();
    for _ in 0..2 {
        store.commit(Batch::new().put("k1", "other")).unwrap();
    }
    let expected = store.snapshot().unwrap();
    store.disk.redo.write(&redo.meta, &redo.items).unwrap();
    drop(store);
    let store = open(&directory).unwrap();
    assert_eq!(store.snapshot().unwrap(), expected, "of a commit before");
    assert_eq!(store.disk.redo.read().unwrap(), None);

    type Harm<'a> = &'a dyn Fn(&SledStore, &Path);
    let redo = &redo;
    let later = Meta {
        revision: 12,
        ..redo.meta
    };
    let cases: &[(&str, &str, Harm<'_>)] = &[
        (
            "of a later commit",
            "ends at revision 10, but 12 was begun",
            &|store, _| {
                store.disk.redo.write(&later, &redo.items).unwrap();
            },
        ),
        ("cut", "redo file cannot be read", &|store, directory| {
            store.disk.redo.write(&redo.meta, &redo.items).unwrap();
            let file = File::options().write(true).open(directory.join("redo")).unwrap();
            file.set_len(1000).unwrap();
        }),
        ("lost, with a part there", "older version", &|store, _| {
            begin(store, redo, 1)
        }),
        ("of another state", "should hold", &|store, _| {
            let items = &redo.items[..redo.items.len() - 1];
            store.disk.redo.write(&redo.meta, items).unwrap();
        }),
    ];
    for (name, expected, harm) in cases {
        let (_parent, directory) = filled();
        let store = open(&directory).unwrap();
        harm(&store, &directory);
        drop(store);
        let error = open(&directory).err().unwrap_or_else(|| panic!("{name}: believed"));
        assert!(matches!(error, StoreError::Damaged { .. }), "{name}: {error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}
