//! Message bodies: streamed through as they come, or a few bytes of our own.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::http::exchange::{Answering, Exchange};
use crate::http::grpc::GrpcEnd;
use crate::http::hop;
use crate::http::http2::received::Received;
use crate::http::hygiene;
use crate::http::replay::Replay;
use crate::http::transfer::{Due, Late, Transfer};

/// What a body breaks off with: the other side's fault, or that policy no longer permits it.
pub(crate) type Broken = Box<dyn Error + Send + Sync>;

/// A message's body as it arrives, in whichever version of HTTP.
#[derive(Debug)]
pub(crate) enum Incoming {
    Http1(hyper::body::Incoming),
    Http2(Received),
    /// Either, of a request whose body has to come.
    Awaited(Box<Awaited>),
}

/// A request's body that has to come.
#[derive(Debug)]
pub(crate) struct Awaited {
    incoming: Incoming,
    transfer: Arc<Transfer>,
    due: Due,
}

/// A body on its way from one side to the other. It is never held whole.
#[derive(Debug)]
pub(crate) enum Body {
    /// From the other side.
    Streamed {
        /// The bytes.
        incoming: Incoming,
        /// Lives as long as the body: its count is the number of streams under way on a connection.
        _stream: Option<Arc<()>>,
        /// What it is the answer of, if that may be revoked.
        answering: Option<Answering>,
        /// How it ends where it breaks off, if it can say so.
        end: Option<GrpcEnd>,
    },
    /// From a peer whose framing may be no framing, and whose permission may be revoked.
    Received {
        /// The bytes.
        incoming: Incoming,
        /// What it is the request of.
        exchange: Arc<Exchange>,
    },
    /// Of a request that may have to be sent again.
    Replayed(Replay<Self>),
    /// An answer of ours.
    Own(Full<Bytes>),
    /// Of a request without one.
    Empty,
    /// Any of these, on its way to who asked.
    Answered {
        /// The bytes.
        body: Box<Self>,
        transfer: Arc<Transfer>,
        due: Due,
    },
}

// === impl Incoming ===

impl Incoming {
    /// A request's, which has to come.
    pub(crate) fn awaited(self, transfer: Arc<Transfer>) -> Self {
        Self::Awaited(Box::new(Awaited {
            incoming: self,
            transfer,
            due: Due::default(),
        }))
    }

