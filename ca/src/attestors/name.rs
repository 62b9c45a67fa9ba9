//! What an attested node is called: a template of the operator's, filled with what was attested, within a name space of its own.

use std::fmt::Write;

use hoplite_identity::{Excerpt, NODE_NAME_BYTES_MAX, Selector, SelectorKind};

/// The attestor of nodes that join with a token.
pub(crate) const BY_TOKEN: &str = "token";

/// Digits of an identity in a name: too many to meet by chance, few enough to read aloud.
const IDENTITY_DIGITS: usize = 32;

/// The placeholder for the identity itself, which every attested node has, in characters that every name takes.
const IDENTITY: &str = "identity";

/// Placeholders in a template. Names have at most 128 bytes.
const PARTS_MAX: usize = 16;

/// A template, `prod-{k8s:node}`: it begins with a text that nothing attested can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeName {
    begins: String,
    rest: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Attested(SelectorKind),
    Claim(String),
    Identity,
}

/// Why there is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoName {
    #[error(
        "a template begins with a text of its own, at least one of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`, and nothing attested changes that; write for \
         example \"prod-{{k8s:node}}\""
    )]
    Begins,
    #[error("a template ends every `{{` with a `}}`, and has at most 16 of them")]
    Braces,
    #[error("every node of this attestor would have one name; write `{{identity}}` or a selector kind in braces")]
    Constant,
    #[error("`{0}` is in no name of a node; use `a-z`, `A-Z`, `0-9`, `.`, `_` and `-` between the braces")]
    Text(Excerpt),
    #[error(
        "`{0}` is nothing that is attested of nodes; write `identity` or a selector kind, for example `k8s:node`, or `oidc:claim:NAME`"
    )]
    Kind(Excerpt),
    #[error("the node's name is made of `{0}`, which is not attested of it")]
    NotAttested(String),
    #[error("the node's name is made of `{0}`, of which several are attested")]
    Several(String),
    #[error(
        "the node's name is made of `{0}`, and `{1}` can stand in no name; make it of `{{identity}}`, or of another selector"
    )]
    Value(String, Excerpt),
    #[error("the node's name would be longer than {NODE_NAME_BYTES_MAX} bytes")]
    TooLong,
}

// === impl NodeName ===

impl NodeName {
    pub(crate) fn parse(text: &str) -> Result<Self, NoName> {
        let at = text.find('{').unwrap_or(text.len());
        let (begins, mut left) = text.split_at(at);
        if begins.is_empty() {
            return Err(NoName::Begins);
        }
        let checked = |text: &str| match is_plain(text) {
            true => Ok(text.to_owned()),
            false => Err(NoName::Text(Excerpt::of(text))),
        };
        let begins = checked(begins)?;
        let mut rest = Vec::new();
        while let Some(inner) = left.strip_prefix('{') {
            let (placeholder, after) = inner.split_once('}').ok_or(NoName::Braces)?;
            rest.push(Part::parse(placeholder)?);
            let end = after.find('{').unwrap_or(after.len());
            let (literal, next) = after.split_at(end);
            if !literal.is_empty() {
                rest.push(Part::Text(checked(literal)?));
            }
            left = next;
            if rest.len() > PARTS_MAX {
                return Err(NoName::Braces);
            }
        }
        match rest.is_empty() {
            true => Err(NoName::Constant),
            false => Ok(Self { begins, rest }),
        }
    }

    /// Whether a name of the one could be a name of the other.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.begins.starts_with(&other.begins) || other.begins.starts_with(&self.begins)
    }

    /// The name of the node of which this was attested.
    pub(crate) fn of(&self, selectors: &[Selector], identity: &str) -> Result<String, NoName> {
        let mut name = self.begins.clone();
        for part in &self.rest {
            let _ = match part {
                Part::Text(text) => name.write_str(text),
                Part::Identity => name.write_str(identity.get(..IDENTITY_DIGITS).unwrap_or(identity)),
                Part::Attested(kind) => {
                    let values = selectors.iter().filter(|selector| selector.kind() == *kind);
                    name.write_str(one(values.map(Selector::value), kind.as_str())?)
                }
                Part::Claim(claim) => {
                    let claims = selectors
                        .iter()
                        .filter(|selector| selector.kind() == SelectorKind::OidcClaim);
                    let values = claims.filter_map(|selector| selector.value().split_once('='));
                    let values = values.filter(|(name, _)| name == claim).map(|(_, value)| value);
                    name.write_str(one(values, &format!("{}:{claim}", SelectorKind::OidcClaim))?)
                }
            };
        }
        match name.len() <= NODE_NAME_BYTES_MAX {
            true => Ok(name),
            false => Err(NoName::TooLong),
        }
    }
}

