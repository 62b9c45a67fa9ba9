//! Who asks, what is asked about and by which way, in the words of the admin policies.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use hoplite_identity::{Entry, Parent, SpiffeId, TrustDomain};
use hoplite_policy::rules::{Fact, Name, Thing};

use crate::operators::operator::{LOCAL, Operator};

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) enum Who {
    /// Root or the CA's own user, on its Unix socket.
    Local {
        /// As the kernel says.
        uid: u32,
    },
    /// Somebody with an operator certificate.
    Operator(Arc<Operator>),
    /// A workload with its SVID.
    Workload(SpiffeId),
}

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What<'a> {
    /// All of the trust domain.
    TrustDomain,
    /// A registration, as it is or as it would be.
    Entry(&'a Entry),
    /// An agent.
    Agent(&'a SpiffeId),
    /// An operator, by name.
    Operator(&'a str),
}

/// How a call came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// On the CA's Unix socket.
    Socket,
    /// Over TLS, from there.
    Network(IpAddr),
}

// === impl Who ===

impl Who {
    /// As the log of what is done names it: by its SPIFFE ID, if it has one.
    pub(crate) fn actor(&self, trust_domain: &TrustDomain) -> String {
        match self {
            Self::Operator(operator) => match trust_domain.operator(&operator.name) {
                Ok(id) => id.to_string(),
                Err(_) => self.to_string(),
            },
            Self::Workload(id) => id.to_string(),
            Self::Local { .. } => self.to_string(),
        }
    }

    pub(crate) fn thing(&self, trust_domain: &TrustDomain) -> Thing {
        match self {
            Self::Local { uid } => Thing {
                name: name("LocalUser", uid.to_string()),
                attributes: vec![("uid", Fact::Number((*uid).into()))],
                within: vec![name("Role", LOCAL)],
            },
            Self::Operator(operator) => Thing {
                name: name("Operator", &operator.name),
                attributes: vec![("paths", paths(trust_domain, operator))],
                within: operator.roles.iter().map(|role| name("Role", role)).collect(),
            },
            Self::Workload(id) => Thing {
                name: name("Workload", id.as_str()),
                attributes: Vec::new(),
                within: groups(id),
            },
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid } => write!(f, "local user {uid}"),
            Self::Operator(operator) => write!(f, "operator `{}`", operator.name),
            Self::Workload(id) => write!(f, "workload `{id}`"),
        }
    }
}

// === impl What ===

impl What<'_> {
    pub(crate) fn thing(self, trust_domain: &TrustDomain) -> Thing {
        match self {
            Self::TrustDomain => Thing {
                name: name("TrustDomain", trust_domain.as_str()),
                attributes: Vec::new(),
                within: Vec::new(),
            },
            Self::Entry(entry) => Thing {
                name: name("Entry", entry.spiffe_id.as_str()),
                attributes: entry_facts(entry),
                // Of a template what no value changes: whoever may register all names beneath may register it.
                within: groups(entry.spiffe_id.fixed()),
            },
            Self::Agent(id) => Thing {
                name: name("Agent", id.as_str()),
                attributes: Vec::new(),
                within: vec![name("TrustDomain", id.trust_domain().as_str())],
            },
            Self::Operator(operator) => Thing {
                name: name("Operator", operator),
                attributes: vec![("paths", Fact::Things(Vec::new()))],
                within: Vec::new(),
            },
        }
    }
}

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrustDomain => f.write_str("the trust domain"),
            Self::Entry(entry) => write!(f, "the registration of `{}`", entry.spiffe_id),
            Self::Agent(id) => write!(f, "`{id}`"),
            Self::Operator(name) => write!(f, "operator `{name}`"),
        }
    }
}

// === impl Way ===

impl Way {
    /// The address, where there is one.
    pub(crate) fn source(self) -> Option<String> {
        match self {
            Self::Socket => None,
            Self::Network(address) => Some(address.to_string()),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Network(_) => "network",
        }
    }
}

fn name(kind: &'static str, id: impl Into<String>) -> Name {
    Name { kind, id: id.into() }
}

/// Of an entry; it has a `parent` or `node_selectors`, never both.
fn entry_facts(entry: &Entry) -> Vec<(&'static str, Fact)> {
    let parent = match &entry.parent {
        Parent::Agent(agent) => ("parent", Fact::Thing(name("Agent", agent.as_str()))),
        Parent::Group(group) => {
            let selectors = group.iter();
            let things = selectors.map(|selector| name("NodeSelector", selector.to_string()));
            ("node_selectors", Fact::Things(things.collect()))
        }
    };
    let is_template = Fact::Is(entry.spiffe_id.template().is_some());
    let owner = Fact::Text(entry.owner.clone());
    vec![("owner", owner), ("is_template", is_template), parent]
}

fn paths(trust_domain: &TrustDomain, operator: &Operator) -> Fact {
    let paths = operator.paths.iter();
    Fact::Things(
        paths
            .map(|path| name("Path", format!("{trust_domain}{path}")))
            .collect(),
    )
}

/// The trust domain and every prefix of the path, the whole among them.
fn groups(id: &SpiffeId) -> Vec<Name> {
    let domain = id.trust_domain().as_str();
    let mut groups = vec![name("TrustDomain", domain)];
    let mut path = domain.to_owned();
    for segment in id.segments() {
        path.push('/');
        path.push_str(segment);
        groups.push(name("Path", path.clone()));
    }
    groups
}
