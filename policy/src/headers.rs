//! Selected headers: the few that policies may look at, named in `headers.toml`, and the one reading of each.
//!
//! ```toml
//! headers = ["x-tenant", "content-type"]
//! ```
//!
//! They are named once for a whole policy set, because each stands in every record and because a header is what the caller
//! says of itself: which of them count is security's to choose. A selected header that two programs could read in two ways
//! is refused like a path that they could. Two lines of one name, and one line with a comma, are the same to HTTP
//! (RFC 9110 §5.3), and an Envoy makes the one of the other before it asks: so a selected header has one value, without
//! comma.

use crate::ambiguous::{Ambiguous, HEADER_VALUE_BYTES_MAX};
use crate::fault::{Fault, Text, check_mark};
use crate::header_nature::{HeaderNature, KnownHeader, is_same_header};
use crate::source::{HEADERS_FILE, Source};
use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;
use toml::Spanned;

/// The most headers a policy set may select: each is looked for in every request and stands in every record.
pub const SELECTED_HEADERS_MAX: usize = 8;

const NAME_BYTES_MAX: usize = 64;

/// Names that hold one of these hold a secret.
const SECRET: [&str; 10] = [
    "api-key",
    "apikey",
    "assertion",
    "authorization",
    "cookie",
    "credential",
    "jwt",
    "passw",
    "secret",
    "token",
];

/// The headers that a policy set looks at; none without a `headers.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelectedHeaders {
    /// Sorted.
    names: Vec<Arc<str>>,
}

/// A selected header of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: Arc<str>,
    /// None where the request has no such header.
    pub(crate) value: Option<String>,
}

/// Why a header cannot be selected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Unselectable {
    #[error(
        "more than {SELECTED_HEADERS_MAX} headers are selected; each stands in every record: keep those that policies need"
    )]
    TooMany,
    #[error("`{0}` stands here twice; remove one")]
    Twice(String),
    #[error(
        "`{0}` is not the name of a header that can be selected; write it like `x-tenant`: 1 to {NAME_BYTES_MAX} of a-z, 0-9 and \
         `-`"
    )]
    NoName(String),
    #[error("`{name}` cannot be selected: {reason}")]
    Refused { name: String, reason: &'static str },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    headers: Vec<Spanned<String>>,
}

// === impl SelectedHeaders ===

impl SelectedHeaders {
    /// What the sources' `headers.toml` selects.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of(sources: &[&Source]) -> Result<Self, Vec<Fault>> {
        match sources.iter().find(|source| source.name == HEADERS_FILE) {
            Some(source) => Self::parse(&source.text),
            None => Ok(Self::default()),
        }
    }

    /// Reads the text of `headers.toml`.
    ///
    /// # Errors
    /// Every fault in it: bad TOML, unknown keys, no name at all or too many, a name twice, and names that no header can have or
    /// must not be selected.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let fault =
            |span: Range<usize>, reason: String| Fault::at(HEADERS_FILE, text, span.start, reason).spanning(span.len());
        check_mark(&Text::new(HEADERS_FILE, text))?;
        let table: Table = toml::from_str(text).map_err(|error| {
            let reason = error.message().trim_end().replace('\n', "; ");
            vec![fault(error.span().unwrap_or_default(), reason)]
        })?;
        let mut faults = Vec::new();
        if table.headers.is_empty() {
            faults.push(fault(
                0..0,
                "no header is selected; name one, or remove the file".to_owned(),
            ));
        }
        let mut names: Vec<Arc<str>> = Vec::new();
        for (number, name) in table.headers.iter().enumerate() {
            let checked = if number == SELECTED_HEADERS_MAX {
                Err(Unselectable::TooMany)
            } else if names.iter().any(|other| **other == **name.as_ref()) {
                Err(Unselectable::Twice(name.as_ref().clone()))
            } else {
                check_name(name.as_ref())
            };
            match checked {
                Ok(()) => names.push(name.as_ref().as_str().into()),
                Err(unselectable) => faults.push(fault(name.span(), unselectable.to_string())),
            }
            if number == SELECTED_HEADERS_MAX {
                break;
            }
        }
        names.sort();
        if faults.is_empty() {
            Ok(Self { names })
        } else {
            Err(faults)
        }
    }

    /// The names, sorted.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Those of which something is known: of a request of the past only what its record tells.
    #[must_use]
    pub fn known(&self, known: impl Fn(&str) -> bool) -> Self {
        let names = self.names.iter().filter(|name| known(name));
        Self {
            names: names.cloned().collect(),
        }
    }

    /// Each selected header of a request with these fields.
    pub(crate) fn read<'f>(
        &self,
        fields: impl IntoIterator<Item = (&'f str, &'f [u8])>,
    ) -> Result<Vec<Header>, Ambiguous> {
        let names = self.names.iter().cloned();
        let mut headers: Vec<Header> = names.map(|name| Header { name, value: None }).collect();
        if headers.is_empty() {
            return Ok(headers);
        }
        for (field, value) in fields {
            let Some(header) = headers.iter_mut().find(|header| is_same_header(field, &header.name)) else {
                continue;
            };
            let name = || Arc::clone(&header.name);
            if header.value.is_some() || !field.eq_ignore_ascii_case(&header.name) || value.contains(&b',') {
                return Err(Ambiguous::HeaderTwice(name()));
            }
            let value = canonical_value(value).ok_or_else(|| Ambiguous::HeaderValue(name()))?;
            header.value = Some(value.to_owned());
        }
        Ok(headers)
    }
}

