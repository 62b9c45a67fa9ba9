//! What the HTTP library refuses, or should, before it becomes a request: seen in the bytes themselves, for the log.
//!
//! The library answers a malformed head, resets a stream and ends a connection without asking the service. Some heads
//! that two programs could read in two ways it reads in one, and tells nobody; those are spoilt before it reads them.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use crate::http::frames::{Frames, Reset};
use crate::http::heads::{Heads, Spoilt};
use crate::http::lane::Lane;

/// Refusals that wait to be recorded; the library ends a connection on which there are more.
const WAITING_MAX: usize = 256;

/// Something the peer sent that never becomes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unparsed {
    /// A head of HTTP/1.1, and what is wrong with it. The library is about to answer it and to end the connection.
    Head(&'static str),
    /// A stream of HTTP/2, or all of them.
    Reset(Reset),
}

/// A stream whose bytes are looked at.
#[derive(Debug)]
pub(crate) struct Tapped<S> {
    stream: S,
    protocol: Protocol,
    refusals: mpsc::Sender<Unparsed>,
    /// What goes between the library's messages.
    lane: Lane,
}

#[derive(Debug)]
enum Protocol {
    /// What the peer writes; HTTP/2 in it is passed over.
    Http1(Heads),
    /// What we write.
    Http2(Frames),
}

// === impl Unparsed ===

impl fmt::Display for Unparsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(reason) => f.write_str(reason),
            Self::Reset(Reset { stream: 0, error }) => write!(f, "the connection was ended ({error})"),
            Self::Reset(Reset { stream, error }) => {
                write!(f, "stream {stream} was reset before it became a request ({error})")
            }
        }
    }
}

// === impl Tapped ===

impl<S> Tapped<S> {
    pub(crate) fn new(stream: S, http2: bool) -> (Self, mpsc::Receiver<Unparsed>) {
        let (refusals, received) = mpsc::channel(WAITING_MAX);
        let tapped = Self {
            stream,
            protocol: if http2 {
                Protocol::Http2(Frames::default())
            } else {
                Protocol::Http1(Heads::default())
            },
            refusals,
            lane: Lane::default(),
        };
        (tapped, received)
    }

    /// The way for interim answers into what is written; of HTTP/1.1 only.
    pub(crate) fn lane(&self) -> Lane {
        self.lane.clone()
    }

    fn written(&mut self, bytes: &[u8]) {
        if let Protocol::Http2(frames) = &mut self.protocol {
            frames.see(bytes, |reset| {
                // INVARIANT: what is lost here is beyond what the library lets one connection do.
                let _ = self.refusals.try_send(Unparsed::Reset(reset));
            });
        }
    }

    fn read(&mut self, bytes: &mut [u8]) {
        if let Protocol::Http1(heads) = &mut self.protocol
            // Of a body that breaks off, whoever reads it hears.
            && let Some(Spoilt::Head(reason)) = heads.see(bytes)
        {
            let _ = self.refusals.try_send(Unparsed::Head(reason));
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tapped<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Some(bytes @ [_, ..]) = buffer.filled_mut().get_mut(before..) {
            this.read(bytes);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tapped<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.lane.poll_finish(Pin::new(&mut this.stream), context))?;
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = written {
            this.written(bytes.get(..written).unwrap_or(bytes));
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.lane.poll_finish(Pin::new(&mut this.stream), context))?;
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(mut left)) = written {
            for slice in slices {
                let seen = left.min(slice.len());
                this.written(slice.get(..seen).unwrap_or(slice));
                left -= seen;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.lane.poll_write(Pin::new(&mut this.stream), context))?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
