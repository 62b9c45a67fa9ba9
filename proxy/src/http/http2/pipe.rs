//! A body on its way into an HTTP/2 stream.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::Body as HttpBody;
use tokio::time::{Instant, Sleep, sleep};

use crate::http::body::Body;
use crate::http::transfer::Due;

/// What is handed to the library at a time: a frame, by its default size.
const PIECE_BYTES_MAX: usize = 16 << 10;

/// A body that has not moved for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_millis(100);

/// Sends a body, as fast as the stream's window allows. Dropped before its end it resets the stream.
#[derive(Debug)]
pub(crate) struct Pipe {
    body: Body,
    to: SendStream<Bytes>,
    /// What waits for the window, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
    patience: Option<Patience>,
    /// When the window has been closed for too long.
    due: Due,
}

/// Tells of a body that does not move, whose bytes may hold the window of the whole connection.
#[derive(Debug)]
struct Patience {
    stuck: Arc<AtomicUsize>,
    due: Pin<Box<Sleep>>,
    waits: bool,
    told: bool,
}

/// How a body has ended that was not sent whole. The stream is reset.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the other side reads no more: {0}")]
    Reset(Reason),
    #[error(transparent)]
    Stream(#[from] h2::Error),
    #[error("the other side opens its window no more")]
    Stalled,
    #[error("the body broke off: {0}")]
    Body(Box<dyn Error + Send + Sync>),
}

// === impl Pipe ===

impl Pipe {
    pub(crate) fn new(body: Body, to: SendStream<Bytes>) -> Self {
        Self {
            body,
            to,
            waiting: None,
            patience: None,
            due: Due::default(),
        }
    }

    /// Counts itself in `stuck` for as long as it does not move.
    pub(crate) fn counted(body: Body, to: SendStream<Bytes>, stuck: Arc<AtomicUsize>) -> Self {
        let patience = Patience {
            stuck,
            due: Box::pin(sleep(STUCK_AFTER)),
            waits: false,
            told: false,
        };
        Self {
            patience: Some(patience),
            ..Self::new(body, to)
        }
    }

    /// Sends what waits, once there is window for some of it.
    fn poll_waiting(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Cut>> {
        if self.waiting.is_none() {
            return Poll::Ready(Ok(false));
        }
        while self.to.capacity() == 0 {
            match self.to.poll_capacity(context) {
                Poll::Ready(Some(granted)) => granted.map(drop)?,
                Poll::Ready(None) => return Poll::Ready(Err(Cut::Reset(Reason::CANCEL))),
                Poll::Pending => {
                    if let Some(patience) = &mut self.patience {
                        patience.wait(context);
                    }
                    return Poll::Pending;
                }
            };
        }
        if let Some(patience) = &mut self.patience {
            patience.moved();
        }
        self.due.clear();
        let Some((mut data, last)) = self.waiting.take() else {
            return Poll::Ready(Ok(false));
        };
        // By pieces, so that a reader who is slow is seen to read.
        if data.len() > PIECE_BYTES_MAX {
            let piece = data.split_to(PIECE_BYTES_MAX);
            self.to.send_data(piece, false)?;
            self.to.reserve_capacity(1);
            self.waiting = Some((data, last));
            return self.poll_waiting(context);
        }
        self.to.send_data(data, last)?;
        Poll::Ready(Ok(last))
    }

    /// Ready when there has been no window for too long.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.body.write_idle() {
            Some(limit) if self.due.is_over(limit, context) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

// === impl Patience ===

impl Patience {
    fn wait(&mut self, context: &mut Context<'_>) {
        if !std::mem::replace(&mut self.waits, true) {
            self.due.as_mut().reset(Instant::now() + STUCK_AFTER);
        }
        if !self.told && self.due.as_mut().poll(context).is_ready() {
            self.told = true;
            self.stuck.fetch_add(1, Relaxed);
        }
    }

    fn moved(&mut self) {
        self.waits = false;
        if std::mem::take(&mut self.told) {
            self.stuck.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.moved();
    }
}

impl Future for Pipe {
    type Output = Result<(), Cut>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(reason) = this.to.poll_reset(context)? {
                return Poll::Ready(Err(Cut::Reset(reason)));
            }
            match this.poll_waiting(context)? {
                Poll::Ready(true) => return Poll::Ready(Ok(())),
                Poll::Ready(false) => {}
                Poll::Pending => {
                    ready!(this.poll_stalled(context));
                    this.body.stalled();
                    this.to.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(Cut::Stalled));
                }
            }
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(context)) else {
                this.to.send_data(Bytes::new(), true)?;
                return Poll::Ready(Ok(()));
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    this.to.send_reset(reset_for(&*error));
                    return Poll::Ready(Err(Cut::Body(error)));
                }
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    // One byte is asked for and no more: what is claimed is the connection's, and others need it too.
                    this.to.reserve_capacity(1);
                    this.waiting = Some((data, this.body.is_end_stream()));
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        this.to.reserve_capacity(0);
                        this.to.send_trailers(trailers)?;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}

/// The code to reset a stream with, of what its body broke off with.
fn reset_for(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let reason = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
        match reason {
            // Neither is true of a stream that we have begun to answer, or have begun to send.
            Some(Reason::NO_ERROR | Reason::REFUSED_STREAM) => return Reason::INTERNAL_ERROR,
            Some(reason) => return reason,
            None => cause = error.source(),
        }
    }
    Reason::INTERNAL_ERROR
}
