//! A connection on one of our Unix sockets: its peer is known by the kernel's word, and may name the socket as it likes.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

use crate::http_authority::HttpAuthorityMender;
use crate::peer_process::PeerProcess;
use crate::socket::{self, Peer};

/// What is read from the socket at once.
const READ_BYTES: usize = 8 << 10;

/// A stream and who is at its other end. What it reads is mended by [`HttpAuthorityMender`].
#[derive(Debug)]
pub struct LocalConnection {
    stream: UnixStream,
    peer: Peer,
    mender: HttpAuthorityMender,
    /// Mended, and not read yet from `read` on.
    mended: Vec<u8>,
    read: usize,
    /// When it reads as ended, whatever its peer still says.
    ends: Option<Pin<Box<Sleep>>>,
}

// === impl LocalConnection ===

impl LocalConnection {
    /// Asks the kernel who is at the other end.
    ///
    /// # Errors
    /// The kernel cannot say.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self {
            peer: socket::peer(&stream)?,
            stream,
            mender: HttpAuthorityMender::default(),
            mended: Vec::new(),
            read: 0,
            ends: None,
        })
    }

    /// The same connection, which reads as ended after this long: for a peer who is told one thing and has nothing else to do here.
    #[must_use]
    pub fn for_no_longer_than(self, span: Duration) -> Self {
        let ends = Some(Box::pin(sleep(span)));
        Self { ends, ..self }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The process at the other end, held. To be asked right after the connection was accepted.
    ///
    /// # Errors
    /// It has exited, or it is not certain which process it is.
    pub fn process(&self, how: PeerProcess) -> io::Result<OwnedFd> {
        how.of(&self.stream, self.peer)
    }
}

impl AsyncRead for LocalConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(())); // nothing read: the end of the stream
        }
        loop {
            let rest = this.mended.get(this.read..).unwrap_or_default();
            if !rest.is_empty() || buffer.remaining() == 0 {
                let (now, _) = rest.split_at_checked(buffer.remaining()).unwrap_or((rest, &[]));
                buffer.put_slice(now);
                this.read += now.len();
                return Poll::Ready(Ok(()));
            }
            this.mended.clear();
            this.read = 0;
            if this.mender.is_foreign() {
                return Pin::new(&mut this.stream).poll_read(cx, buffer);
            }
            let mut bytes = [0; READ_BYTES];
            let mut bytes = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut bytes))?;
            if bytes.filled().is_empty() {
                return Poll::Ready(Ok(())); // the end of the stream
            }
            this.mender.take(bytes.filled(), &mut this.mended);
        }
    }
}

impl AsyncWrite for LocalConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn small_reads_lose_nothing() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut connection = LocalConnection::new(server).unwrap();
        // HTTP/2 at first, in one frame that passes and one that is written anew, and then HTTP/1.1.
        let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x03\0\0\0\0\0\x01abc\0\0\x01\x01\x05\0\0\0\x01\x82";
        client.write_all(hello).await.unwrap();
        drop(client);
        let mut read = Vec::new();
        while let Ok(byte) = connection.read_u8().await {
            read.push(byte);
        }
        let expected = [&hello[..36], b"\0\0\x0d\x01\x05\0\0\0\x01\0\x07:method\x03GET"].concat();
        assert_eq!(read, expected);

        let (mut client, server) = UnixStream::pair().unwrap();
        let mut connection = LocalConnection::new(server).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut text = [0; 18];
        connection.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"GET / HTTP/1.1\r\n\r\n");
    }
}
