//! Copies bytes both ways between two streams until both have said their end, or nothing has moved for too long.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::limits::HALF_CLOSED_IDLE_MAX;

/// The first buffer of each way: an idle connection must be cheap …
const BUFFER_MIN: usize = 4 << 10;

/// … and a busy one fast. A full buffer grows fourfold up to this.
const BUFFER_MAX: usize = 64 << 10;

/// When bytes last moved.
struct Pulse {
    start: Instant,
    last_millis: AtomicU64,
    half_closed: AtomicBool,
    /// Nothing may move for so long.
    idle_max: Option<Duration>,
}

/// Copies until both sides have ended, and calls `moved` whenever bytes have moved. The end of one side is passed on and
/// does not end the other.
///
/// # Errors
/// It broke off, and neither side has been told of an end: what is dropped now must not look like one ([`reset`]).
pub(crate) async fn relay<A, B>(a: &mut A, b: &mut B, idle_max: Option<Duration>, moved: impl Fn()) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let pulse = Pulse {
        start: Instant::now(),
        last_millis: AtomicU64::new(0),
        half_closed: AtomicBool::new(false),
        idle_max,
    };
    let (a_reads, a_writes) = tokio::io::split(a);
    let (b_reads, b_writes) = tokio::io::split(b);
    tokio::select! {
        both = async { tokio::try_join!(copy(a_reads, b_writes, &pulse, &moved), copy(b_reads, a_writes, &pulse, &moved)) } => both.map(|_| ()),
        () = pulse.stopped() => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Makes the end of a connection in plain text one that nobody takes for clean: what was sent is perhaps not all. TLS says so
/// by itself, where `close_notify` is missing.
pub(crate) fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    pulse: &Pulse,
    moved: &impl Fn(),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_MIN];
    loop {
        let read = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        to.write_all(bytes).await?;
        to.flush().await?;
        pulse.beat();
        moved();
        if read == buffer.len() && read < BUFFER_MAX {
            buffer.resize(read * 4, 0);
        }
    }
    pulse.half_closed.store(true, Relaxed);
    to.shutdown().await
}

// === impl Pulse ===

impl Pulse {
    fn beat(&self) {
        let millis = self.start.elapsed().as_millis();
        self.last_millis
            .store(u64::try_from(millis).unwrap_or(u64::MAX), Relaxed);
    }

    /// Returns when nothing has moved for too long.
    async fn stopped(&self) {
        loop {
            let idle_max = match self.half_closed.load(Relaxed) {
                true => Some(HALF_CLOSED_IDLE_MAX.min(self.idle_max.unwrap_or(HALF_CLOSED_IDLE_MAX))),
                false => self.idle_max,
            };
            let Some(idle_max) = idle_max else {
                sleep(HALF_CLOSED_IDLE_MAX).await;
                continue;
            };
            let idle = self
                .start
                .elapsed()
                .saturating_sub(Duration::from_millis(self.last_millis.load(Relaxed)));
            if idle >= idle_max {
                return;
            }
            // A side may end meanwhile, so look again no later than the shorter bound.
            sleep((idle_max - idle).min(HALF_CLOSED_IDLE_MAX)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_cross_both_ways_and_an_end_is_passed_on() {
        let (mut near, mut a) = tokio::io::duplex(1_000);
        let (mut far, mut b) = tokio::io::duplex(1_000);
        let copying = tokio::spawn(async move { relay(&mut a, &mut b, None, || {}).await });
        let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert!(got == expected, "all bytes in order, and the end");
        far.write_all(b"after the other side's end").await.unwrap();
        drop(far);
        assert_eq!(writing.await.unwrap(), b"after the other side's end");
        copying.await.unwrap().unwrap();
    }
}
