//! A clock that a test sets for the processes it starts, and for nobody else: [clock.c](clock.c), preloaded.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The clock of some processes.
pub(crate) struct Clock(tempfile::TempDir);

// === impl Clock ===

impl Clock {
    /// In step with everybody's.
    pub(crate) fn new() -> Self {
        let clock = Self(tempfile::tempdir().unwrap());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clock/clock.c");
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(clock.0.path().join("clock.so"))
            .arg(source)
            .status();
        assert!(made.unwrap().success(), "the C compiler that Hoplite is built with");
        clock.ahead(0);
        clock
    }

    /// This command, and all that it starts, go by this clock.
    pub(crate) fn of(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", self.0.path().join("clock.so"))
            .env("HOPLITE_TEST_CLOCK", self.0.path().join("ahead"));
    }

    /// Sets it so many seconds ahead of everybody's, or behind.
    pub(crate) fn ahead(&self, seconds: i64) {
        use std::os::unix::fs::FileExt;
        // Not written anew: the processes have it mapped.
        let mut options = fs::File::options();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.0.path().join("ahead"));
        file.unwrap().write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}