/// Whether a header of this name may be selected.
fn check_name(name: &str) -> Result<(), Unselectable> {
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !is_name {
        return Err(Unselectable::NoName(name.escape_debug().take(NAME_BYTES_MAX).collect()));
    }
    let reason = if SECRET.iter().any(|word| name.contains(word)) {
        Some("by its name it holds a secret, and what is selected stands in every record; leave it out")
    } else {
        KnownHeader::of(name).and_then(|(known, _)| unselectable(known.nature))
    };
    match reason {
        Some(reason) => Err(Unselectable::Refused {
            name: name.to_owned(),
            reason,
        }),
        None => Ok(()),
    }
}

/// Why headers of this nature cannot be selected, if so.
fn unselectable(nature: HeaderNature) -> Option<&'static str> {
    match nature {
        HeaderNature::Host => Some("it is `context.host` already; leave it out"),
        HeaderNature::Framing | HeaderNature::HopByHop | HeaderNature::AnsweredHere => Some(
            "it belongs to one connection or says where a body ends, and does not reach the service as it came; leave it out",
        ),
        HeaderNature::Override => Some("a request that has it is refused before any policy; leave it out"),
        HeaderNature::Identity | HeaderNature::Ours | HeaderNature::Account => Some(
            "what proxies say of callers and hosts is taken off or written by ours; policy knows who calls as `principal` and \
             from where as `context.conn.src`",
        ),
        HeaderNature::Ordinary => None,
    }
}

