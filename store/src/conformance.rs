//! What every store must do, for the tests of each store: see the macro [`conformance!`](crate::conformance!).
//!
//! `open` makes an empty store that keeps [`KEEP`] commits of history, a new one each time.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "these are tests: they fail by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use crate::{
    BATCH_BYTES_MAX, Batch, Change, CommitError, Condition, KEY_BYTES_MAX, LARGE_BYTES_MAX, LARGE_PER_KEY_MAX,
    LargeError, LargeId, Mutation, Revision, Store, Versioned, Watch, WatchError,
};

/// How many commits of history the store under test keeps: few, so that compaction is reached.
pub const KEEP: u64 = 64;

const NOW: Duration = Duration::ZERO;
/// Longer than any commit takes; never waited for in a test that passes.
const SOON: Duration = Duration::from_secs(30);

/// Makes an empty store that keeps [`KEEP`] commits of history.
pub type Open<'a> = &'a mut dyn FnMut() -> Box<dyn Store>;

type Case = fn(Open<'_>);

/// A module `$name` with one test for each thing that a store must do. `$open` is a closure that makes an empty store,
/// which keeps [`KEEP`](crate::conformance::KEEP) commits of history; it is called several times.
///
/// ```
/// use hoplite_store::MemoryStore;
/// use hoplite_store::conformance::KEEP;
///
/// hoplite_store::conformance!(memory, || Box::new(MemoryStore::keeping(KEEP)));
/// ```
#[macro_export]
macro_rules! conformance {
    ($name:ident, $open:expr) => {
        mod $name {
            #[allow(
                unused_imports,
                clippy::allow_attributes,
                reason = "what opens the store may need none of them"
            )]
            use super::*;
            $crate::conformance_cases!(conformance_tests, $open);
        }
    };
}

