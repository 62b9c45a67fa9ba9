//! Logs for tests.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::id::BootId;
use crate::segment::{self, Head};
use crate::{Class, Options, Outcome, Phase, Query, Record, Recorder, Repair, read_log};

/// A few records to a segment.
pub(crate) const SMALL: Options = Options {
    segment_bytes_max: 480,
    flush_after: Duration::from_secs(3600),
};

pub(crate) fn record(n: u64) -> Record {
    let outcome = if n.is_multiple_of(3) {
        Outcome::Forbid
    } else {
        Outcome::Allow
    };
    let mut record = Record::new(Phase::Request, outcome, "ledger", std::time::SystemTime::now());
    record.at = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + n);
    record.path = Some(format!("/accounts/{n}"));
    record
}

/// The next boot, named by its place, so that names are the same in each run.
pub(crate) fn open(directory: &Path) -> (Recorder, Repair) {
    let named = |boot| Recorder::open_as(directory, "ledger", SMALL, BootId::from_bits(boot), None).unwrap();
    // Mending may remove a segment that was just begun, and then its place is free again.
    let head = Head::read(directory).ok().flatten().and_then(Result::ok);
    let segments = segment::list(directory)
        .map(|(segments, _)| segments)
        .unwrap_or_default();
    let mut place = head.map_or(0, |head| head.place);
    for name in segments {
        let segment = segment::Segment::read(directory, name).unwrap();
        if !segment.is_unborn(head.as_ref()) {
            place = place.max(name.place);
        }
    }
    named(place + 1)
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
