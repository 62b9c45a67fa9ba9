//! Invitations: one word with which a machine joins a CA that it has never seen, `TOKEN@HOST:PORT#FINGERPRINT`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::Excerpt;
use crate::fingerprint::{Fingerprint, InvalidFingerprint};

/// The longest token, in bytes. The CA's own have 64.
pub const TOKEN_BYTES_MAX: usize = 256;

/// The longest name of a host (RFC 1035), and of a part of it.
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Where a CA is, how it is known, and the token it takes. A secret: whoever has it joins in the place of whom it is for.
///
/// It has no `Display`, and its `Debug` shows no token.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    token: Zeroizing<String>,
    address: HostPort,
    fingerprint: Fingerprint,
}

/// `HOST:PORT` that can be dialled: a name, an IPv4 address, or an IPv6 address in brackets, and a port above 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    text: String,
    /// Where the port begins in it.
    port_at: usize,
}

/// A text that is no `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidHostPort {
    /// There is no port, or none that can be dialled.
    #[error(
        "`{0}` has no port that can be dialled; write `HOST:PORT` with a port from 1 to 65535, for example `ca.prod.example:7443`"
    )]
    Port(Excerpt),
    /// There is no host, or none that has such a name.
    #[error(
        "`{0}` has no host; write `HOST:PORT` with a name, an IPv4 address or `[IPv6 address]`, for example `ca.prod.example:7443`"
    )]
    Host(Excerpt),
    /// Nobody is there.
    #[error(
        "`{0}` is every address of a machine, which no other machine can dial; write the one by which it is reached"
    )]
    Unspecified(Excerpt),
}

