//! A call as an asker tells it: what of it can be used is parsed here, once, and what cannot says why.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hoplite_audit::Outcome;
use hoplite_identity::SpiffeId;
use hoplite_policy::{Ambiguous, CanonicalRequest};

use crate::socket::session::Entitlement;

/// What is asked, as far as it can be read.
#[derive(Debug)]
pub(crate) struct Call {
    /// Who calls, as the asker verified it.
    pub(crate) principal: Result<SpiffeId, Unusable>,
    /// Where the call comes from, if that is an IP address.
    pub(crate) source: Option<Origin>,
    pub(crate) trace_id: Option<String>,
    pub(crate) target: Target,
}

/// Where a call comes from: the address policies see, and the port if it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) ip: IpAddr,
    port: Option<u16>,
}

/// What the call is to.
#[derive(Debug)]
pub(crate) enum Target {
    /// The service, by a connection.
    Connection,
    /// A route of it, by a request; the method as it was told.
    Http {
        method: String,
        request: Result<Box<CanonicalRequest>, Unusable>,
        /// Every header field that goes on, if the asker told all of them.
        headers: Option<Vec<(String, String)>>,
    },
}

/// Why a call is refused without asking policy.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) status: u16,
    pub(crate) outcome: Outcome,
    /// From a fixed set.
    pub(crate) code: &'static str,
    /// For the record.
    pub(crate) reason: String,
}

/// Who calls, out of what the asker says: a SPIFFE ID of a trust domain whose bundle the asker has. Of another one it
/// could not have verified anything.
pub(crate) fn principal(said: &str, who: &Entitlement) -> Result<SpiffeId, Unusable> {
    if said.is_empty() {
        return Err(Unusable::unauthenticated(
            "no name was told; the caller showed no certificate, or it was not asked for one",
        ));
    }
    let id = SpiffeId::parse(said).map_err(|error| Unusable::unauthenticated(error.to_string()))?;
    if id.is_trust_domain() {
        return Err(Unusable::unauthenticated(format!(
            "`{id}` is a trust domain, and no workload"
        )));
    }
    if who.bundle(id.trust_domain()).is_none() {
        return Err(Unusable::unauthenticated(format!(
            "there is no bundle of the trust domain of `{id}`, so nobody can have verified it"
        )));
    }
    Ok(id)
}

// === impl Origin ===

impl From<SocketAddr> for Origin {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            port: Some(address.port()),
        }
    }
}

impl FromStr for Origin {
    type Err = std::net::AddrParseError;

    /// `10.0.0.1`, `10.0.0.1:4711`, `2001:db8::1` or `[2001:db8::1]:4711`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<SocketAddr>() {
            Ok(address) => Ok(address.into()),
            Err(_) => Ok(Self {
                ip: text.parse()?,
                port: None,
            }),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

// === impl Target ===

impl Target {
    /// A request, read in the only way it can be read; the path with its query, if it has one.
    pub(crate) fn http(method: String, host: &str, path: &str, headers: Option<Vec<(String, String)>>) -> Self {
        Self::Http {
            request: read(&method, host, path).map(Box::new),
            method,
            headers,
        }
    }
}

/// The one reading of a request, which must be the one that goes on.
///
/// Refused and not rewritten: the asker has chosen what to do with it already, by the path that it has, and may be told
/// to ignore what we would change.
fn read(method: &str, host: &str, path: &str) -> Result<CanonicalRequest, Unusable> {
    let canonical = CanonicalRequest::parse(method, &[host.as_bytes()], path.as_bytes())?;
    let forwarded = path.split('?').next().unwrap_or_default();
    if !is_written(canonical.path(), forwarded) {
        return Err(Unusable::malformed(
            "not_canonical",
            format!(
                "the asker would forward another path than `{}`, which policy would decide on; let it normalize paths \
                 first (an Envoy: `normalize_path`, `merge_slashes`, `path_with_escaped_slashes_action: REJECT_REQUEST`)",
                canonical.path()
            ),
        ));
    }
    Ok(canonical)
}

/// Whether a path is the canonical one; the digits of an escape may be in lower case, since nobody reads that otherwise.
fn is_written(canonical: &str, forwarded: &str) -> bool {
    let mut escaped = 0_u8;
    canonical.len() == forwarded.len()
        && canonical.bytes().zip(forwarded.bytes()).all(|(wanted, is)| {
            let same = wanted == is || (escaped > 0 && wanted.eq_ignore_ascii_case(&is));
            escaped = if wanted == b'%' { 2 } else { escaped.saturating_sub(1) };
            same
        })
}

// === impl Unusable ===

impl Unusable {
    /// Nobody whom we know.
    pub(crate) fn unauthenticated(reason: impl Into<String>) -> Self {
        Self {
            status: 401,
            outcome: Outcome::Unauthenticated,
            code: "unauthenticated",
            reason: reason.into(),
        }
    }

    /// A request with more than one reading.
    pub(crate) fn malformed(code: &'static str, reason: impl Into<String>) -> Self {
        Self {
            status: 400,
            outcome: Outcome::Malformed,
            code,
            reason: reason.into(),
        }
    }
}

impl From<Ambiguous> for Unusable {
    fn from(ambiguous: Ambiguous) -> Self {
        Self {
            status: ambiguous.status(),
            ..Self::malformed(ambiguous.code(), ambiguous.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_the_canonical_one_but_for_the_case_of_escapes() {
        for (canonical, forwarded, same) in [
            ("/a%3A%C3b", "/a%3a%c3b", true),
            ("/a%3A", "/A%3A", false),
            ("/a%3AB", "/a%3Ab", false),
            ("/a", "/a/", false),
            ("*", "*", true),
        ] {
            assert_eq!(is_written(canonical, forwarded), same, "{forwarded}");
        }
    }

    #[test]
    fn an_origin_reads_as_it_is_written() {
        for text in ["10.0.0.1", "10.0.0.1:4711", "2001:db8::1", "[2001:db8::1]:4711"] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "localhost",
            "10.0.0.1:",
            "10.0.0.1:65536",
            "10.0.0",
            "10.0.0.1/8",
            " 10.0.0.1",
            "[::1]",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
