//! What a log gives back, what it costs, and what is made of one that is not what was written.

use super::*;
use hoplite_wire::ca;
use std::os::unix::fs::{PermissionsExt, symlink};

const OWNER: &str = "spiffe://prod.example/hoplite/agent/n1";

/// In every key below, and nowhere else.
const SECRET: &[u8] = b"a private key that nobody may find";

struct World {
    dir: tempfile::TempDir,
    key: StorageKey,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = StorageKey::open(None, dir.path()).unwrap();
        Self { dir, key }
    }

    /// With this many entries and SVIDs.
    fn with(entries: usize) -> (Self, Log) {
        let world = Self::new();
        let mut log = Log::create(world.dir.path(), &world.key, OWNER).unwrap();
        let changes = (0..entries).flat_map(|n| [entry(n, 1), svid(n, 1)]);
        log.append(changes.chain([position(7)]), &world.key).unwrap();
        (world, log)
    }

    fn open(&self) -> Result<Option<Content>, String> {
        let opened = Log::open(self.dir.path(), &self.key, OWNER);
        opened
            .map(|opened| opened.map(|(_, content)| content))
            .map_err(|e| e.to_string())
    }

    fn log_file(&self) -> PathBuf {
        logs(self.dir.path()).next().unwrap()
    }

    fn head_file(&self) -> PathBuf {
        self.dir.path().join(HEAD)
    }
}

fn entry(n: usize, revision: u64) -> Change {
    Change {
        entry_id: format!("e{n}"),
        entry: Some(ca::Entry {
            id: format!("e{n}"),
            revision,
            ..ca::Entry::default()
        }),
        ..Change::default()
    }
}

fn svid(n: usize, entry_revision: u64) -> Change {
    Change {
        entry_id: format!("e{n}"),
        svid: Some(SvidRecord {
            entry_revision,
            chain: vec![vec![9; 600]],
            key: SECRET.to_vec(),
            ..SvidRecord::default()
        }),
        ..Change::default()
    }
}

fn gone(n: usize) -> Change {
    Change {
        entry_id: format!("e{n}"),
        gone: true,
        ..Change::default()
    }
}

fn position(revision: u64) -> Change {
    Change {
        position: Some(Position {
            revision,
            ..Position::default()
        }),
        ..Change::default()
    }
}

/// Revisions of entry and SVID.
fn held(content: &Content) -> Vec<(String, Option<u64>, Option<u64>)> {
    let each = content.entries.iter().map(|(id, slot)| {
        let entry = slot.entry().map(|entry| entry.unwrap().revision);
        let svid = slot.svid().map(|svid| svid.unwrap().entry_revision);
        (String::from_utf8(id.to_vec()).unwrap(), entry, svid)
    });
    let mut each: Vec<_> = each.collect();
    each.sort();
    each
}

fn of(id: &str, entry: u64, svid: u64) -> (String, Option<u64>, Option<u64>) {
    (id.to_owned(), Some(entry), Some(svid))
}

#[test]
fn the_last_of_each_counts_over_restarts() {
    let (world, mut log) = World::with(3);
    log.append(vec![svid(1, 2), gone(0), position(8)], &world.key).unwrap();
    let (mut log, content) = Log::open(world.dir.path(), &world.key, OWNER).unwrap().unwrap();
    assert_eq!(held(&content), [of("e1", 1, 2), of("e2", 1, 1)]);
    assert_eq!((content.position.revision, log.owner()), (8, OWNER));
    log.append(vec![entry(2, 9)], &world.key).unwrap();
    let content = world.open().unwrap().unwrap();
    assert_eq!(held(&content)[1], of("e2", 9, 1));
}

#[test]
fn nothing_of_it_can_be_read_without_the_key() {
    let (world, _log) = World::with(3);
    for file in fs::read_dir(world.dir.path()).unwrap() {
        let path = file.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET), "{path:?}");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600,
            "{path:?}"
        );
    }
}

/// Whatever is not exactly what was written: nothing of it counts, and it is said what it is.
#[test]
fn damage_is_told_and_never_trusted_halfway() {
    let (world, mut log) = World::with(2);
    log.append(vec![svid(0, 2)], &world.key).unwrap();
    let (head, file) = (
        fs::read(world.head_file()).unwrap(),
        fs::read(world.log_file()).unwrap(),
    );
    assert!(world.open().unwrap().is_some());
    let refused = |path: &Path, good: &[u8], bad: &[u8], expected: &str| {
        files::write_private(path, bad).unwrap();
        let said = world.open().map(|content| content.map(|content| content.entries.len()));
        assert!(
            said.as_ref().is_err_and(|said| said.contains(expected)),
            "{expected}: {said:?}"
        );
        files::write_private(path, good).unwrap();
    };
    // Each byte of both, one after the other.
    let regions = [
        (0..15, "not what an agent writes"),
        (15..16, "has the format"),
        (16..32, ""),
        (32..48, "another key"),
    ];
    for (region, expected) in regions {
        for at in region {
            let mut bad = head.clone();
            bad[at] ^= 1;
            refused(&world.head_file(), &head, &bad, expected);
        }
    }
    for at in 48..head.len() {
        let mut bad = head.clone();
        bad[at] ^= 0x20;
        refused(&world.head_file(), &head, &bad, "");
    }
    for at in 0..file.len() {
        let mut bad = file.clone();
        bad[at] ^= 1;
        refused(&world.log_file(), &file, &bad, "is damaged");
    }
    // Each length.
    for length in 0..head.len() {
        refused(&world.head_file(), &head, &head[..length], "");
    }
    for length in 0..file.len() {
        refused(&world.log_file(), &file, &file[..length], "shorter than it was");
    }
    assert!(world.open().unwrap().is_some(), "the good ones are good all the same");
    // What is behind the end counts for nothing: a crash left it there.
    files::write_private(&world.log_file(), &[&file[..], &[7; 100]].concat()).unwrap();
    assert_eq!(held(&world.open().unwrap().unwrap())[0], of("e0", 1, 2));
    fs::remove_file(world.log_file()).unwrap();
    assert!(world.open().is_err());
}

