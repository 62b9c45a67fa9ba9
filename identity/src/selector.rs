//! Selectors: the facts about a process, or about a node, that an attestor can find out, `unix:uid:1000`.
//!
//! The table of kinds is closed, and each kind has one spelling of each value. So whoever registers a workload writes
//! what an attestor can find, or is told what is wrong with it: an entry that no process can ever match is refused.

mod kind;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Excerpt;

pub use kind::{SELECTOR_VALUE_BYTES_MAX, SelectorKind};

/// What a kind may differ in from what was written to be suggested in its place: letters changed, left out or added.
const TYPOS_MAX: usize = 2;

/// One attested fact about a process or a node: a kind and its value, in the one spelling that the value has.
///
/// Written `kind:value`. Ordered as its text, kind first, which is the order wherever several are listed or hashed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    kind: SelectorKind,
    value: Arc<str>,
}

/// Why a text is no selector. Each message names what was written and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSelector {
    /// No attestor finds out anything of this kind.
    #[error("`{kind}` is no selector kind; {remedy}")]
    Kind {
        /// What was written.
        kind: Excerpt,
        /// The nearest that exists, or all there are.
        remedy: String,
    },
    /// A kind without a value.
    #[error("`{kind}` has no value; write {rule}, for example `{example}`")]
    NoValue {
        /// The kind.
        kind: SelectorKind,
        /// What its values are.
        rule: &'static str,
        /// One that is right.
        example: &'static str,
    },
    /// No process has this value.
    #[error("`{value}` is no value of `{kind}`, which takes {rule}{nearest}")]
    Value {
        /// The kind.
        kind: SelectorKind,
        /// What was written.
        value: Excerpt,
        /// What its values are.
        rule: &'static str,
        /// `; did you mean …?`, if there is something near.
        nearest: String,
    },
}

impl FromStr for SelectorKind {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| no_kind(text, ""))
    }
}

// === impl Selector ===

impl Selector {
    /// A selector of this kind.
    ///
    /// # Errors
    /// No process can have this value, or not in this spelling.
    pub fn new(kind: SelectorKind, value: &str) -> Result<Self, InvalidSelector> {
        if value.is_empty() {
            return Err(InvalidSelector::NoValue {
                kind,
                rule: kind.rule(),
                example: kind.example(),
            });
        }
        Self::of(kind, value).ok_or_else(|| InvalidSelector::Value {
            kind,
            value: Excerpt::of(value),
            rule: kind.rule(),
            nearest: kind.near(value).map(|near| did_you_mean(&near)).unwrap_or_default(),
        })
    }

    /// Reads `kind:value`. A kind is what stands before the second colon; the value may hold more of them.
    ///
    /// # Errors
    /// No attestor can find this out of a process; the message says what is nearest.
    pub fn parse(text: &str) -> Result<Self, InvalidSelector> {
        let second = text.match_indices(':').nth(1).map_or(text.len(), |(at, _)| at);
        let (kind, value) = text.split_at(second);
        let value = value.strip_prefix(':').unwrap_or_default();
        if let Some(known) = SelectorKind::ALL.into_iter().find(|known| known.as_str() == kind) {
            return Self::new(known, value);
        }
        // `uid:1000`: who attests it was left out.
        let left_out = kind.split_once(':').filter(|_| second == text.len());
        let (kind, value) = left_out.unwrap_or((kind, value));
        Err(no_kind(kind, value))
    }

    /// What it says something about.
    pub fn kind(&self) -> SelectorKind {
        self.kind
    }

    /// What it says.
    pub fn value(&self) -> &str {
        &self.value
    }

    fn of(kind: SelectorKind, value: &str) -> Option<Self> {
        kind.takes(value).then(|| Self {
            kind,
            value: value.into(),
        })
    }

