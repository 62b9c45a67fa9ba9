//! What the HTTP library refuses, or should, before it becomes a request: seen in the bytes themselves.
//!
//! The library answers a malformed head, resets a stream and ends a connection without asking the service; some heads that
//! two programs could read in two ways it reads in one; and of what a peer sends beside its requests it bounds little. So
//! each connection's bytes are looked at on their way to it: by [`Heads`] for HTTP/1.1, by [`PeerFrames`] for HTTP/2.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hoplite_host::clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tracing::warn;

use crate::http::frame::{Role, WINDOW_UPDATE};
use crate::http::frames::{Counts, Frames, Passed, PeerFrames, Reset};
use crate::http::half_close::{AtEnd, End, Open};
use crate::http::heads::Heads;
use crate::http::lane::Lane;
use crate::http::rules::HttpRules;
use crate::http::useless::{Budget, Standing};
use crate::http::windows::Meter;
use crate::metrics::Metrics;

/// Refusals that wait to be recorded; the library ends a connection on which there are more.
const WAITING_MAX: usize = 256;

/// Read at once while something is held.
const READ_BYTES: usize = 8 << 10;

/// Something the peer sent that never becomes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unparsed {
    /// A stream of HTTP/2, or all of them.
    Reset(Reset),
    /// Three quarters of the budget of useless frames are gone. Nothing is refused yet.
    Low,
    /// The budget is spent; the connection ends.
    Flooded,
}

/// Whose connection it is, for the one line in the log that says how it ended.
#[derive(Debug)]
pub(crate) struct Far {
    /// From a fixed set: a label.
    pub(crate) side: &'static str,
    /// For people.
    pub(crate) name: String,
    pub(crate) metrics: Arc<Metrics>,
}

/// A stream whose bytes are looked at.
#[derive(Debug)]
pub(crate) struct Tapped<S> {
    stream: S,
    far: Far,
    protocol: Protocol,
    refusals: mpsc::Sender<Unparsed>,
    /// What goes between the library's messages.
    lane: Lane,
    /// Read, and not shown yet: the beginning of something.
    held: Vec<u8>,
    /// For the library to read.
    ready: Bytes,
    /// Said once, after which nothing is read.
    gone: bool,
}

#[derive(Debug)]
enum Protocol {
    Http1(Heads),
    Http2(Box<Http2>),
    /// Answers of HTTP/1.1, of which the library reads each by itself.
    Answers,
}

#[derive(Debug)]
struct Http2 {
    role: Role,
    ours: Frames,
    theirs: PeerFrames,
    budget: Budget,
    open: Open,
    meter: Meter,
    /// Nothing more can be read.
    at_end: bool,
}

// === impl Unparsed ===

impl fmt::Display for Unparsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(Reset { stream: 0, error }) => write!(f, "the connection was ended ({error})"),
            Self::Reset(Reset { stream, error }) => {
                write!(f, "stream {stream} was reset before it became a request ({error})")
            }
            Self::Low => f.write_str("many frames that belong to no request"),
            Self::Flooded => {
                f.write_str("the connection was ended (ENHANCE_YOUR_CALM): too many frames that belong to no request")
            }
        }
    }
}

// === impl Tapped ===

impl<S> Tapped<S> {
    /// A caller's connection, whose protocol is settled.
    pub(crate) fn caller(stream: S, http2: bool, far: Far, rules: &HttpRules) -> (Self, mpsc::Receiver<Unparsed>) {
        let protocol = if http2 {
            Protocol::http2(Role::Server, rules.useless_frames_max)
        } else {
            Protocol::Http1(Heads::default())
        };
        Self::new(stream, protocol, far)
    }

    /// Our connection to somebody who answers.
    pub(crate) fn upstream(stream: S, http2: bool, far: Far, rules: &HttpRules) -> Self {
        let protocol = if http2 {
            Protocol::http2(Role::Client, rules.useless_frames_max)
        } else {
            Protocol::Answers
        };
        Self::new(stream, protocol, far).0
    }

