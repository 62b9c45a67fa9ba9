//! Where the CA is: one address, or those of its replicas, of which each does.

use std::fmt;
use std::net::SocketAddr;

use hoplite_identity::{HostPort, InvalidHostPort};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

/// Replicas of one CA: more help nobody, and all are tried in turn.
const ADDRESSES_MAX: usize = 8;

/// The addresses of one CA, at least one: `"ca:7443"` or `["ca1:7443", "ca2:7443"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaAddresses(Vec<HostPort>);

/// Reads one, or a list.
struct OneOrSeveral;

/// No addresses are written like this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum InvalidAddresses {
    #[error("write `\"HOST:PORT\"`, or a list of 1 to {ADDRESSES_MAX} of them")]
    Count,
    #[error("`{0}` is there twice")]
    Twice(HostPort),
}

// === impl CaAddresses ===

impl CaAddresses {
    /// Each, in the order in which they are written.
    pub fn iter(&self) -> impl Iterator<Item = &HostPort> {
        self.0.iter()
    }

    /// These, and others after them that are not among them yet; as many as may be.
    pub(crate) fn with(&self, more: &[HostPort]) -> Self {
        let mut all = self.0.clone();
        for address in more {
            if all.len() < ADDRESSES_MAX && !all.contains(address) {
                all.push(address.clone());
            }
        }
        Self(all)
    }

    /// Of some that are known to be good.
    fn new(addresses: Vec<HostPort>) -> Result<Self, InvalidAddresses> {
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
            return Err(InvalidAddresses::Count);
        }
        let mut before = addresses.as_slice();
        while let Some((last, rest)) = before.split_last() {
            if rest.contains(last) {
                return Err(InvalidAddresses::Twice(last.clone()));
            }
            before = rest;
        }
        Ok(Self(addresses))
    }
}

impl From<HostPort> for CaAddresses {
    fn from(address: HostPort) -> Self {
        Self(vec![address])
    }
}

impl TryFrom<SocketAddr> for CaAddresses {
    type Error = InvalidHostPort;

    fn try_from(address: SocketAddr) -> Result<Self, InvalidHostPort> {
        Ok(HostPort::try_from(address)?.into())
    }
}

impl fmt::Display for CaAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written: Vec<&str> = self.0.iter().map(HostPort::as_str).collect();
        f.pad(&written.join(", "))
    }
}

impl<'de> Deserialize<'de> for CaAddresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = deserializer.deserialize_any(OneOrSeveral)?;
        let parsed = texts
            .iter()
            .map(|text| HostPort::parse(text).map_err(de::Error::custom));
        Self::new(parsed.collect::<Result<_, _>>()?).map_err(de::Error::custom)
    }
}

// === impl OneOrSeveral ===

impl<'de> Visitor<'de> for OneOrSeveral {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`\"HOST:PORT\"`, or a list of 1 to {ADDRESSES_MAX} of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        ca: CaAddresses,
    }

    #[test]
    fn one_or_several() {
        let check = |text: &str, expected: &str| {
            let read = serde_json::from_str::<File>(&format!("{{\"ca\": {text}}}"));
            let said = read.map_or_else(|e| e.to_string(), |file| file.ca.to_string());
            assert!(said.contains(expected), "{text}: expected `{expected}`, got `{said}`");
        };
        check("\"ca:7443\"", "ca:7443");
        check("[\"ca:7443\"]", "ca:7443");
        check("[\"a:1\", \"b:1\"]", "a:1, b:1");
        check("[]", "1 to 8");
        check("7443", "1 to 8");
        check("[\"a:1\", \"b\"]", "`b` has no port");
        check("[\"a:1\", \"b:1\", \"a:1\"]", "`a:1` is there twice");
    }

    #[test]
    fn what_is_learned_comes_after_what_is_written_and_is_bounded() {
        let address = |n: usize| HostPort::parse(&format!("ca{n}:1")).unwrap();
        let learned: Vec<_> = (0..20).map(address).collect();
        let all = CaAddresses::from(address(3)).with(&learned);
        assert_eq!(
            all.to_string(),
            "ca3:1, ca0:1, ca1:1, ca2:1, ca4:1, ca5:1, ca6:1, ca7:1"
        );
        assert_eq!(all.with(&[]), all);
    }
}
