//! A process that commits is killed, many times: whatever it acknowledged is there when the store is opened again. For the tests of
//! each store that outlives a process, and of the server of one that has a server.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "these are tests: they fail by panicking"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::{Batch, LargeId, Mutation, Store};

/// How often the process is killed.
pub const ROUNDS: u64 = 25;

/// The process that is killed: commits until it is, and prints what was acknowledged. Ends when the store fails.
pub fn commit_for_ever(store: &dyn Store) {
    let mut out = std::io::stdout().lock();
    loop {
        let mut batch = Batch::new();
        let next = store.revision() + 1;
        for Mutation { key, value } in mutations(next) {
            batch = match value {
                Some(value) => {
                    let large = large(next, &key);
                    let Ok(named) = large
                        .map(|bytes| store.put_large(&bytes, SystemTime::now()))
                        .transpose()
                    else {
                        return;
                    };
                    batch.put_naming(key, value, named)
                }
                None => batch.delete(key),
            };
        }
        // What was put for the batch at hand is spared by its age.
        if next.is_multiple_of(5) && store.sweep_large(SystemTime::now() - Duration::from_secs(60)).is_err() {
            return;
        }
        let Ok(revision) = store.commit(batch) else { return };
        writeln!(out, "acknowledged {revision}").unwrap();
        out.flush().unwrap();
    }
}

/// Has the process started (`child`), and killed (`kill`) in the middle of it, again and again; judges the store each time.
pub fn nothing_acknowledged_is_lost(
    child: &mut dyn FnMut() -> Command,
    kill: &mut dyn FnMut(&mut Child),
    open: &mut dyn FnMut() -> Box<dyn Store>,
) {
    let seed = std::env::var("SEED").map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    eprintln!("SEED={seed}");
    let mut dice = Dice(seed);
    let (mut last, mut named) = (0, 0);
    for round in 0..ROUNDS {
        let acknowledged = commit_until_killed(&mut child(), kill, &mut dice).unwrap_or(last);
        let store = open();
        let revision = store.revision();
        // One more may have been written and not yet acknowledged.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&revision),
            "round {round}: {acknowledged} acknowledged, {revision} there"
        );
        named += judge(&*store, revision);
        last = revision;
    }
    assert!(named > ROUNDS, "large values were named: {named} in {ROUNDS} rounds");
    assert!(last > ROUNDS, "the child got somewhere: {last}");
}

/// Starts a child, lets it go on for a random while, kills it; the last revision it acknowledged.
fn commit_until_killed(command: &mut Command, kill: &mut dyn FnMut(&mut Child), dice: &mut Dice) -> Option<u64> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let acknowledgements = dice.below(60);
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut last = None;
    let mut seen = 0;
    while seen < acknowledgements {
        let line = lines.next().expect("the child goes on until it is killed");
        if let Some(revision) = acknowledged(&line) {
            last = Some(revision);
            seen += 1;
        }
    }
    // Somewhere inside the next commit, or before the first: the moment of the kill is the point, not a wait for it.
    std::thread::sleep(Duration::from_micros(dice.below(3000)));
    kill(&mut child);
    child.wait().unwrap();
    lines.filter_map(|line| acknowledged(&line)).last().or(last)
}

fn acknowledged(line: &str) -> Option<u64> {
    // The first one may follow what the test harness wrote without an end of line.
    let (_, revision) = line.split_once("acknowledged ")?;
    revision.parse().ok()
}

/// What commit number `revision` writes: a function of nothing else, so that the judge needs no memory.
fn mutations(revision: u64) -> Vec<Mutation> {
    let mut dice = Dice(revision);
    if dice.below(15) == 0 {
        return many(revision, dice);
    }
    let count = 1 + dice.below(8);
    let writes: BTreeMap<u64, Option<Vec<u8>>> = (0..count)
        .map(|_| {
            let key = dice.below(50);
            let size = match dice.below(40) {
                0 => 200_000, // sled keeps such a value in a file of its own
                1..4 => 20_000,
                _ => dice.below(300),
            };
            let value = (dice.below(5) != 0).then(|| {
                let seed = revision.to_be_bytes();
                seed.iter().copied().cycle().take(size as usize).collect()
            });
            (key, value)
        })
        .collect();
    writes
        .into_iter()
        .map(|(key, value)| Mutation {
            key: format!("key {key:03}").into(),
            value,
        })
        .collect()
}

/// So many that a store may write them in several steps.
fn many(revision: u64, mut dice: Dice) -> Vec<Mutation> {
    let count = 300 + dice.below(900);
    let first = dice.below(1000);
    let write = |n: u64| Mutation {
        key: format!("many {n:04}").into(),
        value: (!(n + revision).is_multiple_of(7)).then(|| format!("{n} by {revision}").into()),
    };
    (first..first + count).map(write).collect()
}

/// The large value that a write of this commit names; most name none.
fn large(revision: u64, key: &[u8]) -> Option<Vec<u8>> {
    if key.starts_with(b"many") {
        return None;
    }
    let mut dice = Dice(revision ^ u64::from(crc(key)));
    let size = dice.below(100_000) as usize;
    (dice.below(10) == 0).then(|| {
        revision
            .to_be_bytes()
            .iter()
            .chain(key)
            .copied()
            .cycle()
            .take(size)
            .collect()
    })
}

fn crc(key: &[u8]) -> u32 {
    key.iter()
        .fold(7, |sum: u32, byte| sum.rotate_left(5) ^ u32::from(*byte))
}

/// The store holds exactly what commits 1 to `revision` wrote. Gives the number of large values that are named.
fn judge(store: &dyn Store, revision: u64) -> u64 {
    let mut expected = BTreeMap::new();
    for at in 1..=revision {
        for Mutation { key, value } in mutations(at) {
            match value {
                Some(value) => expected.insert(key, (at, value)),
                None => expected.remove(&key),
            };
        }
    }
    // Whatever nobody names goes; what somebody names is there.
    store.sweep_large(SystemTime::now() + Duration::from_secs(60)).unwrap();
    let named = expected.iter().filter_map(|(key, (at, _))| large(*at, key));
    let mut count = 0;
    for bytes in named {
        let found = store.large(&LargeId::of(&bytes)).unwrap();
        assert!(
            found.is_some_and(|found| found == bytes),
            "a large value at revision {revision} differs"
        );
        count += 1;
    }
    let found: BTreeMap<_, _> = store
        .snapshot()
        .unwrap()
        .entries
        .into_iter()
        .map(|(key, found)| (key, (found.revision, found.value)))
        .collect();
    assert!(found == expected, "contents at revision {revision} differ");
    count
}

/// A small generator (splitmix64): the same numbers on every run from the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
