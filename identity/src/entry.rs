//! Registration entries: which selectors, under which agent, earn which SPIFFE ID. One type for CA, agent and wire.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::federation::FEDERATES_WITH_MAX;
use crate::reserved::RESERVED;
use crate::{
    EntryName, Excerpt, Expansion, InvalidNodeGroup, InvalidSelector, InvalidSpiffeId, InvalidTemplate, NoName, Parent,
    Selector, SpiffeId, TrustDomain,
};

/// A process is described by a handful of facts; all of an entry's must be checked for each process.
const SELECTORS_MAX: usize = 32;
/// Each is copied into every certificate.
const DNS_NAMES_MAX: usize = 32;
/// A hint is a word for the workload.
const HINT_BYTES_MAX: usize = 128;
/// The longest common name that a certificate may have (RFC 5280, `ub-common-name`), in characters.
const COMMON_NAME_CHARS_MAX: usize = 64;
/// An owner is a label: a team, a repository.
const OWNER_BYTES_MAX: usize = 64;
/// The lives, in seconds, that JWT-SVIDs may have: from five seconds to a day. Nobody can call a token back.
pub const JWT_TTL: Range<u64> = 5..86_401;
/// Room for more than the CA gives: 32 hexadecimal digits.
const ENTRY_ID_BYTES_MAX: usize = 64;

/// What a registered entry is known by: 1 to 64 of `[a-z0-9-]`. The CA gives 128 random bits in hex.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(Arc<str>);

/// What is registered: a process with all these selectors, on the node of this agent or on one of this group, is this workload.
///
/// As it is registered it may name many workloads by a template; `Entry<SpiffeId>` is of one, whose name is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<Name = EntryName> {
    /// The name that is earned, or what it is made by.
    pub spiffe_id: Name,
    /// The agent, or the group of nodes, that may have it.
    #[serde(flatten)]
    pub parent: Parent,
    /// A process must have all of them. Empty, once checked, only beside a template, which demands values itself: an entry without any
    /// would be everybody's.
    pub selectors: BTreeSet<Selector>,
    /// The life of each certificate in seconds; 0 means what the CA's configuration says.
    pub x509_ttl: u32,
    /// A word that tells the workload's identities apart; empty for none. It is the certificate's common name, too.
    pub hint: String,
    /// Names that stand in the certificate besides.
    pub dns_names: Vec<String>,
    /// When it was registered, in Unix seconds.
    pub created_at: u64,
    /// The life of each of its JWT-SVIDs in seconds; 0 means what the CA's configuration says.
    #[serde(default, skip_serializing_if = "is_default")]
    pub jwt_ttl: u32,
    /// Foreign trust domains whose workloads it is to verify, beside those of the CA's federation sets.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub federates_with: BTreeSet<TrustDomain>,
    /// Whose list it stands in, `hoplite entry apply --owner`; empty for nobody's. It says nothing to an agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Whether it comes before those that are not when a process has several: the first is its default identity.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_default: bool,
}

/// An entry as the CA has it: with its name and the revision that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredEntry {
    /// Its name.
    pub id: EntryId,
    /// What was registered.
    pub entry: Entry,
    /// The revision of the CA's store that wrote it.
    pub revision: u64,
}

/// A text that is not the name of an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an entry's id; `hoplite entry list` shows them")]
pub struct InvalidEntryId(Excerpt);