/// The one value that was attested, if it can stand in a name. Nothing in it is replaced: two values must not become one.
fn one<'a>(mut values: impl Iterator<Item = &'a str>, what: &str) -> Result<&'a str, NoName> {
    let value = values.next().ok_or_else(|| NoName::NotAttested(what.to_owned()))?;
    if values.next().is_some() {
        return Err(NoName::Several(what.to_owned()));
    }
    match is_plain(value) {
        true => Ok(value),
        false => Err(NoName::Value(what.to_owned(), Excerpt::of(value))),
    }
}

fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !text.is_empty() && text.bytes().all(plain)
}

// === impl Part ===

impl Part {
    fn parse(placeholder: &str) -> Result<Self, NoName> {
        if placeholder == IDENTITY {
            return Ok(Self::Identity);
        }
        let claim = placeholder.strip_prefix(SelectorKind::OidcClaim.as_str());
        if let Some(claim) = claim
            .and_then(|rest| rest.strip_prefix(':'))
            .filter(|claim| !claim.is_empty())
        {
            return Ok(Self::Claim(claim.to_owned()));
        }
        let kind = placeholder.parse::<SelectorKind>().ok();
        let kind = kind.filter(|kind| kind.is_of_nodes() && *kind != SelectorKind::OidcClaim);
        kind.map(Self::Attested)
            .ok_or_else(|| NoName::Kind(Excerpt::of(placeholder)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(template: &str, selectors: &[&str]) -> String {
        let selectors: Vec<Selector> = selectors.iter().map(|text| text.parse().unwrap()).collect();
        match NodeName::parse(template).and_then(|template| template.of(&selectors, &"ab".repeat(32))) {
            Ok(name) => name,
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_stay_in_their_space() {
        let check = |template: &str, selectors: &[&str], expected: &str| {
            let found = name(template, selectors);
            assert!(
                found.contains(expected),
                "{template} {selectors:?}: expected `{expected}`, got `{found}`"
            );
        };
        check("prod-{k8s:node}", &["k8s:node:worker-7"], "prod-worker-7");
        check("k-{k8s:ns}.{k8s:node}", &["k8s:ns:a", "k8s:node:b"], "k-a.b");
        check(
            "ci-{oidc:claim:env}",
            &["oidc:claim:env=prod", "oidc:claim:x=y"],
            "ci-prod",
        );
        check("k8s-{identity}", &[], &format!("k8s-{}", "ab".repeat(16)));

        check("{k8s:node}", &["k8s:node:a"], "begins with a text of its own");
        check("", &[], "begins with a text of its own");
        check("a/{k8s:node}", &[], "`a/` is in no name");
        check("a-{k8s:node}/..", &[], "`/..` is in no name");
        check("prod", &[], "one name");
        check("a-{k8s:node", &[], "ends every `{`");
        check(&"a{identity}".repeat(20), &[], "at most 16");
        check("a-{k8s:nod}", &[], "`k8s:nod` is nothing that is attested");
        check("a-{unix:uid}", &[], "`unix:uid` is nothing that is attested of nodes");
        check("a-{oidc:claim}", &[], "is nothing that is attested");
        check("a-{k8s:node}", &[], "`k8s:node`, which is not attested of it");
        check(
            "a-{oidc:sub}",
            &["oidc:sub:repo:acme/infra"],
            "`repo:acme/infra` can stand in no name",
        );
        check("a-{oidc:sub}", &["oidc:sub:../../ca"], "can stand in no name");
        check(
            "a-{x509pop:dns}",
            &["x509pop:dns:a.example", "x509pop:dns:b.example"],
            "several are attested",
        );
        let long = format!(
            "k8s:node:{}",
            ["a".repeat(60), "b".repeat(60), "c".repeat(60)].join(".")
        );
        check("a-{k8s:node}", &[&long], "longer than 128");
    }

    #[test]
    fn spaces_that_overlap() {
        let check = |a: &str, b: &str, expected: bool| {
            let parse = |text: &str| NodeName::parse(text).unwrap();
            assert_eq!(parse(a).overlaps(&parse(b)), expected, "{a} {b}");
            assert_eq!(parse(b).overlaps(&parse(a)), expected, "{b} {a}");
        };
        check("a-{identity}", "b-{identity}", false);
        check("a-{identity}", "a-{k8s:node}", true);
        check("a-{identity}", "a-b-{identity}", true);
        check("ab{identity}", "a-{identity}", false);
    }
}
