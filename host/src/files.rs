//! Files and directories that only their owner may touch, written whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::credentials;
use crate::undo::{self, Undo};

/// A file operation that failed: what was tried, on what, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} `{path}`: {source}{remedy}", path = .path.display())]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    remedy: &'static str,
    source: io::Error,
}

/// Makes a directory (and its parents) that only its owner may enter, and checks that it can be written. One that is
/// there already may let others in, but not let them write: whoever may could put another file in a secret's place.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError {
        verb: "use the directory",
        path: path.to_owned(),
        remedy: "; choose a directory this user may write",
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let mode = fs::metadata(path).map_err(failed)?.mode();
    if mode & 0o022 != 0 {
        return Err(FileError {
            verb: "use the directory",
            path: path.to_owned(),
            remedy: "; `chmod go-w` it, or choose another",
            source: io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("its mode {:04o} lets others write in it", mode & 0o7777),
            ),
        });
    }
    let probe = path.join(format!(".probe-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&probe)
        .map_err(failed)?;
    fs::remove_file(&probe).map_err(failed)
}

/// Gives a file another name, in the place of what has it: on the disk when this returns.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    let renamed = fs::rename(from, to).and_then(|()| match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    });
    renamed.map_err(|source| FileError {
        verb: "put into its place",
        path: to.to_owned(),
        remedy: "; check the directory",
        source,
    })
}

/// Takes a directory for this process alone, until what it returns is dropped; None where another one has it.
pub fn lock_dir(path: &Path) -> io::Result<Option<File>> {
    use rustix::fs::{FlockOperation, flock};
    let directory = File::open(path)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        locked => Ok(locked.map(|()| Some(directory))?),
    }
}

/// Whether another process has taken a directory with [`lock_dir`].
pub fn is_locked(path: &Path) -> bool {
    matches!(lock_dir(path), Ok(None))
}

/// Removes a directory and all that lies in it.
pub fn remove_dir(path: &Path) -> Result<(), FileError> {
    fs::remove_dir_all(path).map_err(|source| FileError {
        verb: "remove",
        path: path.to_owned(),
        remedy: "; check the directory",
        source,
    })
}

/// Makes a directory that only its owner may enter, as [`private_dir`], below parents that everybody may enter: daemons of
/// other users have theirs beside it.
pub fn private_dir_among_others(path: &Path) -> Result<(), FileError> {
    if let Some(parent) = path.parent() {
        shared_dir(parent)?;
    }
    private_dir(path)
}

/// Makes a directory, and its parents, that everybody may enter and only its owner write. One that is there stays as it is.
pub fn shared_dir(path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError {
        verb: "make the directory",
        path: path.to_owned(),
        remedy: "; choose a directory this user may write",
        source,
    };
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        shared_dir(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed), // whatever the umask
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Writes a file only its owner may read (0600): complete and on the disk, or as it was before.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomically(path, bytes, 0o600)
}

/// Writes a file everybody may read (0644): complete and on the disk, or as it was before.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomically(path, bytes, 0o644)
}

/// A file that only its owner may read (0600), while it is written. It has its name when it is finished, whole and on the disk;
/// dropped before, nothing of it stays.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    replace: bool,
    _undo: Undo,
}

/// Replaces a file that is there, of whoever may read it: complete and on the disk, or as it was before. A link stays a
/// link; what it leads to is replaced.
pub fn rewrite(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let failed = |source| FileError {
        verb: "write",
        path: path.to_owned(),
        remedy: "",
        source,
    };
    let target = fs::canonicalize(path).map_err(failed)?;
    let mode = fs::metadata(&target).map_err(failed)?.mode() & 0o777;
    write_atomically(&target, bytes, mode)
}

/// Reads a secret. A file that others may read is refused: whoever read it may still have it. Of a credential of the service
/// manager the group's bit is the mask of the list (ACL) by which this user alone reads a file of root's.
pub fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source, remedy| FileError {
        verb: "read",
        path: path.to_owned(),
        remedy,
        source,
    };
    // The mode of what is read, not of what had the name a moment before.
    let mut file = open_given(path).map_err(|e| failed(e, ""))?;
    let mode = file.metadata().map_err(|e| failed(e, ""))?.mode();
    let others = if credentials::is_one(path) { 0o037 } else { 0o077 };
    if mode & others != 0 {
        let source = io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("its mode {:04o} lets others in", mode & 0o7777),
        );
        return Err(failed(
            source,
            "; replace the secret, or `chmod 600` the file if nobody can have read it",
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| failed(e, ""))?;
    Ok(bytes)
}