/// Why an entry cannot be registered or served. Each message begins with the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEntry {
    /// It has a bad name; only of those that are registered.
    #[error("`id`: {0}")]
    Id(#[from] InvalidEntryId),
    /// A template that is none.
    #[error("`spiffe_id`: {0}")]
    Template(#[from] InvalidTemplate),
    /// A text that is no SPIFFE ID.
    #[error("`{field}`: {reason}")]
    SpiffeId {
        /// Of which field.
        field: &'static str,
        /// What is wrong with it.
        reason: InvalidSpiffeId,
    },
    /// A name of another trust domain.
    #[error("`{field}`: `{id}` is not in the trust domain `{expected}`")]
    OtherTrustDomain {
        /// Of which field.
        field: &'static str,
        /// The name.
        id: EntryName,
        /// The trust domain it should be in.
        expected: TrustDomain,
    },
    /// The trust domain's own name.
    #[error("`spiffe_id`: `{0}` has no path; a workload's SPIFFE ID needs one")]
    NoPath(SpiffeId),
    /// A name of Hoplite's own parts. A workload that were `/hoplite/ca` could command every agent.
    #[error(
        "`spiffe_id`: `{0}` begins with `/{RESERVED}`, which is for Hoplite's own parts; choose another path, or \
         `/{RESERVED}/nested/<name>` for a nested CA"
    )]
    Reserved(SpiffeId),
    /// A nested CA on any node of a group: whoever joins the group could be it.
    #[error("`node_selectors`: `{0}` is a nested CA, which is registered under one agent; name it with `parent_id`")]
    NestedInGroup(SpiffeId),
    /// A parent that is no SPIFFE ID.
    #[error("`parent_id`: {0}; write `spiffe://<trust domain>/{RESERVED}/agent/<node>`")]
    ParentId(InvalidSpiffeId),
    /// The parent cannot have workloads.
    #[error("`parent_id`: `{0}` is not an agent; write `spiffe://<trust domain>/{RESERVED}/agent/<node>`")]
    NotAnAgent(SpiffeId),
    /// It says something about nodes.
    #[error("`selectors`: no process has `{0}`, which says something about a node")]
    NotOfProcesses(Selector),
    /// Neither an agent nor a group, or both.
    #[error("`parent_id`, `node_selectors`: {0}; name either the agent or the selectors of a group of nodes")]
    Parent(&'static str),
    /// No group of nodes.
    #[error("`node_selectors`: {0}")]
    NodeSelectors(#[from] InvalidNodeGroup),
    /// What no attestor finds out of a node.
    #[error("`node_selectors`: {0}")]
    NodeSelector(InvalidSelector),
    /// Every process would have this identity.
    #[error("`selectors`: none given; an entry without any would fit every process")]
    NoSelectors,
    /// More than are compared or copied.
    #[error("`{field}`: {count} given; at most {max}")]
    TooMany {
        /// Of which field.
        field: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// What no attestor finds out.
    #[error("`selectors`: {0}")]
    Selector(#[from] InvalidSelector),
    /// A life that the CA cannot give.
    #[error(
        "`x509_ttl_seconds`: `{ttl}` is out of bounds; from {min} to less than {max} seconds, or none for the CA's own"
    )]
    Ttl {
        /// What was asked, in seconds.
        ttl: u32,
        /// The least.
        min: u64,
        /// What it must be less than.
        max: u64,
    },
    /// A life that no token has.
    #[error(
        "`jwt_ttl_seconds`: `{0}` is out of bounds; from {least} to less than {most} seconds, or none for the CA's own",
        least = JWT_TTL.start, most = JWT_TTL.end
    )]
    JwtTtl(u32),
    /// The own trust domain as a foreign one.
    #[error("`federates_with`: `{0}` is the trust domain's own name; every workload verifies that")]
    OwnTrustDomain(TrustDomain),
    /// A hint that nobody could show.
    #[error("`hint`: not printable, or longer than {HINT_BYTES_MAX} bytes")]
    Hint,
    /// An owner that is no label.
    #[error("`owner`: `{0}` is no label; write 1 to {OWNER_BYTES_MAX} of `[A-Za-z0-9._/-]`")]
    Owner(Excerpt),
    /// A name that certificates cannot hold.
    #[error("`dns_names`: `{0}` is not a DNS name in lower case without wildcards")]
    DnsName(String),
}

// === impl EntryId ===

