//! What Hoplite's own parts and operators are called: `/hoplite/ca`, `/hoplite/nested/<name>`, `/hoplite/agent/<node>`,
//! `/hoplite/operator/<name>`. No workload gets such a name.

use crate::{Excerpt, SpiffeId, TrustDomain};

/// The first segment of the path of each of Hoplite's own parts.
pub const RESERVED: &str = "hoplite";

/// The longest name of a node, in bytes: the keys of the CA's store hold an agent's whole SPIFFE ID.
pub const NODE_NAME_BYTES_MAX: usize = 128;

const AGENT: &str = "agent";
const CA: &str = "ca";
const NESTED: &str = "nested";
const OPERATOR: &str = "operator";

/// A node name that cannot become an agent's SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a node name; use `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`, at most {NODE_NAME_BYTES_MAX} of them")]
pub struct InvalidNode(Excerpt);

/// An operator's name that cannot become a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an operator's name; use `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`, at most {NODE_NAME_BYTES_MAX} of them"
)]
pub struct InvalidOperator(Excerpt);

/// A name of a nested CA that cannot become a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a nested CA's name; use `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`, at most {NODE_NAME_BYTES_MAX} of them"
)]
pub struct InvalidNestedCa(Excerpt);

impl TrustDomain {
    /// The SPIFFE ID by which a nested CA is known to the CA above it: `spiffe://<trust domain>/hoplite/nested/<name>`.
    ///
    /// # Errors
    /// The name is empty, too long, or no path segment.
    pub fn nested_ca(&self, name: &str) -> Result<SpiffeId, InvalidNestedCa> {
        let invalid = || InvalidNestedCa(Excerpt::of(name));
        if name.is_empty() || name.len() > NODE_NAME_BYTES_MAX || name.contains('/') {
            return Err(invalid());
        }
        self.member(&format!("/{RESERVED}/{NESTED}/{name}"))
            .map_err(|_| invalid())
    }

    /// The SPIFFE ID of an operator: `spiffe://<trust domain>/hoplite/operator/<name>`.
    ///
    /// # Errors
    /// The name is empty, too long, or no path segment.
    pub fn operator(&self, name: &str) -> Result<SpiffeId, InvalidOperator> {
        let invalid = || InvalidOperator(Excerpt::of(name));
        if name.is_empty() || name.len() > NODE_NAME_BYTES_MAX || name.contains('/') {
            return Err(invalid());
        }
        self.member(&format!("/{RESERVED}/{OPERATOR}/{name}"))
            .map_err(|_| invalid())
    }

    /// The SPIFFE ID of the agent on a node: `spiffe://<trust domain>/hoplite/agent/<node>`.
    ///
    /// # Errors
    /// The name is empty, too long, or no path segment.
    pub fn agent(&self, node: &str) -> Result<SpiffeId, InvalidNode> {
        let invalid = || InvalidNode(Excerpt::of(node));
        if node.is_empty() || node.len() > NODE_NAME_BYTES_MAX || node.contains('/') {
            return Err(invalid());
        }
        self.member(&format!("/{RESERVED}/{AGENT}/{node}"))
            .map_err(|_| invalid())
    }

    /// The SPIFFE ID of its CA: `spiffe://<trust domain>/hoplite/ca`.
    pub fn ca(&self) -> SpiffeId {
        // A trust domain has 255 bytes at most, so the whole is never too long.
        self.member(&format!("/{RESERVED}/{CA}")).unwrap_or_else(|_| self.id())
    }
}

impl SpiffeId {
    /// Whether the name is kept for Hoplite's own parts.
    pub fn is_reserved(&self) -> bool {
        self.segments().next() == Some(RESERVED)
    }

    /// Whether the name is one that [`TrustDomain::agent`] makes.
    pub fn is_agent(&self) -> bool {
        let mut segments = self.segments();
        let mut next = || segments.next();
        next() == Some(RESERVED)
            && next() == Some(AGENT)
            && next().is_some_and(|node| node.len() <= NODE_NAME_BYTES_MAX)
            && next().is_none()
    }

    /// The operator's name, if the ID is one that [`TrustDomain::operator`] makes.
    pub fn operator(&self) -> Option<&str> {
        self.named(OPERATOR)
    }

    /// The nested CA's name, if the ID is one that [`TrustDomain::nested_ca`] makes.
    pub fn nested_ca(&self) -> Option<&str> {
        self.named(NESTED)
    }

    /// The name in `/hoplite/<kind>/<name>`.
    fn named(&self, kind: &str) -> Option<&str> {
        let mut segments = self.segments();
        let is_of_kind = segments.next() == Some(RESERVED) && segments.next() == Some(kind);
        let name = segments
            .next()
            .filter(|name| is_of_kind && name.len() <= NODE_NAME_BYTES_MAX)?;
        segments.next().is_none().then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_and_the_ca() {
        let domain = TrustDomain::parse("prod.example").unwrap();
        let agent = domain.agent("node-1.a_B").unwrap();
        assert_eq!(agent.as_str(), "spiffe://prod.example/hoplite/agent/node-1.a_B");
        assert_eq!(domain.ca().as_str(), "spiffe://prod.example/hoplite/ca");
        let ann = domain.operator("ann").unwrap();
        assert_eq!(ann.as_str(), "spiffe://prod.example/hoplite/operator/ann");
        assert_eq!(
            (ann.operator(), ann.is_agent(), ann.is_reserved()),
            (Some("ann"), false, true)
        );
        for path in [
            "/hoplite/operator",
            "/hoplite/operator/ann/x",
            "/operator/ann",
            "/hoplite/agent/ann",
        ] {
            assert_eq!(domain.member(path).unwrap().operator(), None, "{path}");
        }
        assert!(domain.operator("a/b").is_err() && domain.operator("..").is_err() && domain.operator("").is_err());
        let eu = domain.nested_ca("eu").unwrap();
        assert_eq!(eu.as_str(), "spiffe://prod.example/hoplite/nested/eu");
        assert_eq!(
            (eu.nested_ca(), eu.operator(), eu.is_reserved()),
            (Some("eu"), None, true)
        );
        assert_eq!(ann.nested_ca(), None);
        assert!(domain.nested_ca("a/b").is_err() && domain.nested_ca("").is_err());
        let longest = TrustDomain::parse(&"a".repeat(255)).unwrap();
        assert_eq!(longest.ca().path(), "/hoplite/ca");
        assert!(domain.agent(&"a".repeat(NODE_NAME_BYTES_MAX)).is_ok());
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "ä",
            "a\n",
            &"a".repeat(NODE_NAME_BYTES_MAX + 1),
        ] {
            let error = domain.agent(bad).unwrap_err().to_string();
            assert!(error.contains("is not a node name") && !error.contains('\n'), "{error}");
        }
        let check = |path: &str, reserved: bool, agent: bool| {
            let id = domain.member(path).unwrap();
            assert_eq!((id.is_reserved(), id.is_agent()), (reserved, agent), "{path}");
        };
        check("", false, false);
        check("/orders", false, false);
        check("/hoplites/agent/a", false, false);
        check("/a/hoplite/agent", false, false);
        check("/hoplite", true, false);
        check("/hoplite/ca", true, false);
        check("/hoplite/agent", true, false);
        check("/hoplite/agent/n1", true, true);
        check("/hoplite/agent/n1/x", true, false);
        check("/hoplite/Agent/n1", true, false);
        check(
            &format!("/hoplite/agent/{}", "a".repeat(NODE_NAME_BYTES_MAX + 1)),
            true,
            false,
        );
    }
}
