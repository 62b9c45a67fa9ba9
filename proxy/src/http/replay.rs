//! A request's body that can be sent again, as long as little of it is gone.
//!
//! A request that a server has not looked at is sent to it again. What was read of its body by then is kept for that, up
//! to a bound; beyond it, or once the answer has begun, nothing is kept and nothing can be sent again.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::http::body::{Body, Broken};

/// What is kept of one body.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// One reading of a body, which may be read again.
#[derive(Debug)]
pub(crate) struct Replay {
    kept: Arc<Mutex<Kept>>,
    /// Which reading it is: one that is no longer the last reads nothing.
    reading: usize,
    next: usize,
}

/// Whoever may want to have it read again.
#[derive(Debug)]
pub(crate) enum Again {
    /// There is nothing to read.
    Empty,
    /// What was read is kept.
    Kept(Arc<Mutex<Kept>>),
}

#[derive(Debug)]
pub(crate) struct Kept {
    body: Body,
    frames: Vec<Piece>,
    bytes: usize,
    /// Everything that was read of it is still there.
    whole: bool,
    readings: usize,
}

#[derive(Debug, Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Somebody else reads it now.
#[derive(Debug, thiserror::Error)]
#[error("the request is sent again elsewhere")]
struct Superseded;

// === impl Again ===

impl Again {
    /// Gives a body for its first reading, and the means to have it read again.
    pub(crate) fn keep(body: Body) -> (Body, Self) {
        if body.is_end_stream() {
            return (body, Self::Empty);
        }
        let kept = Arc::new(Mutex::new(Kept {
            body,
            frames: Vec::new(),
            bytes: 0,
            whole: true,
            readings: 0,
        }));
        let first = Replay {
            kept: kept.clone(),
            reading: 0,
            next: 0,
        };
        (Body::Replayed(first), Self::Kept(kept))
    }

    /// The body from its beginning; none if not all of that is there any more.
    pub(crate) fn read(&self) -> Option<Body> {
        let kept = match self {
            Self::Empty => return Some(Body::Empty),
            Self::Kept(kept) => kept,
        };
        let mut state = lock(kept);
        if !state.whole {
            return None;
        }
        state.readings += 1;
        Some(Body::Replayed(Replay {
            kept: kept.clone(),
            reading: state.readings,
            next: 0,
        }))
    }

    /// It will not be read again.
    pub(crate) fn settle(self) {
        if let Self::Kept(kept) = self {
            lock(&kept).forget();
        }
    }
}

// === impl Kept ===

impl Kept {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if !self.whole {
            return;
        }
        let piece = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Piece::Data(data.clone()),
            (None, Some(trailers)) => Piece::Trailers(trailers.clone()),
            (None, None) => return,
        };
        self.bytes += frame.data_ref().map_or(0, Bytes::len);
        self.frames.push(piece);
        if self.bytes > KEPT_BYTES_MAX {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.whole = false;
        self.frames = Vec::new();
    }
}

// === impl Replay ===

impl HttpBody for Replay {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let mut kept = lock(&this.kept);
        if kept.readings != this.reading {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        if let Some(piece) = kept.frames.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(piece.clone().into())));
        }
        let frame = ready!(Pin::new(&mut kept.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            kept.keep(frame);
            this.next = kept.frames.len();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let kept = lock(&self.kept);
        self.next >= kept.frames.len() && kept.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let kept = lock(&self.kept);
        let again: u64 = kept.frames.iter().skip(self.next).map(Piece::bytes).sum();
        let mut hint = kept.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(again));
        }
        hint.set_lower(hint.lower().saturating_add(again));
        hint
    }
}

// === impl Piece ===

impl Piece {
    fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Self::data(data),
            Piece::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
