//! Copies bytes both ways between two streams until both have said their end, one of them is gone, or nothing has moved for
//! too long.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_rustls::{client, server};

use crate::limits::HALF_CLOSED_IDLE_MAX;

/// The first buffer of each way: an idle connection must be cheap …
const BUFFER_MIN: usize = 4 << 10;

/// … and a busy one fast. A full buffer grows fourfold up to this.
const BUFFER_MAX: usize = 64 << 10;

/// Which way bytes have moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the first side to the second.
    There,
    /// From the second to the first.
    Back,
}

/// When bytes last moved.
struct Pulse {
    start: Instant,
    last_millis: AtomicU64,
    half_closed: AtomicBool,
    /// Nothing may move for so long.
    idle_max: Option<Duration>,
}

/// What bytes are copied from and to.
pub(crate) trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The TCP beneath it, if there is any.
    fn tcp(&self) -> Option<&TcpStream>;
}

/// One side, which is read in one way and written in the other.
struct Shared<'s, S> {
    stream: Mutex<&'s mut S>,
    /// It has said its end.
    ended: Notify,
}

/// One of a side's two ways.
struct Way<'w, 's, S>(&'w Shared<'s, S>);

/// Copies until both sides have ended, and calls `moved` whenever bytes have moved. The end of one side is passed on and
/// does not end the other; but who is gone by then, and hears nothing any more, ends both.
///
/// # Errors
/// It broke off, and neither side has been told of an end: what is dropped now must not look like one ([`reset`]).
pub(crate) async fn relay<A, B>(
    a: &mut A,
    b: &mut B,
    idle_max: Option<Duration>,
    moved: impl Fn(Direction, usize),
) -> io::Result<()>
where
    A: Side,
    B: Side,
{
    let pulse = Pulse {
        start: Instant::now(),
        last_millis: AtomicU64::new(0),
        half_closed: AtomicBool::new(false),
        idle_max,
    };
    let (a, b) = (Shared::new(a), Shared::new(b));
    tokio::select! {
        both = async {
            let (there, back) = (|bytes| moved(Direction::There, bytes), |bytes| moved(Direction::Back, bytes));
            tokio::try_join!(copy(&a, &b, &pulse, &there), copy(&b, &a, &pulse, &back))
        } => both.map(|_| ()),
        () = pulse.stopped() => Err(io::ErrorKind::TimedOut.into()),
        () = a.gone() => Err(b.broken_off()),
        () = b.gone() => Err(a.broken_off()),
    }
}

/// Makes the end of a connection in plain text one that nobody takes for clean: what was sent is perhaps not all. TLS says so
/// by itself, where `close_notify` is missing.
pub(crate) fn reset(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

async fn copy<A: Side, B: Side>(
    side: &Shared<'_, A>,
    other: &Shared<'_, B>,
    pulse: &Pulse,
    moved: &impl Fn(usize),
) -> io::Result<()> {
    let (mut from, mut to) = (Way(side), Way(other));
    let mut buffer = vec![0; BUFFER_MIN];
    loop {
        let read = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        to.write_all(bytes).await?;
        to.flush().await?;
        pulse.beat();
        moved(read);
        if read == buffer.len() && read < BUFFER_MAX {
            buffer.resize(read * 4, 0);
        }
    }
    pulse.half_closed.store(true, Relaxed);
    to.shutdown().await?;
    side.ended.notify_one();
    Ok(())
}

/// The same connection by another descriptor.
fn again(tcp: &TcpStream) -> Option<TcpStream> {
    let socket = SockRef::from(tcp).try_clone().ok()?;
    TcpStream::from_std(socket.into()).ok()
}

// === impl Side ===

impl Side for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Side for client::TlsStream<TcpStream> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

impl Side for server::TlsStream<TcpStream> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

// === impl Shared ===

impl<'s, S: Side> Shared<'s, S> {
    fn new(stream: &'s mut S) -> Self {
        Self {
            stream: Mutex::new(stream),
            ended: Notify::new(),
        }
    }

    /// Returns when it has said its end, and then is there no more: that is read nowhere.
    async fn gone(&self) {
        self.ended.notified().await;
        // A descriptor of its own, for as long as one way is left: the stream is at work.
        let watched = self.stream().tcp().and_then(again);
        match watched {
            Some(watched) => drop(watched.ready(Interest::ERROR).await),
            None => std::future::pending().await,
        }
    }

    /// Makes the end of this side one that is noticed, although our end is said already.
    fn broken_off(&self) -> io::Error {
        if let Some(tcp) = self.stream().tcp() {
            reset(tcp);
        }
        io::ErrorKind::ConnectionReset.into()
    }

    fn stream(&self) -> MutexGuard<'_, &'s mut S> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Way ===

impl<S: Side> AsyncRead for Way<'_, '_, S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.stream()).poll_read(context, buffer)
    }
}

impl<S: Side> AsyncWrite for Way<'_, '_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.0.stream()).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.stream()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.0.stream()).poll_shutdown(context)
    }
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

    impl Side for tokio::io::DuplexStream {
        fn tcp(&self) -> Option<&TcpStream> {
            None
        }
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn who_is_gone_after_its_end_ends_both() {
        let ((mut near, mut a), (mut far, mut b)) = (pair().await, pair().await);
        let copying = tokio::spawn(async move { relay(&mut a, &mut b, None, |_, _| {}).await });
        near.write_all(b"last words").await.unwrap();
        near.shutdown().await.unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
        assert!(!copying.is_finished(), "the other way is open");
        reset(&near);
        drop(near);
        let ended = tokio::time::timeout(Duration::from_secs(20), copying).await;
        assert_eq!(
            ended.unwrap().unwrap().unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
        // Which the other side learns, although it has heard an end.
        let noticed = tokio::time::timeout(Duration::from_secs(20), far.ready(Interest::ERROR)).await;
        assert!(noticed.unwrap().unwrap().is_error());
    }

    #[tokio::test]
    async fn bytes_cross_both_ways_and_an_end_is_passed_on() {
        let (mut near, mut a) = tokio::io::duplex(1_000);
        let (mut far, mut b) = tokio::io::duplex(1_000);
        let copying = tokio::spawn(async move { relay(&mut a, &mut b, None, |_, _| {}).await });
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