    fn new(stream: S, protocol: Protocol, far: Far) -> (Self, mpsc::Receiver<Unparsed>) {
        let (refusals, received) = mpsc::channel(WAITING_MAX);
        let tapped = Self {
            stream,
            far,
            protocol,
            refusals,
            lane: Lane::default(),
            held: Vec::new(),
            ready: Bytes::new(),
            gone: false,
        };
        (tapped, received)
    }

    /// The way for interim answers into what is written; of HTTP/1.1 only.
    pub(crate) fn lane(&self) -> Lane {
        self.lane.clone()
    }

    /// That its other side has said its end; of HTTP/2 only.
    pub(crate) fn end(&self) -> End {
        match &self.protocol {
            Protocol::Http2(http2) => http2.open.end(),
            Protocol::Http1(_) | Protocol::Answers => End::default(),
        }
    }

    /// What its bytes say of its window; of HTTP/2 only.
    pub(crate) fn meter(&self) -> Meter {
        match &self.protocol {
            Protocol::Http2(http2) => http2.meter.clone(),
            Protocol::Http1(_) | Protocol::Answers => Meter::default(),
        }
    }

    fn written(&mut self, bytes: &[u8]) {
        let Protocol::Http2(http2) = &mut self.protocol else {
            return;
        };
        let Http2 {
            role,
            ours,
            budget,
            open,
            meter,
            ..
        } = &mut **http2;
        let refusals = &self.refusals;
        ours.see(
            bytes,
            |frame, number| {
                if frame.kind == WINDOW_UPDATE {
                    if let (0, Some(bytes)) = (frame.stream, number) {
                        meter.granted(bytes);
                    }
                    return;
                }
                budget.sent(frame, number, clock::moment);
                open.sent(frame);
                if open.is_empty() {
                    meter.nothing_open();
                }
                if *role == Role::Server && frame.ends_stream() {
                    budget.answered();
                }
            },
            |reset| {
                // INVARIANT: what is lost here is beyond what the library lets one connection do.
                let _ = refusals.try_send(Unparsed::Reset(reset));
            },
        );
    }
}

// === impl Protocol ===

impl Protocol {
    fn http2(role: Role, useless_max: u32) -> Self {
        Self::Http2(Box::new(Http2 {
            role,
            ours: Frames::default(),
            theirs: PeerFrames::new(role),
            budget: Budget::new(useless_max, clock::moment()),
            open: Open::new(role),
            meter: Meter::default(),
            at_end: false,
        }))
    }

    fn is_at_end(&self) -> bool {
        matches!(self, Self::Http2(http2) if http2.at_end)
    }

    /// TLS that ends without `close_notify` may have been cut off. Of requests, and of HTTP/2, that shows: each says where
    /// it ends. An answer of HTTP/1.1 may end where its connection does.
    fn ending(&self, read: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        match read {
            Poll::Ready(Err(error))
                if error.kind() == io::ErrorKind::UnexpectedEof && !matches!(self, Self::Answers) =>
            {
                Poll::Ready(Ok(()))
            }
            read => read,
        }
    }

