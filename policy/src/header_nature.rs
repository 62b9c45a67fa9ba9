//! Header natures: what each known header is to whoever stands between two programs, and when two names are one.
//!
//! The table is the only one. Selected headers (`headers.rs`), the proxy's hygiene, the agent's answers to an Envoy and
//! `docs/reference/headers.md` read it.
//!
//! Servers that hand headers to programs as variables (CGI, WSGI, PHP) write every character that is neither letter nor
//! digit as `_`, and letters in one case. So `X_Forwarded.Host` is `x-forwarded-host` to such a program, and here too.

use serde::Deserialize;

/// What a header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeaderNature {
    /// The host the request is for; it is decided on.
    Host,
    /// Says where a body ends, or what follows it.
    Framing,
    /// Belongs to one connection (RFC 9110 §7.6.1), or to the next proxy only (RFC 9110 §11.7).
    HopByHop,
    /// A wish that this hop grants or refuses itself.
    AnsweredHere,
    /// Some servers obey it instead of the request line: what is done is then not what was decided.
    Override,
    /// By it proxies say who calls, or which host was meant. From outside it is a lie. So is `Proxy`: a CGI program finds it
    /// in `HTTP_PROXY`, and sends its own calls there (httpoxy, CVE-2016-5385).
    Identity,
    /// Only Hoplite says it.
    Ours,
    /// Whom earlier hops served: an account that services may read, and that speaks neither of the caller nor of the
    /// host.
    Account,
    /// Belongs to the message. It is in the table because it stands once: of two, one server takes the first and the next
    /// one the last.
    Ordinary,
}

/// How a field spells the name that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spelling {
    /// As the table does; case is not looked at.
    Own,
    /// With another sign in the place of `-`. Nobody sends that by accident.
    Disguised,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownHeader {
    /// Lower case, `a-z`, `0-9` and `-` only; with a `*` at its end it is every name that begins like this.
    pub name: &'static str,
    /// What it is.
    pub nature: HeaderNature,
    /// Whether a request has it once or not at all, and in its own spelling only.
    pub once: bool,
}

/// Headers that an operator has taken off every request, beside those of the table: by what else a service knows its
/// callers, nobody but the operator knows. Each name as in the table, lower case with `-`, perhaps a `*` at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct RemovedHeaders(Vec<String>);

/// The most headers that are taken off beside those of the table: each is looked for in every request.
pub const REMOVED_HEADERS_MAX: usize = 64;

const REMOVED_NAME_BYTES_MAX: usize = 64;

/// Why a header cannot be taken off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unremovable {
    /// A longer list is a mistake.
    #[error("more than {REMOVED_HEADERS_MAX} headers; write a prefix with `*` where names begin alike")]
    TooMany,
    /// Not a name.
    #[error(
        "`{0}` is no header's name; write it like `x-remote-user` or `x-auth-*`: 1 to {REMOVED_NAME_BYTES_MAX} of a-z, 0-9 and `-`"
    )]
    NoName(String),
    /// A request is none without it, or it is seen to already.
    #[error(
        "`{0}` says where a request goes or ends, or belongs to one connection: the proxy sees to it; leave it out"
    )]
    Needed(String),
}

/// Every header whose nature matters. Names stand before the prefixes that hold for them too.
pub const KNOWN_HEADERS: &[KnownHeader] = &[
    once("host", HeaderNature::Host),
    once("content-length", HeaderNature::Framing),
    row("trailer", HeaderNature::Framing),
    row("connection", HeaderNature::HopByHop),
    row("keep-alive", HeaderNature::HopByHop),
    row("proxy-authenticate", HeaderNature::HopByHop),
    row("proxy-authentication-info", HeaderNature::HopByHop),
    once("proxy-authorization", HeaderNature::HopByHop),
    row("proxy-connection", HeaderNature::HopByHop),
    once("transfer-encoding", HeaderNature::HopByHop),
    row("upgrade", HeaderNature::HopByHop),
    row("expect", HeaderNature::AnsweredHere),
    row("http2-settings", HeaderNature::AnsweredHere),
    row("te", HeaderNature::AnsweredHere),
    row("x-http-method", HeaderNature::Override),
    row("x-http-method-override", HeaderNature::Override),
    row("x-method-override", HeaderNature::Override),
    row("x-original-url", HeaderNature::Override),
    row("x-rewrite-url", HeaderNature::Override),
    row("x-forwarded-for", HeaderNature::Account),
    row("client-cert", HeaderNature::Identity),
    row("client-cert-*", HeaderNature::Identity),
    row("forwarded", HeaderNature::Identity),
    row("l5d-client-id", HeaderNature::Identity),
    row("proxy", HeaderNature::Identity),
    row("ssl-client-*", HeaderNature::Identity),
    row("x-amzn-mtls-*", HeaderNature::Identity),
    row("x-client-cert", HeaderNature::Identity),
    row("x-envoy-*", HeaderNature::Identity),
    row("x-forwarded-*", HeaderNature::Identity),
    row("x-spiffe-id", HeaderNature::Identity),
    row("x-ssl-client-*", HeaderNature::Identity),
    row("x-hoplite-*", HeaderNature::Ours),
    once("authorization", HeaderNature::Ordinary),
    once("content-type", HeaderNature::Ordinary),
    once("from", HeaderNature::Ordinary),
    once("if-modified-since", HeaderNature::Ordinary),
    once("if-range", HeaderNature::Ordinary),
    once("if-unmodified-since", HeaderNature::Ordinary),
    once("max-forwards", HeaderNature::Ordinary),
    once("origin", HeaderNature::Ordinary),
    once("range", HeaderNature::Ordinary),
    once("referer", HeaderNature::Ordinary),
    once("user-agent", HeaderNature::Ordinary),
];