/// Reads a secret that this user's program wrote itself, as [`write_private`]: a link, a pipe, another user's file and one
/// that others may read are refused.
///
/// # Errors
/// It cannot be read, or is not what was written.
pub fn read_own(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source, remedy| FileError {
        verb: "read",
        path: path.to_owned(),
        remedy,
        source,
    };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(failed(io::Error::other("it is a link"), "; remove it"));
        }
        opened => opened.map_err(|e| failed(e, ""))?,
    };
    let metadata = file.metadata().map_err(|e| failed(e, ""))?;
    let wrong = if !metadata.is_file() {
        "it is no file".to_owned()
    } else if metadata.uid() != rustix::process::geteuid().as_raw() {
        format!("it belongs to user {}", metadata.uid())
    } else if metadata.mode() & 0o077 != 0 {
        format!("its mode {:04o} lets others in", metadata.mode() & 0o7777)
    } else {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| failed(e, ""))?;
        return Ok(bytes);
    };
    Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, wrong), ""))
}

/// Removes a file for good; one that is not there is no error.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError {
        verb: "remove",
        path: path.to_owned(),
        remedy: "; check the directory",
        source,
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(failed)?,
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(failed),
        _ => Ok(()),
    }
}

/// Opens a file to be read, and nothing else that may have its name: who opens a pipe waits until somebody writes into it.
///
/// # Errors
/// It cannot be opened, or is no file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if about.is_file() {
        Ok(file)
    } else if about.is_dir() {
        Err(io::Error::other("it is a directory"))
    } else {
        Err(io::Error::other("it is no file"))
    }
}

/// Opens what is to be read whole: a file; or what a shell gives under a name of its own (`<(…)`, `/dev/stdin`), which somebody
/// writes.
fn open_given(path: &Path) -> io::Result<File> {
    let is_of_a_shell = ["/dev/fd", "/proc/self/fd", "/dev/stdin"];
    match is_of_a_shell.iter().any(|place| path.starts_with(place)) {
        true => File::open(path),
        false => open_regular(path),
    }
}

/// Reads a text file that decides something, so that not everybody may be able to write it.
///
/// # Errors
/// It cannot be read, or everybody may write it.
pub fn read_trusted_text(path: &Path) -> Result<String, FileError> {
    let text = read_text(path)?;
    let mode = fs::metadata(path).map_or(0, |found| found.mode());
    if mode & 0o002 != 0 {
        return Err(FileError {
            verb: "use",
            path: path.to_owned(),
            remedy: "; look what stands in it, and `chmod o-w` it",
            source: io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("its mode {:04o} lets everybody write it", mode & 0o7777),
            ),
        });
    }
    Ok(text)
}

/// The longest text that is read: of a list of a million entries. What is longer is no text that anybody wrote.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Reads a text file of at most 256 MiB.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    let failed = |source| FileError {
        verb: "read",
        path: path.to_owned(),
        remedy: "",
        source,
    };
    let mut bytes = Vec::new();
    let file = open_given(path).map_err(failed)?;
    file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        let what = "it is longer than 256 MiB; part it";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, what)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let what = match encoding(error.as_bytes()) {
            Some(encoding) => format!("it is {encoding}, as its byte order mark says; save it as UTF-8 without one"),
            None => "it is not UTF-8; save it as UTF-8".to_owned(),
        };
        failed(io::Error::new(io::ErrorKind::InvalidData, what))
    })
}

/// Which encoding but UTF-8 a file says that it has, by its byte order mark.
pub fn encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        _ => None,
    }
}

/// What is written, if this name is: where it is a link, what that leads to. A file or nothing; a device, a pipe or a socket would be
/// gone, with a file in its place.
fn replaceable(path: &Path) -> Result<PathBuf, FileError> {
    let refused = |source| FileError {
        verb: "write",
        path: path.to_owned(),
        remedy: "; name a file",
        source,
    };
    let target = match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => fs::canonicalize(path).map_err(refused)?,
        _ => path.to_owned(),
    };
    ensure_no_other(&target, refused)?;
    Ok(target)
}

/// Whether there is a file of this name, or nothing.
fn ensure_no_other(path: &Path, refused: impl Fn(io::Error) -> FileError) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Err(refused(io::Error::other("it is a directory"))),
        Ok(found) if !found.is_file() && !found.is_symlink() => Err(refused(io::Error::other(
            "it is no regular file, and would be replaced by one",
        ))),
        _ => Ok(()),
    }
}

fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |source| FileError {
        verb: "write",
        path: path.to_owned(),
        remedy: "; check the directory and free space",
        source,
    };
    ensure_no_other(path, failed)?;
    let (temporary, mut file) = create_beside(path, mode).map_err(failed)?;
    let written = (|| {
        file.set_permissions(Permissions::from_mode(mode))?; // whatever the umask took
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed(source)
    })
}

/// A new file beside another one, to be renamed over it. Its directory may belong to a user who may not write what this process may: so the
/// file is made, never opened, and no link is followed to it; and its name cannot be known before, so nobody is in the way.
fn create_beside(path: &Path, mode: u32) -> io::Result<(PathBuf, File)> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:016x}.tmp", RandomState::new().build_hasher().finish()));
    let temporary = PathBuf::from(temporary);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    Ok((temporary, file))
}

// === impl Unfinished ===

impl Unfinished {
    /// Begins one. Where there is a file of its name already, that must be to be replaced.
    ///
    /// # Errors
    /// There is one, or the system refuses.
    pub fn begin(path: &Path, replace: bool) -> Result<Self, FileError> {
        if !replace && fs::symlink_metadata(path).is_ok() {
            return Err(Self::taken(path));
        }
        let path = &replaceable(path)?;
        let (temporary, file) = create_beside(path, 0o600).map_err(|source| Self::failed(path, source))?;
        let undo = undo::at_signal({
            let temporary = temporary.clone();
            move || drop(fs::remove_file(temporary))
        });
        Ok(Self {
            path: path.to_owned(),
            temporary,
            file,
            replace,
            _undo: undo,
        })
    }

    /// Gives it its name. Says how long it is.
    ///
    /// # Errors
    /// Somebody else was faster, or the system refuses.
    pub fn finish(self) -> Result<u64, FileError> {
        let failed = |source| Self::failed(&self.path, source);
        self.file.sync_all().map_err(failed)?;
        let length = self.file.metadata().map_err(failed)?.len();
        let named = if self.replace {
            fs::rename(&self.temporary, &self.path)
        } else {
            rename_new(&self.temporary, &self.path)
        };
        match named {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Self::taken(&self.path)),
            named => named.map_err(failed)?,
        }
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
        Ok(length)
    }

    fn taken(path: &Path) -> FileError {
        FileError {
            verb: "write",
            path: path.to_owned(),
            remedy: "; choose another name, or say `--replace`",
            source: io::Error::new(io::ErrorKind::AlreadyExists, "there is a file of that name"),
        }
    }

    fn failed(path: &Path, source: io::Error) -> FileError {
        FileError {
            verb: "write",
            path: path.to_owned(),
            remedy: "; check the directory and free space",
            source,
        }
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary); // not there any more where it has its name
    }
}

/// Gives a file a name that nothing has.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems cannot say it in one step.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

// === impl FileError ===