/// The one list of cases: calls the macro `$then` with it.
#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($then:ident, $with:expr) => {
        $crate::$then! {
            ($with)
            begins_empty
            revisions_have_no_gaps
            preconditions_are_checked_before_the_batch
            a_batch_is_all_or_nothing
            the_last_word_on_a_key_counts
            bounds_are_enforced
            range_is_ordered_and_exact
            pages_add_up_to_the_whole
            values_come_back_byte_for_byte
            a_watch_sees_what_was_and_what_comes
            a_watch_waits_for_a_commit
            compaction_is_said
            the_future_is_an_error
            a_watch_ends_with_its_store
            every_watcher_sees_every_commit_of_concurrent_writers
            one_of_many_wins_a_key
            snapshots_are_of_one_revision
            agrees_with_the_model
            large_values_come_back
            a_commit_names_only_what_is_there
            a_large_value_stays_while_a_key_names_it
            a_sweep_spares_what_was_put_lately
            large_values_are_no_changes
            a_sweep_takes_nothing_from_a_publisher
            large_values_agree_with_the_model
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    (($open:expr) $($case:ident)*) => {
        $(#[test] fn $case() { $crate::conformance::run(stringify!($case), &mut $open); })*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_table {
    (($unused:expr) $($case:ident)*) => {
        /// Every case by its name. A function that is not in the list is dead code, which the lints refuse.
        const CASES: &[(&str, Case)] = &[$((stringify!($case), $case)),*];
    };
}

conformance_cases!(conformance_table, ());

/// Runs one case.
///
/// # Panics
/// The store does not do what it must, or there is no such case.
pub fn run(case: &str, open: Open<'_>) {
    let (_, run) = CASES
        .iter()
        .find(|(name, _)| *name == case)
        .expect("a case of this name");
    run(open);
}

fn begins_empty(open: Open<'_>) {
    let store = open();
    assert_eq!(store.revision(), 0);
    assert_eq!(store.get(b"k").unwrap(), None);
    let snapshot = store.snapshot().unwrap();
    assert_eq!((snapshot.revision, snapshot.entries.len()), (0, 0));
    assert_eq!(store.watch(0).unwrap().next(NOW).unwrap(), None);
}

fn revisions_have_no_gaps(open: Open<'_>) {
    let store = open();
    assert_eq!(store.commit(Batch::new().put("a", "1")).unwrap(), 1);
    // What does not commit takes no number.
    assert!(matches!(store.commit(Batch::new()), Err(CommitError::Empty)));
    let refused = store.commit(Batch::new().require("a", Condition::Absent).put("a", "2"));
    assert!(matches!(refused, Err(CommitError::Precondition { .. })));
    assert_eq!(store.commit(Batch::new().delete("not there")).unwrap(), 2);
    assert_eq!(store.revision(), 2);
    assert_eq!(
        store.get(b"a").unwrap(),
        Some(Versioned {
            value: b"1".into(),
            revision: 1,
            names: Vec::new(),
        })
    );
}

fn preconditions_are_checked_before_the_batch(open: Open<'_>) {
    use Condition::{Absent, At, Present};
    let store = open();
    store.commit(Batch::new().put("old", "1").put("gone", "1")).unwrap();
    store.commit(Batch::new().put("new", "2").delete("gone")).unwrap();
    let cases: &[(&str, Condition, bool)] = &[
        ("old", Absent, false),
        ("old", Present, true),
        ("old", At(0), false),
        ("old", At(1), true),
        ("old", At(2), false),
        ("new", At(2), true),
        ("new", At(1), false),
        ("gone", Absent, true),
        ("gone", Present, false),
        ("gone", At(1), false),
        ("gone", At(2), false),
        ("never", Absent, true),
        ("never", Present, false),
        ("never", At(0), false),
        // Not what the batch itself is about to write.
        ("written here", Present, false),
        ("written here", Absent, true),
    ];
    for &(key, condition, holds) in cases {
        let before = store.revision();
        let batch = Batch::new().require(key, condition).put("written here", "x");
        match store.commit(batch) {
            Ok(revision) => {
                assert!(holds, "{key} {condition:?} held");
                assert_eq!(revision, before + 1);
                store.commit(Batch::new().delete("written here")).unwrap();
            }
            Err(CommitError::Precondition { key: named }) => {
                assert!(!holds, "{key} {condition:?} did not hold");
                assert_eq!((named.as_slice(), store.revision()), (key.as_bytes(), before));
            }
            Err(other) => panic!("{key} {condition:?}: {other}"),
        }
    }
}

fn a_batch_is_all_or_nothing(open: Open<'_>) {
    let store = open();
    store.commit(Batch::new().put("a", "1").put("b", "1")).unwrap();
    let before = store.snapshot().unwrap();
    let refused = Batch::new()
        .put("a", "2")
        .delete("b")
        .put("c", "2")
        .require("a", Condition::At(1))
        .require("c", Condition::Present);
    assert!(matches!(store.commit(refused), Err(CommitError::Precondition { key }) if key == b"c"));
    assert_eq!(store.snapshot().unwrap(), before);
    assert_eq!(store.watch(1).unwrap().next(NOW).unwrap(), None);
}

fn the_last_word_on_a_key_counts(open: Open<'_>) {
    let store = open();
    store
        .commit(
            Batch::new()
                .put("a", "1")
                .put("a", "2")
                .put("b", "1")
                .delete("b")
                .delete("c")
                .put("c", "3"),
        )
        .unwrap();
    let change = store.watch(0).unwrap().next(NOW).unwrap().unwrap();
    let put = |key: &str, value: &str| Mutation {
        key: key.into(),
        value: Some(value.into()),
    };
    let mutations = vec![
        put("a", "2"),
        Mutation {
            key: b"b".into(),
            value: None,
        },
        put("c", "3"),
    ];
    assert_eq!(change, Change { revision: 1, mutations });
    assert_eq!(store.get(b"b").unwrap(), None);
}

fn bounds_are_enforced(open: Open<'_>) {
    let store = open();
    let key = |length| vec![b'k'; length];
    store.commit(Batch::new().put(key(KEY_BYTES_MAX), "")).unwrap();
    let refused = store.commit(Batch::new().put(key(KEY_BYTES_MAX + 1), ""));
    assert!(matches!(refused, Err(CommitError::KeyTooLong(length)) if length == KEY_BYTES_MAX + 1));
    store
        .commit(Batch::new().put("k", vec![7; BATCH_BYTES_MAX - 1]))
        .unwrap();
    let refused = store.commit(Batch::new().put("k", vec![7; BATCH_BYTES_MAX]));
    assert!(matches!(refused, Err(CommitError::TooLarge(size)) if size == BATCH_BYTES_MAX + 1));
    assert_eq!(store.get(b"k").unwrap().unwrap().value, vec![7; BATCH_BYTES_MAX - 1]);
    assert_eq!(store.revision(), 2);
}

fn range_is_ordered_and_exact(open: Open<'_>) {
    let store = open();
    let keys: [&[u8]; 8] = [b"a", b"a/", b"a/1", b"a/2", b"a0", b"b", b"\xff", b"\xff\xff"];
    let batch = keys.iter().rev().fold(Batch::new(), |batch, key| batch.put(*key, *key));
    store.commit(batch).unwrap();
    let cases: &[(&[u8], std::ops::Range<usize>)] = &[
        (b"", 0..8),
        (b"a", 0..5),
        (b"a/", 1..4),
        (b"a/2", 3..4),
        (b"a/3", 0..0),
        (b"b", 5..6),
        (b"\xff", 6..8),
        (b"\xff\xff", 7..8),
    ];
    for (prefix, expected) in cases {
        let snapshot = store.range(prefix).unwrap();
        let found: Vec<&[u8]> = snapshot.entries.iter().map(|(key, _)| key.as_slice()).collect();
        assert_eq!(found, keys[expected.clone()], "under `{}`", prefix.escape_ascii());
        assert!(
            snapshot
                .entries
                .iter()
                .all(|(key, found)| found.revision == 1 && found.value == *key)
        );
    }
}

fn pages_add_up_to_the_whole(open: Open<'_>) {
    let store = open();
    assert!(store.page(None, 100).unwrap().entries.is_empty());
    let large = store.put_large(b"large", at(1)).unwrap();
    store.commit(Batch::new().put_naming("k5", "large", [large])).unwrap();
    for n in 0..40 {
        let key = format!("k{n}");
        let batch = Batch::new().put(format!("j{n}"), vec![7; n * 10]);
        let batch = if n == 5 { batch } else { batch.put(key, "v") };
        store.commit(batch.delete("j7")).unwrap();
    }
    for bytes in [0, 1, 50, 300, 1 << 20] {
        let (mut all, mut after, mut pages) = (Vec::new(), None::<Vec<u8>>, 0);
        loop {
            let page = store.page(after.as_deref(), bytes).unwrap();
            assert_eq!(page.revision, store.revision());
            let Some((last, _)) = page.entries.last() else { break };
            after = Some(last.clone());
            all.extend(page.entries);
            pages += 1;
        }
        assert_eq!(all, store.snapshot().unwrap().entries, "pages of {bytes}");
        let named = all.iter().find(|(key, _)| key == b"k5").unwrap();
        assert_eq!(named.1.names, [large]);
        assert_eq!(store.get(b"k5").unwrap().unwrap().names, [large]);
        match bytes {
            0 | 1 => assert_eq!(pages, all.len()),
            300 => assert!((5..40).contains(&pages), "{pages}"),
            _ => assert!(pages < all.len()),
        }
    }
    // What comes after a page is of a later moment; nothing of it is kept.
    store.commit(Batch::new().put("k5/", "new")).unwrap();
    assert_eq!(store.page(Some(b"k5"), 1).unwrap().entries[0].0, b"k5/");
}

fn values_come_back_byte_for_byte(open: Open<'_>) {
    let store = open();
    // Beyond sled's segment size too, where it changes to files of their own.
    for size in [0, 1, 4096, 100_000, 200_000, 1_000_000] {
        let value: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let revision = store.commit(Batch::new().put("k", value.clone())).unwrap();
        assert_eq!(
            store.get(b"k").unwrap(),
            Some(Versioned {
                value,
                revision,
                names: Vec::new(),
            }),
            "{size} bytes"
        );
    }
    let change = store.watch(0).unwrap().next(NOW).unwrap().unwrap();
    assert_eq!(
        change.mutations,
        [Mutation {
            key: b"k".into(),
            value: Some(Vec::new())
        }],
        "empty is not deleted"
    );
}

fn a_watch_sees_what_was_and_what_comes(open: Open<'_>) {
    let store = open();
    for revision in 1..=5u64 {
        store.commit(Batch::new().put("k", revision.to_string())).unwrap();
    }
    let mut from_start = store.watch(0).unwrap();
    let mut from_three = store.watch(3).unwrap();
    let mut from_end = store.watch(5).unwrap();
    assert_eq!(seen(&mut from_start), [1, 2, 3, 4, 5]);
    assert_eq!(seen(&mut from_three), [4, 5]);
    assert_eq!(seen(&mut from_end), []);
    store.commit(Batch::new().put("k", "6")).unwrap();
    assert_eq!(
        (seen(&mut from_start), seen(&mut from_three), seen(&mut from_end)),
        (vec![6], vec![6], vec![6])
    );
    assert_eq!(from_end.seen(), 6);
}

fn a_watch_waits_for_a_commit(open: Open<'_>) {
    let store = open();
    let mut watch = store.watch(0).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || watch.next(SOON));
        store.commit(Batch::new().put("k", "1")).unwrap();
        assert_eq!(waiter.join().unwrap().unwrap().unwrap().revision, 1);
    });
}

