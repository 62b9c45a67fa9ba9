//! What requests a route covers: a method, and what each segment of the path has to be.
//!
//! A segment is a literal, or one parameter, which may have letters before and after it: `{id}`, `{id}.json`, `v{major}`.
//! A parameter stands for at least one character and never for a slash. With one parameter to a segment there is one
//! way to read it, so every program that knows the pattern finds the same value.

use std::cmp::{Ordering, Reverse};

use crate::ambiguous::Ambiguous;
use crate::canonical::{CanonicalPath, CanonicalRequest, canonical_method};

/// Method and path of a route, `GET /accounts/{id}`, as they are compared with requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoutePattern {
    /// `None` is any method.
    method: Option<String>,
    segments: Vec<SegmentPattern>,
}

/// What one segment has to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SegmentPattern {
    Literal(String),
    /// Any text of at least one character between these two; both are empty for a whole segment.
    Parameter {
        before: String,
        after: String,
    },
}

/// A segment of a route's path as it is written: a parameter with the letters around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenParameter<'t> {
    /// What stands before the parameter.
    pub before: &'t str,
    /// The parameter's name, without braces; any text.
    pub name: &'t str,
    /// What stands after it.
    pub after: &'t str,
}

/// Why a line is no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadTemplate {
    /// It is not two words.
    #[error("`{0}` is not a route; write a method or `*`, one space and a path")]
    Form(String),
    /// Two programs could read its method or path in two ways.
    #[error("in `{0}`: {1}")]
    Ambiguous(String, Ambiguous),
    /// No request is brought to this spelling.
    #[error("in `{0}`: the path is not in canonical form, which is like `{1}`")]
    NotCanonical(String, String),
    /// A slash that makes no difference.
    #[error("in `{0}`: leave out the last slash; the route covers both spellings")]
    LastSlash(String),
    /// Braces around what is no name.
    #[error("in `{0}`: `{1}` is not a parameter; name it like `{{id}}`")]
    NoParameter(String, String),
    /// A segment with more than one parameter.
    #[error("in `{0}`: `{1}` has two parameters; write one, which stands for all of that part of the segment")]
    TwoInOne(String, String),
    /// Two parameters of one name.
    #[error("in `{0}`: the parameter `{1}` appears twice")]
    Twice(String, String),
}

/// Text in place of a parameter while the path around it is judged: a letter that is no hexadecimal digit, so that it
/// becomes part of no escape, and that separates what stands before from what stands after.
const STAND_IN: &str = "x";

// === impl RoutePattern ===

impl RoutePattern {
    /// Reads a route's method and path.
    ///
    /// # Errors
    /// Why they are none.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        // A fault is one line, whatever TOML's escapes put into a template.
        let shown = || text.escape_debug().to_string();
        let (method, path) = text.split_once(' ').ok_or_else(|| BadTemplate::Form(shown()))?;
        let method = match method {
            "*" => None,
            method => Some(
                canonical_method(method)
                    .map_err(|why| BadTemplate::Ambiguous(shown(), why))?
                    .to_owned(),
            ),
        };

        // The path must already be the one spelling that requests are brought to, or no request would ever match it.
        // Parameters are no part of that: a plain word stands in for each of them.
        let written: Vec<(&str, Option<WrittenParameter<'_>>)> = path
            .split('/')
            .map(|segment| (segment, WrittenParameter::of(segment)))
            .collect();
        let stand_ins: Vec<String> = written
            .iter()
            .map(|(segment, parameter)| parameter.map_or_else(|| (*segment).to_owned(), |p| p.with(STAND_IN)))
            .collect();
        let mut names = Vec::new();
        for (segment, parameter) in &written {
            let Some(WrittenParameter { name, after, .. }) = parameter else {
                continue;
            };
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
            if after.contains('{') {
                return Err(BadTemplate::TwoInOne(shown(), segment.escape_debug().to_string()));
            }
            if name.is_empty() || !name.bytes().all(word) {
                return Err(BadTemplate::NoParameter(shown(), segment.escape_debug().to_string()));
            }
            if names.contains(name) {
                return Err(BadTemplate::Twice(shown(), format!("{{{name}}}")));
            }
            names.push(name);
        }
        let stand_in = stand_ins.join("/");
        let canonical =
            CanonicalPath::parse(stand_in.as_bytes()).map_err(|why| BadTemplate::Ambiguous(shown(), why))?;
        if canonical.text != stand_in {
            return Err(BadTemplate::NotCanonical(shown(), canonical.text));
        }
        if path.len() > 1 && path.ends_with('/') {
            return Err(BadTemplate::LastSlash(shown()));
        }
        let segments = written
            .iter()
            .skip(1)
            .zip(canonical.segments)
            .map(|((_, parameter), meaning)| match parameter {
                Some(parameter) => SegmentPattern::around(parameter, &meaning),
                None => SegmentPattern::Literal(meaning),
            })
            .collect();
        Ok(Self { method, segments })
    }