impl FileError {
    pub(crate) fn new(verb: &'static str, path: &Path, remedy: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        Self {
            verb,
            path,
            remedy,
            source,
        }
    }

    /// Whether the file is simply not there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn secrets_are_written_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"first").unwrap();
        assert_eq!(mode(&path), 0o600);
        write_private(&path, b"second").unwrap();
        assert_eq!(read_private(&path).unwrap(), b"second");
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file stays behind"
        );
    }

    #[test]
    fn an_unfinished_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        let begin = |replace: bool, text: &[u8]| {
            let mut file = Unfinished::begin(&path, replace)?;
            file.write_all(text).unwrap();
            assert_eq!(
                fs::read_dir(dir.path()).unwrap().count(),
                1 + usize::from(path.exists())
            );
            Ok::<_, FileError>(file)
        };
        // What is no file stays what it is, whoever may replace it.
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("pipe", &link).unwrap();
        for name in [&pipe, &link] {
            let refused = Unfinished::begin(name, true).unwrap_err().to_string();
            assert!(refused.contains("no regular file"), "{refused}");
        }
        let refused = write_public(&pipe, b"x").unwrap_err().to_string();
        assert!(refused.contains("no regular file"), "{refused}");
        let refused = read_text(&pipe).unwrap_err().to_string();
        assert!(refused.contains("it is no file"), "a pipe is not waited for: {refused}");
        let refused = read_private(&pipe).unwrap_err().to_string();
        assert!(refused.contains("it is no file"), "{refused}");
        fs::remove_file(&link).unwrap();
        fs::remove_file(&pipe).unwrap();
        drop(begin(false, b"half").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(begin(false, b"first").unwrap().finish().unwrap(), 5);
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, b"first".to_vec()));
        assert!(begin(false, b"").unwrap_err().to_string().contains("--replace"));
        begin(true, b"second").unwrap().finish().unwrap();
        let slow = begin(true, b"slow").unwrap();
        drop(slow);
        assert_eq!(fs::read(&path).unwrap(), b"second");
        // Somebody else was faster.
        fs::remove_file(&path).unwrap();
        let late = begin(false, b"late").unwrap();
        fs::write(&path, "other").unwrap();
        assert!(late.finish().unwrap_err().to_string().contains("there is a file"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_rewritten_file_keeps_its_mode_and_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        assert!(rewrite(&file, b"x").unwrap_err().is_not_found(), "it makes none");
        fs::write(&file, "first").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        rewrite(&link, b"second").unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode(&file)), (b"second".to_vec(), 0o640));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_decides_is_not_for_everybody_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.toml");
        fs::write(&path, "a = 1").unwrap();
        for (mode, good) in [(0o600, true), (0o664, true), (0o666, false), (0o602, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let read = read_trusted_text(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains("chmod o-w"), "{error}");
            }
        }
    }

    #[test]
    fn a_secret_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_public(&path, b"oops").unwrap();
        let error = read_private(&path).unwrap_err().to_string();
        assert!(error.contains("0644") && error.contains("key"), "{error}");
    }

    #[test]
    fn an_own_secret_is_no_link_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("key"), dir.path().join("link"));
        write_private(&path, b"secret").unwrap();
        std::os::unix::fs::symlink("key", &link).unwrap();
        assert_eq!(read_own(&path).unwrap(), b"secret");
        let refused = |path: &Path| read_own(path).unwrap_err().to_string();
        assert!(refused(&link).contains("it is a link"), "{}", refused(&link));
        assert!(refused(dir.path()).contains("it is no file"), "{}", refused(dir.path()));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(refused(&path).contains("0644"), "{}", refused(&path));
        assert!(read_own(&dir.path().join("absent")).unwrap_err().is_not_found());
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let check = |mode: u32, good: bool| {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let result = private_dir(dir.path()).map_err(|e| e.to_string());
            assert_eq!(result.is_ok(), good, "{mode:o}: {result:?}");
            if let Err(error) = result {
                assert!(
                    error.contains(&format!("{mode:04o}")) && error.contains("chmod go-w"),
                    "{error}"
                );
            }
        };
        check(0o700, true);
        check(0o755, true);
        check(0o770, false);
        check(0o777, false);
        check(0o1777, false);
        let below = dir.path().join("made/below");
        private_dir(&below).unwrap();
        assert_eq!(mode(&below), 0o700);
    }

    #[test]
    fn among_others_only_the_last_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, own) = (dir.path().join("lib/hoplite"), dir.path().join("lib/hoplite/agent"));
        private_dir_among_others(&own).unwrap();
        assert_eq!((mode(&shared), mode(&own)), (0o755, 0o700));
        fs::set_permissions(&shared, Permissions::from_mode(0o711)).unwrap();
        private_dir_among_others(&own).unwrap();
        shared_dir(&shared).unwrap();
        assert_eq!(mode(&shared), 0o711, "what is there stays as it is");
        remove_dir(&own).unwrap();
        rename(&shared, &dir.path().join("moved")).unwrap();
        assert!(dir.path().join("moved").is_dir() && !shared.exists());
    }

    #[test]
    fn a_link_that_waits_in_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("file"), dir.path().join("victim"));
        fs::write(&victim, "kept").unwrap();
        // Every name that a process with a number could take.
        for name in [format!("file.{}.tmp", std::process::id()), "file.tmp".to_owned()] {
            std::os::unix::fs::symlink(&victim, dir.path().join(name)).unwrap();
        }
        write_public(&path, b"new").unwrap();
        let mut unfinished = Unfinished::begin(&dir.path().join("other"), false).unwrap();
        unfinished.write_all(b"new").unwrap();
        unfinished.finish().unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"kept");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let first = create_beside(&path, 0o600).unwrap().0;
        let second = create_beside(&path, 0o600).unwrap().0;
        assert_ne!(first, second, "a name that is known before can be taken before");
    }

    #[test]
    fn a_directory_that_is_a_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::write(&path, "").unwrap();
        let error = private_dir(&path).unwrap_err().to_string();
        assert!(
            error.contains("taken") && error.contains("choose a directory"),
            "{error}"
        );
    }
}