/// A text that is no invitation. What may be the token is not quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidInvitation {
    /// A mark is missing.
    #[error(
        "it has no `{0}`; an invitation is TOKEN@HOST:PORT#FINGERPRINT, one word as `hoplite token create` prints it"
    )]
    Mark(char),
    /// What is before the first `@` is no token.
    #[error(
        "what stands before its `@` is not a token, which has 1 to {TOKEN_BYTES_MAX} letters, digits, `-`, `_` or `.`; copy the whole word"
    )]
    Token,
    /// The part in the middle.
    #[error("its address cannot be used: {0}")]
    Address(#[from] InvalidHostPort),
    /// The part at the end.
    #[error("its end cannot be used: {0}")]
    Fingerprint(#[from] InvalidFingerprint),
}

// === impl Invitation ===

impl Invitation {
    /// Of its parts.
    ///
    /// # Errors
    /// The token has another length, or another character, than tokens have.
    pub fn new(token: &str, address: HostPort, fingerprint: Fingerprint) -> Result<Self, InvalidInvitation> {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !(1..=TOKEN_BYTES_MAX).contains(&token.len()) || !token.bytes().all(is_legal) {
            return Err(InvalidInvitation::Token);
        }
        Ok(Self {
            token: Zeroizing::new(token.to_owned()),
            address,
            fingerprint,
        })
    }

    /// Reads one word: nothing around it, no spaces in it.
    ///
    /// # Errors
    /// The first part that is missing or cannot be used.
    pub fn parse(text: &str) -> Result<Self, InvalidInvitation> {
        let (token, rest) = text.split_once('@').ok_or(InvalidInvitation::Mark('@'))?;
        let (address, fingerprint) = rest.split_once('#').ok_or(InvalidInvitation::Mark('#'))?;
        Self::new(token, HostPort::parse(address)?, Fingerprint::parse(fingerprint)?)
    }

    /// The secret part.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Where the CA is.
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// Of the CA's authority.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The whole word, secret included.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}@{}#{}", *self.token, self.address, self.fingerprint))
    }
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation")
            .field("address", &self.address)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl FromStr for Invitation {
    type Err = InvalidInvitation;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

// === impl HostPort ===

impl HostPort {
    /// Reads `HOST:PORT`.
    ///
    /// # Errors
    /// What is missing, or cannot be dialled.
    pub fn parse(text: &str) -> Result<Self, InvalidHostPort> {
        let excerpt = || Excerpt::of(text);
        let (host, port) = text.rsplit_once(':').ok_or_else(|| InvalidHostPort::Port(excerpt()))?;
        // By digits alone: `parse` would take `+7443`.
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
        let port = port
            .filter(|port| *port != 0)
            .ok_or_else(|| InvalidHostPort::Port(excerpt()))?;
        let unspecified = if host.starts_with('[') {
            // A scope, as in `[fe80::1%2]`, counts on one machine only.
            let address = text
                .parse::<SocketAddrV6>()
                .ok()
                .filter(|address| address.scope_id() == 0);
            address.map(|address| address.ip().is_unspecified())
        } else if let Ok(address) = host.parse::<Ipv4Addr>() {
            Some(address.is_unspecified())
        } else {
            is_name(host).then_some(false)
        };
        match unspecified {
            None => Err(InvalidHostPort::Host(excerpt())),
            Some(true) => Err(InvalidHostPort::Unspecified(excerpt())),
            Some(false) => Ok(Self {
                text: format!("{host}:{port}"),
                port_at: host.len() + 1,
            }),
        }
    }

    /// `HOST:PORT`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host alone, an IPv6 address in its brackets.
    pub fn host(&self) -> &str {
        self.text.get(..self.port_at - 1).unwrap_or_default()
    }

    /// The port alone.
    pub fn port(&self) -> u16 {
        let port = self.text.get(self.port_at..).and_then(|port| port.parse().ok());
        port.unwrap_or_default()
    }
}

/// A name that a resolver takes. One of digits and dots alone is a mistyped IPv4 address.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    host.len() <= HOST_BYTES_MAX
        && host.strip_suffix('.').unwrap_or(host).split('.').all(is_label)
        && host.bytes().any(|byte| byte.is_ascii_alphabetic())
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl FromStr for HostPort {
    type Err = InvalidHostPort;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<SocketAddr> for HostPort {
    type Error = InvalidHostPort;

    fn try_from(address: SocketAddr) -> Result<Self, Self::Error> {
        Self::parse(&address.to_string())
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FINGERPRINT: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn one_word_of_three_parts() {
        for (address, host, port) in [
            ("ca.prod.example:7443", "ca.prod.example", 7443),
            ("ca:1", "ca", 1),
            ("10.0.0.1:65535", "10.0.0.1", 65535),
            ("[2001:db8::1]:7443", "[2001:db8::1]", 7443),
            ("my_host.:80", "my_host.", 80),
        ] {
            let text = format!("t0ken-A_b.c@{address}#{FINGERPRINT}");
            let invitation = Invitation::parse(&text).unwrap();
            assert_eq!(invitation.token(), "t0ken-A_b.c");
            let found = invitation.address();
            assert_eq!((found.as_str(), found.host(), found.port()), (address, host, port));
            assert_eq!(*invitation.reveal(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_the_token_never_quoted() {
        let good = format!("s3cret@ca:7443#{FINGERPRINT}");
        let check = |from: &str, to: &str, expected: &str| {
            assert!(good.contains(from));
            let error = Invitation::parse(&good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        };
        check("@", "", "no `@`");
        check("#", "", "no `#`");
        check("s3cret", "", "before its `@`");
        check("s3cret", "s3cret ", "before its `@`");
        check("s3cret", &"s3cret".repeat(50), "before its `@`");
        for (address, expected) in [
            ("", "no port"),
            ("ca", "no port"),
            ("ca:", "no port"),
            ("ca:0", "no port"),
            ("ca:+7443", "no port"),
            ("ca:65536", "no port"),
            (":7443", "no host"),
            ("::1:7443", "no host"),
            ("[::1:7443", "no host"),
            ("[fe80::1%2]:7443", "no host"),
            ("[10.0.0.1]:7443", "no host"),
            ("10.0.0.256:7443", "no host"),
            ("a..b:7443", "no host"),
            ("-a:7443", "no host"),
            ("c a:7443", "no host"),
            ("a@b:7443", "no host"),
            ("https://ca:7443", "no host"),
            ("0.0.0.0:7443", "every address"),
            ("[::]:7443", "every address"),
        ] {
            check("ca:7443", address, expected);
        }
        check(FINGERPRINT, "", "not a fingerprint");
        check(FINGERPRINT, &FINGERPRINT[..63], "not a fingerprint");
        check(FINGERPRINT, &format!("{FINGERPRINT}#"), "not a fingerprint");
        check(FINGERPRINT, &format!("{FINGERPRINT}\n"), "not a fingerprint");
    }

    #[test]
    fn nobody_sees_the_token_by_accident() {
        let invitation = Invitation::parse(&format!("s3cret@ca:7443#{FINGERPRINT}")).unwrap();
        let shown = format!("{invitation:?}");
        assert!(shown.contains("ca:7443") && shown.contains("ba78"), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_is_shown(text in "[a-z0-9@#:.\\[\\]-]{0,40}|[a-z0-9]{1,9}@([a-z]{1,5}|[0-9.]{7}|\\[[0-9a-f:]{2,9}\\]):[0-9]{1,6}#[0-9a-fA-F]{63,65}") {
            if let Ok(invitation) = Invitation::parse(&text) {
                let shown = invitation.reveal();
                prop_assert!(shown.eq_ignore_ascii_case(&text) || text.contains(":0"), "a port without leading zeros");
                prop_assert_eq!(Invitation::parse(&shown).unwrap(), invitation);
            }
        }

        #[test]
        fn every_invitation_survives_its_text(
            token in "[A-Za-z0-9._-]{1,256}",
            host in "[a-z][a-z0-9-]{0,20}(\\.[a-z0-9]{1,9}){0,3}|[1-9]{1,2}\\.0\\.0\\.1",
            port in 1u16..,
            bytes: [u8; 32],
        ) {
            let address = HostPort::parse(&format!("{host}:{port}")).unwrap();
            let fingerprint = Fingerprint::of(&bytes.to_vec().into());
            let invitation = Invitation::new(&token, address, fingerprint).unwrap();
            prop_assert_eq!(Invitation::parse(&invitation.reveal()).unwrap(), invitation);
        }
    }
}
