//! Templates of SPIFFE IDs: one registration for many workloads, each named by what is attested of it.
//!
//! `spiffe://prod.example/k8s/{k8s:ns}/{k8s:sa}` is a fixed prefix, and placeholders that each are a whole segment of the path. A value
//! that is no segment, or of which there are two, gives no name: nothing is replaced, shortened or spelt otherwise, so two workloads of
//! which different values are attested never come to one name. What stands before the first placeholder no value can change.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::reserved::RESERVED;
use crate::{Excerpt, InvalidSelector, InvalidSpiffeId, Selector, SelectorKind, SpiffeId, TrustDomain};

/// What opens and closes a placeholder; no SPIFFE ID has either.
const BRACES: [char; 2] = ['{', '}'];

/// The longest template, in bytes: its names can be as long (ID-4).
const TEMPLATE_BYTES_MAX: usize = 2048;

/// A SPIFFE ID with placeholders for attested values. All its names lie beneath its prefix, and none is of Hoplite's own parts.
#[derive(Clone)]
pub struct SpiffeIdTemplate {
    text: Arc<str>,
    prefix: SpiffeId,
    /// What follows the prefix.
    segments: Arc<[Segment]>,
}

/// A name that a template gives, and the values that it is made of. Only the template makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expansion {
    spiffe_id: SpiffeId,
    values: BTreeSet<Selector>,
}

/// What an entry calls its workloads: all by one SPIFFE ID, or each by a template. Written as either is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryName {
    /// One SPIFFE ID.
    Id(SpiffeId),
    /// One for each set of values.
    Template(SpiffeIdTemplate),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Fixed(Box<str>),
    Value(SelectorKind),
}

/// Why a text is no template. Each message names what was written and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTemplate {
    /// Nothing to fill in.
    #[error("`{0}` has no placeholder; write one as `{{unix:user}}`")]
    NoPlaceholder(Excerpt),
    /// Values could be the whole path, or the trust domain.
    #[error(
        "`{0}` has a placeholder in its trust domain or first segment; begin with a fixed segment, as `spiffe://prod.example/user/{{unix:user}}`"
    )]
    NoPrefix(Excerpt),
    /// Its names would be those of Hoplite's own parts.
    #[error("`{0}` begins with `/{RESERVED}`, which is for Hoplite's own parts; choose another path")]
    Reserved(Excerpt),
    /// A placeholder beside other characters: two pairs of values could give one name.
    #[error("`{0}` is not a whole placeholder; a placeholder is all of its segment, `/{{unix:user}}/`")]
    Partial(Excerpt),
    /// No attestor finds out anything of this kind.
    #[error("`{{{written}}}`: {reason}")]
    Kind {
        /// What stands between the braces.
        written: Excerpt,
        /// What is wrong with it.
        reason: InvalidSelector,
    },
    /// It is attested of nodes only.
    #[error("`{{{0}}}`: no process has `{0}`, which says something about a node")]
    NotOfProcesses(SelectorKind),
    /// None of its values can be a segment of a path.
    #[error("`{{{0}}}`: no value of `{0}` is a path segment; of processes these can be: {kinds}", kinds = usable())]
    NeverASegment(SelectorKind),
    /// One value in two places says nothing more.
    #[error("`{{{0}}}` stands in it twice; once says all")]
    Twice(SelectorKind),
    /// What is fixed of it is no part of a SPIFFE ID.
    #[error(transparent)]
    SpiffeId(#[from] InvalidSpiffeId),
}

/// Why a text is neither a SPIFFE ID nor a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntryName {
    /// It has no brace.
    #[error(transparent)]
    SpiffeId(#[from] InvalidSpiffeId),
    /// It has one.
    #[error(transparent)]
    Template(#[from] InvalidTemplate),
}

/// Why values give no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoName {
    /// Nothing of the kind is attested.
    #[error("`{template}` needs a value of `{kind}`, and there is none")]
    Missing {
        /// What was to be filled in.
        template: SpiffeIdTemplate,
        /// The kind of which there is none.
        kind: SelectorKind,
    },
    /// Either could be meant.
    #[error("`{template}` needs one value of `{kind}`, and there are several, `{one}` and `{two}`")]
    Ambiguous {
        /// What was to be filled in.
        template: SpiffeIdTemplate,
        /// The kind of which there are several.
        kind: SelectorKind,
        /// The first.
        one: Selector,
        /// Another one.
        two: Selector,
    },
    /// A value for which there is no place.
    #[error("`{name}` has no place for `{value}`")]
    NoPlace {
        /// What was to be filled in.
        name: EntryName,
        /// The value.
        value: Selector,
    },
    /// A value that the entry itself rules out.
    #[error("the entry is for processes with `{registered}`, and not `{value}`")]
    Contradicts {
        /// What the entry demands.
        registered: Selector,
        /// The value.
        value: Selector,
    },
    /// No path segment, and nothing is made of it that is one.
    #[error("`{value}` cannot stand in a SPIFFE ID, whose segments are of a-z, A-Z, 0-9, `.`, `-` and `_`")]
    NoSegment {
        /// The value.
        value: Selector,
    },
    /// What comes of it is no SPIFFE ID.
    #[error("`{template}` with these values: {reason}")]
    NoSpiffeId {
        /// What was to be filled in.
        template: SpiffeIdTemplate,
        /// The rule that is broken: the length.
        reason: InvalidSpiffeId,
    },
}

