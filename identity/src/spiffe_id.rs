//! SPIFFE IDs and trust domains, by the letter of the SPIFFE-ID standard.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest SPIFFE ID that is accepted or made, in bytes (ID-4).
const ID_BYTES_MAX: usize = 2048;
/// The longest trust domain name, in bytes (ID-4).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// Lower case only: comparing stays a comparison of bytes (ID-5).
const SCHEME: &str = "spiffe://";

/// The name of a trust domain: 1 to 255 bytes of `[a-z0-9.-_]`.
///
/// A name that looks like an IPv4 address or a DNS name is a name like any other (ID-2).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// The name of a workload or of a trust domain: `spiffe://<trust domain>[/<path>]`, at most 2 048 bytes.
///
/// Two IDs are equal when their bytes are: nothing is normalised, what is not canonical is refused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

/// Why a text is no SPIFFE ID or trust domain. Each message shows the input, shortened and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSpiffeId {
    /// ID-1, ID-5: the scheme is something else, or not in lower case.
    #[error("`{0}` does not start with `spiffe://` in lower case")]
    Scheme(Excerpt),
    /// ID-1: a user name before an `@`.
    #[error("`{0}` has user information before an `@`; remove it")]
    UserInfo(Excerpt),
    /// ID-1: a port after the trust domain.
    #[error("`{0}` has a `:` after the trust domain; a SPIFFE ID has no port")]
    Port(Excerpt),
    /// ID-1: a query.
    #[error("`{0}` has a query; remove the `?` and what follows")]
    Query(Excerpt),
    /// ID-1: a fragment.
    #[error("`{0}` has a fragment; remove the `#` and what follows")]
    Fragment(Excerpt),
    /// A SPIFFE ID where the name of a trust domain belongs, and the name in it.
    #[error("`{0}` is a SPIFFE ID, and a trust domain is named without `spiffe://`; write `{1}`")]
    Whole(Excerpt, Excerpt),
    /// ID-2: no trust domain.
    #[error("`{0}` has an empty trust domain")]
    EmptyTrustDomain(Excerpt),
    /// ID-2: a character no trust domain may have.
    #[error("`{0}` has a character in its trust domain other than a-z, 0-9, `.`, `-` and `_`")]
    TrustDomainCharacter(Excerpt),
    /// ID-2, ID-3: percent-encoding.
    #[error("`{0}` is percent-encoded; SPIFFE IDs never are")]
    PercentEncoding(Excerpt),
    /// ID-3: a character no path may have.
    #[error("`{0}` has a character in its path other than a-z, A-Z, 0-9, `.`, `-`, `_` and `/`")]
    PathCharacter(Excerpt),
    /// ID-3: a path that does not start with a slash.
    #[error("path `{0}` does not start with `/`")]
    RelativePath(Excerpt),
    /// ID-3: two slashes in a row.
    #[error("`{0}` has an empty path segment")]
    EmptySegment(Excerpt),
    /// ID-3: a segment `.` or `..`.
    #[error("`{0}` has a path segment `.` or `..`")]
    DotSegment(Excerpt),
    /// ID-3: a slash at the end.
    #[error("`{0}` ends with a `/`; remove it")]
    TrailingSlash(Excerpt),
    /// ID-4: more than 2 048 bytes.
    #[error("`{0}` is longer than 2048 bytes")]
    TooLong(Excerpt),
    /// ID-4: a trust domain of more than 255 bytes.
    #[error("`{0}` has a trust domain longer than 255 bytes")]
    TrustDomainTooLong(Excerpt),
}

/// The start of an input that a stranger chose: at most 80 characters, escaped to printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt(String);

// === impl TrustDomain ===