fn compaction_is_said(open: Open<'_>) {
    let store = open();
    let mut slow = store.watch(0).unwrap();
    let newest = KEEP + 10;
    for revision in 1..=newest {
        store.commit(Batch::new().put("k", revision.to_string())).unwrap();
    }
    let oldest = newest - KEEP + 1;
    assert!(matches!(slow.next(NOW), Err(WatchError::Compacted { oldest: said }) if said == oldest));
    for from in [0, 1, oldest - 2] {
        assert!(
            matches!(store.watch(from), Err(WatchError::Compacted { oldest: said }) if said == oldest),
            "{from}"
        );
    }
    for from in [oldest - 1, oldest, newest] {
        let expected: Vec<Revision> = (from + 1..=newest).collect();
        assert_eq!(seen(&mut store.watch(from).unwrap()), expected);
    }
}

fn the_future_is_an_error(open: Open<'_>) {
    let store = open();
    store.commit(Batch::new().put("k", "1")).unwrap();
    for from in [2, 3, u64::MAX] {
        assert!(matches!(store.watch(from), Err(WatchError::Future { current: 1, from: said }) if said == from));
    }
}

fn a_watch_ends_with_its_store(open: Open<'_>) {
    let store = open();
    let mut watch = store.watch(0).unwrap();
    let waiter = std::thread::spawn(move || watch.next(SOON));
    drop(store);
    assert!(matches!(waiter.join().unwrap(), Err(WatchError::Closed)));
}