// === impl SpiffeIdTemplate ===

impl SpiffeIdTemplate {
    /// Parses a whole template.
    ///
    /// # Errors
    /// What is wrong with it; [`InvalidTemplate`].
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let shown = || Excerpt::of(text);
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(InvalidSpiffeId::TooLong(shown()).into());
        }
        let first = text
            .find(BRACES)
            .ok_or_else(|| InvalidTemplate::NoPlaceholder(shown()))?;
        let (fixed, _) = text.split_at(first);
        let (fixed, _) = fixed.rsplit_once('/').unwrap_or_default();
        let rest = text.get(fixed.len() + 1..).unwrap_or_default();
        let prefix = match SpiffeId::parse(fixed) {
            Ok(prefix) if !prefix.is_trust_domain() => prefix,
            // `spiffe://{…}` and `spiffe://prod.example/{…}`.
            _ if text.starts_with("spiffe://") && fixed.matches('/').count() < 3 => {
                return Err(InvalidTemplate::NoPrefix(shown()));
            }
            Ok(_) => return Err(InvalidTemplate::NoPrefix(shown())),
            Err(invalid) => return Err(invalid.into()),
        };
        if prefix.is_reserved() {
            return Err(InvalidTemplate::Reserved(shown()));
        }
        let mut segments = Vec::new();
        for segment in rest.split('/') {
            let segment = Segment::parse(segment, prefix.trust_domain())?;
            if let Segment::Value(kind) = segment
                && segments.contains(&segment)
            {
                return Err(InvalidTemplate::Twice(kind));
            }
            segments.push(segment);
        }
        Ok(Self {
            text: text.into(),
            prefix,
            segments: segments.into(),
        })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What every name begins with, by whole segments; no name is this itself.
    pub fn prefix(&self) -> &SpiffeId {
        &self.prefix
    }

    /// The kinds of which a workload needs a value, in the order of the path.
    pub fn kinds(&self) -> impl Iterator<Item = SelectorKind> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Value(kind) => Some(*kind),
            Segment::Fixed(_) => None,
        })
    }

    /// Whether a name could be one of its own: what is fixed is the same, and there are as many segments. For warnings.
    pub fn could_be(&self, id: &SpiffeId) -> bool {
        self.could_be_beneath(id) && id.segments().count() == self.prefix.segments().count() + self.segments.len()
    }

    /// Whether its names, or some of them, could be beneath this one, or be it. For warnings.
    pub fn could_be_beneath(&self, id: &SpiffeId) -> bool {
        let prefix = self.prefix.segments().map(Some);
        let own = prefix.chain(self.segments.iter().map(|segment| match segment {
            Segment::Fixed(fixed) => Some(&**fixed),
            Segment::Value(_) => None,
        }));
        let mut own = own.map(|fixed| move |text: &str| fixed.is_none_or(|fixed| fixed == text));
        let mut all = id.segments();
        self.prefix.trust_domain() == id.trust_domain() && all.all(|text| own.next().is_some_and(|fits| fits(text)))
    }

    /// The name of a process of which this much is attested.
    ///
    /// # Errors
    /// There is no value of a kind, or more than one, or one that is no path segment.
    pub fn name(&self, attested: &BTreeSet<Selector>) -> Result<Expansion, NoName> {
        let is_asked = |selector: &&Selector| self.kinds().any(|kind| kind == selector.kind());
        self.expand(attested.iter().filter(is_asked).cloned().collect())
    }

    /// The name by just these values: one of each kind, and no other.
    ///
    /// # Errors
    /// A value is missing, there are two of a kind or one of a kind that it does not name, or one is no path segment.
    pub fn expand(&self, values: BTreeSet<Selector>) -> Result<Expansion, NoName> {
        if let Some(value) = values
            .iter()
            .find(|value| !self.kinds().any(|kind| kind == value.kind()))
        {
            return Err(NoName::NoPlace {
                name: Self::clone(self).into(),
                value: value.clone(),
            });
        }
        let mut path = self.prefix.path().to_owned();
        for segment in &*self.segments {
            path.push('/');
            match segment {
                Segment::Fixed(fixed) => path.push_str(fixed),
                Segment::Value(kind) => path.push_str(self.value(*kind, &values)?),
            }
        }
        match self.prefix.trust_domain().member(&path) {
            Ok(spiffe_id) => Ok(Expansion { spiffe_id, values }),
            Err(reason) => Err(NoName::NoSpiffeId {
                template: self.clone(),
                reason,
            }),
        }
    }

    fn value<'a>(&self, kind: SelectorKind, values: &'a BTreeSet<Selector>) -> Result<&'a str, NoName> {
        let mut of_kind = values.iter().filter(|value| value.kind() == kind);
        let Some(one) = of_kind.next() else {
            let template = self.clone();
            return Err(NoName::Missing { template, kind });
        };
        if let Some(two) = of_kind.next() {
            return Err(NoName::Ambiguous {
                template: self.clone(),
                kind,
                one: one.clone(),
                two: two.clone(),
            });
        }
        // A value with a `/` would be two segments, and `..` none.
        match is_segment(one.value(), self.prefix.trust_domain()) {
            true => Ok(one.value()),
            false => Err(NoName::NoSegment { value: one.clone() }),
        }
    }
}

