//! Unix sockets: bound safely, and with the peer known by the kernel's word.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket as connector, sockopt,
};
use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};

use crate::files::{self, FileError};

/// The kernel's limit on a socket path (`sun_path` less its final NUL).
const PATH_BYTES_MAX: usize = 107;

/// A socket that cannot be bound. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The path does not fit into the kernel's address structure.
    #[error("the socket path `{path}` has {length} bytes, at most 106 are possible; choose a shorter directory", path = .path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Somebody answers there.
    #[error("another process serves `{path}`; stop it or choose another path", path = .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there, and it is not ours to remove.
    #[error("`{path}` exists and is not a socket; move it away or choose another path", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Its directory cannot be made.
    #[error(transparent)]
    Directory(#[from] FileError),
    /// The system refused.
    #[error("cannot bind the socket `{path}`: {source}", path = .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A socket that we bound, in the file system: gone when this is, unless somebody else has bound there since.
#[derive(Debug)]
pub struct Placed {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    /// Held, so that the number is given to no other file meanwhile.
    _held: OwnedFd,
}

/// Who was at the other end of a Unix socket when it connected. Which process that was: [`crate::peer_process`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The process id it had in our pid namespace; it may be anybody's by now.
    pub pid: i32,
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
}

/// Fails if a path is too long for [`bind`], so that a daemon can say so before it makes anything.
pub fn ensure_fits(path: &Path) -> Result<(), BindError> {
    let length = path.as_os_str().len();
    // One byte is for the name under which it is bound at first.
    if length >= PATH_BYTES_MAX {
        return Err(BindError::TooLong {
            path: path.to_owned(),
            length,
        });
    }
    Ok(())
}

/// Binds a listener with the given mode. A socket nobody serves any more is replaced.
pub fn bind(path: &Path, mode: u32) -> Result<UnixListener, BindError> {
    ensure_fits(path)?;
    let io = |source| BindError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {
            if !is_gone(path).map_err(io)? {
                return Err(BindError::InUse { path: path.to_owned() });
            }
            fs::remove_file(path).map_err(io)?;
        }
    }
    if let Some(parent) = path.parent() {
        // `/run` is empty after each start of the machine.
        files::shared_dir(parent)?;
    }
    // Bound under another name and moved into place with its final mode: there is no moment in which others may connect.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push("~");
    let hidden = PathBuf::from(hidden);
    let _ = fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(io)?;
    fs::set_permissions(&hidden, Permissions::from_mode(mode)).map_err(io)?;
    fs::rename(&hidden, path).map_err(io)?;
    Ok(listener)
}

/// As [`bind`], with what removes the socket at the end.
pub fn place(path: &Path, mode: u32) -> Result<(UnixListener, Placed), BindError> {
    let listener = bind(path, mode)?;
    let placed = Placed::of(path).map_err(|source| BindError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok((listener, placed))
}

/// Whether nobody holds the socket at this path any more: it is not there, or was left by a process that is gone. One who
/// holds it and does not answer is not gone.
///
/// # Errors
/// The system does not say: most often this user may not open the socket.
pub fn is_gone(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = connector(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        // All places of its queue may be taken: somebody holds it.
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => Ok(false),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Who is at the other end.
///
/// # Errors
/// The kernel cannot say.
pub fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
    Ok(Peer {
        pid: credentials.pid(),
        uid: credentials.uid(),
        gid: credentials.gid(),
    })
}

// === impl Placed ===

impl Placed {
    fn of(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            path: path.to_owned(),
            _held: rustix::fs::open(path, flags, Mode::empty())?,
            file: file(path)?,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if file(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = bind(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _client = UnixStream::connect(&path).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let peer = peer(&stream).unwrap();
        assert_eq!(peer.pid as u32, std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
    }

    #[tokio::test]
    async fn a_socket_goes_with_who_bound_it_and_not_with_who_did_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, placed) = place(&path, 0o600).unwrap();
        assert!(!is_gone(&path).unwrap());
        drop(listener);
        assert!(is_gone(&path).unwrap() && path.exists());
        let (_second, held) = place(&path, 0o600).unwrap();
        drop(placed);
        assert!(!is_gone(&path).unwrap(), "it is another's");
        drop(held);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn binding_says_what_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path, 0o600).unwrap();
        assert!(matches!(bind(&path, 0o600), Err(BindError::InUse { .. })));
        drop(first);
        bind(&path, 0o600).expect("a stale socket is replaced");
        // Somebody holds it and never accepts, and all places of its queue are taken.
        let busy_path = dir.path().join("busy");
        let busy = std::os::unix::net::UnixListener::bind(&busy_path).unwrap();
        nix::sys::socket::listen(&busy, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _waits = std::os::unix::net::UnixStream::connect(&busy_path).unwrap();
        assert!(!is_gone(&busy_path).unwrap());
        assert!(matches!(bind(&busy_path, 0o600), Err(BindError::InUse { .. })));
        drop(busy);
        assert!(is_gone(&busy_path).unwrap());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(bind(&file, 0o600), Err(BindError::NotASocket { .. })));
        let long = dir.path().join("x".repeat(120));
        assert!(matches!(bind(&long, 0o600), Err(BindError::TooLong { .. })));
    }
}
