//! Listening sockets: bound early, so that a taken port is said at once; listening late, so that nothing is accepted
//! before there is an identity to show.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that wait for `accept`.
const BACKLOG: i32 = 1024;

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