/// Whether a text can be one segment of a path, by the rules of SPIFFE IDs (ID-3).
fn is_segment(text: &str, trust_domain: &TrustDomain) -> bool {
    !text.contains('/') && trust_domain.member(&format!("/{text}")).is_ok()
}

fn usable() -> String {
    let usable = SelectorKind::ALL.into_iter().filter(|kind| kind.can_be_a_segment());
    let texts: Vec<String> = usable.map(|kind| format!("`{kind}`")).collect();
    texts.join(", ")
}

/// Two templates are equal when their texts are.
impl PartialEq for SpiffeIdTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeIdTemplate {}

impl std::hash::Hash for SpiffeIdTemplate {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Ord for SpiffeIdTemplate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl PartialOrd for SpiffeIdTemplate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for SpiffeIdTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeIdTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeIdTemplate {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

// === impl Segment ===

impl Segment {
    fn parse(text: &str, trust_domain: &TrustDomain) -> Result<Self, InvalidTemplate> {
        if !text.contains(BRACES) {
            // Whatever is wrong with it is said of the segment. An empty one at the end is a slash too many.
            trust_domain.member(&format!("/{text}"))?;
            return Ok(Self::Fixed(text.into()));
        }
        let between = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let between = between.filter(|between| !between.contains(BRACES));
        let written = between.ok_or_else(|| InvalidTemplate::Partial(Excerpt::of(text)))?;
        let kind: SelectorKind = written.parse().map_err(|reason| InvalidTemplate::Kind {
            written: Excerpt::of(written),
            reason,
        })?;
        match kind {
            kind if !kind.is_of_processes() => Err(InvalidTemplate::NotOfProcesses(kind)),
            kind if !kind.can_be_a_segment() => Err(InvalidTemplate::NeverASegment(kind)),
            kind => Ok(Self::Value(kind)),
        }
    }
}

// === impl Expansion ===

impl Expansion {
    /// Of what has one name, whatever is attested: there is no place for a value.
    pub(crate) fn of_one(id: &SpiffeId, values: BTreeSet<Selector>) -> Result<Self, NoName> {
        match values.first() {
            None => Ok(Self {
                spiffe_id: id.clone(),
                values,
            }),
            Some(value) => Err(NoName::NoPlace {
                name: id.clone().into(),
                value: value.clone(),
            }),
        }
    }

    /// The name.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// What it is made of: one selector of each kind that the template names.
    pub fn values(&self) -> &BTreeSet<Selector> {
        &self.values
    }

