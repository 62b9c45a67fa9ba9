//! A process that commits to the embedded store is killed: see `hoplite_store::crash`.

use std::path::Path;
use std::process::Command;

use hoplite_store::{SledStore, crash};

const DIRECTORY: &str = "HOPLITE_STORE_CRASH_DIRECTORY";

/// The process that is killed; does nothing in an ordinary run.
#[test]
fn child() {
    if let Ok(directory) = std::env::var(DIRECTORY) {
        crash::commit_for_ever(&SledStore::open(Path::new(&directory)).unwrap());
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("store");
    crash::nothing_acknowledged_is_lost(
        &mut || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
            command.env(DIRECTORY, &directory);
            command
        },
        &mut |child| child.kill().unwrap(),
        &mut || Box::new(SledStore::open(&directory).unwrap()),
    );
}