fn every_watcher_sees_every_commit_of_concurrent_writers(open: Open<'_>) {
    const WRITERS: u64 = 4;
    const EACH: u64 = KEEP / WRITERS;
    let store: Arc<dyn Store> = Arc::from(open());
    std::thread::scope(|scope| {
        let watchers: Vec<_> = (0..3)
            .map(|_| {
                let mut watch = store.watch(0).unwrap();
                scope.spawn(move || -> Vec<Change> {
                    (0..WRITERS * EACH)
                        .map(|_| watch.next(SOON).unwrap().expect("a change in time"))
                        .collect()
                })
            })
            .collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || -> Vec<(Revision, String)> {
                    let commit = |i| {
                        let value = format!("{writer}:{i}");
                        (
                            store
                                .commit(Batch::new().put(format!("w{writer}"), value.clone()))
                                .unwrap(),
                            value,
                        )
                    };
                    (0..EACH).map(commit).collect()
                })
            })
            .collect();
        let mut acknowledged: Vec<_> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        acknowledged.sort();
        assert!(
            acknowledged
                .iter()
                .map(|(revision, _)| *revision)
                .eq(1..=WRITERS * EACH)
        );
        for watcher in watchers {
            let changes = watcher.join().unwrap().into_iter();
            let told = changes.map(|change| {
                let value = change.mutations[0].value.clone().unwrap();
                (change.revision, String::from_utf8(value).unwrap())
            });
            assert_eq!(told.collect::<Vec<_>>(), acknowledged);
        }
    });
}

fn one_of_many_wins_a_key(open: Open<'_>) {
    // A one-time token: burnt by exactly one of those who try at once.
    let store = open();
    for round in 0..8 {
        let token = format!("token/{round}");
        store.commit(Batch::new().put(token.clone(), "unused")).unwrap();
        let at = store.revision();
        let winners = std::thread::scope(|scope| {
            let attempts: Vec<_> = (0..4)
                .map(|_| {
                    let batch = Batch::new()
                        .require(token.clone(), Condition::At(at))
                        .put(token.clone(), "used");
                    scope.spawn(|| store.commit(batch).is_ok())
                })
                .collect();
            attempts
                .into_iter()
                .map(|attempt| attempt.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
    }
}

fn snapshots_are_of_one_revision(open: Open<'_>) {
    let store = open();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for i in 0..40u64 {
                let batch = (0..10).fold(Batch::new(), |batch, key| batch.put(format!("k{key}"), i.to_string()));
                store.commit(batch).unwrap();
            }
        });
        while !writer.is_finished() {
            let snapshot = store.snapshot().unwrap();
            let uniform = snapshot
                .entries
                .iter()
                .all(|(_, found)| found.revision == snapshot.revision);
            assert!(uniform && (snapshot.revision == 0 || snapshot.entries.len() == 10));
        }
    });
}