impl TrustDomain {
    /// Parses the bare name (`prod.example`), not a URI.
    ///
    /// # Errors
    /// The rule of ID-1, ID-2, ID-4 or ID-5 that the name breaks.
    pub fn parse(name: &str) -> Result<Self, InvalidSpiffeId> {
        if let Some(rest) = name.strip_prefix(SCHEME) {
            let inner = rest.split('/').next().unwrap_or_default();
            check_trust_domain(inner, name)?;
            return Err(InvalidSpiffeId::Whole(Excerpt::of(name), Excerpt::of(inner)));
        }
        check_trust_domain(name, name)?;
        Ok(Self(name.into()))
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, which has no path.
    pub fn id(&self) -> SpiffeId {
        SpiffeId {
            uri: format!("{SCHEME}{self}").into(),
            trust_domain: self.clone(),
        }
    }

    /// The member ID with this path, which starts with `/`. The empty path gives [`TrustDomain::id`].
    ///
    /// # Errors
    /// The rule of ID-3 or ID-4 that the path breaks.
    pub fn member(&self, path: &str) -> Result<SpiffeId, InvalidSpiffeId> {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(InvalidSpiffeId::RelativePath(Excerpt::of(path)));
        }
        if SCHEME.len() + self.0.len() + path.len() > ID_BYTES_MAX {
            return Err(InvalidSpiffeId::TooLong(Excerpt::of(path)));
        }
        check_path(path, path)?;
        Ok(SpiffeId {
            uri: format!("{SCHEME}{self}{path}").into(),
            trust_domain: self.clone(),
        })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidSpiffeId;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// Parses a whole URI.
    ///
    /// # Errors
    /// The rule of ID-1 to ID-5 that the text breaks.
    pub fn parse(uri: &str) -> Result<Self, InvalidSpiffeId> {
        // First of all, so that the work below is bounded.
        if uri.len() > ID_BYTES_MAX {
            return Err(InvalidSpiffeId::TooLong(Excerpt::of(uri)));
        }
        let Some(rest) = uri.strip_prefix(SCHEME) else {
            return Err(InvalidSpiffeId::Scheme(Excerpt::of(uri)));
        };
        let (name, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(name, uri)?;
        check_path(path, uri)?;
        Ok(Self {
            uri: uri.into(),
            trust_domain: TrustDomain(name.into()),
        })
    }

    /// The URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path, empty or starting with `/`.
    pub fn path(&self) -> &str {
        self.uri
            .get(SCHEME.len() + self.trust_domain.0.len()..)
            .unwrap_or_default()
    }

    /// The path's segments, without slashes.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').skip(1)
    }

    /// Whether this names the trust domain itself (no path).
    pub fn is_trust_domain(&self) -> bool {
        self.path().is_empty()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        Self::parse(uri)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// ID-1, ID-2, ID-4, ID-5. `input` is what the message shows.
fn check_trust_domain(name: &str, input: &str) -> Result<(), InvalidSpiffeId> {
    let broken = if name.is_empty() {
        InvalidSpiffeId::EmptyTrustDomain
    } else if name.len() > TRUST_DOMAIN_BYTES_MAX {
        InvalidSpiffeId::TrustDomainTooLong
    } else if name
        .bytes()
        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
    {
        return Ok(());
    } else if name.contains('?') {
        InvalidSpiffeId::Query
    } else if name.contains('#') {
        InvalidSpiffeId::Fragment
    } else if name.contains('@') {
        InvalidSpiffeId::UserInfo
    } else if name.contains(':') {
        InvalidSpiffeId::Port
    } else if name.contains('%') {
        InvalidSpiffeId::PercentEncoding
    } else {
        InvalidSpiffeId::TrustDomainCharacter
    };
    Err(broken(Excerpt::of(input)))
}

/// ID-1, ID-3. `path` is empty or starts with `/`.
fn check_path(path: &str, input: &str) -> Result<(), InvalidSpiffeId> {
    let is_legal = |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'/');
    let broken = if path.contains('?') {
        InvalidSpiffeId::Query
    } else if path.contains('#') {
        InvalidSpiffeId::Fragment
    } else if path.contains('%') {
        InvalidSpiffeId::PercentEncoding
    } else if !path.bytes().all(is_legal) {
        InvalidSpiffeId::PathCharacter
    } else if path.contains("//") {
        InvalidSpiffeId::EmptySegment
    } else if path.ends_with('/') {
        InvalidSpiffeId::TrailingSlash
    } else if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        InvalidSpiffeId::DotSegment
    } else {
        return Ok(());
    };
    Err(broken(Excerpt::of(input)))
}

// === impl Excerpt ===

impl Excerpt {
    const CHARS_MAX: usize = 80;

