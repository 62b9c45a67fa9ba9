//! Several processes over one store.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use hoplite_postgres::testing::possible;
use hoplite_postgres::{Filling, PostgresStore};
use hoplite_store::{Batch, CommitError, Condition, Store, StoreError, WatchError};

use crate::suites::committing;
use crate::{own, shared};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn replicas_see_each_others_commits_and_large_values() {
    let Some(own) = shared("replicas_see_each_others_commits_and_large_values") else {
        return;
    };
    let settings = own.server.settings();
    let open = || PostgresStore::open(&settings).unwrap();
    let (one, other) = (open(), open());
    let mut watch = other.watch(0).unwrap();
    let bundle = one.put_large(b"bundle", SystemTime::UNIX_EPOCH).unwrap();
    one.commit(Batch::new().put_naming("bundle", "1", [bundle])).unwrap();
    let change = watch.next(SOON).unwrap().expect("a notice in time");
    assert_eq!((change.revision, other.revision()), (1, 1));
    assert_eq!(other.large(&bundle).unwrap().unwrap(), b"bundle");
    assert_eq!(other.sweep_large(SystemTime::now()).unwrap(), []);
    assert_eq!(other.commit(Batch::new().delete("bundle")).unwrap(), 2);
    assert_eq!(one.sweep_large(SystemTime::now()).unwrap(), [bundle]);
    // Whoever reads at a revision may watch from it, though nobody told him of it yet.
    for n in 0..50 {
        let revision = one.commit(Batch::new().put("k", n.to_string())).unwrap();
        let snapshot = other.snapshot().unwrap();
        assert_eq!(snapshot.revision, revision);
        other.watch(snapshot.revision).unwrap();
    }
    drop(other);
    assert!(
        !matches!(watch.next(Duration::ZERO), Ok(None)),
        "nothing comes any more"
    );
}

#[test]
fn a_notification_that_is_lost_loses_nothing() {
    let Some(own) = shared("a_notification_that_is_lost_loses_nothing") else {
        return;
    };
    let settings = own.server.settings();
    let store = PostgresStore::open(&settings).unwrap();
    let mut watch = store.watch(0).unwrap();
    let other = PostgresStore::open(&settings).unwrap();
    // Whoever listens listens to something else from now on; its connection stays.
    let deaf = format!(
        "CREATE FUNCTION {0}.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT'",
        settings.schema
    );
    own.server.sql(&deaf);
    own.server.sql("ALTER ROLE hoplite SET search_path = DEFAULT");
    other.commit(Batch::new().put("k", "v")).unwrap();
    let change = watch.next(SOON).unwrap().expect("a look in time");
    assert_eq!(change.revision, 1);
}

#[test]
fn of_a_hundred_on_two_replicas_one_wins() {
    let Some(own) = shared("of_a_hundred_on_two_replicas_one_wins") else {
        return;
    };
    let settings = own.server.settings();
    let replicas = [0, 1].map(|_| PostgresStore::open(&settings).unwrap());
    replicas[0].commit(Batch::new().put("token", "unspent")).unwrap();
    let won: usize = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..100)
            .map(|n| {
                let store = &replicas[n % 2];
                scope.spawn(move || {
                    let spend = Batch::new()
                        .require("token", Condition::At(1))
                        .put("token", n.to_string());
                    match store.commit(spend) {
                        Ok(revision) => {
                            assert_eq!(revision, 2);
                            1
                        }
                        Err(CommitError::Precondition { .. }) => 0,
                        Err(other) => panic!("{other}"),
                    }
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).sum()
    });
    assert_eq!(won, 1);
}

