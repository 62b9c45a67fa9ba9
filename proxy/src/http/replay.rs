//! A request's body that can be sent again, as long as little of it is gone.
//!
//! A request that a server has not looked at is sent to it again. What was read of its body by then is kept for that, up
//! to a bound; beyond it, or once the answer has begun, nothing is kept and nothing can be sent again.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// What is kept of one body.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// One reading of a body, which may be read again.
#[derive(Debug)]
pub(crate) struct Replay<B> {
    kept: Arc<Mutex<Kept<B>>>,
    /// Which reading it is: one that is no longer the last reads nothing.
    reading: usize,
    next: usize,
}

/// Whoever may want to have it read again.
#[derive(Debug)]
pub(crate) struct Again<B>(Arc<Mutex<Kept<B>>>);

#[derive(Debug)]
struct Kept<B> {
    body: B,
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

impl<B> Again<B> {
    pub(crate) fn new(body: B) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            body,
            frames: Vec::new(),
            bytes: 0,
            whole: true,
            readings: 0,
        })))
    }

    /// The body from its beginning; none if not all of that is there any more. An earlier reading ends.
    pub(crate) fn read(&self) -> Option<Replay<B>> {
        let mut state = lock(&self.0);
        if !state.whole {
            return None;
        }
        state.readings += 1;
        Some(Replay {
            kept: self.0.clone(),
            reading: state.readings,
            next: 0,
        })
    }

    /// It will not be read again.
    pub(crate) fn settle(&self) {
        lock(&self.0).forget();
    }
}

// === impl Kept ===

impl<B> Kept<B> {
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

impl<B> HttpBody for Replay<B>
where
    B: HttpBody<Data = Bytes, Error = Box<dyn Error + Send + Sync>> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
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

fn lock<B>(kept: &Mutex<Kept<B>>) -> MutexGuard<'_, Kept<B>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
