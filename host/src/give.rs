//! Gives what root made in a daemon's directory to the daemon's user, who may be changing that directory meanwhile.
//!
//! Nothing is named by a path: a user could put a link in a directory's place between a look and a deed. Each thing is opened below the
//! directory that holds it, without following a link, looked at, and given by that handle.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};

use crate::files::FileError;

/// How deep directories lie in each other; a daemon's have three levels.
const DEPTH_MAX: usize = 16;

/// Gives what of the caller's lies in a directory to the directory's owner: root made it for a daemon that runs as a user of its own. What is
/// another user's stays so, and so does a file that has a second name, for that may be anywhere.
///
/// # Errors
/// The directory cannot be read, or the system refuses.
pub fn to_owner(directory: &Path) -> Result<(), FileError> {
    let own = rustix::process::geteuid();
    let given = (|| {
        let top = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(directory, top, Mode::empty())?;
        let found = rustix::fs::fstat(&top)?;
        let owner = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
        if owner.0 == own {
            Ok(())
        } else {
            give(&top, owner, own, DEPTH_MAX)
        }
    })();
    given.map_err(|source| FileError::new("give to its owner", directory, "", source))
}

fn give(directory: &OwnedFd, owner: (Uid, Gid), own: Uid, depth: usize) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let handle = rustix::fs::openat(
            directory,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let handle = match handle {
            Err(rustix::io::Errno::NOENT) => continue, // its owner removed it
            handle => handle?,
        };
        let found = rustix::fs::fstat(&handle)?;
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        if is_own(&found, own) && (is_directory || found.st_nlink == 1) {
            rustix::fs::chownat(&handle, c"", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
        } else if found.st_uid != owner.0.as_raw() {
            continue;
        }
        if is_directory && depth > 0 {
            let below = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat(handle.as_fd(), c".", below, Mode::empty())?;
            give(&below, owner, own, depth - 1)?;
        }
    }
    Ok(())
}

fn is_own(found: &Stat, own: Uid) -> bool {
    found.st_uid == own.as_raw()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, chown, symlink};

    use super::*;

    #[test]
    fn what_is_roots_is_given_and_nothing_else() {
        const USER: u32 = 65_534;
        if !rustix::process::geteuid().is_root() {
            return; // nobody else can give files away
        }
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (dir.path().join("own"), dir.path().join("other"));
        fs::create_dir_all(own.join("below/deep")).unwrap();
        fs::create_dir(&other).unwrap();
        for file in ["own/file", "own/below/deep/file", "other/file", "other/second"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        fs::write(own.join("foreign"), "").unwrap();
        chown(own.join("foreign"), Some(1), Some(1)).unwrap();
        symlink(&other, own.join("link")).unwrap();
        fs::hard_link(other.join("second"), own.join("second")).unwrap();
        chown(&own, Some(USER), Some(USER)).unwrap();
        to_owner(&own).unwrap();
        let check = |file: &str, uid: u32| {
            let found = fs::symlink_metadata(dir.path().join(file)).unwrap();
            assert_eq!(found.uid(), uid, "{file}");
        };
        for given in [
            "own/file",
            "own/below",
            "own/below/deep",
            "own/below/deep/file",
            "own/link",
        ] {
            check(given, USER);
        }
        check("own/foreign", 1);
        check("other", 0);
        check("other/file", 0);
        check("own/second", 0);
    }
}