    /// Looks at the next bytes, of which some come again.
    fn pass(&mut self, bytes: &mut [u8], instead: &mut Vec<u8>) -> Passed {
        let whole = Passed {
            through: bytes.len(),
            used: bytes.len(),
        };
        match self {
            Self::Http1(heads) => heads.pass(bytes, instead),
            Self::Http2(http2) => {
                let Http2 {
                    theirs,
                    budget,
                    open,
                    meter,
                    ..
                } = &mut **http2;
                theirs.pass(bytes, instead, Counts { budget, open, meter })
            }
            Self::Answers => whole,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tapped<S> {
    /// Reads once more into what is held, and shows it. Whether there was anything to read.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let before = self.held.len();
        self.held.resize(before + READ_BYTES, 0);
        let mut buffer = ReadBuf::new(self.held.get_mut(before..).unwrap_or_default());
        let read = self
            .protocol
            .ending(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
        let filled = buffer.filled().len();
        self.held.truncate(before + filled);
        ready!(read)?;
        if filled == 0 {
            return Poll::Ready(Ok(false));
        }
        let mut instead = Vec::new();
        let Passed { through, used } = self.protocol.pass(&mut self.held, &mut instead);
        let left = self.held.split_off(used);
        // An idle connection holds nothing, and no room for it.
        let mut passed = std::mem::replace(&mut self.held, left);
        passed.truncate(through);
        passed.extend(instead);
        self.ready = passed.into();
        Poll::Ready(Ok(true))
    }

    /// Reads into the library's own buffer, and leaves there what may go on. Whether there was anything to read.
    fn poll_straight(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        ready!(self.protocol.ending(read))?;
        let bytes = buffer.filled_mut().get_mut(before..).unwrap_or_default();
        if bytes.is_empty() {
            return Poll::Ready(Ok(false));
        }
        let mut instead = Vec::new();
        let Passed { through, used } = self.protocol.pass(bytes, &mut instead);
        self.held.extend_from_slice(bytes.get(used..).unwrap_or_default());
        self.ready = instead.into();
        buffer.set_filled(before + through);
        Poll::Ready(Ok(true))
    }

    /// What the library reads where nothing more can be read: the end, unless somebody still waits for an answer.
    fn poll_end(&mut self, context: &Context<'_>) -> Poll<()> {
        let Protocol::Http2(http2) = &mut self.protocol else {
            return Poll::Ready(());
        };
        // What ends in the middle of something has broken off, and all of it with it.
        if !self.held.is_empty() || !http2.theirs.at_boundary() {
            return Poll::Ready(());
        }
        http2.at_end = true;
        match http2.open.at_end(context.waker()) {
            AtEnd::Frame(frame) => self.ready = frame.into(),
            AtEnd::Wait => return Poll::Pending,
            AtEnd::End => {}
        }
        Poll::Ready(())
    }

    /// Says how the budget stands, to whom it concerns. Whether the connection ends.
    fn ends(&mut self) -> bool {
        let Protocol::Http2(http2) = &mut self.protocol else {
            return false;
        };
        match http2.budget.standing() {
            Standing::Good => {}
            Standing::Low => {
                let _ = self.refusals.try_send(Unparsed::Low);
            }
            Standing::Spent => {
                self.far.metrics.flooded(self.far.side);
                warn!(
                    side = self.far.side,
                    peer = self.far.name,
                    useless = %http2.budget,
                    "connection ended: it carries too many frames that belong to no request"
                );
                let _ = self.refusals.try_send(Unparsed::Flooded);
                http2.theirs.calm();
            }
        }
        http2.theirs.goaway().is_some()
    }

    /// Ends the connection with a word, if there is room for one: who floods us may read nothing, and is not waited for.
    fn say_goaway(&mut self, context: &mut Context<'_>) -> io::Error {
        self.gone = true;
        if let Protocol::Http2(http2) = &mut self.protocol
            && http2.ours.at_boundary()
            && let Some(frame) = http2.theirs.goaway()
        {
            let mut stream = Pin::new(&mut self.stream);
            let _ = stream.as_mut().poll_write(context, &frame);
            let _ = stream.as_mut().poll_flush(context);
            let _ = stream.as_mut().poll_shutdown(context);
        }
        io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "it sent what ends a connection of HTTP/2",
        )
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tapped<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                let length = this.ready.len().min(buffer.remaining());
                buffer.put_slice(this.ready.get(..length).unwrap_or_default());
                this.ready.advance(length);
                return Poll::Ready(Ok(()));
            }
            // Whatever comes behind what was said instead of a head is read by nobody.
            if matches!(&this.protocol, Protocol::Http1(heads) if heads.is_over()) {
                return Poll::Ready(Ok(()));
            }
            if this.gone {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            if this.ends() {
                return Poll::Ready(Err(this.say_goaway(context)));
            }
            let before = buffer.filled().len();
            let more = if this.protocol.is_at_end() {
                false
            } else if this.held.is_empty() {
                ready!(this.poll_straight(context, buffer))?
            } else {
                ready!(this.poll_held(context))?
            };
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            // At the end the beginning of something is nothing.
            if !more {
                ready!(this.poll_end(context));
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
        }
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
