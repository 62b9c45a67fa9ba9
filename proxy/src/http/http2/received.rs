//! The body of an HTTP/2 message as it arrives.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use hyper::body::{Frame, SizeHint};

use crate::http::windows::Meter;

/// A stream's data and trailers. Its window opens as they are taken.
///
/// A stream that is reset ends with an error, whatever the reason: what was cut off is never taken for whole.
#[derive(Debug)]
pub(crate) struct Received {
    stream: RecvStream,
    left: Option<u64>,
    state: State,
    meter: Meter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    Ended,
}

// === impl Received ===

impl Received {
    /// The body of a message with this head.
    pub(crate) fn new(stream: RecvStream, head: &HeaderMap, meter: Meter) -> Self {
        meter.begins();
        let length = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let left = if stream.is_end_stream() {
            Some(0)
        } else {
            length.and_then(|length| length.parse().ok())
        };
        Self {
            stream,
            left,
            state: State::Data,
            meter,
        }
    }

    pub(crate) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.state == State::Data {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    if let Err(error) = self.stream.flow_control().release_capacity(data.len()) {
                        self.state = State::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                    self.meter.read(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => {
                    self.state = State::Ended;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.state = State::Trailers,
            }
        }
        if self.state == State::Trailers {
            let trailers = ready!(self.stream.poll_trailers(context));
            self.state = State::Ended;
            return Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)));
        }
        Poll::Ready(None)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.state == State::Ended || self.stream.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let unread = self.stream.flow_control().used_capacity();
        self.meter.ends(unread);
    }
}
