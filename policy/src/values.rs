//! What each attribute and entity of the schema can be. A word of a policy that is none of it is dead: no request, clock or
//! identity ever equals it, so a permit is silently a "no" and a forbid silently a "yes".

use crate::canonical::{CanonicalPath, CanonicalRequest, PATH_BYTES_MAX, SEGMENTS_MAX};
use crate::headers::canonical_value;
use crate::request::{DAYS, PATH_GROUPS_MAX};
use crate::routes::RouteTable;
use crate::schema::VOCABULARY;
use crate::source::ROUTES_FILE;
use cedar_policy::EntityUid;
use hoplite_identity::{InvalidServiceName, InvalidSpiffeId, ServiceName, SpiffeId, TrustDomain};

/// The row of every selected header.
pub(crate) const ANY_HEADER: &str = "context.hdr.*";

/// What there is of each word of the schema. Actions are not here: the schema itself lists them, and no other validates.
pub(crate) const VALUES: &[(&str, Values)] = &[
    ("Hoplite::TrustDomain", Values::Name),
    ("Hoplite::Path", Values::Name),
    ("Hoplite::Workload", Values::Name),
    ("Hoplite::Service", Values::Name),
    ("Hoplite::Route", Values::Name),
    ("context.conn", Values::Record),
    ("context.conn.src", Values::Address),
    ("context.conn.now", Values::Instant),
    ("context.conn.dow", Values::Text(TextKind::Day)),
    ("context.host", Values::Text(TextKind::Host)),
    ("context.seg", Values::Record),
    ("context.seg.n", Values::Number(0, SEGMENTS_MAX as i64)),
    ("context.seg.s0", Values::Text(TextKind::Segment)),
    ("context.seg.s1", Values::Text(TextKind::Segment)),
    ("context.seg.s2", Values::Text(TextKind::Segment)),
    ("context.seg.s3", Values::Text(TextKind::Segment)),
    ("context.hdr", Values::Record),
    (ANY_HEADER, Values::Text(TextKind::Header)),
];

/// The values of one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// A record: its attributes have rows of their own.
    Record,
    /// The name of an entity, see [`check_name`].
    Name,
    /// One address; IPv4-mapped IPv6 is given as IPv4.
    Address,
    /// A whole second of the years 1970 to 9999.
    Instant,
    /// Midnight: what `toDate()` makes of an instant.
    Midnight,
    /// Whole seconds since midnight: what `toTime()` makes of an instant.
    TimeOfDay,
    /// A number of this range.
    Number(i64, i64),
    /// A text.
    Text(TextKind),
}

/// The texts there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextKind {
    /// A day of the week.
    Day,
    /// The host of a canonical request.
    Host,
    /// A segment of the path of a canonical request.
    Segment,
    /// The value of a selected header.
    Header,
}

/// Why a text is dead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeadText {
    #[error("`{0}` is no day of the week; `context.conn.dow` is one of {known}", known = days())]
    Day(String),
    #[error("no request has the host `{0}`; the host is in lower case, without port and trailing dot: write `{1}`")]
    HostSpelling(String, String),
    #[error(
        "no request has the host `{0}`; a host is letters, digits, `-`, `_` and `.` in lower case, or an IPv6 address in \
         brackets, without port"
    )]
    Host(String),
    #[error("no request has `{0}` there, which is an identity; write `principal in Hoplite::Path::\"…\"`")]
    Identity(String),
    #[error(
        "no request has the segment `{0}`; a segment is decoded once, never empty, `.` or `..`, and has no `/`, `\\` or \
         control characters: compare segments one by one, `context.seg.s0 == \"admin\"`"
    )]
    Segment(String),
    #[error(
        "no request has this value of a selected header, `{0}`; it is visible ASCII without comma, with spaces only inside"
    )]
    Header(String),
}

