//! A SoftHSM token of a test's own.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking; no shipped crate has this"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hoplite_host::files;

use crate::Settings;

const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];

/// A token, and where it lies.
#[derive(Debug)]
pub struct SoftToken {
    /// What `SOFTHSM2_CONF` has to say.
    pub config: PathBuf,
    /// For whoever uses it.
    pub settings: Settings,
    tokens: PathBuf,
    away: PathBuf,
}

/// Whether this machine has SoftHSM. Says so if not, and fails where tests must not be skipped.
pub fn possible(test: &str) -> bool {
    let is_there = module().is_some() && Command::new("softhsm2-util").arg("--version").output().is_ok();
    if !is_there {
        assert!(
            std::env::var_os("CI").is_none(),
            "{test} needs softhsm2; tests/lib/packages softhsm2 installs it"
        );
        eprintln!("SKIPPED {test}: there is no softhsm2; tests/lib/packages softhsm2 installs it");
    }
    is_there
}

fn module() -> Option<PathBuf> {
    MODULES.iter().map(PathBuf::from).find(|path| path.exists())
}

// === impl SoftToken ===

impl SoftToken {
    /// Makes one in this directory.
    ///
    /// # Panics
    /// SoftHSM does not.
    pub fn make(directory: &Path) -> Self {
        let (tokens, config) = (directory.join("tokens"), directory.join("softhsm2.conf"));
        fs::create_dir_all(&tokens).unwrap();
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(&config, text).unwrap();
        let pin_file = directory.join("pin");
        files::write_private(&pin_file, b"4711-0815\n").unwrap();
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "hoplite"])
            .args(["--so-pin", "12345678", "--pin", "4711-0815"])
            .env("SOFTHSM2_CONF", &config)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Self::at(directory)
    }

    /// The one that was made in this directory.
    ///
    /// # Panics
    /// There is no SoftHSM.
    pub fn at(directory: &Path) -> Self {
        let Some(module) = module() else {
            panic!("there is no softhsm2")
        };
        Self {
            settings: Settings {
                module,
                token: "hoplite".to_owned(),
                pin_file: directory.join("pin"),
            },
            config: directory.join("softhsm2.conf"),
            tokens: directory.join("tokens"),
            away: directory.join("tokens-away"),
        }
    }

    /// Takes it away.
    ///
    /// # Panics
    /// It is away.
    pub fn pull(&self) {
        fs::rename(&self.tokens, &self.away).unwrap();
    }

    /// Brings it back.
    ///
    /// # Panics
    /// It is there.
    pub fn plug(&self) {
        fs::rename(&self.away, &self.tokens).unwrap();
    }
}
