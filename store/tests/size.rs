//! What the embedded store takes on the disk and in memory for what it holds.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use hoplite_store::{Batch, SledStore, Store};

/// A registered workload as a CA keeps it: the entry, and what makes its subject unique.
fn registration(number: u64) -> [(String, Vec<u8>); 2] {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let entry = format!(
        r#"{{"format":1,"spiffe_id":"spiffe://prod.example/team-{:03}/service-{number:06}","parent_id":"spiffe://prod.example/hoplite/agent/node-{:04}","selectors":["unix:uid:{number}","unix:path:/opt/service-{number}/bin/server"],"x509_ttl":0,"dns_names":[],"hint":"","federates_with":[],"created_at":1795898000}}"#,
        number % 200,
        number % 500
    );
    [
        (format!("entry/{spread:016x}{number:016x}"), entry.into_bytes()),
        (
            format!("subject/{:016x}{spread:016x}{number:032x}", spread.rotate_left(20)),
            format!(r#"{{"format":1,"id":"{spread:016x}{number:016x}"}}"#).into_bytes(),
        ),
    ]
}

fn disk(path: &Path) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    let below = if meta.is_dir() {
        path.read_dir().unwrap().map(|file| disk(&file.unwrap().path())).sum()
    } else {
        0
    };
    below + meta.blocks() * 512
}

/// What this process has in memory now, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Writes so many registrations in batches, and answers with the bytes of keys and values.
fn register(store: &SledStore, count: u64, batch_size: u64) -> u64 {
    let mut bytes = 0;
    for first in (0..count).step_by(usize::try_from(batch_size).unwrap()) {
        let mut batch = Batch::new().put("all/entry/", "");
        for (key, value) in (first..(first + batch_size).min(count)).flat_map(registration) {
            bytes += key.len() + value.len();
            batch = batch.put(key, value);
        }
        store.commit(batch).unwrap();
    }
    bytes as u64
}

#[test]
fn what_is_on_the_disk_and_in_memory_is_bounded_by_what_is_held_however_often_it_is_written() {
    const MIB: u64 = 1 << 20;
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("store");
    for batch_size in [1, 500, 10_000] {
        let store = SledStore::open(&directory).unwrap();
        let before = memory();
        for round in 1..=4 {
            let count = if batch_size == 1 { 1_000 } else { 10_000 };
            let held = register(&store, count, batch_size);
            let taken = disk(&directory);
            assert!(
                taken < 3 * held + 6 * MIB,
                "round {round} of {batch_size}: {taken} for {held}"
            );
        }
        let grown = memory().saturating_sub(before);
        assert!(grown < 48 * MIB, "{batch_size}: {} MiB", grown / MIB);
    }
}

#[test]
#[ignore = "a measurement: prints what so many registrations take"]
fn registrations() {
    let set = |name: &str, or: u64| std::env::var(name).map_or(or, |text| text.parse().unwrap());
    let (count, batch_size, rounds) = (set("ENTRIES", 185_000), set("BATCH", 200), set("ROUNDS", 1));
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("store");
    let say = |what: &str, started: Instant, held: u64| {
        let [held, taken, resident] = [held, disk(&directory), memory()].map(|bytes| bytes >> 20);
        println!(
            "{what} in {:?}: {held} MiB held, {taken} MiB on the disk, {resident} MiB resident",
            started.elapsed()
        );
    };
    let store = SledStore::open(&directory).unwrap();
    let mut held = 0;
    for round in 1..=rounds {
        let started = Instant::now();
        held = register(&store, count, batch_size);
        say(&format!("written, round {round},"), started, held);
    }
    drop(store);
    let started = Instant::now();
    let _store = SledStore::open(&directory).unwrap();
    say("opened", started, held);
}
