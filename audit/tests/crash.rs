//! A process that records decisions is killed, many times, or has no room left: what it acknowledged is there, in order
//! and unchanged.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use hoplite_audit::{
    BootId, Class, DecisionId, Options, Outcome, Phase, Query, Record, Recorder, RecorderError, read_log, verify_log,
};

const DIRECTORY: &str = "HOPLITE_AUDIT_CRASH_DIRECTORY";
const FULL_DIRECTORY: &str = "HOPLITE_AUDIT_FULL_DIRECTORY";
const ROUNDS: u64 = 25;
const OPTIONS: Options = Options {
    segment_bytes_max: 4096,
    flush_after: Duration::from_millis(2),
};

/// What a record says: a function of its name, so that the judge needs no memory.
fn record(boot: BootId, seq: u64) -> Record {
    let mut record = Record::new(Phase::Request, Outcome::Forbid, "ledger", std::time::SystemTime::now());
    record.at = UNIX_EPOCH + Duration::from_micros(boot.bits() % 1_000_000 * 1_000_000 + seq);
    record.path = Some(format!("/{boot}/{seq}/{}", "x".repeat((seq % 97) as usize)));
    record
}

/// The process that is killed; does nothing in an ordinary run.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let (recorder, _) = Recorder::open(Path::new(&directory), "ledger", OPTIONS).unwrap();
    let mut out = std::io::stdout().lock();
    for seq in 0.. {
        let class = if seq % 3 == 0 { Class::Must } else { Class::Full };
        let appended = recorder.append(&mut record(recorder.boot(), seq), class).unwrap();
        if class == Class::Must {
            recorder.wait_durable(appended.seq).unwrap();
        }
        // A killed process loses nothing that was appended, flushed or not.
        writeln!(out, "acknowledged {}", appended.id).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let seed = std::env::var("SEED").map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut dice = Dice(seed);
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("log");
    let mut last = None;
    for round in 0..ROUNDS {
        let acknowledged = record_until_killed(&directory, &mut dice);
        judge(&directory, acknowledged.as_ref().or(last.as_ref()), round);
        if dice.below(3) == 0 && directory.exists() {
            let (recorder, repair) = Recorder::open(&directory, "ledger", OPTIONS).unwrap();
            assert_eq!(repair.missing, 0, "round {round}");
            drop(recorder);
            judge(&directory, acknowledged.as_ref().or(last.as_ref()), round);
        }
        last = acknowledged.or(last);
    }
    assert!(last.is_some(), "the child got somewhere");
}

/// The process whose disk is full: it may write only so much, and says what it could.
#[test]
fn child_on_a_full_disk() {
    let Ok(directory) = std::env::var(FULL_DIRECTORY) else {
        return;
    };
    let options = Options {
        segment_bytes_max: 1 << 20,
        ..OPTIONS
    };
    let (recorder, _) = Recorder::open(Path::new(&directory), "ledger", options).unwrap();
    let mut seq = 0;
    let error = loop {
        match recorder.append(&mut record(recorder.boot(), seq), Class::Must) {
            Ok(appended) => println!("acknowledged {}", appended.id),
            Err(error) => break error,
        }
        seq += 1;
    };
    assert!(matches!(error, RecorderError::Io { .. }), "{error}");
    assert!(recorder.append(&mut record(recorder.boot(), seq), Class::Full).is_err());
    println!("\nstopped");
}

/// A partial write is taken back, and nothing is written after it.
#[test]
fn a_full_disk_stops_the_recorder() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("log");
    // A limit on the size of files stands in for the disk: the write that crosses it is cut short, the next one fails.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 9; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_on_a_full_disk", "--nocapture", "--test-threads=1"])
        .env(FULL_DIRECTORY, &directory)
        .output()
        .unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.lines().any(|line| line == "stopped"), "{output}");
    let last = output.lines().filter_map(acknowledged).next_back().unwrap();
    assert!(last.seq > 5);
    judge(&directory, Some(&last), 0);
    let report = verify_log(&directory).unwrap();
    assert_eq!((report.torn_bytes, report.records), (0, last.seq + 1));
}

/// Starts a child, lets it go on for a random while, kills it; the last record it acknowledged.
fn record_until_killed(directory: &Path, dice: &mut Dice) -> Option<DecisionId> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let acknowledgements = dice.below(300);
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut last = None;
    let mut seen = 0;
    while seen < acknowledgements {
        let line = lines.next().expect("the child goes on until it is killed");
        if let Some(id) = acknowledged(&line) {
            last = Some(id);
            seen += 1;
        }
    }
    // Somewhere inside the next record, or before the first: the moment of the kill is the point, not a wait for it.
    std::thread::sleep(Duration::from_micros(dice.below(2000)));
    child.kill().unwrap();
    child.wait().unwrap();
    lines.filter_map(|line| acknowledged(&line)).last().or(last)
}

fn acknowledged(line: &str) -> Option<DecisionId> {
    // The first one may follow what the test harness wrote without an end of line.
    let (_, id) = line.split_once("acknowledged ")?;
    id.parse().ok()
}

/// The log is whole, says what was written, and reaches at least to what was acknowledged last.
fn judge(directory: &Path, acknowledged: Option<&DecisionId>, round: u64) {
    let Some(acknowledged) = acknowledged else { return };
    let report = verify_log(directory).unwrap();
    assert_eq!(report.findings, [], "round {round}");
    let mut next: Option<(BootId, u64)> = None;
    let mut boots = BTreeSet::new();
    let mut reached = false;
    for found in read_log(directory, &Query::default()).unwrap() {
        let found = found.unwrap();
        let DecisionId { boot, seq, .. } = found.id;
        assert!(
            next == Some((boot, seq)) || (seq == 0 && boots.insert(boot)),
            "round {round}: {} after {next:?}",
            found.id
        );
        let mut expected = record(boot, seq);
        expected.id = found.id.clone();
        assert_eq!(found, expected, "round {round}");
        reached |= found.id == *acknowledged;
        next = Some((boot, seq + 1));
    }
    assert!(reached, "round {round}: {acknowledged} is gone");
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
