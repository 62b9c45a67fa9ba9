//! In whose hand a file is: who else could change what counts there.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

/// Written by all who are not its owner, and by its group.
const OTHERS: u32 = 0o002;
const GROUP: u32 = 0o020;

/// Why what a file says does not count: somebody else could have written it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OtherHand {
    /// By its mode.
    #[error("`{path}` can be written by others than its owner; run `chmod go-w` on it", path = .0.display())]
    Writable(PathBuf),
    /// By its owner.
    #[error("`{path}` belongs to user {owner}, and what it says counts only if it is root's or user {user}'s; chown it", path = .path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        user: u32,
    },
}

/// The user whom this process acts as.
#[must_use]
pub fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether others than root and `user` could change a file, or what lies in a directory. A group that has the number of its owner is
/// the owner's own, as most systems make them; on a disk that is mounted read-only nobody writes.
///
/// # Errors
/// The inner one is what is wrong; the outer one is that it cannot be seen.
pub fn check(path: &Path, user: u32) -> io::Result<Result<(), OtherHand>> {
    Ok(check_metadata(path, &fs::metadata(path)?, user))
}

/// The same of one whose metadata is known.
///
/// # Errors
/// What is wrong.
pub fn check_metadata(path: &Path, metadata: &Metadata, user: u32) -> Result<(), OtherHand> {
    let owner = metadata.uid();
    if !judge(metadata.mode(), owner, metadata.gid()) && !is_read_only(path) {
        return Err(OtherHand::Writable(path.to_owned()));
    }
    if owner != 0 && owner != user {
        return Err(OtherHand::Owner {
            path: path.to_owned(),
            owner,
            user,
        });
    }
    Ok(())
}

/// Whether only its owner writes it.
fn judge(mode: u32, owner: u32, group: u32) -> bool {
    mode & OTHERS == 0 && (mode & GROUP == 0 || group == owner)
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_its_owner_writes_it() {
        for (mode, owner, group, expected) in [
            (0o100_644, 7, 8, true),
            (0o100_664, 7, 7, true),
            (0o100_664, 7, 8, false),
            (0o100_666, 7, 7, false),
            (0o40_777, 0, 0, false),
            (0o41_777, 0, 0, false),
        ] {
            assert_eq!(judge(mode, owner, group), expected, "{mode:o}");
        }
    }

    #[test]
    fn a_file_in_anothers_hand() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.cedar");
        fs::write(&file, "x").unwrap();
        let own = own_user();
        let said = |user| check(&file, user).unwrap().map_err(|error| error.to_string());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(said(own), Ok(()));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o606)).unwrap();
        assert!(said(own).unwrap_err().contains("chmod go-w"));
        assert!(check(&dir.path().join("none"), own).is_err());
        if own == 0 {
            std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(said(own).unwrap_err().contains("belongs to user 65534"));
            assert_eq!(said(65_534), Ok(()));
        }
    }
}
