//! A stream that remembers whether the other side has been heard, and since when not.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// Set with each byte that is read.
#[derive(Debug)]
pub(crate) struct Heard<S> {
    stream: S,
    lately: Arc<AtomicBool>,
    /// Told once, of the first byte: it belongs to the other side's settings, which come before all else (RFC 9113, 3.4).
    first: Option<watch::Sender<bool>>,
}

/// What of it can be asked elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Ear {
    lately: Arc<AtomicBool>,
    first: watch::Receiver<bool>,
}

// === impl Heard ===

impl<S> Heard<S> {
    pub(crate) fn new(stream: S) -> (Self, Ear) {
        let (sender, first) = watch::channel(false);
        let lately = Arc::new(AtomicBool::new(false));
        let heard = Self {
            stream,
            lately: lately.clone(),
            first: Some(sender),
        };
        (heard, Ear { lately, first })
    }
}

// === impl Ear ===

impl Ear {
    /// Whether anything came since this was asked last.
    pub(crate) fn lately(&self) -> bool {
        self.lately.swap(false, Relaxed)
    }

    /// Whether anything came at all.
    pub(crate) fn ever(&self) -> bool {
        *self.first.borrow()
    }

    /// Waits until something came, or nothing can come any more.
    pub(crate) async fn first(&mut self) {
        let _ = self.first.wait_for(|first| *first).await;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            this.lately.store(true, Relaxed);
            if let Some(first) = this.first.take() {
                first.send_replace(true);
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