    fn texts(&self) -> (&str, &str) {
        (self.kind.as_str(), &self.value)
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // By text, so that a new row of the table changes no order that was hashed.
        self.texts().cmp(&other.texts())
    }
}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Selector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The message about a kind that is not in the table, with the nearest that is. `value` is what follows, if anything.
fn no_kind(written: &str, value: &str) -> InvalidSelector {
    // Longer texts are near nothing, and comparing takes time by their length.
    let typos = |kind: &SelectorKind| {
        let whole = kind.as_str();
        let last = whole.rsplit(':').next().unwrap_or(whole);
        // A short name is near everything that is short.
        let near = |name: &str| {
            let typos = strsim::osa_distance(written, name);
            Some(typos).filter(|typos| 2 * typos <= name.len())
        };
        near(whole).into_iter().chain(near(last)).min().unwrap_or(usize::MAX)
    };
    let near = SelectorKind::ALL
        .into_iter()
        .filter(|_| written.len() <= 64)
        .map(|kind| (typos(&kind), kind))
        .filter(|(typos, _)| *typos <= TYPOS_MAX)
        .min_by_key(|(typos, _)| *typos);
    let all = || {
        let kinds = SelectorKind::ALL.map(|kind| format!("`{kind}`")).join(", ");
        format!("there are {kinds}")
    };
    let remedy = near.map_or_else(all, |(_, kind)| {
        let whole = Selector::of(kind, value).map(|selector| selector.to_string());
        let meant = whole.unwrap_or_else(|| kind.to_string());
        format!("did you mean `{meant}`?")
    });
    InvalidSelector::Kind {
        kind: Excerpt::of(written),
        remedy,
    }
}

