//! Hardening of the own process, and the bond between a supervisor and its children.

use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// What a process without a limit takes for one.
const DESCRIPTORS_ASSUMED: usize = 1 << 20;

/// For files, logs and the process's own connections.
const DESCRIPTORS_KEPT: usize = 256;

/// How far a process closes itself to others of the same user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardening {
    /// No core files. For processes that an agent must be able to attest by path and digest.
    NoCore,
    /// No core files, no tracing, and `/proc/<pid>` belongs to root. For those that hold signing keys.
    Sealed,
}

/// Applies hardening, raises the limit of open files to what the system allows, and has what is made from now on belong to this user
/// alone, whoever makes it and whatever umask the process was started with: who else may read a file is said where it is made.
///
/// A process that cannot be hardened must not start: the error says so.
pub fn harden(hardening: Hardening) -> std::io::Result<()> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let files = rustix::process::getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    )?;
    if hardening == Hardening::Sealed {
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

/// A process that was started by the link `/proc/self/exe` is listed by tools under that link's name; under its own from now on.
pub fn name_as_called() {
    const COMM: &str = "/proc/self/comm";
    let called = std::env::args_os().next().map(PathBuf::from);
    let called = called.as_deref().and_then(Path::file_name);
    if let (Ok("exe\n"), Some(called)) = (std::fs::read_to_string(COMM).as_deref(), called) {
        let _ = std::fs::write(COMM, called.as_encoded_bytes()); // a name only
    }
}

/// Descriptors that this process may have open, or a million where there is no limit.
pub fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    limit.map_or(DESCRIPTORS_ASSUMED, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// Descriptors that a process may have open once it has asked for all it may.
pub fn descriptors_most() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile).maximum;
    limit.map_or(DESCRIPTORS_ASSUMED, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// How many connections that cost `each` descriptors one of `sockets` sockets may have, when all have as many. Some
/// descriptors are left for files, and some places for newcomers.
pub fn places(each: usize, sockets: usize) -> usize {
    let shared = descriptors_max().saturating_sub(DESCRIPTORS_KEPT);
    (shared / each.max(1) / sockets.max(1)) / 9 * 8
}

/// Blocks until standard input ends. A supervisor holds the other end, so this returns when the supervisor is gone,
/// however it went.
pub fn wait_for_stdin_to_end() {
    let mut buffer = [0; 64];
    let mut stdin = std::io::stdin().lock();
    while matches!(stdin.read(&mut buffer), Ok(n) if n > 0) {}
}