    /// What it is a part of.
    pub(crate) fn transfer(&self) -> Option<Arc<Transfer>> {
        match self {
            Self::Awaited(awaited) => Some(awaited.transfer.clone()),
            Self::Http1(_) | Self::Http2(_) => None,
        }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self {
            Self::Http1(incoming) => Pin::new(incoming).poll_frame(context).map_err(Broken::from),
            Self::Http2(received) => received.poll_frame(context).map_err(Broken::from),
            Self::Awaited(awaited) => {
                let Awaited {
                    incoming,
                    transfer,
                    due,
                } = &mut **awaited;
                let polled = incoming.poll_frame(context);
                match transfer.requested(due, polled.is_ready(), context) {
                    Ok(()) => polled,
                    Err(late) => Poll::Ready(Some(Err(late.into()))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Http2(received) => received.is_end_stream(),
            Self::Awaited(awaited) => awaited.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(incoming) => incoming.size_hint(),
            Self::Http2(received) => received.size_hint(),
            Self::Awaited(awaited) => awaited.incoming.size_hint(),
        }
    }
}

// === impl Body ===

impl Body {
    /// An answer's, on a connection whose streams are counted.
    pub(crate) fn streamed(incoming: Incoming, stream: Arc<()>) -> Self {
        Self::Streamed {
            incoming,
            _stream: Some(stream),
            answering: None,
            end: None,
        }
    }

    /// As the answer of an exchange, with which it ends.
    pub(crate) fn answering(mut self, exchange: Answering) -> Self {
        if let Self::Streamed { answering, .. } = &mut self {
            *answering = Some(exchange);
        }
        self
    }

    /// On its way to who asked.
    pub(crate) fn answered(self, transfer: Arc<Transfer>) -> Self {
        transfer.answers();
        Self::Answered {
            body: Box::new(self),
            transfer,
            due: Due::default(),
        }
    }

    /// How long its reader may take none of it.
    pub(crate) fn write_idle(&self) -> Option<Duration> {
        match self {
            Self::Answered { transfer, .. } => transfer.write_idle(),
            _ => None,
        }
    }

    /// Its reader has taken none of it for too long.
    pub(crate) fn stalled(&self) {
        if let Self::Answered { transfer, .. } = self {
            transfer.cut(Late::ResponseWrite);
        }
    }

    /// Ends as gRPC does, also where it breaks off.
    pub(crate) fn ending(mut self, grpc: GrpcEnd) -> Self {
        if let Self::Streamed { end, .. } = &mut self {
            *end = Some(grpc);
        }
        self
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Self::Streamed {
            incoming,
            _stream: None,
            answering: None,
            end: None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Streamed {
                incoming,
                answering,
                end,
                ..
            } => {
                if end.as_ref().is_some_and(GrpcEnd::is_said) {
                    return Poll::Ready(None);
                }
                let polled = match answering.as_ref().map(|answering| answering.check(context)) {
                    Some(Err(revoked)) => Poll::Ready(Some(Err(revoked.into()))),
                    _ => incoming.poll_frame(context).map_ok(sanitized),
                };
                match (polled, end) {
                    (Poll::Ready(Some(Err(broken))), Some(end)) => {
                        let trailers = end.trailers(&*broken).map(Frame::trailers);
                        Poll::Ready(Some(trailers.ok_or(broken)))
                    }
                    (Poll::Ready(Some(Ok(mut frame))), Some(end)) => {
                        if let Some(trailers) = frame.trailers_mut() {
                            end.name(trailers);
                        }
                        Poll::Ready(Some(Ok(frame)))
                    }
                    (polled, _) => polled,
                }
            }
            Self::Received { incoming, exchange } => {
                if let Err(revoked) = exchange.check_request(context) {
                    return Poll::Ready(Some(Err(revoked.into())));
                }
                let polled = incoming.poll_frame(context).map_ok(sanitized);
                if let Poll::Ready(Some(Err(error))) = &polled
                    && is_malformed(&**error)
                {
                    exchange.set_malformed();
                }
                polled
            }
            Self::Replayed(replay) => Pin::new(replay).poll_frame(context),
            Self::Own(full) => Pin::new(full).poll_frame(context).map_err(|never| match never {}),
            Self::Empty => Poll::Ready(None),
            Self::Answered { body, transfer, due } => {
                let polled = Pin::new(&mut **body).poll_frame(context);
                if let Poll::Ready(Some(Ok(frame))) = &polled
                    && let Some(trailers) = frame.trailers_ref()
                {
                    transfer.tell(|span| hop::ended(span, trailers));
                }
                match transfer.responded(due, polled.is_ready(), context) {
                    Ok(()) => polled,
                    Err(late) => Poll::Ready(Some(Err(late.into()))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed { incoming, .. } | Self::Received { incoming, .. } => incoming.is_end_stream(),
            Self::Replayed(replay) => replay.is_end_stream(),
            Self::Own(full) => full.is_end_stream(),
            Self::Empty => true,
            Self::Answered { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streamed { incoming, .. } | Self::Received { incoming, .. } => incoming.size_hint(),
            Self::Replayed(replay) => replay.size_hint(),
            Self::Own(full) => full.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
            Self::Answered { body, .. } => body.size_hint(),
        }
    }
}

/// Whether a chunk or a trailer cannot be read, as the library says it; a connection that only ends is another fault.
fn is_malformed(error: &(dyn Error + 'static)) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| matches!(source.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}

/// Trailers are headers that come late, and some servers merge them. By then all is decided.
fn sanitized(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        hygiene::sanitize_trailers(trailers);
    }
    frame
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn what_was_decided_is_not_changed_by_trailers() {
        let mut trailers = HeaderMap::new();
        for name in [
            "grpc-status",
            "digest",
            "x-forwarded-client-cert",
            "x-hoplite-decision",
            "l5d_client_id",
            "x-http-method-override",
            "x_original_url",
            "host",
            "authorization",
            "content_type",
            "content-length",
            "transfer_encoding",
            "connection",
            "te",
            "upgrade",
        ] {
            trailers.insert(name, HeaderValue::from_static("0"));
        }
        for known in hoplite_policy::header_nature::KNOWN_HEADERS {
            for sign in ["-", "_", "."] {
                let name = known.name.replace('*', "x").replace('-', sign);
                trailers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("0"));
            }
        }
        let left = sanitized(Frame::trailers(trailers)).into_trailers().unwrap();
        assert_eq!(left.keys().collect::<Vec<_>>(), ["grpc-status", "digest"]);
    }
}