/// The trait in the fewest lines: a map and a list.
#[derive(Default)]
struct Model {
    entries: BTreeMap<Vec<u8>, Versioned>,
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
struct Step {
    require: Option<(u8, Condition)>,
    writes: BTreeMap<u8, Option<Vec<u8>>>,
}

impl Model {
    fn commit(&mut self, step: &Step) -> Option<Revision> {
        if let Some((key, condition)) = &step.require {
            let at = self.entries.get(&vec![*key]).map(|found| found.revision);
            let holds = match condition {
                Condition::Absent => at.is_none(),
                Condition::Present => at.is_some(),
                Condition::At(revision) => at == Some(*revision),
            };
            if !holds {
                return None;
            }
        }
        let revision = self.changes.len() as u64 + 1;
        let mut mutations = Vec::new();
        for (key, value) in &step.writes {
            match value {
                Some(value) => self.entries.insert(
                    vec![*key],
                    Versioned {
                        value: value.clone(),
                        revision,
                        names: Vec::new(),
                    },
                ),
                None => self.entries.remove(&vec![*key]),
            };
            mutations.push(Mutation {
                key: vec![*key],
                value: value.clone(),
            });
        }
        self.changes.push(Change { revision, mutations });
        Some(revision)
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let condition = prop_oneof![
        Just(Condition::Absent),
        Just(Condition::Present),
        (0..20u64).prop_map(Condition::At)
    ];
    let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
    let step = (
        proptest::option::of((0..6u8, condition)),
        proptest::collection::btree_map(0..6u8, value, 1..4),
    )
        .prop_map(|(require, writes)| Step { require, writes });
    proptest::collection::vec(step, 1..30)
}

fn agrees_with_the_model(open: Open<'_>) {
    let open = std::cell::RefCell::new(open);
    let config = ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in steps())| {
        let store = open.borrow_mut()();
        let mut model = Model::default();
        for step in &steps {
            let mut batch = Batch::new();
            if let Some((key, condition)) = step.require {
                batch = batch.require([key], condition);
            }
            for (key, value) in &step.writes {
                batch = match value {
                    Some(value) => batch.put([*key], value.clone()),
                    None => batch.delete([*key]),
                };
            }
            prop_assert_eq!(store.commit(batch).ok(), model.commit(step));
            let entries: Vec<_> = model.entries.clone().into_iter().collect();
            prop_assert_eq!(store.snapshot().unwrap().entries, entries);
        }
        prop_assert_eq!(store.revision(), model.changes.len() as u64);
        let mut watch = store.watch(0).unwrap();
        for change in model.changes {
            prop_assert_eq!(watch.next(NOW).unwrap(), Some(change));
        }
        prop_assert_eq!(watch.next(NOW).unwrap(), None);
    });
}

/// When large values are put in these tests, and so many seconds later.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn large_values_come_back(open: Open<'_>) {
    let store = open();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(store.put_large(b"abc", at(0)).unwrap().to_string(), abc, "SHA-256");
    for size in [0, 1, 65_536, BATCH_BYTES_MAX + 1] {
        let value: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let id = store.put_large(&value, at(0)).unwrap();
        assert_eq!(id, LargeId::of(&value));
        assert!(store.large(&id).unwrap().unwrap() == value, "{size} bytes");
        assert_eq!(store.put_large(&value, at(1)).unwrap(), id, "once more");
        assert!(store.large(&id).unwrap().unwrap() == value, "{size} bytes");
    }
    assert_eq!(store.large(&LargeId::of(b"never put")).unwrap(), None);
    let refused = store.put_large(&vec![0; LARGE_BYTES_MAX + 1], at(0));
    assert!(matches!(refused, Err(LargeError::TooLarge(size)) if size == LARGE_BYTES_MAX + 1));
}