impl EntryId {
    /// Checks a text.
    ///
    /// # Errors
    /// It is empty, too long, or has another character than `[a-z0-9-]`.
    pub fn parse(text: &str) -> Result<Self, InvalidEntryId> {
        let is_legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=ENTRY_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_legal) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidEntryId(Excerpt::of(text)))
        }
    }

    /// A new name from random bits.
    pub fn from_entropy(bits: [u8; 16]) -> Self {
        Self(HEXLOWER.encode(&bits).into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Deref for EntryId {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Serialize for EntryId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for EntryId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A map by id answers for a text too.
impl Borrow<str> for EntryId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

// === impl Entry ===

impl Entry {
    /// Whether it can be registered and served in this trust domain: names, selectors, hint and DNS names.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, trust_domain: &TrustDomain) -> Result<(), InvalidEntry> {
        let other = |field, id: EntryName| InvalidEntry::OtherTrustDomain {
            field,
            id,
            expected: trust_domain.clone(),
        };
        if self.spiffe_id.trust_domain() != trust_domain {
            return Err(other("spiffe_id", self.spiffe_id.clone()));
        }
        let parent = self.parent.agent();
        if let Some(agent) = parent.filter(|agent| agent.trust_domain() != trust_domain) {
            return Err(other("parent_id", agent.clone().into()));
        }
        let fixed = self.spiffe_id.fixed();
        if fixed.is_trust_domain() {
            return Err(InvalidEntry::NoPath(fixed.clone()));
        }
        if fixed.is_reserved() && fixed.nested_ca().is_none() {
            return Err(InvalidEntry::Reserved(fixed.clone()));
        }
        if fixed.is_reserved() && self.parent.agent().is_none() {
            return Err(InvalidEntry::NestedInGroup(fixed.clone()));
        }
        if let Some(agent) = self.parent.agent().filter(|agent| !agent.is_agent()) {
            return Err(InvalidEntry::NotAnAgent(agent.clone()));
        }
        if self.selectors.is_empty() && self.spiffe_id.template().is_none() {
            return Err(InvalidEntry::NoSelectors);
        }
        at_most("selectors", self.selectors.len(), SELECTORS_MAX)?;
        if let Some(of_nodes) = self
            .selectors
            .iter()
            .find(|selector| !selector.kind().is_of_processes())
        {
            return Err(InvalidEntry::NotOfProcesses(of_nodes.clone()));
        }
        if self.hint.len() > HINT_BYTES_MAX || self.hint.chars().any(char::is_control) {
            return Err(InvalidEntry::Hint);
        }
        if !self.owner.is_empty() {
            check_owner(&self.owner)?;
        }
        if self.jwt_ttl != 0 && !JWT_TTL.contains(&self.jwt_ttl.into()) {
            return Err(InvalidEntry::JwtTtl(self.jwt_ttl));
        }
        if self.federates_with.contains(trust_domain) {
            return Err(InvalidEntry::OwnTrustDomain(trust_domain.clone()));
        }
        at_most("federates_with", self.federates_with.len(), FEDERATES_WITH_MAX)?;
        at_most("dns_names", self.dns_names.len(), DNS_NAMES_MAX)?;
        match self.dns_names.iter().find(|name| !is_dns_name(name)) {
            Some(name) => Err(InvalidEntry::DnsName(name.clone())),
            None => Ok(()),
        }
    }

    /// The name of a workload of which these values are attested: of each kind that the template names one, and no other. None at all
    /// where the entry is no template.
    ///
    /// # Errors
    /// They do not give a name, or the entry itself demands other ones.
    pub fn name(&self, values: BTreeSet<Selector>) -> Result<Expansion, NoName> {
        // A process has one value of each kind that a template may name.
        let contradicts = |value: &Selector| {
            let mut of_kind = self.selectors.iter().filter(|selector| selector.kind() == value.kind());
            of_kind.find(|selector| *selector != value).cloned()
        };
        for value in &values {
            if let Some(registered) = contradicts(value) {
                return Err(NoName::Contradicts {
                    registered,
                    value: value.clone(),
                });
            }
        }
        match &self.spiffe_id {
            EntryName::Template(template) => template.expand(values),
            EntryName::Id(id) => Expansion::of_one(id, values),
        }
    }

    /// Whether its own certificate life, if it has one, is within these bounds.
    ///
    /// # Errors
    /// [`InvalidEntry::Ttl`].
    pub fn check_ttl(&self, bounds: Range<Duration>) -> Result<(), InvalidEntry> {
        if self.x509_ttl == 0 || bounds.contains(&Duration::from_secs(self.x509_ttl.into())) {
            return Ok(());
        }
        Err(InvalidEntry::Ttl {
            ttl: self.x509_ttl,
            min: bounds.start.as_secs(),
            max: bounds.end.as_secs(),
        })
    }

    /// What the entry is about: SHA-256 of SPIFFE ID, parent and selectors, in hex. Two entries with one subject would
    /// say one thing twice. Selectors are a set in the order of their texts, so neither order nor repetition counts.
    pub fn subject(&self) -> String {
        let mut context = Context::new(&SHA256);
        context.update(self.spiffe_id.as_str().as_bytes());
        context.update(&[0]);
        match &self.parent {
            Parent::Agent(agent) => context.update(agent.as_str().as_bytes()),
            // No agent's SPIFFE ID begins like this.
            Parent::Group(group) => group.iter().for_each(|selector| {
                context.update(&[1]);
                context.update(selector.to_string().as_bytes());
            }),
        }
        for selector in &self.selectors {
            // No part contains NUL or 1: neither SPIFFE IDs nor selectors can.
            context.update(&[0]);
            context.update(selector.to_string().as_bytes());
        }
        HEXLOWER.encode(context.finish().as_ref())
    }
}

impl<Name> Entry<Name> {
    /// The same, of another name.
    pub fn named<Other>(self, spiffe_id: Other) -> Entry<Other> {
        Entry {
            spiffe_id,
            parent: self.parent,
            selectors: self.selectors,
            x509_ttl: self.x509_ttl,
            hint: self.hint,
            dns_names: self.dns_names,
            created_at: self.created_at,
            jwt_ttl: self.jwt_ttl,
            federates_with: self.federates_with,
            owner: self.owner,
            is_default: self.is_default,
        }
    }

    /// The life of its certificates.
    pub fn ttl(&self, default: Duration) -> Duration {
        match self.x509_ttl {
            0 => default,
            seconds => Duration::from_secs(seconds.into()),
        }
    }

    /// The common name of its certificates, for programs that know users by it: the hint; none where there is no hint or one
    /// longer than a common name can be.
    pub fn common_name(&self) -> Option<&str> {
        let fits = !self.hint.is_empty() && self.hint.chars().count() <= COMMON_NAME_CHARS_MAX;
        fits.then_some(self.hint.as_str())
    }
}

impl Entry<SpiffeId> {
    /// Whether an SVID minted for the one is right for the other.
    pub fn has_same_certificate(&self, other: &Self) -> bool {
        self.spiffe_id == other.spiffe_id
            && self.x509_ttl == other.x509_ttl
            && self.dns_names == other.dns_names
            && self.common_name() == other.common_name()
    }
}

fn is_default(ttl: &u32) -> bool {
    *ttl == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Whether a text can be an entry's owner.
///
/// # Errors
/// [`InvalidEntry::Owner`].
pub fn check_owner(text: &str) -> Result<(), InvalidEntry> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    if (1..=OWNER_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_legal) {
        Ok(())
    } else {
        Err(InvalidEntry::Owner(Excerpt::of(text)))
    }
}

fn at_most(field: &'static str, count: usize, max: usize) -> Result<(), InvalidEntry> {
    if count > max {
        Err(InvalidEntry::TooMany { field, count, max })
    } else {
        Ok(())
    }
}

/// RFC 1123 host names, lower case as certificates compare them.
fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        let ldh = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(ldh) && !label.starts_with('-') && !label.ends_with('-')
    };
    // A name whose last label is a number is an IPv4 address to some verifiers.
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !numeric
}