/// Why no request has a name in it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSuchName {
    #[error("no workload is called `{0}`: {1}")]
    Workload(String, InvalidSpiffeId),
    #[error(
        "no workload is called `{id}`, which is a trust domain; write `principal in \
         Hoplite::TrustDomain::\"{trust_domain}\"`"
    )]
    WholeTrustDomain { id: String, trust_domain: TrustDomain },
    #[error("the path `{0}` is a trust domain; write `Hoplite::TrustDomain::\"{0}\"`")]
    PathOfTrustDomain(String),
    #[error("no workload is below the path `{0}`: {1}")]
    Path(String, InvalidSpiffeId),
    #[error("nobody is let in whose name has more than {PATH_GROUPS_MAX} segments, as `{0}` has; name a shorter path")]
    TooDeep(String),
    #[error("there is no trust domain `{0}`: {1}")]
    TrustDomain(String, InvalidSpiffeId),
    #[error(transparent)]
    Service(#[from] InvalidServiceName),
    #[error(
        "`{ROUTES_FILE}` has no route `{0}`; add it there, or write the route as it stands there, after `service:`"
    )]
    Route(String),
    #[error("`{ROUTES_FILE}` has no route `{0}`; write `{1}`, which stands there")]
    OtherSpelling(String, String),
}

fn days() -> String {
    DAYS.map(|day| format!("`{day}`")).join(", ")
}

/// The row of a word, if it is one of the schema.
pub(crate) fn values_of(word: &str) -> Option<Values> {
    let row = VALUES.iter().find(|(other, _)| *other == word);
    row.map(|(_, values)| *values)
}

// === impl TextKind ===

impl TextKind {
    /// Whether there is such a text.
    ///
    /// # Errors
    /// Why not, and what to write instead.
    pub(crate) fn check(self, text: &str) -> Result<(), DeadText> {
        let start = || text.chars().take(120).collect::<String>().escape_debug().to_string();
        match self {
            Self::Day => DAYS.contains(&text).then_some(()).ok_or_else(|| DeadText::Day(start())),
            // The reader of requests is asked, so that there is no second rule of what it reads.
            Self::Host => match CanonicalRequest::parse("GET", &[text.as_bytes()], b"/") {
                Ok(request) if request.host() == text => Ok(()),
                Ok(request) => Err(DeadText::HostSpelling(start(), request.host().to_owned())),
                Err(_) if is_identity(text) => Err(DeadText::Identity(start())),
                Err(_) => Err(DeadText::Host(start())),
            },
            Self::Segment => {
                let mut path = String::from("/");
                for byte in text.bytes() {
                    path.push_str(&format!("%{byte:02X}"));
                }
                // The escapes of a long one are longer than a path may be, and it need not be written with them.
                let read = CanonicalPath::parse(path.as_bytes()).map(|path| path.segments);
                let is_read = read.is_ok_and(|segments| matches!(&*segments, [one] if one == text));
                let is_long =
                    path.len() > PATH_BYTES_MAX && text.len() < PATH_BYTES_MAX && !text.contains(is_separator);
                (is_read || is_long)
                    .then_some(())
                    .ok_or_else(|| DeadText::Segment(start()))
            }
            Self::Header => canonical_value(text.as_bytes())
                .filter(|value| !value.contains(','))
                .map(|_| ())
                .ok_or_else(|| DeadText::Header(start())),
        }
    }

    /// Whether there is a text that matches a pattern, whose wildcards are `None`. Of a pattern that no text matches this
    /// may still say yes; never the other way round.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn check_pattern(self, pattern: &[Option<char>]) -> Result<(), DeadText> {
        let shown: String = pattern.iter().take(120).map(|c| c.unwrap_or('*')).collect();
        let shown = || shown.escape_debug().to_string();
        let mut letters = pattern.iter().flatten().copied();
        let ends = |end: Option<&Option<char>>, allowed: &str| match end {
            Some(Some(c)) => allowed.contains(*c),
            _ => true,
        };
        match self {
            Self::Day => {
                // INVARIANT: two wildcards never stand together, so a pattern this short has few of them.
                let some = letters.count() <= 3
                    && DAYS
                        .iter()
                        .any(|day| matches(&day.chars().collect::<Vec<_>>(), pattern));
                some.then_some(()).ok_or_else(|| DeadText::Day(shown()))
            }
            Self::Host => {
                let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.:[]".contains(c);
                let is_address = pattern.iter().flatten().any(|c| "[]:".contains(*c));
                let in_brackets = ends(pattern.first(), "[") && ends(pattern.last(), "]");
                let dots = pattern.windows(2).any(|pair| pair == [Some('.'), Some('.')]);
                let edge = [pattern.first(), pattern.last()].contains(&Some(&Some('.')));
                let good = letters.all(legal) && (!is_address || in_brackets) && !dots && !edge;
                let lower: String = shown().to_lowercase();
                match good {
                    true if !pattern.is_empty() => Ok(()),
                    _ if is_identity(&shown()) => Err(DeadText::Identity(shown())),
                    _ if lower != shown() => Err(DeadText::HostSpelling(shown(), lower)),
                    _ => Err(DeadText::Host(shown())),
                }
            }
            Self::Segment => {
                let dead = letters.any(is_separator) || pattern.is_empty();
                (!dead).then_some(()).ok_or_else(|| DeadText::Segment(shown()))
            }
            Self::Header => {
                let legal = |c: char| (c.is_ascii_graphic() || c == ' ') && c != ',';
                let edge = [pattern.first(), pattern.last()].contains(&Some(&Some(' ')));
                let good = letters.all(legal) && !edge && !pattern.is_empty();
                good.then_some(()).ok_or_else(|| DeadText::Header(shown()))
            }
        }
    }
}