fn a_commit_names_only_what_is_there(open: Open<'_>) {
    let store = open();
    let there = store.put_large(b"there", at(0)).unwrap();
    let absent = LargeId::of(b"absent");
    let batch = Batch::new().put("a", "1").put_naming("b", "1", [there, absent]);
    assert!(matches!(store.commit(batch), Err(CommitError::MissingLarge(id)) if id == absent));
    assert_eq!((store.revision(), store.get(b"a").unwrap()), (0, None));
    let batch = Batch::new()
        .require("b", Condition::Present)
        .put_naming("b", "1", [absent]);
    assert!(
        matches!(store.commit(batch), Err(CommitError::Precondition { .. })),
        "what was read has changed: said first"
    );
    let batch = |count| Batch::new().put_naming("b", "1", vec![there; count]);
    assert!(matches!(
        store.commit(batch(LARGE_PER_KEY_MAX + 1)),
        Err(CommitError::TooManyLarge(_))
    ));
    assert_eq!(store.commit(batch(LARGE_PER_KEY_MAX)).unwrap(), 1);
    store.sweep_large(at(1)).unwrap();
    assert!(store.large(&there).unwrap().is_some(), "named often, and there");
    store.put_large(b"absent", at(0)).unwrap();
    assert_eq!(store.sweep_large(at(1)).unwrap(), [absent]);
    let refused = store.commit(Batch::new().put_naming("c", "1", [absent]));
    assert!(matches!(refused, Err(CommitError::MissingLarge(_))), "swept since");
}

fn a_large_value_stays_while_a_key_names_it(open: Open<'_>) {
    let store = open();
    let id = store.put_large(b"shared", at(0)).unwrap();
    let swept = || {
        (
            store.sweep_large(at(9)).unwrap().len(),
            store.large(&id).unwrap().is_some(),
        )
    };
    store
        .commit(Batch::new().put_naming("a", "1", [id]).put_naming("b", "1", [id]))
        .unwrap();
    assert_eq!(swept(), (0, true));
    store.commit(Batch::new().delete("a")).unwrap();
    assert_eq!(swept(), (0, true), "the other names it");
    store.commit(Batch::new().put_naming("b", "2", [id])).unwrap();
    assert_eq!(swept(), (0, true), "still");
    store
        .commit(Batch::new().put_naming("c", "1", [id]).put("b", "3"))
        .unwrap();
    assert_eq!(swept(), (0, true), "from one to another in one commit");
    let refused = Batch::new().delete("c").require("a", Condition::Present);
    store.commit(refused).unwrap_err();
    assert_eq!(swept(), (0, true), "that did not happen");
    let last = Batch::new().put_naming("c", "2", [id]).put("c", "3");
    store.commit(last).unwrap();
    assert_eq!(swept(), (1, false), "the last word on a key counts");
    assert_eq!(swept(), (0, false));
}

fn a_sweep_spares_what_was_put_lately(open: Open<'_>) {
    let store = open();
    let (old, new) = (
        store.put_large(b"old", at(0)).unwrap(),
        store.put_large(b"new", at(5)).unwrap(),
    );
    assert_eq!(store.sweep_large(at(0)).unwrap(), []);
    store.put_large(b"old", at(5)).unwrap();
    assert_eq!(store.sweep_large(at(5)).unwrap(), [], "put again, so new again");
    store.put_large(b"new", at(9)).unwrap();
    assert_eq!(store.sweep_large(at(6)).unwrap(), [old]);
    assert_eq!(
        (store.large(&old).unwrap(), store.large(&new).unwrap()),
        (None, Some(b"new".to_vec()))
    );
}

fn large_values_are_no_changes(open: Open<'_>) {
    let store = open();
    let mut watch = store.watch(0).unwrap();
    let id = store.put_large(b"large", at(0)).unwrap();
    assert_eq!((store.revision(), watch.next(NOW).unwrap()), (0, None));
    store.commit(Batch::new().put_naming("a", "1", [id])).unwrap();
    let mutations = vec![Mutation {
        key: b"a".into(),
        value: Some(b"1".into()),
    }];
    assert_eq!(watch.next(NOW).unwrap(), Some(Change { revision: 1, mutations }));
    store.commit(Batch::new().delete("a")).unwrap();
    assert_eq!(seen(&mut watch), [2]);
    assert_eq!(store.sweep_large(at(1)).unwrap(), [id]);
    assert_eq!((store.revision(), watch.next(NOW).unwrap()), (2, None));
    assert!(store.snapshot().unwrap().entries.is_empty());
}

