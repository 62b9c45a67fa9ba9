//! Every harm that can be done to a log, and the one finding that names it.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::segment::HEADER_BYTES;
use crate::testing::{copy, files, open, read, write};
use crate::{Class, Record};

/// Two segments of boot 1 (records 0–2 and 3–4), one of boot 2 (0–1).
fn log() -> (tempfile::TempDir, Vec<Record>) {
    let directory = tempfile::tempdir().unwrap();
    let written = write(directory.path(), &[5, 2]);
    let names = [
        "0000000001-0000000000000001-00000000000000000000.seg",
        "0000000001-0000000000000001-00000000000000000003.seg",
        SECOND_BOOT,
        "head",
    ];
    assert_eq!(files(directory.path()), names);
    (directory, written)
}

const FIRST: &str = "0000000001-0000000000000001-00000000000000000000.seg";
const SECOND: &str = "0000000001-0000000000000001-00000000000000000003.seg";
const SECOND_BOOT: &str = "0000000002-0000000000000002-00000000000000000000.seg";

const NOWHERE: SegmentName = SegmentName {
    place: 0,
    boot: BootId::from_bits(0),
    first_seq: 0,
};

/// `ledger-2-1` as it is in full.
fn full(id: &str) -> String {
    match id.split('-').collect::<Vec<_>>()[..] {
        [recorder, boot, seq] => format!("{recorder}-{boot:0>16}-{seq}"),
        _ => id.to_owned(),
    }
}

fn found(directory: &Path) -> Vec<String> {
    let findings = verify_log(directory).unwrap().findings.into_iter();
    findings
        .map(|finding| format!("{} {}", finding.segment, finding.id.unwrap_or_default()))
        .collect()
}

/// Header and frames of a segment, each as its bytes.
fn parts(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let segment = Segment::from_bytes(NOWHERE, bytes.clone());
    let mut parts = vec![bytes[..HEADER_BYTES].to_vec()];
    let mut at = HEADER_BYTES;
    for piece in segment.pieces() {
        parts.push(bytes[at..piece.end()].to_vec());
        at = piece.end();
    }
    parts
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let mut parts = parts(path);
    change(&mut parts);
    fs::write(path, parts.concat()).unwrap();
}

/// Another payload in a frame, with a checksum that holds; the hash is recomputed from the one before, or kept.
fn forge(parts: &mut [Vec<u8>], index: usize, recompute: bool) {
    let frame = &parts[index];
    let length = frame.len() - 40;
    let mut payload = frame[8..8 + length].to_vec();
    let at = payload.windows(8).position(|text| text == b"accounts").unwrap();
    payload[at] = b'A';
    let previous: Hash = parts[index - 1][parts[index - 1].len() - 32..].try_into().unwrap();
    let (mut forged, _) = Frame::encode(&previous, Kind::Decision, &payload);
    if !recompute {
        let hash: Hash = frame[frame.len() - 32..].try_into().unwrap();
        let crc = crc32c::crc32c(&[&forged[..4], &payload, &hash].concat());
        forged[4..8].copy_from_slice(&crc.to_be_bytes());
        let end = forged.len() - 32;
        forged[end..].copy_from_slice(&hash);
    }
    parts[index] = forged;
}

const RENAMED: &str = "0000000009-0000000000000009-00000000000000000000.seg";
const THIRD_COPY: &str = "0000000003-0000000000000002-00000000000000000000.seg";
const SECOND_PLACE: &str = "0000000002-0000000000000007-00000000000000000000.seg";

fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// Another kind in a frame, with a checksum that holds.
fn turn(frame: &mut [u8]) {
    frame[0] = Kind::Control.number();
    let crc = crc32c::crc32c(&[&frame[..4], &frame[8..]].concat());
    frame[4..8].copy_from_slice(&crc.to_be_bytes());
}

/// Another first time of the segment before, in a header whose checksum holds.
fn misdate(header: &mut Vec<u8>) {
    header[8 + 64 + 6 * 8 + 7] ^= 1;
    *header = resealed(header.clone());
}

