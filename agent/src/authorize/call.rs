//! A call as an asker tells it: what of it can be used is parsed here, once, and what cannot says why.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hoplite_decision::{HeaderFields, HttpRequest, Unasked};
use hoplite_identity::SpiffeId;
use hoplite_policy::CanonicalRequest;

use crate::socket::session::Entitlement;

/// What is asked, as far as it can be read.
#[derive(Debug)]
pub(crate) struct Call {
    /// Who calls, as the asker verified it.
    pub(crate) principal: Result<SpiffeId, Unasked>,
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
        request: Result<Box<CanonicalRequest>, Unasked>,
        headers: ToldFields,
    },
}

/// What may be granted: a request, or a connection, whose bytes the asker keeps to itself.
pub(crate) type Wanted = Option<HttpRequest<ToldFields>>;

/// The header fields that the asker told.
#[derive(Debug)]
pub(crate) struct ToldFields {
    pub(crate) told: Vec<(String, String)>,
    /// Whether they are all that go on. Otherwise nothing is known of those that it kept to itself.
    pub(crate) all: bool,
}

/// Who calls, out of what the asker says: a SPIFFE ID of a trust domain whose bundle the asker has. Of another one it
/// could not have verified anything.
pub(crate) fn principal(said: &str, who: &Entitlement) -> Result<SpiffeId, Unasked> {
    if said.is_empty() {
        return Err(unauthenticated(
            "no name was told; the caller showed no certificate, or it was not asked for one",
        ));
    }
    let id = SpiffeId::parse(said).map_err(|error| unauthenticated(error.to_string()))?;
    if id.is_trust_domain() {
        return Err(unauthenticated(format!("`{id}` is a trust domain, and no workload")));
    }
    if who.bundle(id.trust_domain()).is_none() {
        return Err(unauthenticated(format!(
            "there is no bundle of the trust domain of `{id}`, so nobody can have verified it"
        )));
    }
    Ok(id)
}

/// Nobody whom we know.
pub(crate) fn unauthenticated(reason: impl Into<String>) -> Unasked {
    Unasked::unauthenticated("unauthenticated", reason)
}

// === impl ToldFields ===

impl HeaderFields for ToldFields {
    fn fields(&self) -> Option<impl Iterator<Item = (&str, &[u8])>> {
        let fields = self.told.iter();
        let bytes = fields.map(|(name, value)| (name.as_str(), value.as_bytes()));
        self.all.then_some(bytes)
    }
}

impl From<Option<Vec<(String, String)>>> for ToldFields {
    fn from(all: Option<Vec<(String, String)>>) -> Self {
        Self {
            all: all.is_some(),
            told: all.unwrap_or_default(),
        }
    }
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
    pub(crate) fn http(method: String, host: &str, path: &str, headers: ToldFields) -> Self {
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
fn read(method: &str, host: &str, path: &str) -> Result<CanonicalRequest, Unasked> {
    let canonical = CanonicalRequest::parse(method, &[host.as_bytes()], path.as_bytes())?;
    let forwarded = path.split('?').next().unwrap_or_default();
    if !is_written(canonical.path(), forwarded) {
        return Err(Unasked::malformed(
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