/// A value that everybody reads alike: visible ASCII, with spaces only inside. Other bytes are UTF-8 to some and Latin-1 to
/// others, space around a value is dropped by some, and an empty one is to some as good as none.
pub(crate) fn canonical_value(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let good = (1..=HEADER_VALUE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        && text.trim_matches(' ').len() == text.len();
    good.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each expectation is `line:column` and, after `…`, a part of the reason.
    #[track_caller]
    fn faults(text: &str, expected: &[&str]) {
        let faults = SelectedHeaders::parse(text).expect_err(text);
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, expected) in faults.iter().zip(expected) {
            let (place, reason) = expected.split_once('…').unwrap();
            assert!(
                fault.starts_with(&format!("headers.toml:{place}: ")) && fault.contains(reason),
                "{fault}\nis not {expected}"
            );
        }
    }

    #[test]
    fn names_are_read_and_sorted() {
        let selected =
            SelectedHeaders::parse("# which\nheaders = [\"x-tenant\", \"content-type\", \"accept\"]").unwrap();
        assert_eq!(
            selected.iter().collect::<Vec<_>>(),
            ["accept", "content-type", "x-tenant"]
        );
        assert_eq!(
            selected.known(|name| name != "accept").iter().collect::<Vec<_>>(),
            ["content-type", "x-tenant"]
        );
        assert!(SelectedHeaders::default().is_empty());
    }

    #[test]
    fn what_is_no_table_of_names_is_refused() {
        faults("headers = []", &["1:1…no header is selected"]);
        faults("", &["1:1…missing field `headers`"]);
        faults("headers = [\"a\"]\nheader = 1", &["2:1…unknown field `header`"]);
        faults("headers = \"a\"", &["1:11…invalid type"]);
        faults("headers = [\"a\", \"b\", \"a\"]", &["1:22…`a` stands here twice"]);
        let many = |count: usize| {
            let names: Vec<_> = (0..count).map(|n| format!("\"h{n}\"")).collect();
            format!("headers = [{}]", names.join(", "))
        };
        SelectedHeaders::parse(&many(SELECTED_HEADERS_MAX)).unwrap();
        faults(&many(SELECTED_HEADERS_MAX + 5), &["1:60…more than 8 headers"]);
    }

    #[test]
    fn names_that_must_not_be_selected_say_why() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for (names, reason) in [
            (
                &[
                    "",
                    "X-Tenant",
                    "x_tenant",
                    "x tenant",
                    "-x",
                    "7",
                    ":path",
                    "x-ténant",
                    &long,
                ][..],
                "write it like `x-tenant`",
            ),
            (&["host"], "it is `context.host` already"),
            (
                &[
                    "connection",
                    "te",
                    "transfer-encoding",
                    "content-length",
                    "upgrade",
                    "keep-alive",
                    "expect",
                ],
                "belongs to one connection",
            ),
            (
                &[
                    "authorization",
                    "proxy-authorization",
                    "cookie",
                    "set-cookie",
                    "x-api-key",
                    "x-auth-token",
                    "x-csrf-token",
                    "client-secret",
                ],
                "holds a secret",
            ),
            (
                &[
                    "x-forwarded-client-cert",
                    "x-forwarded-for",
                    "x-hoplite-decision",
                    "x-envoy-peer-metadata",
                    "forwarded",
                    "l5d-client-id",
                ],
                "what proxies say",
            ),
            (
                &["x-http-method-override", "x-original-url"],
                "refused before any policy",
            ),
        ] {
            for name in names {
                faults(&format!("headers = ['{name}']"), &[&format!("1:12…{reason}")]);
            }
        }
        for name in [
            "x-tenant",
            "content-type",
            "accept",
            "idempotency-key",
            "x-request-id",
            "origin",
        ] {
            SelectedHeaders::parse(&format!("headers = ['{name}']")).unwrap();
        }
    }

    /// The header `x-tenant` of a request with these fields, in one line.
    fn read(fields: &[(&str, &[u8])]) -> String {
        let selected = SelectedHeaders::parse("headers = ['content-type', 'x-tenant']").unwrap();
        match selected.read(fields.iter().copied()) {
            Ok(headers) => {
                let [other, tenant] = &headers[..] else {
                    panic!("{headers:?}")
                };
                assert_eq!((&*other.name, &*tenant.name), ("content-type", "x-tenant"));
                tenant.value.clone().unwrap_or("absent".to_owned())
            }
            Err(ambiguous) => ambiguous.code().to_owned(),
        }
    }

    #[test]
    fn a_selected_header_has_one_reading() {
        let check = |fields: &[(&str, &[u8])], expected: &str| assert_eq!(read(fields), expected, "{fields:?}");
        check(&[], "absent");
        check(&[("x-tenants", b"a"), ("tenant", b"b"), ("x-tenan", b"c")], "absent");
        check(&[("accept", b"*/*"), ("x-tenant", b"acme")], "acme");
        check(&[("X-Tenant", b"acme")], "acme");
        check(&[("x-tenant", b"a b;c=\"d\"")], "a b;c=\"d\"");
        check(&[("content-type", b"a/b"), ("x-tenant", b"a/b")], "a/b");

        check(&[("x-tenant", b"a"), ("x-tenant", b"a")], "header_twice");
        check(&[("x-tenant", b"a"), ("X-TENANT", b"b")], "header_twice");
        check(&[("x-tenant", b"a,b")], "header_twice");
        check(&[("x-tenant", b"a, a")], "header_twice");
        // Some servers take it for the other, whether or not that is there too.
        for disguised in ["x_tenant", "X_Tenant", "x.tenant", "x tenant"] {
            check(&[(disguised, b"a")], "header_twice");
            check(&[("x-tenant", b"a"), (disguised, b"b")], "header_twice");
        }

        let long = [b'x'; HEADER_VALUE_BYTES_MAX + 1];
        for bad in [
            &b""[..],
            b" ",
            b" acme",
            b"acme ",
            b"\tacme",
            b"ac\tme",
            b"acme\0",
            b"\xc3\xa9",
            b"\xff",
            b"\x7f",
            &long,
        ] {
            check(&[("x-tenant", bad)], "header_value");
        }
        assert_eq!(read(&[("x-tenant", &long[1..])]).len(), HEADER_VALUE_BYTES_MAX);
        // What nobody selected may be anything.
        check(&[("x-other", b"\xff"), ("x-other", b",")], "absent");
    }

    #[test]
    fn the_reason_names_the_header_and_not_its_value() {
        let selected = SelectedHeaders::parse("headers = ['x-tenant']").unwrap();
        for value in [&b"a,s3cr3t"[..], b"s3cr3t\xff"] {
            let said = selected.read([("x-tenant", value)]).unwrap_err().to_string();
            assert!(said.contains("`x-tenant`") && !said.contains("s3cr3t"), "{said}");
        }
    }
}