    /// Its method; none is any.
    pub(super) fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }

    /// How many segments a request must have.
    pub(super) fn length(&self) -> usize {
        self.segments.len()
    }

    /// Whether the request has this method and path.
    pub(super) fn covers(&self, request: &CanonicalRequest) -> bool {
        request.path() != "*"
            && self.method.as_deref().is_none_or(|method| method == request.method())
            && self.segments.len() == request.segments().len()
            && self
                .segments
                .iter()
                .zip(request.segments())
                .all(|(pattern, segment)| pattern.covers(segment))
    }

    /// Whether some request is covered by both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let methods = match (&self.method, &other.method) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        methods
            && self.segments.len() == other.segments.len()
            && self
                .segments
                .iter()
                .zip(&other.segments)
                .all(|(one, other)| one.overlaps(other))
    }

    /// The more specific first. Equal only for patterns that cover exactly the same requests.
    pub(super) fn precedence(&self, other: &Self) -> Ordering {
        let segments = self.segments.iter().map(SegmentPattern::rank);
        segments
            .cmp(other.segments.iter().map(SegmentPattern::rank))
            .then_with(|| self.method.is_none().cmp(&other.method.is_none()))
            .then_with(|| self.method.cmp(&other.method))
    }
}

// === impl SegmentPattern ===

impl SegmentPattern {
    /// A parameter, of the segment's meaning with the stand-in in it.
    fn around(written: &WrittenParameter<'_>, meaning: &str) -> Self {
        // INVARIANT: the segment is canonical, so each escape in it is three bytes that mean one.
        let escapes = written.before.bytes().filter(|byte| *byte == b'%').count();
        let start = written.before.len().saturating_sub(2 * escapes);
        let (before, rest) = meaning.split_at_checked(start).unwrap_or((meaning, ""));
        Self::Parameter {
            before: before.to_owned(),
            after: rest.strip_prefix(STAND_IN).unwrap_or(rest).to_owned(),
        }
    }

    fn covers(&self, segment: &str) -> bool {
        match self {
            Self::Literal(literal) => literal == segment,
            Self::Parameter { before, after } => segment
                .strip_prefix(before.as_str())
                .and_then(|rest| rest.strip_suffix(after.as_str()))
                .is_some_and(|value| !value.is_empty()),
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Literal(one), other) => other.covers(one),
            (one, Self::Literal(other)) => one.covers(other),
            // The longer beginning, one character and the longer end is covered by both, if by any.
            (
                Self::Parameter { before, after },
                Self::Parameter {
                    before: other_before,
                    after: other_after,
                },
            ) => {
                (before.starts_with(other_before.as_str()) || other_before.starts_with(before.as_str()))
                    && (after.ends_with(other_after.as_str()) || other_after.ends_with(after.as_str()))
            }
        }
    }

    /// A literal before a parameter; of two parameters the one with more letters around it, of two with as many the one
    /// with more before it. What comes after that in the order never covers the same segment.
    fn rank(&self) -> (bool, Reverse<usize>, Reverse<usize>, &str, &str) {
        match self {
            Self::Literal(literal) => (false, Reverse(0), Reverse(0), literal, ""),
            Self::Parameter { before, after } => (
                true,
                Reverse(before.len() + after.len()),
                Reverse(before.len()),
                before,
                after,
            ),
        }
    }
}

// === impl WrittenParameter ===

impl<'t> WrittenParameter<'t> {
    /// The first parameter of a segment; none in a literal. The rest of the segment, and its name, can be anything.
    pub fn of(segment: &'t str) -> Option<Self> {
        let (before, rest) = segment.split_once('{')?;
        let (name, after) = rest.split_once('}')?;
        Some(Self { before, name, after })
    }