    /// The beginning of a text, with nothing in it that a terminal would obey.
    pub fn of(input: &str) -> Self {
        let mut shown: String = input
            .chars()
            .take(Self::CHARS_MAX)
            .flat_map(char::escape_default)
            .collect();
        if input.chars().nth(Self::CHARS_MAX).is_some() {
            shown.push_str("...");
        }
        Self(shown)
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Rule = fn(Excerpt) -> InvalidSpiffeId;

    fn refused(uri: &str, rule: Rule) {
        assert_eq!(SpiffeId::parse(uri), Err(rule(Excerpt::of(uri))), "{uri:?}");
    }

    fn accepted(uri: &str, trust_domain: &str, path: &str) {
        let id = SpiffeId::parse(uri).expect(uri);
        assert_eq!(
            (id.as_str(), id.trust_domain().as_str(), id.path()),
            (uri, trust_domain, path)
        );
        assert_eq!(id, TrustDomain::parse(trust_domain).unwrap().member(path).unwrap());
        assert_eq!(id.is_trust_domain(), path.is_empty());
    }

    #[test]
    fn id_1_scheme_and_trust_domain_and_path_and_nothing_else() {
        accepted("spiffe://td", "td", "");
        accepted("spiffe://td/a/b", "td", "/a/b");
        for uri in [
            "",
            "spiffe",
            "spiffe:",
            "spiffe:/",
            "spiffe:/td/a",
            "https://td/a",
            "td/a",
            "//td/a",
            " spiffe://td",
        ] {
            refused(uri, InvalidSpiffeId::Scheme);
        }
        refused("spiffe://td?q", InvalidSpiffeId::Query);
        refused("spiffe://td/a?q=1", InvalidSpiffeId::Query);
        refused("spiffe://td/a?", InvalidSpiffeId::Query);
        refused("spiffe://td#f", InvalidSpiffeId::Fragment);
        refused("spiffe://td/a#f", InvalidSpiffeId::Fragment);
        refused("spiffe://user@td/a", InvalidSpiffeId::UserInfo);
        refused("spiffe://user:word@td/a", InvalidSpiffeId::UserInfo);
        refused("spiffe://td:8443/a", InvalidSpiffeId::Port);
        refused("spiffe://td:/a", InvalidSpiffeId::Port);
    }

    #[test]
    fn id_2_trust_domain_characters() {
        refused("spiffe://", InvalidSpiffeId::EmptyTrustDomain);
        refused("spiffe:///a", InvalidSpiffeId::EmptyTrustDomain);
        accepted("spiffe://a.b-c_9/x", "a.b-c_9", "/x");
        accepted("spiffe://1.2.3.4/x", "1.2.3.4", "/x");
        accepted("spiffe://..._---", "..._---", "");
        refused("spiffe://[::1]/x", InvalidSpiffeId::Port);
        refused("spiffe://[1]/x", InvalidSpiffeId::TrustDomainCharacter);
        refused("spiffe://t%64/x", InvalidSpiffeId::PercentEncoding);
        refused("spiffe://t d/x", InvalidSpiffeId::TrustDomainCharacter);
        refused("spiffe://bücher/x", InvalidSpiffeId::TrustDomainCharacter);
        assert!(matches!(
            TrustDomain::parse("td/a"),
            Err(InvalidSpiffeId::TrustDomainCharacter(_))
        ));
        for whole in ["spiffe://td", "spiffe://td/a"] {
            let error = TrustDomain::parse(whole).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{whole}`")) && error.contains("write `td`"),
                "{error}"
            );
        }
        assert!(matches!(
            TrustDomain::parse("spiffe://td:1"),
            Err(InvalidSpiffeId::Port(_))
        ));
        assert!(matches!(
            TrustDomain::parse("spiffe://"),
            Err(InvalidSpiffeId::EmptyTrustDomain(_))
        ));
    }

    #[test]
    fn id_3_path_segments() {
        accepted("spiffe://td/.../.x/x./-/_", "td", "/.../.x/x./-/_");
        refused("spiffe://td/", InvalidSpiffeId::TrailingSlash);
        refused("spiffe://td/a/", InvalidSpiffeId::TrailingSlash);
        refused("spiffe://td//a", InvalidSpiffeId::EmptySegment);
        refused("spiffe://td/a//b", InvalidSpiffeId::EmptySegment);
        refused("spiffe://td/.", InvalidSpiffeId::DotSegment);
        refused("spiffe://td/./a", InvalidSpiffeId::DotSegment);
        refused("spiffe://td/a/../b", InvalidSpiffeId::DotSegment);
        refused("spiffe://td/a/..", InvalidSpiffeId::DotSegment);
        refused("spiffe://td/%61", InvalidSpiffeId::PercentEncoding);
        refused("spiffe://td/a b", InvalidSpiffeId::PathCharacter);
        refused("spiffe://td/a\\b", InvalidSpiffeId::PathCharacter);
        refused("spiffe://td/ä", InvalidSpiffeId::PathCharacter);
        refused("spiffe://td/a\0", InvalidSpiffeId::PathCharacter);
        let td = TrustDomain::parse("td").unwrap();
        assert!(matches!(td.member("a"), Err(InvalidSpiffeId::RelativePath(_))));
        assert!(matches!(td.member("/"), Err(InvalidSpiffeId::TrailingSlash(_))));
        assert_eq!(td.member("/a/b").unwrap().segments().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(td.id().segments().count(), 0);
    }

    #[test]
    fn id_4_lengths() {
        let longest = format!("spiffe://td/{}", "a".repeat(ID_BYTES_MAX - "spiffe://td/".len()));
        assert_eq!(SpiffeId::parse(&longest).unwrap().as_str().len(), ID_BYTES_MAX);
        refused(&format!("{longest}a"), InvalidSpiffeId::TooLong);
        let name = "a".repeat(TRUST_DOMAIN_BYTES_MAX);
        accepted(&format!("spiffe://{name}/a"), &name, "/a");
        refused(&format!("spiffe://{name}a/a"), InvalidSpiffeId::TrustDomainTooLong);
        let td = TrustDomain::parse("td").unwrap();
        let path = format!("/{}", "a".repeat(ID_BYTES_MAX - "spiffe://td/".len()));
        assert_eq!(td.member(&path).unwrap().as_str(), longest);
        assert!(matches!(
            td.member(&format!("{path}a")),
            Err(InvalidSpiffeId::TooLong(_))
        ));
    }

    #[test]
    fn id_5_only_lower_case_scheme_and_trust_domain_but_paths_keep_their_case() {
        refused("Spiffe://td/a", InvalidSpiffeId::Scheme);
        refused("SPIFFE://td/a", InvalidSpiffeId::Scheme);
        refused("spiffe://Td/a", InvalidSpiffeId::TrustDomainCharacter);
        accepted("spiffe://td/Ab", "td", "/Ab");
        assert_ne!(SpiffeId::parse("spiffe://td/Ab"), SpiffeId::parse("spiffe://td/ab"));
    }

    #[test]
    fn id_6_every_byte_in_trust_domain_and_path() {
        for byte in 0..=255_u8 {
            // A text cannot hold a lone byte from 128 on: the character of that number stands for it.
            let character = char::from(byte);
            let lower = character.is_ascii_lowercase() || character.is_ascii_digit() || ".-_".contains(character);
            let name = format!("t{character}d");
            assert_eq!(TrustDomain::parse(&name).is_ok(), lower, "trust domain {name:?}");
            let uri = format!("spiffe://t{character}d/p");
            // A slash ends the trust domain, so that it makes another ID, not a bad one.
            assert_eq!(SpiffeId::parse(&uri).is_ok(), lower || byte == b'/', "{uri:?}");
            let uri = format!("spiffe://td/p{character}q");
            let legal = lower || character.is_ascii_uppercase() || byte == b'/';
            assert_eq!(SpiffeId::parse(&uri).is_ok(), legal, "{uri:?}");
        }
    }

    #[test]
    fn serde_reads_and_writes_the_text_and_names_what_it_refuses() {
        let id: SpiffeId = serde_json::from_str(r#""spiffe://td/a""#).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), r#""spiffe://td/a""#);
        assert_eq!(serde_json::to_string(id.trust_domain()).unwrap(), r#""td""#);
        let error = serde_json::from_str::<SpiffeId>(r#""https://td/a""#).unwrap_err();
        assert!(
            error.to_string().starts_with("`https://td/a` does not start"),
            "{error}"
        );
        let error = serde_json::from_str::<TrustDomain>(r#""Prod!""#).unwrap_err();
        assert!(error.to_string().starts_with("`Prod!` has a character"), "{error}");
        assert!(serde_json::from_str::<SpiffeId>("7").is_err());
    }

    #[test]
    fn messages_show_the_input_short_and_escaped() {
        let error = SpiffeId::parse("spiffe://td/\u{202e}\n").unwrap_err().to_string();
        assert!(
            error.starts_with(r"`spiffe://td/\u{202e}\n` has a character"),
            "{error}"
        );
        let error = SpiffeId::parse(&"x".repeat(1 << 20)).unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }

    proptest! {
        #[test]
        fn displaying_and_parsing_are_inverse(
            name in "[a-z0-9._-]{1,40}",
            segments in prop::collection::vec("[a-zA-Z0-9._-]{3,12}x", 0..6),
        ) {
            let path: String = segments.iter().map(|segment| format!("/{segment}")).collect();
            let id = TrustDomain::parse(&name).unwrap().member(&path).unwrap();
            prop_assert_eq!(&id.to_string().parse::<SpiffeId>().unwrap(), &id);
            prop_assert_eq!(id.segments().map(str::to_owned).collect::<Vec<_>>(), segments);
        }

        #[test]
        fn nothing_panics_and_what_is_accepted_is_kept_byte_for_byte(text in ".{0,60}") {
            for uri in [text.clone(), format!("spiffe://{text}"), format!("spiffe://td/{text}")] {
                match SpiffeId::parse(&uri) {
                    Ok(id) => prop_assert_eq!(id.as_str(), uri),
                    Err(error) => prop_assert!(error.to_string().is_ascii()),
                }
            }
        }
    }
}
