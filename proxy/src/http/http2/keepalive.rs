//! Notices that the other side of an HTTP/2 connection has gone without a word.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use crate::http::half_close::End;
use crate::http::http2::heard::Ear;
use crate::limits::HALF_CLOSED_IDLE_MAX;

/// After so long without a byte it is asked …
const PING_EVERY: Duration = Duration::from_secs(30);

/// … and has so long to say anything.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks a silent peer for a word.
#[derive(Debug)]
pub(crate) struct Keepalive {
    pings: Option<PingPong>,
    ear: Ear,
    end: End,
    due: Pin<Box<Sleep>>,
    asked: bool,
    /// It can say nothing any more.
    alone: bool,
}

/// It has said nothing although it was asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone;

// === impl Keepalive ===

impl Keepalive {
    pub(crate) fn new(pings: Option<PingPong>, ear: Ear, end: End) -> Self {
        Self {
            pings,
            ear,
            end,
            due: Box::pin(sleep(PING_EVERY)),
            asked: false,
            alone: false,
        }
    }

    /// Ready when it has gone.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Gone> {
        if let Some(pings) = &mut self.pings {
            // An answer is taken, so that the next question can be put; any byte is as good.
            let _ = pings.poll_pong(context);
        }
        while self.due.as_mut().poll(context).is_ready() {
            if self.end.is_said() {
                // It cannot answer. As long as it is spoken to, what it does not read has a limit of its own.
                if !self.end.lately() && std::mem::replace(&mut self.alone, true) {
                    return Poll::Ready(Gone);
                }
                self.wait(HALF_CLOSED_IDLE_MAX);
            } else if self.ear.lately() {
                self.asked = false;
                self.wait(PING_EVERY);
            } else if self.asked {
                return Poll::Ready(Gone);
            } else {
                if let Some(pings) = &mut self.pings {
                    let _ = pings.send_ping(Ping::opaque());
                }
                self.asked = true;
                self.wait(PING_TIMEOUT);
            }
        }
        Poll::Pending
    }

    fn wait(&mut self, time: Duration) {
        self.due.as_mut().reset(Instant::now() + time);
    }
}