#[test]
fn other_keys_other_nodes_and_other_hands_are_told() {
    let (world, _log) = World::with(1);
    let (other, _other_log) = World::with(1);
    let open = |world: &World, key: &StorageKey, owner: &str| {
        let opened = Log::open(world.dir.path(), key, owner);
        opened.map(|opened| opened.is_some()).map_err(|error| error.to_string())
    };
    assert_eq!(open(&world, &world.key, OWNER), Ok(true));
    let refused = |opened: Result<bool, String>, expected: &str| {
        assert!(opened.as_ref().is_err_and(|said| said.contains(expected)), "{opened:?}");
    };
    refused(open(&world, &other.key, OWNER), "another key");
    let n2 = "spiffe://prod.example/hoplite/agent/n2";
    refused(open(&world, &world.key, n2), &format!("it belongs to `{OWNER}`"));
    // Another node's log under this one's head, and its frames.
    let own = fs::read(world.log_file()).unwrap();
    files::write_private(&world.log_file(), &fs::read(other.log_file()).unwrap()).unwrap();
    refused(open(&world, &world.key, OWNER), "damaged");
    files::write_private(&world.log_file(), &own).unwrap();

    for path in [world.head_file(), world.log_file()] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        refused(open(&world, &world.key, OWNER), "0644");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let elsewhere = path.with_extension("moved");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        refused(open(&world, &world.key, OWNER), "it is a link");
        fs::rename(&elsewhere, &path).unwrap();
    }
    assert_eq!(open(&world, &world.key, OWNER), Ok(true));
}

/// An older copy of both files is what it was; one of the head alone is damage as soon as the log is another one.
#[test]
fn an_older_head_counts_as_far_as_it_went() {
    let (world, mut log) = World::with(1);
    let old = fs::read(world.head_file()).unwrap();
    log.append(vec![svid(0, 2)], &world.key).unwrap();
    files::write_private(&world.head_file(), &old).unwrap();
    assert_eq!(held(&world.open().unwrap().unwrap()), [of("e0", 1, 1)]);
}

/// One rotation costs the same beside a hundred as beside twenty thousand others, and the log does not grow for ever.
#[test]
fn a_change_costs_what_it_is_long() {
    let cost = |entries: usize| {
        let (world, mut log) = World::with(entries);
        let before = log.written();
        log.append(vec![svid(0, 2)], &world.key).unwrap();
        log.written() - before
    };
    let (few, many) = (cost(100), cost(20_000));
    assert_eq!(few, many);
    assert!(few < 1_000, "{few}");

    let (world, mut log) = World::with(200);
    let (before, rounds) = (log.written(), 40);
    for round in 0..rounds {
        log.append((0..200).map(|n| svid(n, round)), &world.key).unwrap();
    }
    let (changed, written) = (200 * rounds * 700, log.written() - before);
    assert!(written < 3 * changed, "{written} bytes for {changed} bytes of changes");
    let length = fs::metadata(world.log_file()).unwrap().len();
    assert!(length < 2 * (1 << 20), "{length} bytes for 200 entries");
    assert_eq!(logs(world.dir.path()).count(), 1, "the one before is gone");
    let content = world.open().unwrap().unwrap();
    assert_eq!((content.entries.len(), held(&content)[7].2), (200, Some(rounds - 1)));
    assert_eq!(content.position.revision, 7);
}

#[test]
fn a_full_disk_leaves_what_was() {
    let (world, mut log) = World::with(1);
    // A directory in the head's place takes no file.
    let (head, aside) = (world.head_file(), world.dir.path().join("aside"));
    fs::rename(&head, &aside).unwrap();
    fs::create_dir(&head).unwrap();
    assert!(log.append(vec![svid(0, 2)], &world.key).is_err());
    fs::remove_dir(&head).unwrap();
    fs::rename(&aside, &head).unwrap();
    assert_eq!(held(&world.open().unwrap().unwrap()), [of("e0", 1, 1)]);
    log.append(vec![svid(0, 3)], &world.key).unwrap();
    assert_eq!(held(&world.open().unwrap().unwrap()), [of("e0", 1, 3)]);
}

#[test]
fn removed_is_removed() {
    let (world, _log) = World::with(2);
    assert_eq!(Log::remove(world.dir.path()).unwrap().len(), 2);
    assert_eq!(Log::remove(world.dir.path()).unwrap().len(), 0);
    assert!(world.open().unwrap().is_none());
}
