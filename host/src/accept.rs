//! The loop in which every socket accepts: bounded in total, for each source and for each user; it survives what fails.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Instant, sleep};

use crate::local_connection::LocalConnection;
use crate::shutdown::Shutdown;
use crate::slots::{Slot, Slots, Source};

/// After an `accept` that failed for want of descriptors or memory: trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The log says so no more often than this.
const FAULTS_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Accepts for as long as nothing stops it.
#[derive(Debug)]
pub struct Acceptor<L> {
    listener: L,
    /// Of the socket, for the log.
    name: Arc<str>,
    slots: Slots,
    shutdown: Shutdown,
    told: Option<Instant>,
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

    /// In whose names a connection takes its place, from the widest to the narrowest.
    fn sources(connection: &Self::Connection) -> Vec<Source>;
}

// === impl Acceptor ===

impl<L: Listener> Acceptor<L> {
    /// Accepts from `listener` into `slots` until the shutdown. `name` is for the log.
    pub fn new(listener: L, name: impl Into<Arc<str>>, slots: Slots, shutdown: Shutdown) -> Self {
        Self {
            listener,
            name: name.into(),
            slots,
            shutdown,
            told: None,
        }
    }

    /// The next connection with its place, which it keeps until it ends or is evicted. None once the shutdown has begun.
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
                    tracing::debug!(socket = &*self.name, %error, "a connection closed before it began");
                }
                // The bounds have said it.
                Err(Fault::Full) => {}
                Err(Fault::Listener(error)) => {
                    self.tell(&error);
                    // Most often there is no descriptor left; those who say nothing give some back.
                    self.slots.relieve();
                    tokio::select! {
                        () = sleep(ACCEPT_PAUSE) => {}
                        () = shutdown.wait() => return None,
                    }
                }
            }
        }
    }

    async fn attempt(&self) -> Result<(L::Connection, Slot), Fault> {
        let stream = self.listener.accept().await.map_err(Fault::of_accept)?;
        let connection = L::meet(stream).map_err(Fault::Connection)?;
        let slot = self
            .slots
            .admit(&L::sources(&connection))
            .map_err(|_full| Fault::Full)?;
        Ok((connection, slot))
    }

    fn tell(&mut self, error: &io::Error) {
        if self.told.is_some_and(|told| told.elapsed() < FAULTS_TOLD_EVERY) {
            return;
        }
        tracing::warn!(socket = &*self.name, %error, "cannot accept connections; trying again");
        self.told = Some(Instant::now());
    }
}

/// Why there is no connection this time.
#[derive(Debug)]
enum Fault {
    Connection(io::Error),
    Full,
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
        vec![Source::User(peer.uid), Source::Process(peer.pid)]
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

    fn acceptor(mut script: Vec<io::Result<i32>>, bounds: Bounds) -> (Acceptor<Script>, shutdown::Stopper) {
        script.reverse();
        let (stopper, shutdown) = shutdown::channel();
        let script = Script(Mutex::new(script));
        (
            Acceptor::new(script, "test", Slots::new("test", bounds), shutdown),
            stopper,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_passed_over_and_a_listeners_own_fault_with_a_pause() {
        let no_descriptors = || Err(io::Error::from_raw_os_error(24)); // EMFILE
        let script = vec![
            Ok(1),
            Err(io::ErrorKind::ConnectionAborted.into()),
            Ok(-1),
            Ok(2),
            no_descriptors(),
            no_descriptors(),
            Ok(3),
        ];
        let (mut acceptor, _stopper) = acceptor(script, Bounds::local(9, 9, 9));
        let began = Instant::now();
        let (first, silent) = acceptor.next().await.unwrap();
        let (second, settled) = acceptor.next().await.unwrap();
        settled.settle().unwrap();
        assert_eq!((first, second), (1, 2));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(acceptor.next().await.unwrap().0, 3);
        assert_eq!(began.elapsed(), ACCEPT_PAUSE * 2, "it does not spin");
        assert!(
            silent.is_evicted() && !settled.is_evicted(),
            "a descriptor is given back by who said nothing"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_full_does_not_keep_others_out() {
        let script = vec![Ok(1), Ok(1), Ok(1), Ok(1), Ok(2)];
        let (mut acceptor, _stopper) = acceptor(script, Bounds::local(9, 2, 9));
        let mut admitted = Vec::new();
        for _ in 0..5 {
            admitted.push(acceptor.next().await.unwrap());
        }
        let kept = admitted
            .iter()
            .filter(|(_, slot)| !slot.is_evicted())
            .map(|(pid, _)| *pid);
        assert_eq!(kept.collect::<Vec<_>>(), [1, 1, 1, 2], "two, and a newcomer");
    }

    #[tokio::test(start_paused = true)]
    async fn the_shutdown_ends_it_also_while_it_waits() {
        let (mut acceptor, stopper) = acceptor(vec![Ok(1)], Bounds::local(1, 1, 1));
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
    async fn a_process_is_known_and_may_not_hold_more_than_its_places() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = crate::socket::bind(&path, 0o600).unwrap();
        let (_stopper, shutdown) = shutdown::channel();
        let slots = Slots::new("test", Bounds::local(10, 1, 10));
        let mut acceptor = Acceptor::new(listener, "test", slots, shutdown);
        let mut held = Vec::new();
        for _ in 0..3 {
            let client = UnixStream::connect(&path).await.unwrap();
            let (connection, slot) = acceptor.next().await.unwrap();
            assert_eq!(connection.peer().pid as u32, std::process::id());
            held.push((client, connection, slot));
        }
        let evicted: Vec<_> = held.iter().map(|(.., slot)| slot.is_evicted()).collect();
        assert_eq!(evicted, [true, false, false], "one place, and one for a newcomer");
        held[2].2.settle().unwrap();
    }
}
