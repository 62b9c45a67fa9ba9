//! Logs for tests.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::{Class, Options, Outcome, Phase, Query, Record, Recorder, Repair, read_log};

/// A few records to a segment.
pub(crate) const SMALL: Options = Options {
    segment_bytes_max: 440,
    flush_after: Duration::from_secs(3600),
};

pub(crate) fn record(n: u64) -> Record {
    let outcome = if n.is_multiple_of(3) {
        Outcome::Forbid
    } else {
        Outcome::Allow
    };
    let mut record = Record::new(Phase::Request, outcome, "ledger");
    record.at = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + n);
    record.path = Some(format!("/accounts/{n}"));
    record
}

pub(crate) fn open(directory: &Path) -> (Recorder, Repair) {
    Recorder::open(directory, "ledger", SMALL).unwrap()
}

/// One boot after another with so many records each, every one closed cleanly; what was written.
pub(crate) fn write(directory: &Path, boots: &[u64]) -> Vec<Record> {
    let mut written = Vec::new();
    for count in boots {
        let (recorder, repair) = open(directory);
        assert_eq!(repair, Repair::default());
        for n in 0..*count {
            let mut record = record(n);
            recorder.append(&mut record, Class::Full).unwrap();
            written.push(record);
        }
    }
    written
}

/// All that can be read, and how many errors were met.
pub(crate) fn read(directory: &Path) -> (Vec<Record>, usize) {
    let mut errors = 0;
    let records = read_log(directory, &Query::default()).unwrap();
    (
        records
            .filter_map(|record| record.map_err(|_| errors += 1).ok())
            .collect(),
        errors,
    )
}

pub(crate) fn files(directory: &Path) -> Vec<String> {
    let names = directory
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "lock").collect();
    names.sort();
    names
}

pub(crate) fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for name in files(from) {
        std::fs::copy(from.join(&name), to.path().join(&name)).unwrap();
    }
    to
}
