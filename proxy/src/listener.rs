//! Listening sockets: bound early, so that a taken port is said at once; listening late, so that nothing is accepted
//! before there is an identity to show.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hoplite_host::shutdown::Shutdown;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tracing::warn;

/// Connections of one listener at a time. Beyond, new ones wait in the system's queue.
pub(crate) const CONNECTIONS_MAX: u32 = 10_000;

/// Connections that wait for `accept`.
const BACKLOG: i32 = 1024;

/// Pause after `accept` failed for want of descriptors or memory: without it the loop would spin on the same error.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Binds `copies` sockets to one address; the kernel spreads connections over them. Port 0 takes a free port.
pub(crate) fn bind(listen: SocketAddr, copies: usize) -> io::Result<Vec<Socket>> {
    if copies > 1 {
        // Shared ports are shared with any process of this user. Ask alone first, so that a taken port is an error.
        if listen.port() != 0 {
            bind_one(listen, false)?.listen(1)?;
        }
        let first = bind_one(listen, true)?;
        let listen = address(&first)?;
        let mut sockets = vec![first];
        for _ in 1..copies {
            sockets.push(bind_one(listen, true)?);
        }
        return Ok(sockets);
    }
    Ok(vec![bind_one(listen, false)?])
}

/// Where a bound socket is.
pub(crate) fn address(socket: &Socket) -> io::Result<SocketAddr> {
    socket
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("not an internet address"))
}

/// Begins to listen.
pub(crate) fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG)
}

/// Accepts until the shutdown, each connection with its slot.
pub(crate) async fn accept(
    socket: Socket,
    slots: Arc<Semaphore>,
    mut shutdown: Shutdown,
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let listener = match TcpListener::from_std(socket.into()) {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "the runtime refuses a listener"),
    };
    loop {
        let accepted = async {
            let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, remote) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok::<_, io::Error>((stream, remote, slot))
        };
        tokio::select! {
            () = shutdown.wait() => return,
            accepted = accepted => match accepted {
                Ok((stream, remote, slot)) => serve(stream, remote, slot),
                Err(error) if is_one_connections(&error) => {}
                Err(error) => {
                    warn!(%error, "cannot accept connections; trying again");
                    sleep(ACCEPT_BACKOFF).await;
                }
            },
        }
    }
}

fn bind_one(listen: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Restarts must not wait for old connections to be forgotten.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&listen.into())?;
    Ok(socket)
}

/// Whether the error concerned a connection that is gone already, and not the listener.
fn is_one_connections(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::NotConnected
            | Kind::InvalidInput
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_for_one_worker_and_for_many() {
        let holder = bind(([127, 0, 0, 1], 0).into(), 1).unwrap();
        listen(&holder[0]).unwrap();
        let taken = address(&holder[0]).unwrap();
        assert!(bind(taken, 1).is_err());
        assert!(bind(taken, 2).is_err());
    }

    #[test]
    fn many_workers_share_one_port() {
        let sockets = bind(([127, 0, 0, 1], 0).into(), 3).unwrap();
        let addresses: Vec<_> = sockets.iter().map(|socket| address(socket).unwrap()).collect();
        assert!(
            addresses.iter().all(|address| *address == addresses[0]),
            "{addresses:?}"
        );
        for socket in &sockets {
            listen(socket).unwrap();
        }
    }
}
