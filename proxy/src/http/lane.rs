//! A way for interim answers into the bytes that an HTTP/1.1 server writes: the library has none.
//!
//! The library hands its buffer to the stream and then flushes it. Whatever it had to say is written by then, so between
//! two messages is where a flush is. One who sends here waits until it is done, and gives no answer before.

use std::fmt::Write;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::Response;
use tokio::io::AsyncWrite;

/// The sending end, and the one in the stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    waiting: Bytes,
    /// Some of it is written.
    begun: bool,
    sender: Option<Waker>,
    /// Whoever drives the connection.
    connection: Option<Waker>,
}

// === impl Lane ===

impl Lane {
    /// Writes a head, and returns when it is written.
    ///
    /// INVARIANT: called only while the request it is about is not answered yet, and by one at a time.
    pub(crate) async fn send(&self, head: &Response<()>) {
        let _withdrawn = Withdrawn(self);
        {
            let mut state = self.state();
            state.waiting = encoded(head);
            state.connection.take().into_iter().for_each(Waker::wake);
        }
        std::future::poll_fn(|context| {
            let mut state = self.state();
            if state.waiting.is_empty() {
                return Poll::Ready(());
            }
            state.sender = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Writes what waits. Called where the library has nothing unwritten.
    pub(crate) fn poll_write(
        &self,
        mut to: Pin<&mut impl AsyncWrite>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        while !state.waiting.is_empty() {
            let written = ready!(to.as_mut().poll_write(context, &state.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.waiting.advance(written);
            state.begun = true;
        }
        if state.begun {
            state.begun = false;
            state.sender.take().into_iter().for_each(Waker::wake);
        }
        match &mut state.connection {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the rest of what is half written: nothing may come in between.
    pub(crate) fn poll_finish(&self, to: Pin<&mut impl AsyncWrite>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state().begun {
            return self.poll_write(to, context);
        }
        Poll::Ready(Ok(()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes back what nobody waits for any more, unless some of it is written.
struct Withdrawn<'a>(&'a Lane);

// === impl Withdrawn ===

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if !state.begun {
            state.waiting.clear();
        }
    }
}

fn encoded(head: &Response<()>) -> Bytes {
    let status = head.status();
    let mut bytes = BytesMut::new();
    let reason = status.canonical_reason().unwrap_or_default();
    let _ = write!(bytes, "HTTP/1.1 {} {reason}\r\n", status.as_str());
    for (name, value) in head.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_head_is_written_whole_before_its_sender_goes_on() {
        let lane = Lane::default();
        let (mut near, mut far) = tokio::io::duplex(16);
        let mut head = Response::new(());
        *head.status_mut() = http::StatusCode::EARLY_HINTS;
        head.headers_mut().insert("link", HeaderValue::from_static("</a.css>"));
        let sending = tokio::spawn({
            let lane = lane.clone();
            async move { lane.send(&head).await }
        });
        let driving = tokio::spawn({
            let lane = lane.clone();
            async move {
                std::future::poll_fn(|context| {
                    ready!(lane.poll_write(Pin::new(&mut near), context)).unwrap();
                    if lane.state().sender.is_none() && lane.state().waiting.is_empty() {
                        return Poll::<()>::Pending;
                    }
                    Poll::Pending
                })
                .await;
            }
        });
        let expected = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
        let mut seen = vec![0; expected.len()];
        far.read_exact(&mut seen).await.unwrap();
        assert_eq!(String::from_utf8(seen).unwrap(), expected);
        sending.await.unwrap();
        driving.abort();
    }
}
