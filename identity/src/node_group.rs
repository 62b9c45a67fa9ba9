//! Groups of nodes, named by what is attested of a node; and under whom an entry is registered, a group or one agent.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Selector, SelectorKind, SpiffeId};

/// A node has a handful of facts; so many of them may name one group.
pub const NODE_SELECTORS_MAX: usize = 32;

/// All nodes that have each of some node selectors: a parent of entries. Never empty, which would be every node.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeGroup(Arc<BTreeSet<Selector>>);

/// Under whom an entry is registered.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Parent {
    /// One agent.
    #[serde(rename = "parent_id")]
    Agent(SpiffeId),
    /// Each agent whose node is in the group.
    #[serde(rename = "node_selectors")]
    Group(NodeGroup),
}

/// Why selectors name no group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidNodeGroup {
    /// It says something about processes.
    #[error("no node has `{0}`, which says something about a process")]
    NotOfNodes(Selector),
    /// A group of nobody knows whom.
    #[error("none given; a group without any would be every node")]
    None,
    /// More than are compared.
    #[error("{0} given; at most {NODE_SELECTORS_MAX}")]
    TooMany(usize),
}

/// What every agent has by its SPIFFE ID: `node:name:web-1`. None for what is no agent's.
pub fn node_name(agent: &SpiffeId) -> Option<Selector> {
    let name = agent.path().rsplit('/').next().filter(|_| agent.is_agent())?;
    Selector::new(SelectorKind::NodeName, name).ok()
}

// === impl NodeGroup ===

impl NodeGroup {
    /// The nodes that have each of these.
    ///
    /// # Errors
    /// There is none of them, or too many, or one that is of processes.
    pub fn new(selectors: BTreeSet<Selector>) -> Result<Self, InvalidNodeGroup> {
        if let Some(other) = selectors.iter().find(|selector| !selector.kind().is_of_nodes()) {
            return Err(InvalidNodeGroup::NotOfNodes(other.clone()));
        }
        match selectors.len() {
            0 => Err(InvalidNodeGroup::None),
            1..=NODE_SELECTORS_MAX => Ok(Self(Arc::new(selectors))),
            more => Err(InvalidNodeGroup::TooMany(more)),
        }
    }

    /// Whether the node of this agent, of which this much is attested, is in it.
    pub fn has(&self, agent: &SpiffeId, attested: &BTreeSet<Selector>) -> bool {
        let name = node_name(agent);
        let is_named = |selector: &Selector| name.as_ref() == Some(selector);
        self.0
            .iter()
            .all(|selector| attested.contains(selector) || is_named(selector))
    }
}

impl Deref for NodeGroup {
    type Target = BTreeSet<Selector>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Display for NodeGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, selector) in self.0.iter().enumerate() {
            let gap = if n == 0 { "" } else { " " };
            write!(f, "{gap}{selector}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for NodeGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for NodeGroup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter())
    }
}

impl<'de> Deserialize<'de> for NodeGroup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(BTreeSet::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

// === impl Parent ===

impl Parent {
    /// The agent, if it is one.
    pub fn agent(&self) -> Option<&SpiffeId> {
        match self {
            Self::Agent(agent) => Some(agent),
            Self::Group(_) => None,
        }
    }

    /// The group, if it is one.
    pub fn group(&self) -> Option<&NodeGroup> {
        match self {
            Self::Agent(_) => None,
            Self::Group(group) => Some(group),
        }
    }
}

/// The agent's SPIFFE ID, or the group's selectors with spaces between them.
impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => agent.fmt(f),
            Self::Group(group) => group.fmt(f),
        }
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> BTreeSet<Selector> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_node_is_in_a_group_when_it_has_all_of_its_selectors() {
        let agent = SpiffeId::parse("spiffe://prod.example/hoplite/agent/web-1").unwrap();
        let attested = set(&["token:label:web", "token:label:eu"]);
        let check = |group: &[&str], expected: bool| {
            let group = NodeGroup::new(set(group)).unwrap();
            assert_eq!(group.has(&agent, &attested), expected, "{group}");
        };
        check(&["token:label:web"], true);
        check(&["token:label:web", "token:label:eu"], true);
        check(&["token:label:web", "token:label:us"], false);
        check(&["token:label:we"], false);
        check(&["node:name:web-1", "token:label:eu"], true);
        check(&["node:name:web-1"], true);
        check(&["node:name:web-2"], false);
        let of_process = NodeGroup::new(set(&["unix:uid:0"])).unwrap_err().to_string();
        assert!(of_process.contains("no node has `unix:uid:0`"), "{of_process}");
        assert_eq!(NodeGroup::new(BTreeSet::new()), Err(InvalidNodeGroup::None));
        let many = (0..33).map(|n| format!("token:label:{n}").parse().unwrap()).collect();
        assert_eq!(NodeGroup::new(many), Err(InvalidNodeGroup::TooMany(33)));
    }
}
