//! Interim answers (1xx): what a server says before its answer, passed on to whoever asked (RFC 9110, 15.2).
//!
//! They come from the connection to the server, wait in a short queue, and go out on the caller's connection before the
//! answer does. A server that sends more of them than anybody has a use for is cut off: each costs time of this worker.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Response, StatusCode};

use crate::http::lane::Lane;

/// Interim answers to one request. A server that reports its progress sends one in several seconds.
const INTERIMS_MAX: usize = 100;

/// The interim answers to one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interims(Arc<Mutex<State>>);

/// Where they go.
#[derive(Debug, Clone)]
pub(crate) enum Ahead {
    /// To somebody who does not know what they are: HTTP/1.0.
    Nowhere,
    /// Into the bytes of an HTTP/1.1 connection.
    Http1(Lane),
    /// Onto a stream of HTTP/2.
    Http2(Reply),
}

/// The answering side of an HTTP/2 stream: for the answer, and for what goes ahead of it.
pub(crate) type Reply = Arc<Mutex<SendResponse<Bytes>>>;

/// Why nothing more that the server says is taken for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("it sent more than {INTERIMS_MAX} interim answers (1xx) to one request")]
    Endless,
    #[error("it sent 101 to a request that asked for no other protocol")]
    Switching,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Response<()>>,
    came: usize,
    unfit: Option<Unfit>,
    /// Whoever passes them on.
    reader: Option<Waker>,
    /// Whoever waits for the server's answer.
    asker: Option<Waker>,
}

// === impl Interims ===

impl Interims {
    /// Takes one from the server.
    ///
    /// # Errors
    /// [`Unfit`]: it must not be asked any more. Whoever waits in [`Interims::unfit`] hears of it, too.
    pub(crate) fn push(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), Unfit> {
        let mut state = self.state();
        state.came += 1;
        let unfit = if status == StatusCode::SWITCHING_PROTOCOLS {
            Some(Unfit::Switching)
        } else {
            (state.came > INTERIMS_MAX).then_some(Unfit::Endless)
        };
        if let Some(unfit) = unfit {
            state.unfit.get_or_insert(unfit);
            state.asker.take().into_iter().for_each(Waker::wake);
            return Err(unfit);
        }
        // Whether a body is wanted, its sender hears from us: `Expect` is answered here and goes no further.
        if status != StatusCode::CONTINUE {
            let mut head = Response::new(());
            *head.status_mut() = status;
            head.headers_mut().clone_from(headers);
            state.waiting.push_back(head);
            state.reader.take().into_iter().for_each(Waker::wake);
        }
        Ok(())
    }

    /// Whether the server has said anything.
    pub(crate) fn any(&self) -> bool {
        self.state().came > 0
    }

    /// Waits until the server must not be asked any more.
    pub(crate) async fn unfit(&self) -> Unfit {
        std::future::poll_fn(|context| {
            let mut state = self.state();
            if let Some(unfit) = state.unfit {
                return Poll::Ready(unfit);
            }
            state.asker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits for the answer, and passes on what comes before it.
    pub(crate) async fn ahead_of<A>(
        &self,
        answer: impl Future<Output = A>,
        ahead: &Ahead,
        sanitize: fn(&mut HeaderMap),
    ) -> A {
        let mut answer = pin!(answer);
        loop {
            let head = tokio::select! {
                biased;
                head = self.next() => head,
                answer = answer.as_mut() => {
                    // They were sent before it.
                    while let Some(head) = self.take() {
                        ahead.send(head, sanitize).await;
                    }
                    return answer;
                }
            };
            ahead.send(head, sanitize).await;
        }
    }

    async fn next(&self) -> Response<()> {
        std::future::poll_fn(|context| {
            let mut state = self.state();
            if let Some(head) = state.waiting.pop_front() {
                return Poll::Ready(head);
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn take(&self) -> Option<Response<()>> {
        self.state().waiting.pop_front()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Ahead ===

impl Ahead {
    async fn send(&self, mut head: Response<()>, sanitize: fn(&mut HeaderMap)) {
        sanitize(head.headers_mut());
        match self {
            Self::Nowhere => {}
            Self::Http1(lane) => lane.send(&head).await,
            Self::Http2(reply) => {
                // A stream that has ended needs none any more.
                let _ = reply
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .send_informational(head);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(interims: &Interims, status: u16) -> Result<(), Unfit> {
        interims.push(StatusCode::from_u16(status).unwrap(), &HeaderMap::new())
    }

    #[test]
    fn what_is_passed_on_is_bounded_and_asked_for() {
        let interims = Interims::default();
        assert!(!interims.any());
        push(&interims, 100).unwrap();
        assert!(interims.any() && interims.take().is_none(), "100 is ours to say");
        for _ in 1..INTERIMS_MAX {
            push(&interims, 103).unwrap();
            assert_eq!(interims.take().unwrap().status(), 103);
        }
        assert_eq!(push(&interims, 102), Err(Unfit::Endless));
        assert_eq!(push(&Interims::default(), 101), Err(Unfit::Switching));
    }
}