/// Whether a text is a SPIFFE ID, or begins as one.
fn is_identity(text: &str) -> bool {
    let scheme = text.trim_start_matches('*').get(.."spiffe:".len());
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"))
}

/// Characters that no segment has, however it is written.
fn is_separator(c: char) -> bool {
    c == '/' || c == '\\' || c.is_ascii_control()
}

/// Whether a text matches a pattern, as `like` does.
fn matches(text: &[char], pattern: &[Option<char>]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((None, rest)) => (0..=text.len()).any(|skipped| matches(text.get(skipped..).unwrap_or_default(), rest)),
        Some((Some(c), rest)) => text
            .split_first()
            .is_some_and(|(first, others)| first == c && matches(others, rest)),
    }
}

// === impl NoSuchName ===

impl NoSuchName {
    /// What is wrong and what to do.
    pub(crate) fn message(&self) -> String {
        let message = self.to_string();
        let help = match self {
            Self::Workload(..) => "write a whole SPIFFE ID, `spiffe://prod.acme/ns/pay`",
            Self::Path(..) => "write whole segments without scheme and wildcard, `prod.acme/ns/pay`",
            Self::TrustDomain(..) => "write its bare name, `prod.acme`",
            _ => return message,
        };
        if message.contains("; ") {
            message
        } else {
            format!("{message}; {help}")
        }
    }
}

/// Whether any request can have this name in it, whatever routes there are.
///
/// # Errors
/// Why not.
pub(crate) fn check_name(uid: &EntityUid) -> Result<(), NoSuchName> {
    let (kind, id) = (uid.type_name(), uid.id().unescaped());
    let start = || id.chars().take(120).collect::<String>();
    if *kind == VOCABULARY.workload {
        return match SpiffeId::parse(id) {
            Ok(spiffe) if spiffe.is_trust_domain() => Err(NoSuchName::WholeTrustDomain {
                id: start(),
                trust_domain: spiffe.trust_domain().clone(),
            }),
            Ok(spiffe) if spiffe.segments().count() > PATH_GROUPS_MAX => Err(NoSuchName::TooDeep(start())),
            Ok(_) => Ok(()),
            Err(why) => Err(NoSuchName::Workload(start(), why)),
        };
    }
    if *kind == VOCABULARY.path {
        return match SpiffeId::parse(&format!("spiffe://{id}")) {
            Ok(spiffe) if spiffe.is_trust_domain() => Err(NoSuchName::PathOfTrustDomain(start())),
            Ok(spiffe) if spiffe.segments().count() > PATH_GROUPS_MAX => Err(NoSuchName::TooDeep(start())),
            Ok(_) => Ok(()),
            Err(why) => Err(NoSuchName::Path(start(), why)),
        };
    }
    if *kind == VOCABULARY.trust_domain {
        return match TrustDomain::parse(id) {
            Ok(_) => Ok(()),
            Err(why) => Err(NoSuchName::TrustDomain(start(), why)),
        };
    }
    if *kind == VOCABULARY.service {
        return Ok(ServiceName::check(id)?);
    }
    Ok(())
}

