//! The path of the program that a process runs, also once an upgrade has put another file in its place.
//!
//! The rule: a process keeps the path of the file that it runs until it ends. While that file lies at the path, the path is it
//! because our own view of the file system names the very same inode. When it was deleted or replaced there, which is what a
//! package manager does, the kernel still says where it lay last; that counts
//! - if the file was on the very mount on which we see the directory: then nobody could have put it there who may not write into that
//!   directory, so a mount namespace of a caller's own gains nothing; or
//! - if we saw this process run this file at this path before.
//!
//! Whoever renames a file of its own, or deletes it, gains no path that it could not have written to.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx};

use crate::attest::binary::Binary;
use crate::attest::found::Unknown;

/// Processes whose path is remembered. A node runs fewer services than this.
const REMEMBERED_MAX: usize = 4096;

/// What the kernel writes behind the path of a file that lies there no more.
const DELETED: &str = " (deleted)";

/// Paths that were seen, by process: its pid, and when it was started. The oldest is thrown out first.
#[derive(Debug, Default)]
pub(super) struct Paths(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    by_process: HashMap<(i32, u64), Ran>,
    order: VecDeque<(i32, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Ran {
    device: u64,
    inode: u64,
    path: String,
}

// === impl Paths ===

impl Paths {
    /// The path of the file that this process runs. What is seen is remembered of a process that is known by pid and start.
    pub(super) fn of(&self, process: Option<(i32, u64)>, binary: &Binary) -> Result<String, Unknown> {
        let Binary {
            file,
            metadata: running,
            link,
        } = binary;
        let is_it = |path: &Path| match fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (running.dev(), running.ino()) => Ok(()),
            Ok(_) => Err(Unknown::Replaced),
            Err(_) => Err(Unknown::Renamed),
        };
        let Err(reason) = is_it(link) else {
            let path = link.to_str().ok_or(Unknown::NotUtf8)?.to_owned();
            if let Some(process) = process {
                self.note(process, running.dev(), running.ino(), &path);
            }
            return Ok(path);
        };
        let text = link.to_str().ok_or(Unknown::NotUtf8)?;
        let Some(path) = text.strip_suffix(DELETED) else {
            return Err(reason);
        };
        let reason = is_it(Path::new(path)).err().unwrap_or(reason);
        let was_here = is_on_our_mount(file, Path::new(path));
        let was_seen = process.is_some_and(|process| self.saw(process, running.dev(), running.ino(), path));
        match was_here || was_seen {
            true => Ok(path.to_owned()),
            false => Err(reason),
        }
    }

    fn note(&self, process: (i32, u64), device: u64, inode: u64, path: &str) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |ran: &Ran| (ran.device, ran.inode) == (device, inode) && ran.path == path;
        if seen.by_process.get(&process).is_some_and(is_known) {
            return;
        }
        let ran = Ran {
            device,
            inode,
            path: path.to_owned(),
        };
        if seen.by_process.insert(process, ran).is_none() {
            seen.order.push_back(process);
        }
        while seen.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = seen.order.pop_front() {
                seen.by_process.remove(&oldest);
            }
        }
    }

    fn saw(&self, process: (i32, u64), device: u64, inode: u64, path: &str) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |ran: &Ran| (ran.device, ran.inode) == (device, inode) && ran.path == path;
        seen.by_process.get(&process).is_some_and(is_it)
    }
}

/// Whether a file that is gone was on the mount on which we see the directory in which it lay. A file that never had a name, as one
/// of `memfd_create`, is on a mount that nobody sees.
fn is_on_our_mount(binary: &File, path: &Path) -> bool {
    let mount = |fd: &dyn AsFd| {
        let found = statx(fd.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
        (found.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(found.stx_mnt_id)
    };
    let Some(parent) = path.parent() else {
        return false;
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(parent) = openat(CWD, parent, flags, Mode::empty()) else {
        return false;
    };
    match (mount(binary), mount(&parent)) {
        (Some(of_file), Some(of_directory)) => of_file == of_directory,
        _ => false,
    }
}

/// When a process was started, in ticks since the machine was: with its pid nobody else has that.
pub(super) fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
    // The name in the second field may hold anything, brackets too.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_of_one_file() {
        let paths = Paths::default();
        paths.note((7, 1), 1, 2, "/a");
        assert!(paths.saw((7, 1), 1, 2, "/a"));
        for (process, device, inode, path) in [
            ((7, 2), 1, 2, "/a"),
            ((8, 1), 1, 2, "/a"),
            ((7, 1), 1, 3, "/a"),
            ((7, 1), 2, 2, "/a"),
            ((7, 1), 1, 2, "/b"),
        ] {
            assert!(
                !paths.saw(process, device, inode, path),
                "{process:?} {device} {inode} {path}"
            );
        }
        for pid in 0..2 * i32::try_from(REMEMBERED_MAX).unwrap() {
            paths.note((pid, 9), 1, 2, "/a");
        }
        let seen = paths.0.lock().unwrap();
        assert_eq!(
            (seen.order.len(), seen.by_process.len()),
            (REMEMBERED_MAX, REMEMBERED_MAX)
        );
    }

    #[test]
    fn this_process_was_started_once() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(started(own).is_some() && started(own) == started(own));
        assert_eq!(started(i32::MAX), None);
    }
}
