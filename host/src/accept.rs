//! The loop in which every socket accepts: bounded in total, for each source and for each user; it survives what fails.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, sleep};

use crate::local_connection::LocalConnection;
use crate::shutdown::Shutdown;
use crate::slots::{Full, Slot, Slots, Source};

/// After an `accept` that failed for want of descriptors or memory: trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is refused may try again as fast as it can; the log need not say it as often.
const REFUSALS_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Accepts for as long as nothing stops it.
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    /// Of the socket, for the log.
    name: &'static str,
    slots: Slots,
    when_full: WhenFull,
    shutdown: Shutdown,
    refusals: Refusals,
}

/// What happens to a connection when all places are taken. One whose own source has too many is always closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits in the system's queue, which is bounded too. For peers who come again anyway, and are many.
    Wait,
    /// It is closed at once, so that who calls learns it.
    Close,
}

/// A socket that accepts.
pub trait Listener {
    /// What it accepts.
    type Stream: Send;
    /// What it accepts, with all that the system says of the peer.
    type Connection;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Who is at the other end. An error is that one connection's: most often its peer is gone already.
    ///
    /// # Errors
    /// The system cannot say it, or not any more.
    fn meet(stream: Self::Stream) -> io::Result<Self::Connection>;

    /// In whose names a connection takes its place.
    fn sources(connection: &Self::Connection) -> Vec<Source>;
}

/// How many were refused since the log said so.
#[derive(Debug, Default)]
struct Refusals {
    told: Option<Instant>,
    count: u64,
}

// === impl Acceptor ===

impl<L: Listener> Acceptor<L> {
    /// Accepts from `listener` into `slots` until the shutdown. `name` is for the log.
    pub fn new(listener: L, name: &'static str, slots: Slots, when_full: WhenFull, shutdown: Shutdown) -> Self {
        Self {
            listener,
            name,
            slots,
            when_full,
            shutdown,
            refusals: Refusals::default(),
        }
    }

    /// The next connection with its place, which it keeps until it ends. None once the shutdown has begun.
    pub async fn next(&mut self) -> Option<(L::Connection, Slot)> {
        loop {
            let mut shutdown = self.shutdown.clone();
            let attempt = tokio::select! {
                biased;
                () = shutdown.wait() => return None,
                attempt = self.attempt() => attempt,
            };
            match attempt {
                Ok(admitted) => return Some(admitted),
                Err(Fault::Connection(error)) => {
                    tracing::debug!(socket = self.name, %error, "a connection closed before it began");
                }
                Err(Fault::Full(full)) => self.refusals.tell(self.name, full),
                Err(Fault::Listener(error)) => {
                    tracing::warn!(socket = self.name, %error, "cannot accept connections; trying again");
                    tokio::select! {
                        () = sleep(ACCEPT_PAUSE) => {}
                        () = shutdown.wait() => return None,
                    }
                }
            }
        }
    }

    /// Says, as often as the log may, that a connection was refused which was accepted and found no place elsewhere.
    pub fn refused(&mut self, full: Full) {
        self.refusals.tell(self.name, full);
    }

    async fn attempt(&self) -> Result<(L::Connection, Slot), Fault> {
        let place = match self.when_full {
            WhenFull::Wait => Some(self.slots.reserve().await),
            WhenFull::Close => None,
        };
        let stream = self.listener.accept().await.map_err(Fault::of_accept)?;
        let place = match place {
            Some(place) => place,
            None => self.slots.try_reserve().map_err(Fault::Full)?,
        };
        let connection = L::meet(stream).map_err(Fault::Connection)?;
        let slot = place.claim(&L::sources(&connection)).map_err(Fault::Full)?;
        Ok((connection, slot))
    }
}

/// Why there is no connection this time.
#[derive(Debug)]
enum Fault {
    Connection(io::Error),
    Full(Full),
    Listener(io::Error),
}

// === impl Fault ===

impl Fault {
    /// Whether `accept` failed for a connection that is gone already, or for the listener.
    fn of_accept(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::NotConnected
            | Kind::InvalidInput => Self::Connection(error),
            _ => Self::Listener(error),
        }
    }
}

// === impl Refusals ===

impl Refusals {
    fn tell(&mut self, socket: &str, full: Full) {
        self.count += 1;
        if self.told.is_some_and(|told| told.elapsed() < REFUSALS_TOLD_EVERY) {
            return;
        }
        tracing::warn!(socket, refused = self.count, "a connection was refused: {full}");
        *self = Self {
            told: Some(Instant::now()),
            count: 0,
        };
    }
}

// === impl Listener ===

impl Listener for UnixListener {
    type Stream = UnixStream;
    type Connection = LocalConnection;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }

    fn meet(stream: UnixStream) -> io::Result<LocalConnection> {
        LocalConnection::new(stream)
    }

    fn sources(connection: &LocalConnection) -> Vec<Source> {
        let peer = connection.peer();
        vec![Source::Process(peer.pid), Source::User(peer.uid)]
    }
}

impl Listener for TcpListener {
    type Stream = (TcpStream, SocketAddr);
    type Connection = (TcpStream, SocketAddr);