// === impl RegisteredEntry ===

/// A registered entry is an entry.
impl Deref for RegisteredEntry {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeGroup;
    use proptest::prelude::*;

    fn id(uri: &str) -> SpiffeId {
        SpiffeId::parse(uri).unwrap()
    }

    fn sample() -> Entry {
        Entry {
            spiffe_id: id("spiffe://prod.example/orders").into(),
            parent: Parent::Agent(id("spiffe://prod.example/hoplite/agent/n1")),
            selectors: ["unix:uid:1000", "unix:path:/opt/orders"]
                .map(|text| text.parse().unwrap())
                .into(),
            x509_ttl: 0,
            hint: String::new(),
            dns_names: Vec::new(),
            created_at: 7,
            owner: String::new(),
            jwt_ttl: 0,
            is_default: false,
            federates_with: BTreeSet::new(),
        }
    }

    fn group(texts: &[&str]) -> Parent {
        Parent::Group(NodeGroup::new(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap())
    }

    fn check(change: impl FnOnce(&mut Entry), expected: &str) {
        let mut entry = sample();
        change(&mut entry);
        let domain = TrustDomain::parse("prod.example").unwrap();
        let bounds = Duration::from_secs(5)..Duration::from_secs(86400);
        let result = entry.check(&domain).and_then(|()| entry.check_ttl(bounds));
        let result = result.map_or_else(|error| error.to_string(), |()| "good".to_owned());
        assert!(result.contains(expected), "expected `{expected}`, got `{result}`");
    }

    #[test]
    fn names() {
        check(|_| (), "good");
        check(|e| e.spiffe_id = id("spiffe://prod.example/hoplites").into(), "good");
        check(|e| e.spiffe_id = id("spiffe://prod.example").into(), "has no path");
        check(
            |e| e.spiffe_id = id("spiffe://other.example/a").into(),
            "`spiffe_id`: `spiffe://other.example/a` is not in the trust domain `prod.example`",
        );
        for own in ["", "/ca", "/agent/n2"] {
            check(
                |e| e.spiffe_id = id(&format!("spiffe://prod.example/hoplite{own}")).into(),
                "Hoplite's own parts",
            );
        }
        for other in ["/orders", "/hoplite/agent", "/hoplite/agent/a/b", "/hoplite/ca"] {
            check(
                |e| e.parent = Parent::Agent(id(&format!("spiffe://prod.example{other}"))),
                "is not an agent",
            );
        }
        check(
            |e| e.parent = Parent::Agent(id("spiffe://other.example/hoplite/agent/a")),
            "`parent_id`",
        );
        check(|e| e.parent = group(&["token:label:web"]), "good");
    }

    #[test]
    fn the_rest() {
        check(|e| e.selectors.clear(), "every process");
        let of_a_node = |e: &mut Entry| e.selectors = ["k8s:node:worker-7".parse().unwrap()].into();
        check(of_a_node, "no process has `k8s:node:worker-7`");
        let many = |count: u32| (0..count).map(|n| format!("unix:gid:{n}").parse().unwrap()).collect();
        check(|e| e.selectors = many(32), "good");
        check(|e| e.selectors = many(33), "`selectors`: 33 given; at most 32");
        check(|e| e.x509_ttl = 4, "`x509_ttl_seconds`: `4`");
        check(|e| e.x509_ttl = 5, "good");
        check(|e| e.x509_ttl = 86399, "good");
        check(|e| e.x509_ttl = 86400, "out of bounds");
        check(|e| e.jwt_ttl = 4, "`jwt_ttl_seconds`: `4` is out of bounds");
        check(|e| e.jwt_ttl = 5, "good");
        check(|e| e.jwt_ttl = 86400, "good");
        check(|e| e.jwt_ttl = 86401, "out of bounds");
        let domains = |count: usize| {
            (0..count)
                .map(|n| TrustDomain::parse(&format!("t{n}.example")).unwrap())
                .collect()
        };
        check(|e| e.federates_with = domains(64), "good");
        check(|e| e.federates_with = domains(65), "`federates_with`: 65 given");
        check(
            |e| e.federates_with = [e.spiffe_id.trust_domain().clone()].into(),
            "is the trust domain's own name",
        );
        check(|e| e.owner = "git/Infra-7.b".into(), "good");
        for bad in ["a b", "a\n", "é", &"a".repeat(65)] {
            check(|e| e.owner = bad.into(), "`owner`: `");
        }
        check(|e| e.hint = "internal".into(), "good");
        check(|e| e.hint = "a\nb".into(), "`hint`");
        check(|e| e.hint = "a".repeat(129), "`hint`");
        for good in ["orders", "orders.internal", "a-1.b"] {
            check(|e| e.dns_names = vec![good.into()], "good");
        }
        for bad in [
            "",
            ".",
            "a..b",
            "*.a",
            "A.b",
            "-a",
            "a-",
            "a_b",
            "10.0.0.1",
            "a.",
            "spiffe://a",
            "é",
        ] {
            check(|e| e.dns_names = vec![bad.into()], "`dns_names`");
        }
        check(|e| e.dns_names = vec!["a".into(); 33], "`dns_names`: 33 given");
    }

    #[test]
    fn one_subject_whatever_the_order_and_repetition() {
        let base = sample();
        let same = |change: &dyn Fn(&mut Entry), expected: bool| {
            let mut other = base.clone();
            change(&mut other);
            assert_eq!(other.subject() == base.subject(), expected, "{other:?}");
        };
        let texts = ["unix:path:/opt/orders", "unix:uid:1000", "unix:path:/opt/orders"];
        same(&|e| e.selectors = texts.map(|text| text.parse().unwrap()).into(), true);
        same(&|e| e.hint = "h".into(), true);
        same(&|e| e.x509_ttl = 60, true);
        same(&|e| e.spiffe_id = id("spiffe://prod.example/a").into(), false);
        same(
            &|e| e.parent = Parent::Agent(id("spiffe://prod.example/hoplite/agent/n2")),
            false,
        );
        same(&|e| e.parent = group(&["node:name:n1"]), false);
        same(&|e| e.is_default = true, true);
        same(&|e| drop(e.selectors.pop_first()), false);
        // What looks alike when it is run together is still told apart.
        same(
            &|e| e.selectors = ["unix:path:/opt/ordersunix:uid:1000".parse().unwrap()].into(),
            false,
        );
    }

    #[test]
    fn ids() {
        let made = EntryId::from_entropy([0xab; 16]);
        assert_eq!(made.as_str(), "ab".repeat(16));
        for bad in ["", "A", "a/b", "a b", "é", &"a".repeat(65)] {
            assert!(
                EntryId::parse(bad).unwrap_err().to_string().contains("entry list"),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_back(text in "[a-z0-9-]{0,70}|\\PC{0,9}", hint in "\\PC{0,9}", ttl: u32) {
            if let Ok(id) = EntryId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
            for parent in [sample().parent, group(&["token:label:a", "node:name:b"])] {
                let entry = Entry { hint: hint.clone(), x509_ttl: ttl, parent, ..sample() };
                let json = serde_json::to_string(&entry).unwrap();
                prop_assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
            }
        }
    }
}