    /// The segment with other text in the parameter's place.
    pub fn with(&self, text: &str) -> String {
        format!("{}{text}{}", self.before, self.after)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> RoutePattern {
        RoutePattern::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn covers(route: &str, target: &str) -> bool {
        pattern(route).covers(&CanonicalRequest::parse("GET", &[b"x"], target.as_bytes()).unwrap())
    }

    #[test]
    fn a_parameter_has_letters_before_and_after_it() {
        for (route, target, expected) in [
            ("GET /calls/{sid}.json", "/calls/CA1.json", true),
            ("GET /calls/{sid}.json", "/calls/CA1.json/", true),
            ("GET /calls/{sid}.json", "/calls/CA1%2Ejson", true),
            ("GET /calls/{sid}.json", "/calls/a.json.json", true),
            ("GET /calls/{sid}.json", "/calls/.json", false),
            ("GET /calls/{sid}.json", "/calls/CA1", false),
            ("GET /calls/{sid}.json", "/calls/CA1.JSON", false),
            ("GET /calls/{sid}.json", "/calls/CA1.json/x", false),
            ("GET /calls/{sid}.json", "/calls/a%3F.json", true),
            ("GET /v{major}/x", "/v1/x", true),
            ("GET /v{major}/x", "/v/x", false),
            ("GET /users('{id}')", "/users('7')", true),
            ("GET /users('{id}')", "/users(%277%27)", true),
            ("GET /users('{id}')", "/users('')", false),
            ("GET /jobs/{id}:cancel", "/jobs/7%3Acancel", true),
            ("GET /caf%C3%A9-{x}-%20", "/caf%c3%a9-7-%20", true),
            ("GET /x{x}x", "/xxx", true),
            ("GET /x{x}x", "/xx", false),
            // The beginning and the end do not share a letter.
            ("GET /aba{x}ba", "/ababa", false),
            ("GET /aba{x}ba", "/abaxba", true),
            ("GET /%C3%A9{x}", "/%C3%A9%C3%A9", true),
        ] {
            assert_eq!(covers(route, target), expected, "{route}: {target}");
        }
    }

    #[test]
    fn what_is_no_parameter_is_refused() {
        for (route, reason) in [
            ("GET /{a}.{b}", "`{a}.{b}` has two parameters"),
            ("GET /{a}{b}", "has two parameters"),
            ("GET /x{}", "`x{}` is not a parameter"),
            ("GET /{+a}.json", "is not a parameter"),
            ("GET /{a{b}", "is not a parameter"),
            ("GET /a}{b", "canonical"),
            ("GET /{a}}", "canonical"),
            ("GET /}{a}", "canonical"),
            ("GET /{a", "canonical"),
            ("GET /{a}.json/{a}", "`{a}` appears twice"),
            ("GET /%4{a}", "without two hexadecimal digits"),
            ("GET /%{a}1", "without two hexadecimal digits"),
            ("GET /%C3{a}%A9", "UTF-8"),
            ("GET /{a}%2Ejson", "like `/x.json`"),
            ("GET /{a};v=1", "`;`"),
            ("GET /{a}%2Fb", "encoded slash"),
        ] {
            let said = RoutePattern::parse(route).unwrap_err().to_string();
            assert!(said.contains(reason), "{route}: {said}");
        }
    }

    /// A segment of few letters, so that patterns meet often.
    fn written() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ab]{1,3}",
            "[ab]{0,2}".prop_flat_map(|before| "[ab]{0,2}".prop_map(move |after| format!("{before}{{p}}{after}"))),
        ]
    }

    /// Whether a text is what is written, by trying every place where the parameter could begin and end.
    fn naive(written: &str, text: &str) -> bool {
        match WrittenParameter::of(written) {
            None => written == text,
            Some(parameter) => (0..text.len()).any(|start| {
                (start + 1..=text.len())
                    .any(|end| parameter.with(&text[start..end]) == text && parameter.before.len() == start)
            }),
        }
    }

    proptest! {
        #[test]
        fn a_segment_is_covered_as_a_naive_reader_finds(written in written(), text in "[ab]{1,6}") {
            prop_assert_eq!(covers(&format!("GET /{written}"), &format!("/{text}")), naive(&written, &text));
        }

        /// All texts up to a length that holds the longest witness.
        #[test]
        fn patterns_overlap_when_one_text_is_both(one in written(), other in written()) {
            let texts = (1..=6_u32).flat_map(|length| {
                (0..1_u32 << length).map(move |bits| (0..length).map(|at| if bits >> at & 1 == 0 { 'a' } else { 'b' }).collect::<String>())
            });
            let both = texts.into_iter().any(|text| naive(&one, &text) && naive(&other, &text));
            let (first, second) = (pattern(&format!("GET /{one}")), pattern(&format!("* /{other}")));
            prop_assert_eq!(first.overlaps(&second), both, "{} {}", one, other);
            prop_assert_eq!(second.overlaps(&first), both);
        }
    }
}
