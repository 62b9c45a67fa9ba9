//! Where a bundle may be fetched from: an address of `https`, and of what its name means only what lies in the open.
//!
//! Whoever runs the other trust domain also says what its name means. So a name that means this machine, its network or what a cloud
//! tells its machines is not dialled, unless an operator named that range for this endpoint.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hoplite_identity::Excerpt;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest address, in bytes.
const URL_BYTES_MAX: usize = 1024;

/// The port of `https`.
const PORT: u16 = 443;

/// Where a trust domain publishes its bundle (F-2): `https`, a host, and nobody before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BundleUrl {
    text: String,
    host: String,
    port: u16,
    /// With a query, if there is one.
    path: String,
}

/// A range of addresses, as `10.1.0.0/16` or `fd00::/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    bits: u8,
}

/// A text that is no such address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address of a bundle endpoint: {reason}; write for example `https://ca.partner.example:8443`")]
pub(crate) struct InvalidUrl {
    text: Excerpt,
    reason: &'static str,
}

/// A text that is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no range of addresses; write for example `10.1.0.0/16`, or one address")]
pub(crate) struct InvalidNetwork(Excerpt);

// === impl BundleUrl ===

impl BundleUrl {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let refused = |reason| InvalidUrl {
            text: Excerpt::of(text),
            reason,
        };
        if text.len() > URL_BYTES_MAX {
            return Err(refused("it is longer than 1024 bytes"));
        }
        let rest = text
            .strip_prefix("https://")
            .ok_or_else(|| refused("it does not begin with `https://`"))?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?[]@!$&'()*+,;=%".contains(&byte);
        if !rest.bytes().all(is_plain) {
            return Err(refused(
                "it has a fragment, a space or another character that no address has",
            ));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        // F-2.
        if authority.contains('@') {
            return Err(refused("it names a user before the host"));
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner
                    .split_once(']')
                    .ok_or_else(|| refused("its host is not closed by `]`"))?;
                let is_address = host.parse::<Ipv6Addr>().is_ok();
                (
                    Some(host).filter(|_| is_address),
                    after.strip_prefix(':').or(after.is_empty().then_some("")),
                )
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (Some(host), Some(port)),
                None => (Some(authority), Some("")),
            },
        };
        let is_name = |host: &&str| {
            let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
            !host.is_empty() && host.bytes().all(is_legal)
        };
        let host = host.filter(is_name).ok_or_else(|| refused("it has no host"))?;
        let port = match port.ok_or_else(|| refused("its port is no number"))? {
            "" if authority.ends_with(':') => return Err(refused("its port is no number")),
            "" => PORT,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let port = digits.parse().ok().filter(|port| *port != 0);
                port.ok_or_else(|| refused("its port is no number from 1 to 65535"))?
            }
            _ => return Err(refused("its port is no number")),
        };
        Ok(Self {
            text: text.to_owned(),
            host: host.to_ascii_lowercase(),
            port,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
        })
    }

    /// Without brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// As in `Host`.
    pub(crate) fn authority(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port {
            PORT => host,
            port => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for BundleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for BundleUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for BundleUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

// === impl Network ===

impl Network {
    fn has(self, address: IpAddr) -> bool {
        fn same<const N: usize>(a: [u8; N], b: [u8; N], bits: u8) -> bool {
            let whole = usize::from(bits / 8);
            let rest = 8 - bits % 8;
            let differs = a.iter().zip(&b).enumerate().any(|(at, (a, b))| match at.cmp(&whole) {
                std::cmp::Ordering::Less => a != b,
                std::cmp::Ordering::Equal if rest < 8 => a >> rest != b >> rest,
                _ => false,
            });
            !differs
        }
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.octets(), b.octets(), self.bits),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.octets(), b.octets(), self.bits),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork(Excerpt::of(text));
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| invalid()))?;
        match bits <= most {
            true => Ok(Self { address, bits }),
            false => Err(invalid()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Why an address is not dialled; `None` for one that may be.
pub(crate) fn refused(address: IpAddr, allowed: &[Network]) -> Option<&'static str> {
    // An IPv4 address by another name is that address.
    let plain = match address {
        IpAddr::V6(v6) => embedded(v6).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    };
    if allowed.iter().any(|network| network.has(plain) || network.has(address)) {
        return None;
    }
    match plain {
        IpAddr::V4(v4) => refused_v4(v4),
        IpAddr::V6(v6) => refused_v6(v6),
    }
}

/// Of IPv4-mapped, IPv4-compatible, 6to4 and NAT64 addresses the one that is meant.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => Some(last(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(last(high, low)),
        [0x2002, high, low, ..] => Some(last(high, low)),
        _ => None,
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    if address.is_loopback() {
        Some("this machine's own")
    } else if address.is_link_local() {
        Some("link-local, where clouds answer their machines")
    } else if address.is_private() || (a == 100 && (64..128).contains(&b)) {
        Some("a private network's")
    } else if a == 0
        || a >= 224
        || (a == 192 && b == 0 && c == 0)
        || address.is_documentation()
        || (a == 198 && (b & 0xfe) == 18)
    {
        Some("of no single host in the open")
    } else {
        None
    }
}

fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [first, second, ..] = address.segments();
    if address.is_loopback() {
        Some("this machine's own")
    } else if (first & 0xffc0) == 0xfe80 || (first & 0xffc0) == 0xfec0 {
        Some("link-local")
    } else if (first & 0xfe00) == 0xfc00 {
        Some("a private network's")
    } else if (first & 0xe000) != 0x2000 || (first == 0x2001 && (second == 0xdb8 || second == 0)) {
        // Only 2000::/3 is given to hosts; of that, Teredo's and the examples' ranges are not.
        Some("of no single host in the open")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f_2_addresses_of_endpoints() {
        let check = |text: &str, host: &str, port: u16, path: &str, authority: &str| {
            let url = BundleUrl::parse(text).unwrap();
            let found = (url.host(), url.port(), url.path(), url.authority());
            assert_eq!(found, (host, port, path, authority.to_owned()), "{text}");
        };
        check("https://a.example", "a.example", 443, "/", "a.example");
        check("https://A.example:8443/b", "a.example", 8443, "/b", "a.example:8443");
        check("https://a.example:443/b?c=d", "a.example", 443, "/b?c=d", "a.example");
        check("https://a.example?c", "a.example", 443, "/?c", "a.example");
        check("https://[2001:db8::1]:1/x", "2001:db8::1", 1, "/x", "[2001:db8::1]:1");
        check("https://[2001:db8::1]", "2001:db8::1", 443, "/", "[2001:db8::1]");
        check("https://192.0.2.1/x@y", "192.0.2.1", 443, "/x@y", "192.0.2.1");
        for bad in [
            "",
            "a.example",
            "http://a.example",
            "HTTPS://a.example",
            "file:///etc/passwd",
            "https://",
            "https:///x",
            "https://user@a.example",
            "https://user:pass@a.example",
            "https://a.example@b.example/",
            "https://a.example:0",
            "https://a.example:65536",
            "https://a.example:x",
            "https://a.example:",
            "https://a.example#x",
            "https://a.example/ x",
            "https://a.example/\r\nx",
            "https://a.example\\@b",
            "https://[::1",
            "https://[a.example]",
            "https://[::1]x",
            "https://a_b.example%2e",
            &format!("https://a.example/{}", "x".repeat(1100)),
        ] {
            assert!(BundleUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_dialled() {
        let check = |address: &str, allowed: &[&str], is_refused: bool| {
            let allowed: Vec<Network> = allowed.iter().map(|text| text.parse().unwrap()).collect();
            let reason = refused(address.parse().unwrap(), &allowed);
            assert_eq!(reason.is_some(), is_refused, "{address} with {allowed:?}: {reason:?}");
        };
        for open in [
            "8.8.8.8",
            "198.20.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "2600::1",
            "2a00:1450::1",
            "2002:808:808::1",
        ] {
            check(open, &[], false);
        }
        for closed in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "100.100.100.200",
            "169.254.169.254",
            "192.0.0.192",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            // IPv4 by other names.
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::1",
        ] {
            check(closed, &[], true);
        }
        check("127.0.0.1", &["127.0.0.1"], false);
        check("::ffff:127.0.0.1", &["127.0.0.0/8"], false);
        check("127.0.0.2", &["127.0.0.1"], true);
        check("10.1.2.3", &["10.1.0.0/16"], false);
        check("10.2.2.3", &["10.1.0.0/16"], true);
        check("10.1.130.3", &["10.1.128.0/17"], false);
        check("10.1.120.3", &["10.1.128.0/17"], true);
        check("169.254.169.254", &["10.0.0.0/8", "127.0.0.0/8"], true);
        check("10.0.0.1", &["0.0.0.0/0"], false);
        check("fd00:1::1", &["fd00:1::/32"], false);
        check("fd00:2::1", &["fd00:1::/32"], true);
    }

    #[test]
    fn ranges() {
        for good in ["10.0.0.0/8", "10.0.0.1", "::/0", "fd00::/8"] {
            assert!(good.parse::<Network>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "a/8",
            "10.0.0.0/",
            "10.0.0.0/-1",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
