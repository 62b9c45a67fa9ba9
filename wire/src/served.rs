//! A connection that a gRPC server accepted, and what each request on it can learn of its peer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// A stream for `tonic`'s server. Each request has `info` in its extensions.
#[derive(Debug)]
pub struct Served<S, I, H = ()> {
    stream: S,
    info: I,
    _held: H,
}

// === impl Served ===

impl<S, I> Served<S, I> {
    /// Serves a stream whose peer is `info`.
    pub fn new(stream: S, info: I) -> Self {
        Self {
            stream,
            info,
            _held: (),
        }
    }

    /// Drops `held` when the connection ends.
    pub fn holding<H>(self, held: H) -> Served<S, I, H> {
        Served {
            stream: self.stream,
            info: self.info,
            _held: held,
        }
    }
}

impl<S, I: Clone + Send + Sync + 'static, H> Connected for Served<S, I, H> {
    type ConnectInfo = I;

    fn connect_info(&self) -> I {
        self.info.clone()
    }
}

impl<S: AsyncRead + Unpin, I: Unpin, H: Unpin> AsyncRead for Served<S, I, H> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, I: Unpin, H: Unpin> AsyncWrite for Served<S, I, H> {
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
