//! What a recorder promises: order, durability, failures that stay, and names that never repeat.

use std::os::unix::fs::PermissionsExt;
use std::task::Wake;
use std::thread::Thread;

use super::*;
use crate::segment::FORMAT;
use crate::testing::{SMALL, copy, files, open, read, record, write};
use crate::{Query, ReadError, Record, Tail, read_log, verify_log};

fn findings(directory: &Path) -> usize {
    verify_log(directory).unwrap().findings.len()
}

fn append(recorder: &Recorder, n: u64, class: Class) -> Record {
    let mut record = record(n);
    let appended = recorder.append(&mut record, class).unwrap();
    assert_eq!((&appended.id, appended.seq), (&record.id, record.id.seq));
    record
}

#[test]
fn records_are_named_in_order_through_rotation_and_boots() {
    let directory = tempfile::tempdir().unwrap();
    let written = write(directory.path(), &[7, 0, 2]);
    let ids: Vec<String> = written.iter().map(|record| record.id.to_string()).collect();
    let expected =
        ["1-0", "1-1", "1-2", "1-3", "1-4", "1-5", "1-6", "3-0", "3-1"].map(|id| format!("ledger-000000000000000{id}"));
    assert_eq!(ids, expected);
    assert_eq!(read(directory.path()), (written, 0));
    let segments = files(directory.path())
        .into_iter()
        .filter(|name| name.ends_with(".seg"))
        .count();
    assert_eq!(segments, 3 + 1 + 1);
    assert_eq!(findings(directory.path()), 0);
}

/// Yesterday's copy is put back and written on: nothing gets a name that something else has.
#[test]
fn a_restored_directory_repeats_no_id() {
    let directory = tempfile::tempdir().unwrap();
    let boot = |directory: &Path| {
        let (recorder, repair) = Recorder::open(directory, "ledger", SMALL).unwrap();
        assert_eq!(repair, Repair::default());
        (0..5).map(|n| append(&recorder, n, Class::Full).id).collect::<Vec<_>>()
    };
    boot(directory.path());
    let restored = copy(directory.path());
    let lost = boot(directory.path());
    let (mut all, findings) = (boot(restored.path()), findings(restored.path()));
    assert_eq!(findings, 0, "what a copy lacks cannot be seen in it alone");
    all.extend(lost);
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), 10, "{all:?}");
    // Both in one directory are told apart, and told of.
    for name in files(restored.path()).into_iter().filter(|name| name != "head") {
        std::fs::copy(restored.path().join(&name), directory.path().join(&name)).unwrap();
    }
    let report = verify_log(directory.path()).unwrap();
    assert!(report.findings[0].problem.contains("both have place 2"), "{report:?}");
}

/// The log of the version before: neither continued nor taken for an empty one.
#[test]
fn another_format_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let old = "0000000001-00000000000000000000.seg";
    std::fs::write(directory.path().join(old), [&b"hopseg\x00\x01"[..], &[0; 124]].concat()).unwrap();
    let error = Recorder::open(directory.path(), "ledger", SMALL)
        .unwrap_err()
        .to_string();
    for part in ["format 1", "format 2", old, "mv "] {
        assert!(error.contains(part), "`{part}` is missing from `{error}`");
    }
    assert_eq!(files(directory.path()), [old], "nothing is touched");
    let read = read_log(directory.path(), &Query::default()).map(|_| ());
    assert!(matches!(read, Err(ReadError::OtherFormat { found: 1, .. })), "{read:?}");
    let tail = Tail::open(directory.path(), false).map(|mut tail| tail.poll()).err();
    assert!(matches!(tail, Some(ReadError::OtherFormat { found: 1, .. })));
    let report = verify_log(directory.path()).unwrap();
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.problem.contains("format 1")),
        "{report:?}"
    );
    // The next version's, under a name of ours.
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &[1]);
    let newest = directory.path().join(files(directory.path())[0].clone());
    let mut bytes = std::fs::read(&newest).unwrap();
    bytes[7] = FORMAT + 1;
    std::fs::write(newest, bytes).unwrap();
    let error = Recorder::open(directory.path(), "ledger", SMALL).unwrap_err();
    assert!(matches!(error, RecorderError::OtherFormat { found: 3, .. }), "{error}");
}

#[test]
fn names_that_would_not_survive_in_an_id_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["", "Orders", "orders/1", "orders 1", "ö", &"x".repeat(65)] {
        let error = Recorder::open(directory.path(), name, SMALL).unwrap_err();
        assert!(matches!(error, RecorderError::InvalidName(_)), "{name}: {error}");
    }
}

#[test]
fn one_recorder_to_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = open(directory.path());
    let clone = first.clone();
    drop(first);
    let error = Recorder::open(directory.path(), "ledger", SMALL).unwrap_err();
    assert!(matches!(error, RecorderError::InUse { .. }), "{error}");
    drop(clone);
    let error = Recorder::open(directory.path(), "orders", SMALL).unwrap_err();
    assert!(matches!(error, RecorderError::OtherRecorder { .. }), "{error}");
    assert_eq!(open(directory.path()).0.boot(), BootId::from_bits(2));
}