/// The segment under the name of another boot, with a checksum that holds.
fn as_boot(path: &Path, place: u64, boot: u64) -> Vec<u8> {
    let mut parts = parts(path);
    parts[0][72..80].copy_from_slice(&place.to_be_bytes());
    parts[0][80..88].copy_from_slice(&boot.to_be_bytes());
    parts[0] = resealed(parts[0].clone());
    parts.concat()
}

#[test]
fn an_intact_log_has_no_findings() {
    let (directory, written) = log();
    let report = verify_log(directory.path()).unwrap();
    assert_eq!(
        report,
        Report {
            records: 7,
            segments: 3,
            boots: 2,
            kinds: [(Kind::Decision, 7)].into(),
            unknown: 0,
            findings: Vec::new(),
            torn_bytes: 0
        }
    );
    assert_eq!(read(directory.path()), (written, 0));
}

#[test]
fn a_directory_without_a_log_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(
        verify_log(directory.path()).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(
        verify_log(&directory.path().join("none")).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

/// What it is, how it is done, and the findings it must give: segment and decision id.
type Harm = (&'static str, fn(&Path), &'static [(&'static str, &'static str)]);

/// One harm, one finding, and it names the record.
const HARMS: &[Harm] = &[
    (
        "payload changed",
        |d| edit(&d.join(FIRST), |parts| parts[2][30] ^= 1),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "hash changed",
        |d| edit(&d.join(FIRST), |parts| *parts[2].last_mut().unwrap() ^= 1),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "checksum changed",
        |d| edit(&d.join(FIRST), |parts| parts[2][5] ^= 1),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "length changed",
        |d| edit(&d.join(FIRST), |parts| parts[2][3] ^= 1),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "length huge",
        |d| edit(&d.join(FIRST), |parts| parts[1][1] = 0xff),
        &[(FIRST, "ledger-1-0")],
    ),
    (
        "kind changed",
        |d| edit(&d.join(FIRST), |parts| parts[2][0] ^= 3),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "kind changed to none",
        |d| edit(&d.join(FIRST), |parts| parts[2][0] = 0),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "kind changed, checksum too",
        |d| edit(&d.join(FIRST), |parts| turn(&mut parts[2])),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "times changed, checksum too",
        |d| edit(&d.join(SECOND), |parts| misdate(&mut parts[0])),
        &[(SECOND, "")],
    ),
    (
        "boots swapped",
        |d| {
            let (first, second) = (parts(&d.join(FIRST)).concat(), parts(&d.join(SECOND_BOOT)).concat());
            fs::write(d.join(FIRST), second).unwrap();
            fs::write(d.join(SECOND_BOOT), first).unwrap();
        },
        &[(FIRST, ""), (SECOND, "ledger-1-2"), (SECOND_BOOT, "")],
    ),
    (
        "boots swapped, headers too",
        |d| {
            fs::write(d.join("x"), as_boot(&d.join(SECOND_BOOT), 1, 1)).unwrap();
            fs::write(d.join(SECOND_BOOT), as_boot(&d.join(FIRST), 2, 2)).unwrap();
            fs::rename(d.join("x"), d.join(FIRST)).unwrap();
        },
        &[
            (FIRST, ""),
            (FIRST, "ledger-1-0"),
            (SECOND, "ledger-1-2"),
            (SECOND_BOOT, ""),
            (SECOND_BOOT, "ledger-2-0"),
        ],
    ),
    (
        "boot twice",
        |d| fs::write(d.join(THIRD_COPY), as_boot(&d.join(SECOND_BOOT), 3, 2)).unwrap(),
        &[(THIRD_COPY, ""), (THIRD_COPY, "ledger-2-0")],
    ),
    (
        "two boots in one place",
        |d| fs::write(d.join(SECOND_PLACE), as_boot(&d.join(SECOND_BOOT), 2, 7)).unwrap(),
        &[(SECOND_PLACE, ""), (SECOND_PLACE, "ledger-7-0"), (SECOND_BOOT, "")],
    ),
    (
        "newest changed",
        |d| edit(&d.join(SECOND_BOOT), |parts| parts[2][30] ^= 1),
        &[(SECOND_BOOT, "ledger-2-1")],
    ),
    (
        "last of a segment changed",
        |d| edit(&d.join(FIRST), |parts| parts[3][30] ^= 1),
        &[(FIRST, "ledger-1-2")],
    ),
    (
        "forged, hash kept",
        |d| edit(&d.join(FIRST), |parts| forge(parts, 2, false)),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "forged, hash too",
        |d| edit(&d.join(FIRST), |parts| forge(parts, 2, true)),
        &[(FIRST, "ledger-1-2")],
    ),
    (
        "last forged, hash too",
        |d| edit(&d.join(FIRST), |parts| forge(parts, 3, true)),
        &[(SECOND, "ledger-1-3")],
    ),
    (
        "newest forged, hash too",
        |d| edit(&d.join(SECOND_BOOT), |parts| forge(parts, 2, true)),
        &[(SECOND_BOOT, "ledger-2-1")],
    ),
    (
        "record removed",
        |d| edit(&d.join(FIRST), |parts| drop(parts.remove(2))),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "first removed",
        |d| edit(&d.join(FIRST), |parts| drop(parts.remove(1))),
        &[(FIRST, "ledger-1-0")],
    ),
    (
        "last of a segment removed",
        |d| edit(&d.join(FIRST), |parts| drop(parts.pop())),
        &[(SECOND, "ledger-1-2")],
    ),
    (
        "last of a boot removed",
        |d| edit(&d.join(SECOND), |parts| drop(parts.pop())),
        &[(SECOND_BOOT, "ledger-1-4")],
    ),
    (
        "newest removed",
        |d| edit(&d.join(SECOND_BOOT), |parts| drop(parts.pop())),
        &[(SECOND_BOOT, "ledger-2-1")],
    ),
    (
        "newest cut in half",
        |d| edit(&d.join(SECOND_BOOT), |parts| parts[2].truncate(50)),
        &[(SECOND_BOOT, "ledger-2-1")],
    ),
    (
        "older cut in half",
        |d| edit(&d.join(FIRST), |parts| parts[3].truncate(50)),
        &[(FIRST, "ledger-1-2")],
    ),
    (
        "two swapped",
        |d| edit(&d.join(FIRST), |parts| parts.swap(1, 2)),
        &[(FIRST, "ledger-1-0")],
    ),
    (
        "last two swapped",
        |d| edit(&d.join(FIRST), |parts| parts.swap(2, 3)),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "one repeated",
        |d| edit(&d.join(FIRST), |parts| parts.insert(3, parts[2].clone())),
        &[(FIRST, "ledger-1-1")],
    ),
    (
        "first segment removed",
        |d| fs::remove_file(d.join(FIRST)).unwrap(),
        &[(SECOND, "ledger-1-0")],
    ),
    (
        "last of a boot's segments removed",
        |d| fs::remove_file(d.join(SECOND)).unwrap(),
        &[(SECOND_BOOT, "ledger-1-3")],
    ),
    (
        "newest boot removed",
        |d| fs::remove_file(d.join(SECOND_BOOT)).unwrap(),
        &[(SECOND_BOOT, "")],
    ),
    (
        "first boot removed",
        |d| {
            [FIRST, SECOND]
                .iter()
                .for_each(|name| fs::remove_file(d.join(name)).unwrap())
        },
        &[(SECOND_BOOT, "")],
    ),
    (
        "header changed",
        |d| edit(&d.join(SECOND), |parts| parts[0][90] ^= 1),
        &[(SECOND, "")],
    ),
    (
        "segment renamed",
        |d| fs::rename(d.join(SECOND), d.join(RENAMED)).unwrap(),
        &[(SECOND_BOOT, "ledger-1-3"), (RENAMED, "")],
    ),
    (
        "head removed",
        |d| fs::remove_file(d.join("head")).unwrap(),
        &[("head", "")],
    ),
    (
        "head emptied",
        |d| fs::write(d.join("head"), "").unwrap(),
        &[("head", "")],
    ),
    (
        "head too long",
        |d| fs::write(d.join("head"), [0; 1000]).unwrap(),
        &[("head", "")],
    ),
    (
        "a stranger",
        |d| fs::write(d.join("1-0.seg"), "").unwrap(),
        &[("1-0.seg", "")],
    ),
];

#[test]
fn one_harm_gives_one_finding_that_names_it() {
    for (name, harm, expected) in HARMS {
        let (directory, _) = log();
        harm(directory.path());
        let expected: Vec<String> = expected
            .iter()
            .map(|(segment, id)| format!("{segment} {}", full(id)))
            .collect();
        assert_eq!(
            found(directory.path()),
            expected,
            "{name}: {:#?}",
            verify_log(directory.path())
        );
    }
}

/// Opening neither stops at damage nor hides it.
#[test]
fn harm_stays_visible_after_the_next_boot() {
    for (name, harm, _) in HARMS {
        let (directory, written) = log();
        harm(directory.path());
        // A head that is missing or damaged is written anew; the rest was whole in those cases.
        if name.starts_with("head") {
            continue;
        }
        let (recorder, _) = open(directory.path());
        let mut last = crate::testing::record(9);
        recorder.append(&mut last, Class::Full).unwrap();
        drop(recorder);
        assert!(!found(directory.path()).is_empty(), "{name}");
        let (records, _) = read(directory.path());
        assert_eq!(records.last(), Some(&last), "{name}");
        // The copied segment has two.
        let copied = [THIRD_COPY, SECOND_PLACE].map(|name| directory.path().join(name).exists());
        let copied = if copied.contains(&true) { 2 } else { 0 };
        assert!(records.len() < written.len() + copied + 3, "{name}");
    }
}

#[test]
fn every_flipped_byte_is_found_and_none_makes_a_wrong_record() {
    let (directory, written) = log();
    for file in files(directory.path()) {
        let path = directory.path().join(file);
        let original = fs::read(&path).unwrap();
        for at in 0..original.len() {
            for bit in [0x01, 0x80] {
                let mut bytes = original.clone();
                bytes[at] ^= bit;
                fs::write(&path, bytes).unwrap();
                let context = format!("{} byte {at}", path.display());
                assert!(!found(directory.path()).is_empty(), "{context}");
                let (records, _) = read(directory.path());
                assert!(records.iter().all(|record| written.contains(record)), "{context}");
            }
        }
        fs::write(&path, original).unwrap();
    }
    assert_eq!(found(directory.path()), Vec::<String>::new());
}

#[test]
fn every_cut_is_found() {
    let (directory, written) = log();
    let last = directory.path().join(SECOND_BOOT);
    let original = fs::read(&last).unwrap();
    for length in 0..original.len() {
        fs::write(&last, &original[..length]).unwrap();
        assert!(!found(directory.path()).is_empty(), "at {length}");
        let (records, _) = read(directory.path());
        assert_eq!(records, written[..records.len()], "at {length}");
    }
}

/// Without a head that says otherwise, a cut end is what a crash leaves: cut off, counted, and written on.
#[test]
fn a_torn_tail_is_mended() {
    let (directory, written) = log();
    fs::remove_file(directory.path().join("head")).unwrap();
    let whole = fs::read(directory.path().join(SECOND_BOOT)).unwrap().len();
    let frames = parts(&directory.path().join(SECOND_BOOT));
    for length in 0..whole {
        let copy = copy(directory.path());
        let last = copy.path().join(SECOND_BOOT);
        let bytes = fs::read(&last).unwrap();
        fs::write(&last, &bytes[..length]).unwrap();
        let kept = match length.checked_sub(frames[0].len()) {
            None => 0,
            Some(rest) => usize::from(rest >= frames[1].len()),
        };
        let sound = if length < HEADER_BYTES {
            0
        } else {
            frames[..=kept].iter().map(Vec::len).sum()
        };
        let (recorder, repair) = open(copy.path());
        assert_eq!(
            (repair.torn_bytes, repair.missing),
            ((length - sound) as u64, 0),
            "at {length}"
        );
        let boots = if length < HEADER_BYTES { 2 } else { 3 };
        assert_eq!(recorder.boot().bits(), boots, "at {length}");
        let mut next = crate::testing::record(0);
        recorder.append(&mut next, Class::Full).unwrap();
        drop(recorder);
        assert_eq!(found(copy.path()), Vec::<String>::new(), "at {length}");
        let expected: Vec<Record> = written[..5 + kept].iter().cloned().chain([next]).collect();
        assert_eq!(read(copy.path()), (expected, 0), "at {length}");
    }
}

#[test]
fn a_record_being_written_is_torn_not_wrong() {
    let (directory, _) = log();
    let last = directory.path().join(SECOND_BOOT);
    let mut bytes = fs::read(&last).unwrap();
    let half = parts(&last)[1][..60].to_vec();
    bytes.extend_from_slice(&half);
    fs::write(&last, bytes).unwrap();
    let report = verify_log(directory.path()).unwrap();
    assert_eq!((report.torn_bytes, report.findings.len(), report.records), (60, 0, 7));
    assert_eq!(read(directory.path()).1, 0);
}

/// Killed after a segment was begun and before its first record was flushed.
#[test]
fn a_crash_between_segments_is_no_finding() {
    let directory = tempfile::tempdir().unwrap();
    let head_path = Head::path(directory.path());
    let (recorder, _) = open(directory.path());
    for n in 0..3 {
        recorder.append(&mut crate::testing::record(n), Class::Full).unwrap();
    }
    recorder.wait_durable(2).unwrap();
    let head = fs::read(&head_path).unwrap();
    recorder.append(&mut crate::testing::record(3), Class::Full).unwrap();
    drop(recorder);
    let second = directory.path().join(SECOND);
    let bytes = fs::read(&second).unwrap();
    for length in [0, 50, HEADER_BYTES, HEADER_BYTES + 20, bytes.len()] {
        let copy = copy(directory.path());
        fs::write(copy.path().join(SECOND), &bytes[..length]).unwrap();
        fs::write(Head::path(copy.path()), &head).unwrap();
        assert_eq!(found(copy.path()), Vec::<String>::new(), "at {length}");
        let (recorder, repair) = open(copy.path());
        assert_eq!(repair.missing, 0, "at {length}");
        recorder.append(&mut crate::testing::record(9), Class::Full).unwrap();
        drop(recorder);
        assert_eq!(
            found(copy.path()),
            Vec::<String>::new(),
            "at {length}, after the next boot"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_no_panic(
        header in any::<bool>(),
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..2000),
    ) {
        let (directory, written) = log();
        let path = directory.path().join(SECOND_BOOT);
        let kept = if header { parts(&path)[0].clone() } else { Vec::new() };
        fs::write(&path, [kept, bytes].concat()).unwrap();
        prop_assert!(!found(directory.path()).is_empty());
        prop_assert_eq!(&read(directory.path()).0, &written[..5]);
        let (recorder, _) = open(directory.path());
        recorder.append(&mut crate::testing::record(0), Class::Full).unwrap();
        drop(recorder);
        prop_assert!(!found(directory.path()).is_empty());
    }

    #[test]
    fn no_mix_of_harms_makes_a_wrong_record(
        harms in proptest::collection::vec((0..4usize, any::<proptest::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
    ) {
        let (directory, written) = log();
        let names = files(directory.path());
        for (file, at, byte, kind) in harms {
            let path = directory.path().join(&names[file]);
            let mut bytes = fs::read(&path).unwrap();
            if bytes.is_empty() {
                continue;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                _ => bytes.insert(at, byte),
            }
            fs::write(&path, bytes).unwrap();
        }
        let _ = verify_log(directory.path());
        let (records, _) = read(directory.path());
        prop_assert!(records.iter().all(|record| written.contains(record)));
    }
}