    /// Both.
    pub fn into_parts(self) -> (SpiffeId, BTreeSet<Selector>) {
        (self.spiffe_id, self.values)
    }
}

// === impl EntryName ===

impl EntryName {
    /// Parses either: whatever has a brace is a template.
    ///
    /// # Errors
    /// What is wrong with the one that it would be.
    pub fn parse(text: &str) -> Result<Self, InvalidEntryName> {
        match text.contains(BRACES) {
            true => Ok(Self::Template(SpiffeIdTemplate::parse(text)?)),
            false => Ok(Self::Id(SpiffeId::parse(text)?)),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Id(id) => id.as_str(),
            Self::Template(template) => template.as_str(),
        }
    }

    /// The trust domain of all its names.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.fixed().trust_domain()
    }

    /// What no value changes: the SPIFFE ID, or that beneath which all names of the template are.
    pub fn fixed(&self) -> &SpiffeId {
        match self {
            Self::Id(id) => id,
            Self::Template(template) => template.prefix(),
        }
    }

    /// The name of the nested CA that it is for; see [`SpiffeId::nested_ca`]. A template is for none.
    pub fn nested_ca(&self) -> Option<&str> {
        match self {
            Self::Id(id) => id.nested_ca(),
            Self::Template(_) => None,
        }
    }