    async fn accept(&self) -> io::Result<Self::Stream> {
        Self::accept(self).await
    }

    fn meet(stream: Self::Stream) -> io::Result<Self::Connection> {
        stream.0.set_nodelay(true)?;
        Ok(stream)
    }

    fn sources((_, address): &Self::Connection) -> Vec<Source> {
        vec![Source::address(address.ip())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown;
    use crate::slots::Bounds;
    use std::sync::Mutex;
    use tokio::io::AsyncReadExt;
    use tokio::sync::oneshot;

    /// What a listener gives, one after the other; then nothing more.
    struct Script(Mutex<Vec<io::Result<i32>>>);

    impl Listener for Script {
        type Stream = i32;
        type Connection = i32;

        async fn accept(&self) -> io::Result<i32> {
            let next = self.0.lock().unwrap().pop();
            match next {
                Some(next) => next,
                None => std::future::pending().await,
            }
        }

        fn meet(pid: i32) -> io::Result<i32> {
            if pid < 0 {
                Err(io::Error::other("gone"))
            } else {
                Ok(pid)
            }
        }

        fn sources(pid: &i32) -> Vec<Source> {
            vec![Source::Process(*pid)]
        }
    }

    fn acceptor(
        mut script: Vec<io::Result<i32>>,
        bounds: Bounds,
        when_full: WhenFull,
    ) -> (Acceptor<Script>, shutdown::Stopper) {
        script.reverse();
        let (stopper, shutdown) = shutdown::channel();
        let script = Script(Mutex::new(script));
        (
            Acceptor::new(script, "test", Slots::new(bounds), when_full, shutdown),
            stopper,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_passed_over_and_a_listeners_own_fault_with_a_pause() {
        let no_descriptors = io::Error::from_raw_os_error(24); // EMFILE
        let script = vec![
            Ok(1),
            Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(-1),
            Ok(2),
            Err(no_descriptors),
            Ok(3),
        ];
        let (mut acceptor, _stopper) = acceptor(script, Bounds::local(9, 9, 9), WhenFull::Close);
        let began = Instant::now();
        assert_eq!(acceptor.next().await.unwrap().0, 1);
        assert_eq!(acceptor.next().await.unwrap().0, 2);
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(acceptor.next().await.unwrap().0, 3);
        assert_eq!(began.elapsed(), ACCEPT_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_full_does_not_keep_others_out() {
        let script = vec![Ok(1), Ok(1), Ok(1), Ok(2)];
        let (mut acceptor, _stopper) = acceptor(script, Bounds::local(9, 2, 9), WhenFull::Wait);
        let mut admitted = Vec::new();
        for _ in 0..3 {
            admitted.push(acceptor.next().await.unwrap());
        }
        let pids: Vec<_> = admitted.iter().map(|(pid, _)| *pid).collect();
        assert_eq!(pids, [1, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_is_full_it_closes_or_waits() {
        let second = Duration::from_secs(1);
        for (when_full, expected) in [(WhenFull::Close, 3), (WhenFull::Wait, 2)] {
            let script = vec![Ok(1), Ok(2), Ok(3)];
            let (mut acceptor, _stopper) = acceptor(script, Bounds::local(1, 1, 1), when_full);
            let (_, first) = acceptor.next().await.unwrap();
            assert!(tokio::time::timeout(second, acceptor.next()).await.is_err());
            drop(first);
            if when_full == WhenFull::Close {
                // Both were closed meanwhile; another comes.
                acceptor.listener.0.lock().unwrap().push(Ok(3));
            }
            assert_eq!(acceptor.next().await.unwrap().0, expected, "{when_full:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_shutdown_ends_it_also_while_it_waits() {
        let (mut acceptor, stopper) = acceptor(vec![Ok(1), Ok(2)], Bounds::local(1, 1, 1), WhenFull::Wait);
        let (_, held) = acceptor.next().await.unwrap();
        let slots = acceptor.slots.clone();
        let (ended, end) = oneshot::channel();
        tokio::spawn(async move { ended.send(acceptor.next().await.is_none()) });
        tokio::task::yield_now().await;
        stopper.stop();
        assert!(end.await.unwrap());
        drop(held);
        slots.drained().await;
    }

    #[tokio::test]
    async fn a_process_that_holds_its_places_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = crate::socket::bind(&path, 0o600).unwrap();
        let (_stopper, shutdown) = shutdown::channel();
        let slots = Slots::new(Bounds::local(10, 1, 10));
        let mut acceptor = Acceptor::new(listener, "test", slots, WhenFull::Close, shutdown);
        let (_first, mut second) = (
            UnixStream::connect(&path).await.unwrap(),
            UnixStream::connect(&path).await.unwrap(),
        );
        let (connection, slot) = acceptor.next().await.unwrap();
        assert_eq!(connection.peer().pid as u32, std::process::id());
        let refused = tokio::select! {
            _ = acceptor.next() => unreachable!("there is no place for it"),
            read = second.read_u8() => read,
        };
        assert!(refused.is_err(), "it was closed");
        drop(slot);
        let _third = UnixStream::connect(&path).await.unwrap();
        assert!(acceptor.next().await.is_some(), "the place was given back");
    }
}