/// Whether any request can have this route.
///
/// # Errors
/// The table does not have it; the one that was meant, if one looks like it.
pub(crate) fn check_route(uid: &EntityUid, routes: &RouteTable) -> Result<(), NoSuchName> {
    let id = uid.id().unescaped();
    if *uid.type_name() != VOCABULARY.route || routes.has(id) {
        return Ok(());
    }
    let start = id.chars().take(120).collect::<String>();
    Err(match routes.meant(id) {
        Some(route) => NoSuchName::OtherSpelling(start, route.to_string()),
        None => NoSuchName::Route(start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SCHEMA;
    use crate::schema::tests::words;

    #[test]
    fn every_word_of_the_schema_has_a_row() {
        let mut words: Vec<String> = words(SCHEMA)
            .into_iter()
            .filter(|word| word.contains(['.', ':']))
            .collect();
        words.extend(["context.hdr".to_owned(), ANY_HEADER.to_owned()]); // they are there where headers are selected
        let mut rows: Vec<&str> = VALUES.iter().map(|(word, _)| *word).collect();
        rows.sort_unstable();
        words.sort_unstable();
        assert_eq!(rows, words, "policy/src/values.rs against hoplite.cedarschema");
    }

    #[test]
    fn texts() {
        let check = |kind: TextKind, text: &str, expected: &str| {
            let found = kind.check(text).err().map(|dead| dead.to_string()).unwrap_or_default();
            assert!(
                found.contains(expected) && found.is_empty() == expected.is_empty(),
                "{text}: {found}"
            );
        };
        for day in DAYS {
            check(TextKind::Day, day, "");
        }
        for bad in ["Monday", "mon", "MON", ""] {
            check(TextKind::Day, bad, "is one of `Thu`");
        }
        for good in ["ledger", "ledger.acme", "10.0.0.1", "[::1]", "a_b-c"] {
            check(TextKind::Host, good, "");
        }
        check(TextKind::Host, "Ledger.acme", "write `ledger.acme`");
        check(TextKind::Host, "ledger.acme:8443", "write `ledger.acme`");
        check(TextKind::Host, "ledger.acme.", "write `ledger.acme`");
        check(TextKind::Host, "[0:0::1]", "write `[::1]`");
        for bad in ["", "https://ledger", "led ger", "*.acme", "bücher"] {
            check(TextKind::Host, bad, "no request has the host");
        }
        for good in ["admin", "a b", "a%20b", "{id}", "é", "...", "a:b;c", &"a".repeat(8_000)] {
            check(TextKind::Segment, good, "");
        }
        for bad in ["", ".", "..", "a/b", "a\\b", "a\nb", "\0", &"a".repeat(9_000)] {
            check(TextKind::Segment, bad, "no request has the segment");
        }
        check(TextKind::Header, "application/json; q=1", "");
        for bad in ["", " a", "a,b", "é", &"a".repeat(257)] {
            check(TextKind::Header, bad, "selected header");
        }
    }

    #[test]
    fn patterns() {
        let check = |kind: TextKind, pattern: &str, good: bool| {
            let elements: Vec<_> = pattern.chars().map(|c| (c != '*').then_some(c)).collect();
            assert_eq!(kind.check_pattern(&elements).is_ok(), good, "{pattern}");
        };
        for (kind, pattern, good) in [
            (TextKind::Day, "S*", true),
            (TextKind::Day, "*n", true),
            (TextKind::Day, "Satur*", false),
            (TextKind::Host, "*.acme.internal", true),
            (TextKind::Host, "ledger*", true),
            (TextKind::Host, "[*", true),
            (TextKind::Host, "*::1]", true),
            (TextKind::Host, "*", true),
            (TextKind::Host, "*.ACME", false),
            (TextKind::Host, "*:8443", false),
            (TextKind::Host, "ledger:*", false),
            (TextKind::Host, "*/admin", false),
            (TextKind::Host, "*.acme.", false),
            (TextKind::Segment, "adm*", true),
            (TextKind::Segment, "*%20*", true),
            (TextKind::Segment, "admin/*", false),
            (TextKind::Header, "*json", true),
            (TextKind::Header, "*, *", false),
        ] {
            check(kind, pattern, good);
        }
    }
}
