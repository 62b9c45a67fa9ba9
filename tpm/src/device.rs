//! Where commands go: a character device of the kernel's, or the socket of a software TPM.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long one command may take over a socket. A slow chip takes some ten seconds to make an RSA key; the kernel has limits of its own.
const PATIENCE: Duration = Duration::from_secs(90);

/// A TPM that takes commands.
#[derive(Debug)]
pub enum Device {
    /// The kernel's device: `/dev/tpmrm0`, which keeps its callers apart.
    Kernel(File),
    /// A software TPM's socket.
    Socket(UnixStream),
}

// === impl Device ===

impl Device {
    /// Opens the device, or connects where the path is a socket.
    ///
    /// # Errors
    /// There is no such file, this user may not open it, or it is neither.
    pub fn open(path: &Path) -> io::Result<Self> {
        let kind = fs::metadata(path)?.file_type();
        if kind.is_socket() {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            return Ok(Self::Socket(stream));
        }
        if !kind.is_char_device() {
            return Err(io::Error::other("it is neither a device nor a socket"));
        }
        OpenOptions::new().read(true).write(true).open(path).map(Self::Kernel)
    }
}

impl Read for Device {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Kernel(file) => file.read(buffer),
            Self::Socket(stream) => stream.read(buffer).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(
                    io::ErrorKind::TimedOut,
                    "nothing within 90 s; it may serve somebody else",
                ),
                _ => error,
            }),
        }
    }
}

impl Write for Device {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Kernel(file) => file.write(bytes),
            Self::Socket(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