fn a_sweep_takes_nothing_from_a_publisher(open: Open<'_>) {
    const PUBLISHERS: u8 = 3;
    const EACH: u8 = 30;
    let store = open();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            let mut swept = 0;
            while !done.load(Ordering::Relaxed) {
                // As unkind as can be: nothing is too new.
                swept += store.sweep_large(at(1_000)).unwrap().len();
            }
            swept
        });
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let store = &store;
                scope.spawn(move || {
                    for turn in 0..EACH {
                        // All publish the same values, so that one's is another's to sweep.
                        let bytes = vec![turn; 4096];
                        loop {
                            let id = store.put_large(&bytes, at(0)).unwrap();
                            match store.commit(Batch::new().put_naming([publisher], [turn], [id])) {
                                Ok(_) => break,
                                Err(CommitError::MissingLarge(missing)) => assert_eq!(missing, id),
                                Err(other) => panic!("{other}"),
                            }
                        }
                        let found = store.large(&LargeId::of(&bytes)).unwrap();
                        assert!(found.is_some_and(|found| found == bytes), "what a key names is there");
                    }
                })
            })
            .collect();
        let published: Vec<_> = publishers.into_iter().map(|publisher| publisher.join()).collect();
        done.store(true, Ordering::Relaxed);
        sweeper.join().unwrap();
        published.into_iter().for_each(|published| published.unwrap());
    });
    store.sweep_large(at(1_000)).unwrap();
    for turn in 0..EACH {
        let kept = store.large(&LargeId::of(&vec![turn; 4096])).unwrap();
        assert_eq!(
            kept.is_some(),
            turn == EACH - 1,
            "only what the last turn named: {turn}"
        );
    }
}

#[derive(Debug, Clone)]
enum Move {
    Put(u8, u64),
    Name(u8, Vec<u8>),
    Delete(u8),
    Sweep(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (0..4u8, 0..20u64).prop_map(|(value, at)| Move::Put(value, at)),
        (0..3u8, proptest::collection::vec(0..4u8, 0..3)).prop_map(|(key, names)| Move::Name(key, names)),
        (0..3u8).prop_map(Move::Delete),
        (0..20u64).prop_map(Move::Sweep),
    ];
    proptest::collection::vec(one, 1..40)
}

fn large_values_agree_with_the_model(open: Open<'_>) {
    let open = std::cell::RefCell::new(open);
    let config = ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(moves in moves())| {
        let store = open.borrow_mut()();
        let mut there: BTreeMap<u8, u64> = BTreeMap::new();
        let mut named: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for step in moves {
            match step {
                Move::Put(value, put) => {
                    store.put_large(&[value], at(put)).unwrap();
                    there.insert(value, put);
                }
                Move::Name(key, names) => {
                    let ids = names.iter().map(|value| LargeId::of(&[*value]));
                    let committed = store.commit(Batch::new().put_naming([key], "", ids));
                    let missing = names.iter().any(|value| !there.contains_key(value));
                    prop_assert_eq!(matches!(committed, Err(CommitError::MissingLarge(_))), missing);
                    if committed.is_ok() {
                        named.insert(key, names);
                    }
                }
                Move::Delete(key) => {
                    store.commit(Batch::new().delete([key])).unwrap();
                    named.remove(&key);
                }
                Move::Sweep(before) => {
                    let held: BTreeSet<u8> = named.values().flatten().copied().collect();
                    let mut swept = BTreeSet::new();
                    there.retain(|value, put| {
                        let stays = held.contains(value) || *put >= before;
                        swept.extend((!stays).then(|| LargeId::of(&[*value])));
                        stays
                    });
                    let told: BTreeSet<LargeId> = store.sweep_large(at(before)).unwrap().into_iter().collect();
                    prop_assert_eq!(told, swept);
                }
            }
            for value in 0..4 {
                let found = store.large(&LargeId::of(&[value])).unwrap();
                prop_assert_eq!(found, there.contains_key(&value).then(|| vec![value]));
            }
        }
    });
}

fn seen(watch: &mut Watch) -> Vec<Revision> {
    std::iter::from_fn(|| watch.next(NOW).unwrap())
        .map(|change| change.revision)
        .collect()
}
