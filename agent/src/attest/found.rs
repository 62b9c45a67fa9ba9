//! What was found out of a process, and what was not, and why.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use hoplite_identity::{InvalidSelector, Selector, SelectorKind};

use crate::attest::cgroup::NoPlacement;

/// What is known of a caller at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attestation {
    pub(crate) selectors: BTreeSet<Selector>,
    /// What could not be learnt, and why: `unix:path (permission denied)`.
    pub(crate) unknown: Vec<String>,
}

/// Why something is not known of a process, in words that stand in the log beside the kind of selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unknown {
    #[error("{0}")]
    Unread(String),
    #[error("`{path}`: {1}", path = .0.display())]
    UsersUnread(PathBuf, String),
    #[error("uid {0} is not in `{file}`", file = .1.display())]
    NoUser(u32, PathBuf),
    #[error("the binary is too large to hash")]
    TooLarge,
    #[error("{0}")]
    Unhashed(String),
    #[error("the binary changed while it was read")]
    Changed,
    #[error("the binary is no longer there under the name it was started by")]
    Renamed,
    #[error("another file has the name that the binary was started by")]
    Replaced,
    #[error("the path is not UTF-8")]
    NotUtf8,
    #[error(transparent)]
    Unplaced(#[from] NoPlacement),
    #[error("the kubelet {0}")]
    Kubelet(String),
    #[error(transparent)]
    NoSelector(#[from] InvalidSelector),
}

// === impl Unknown ===

impl From<io::Error> for Unknown {
    fn from(error: io::Error) -> Self {
        Self::Unread(describe(&error))
    }
}

// === impl Attestation ===

impl Attestation {
    /// INVARIANT: the only way to a selector here, so that what is attested could also be registered.
    pub(super) fn add(&mut self, kind: SelectorKind, value: Result<String, Unknown>) {
        match value.and_then(|value| Ok(Selector::new(kind, &value)?)) {
            Ok(selector) => {
                self.selectors.insert(selector);
            }
            Err(reason) => self.unknown.push(format!("{kind} ({reason})")),
        }
    }
}

/// An operating-system error without its number, for people.
pub(super) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "the agent may not read it: permission denied".to_owned(),
        io::ErrorKind::NotFound => "not found".to_owned(),
        _ => error.to_string(),
    }
}
