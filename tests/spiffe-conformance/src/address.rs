//! Where a Workload API listens (W-5).

use std::net::SocketAddr;

/// An address as `SPIFFE_ENDPOINT_SOCKET` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// The absolute path of a Unix socket.
    Unix(String),
    /// An IP address and a port.
    Tcp(SocketAddr),
}

/// Why an address is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidAddress {
    #[error("it has neither the scheme `unix` nor `tcp`: write `unix:///run/agent.sock` or `tcp://127.0.0.1:8081`")]
    Scheme,
    #[error("a Unix socket has no host, user or port: write `unix:///run/agent.sock`")]
    Authority,
    #[error("the path of a Unix socket is absolute: write `unix:///run/agent.sock`")]
    Path,
    #[error("it has a query or a fragment")]
    More,
    #[error("a TCP socket has an IP address, a port and nothing more: write `tcp://127.0.0.1:8081`")]
    Tcp,
}

/// Reads an address by the letter of the specification.
pub(crate) fn parse(text: &str) -> Result<Address, InvalidAddress> {
    if text.contains(['?', '#']) {
        return Err(InvalidAddress::More);
    }
    if let Some(rest) = text.strip_prefix("unix:") {
        let path = match rest.strip_prefix("//") {
            Some(after) if after.starts_with('/') => after,
            Some(_) => return Err(InvalidAddress::Authority),
            // RFC 3986 allows a path without an authority.
            None if rest.starts_with('/') => rest,
            None => return Err(InvalidAddress::Path),
        };
        return if path.len() > 1 {
            Ok(Address::Unix(path.to_owned()))
        } else {
            Err(InvalidAddress::Path)
        };
    }
    let rest = text.strip_prefix("tcp://").ok_or(InvalidAddress::Scheme)?;
    match rest.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => Ok(Address::Tcp(address)),
        _ => Err(InvalidAddress::Tcp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |text: &str, expected: Result<Address, InvalidAddress>| assert_eq!(parse(text), expected, "{text}");
        check("unix:///tmp/a.sock", Ok(Address::Unix("/tmp/a.sock".to_owned())));
        check("unix:/tmp/a.sock", Ok(Address::Unix("/tmp/a.sock".to_owned())));
        check("tcp://127.0.0.1:8000", Ok(Address::Tcp(([127, 0, 0, 1], 8000).into())));
        check("tcp://[::1]:8000", Ok(Address::Tcp("[::1]:8000".parse().unwrap())));
        check("unix:a.sock", Err(InvalidAddress::Path));
        check("unix:///", Err(InvalidAddress::Path));
        check("unix:", Err(InvalidAddress::Path));
        check("unix://host/a.sock", Err(InvalidAddress::Authority));
        check("unix:///a.sock?x", Err(InvalidAddress::More));
        check("unix:///a.sock#x", Err(InvalidAddress::More));
        check("/tmp/a.sock", Err(InvalidAddress::Scheme));
        check("http://127.0.0.1:8000", Err(InvalidAddress::Scheme));
        check("", Err(InvalidAddress::Scheme));
        for rest in [
            "127.0.0.1:8000/foo",
            "localhost:8000",
            "127.0.0.1",
            ":8000",
            "u@127.0.0.1:80",
            "127.0.0.1:0",
        ] {
            check(&format!("tcp://{rest}"), Err(InvalidAddress::Tcp));
        }
    }
}