#[test]
fn everything_is_private() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("logs/ledger");
    write(&directory, &[5]);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for name in files(&directory).iter().map(String::as_str).chain(["lock"]) {
        assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
    }
}

/// What the head covers was flushed: nothing here waits for `flush_after`, which is an hour.
#[test]
fn durable_means_that_the_head_covers_it() {
    let directory = tempfile::tempdir().unwrap();
    let (recorder, _) = open(directory.path());
    let covered = || Head::read(directory.path()).unwrap().unwrap().unwrap().records;
    append(&recorder, 0, Class::Full);
    let must = append(&recorder, 1, Class::Must);
    recorder.wait_durable(must.id.seq).unwrap();
    assert_eq!(covered(), 2);
    // A full one that somebody waits for after all.
    let full = append(&recorder, 2, Class::Full);
    block_on(recorder.durable(full.id.seq)).unwrap();
    assert_eq!(covered(), 3);
    block_on(recorder.durable(0)).unwrap();
    append(&recorder, 3, Class::Full);
    assert_eq!(covered(), 3);
    drop(recorder);
    assert_eq!(covered(), 4);
}

/// An auditor verifies while records are written: the head in the middle of a write is no damage.
#[test]
fn a_head_that_is_being_written_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        flush_after: Duration::ZERO,
        ..SMALL
    };
    let (recorder, _) = Recorder::open(directory.path(), "ledger", options).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..300 {
                append(&recorder, n, Class::Full);
            }
        });
        while !writer.is_finished() {
            assert!(Head::read(directory.path()).unwrap().unwrap().is_ok());
        }
    });
}

#[test]
fn full_records_are_flushed_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        flush_after: Duration::from_millis(1),
        ..SMALL
    };
    let (recorder, _) = Recorder::open(directory.path(), "ledger", options).unwrap();
    append(&recorder, 0, Class::Full);
    while Head::read(directory.path()).unwrap().unwrap().unwrap().records == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn waiting_for_what_was_never_written_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let (recorder, _) = open(directory.path());
    assert!(matches!(recorder.wait_durable(0), Err(RecorderError::NotAppended(0))));
    assert!(matches!(
        block_on(recorder.durable(7)),
        Err(RecorderError::NotAppended(7))
    ));
}

#[test]
fn many_writers_share_one_order() {
    let directory = tempfile::tempdir().unwrap();
    let (recorder, _) = open(directory.path());
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let recorder = &recorder;
            scope.spawn(move || {
                for n in 0..25 {
                    let class = if n % 5 == 0 { Class::Must } else { Class::Full };
                    let seq = append(recorder, writer * 100 + n, class).id.seq;
                    if class == Class::Must && writer % 2 == 0 {
                        recorder.wait_durable(seq).unwrap();
                    } else if class == Class::Must {
                        block_on(recorder.durable(seq)).unwrap();
                    }
                }
            });
        }
    });
    drop(recorder);
    let (records, errors) = read(directory.path());
    assert!(records.iter().map(|record| record.id.seq).eq(0..200));
    let paths: std::collections::BTreeSet<_> = records.iter().map(|record| record.path.clone()).collect();
    assert_eq!((errors, paths.len(), findings(directory.path())), (0, 200, 0));
}

#[test]
fn a_future_that_is_dropped_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let (recorder, _) = open(directory.path());
    let seq = append(&recorder, 0, Class::Full).id.seq;
    let mut future = Box::pin(recorder.durable(seq));
    let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(future);
    assert!(recorder.owner.shared.lock().waiting.is_empty());
    recorder.wait_durable(seq).unwrap();
}

#[test]
fn a_record_too_large_is_refused_alone() {
    let directory = tempfile::tempdir().unwrap();
    let (recorder, _) = open(directory.path());
    let mut large = record(0);
    large.reason = Some("x".repeat(PAYLOAD_BYTES_MAX));
    assert!(matches!(
        recorder.append(&mut large, Class::Must),
        Err(RecorderError::TooLarge(_))
    ));
    assert_eq!(append(&recorder, 1, Class::Must).id.seq, 0);
}

#[test]
fn after_a_failure_every_append_fails() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("log");
    let (recorder, _) = open(&directory);
    let mut kept = Vec::new();
    // The next segment cannot be begun.
    let moved = parent.path().join("moved");
    std::fs::rename(&directory, &moved).unwrap();
    let error = loop {
        let mut record = record(kept.len() as u64);
        match recorder.append(&mut record, Class::Full) {
            Ok(_) => kept.push(record),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, RecorderError::Disturbed { .. }), "{error}");
    assert!(error.to_string().contains(&directory.display().to_string()), "{error}");
    std::fs::rename(&moved, &directory).unwrap();
    for class in [Class::Full, Class::Must] {
        assert!(recorder.append(&mut record(0), class).is_err());
    }
    assert!(recorder.wait_durable(kept.len() as u64).is_err());
    drop(recorder);
    assert_eq!(read(&directory), (kept, 0));
    assert_eq!(findings(&directory), 0);
}