fn did_you_mean((kind, value): &(SelectorKind, String)) -> String {
    format!("; did you mean `{kind}:{value}`?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn every_kind_has_an_example_that_is_one() {
        let mut texts = SelectorKind::ALL.map(SelectorKind::as_str);
        for kind in SelectorKind::ALL {
            assert_eq!(Selector::parse(kind.example()).unwrap().kind(), kind);
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(
                kind.as_str().matches(':').count(),
                1,
                "the parser splits at the second colon"
            );
        }
        assert!(texts.is_sorted(), "the order of their texts");
        texts.sort_unstable();
        assert!(texts.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn what_no_attestor_can_produce_is_refused_with_the_nearest_that_exists() {
        let check = |text: &str, expected: &str| {
            let found = Selector::parse(text).map_or_else(|error| error.to_string(), |found| format!("ok {found}"));
            assert!(found.contains(expected), "{text}: expected `{expected}`, got `{found}`");
        };
        check("unix:uid:0", "ok unix:uid:0");
        check("unix:path:/opt/a:b c", "ok unix:path:/opt/a:b c");
        check("unix:user:svc-$", "ok ");
        check("launch:name:edge.v2", "ok ");
        check(&format!("unix:sha256:{DIGEST}"), "ok ");

        check("uid:0", "`uid` is no selector kind; did you mean `unix:uid:0`?");
        check(
            "unix:uidd:1",
            "`unix:uidd` is no selector kind; did you mean `unix:uid:1`?",
        );
        check("Unix:uid:1", "did you mean `unix:uid:1`?");
        check("unix:pth:./x", "did you mean `unix:path`?");
        check(
            "kubernetes:namespace:a",
            "there are `container:id`, `k8s:container-name`, `k8s:image`",
        );
        check("k8s:nss:a", "did you mean `k8s:ns:a`?");
        check("", "there are `container:id`");
        check("1000", "there are `container:id`");
        check(&"a".repeat(100_000), "there are `container:id`");
        check("systemd:unit:billing.service", "ok ");
        check("systemd:unit:dbus-:1.2-org.a@0.service", "ok ");
        check("systemd:unit:billing", "did you mean `systemd:unit:billing.service`?");
        check("systemd:unit:a/b.service", "is no value of `systemd:unit`");
        check("systemd:unit:.service", "is no value of `systemd:unit`");
        check("systemd:unit:system.slice", "ends with `.service` or `.scope`");
        check("systemd:user-unit:1000/sync.service", "ok ");
        check("systemd:user-unit:sync.service", "is no value of `systemd:user-unit`");
        check(
            "systemd:user-unit:01/sync.service",
            "is no value of `systemd:user-unit`",
        );
        check("k8s:ns:Payments", "did you mean `k8s:ns:payments`?");
        check("k8s:ns:a..b", "is no value of `k8s:ns`");
        check("k8s:pod-uid:0F0A", "did you mean `k8s:pod-uid:0f0a`?");
        check("oidc:claim:environment", "NAME=VALUE");
        check("oidc:sub:repo:acme/infra:ref:refs/heads/main", "ok ");
        check("oidc:sub:a\nb", "is no value of `oidc:sub`");
        check(
            &format!("x509pop:root:sha256:{DIGEST}"),
            &format!("did you mean `x509pop:root:{DIGEST}`?"),
        );

        check(&format!("tpm:ek-sha256:{DIGEST}"), "ok ");
        check("tpm:ek-sha256:abc", "64 hexadecimal digits");

        check("unix:uid", "`unix:uid` has no value; write a number");
        check("unix:uid:", "`unix:uid` has no value");

        check(
            "unix:uid:root",
            "`root` is no value of `unix:uid`, which takes a number",
        );
        check("unix:uid:root", "did you mean `unix:user:root`?");
        check("unix:uid:007", "did you mean `unix:uid:7`?");
        check("unix:uid:00", "did you mean `unix:uid:0`?");
        check("unix:uid:+1", "did you mean `unix:uid:1`?");
        check("unix:uid: 1", "did you mean `unix:uid:1`?");
        check("unix:uid:-1", "is no value of `unix:uid`");
        check("unix:uid:4294967294", "ok ");
        check("unix:uid:4294967295", "is no value of `unix:uid`");
        check("unix:uid:4294967296", "is no value of `unix:uid`");
        check("unix:gid:wheel", "which takes a number");
        check(
            "unix:path:./x",
            "`./x` is no value of `unix:path`, which takes an absolute path",
        );
        check("unix:path:/a//b/./c/", "did you mean `unix:path:/a/b/c`?");
        check("unix:path:/a/../b", "is no value");
        check("unix:path:/", "is no value");
        check("unix:path:/a\n", r"`/a\n` is no value");
        check(&format!("unix:path:/{}", "a".repeat(1024)), "at most 1024 bytes");
        check(
            &format!("unix:sha256:{}", DIGEST.to_uppercase()),
            &format!("did you mean `unix:sha256:{DIGEST}`?"),
        );
        check("unix:sha256:abc", "64 hexadecimal digits");
        check("unix:user:a b", "is no value");
        check("unix:user:+nis", "is no value");
        check("launch:name:Edge", "did you mean `launch:name:edge`?");
        check("launch:name:a/b", "a service name");
    }

    #[test]
    fn the_order_is_that_of_the_texts() {
        let mut selectors: Vec<Selector> = SelectorKind::ALL.map(|kind| kind.example().parse().unwrap()).into();
        selectors.reverse();
        selectors.sort();
        let texts: Vec<_> = selectors.iter().map(ToString::to_string).collect();
        assert!(texts.is_sorted(), "{texts:?}");
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_back(
            text in prop_oneof![
                "unix:(uid|gid):[0-9+]{0,11}",
                "unix:user:[!-~]{0,12}",
                "unix:path:[/.a-c:]{0,8}",
                "unix:sha256:[0-9a-fA]{63,65}",
                "launch:name:[a-z.A/-]{0,8}",
                "\\PC{0,40}",
            ],
        ) {
            match Selector::parse(&text) {
                Ok(selector) => {
                    prop_assert_eq!(selector.to_string(), &*text);
                    prop_assert_eq!(Selector::new(selector.kind(), selector.value()), Ok(selector.clone()));
                    let json = serde_json::to_string(&selector).unwrap();
                    prop_assert_eq!(serde_json::from_str::<Selector>(&json).unwrap(), selector);
                }
                Err(error) => {
                    // What is suggested is itself accepted.
                    let message = error.to_string();
                    if let Some((_, meant)) = message.rsplit_once("did you mean `") {
                        let meant = meant.trim_end_matches("`?");
                        prop_assert!(
                            Selector::parse(meant).is_ok() || meant.parse::<SelectorKind>().is_ok(),
                            "{}", message
                        );
                    }
                }
            }
        }
    }
}