    /// The template, if it is one.
    pub fn template(&self) -> Option<&SpiffeIdTemplate> {
        match self {
            Self::Id(_) => None,
            Self::Template(template) => Some(template),
        }
    }
}

impl From<SpiffeId> for EntryName {
    fn from(id: SpiffeId) -> Self {
        Self::Id(id)
    }
}

impl From<SpiffeIdTemplate> for EntryName {
    fn from(template: SpiffeIdTemplate) -> Self {
        Self::Template(template)
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EntryName {
    type Err = InvalidEntryName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for EntryName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for EntryName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(texts: &[&str]) -> BTreeSet<Selector> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn template(path: &str) -> SpiffeIdTemplate {
        SpiffeIdTemplate::parse(&format!("spiffe://prod.example{path}")).unwrap()
    }

    #[test]
    fn a_template_is_a_fixed_prefix_and_whole_segments_of_values() {
        let check = |text: &str, expected: &str| {
            let found = SpiffeIdTemplate::parse(text);
            let found = found.map_or_else(|error| error.to_string(), |found| format!("ok {}", found.prefix()));
            assert!(found.contains(expected), "{text}: expected `{expected}`, got `{found}`");
        };
        check("spiffe://td/user/{unix:user}", "ok spiffe://td/user");
        check("spiffe://td/k8s/{k8s:ns}/{k8s:sa}", "ok spiffe://td/k8s");
        check(
            "spiffe://td/cluster/a/ns/{k8s:ns}/sa/{k8s:sa}",
            "ok spiffe://td/cluster/a/ns",
        );
        check("spiffe://td/hoplites/{unix:uid}", "ok spiffe://td/hoplites");
        // A value cannot be the trust domain, the whole path, or its beginning.
        check(
            "spiffe://td/{unix:user}",
            "has a placeholder in its trust domain or first segment",
        );
        check("spiffe://td/{unix:user}/web", "first segment");
        check("spiffe://{unix:user}/web", "first segment");
        check("spiffe://{unix:user}", "first segment");
        check("{unix:user}", "does not start with `spiffe://`");
        check("https://td/a/{unix:user}", "does not start with `spiffe://`");
        check(
            "spiffe://td/a",
            "`spiffe://td/a` has no placeholder; write one as `{unix:user}`",
        );
        check("spiffe://td/hoplite/{unix:user}", "Hoplite's own parts");
        check("spiffe://td/hoplite/agent/{unix:user}", "Hoplite's own parts");
        check("spiffe://td/hoplite/operator/{unix:user}", "Hoplite's own parts");
        // Two pairs of values could give one name.
        check(
            "spiffe://td/a/{unix:user}-{unix:gid}",
            "`{unix:user}-{unix:gid}` is not a whole placeholder",
        );
        check("spiffe://td/a/u{unix:uid}", "is not a whole placeholder");
        check("spiffe://td/a/{unix:uid}x", "is not a whole placeholder");
        check("spiffe://td/a/{{unix:uid}}", "is not a whole placeholder");
        check("spiffe://td/a/{unix:uid", "is not a whole placeholder");
        check("spiffe://td/a/unix:uid}", "is not a whole placeholder");
        check("spiffe://td/a/}{", "is not a whole placeholder");
        check("spiffe://td/a/{}", "`{}`: `` is no selector kind");
        check(
            "spiffe://td/a/{unix:usr}",
            "`{unix:usr}`: `unix:usr` is no selector kind; did you mean `unix:u",
        );
        check("spiffe://td/a/{unix:uid:7}", "is no selector kind");
        check(
            "spiffe://td/a/{token:label}",
            "no process has `token:label`, which says something about a node",
        );
        check(
            "spiffe://td/a/{unix:path}",
            "no value of `unix:path` is a path segment; of processes these can be: `container:id`",
        );
        check("spiffe://td/a/{k8s:image}", "no value of `k8s:image`");
        check("spiffe://td/a/{systemd:user-unit}", "no value of `systemd:user-unit`");
        check("spiffe://td/a/{unix:uid}/{unix:uid}", "`{unix:uid}` stands in it twice");
        // What is fixed is by the rules of SPIFFE IDs.
        check("spiffe://td/a/../{unix:uid}", "`.` or `..`");
        check("spiffe://td/a//{unix:uid}", "ends with a `/`");
        check("spiffe://td/a/{unix:uid}/", "ends with a `/`");
        check("spiffe://td/a/{unix:uid}//b", "ends with a `/`");
        check("spiffe://td/a/{unix:uid}/..", "`.` or `..`");
        check("spiffe://td/a/{unix:uid}/%61", "percent-encoded");
        check("spiffe://td/a/{unix:uid}/b c", "has a character in its path");
        check("spiffe://Td/a/{unix:uid}", "has a character in its trust domain");
        check("spiffe://td:1/a/{unix:uid}", "has no port");
        check("spiffe://td/a?b/{unix:uid}", "has a query");
        let long = format!("spiffe://td/{}/{{unix:uid}}", "a".repeat(2048));
        check(&long, "longer than 2048 bytes");
    }

    #[test]
    fn values_give_one_name_or_none() {
        let check = |path: &str, attested: &[&str], expected: &str| {
            let found = template(path).name(&set(attested));
            let found = found.map_or_else(|error| error.to_string(), |found| found.spiffe_id().to_string());
            assert!(
                found.contains(expected),
                "{path} {attested:?}: expected `{expected}`, got `{found}`"
            );
        };
        let k8s = "/k8s/{k8s:ns}/{k8s:sa}";
        check(
            k8s,
            &["k8s:ns:pay", "k8s:sa:api", "unix:uid:7"],
            "spiffe://prod.example/k8s/pay/api",
        );
        check(
            "/ns/{k8s:ns}/sa/{k8s:sa}",
            &["k8s:ns:pay", "k8s:sa:api"],
            "spiffe://prod.example/ns/pay/sa/api",
        );
        check(k8s, &["k8s:ns:pay"], "needs a value of `k8s:sa`, and there is none");
        check(k8s, &[], "needs a value of `k8s:ns`");
        check(
            k8s,
            &["k8s:ns:pay", "k8s:ns:web", "k8s:sa:api"],
            "several, `k8s:ns:pay` and `k8s:ns:web`",
        );
        let user = "/user/{unix:user}";
        check(user, &["unix:user:ann"], "spiffe://prod.example/user/ann");
        check(user, &["unix:user:Ann_B-1.x"], "spiffe://prod.example/user/Ann_B-1.x");
        check(user, &["unix:user:hoplite"], "spiffe://prod.example/user/hoplite");
        check(user, &["unix:user:..."], "spiffe://prod.example/user/...");
        for bad in ["svc-$", "a/b", "../admin", ".", "..", "/", "a%2fb", "a@corp", "a?b"] {
            check(user, &[&format!("unix:user:{bad}")], "cannot stand in a SPIFFE ID");
        }
        let deep = format!("/{}/{{k8s:ns}}", "a".repeat(1900));
        check(
            &deep,
            &[&format!("k8s:ns:{}", "b".repeat(253))],
            "longer than 2048 bytes",
        );
    }

    #[test]
    fn whoever_names_values_names_just_those_that_are_asked_for() {
        let user = template("/user/{unix:user}");
        assert!(user.expand(set(&["unix:user:ann"])).is_ok());
        for values in [
            &["unix:user:ann", "unix:uid:7"][..],
            &["unix:uid:7"],
            &["unix:user:ann", "unix:user:bob"],
            &[],
        ] {
            assert!(user.expand(set(values)).is_err(), "{values:?}");
        }
        let error = user.expand(set(&["unix:uid:7"])).unwrap_err().to_string();
        assert!(error.ends_with("has no place for `unix:uid:7`"), "{error}");
    }

    #[test]
    fn which_names_could_be_its_own() {
        let check = |path: &str, expected: bool| {
            let id = SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap();
            assert_eq!(template("/ns/{k8s:ns}/sa/{k8s:sa}").could_be(&id), expected, "{path}");
        };
        check("/ns/pay/sa/api", true);
        check("/ns/pay/sb/api", false);
        check("/ns/pay/sa", false);
        check("/ns/pay/sa/api/x", false);
        check("/ns", false);
        check("/nsx/pay/sa/api", false);
        let beneath = |path: &str| {
            let id = SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap();
            template("/ns/{k8s:ns}/sa/{k8s:sa}").could_be_beneath(&id)
        };
        for path in ["", "/ns", "/ns/pay", "/ns/pay/sa", "/ns/pay/sa/api"] {
            assert!(beneath(path), "{path}");
        }
        for path in ["/n", "/ns/pay/sb", "/ns/pay/sa/api/x"] {
            assert!(!beneath(path), "{path}");
        }
        let other = SpiffeId::parse("spiffe://other.example/ns/pay/sa/api").unwrap();
        assert!(!template("/ns/{k8s:ns}/sa/{k8s:sa}").could_be(&other));
    }

    #[test]
    fn names_of_entries_are_either() {
        let name = |text: &str| EntryName::parse(text).map_err(|error| error.to_string());
        assert!(matches!(name("spiffe://td/a"), Ok(EntryName::Id(_))));
        let template = name("spiffe://td/a/{unix:uid}").unwrap();
        assert_eq!(
            (template.fixed().as_str(), template.as_str()),
            ("spiffe://td/a", "spiffe://td/a/{unix:uid}")
        );
        let json = serde_json::to_string(&template).unwrap();
        assert_eq!(serde_json::from_str::<EntryName>(&json).unwrap(), template);
        assert!(serde_json::from_str::<EntryName>(r#""spiffe://td/{unix:uid}""#).is_err());
        assert!(name("nonsense").unwrap_err().contains("`nonsense` does not start"));
    }

    /// Parts of templates, right and wrong, so that many of what is put together is nearly one.
    fn parts() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("{unix:user}".to_owned()),
            Just("{k8s:ns}".to_owned()),
            Just("{unix:path}".to_owned()),
            "[a-z.{}%]{0,4}",
            Just("hoplite".to_owned()),
        ];
        proptest::collection::vec(part, 0..5).prop_map(|parts| format!("spiffe://td/{}", parts.join("/")))
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_kept_byte_for_byte_and_nothing_panics(text in prop_oneof![parts(), "\\PC{0,40}"]) {
            match SpiffeIdTemplate::parse(&text) {
                Ok(template) => {
                    prop_assert_eq!(template.as_str(), &text);
                    prop_assert!(!template.prefix().is_trust_domain() && !template.prefix().is_reserved());
                    prop_assert!(template.kinds().count() >= 1);
                }
                Err(error) => prop_assert!(error.to_string().is_ascii()),
            }
        }

        /// Whatever is attested, a name is beneath the prefix, says each value in its place, and is nobody else's.
        #[test]
        fn a_name_is_beneath_the_prefix_and_its_values_can_be_read_from_it(
            ns in "[a-z0-9.-]{1,12}|\\.\\.|[a-z/]{1,5}",
            user in "[a-zA-Z0-9$@/._-]{1,12}",
            other in "[a-zA-Z0-9$@/._-]{1,12}",
        ) {
            let template = template("/by/{k8s:ns}/user/{unix:user}");
            let values = |user: &str| -> Option<BTreeSet<Selector>> {
                let ns = Selector::new(SelectorKind::K8sNs, &ns).ok()?;
                Some([ns, Selector::new(SelectorKind::UnixUser, user).ok()?].into())
            };
            let Some((first, second)) = values(&user).zip(values(&other)) else { return Ok(()) };
            let (first, second) = (template.name(&first), template.name(&second));
            if let Ok(name) = &first {
                prop_assert!(!name.spiffe_id().is_reserved() && template.could_be(name.spiffe_id()));
                let segments: Vec<&str> = name.spiffe_id().segments().collect();
                prop_assert_eq!(segments, ["by", &*ns, "user", &*user]);
            }
            if let (Ok(first), Ok(second)) = (&first, &second) {
                prop_assert_eq!(first == second, user == other);
                prop_assert_eq!(first.spiffe_id() == second.spiffe_id(), user == other);
            }
        }
    }
}