#[test]
fn a_failure_is_told_to_who_waits_for_one() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("log");
    let (recorder, _) = open(&directory);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| block_on(recorder.failed()));
        let seq = append(&recorder, 0, Class::Must).id.seq;
        recorder.wait_durable(seq).unwrap();
        assert!(!waiting.is_finished(), "nothing has failed");
        std::fs::rename(&directory, parent.path().join("moved")).unwrap();
        let error = loop {
            if let Err(error) = recorder.append(&mut record(1), Class::Full) {
                break error;
            }
        };
        assert_eq!(waiting.join().unwrap().to_string(), error.to_string());
    });
    // Who asks afterwards is told too, and who stops waiting leaves nothing behind.
    let _ = block_on(recorder.failed());
    assert!(recorder.owner.shared.lock().waiting.is_empty());
}

/// Whatever somebody does to the files of a running recorder, it notices and writes nothing more, whether it is busy or
/// not. A record that is gone has no id that was given out a second later.
#[test]
fn what_is_done_to_the_files_is_noticed() {
    use std::fs;
    type Deed = fn(&Path);
    fn segment(directory: &Path) -> PathBuf {
        let segments = files(directory).into_iter().filter(|name| name.ends_with(".seg"));
        directory.join(segments.max().unwrap())
    }
    fn cut(path: &Path, to: u64) {
        File::options().write(true).open(path).unwrap().set_len(to).unwrap();
    }
    let deeds: [(&str, Deed); 11] = [
        ("the segment is removed", |log| fs::remove_file(segment(log)).unwrap()),
        ("it is renamed", |log| {
            fs::rename(segment(log), log.join("000-old")).unwrap();
        }),
        ("it is emptied", |log| cut(&segment(log), 0)),
        ("its end is cut", |log| {
            let segment = segment(log);
            cut(&segment, segment.metadata().unwrap().len() - 1);
        }),
        ("a copy is put in its place", |log| {
            fs::copy(segment(log), log.join("copy")).unwrap();
            fs::rename(log.join("copy"), segment(log)).unwrap();
        }),
        ("somebody else appends to it", |log| {
            File::options()
                .append(true)
                .open(segment(log))
                .unwrap()
                .write_all(b"x")
                .unwrap();
        }),
        ("the head is removed", |log| fs::remove_file(log.join("head")).unwrap()),
        ("the lock is removed, and another process locks anew", |log| {
            fs::remove_file(log.join("lock")).unwrap();
            let lock = File::create(log.join("lock")).unwrap();
            lock.try_lock().unwrap();
        }),
        ("the directory is removed", |log| fs::remove_dir_all(log).unwrap()),
        ("the directory is renamed", |log| {
            fs::rename(log, log.with_extension("old")).unwrap();
        }),
        ("an older copy of the directory is put in its place", |log| {
            let copy = copy(log);
            fs::rename(log, log.with_extension("old")).unwrap();
            fs::rename(copy.keep(), log).unwrap();
        }),
    ];
    let large = Options {
        segment_bytes_max: 1 << 20,
        ..SMALL
    };
    for (what, deed) in deeds {
        for busy in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let directory = parent.path().join("log");
            let (recorder, _) = Recorder::open(&directory, "ledger", large.clone()).unwrap();
            let kept = append(&recorder, 0, Class::Must).id;
            recorder.wait_durable(kept.seq).unwrap();
            deed(&directory);
            let done = Instant::now();
            if busy {
                // As fast as it goes: what it writes must not hide what was done.
                while recorder.append(&mut record(1), Class::Full).is_ok() {}
            }
            let error = block_on(recorder.failed());
            assert!(done.elapsed() < Duration::from_secs(1), "{what}: {:?}", done.elapsed());
            assert!(matches!(error, RecorderError::Disturbed { .. }), "{what}: {error}");
            assert!(error.to_string().contains(&directory.display().to_string()), "{error}");
            assert!(recorder.append(&mut record(2), Class::Full).is_err(), "{what}");
        }
    }
}

/// What nobody touched goes on, idle or not, and over the beginning of new segments.
#[test]
fn what_is_left_alone_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (recorder, _) = open(directory.path());
    let start = Instant::now();
    let mut n = 0;
    while start.elapsed() < 3 * LOOK_EVERY {
        append(&recorder, n, Class::Full);
        n += 1;
        if n.is_multiple_of(200) {
            std::thread::sleep(LOOK_EVERY / 5);
        }
    }
    drop(recorder);
    assert_eq!(read(directory.path()).0.len() as u64, n);
    assert_eq!(findings(directory.path()), 0);
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest runtime.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