const fn row(name: &'static str, nature: HeaderNature) -> KnownHeader {
    KnownHeader {
        name,
        nature,
        once: false,
    }
}

const fn once(name: &'static str, nature: HeaderNature) -> KnownHeader {
    KnownHeader {
        name,
        nature,
        once: true,
    }
}

// === impl HeaderNature ===

impl HeaderNature {
    /// The word for documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Framing => "framing",
            Self::HopByHop => "hop-by-hop",
            Self::AnsweredHere => "answered here",
            Self::Override => "override",
            Self::Identity => "identity",
            Self::Ours => "ours",
            Self::Account => "account",
            Self::Ordinary => "ordinary",
        }
    }
}

// === impl KnownHeader ===

impl KnownHeader {
    /// The row that holds for a field of this name, in whatever spelling. None is a header of the message that may stand
    /// there any number of times.
    pub fn of(field: &str) -> Option<(&'static Self, Spelling)> {
        let row = KNOWN_HEADERS.iter().find(|row| row.holds_for(field))?;
        let own = field.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        Some((row, if own { Spelling::Own } else { Spelling::Disguised }))
    }

    fn holds_for(&self, field: &str) -> bool {
        covers(self.name, field)
    }
}

// === impl RemovedHeaders ===

impl RemovedHeaders {
    /// Whether a field of this name, in whatever spelling, is one of them.
    pub fn hold(&self, field: &str) -> bool {
        self.0.iter().any(|name| covers(name, field))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<Vec<String>> for RemovedHeaders {
    type Error = Unremovable;

    fn try_from(names: Vec<String>) -> Result<Self, Unremovable> {
        if names.len() > REMOVED_HEADERS_MAX {
            return Err(Unremovable::TooMany);
        }
        for name in &names {
            let bare = name.strip_suffix('*').unwrap_or(name);
            let is_name = (1..=REMOVED_NAME_BYTES_MAX).contains(&bare.len())
                && bare.starts_with(|c: char| c.is_ascii_lowercase())
                && bare
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            if !is_name {
                let name = name.escape_debug().take(REMOVED_NAME_BYTES_MAX).collect();
                return Err(Unremovable::NoName(name));
            }
            let needed = |row: &&KnownHeader| match row.nature {
                HeaderNature::Host | HeaderNature::Framing | HeaderNature::HopByHop | HeaderNature::AnsweredHere => {
                    covers(name, row.name)
                }
                _ => false,
            };
            // What the proxy itself says comes after the removal, and is said all the same.
            if KNOWN_HEADERS.iter().any(|row| needed(&row)) {
                return Err(Unremovable::Needed(name.clone()));
            }
        }
        Ok(Self(names))
    }
}

/// Whether a name of ours, perhaps with a `*` at its end, is that of a field in whatever spelling.
fn covers(name: &str, field: &str) -> bool {
    match name.strip_suffix('*') {
        Some(prefix) => field
            .as_bytes()
            .get(..prefix.len())
            .is_some_and(|start| is_spelt(start, prefix)),
        None => is_same_header(field, name),
    }
}

/// Whether a server may take a field for the header of this name, which is lower case with `-` as its only sign.
pub fn is_same_header(field: &str, name: &str) -> bool {
    field.len() == name.len() && is_spelt(field.as_bytes(), name)
}

fn is_spelt(field: &[u8], name: &str) -> bool {
    let folded = |b: &u8| {
        if b.is_ascii_alphanumeric() {
            b.to_ascii_lowercase()
        } else {
            b'-'
        }
    };
    field.iter().map(folded).eq(name.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// What a field's name may hold beside letters and digits (RFC 9110 §5.6.2).
    const SIGNS: &str = "!#$%&'*+-.^_`|~";

    #[test]
    fn names_have_one_nature_in_every_spelling() {
        let check = |field: &str, expected: Option<(&str, Spelling)>| {
            let found = KnownHeader::of(field).map(|(row, spelling)| (row.name, spelling));
            assert_eq!(found, expected, "{field}");
        };
        check("x-forwarded-host", Some(("x-forwarded-*", Spelling::Own)));
        check("X-Forwarded-Host", Some(("x-forwarded-*", Spelling::Own)));
        for field in [
            "x.forwarded.host",
            "x_forwarded-host",
            "X!Forwarded~Host",
            "x-forwarded-h_o",
        ] {
            check(field, Some(("x-forwarded-*", Spelling::Disguised)));
        }
        check("x-forwarded-for", Some(("x-forwarded-for", Spelling::Own)));
        check("x-forwarded_for", Some(("x-forwarded-for", Spelling::Disguised)));
        check("x-forwarded-for-real", Some(("x-forwarded-*", Spelling::Own)));
        check("x.original.url", Some(("x-original-url", Spelling::Disguised)));
        check("TE", Some(("te", Spelling::Own)));
        for other in [
            "",
            "x-forwarded",
            "xforwarded-host",
            "x-forwarded",
            "te-",
            "x-original-uri",
            "tenant",
            "x-tenant",
        ] {
            check(other, None);
        }
    }

    #[test]
    fn an_operator_has_headers_removed_in_every_spelling() {
        let read = |names: &[&str]| RemovedHeaders::try_from(names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>());
        let removed = read(&["x-remote-user", "x-auth-*", "authorization"]).unwrap();
        for field in [
            "X-Remote_User",
            "x.remote.user",
            "x-auth-anything",
            "x_auth!role",
            "Authorization",
        ] {
            assert!(removed.hold(field), "{field}");
        }
        for field in ["x-remote-users", "x-authority", "remote-user"] {
            assert!(!removed.hold(field), "{field}");
        }
        for name in ["", "*", "X-User", "x_user", "x user", "x-*-y", "-x"] {
            assert!(matches!(read(&[name]), Err(Unremovable::NoName(_))), "{name}");
        }
        for name in ["host", "content-length", "content-*", "h*", "te", "connection"] {
            assert_eq!(read(&[name]), Err(Unremovable::Needed(name.to_owned())));
        }
        let many = vec!["x-a"; REMOVED_HEADERS_MAX + 1];
        assert_eq!(read(&many), Err(Unremovable::TooMany));
    }

    #[test]
    fn the_table_says_each_name_once_and_prefixes_last() {
        let mut names = HashSet::new();
        for (at, row) in KNOWN_HEADERS.iter().enumerate() {
            assert!(names.insert(row.name), "{} stands there twice", row.name);
            let name = row.name.trim_end_matches('*');
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
            let found = KnownHeader::of(name).map(|(row, _)| row.name);
            assert_eq!(found, Some(row.name), "row {at} is hidden by another");
        }
    }

    #[test]
    fn the_reference_says_what_the_table_says() {
        let page = include_str!("../../docs/reference/headers.md");
        let (_, names) = page.split_once("\n## Names\n").expect("a chapter `Names`");
        let written: Vec<_> = names.lines().filter(|line| line.starts_with("| `")).collect();
        let expected: Vec<_> = KNOWN_HEADERS
            .iter()
            .map(|row| {
                let once = if row.once { "once" } else { "" };
                format!("| `{}` | {} | {once} |", row.name, row.nature.as_str())
            })
            .collect();
        assert_eq!(written, expected, "docs/reference/headers.md");
        for row in KNOWN_HEADERS {
            let line = format!("\n| {} |", row.nature.as_str());
            assert!(
                page.contains(&line),
                "the chapter `Natures` does not explain `{}`",
                row.nature.as_str()
            );
        }
    }

    proptest! {
        #[test]
        fn every_spelling_of_a_row_is_that_row(
            row in prop::sample::select(KNOWN_HEADERS),
            rest in "[a-z]{1,8}",
            signs in prop::collection::vec(prop::sample::select(SIGNS.as_bytes()), 40),
            upper in prop::collection::vec(any::<bool>(), 40),
        ) {
            let name = match row.name.strip_suffix('*') {
                Some(prefix) => format!("{prefix}{rest}z"),
                None => row.name.to_owned(),
            };
            let spelt: String = name
                .bytes()
                .zip(signs.iter().zip(&upper))
                .map(|(b, (sign, upper))| match b {
                    b'-' => char::from(*sign),
                    letter if *upper => char::from(letter.to_ascii_uppercase()),
                    letter => char::from(letter),
                })
                .collect();
            let (found, spelling) = KnownHeader::of(&spelt).unwrap();
            prop_assert_eq!(*found, row);
            let own = spelt.to_ascii_lowercase() == name;
            prop_assert_eq!(spelling, if own { Spelling::Own } else { Spelling::Disguised });
        }

        /// Another letter, or one more or fewer, is another name.
        #[test]
        fn another_name_is_not_that_row(row in prop::sample::select(KNOWN_HEADERS), at in 0_usize..40, letter in "[a-z]") {
            let name = row.name.trim_end_matches('*');
            let at = at % name.len();
            let mut other = name.to_owned();
            other.replace_range(at..=at, &letter);
            let folds_alike = name.as_bytes()[at] == letter.as_bytes()[0];
            prop_assert_eq!(row.holds_for(&other), folds_alike);
            prop_assert!(!row.holds_for(&name[1..]));
            let longer = format!("{name}{letter}");
            prop_assert!(row.name.ends_with('*') || !row.holds_for(&longer));
        }
    }
}