#[test]
fn a_process_that_stands_still_within_a_commit_holds_nobody_up_for_long() {
    if !possible("a_process_that_stands_still_within_a_commit_holds_nobody_up_for_long") {
        return;
    }
    let own = own("");
    let signal = |signal: &str, pid: u32| {
        let sent = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
        assert!(sent.success());
    };
    let mut child = committing(&own.server)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("acknowledged") {}
    let store = PostgresStore::open(&own.server.settings_of("crash")).unwrap();
    let holding = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND application_name = 'hoplite-ca'";
    // Until it was stopped where it holds the row.
    for attempt in 0.. {
        assert!(attempt < 500, "never stopped within a commit");
        signal("-STOP", child.id());
        if own.server.sql(holding) != "0" {
            break;
        }
        signal("-CONT", child.id());
        std::thread::sleep(Duration::from_micros(731 * (attempt % 7)));
    }
    let began = Instant::now();
    store.commit(Batch::new().put("mine", "1")).unwrap();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    signal("-CONT", child.id());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_older_copy_or_another_store_in_its_place_is_not_used() {
    let Some(own) = shared("an_older_copy_or_another_store_in_its_place_is_not_used") else {
        return;
    };
    for harm in ["revision = 2", "id = gen_random_uuid()"] {
        let settings = own.server.settings();
        let store = PostgresStore::open(&settings).unwrap();
        for n in 0..3 {
            store.commit(Batch::new().put("k", n.to_string())).unwrap();
        }
        own.server.sql(&format!("UPDATE {}.state SET {harm}", settings.schema));
        let refused = store.commit(Batch::new().put("k", "v"));
        assert!(
            matches!(refused, Err(CommitError::Store(StoreError::Stopped { .. }))),
            "{harm}: {refused:?}"
        );
        assert!(matches!(store.get(b"k"), Err(StoreError::Stopped { .. })), "{harm}");
        let revision = own
            .server
            .sql(&format!("SELECT revision FROM {}.state", settings.schema));
        assert_ne!(revision, "4", "{harm}: nothing was written");
    }
}

#[test]
fn what_was_changed_behind_its_back_is_not_believed() {
    let Some(own) = shared("what_was_changed_behind_its_back_is_not_believed") else {
        return;
    };
    let cases = [
        ("UPDATE item SET value = 'x' WHERE key = 'k1'", "checksum of item `k1`"),
        ("UPDATE item SET revision = 9 WHERE key = 'k1'", "checksum of item `k1`"),
        ("UPDATE item SET key = 'k9' WHERE key = 'k1'", "checksum of item `k9`"),
        ("DELETE FROM item WHERE key = 'k1'", "holds 1 values and should hold 2"),
        ("UPDATE state SET items = 3", "should hold 3"),
        ("DELETE FROM state", "`state` has no row"),
        ("UPDATE state SET format = 9", "its tables have format 9"),
    ];
    for (harm, expected) in cases {
        let settings = own.server.settings();
        let store = PostgresStore::open(&settings).unwrap();
        for n in 0..10 {
            store
                .commit(Batch::new().put(format!("k{}", n % 2), n.to_string()))
                .unwrap();
        }
        own.server
            .sql(&format!("SET search_path = {}; {harm}", settings.schema));
        let error = store.snapshot().unwrap_err().to_string();
        assert!(error.contains(expected), "{harm}: {error}");
        assert!(error.contains(&settings.location()), "{harm}: {error}");
    }
    let settings = own.server.settings();
    let store = PostgresStore::open(&settings).unwrap();
    for n in 0..5 {
        store.commit(Batch::new().put("k", n.to_string())).unwrap();
    }
    for (harm, at) in [
        ("UPDATE change SET mutations = 'x' WHERE revision = 2", 1),
        ("DELETE FROM change WHERE revision = 4", 3),
    ] {
        own.server
            .sql(&format!("SET search_path = {}; {harm}", settings.schema));
        let told = store.watch(at).unwrap().next(Duration::ZERO);
        assert!(
            matches!(told, Err(WatchError::Store(StoreError::Damaged { .. }))),
            "{harm}: {told:?}"
        );
    }
}

#[test]
fn a_store_that_was_filled_goes_on_where_the_other_was() {
    let Some(own) = shared("a_store_that_was_filled_goes_on_where_the_other_was") else {
        return;
    };
    let now = SystemTime::UNIX_EPOCH;
    let first = PostgresStore::open(&own.server.settings()).unwrap();
    let large = first.put_large(b"a bundle", now).unwrap();
    first.commit(Batch::new().put_naming("bundle", "1", [large])).unwrap();
    for n in 0..5 {
        first.commit(Batch::new().put(format!("k{n}"), "v")).unwrap();
    }
    let expected = first.snapshot().unwrap();
    let fill = |revision: Option<u64>, with_large: bool| {
        let settings = own.server.settings();
        let mut filling = Filling::begin(&settings).unwrap();
        for (key, held) in &expected.entries {
            filling.put(key, held).unwrap();
        }
        filling.put(b"gone", &expected.entries[0].1).unwrap();
        filling.delete(b"gone").unwrap();
        if with_large {
            filling.put_large(b"a bundle", now).unwrap();
        }
        (revision.map(|revision| filling.finish(revision)), settings)
    };
    let (filled, settings) = fill(Some(6), true);
    assert_eq!(filled.unwrap().unwrap(), 6);
    let copy = PostgresStore::open(&settings).unwrap();
    assert_eq!(copy.snapshot().unwrap(), expected);
    assert!(matches!(copy.watch(5), Err(WatchError::Compacted { .. })));
    assert_eq!(copy.commit(Batch::new().put("k", "v")).unwrap(), 7);
    assert_eq!(copy.sweep_large(now + Duration::from_secs(9)).unwrap(), []);
    let again = Filling::begin(&settings).err().unwrap().to_string();
    assert!(again.contains("there is a store in it already"), "{again}");
    // One that was not finished, or not of one revision, is none.
    let (_, settings) = fill(None, true);
    let error = PostgresStore::open(&settings).err().unwrap().to_string();
    assert!(error.contains("broken off"), "{error}");
    assert!(fill(Some(5), true).0.unwrap().is_err(), "newer values");
    assert!(fill(Some(6), false).0.unwrap().is_err(), "a large value is missing");
}
