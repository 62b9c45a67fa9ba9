//! A connection that holds a place, for servers that are given streams and not tasks: it ends when its place is lost.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::slots::Slot;

/// A stream with its place. Once that is given to another it reads as ended, and takes nothing that is written.
#[derive(Debug)]
pub struct Held<S> {
    stream: S,
    slot: Arc<Slot>,
}

// === impl Held ===

impl<S> Held<S> {
    /// Whoever shares the slot says when the connection has settled, and what is under way on it.
    pub fn new(stream: S, slot: Arc<Slot>) -> Self {
        Self { stream, slot }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.slot.poll_evicted(cx).is_ready() {
            return Poll::Ready(Ok(())); // nothing read: the end of the stream
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.slot.poll_evicted(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.slot.poll_evicted(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
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
        if self.slot.poll_evicted(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{Bounds, Slots, Source};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn it_ends_with_its_place() {
        let slots = Slots::new("test", Bounds::local(1, 1, 1));
        let (_peer, stream) = tokio::io::duplex(10);
        let slot = Arc::new(slots.admit(&[Source::Process(1)]).unwrap());
        let mut held = Held::new(stream, slot);
        let reading = tokio::spawn(async move {
            let read = held.read(&mut [0]).await;
            (read, held.write(b"x").await)
        });
        tokio::task::yield_now().await;
        let _others: Vec<_> = (0..2).map(|_| slots.admit(&[Source::Process(1)]).unwrap()).collect();
        let (read, written) = reading.await.unwrap();
        assert_eq!(read.unwrap(), 0);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
