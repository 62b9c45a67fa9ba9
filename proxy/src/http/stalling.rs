//! A stream whose other side has to read: if it takes nothing for too long of what there is to write, it ends.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::transfer::Due;
use crate::metrics::Traffic;

/// The stream.
#[derive(Debug)]
pub(crate) struct Stalling<S> {
    stream: S,
    limit: Option<Duration>,
    due: Due,
    stalled: Stalled,
    traffic: Traffic,
}

/// Whether a stream has ended for that.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stalled(Arc<AtomicBool>);

// === impl Stalled ===

impl Stalled {
    pub(crate) fn is_so(&self) -> bool {
        self.0.load(Relaxed)
    }
}

// === impl Stalling ===

impl<S> Stalling<S> {
    /// What crosses it is counted.
    pub(crate) fn new(stream: S, limit: Option<Duration>, traffic: Traffic) -> (Self, Stalled) {
        let stalled = Stalled::default();
        let stalling = Self {
            stream,
            limit,
            due: Due::default(),
            stalled: stalled.clone(),
            traffic,
        };
        (stalling, stalled)
    }

    fn sent(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.traffic.sent(*bytes);
        }
    }

    fn watch<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.due.clear();
            return written;
        }
        match self.limit {
            Some(limit) if self.due.is_over(limit, context) => {
                self.stalled.0.store(true, Relaxed);
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.traffic.received(buffer.filled().len().saturating_sub(before));
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.sent(&written);
        this.watch(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.sent(&written);
        this.watch(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        this.watch(flushed, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.stream).poll_shutdown(context);
        this.watch(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn who_reads_slowly_goes_on_and_who_reads_nothing_does_not() {
        let metrics = crate::metrics::Metrics::default();
        let traffic = metrics.traffic(crate::metrics::Carried::InboundHttp, "ledger");
        let (near, mut far) = tokio::io::duplex(16);
        let (mut near, stalled) = Stalling::new(near, Some(Duration::from_secs(60)), traffic.clone());
        let writing = tokio::spawn(async move { near.write_all(&[0; 64]).await });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            far.read_exact(&mut [0; 8]).await.unwrap();
        }
        assert!(!writing.is_finished());
        let since = tokio::time::Instant::now();
        let error = writing.await.unwrap().unwrap_err();
        let passed = since.elapsed();
        assert!(
            passed <= Duration::from_secs(61),
            "{passed:?} of the clock that stands still"
        );
        assert!(error.kind() == io::ErrorKind::TimedOut && stalled.is_so());
    }
}
