//! The short way to register: a service by its name, on a node, as a user.

use std::str::FromStr;

use anyhow::Context;
use hoplite_identity::{Selector, SelectorKind, ServiceName, TrustDomain};
use hoplite_wire::ca::Entry;

/// A service that a node runs, and as whom: `NAME`, or `NAME=USER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceOfUser {
    name: ServiceName,
    user: Option<String>,
}

// === impl ServiceOfUser ===

impl ServiceOfUser {
    pub(crate) fn new(name: ServiceName, user: Option<String>) -> Self {
        Self { name, user }
    }

    /// The entry by convention: `spiffe://TRUST_DOMAIN/NAME` for processes of that user, who is named as the service unless
    /// it is said.
    pub(crate) fn entry(&self, trust_domain: &TrustDomain, node: &str) -> anyhow::Result<Entry> {
        let spiffe_id = trust_domain.member(&format!("/{}", self.name));
        let spiffe_id = spiffe_id.with_context(|| {
            format!(
                "`{}` cannot stand in a SPIFFE ID; register it with --spiffe-id",
                self.name
            )
        })?;
        let user = self.user.as_deref().unwrap_or(self.name.as_str());
        let kind = match user.parse::<u32>() {
            Ok(_) => SelectorKind::UnixUid,
            Err(_) => SelectorKind::UnixUser,
        };
        Ok(Entry {
            spiffe_id: spiffe_id.to_string(),
            parent_id: trust_domain.agent(node)?.to_string(),
            selectors: vec![(&Selector::new(kind, user)?).into()],
            ..Entry::default()
        })
    }
}

impl FromStr for ServiceOfUser {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, user) = match text.split_once('=') {
            Some((name, user)) => (name, Some(user.to_owned())),
            None => (text, None),
        };
        Ok(Self::new(ServiceName::parse(name)?, user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_a_service() {
        let domain = TrustDomain::parse("prod.example").unwrap();
        let check = |text: &str, kind: &str, value: &str| {
            let entry = ServiceOfUser::from_str(text).unwrap().entry(&domain, "n2").unwrap();
            assert_eq!(entry.spiffe_id, "spiffe://prod.example/billing");
            assert_eq!(entry.parent_id, "spiffe://prod.example/hoplite/agent/n2");
            let [selector] = entry.selectors.as_slice() else {
                panic!("one selector")
            };
            assert_eq!((selector.kind.as_str(), selector.value.as_str()), (kind, value));
        };
        check("billing", "unix:user", "billing");
        check("billing=www-data", "unix:user", "www-data");
        check("billing=1002", "unix:uid", "1002");
        assert!(ServiceOfUser::from_str("Billing").is_err());
        assert!(
            ServiceOfUser::from_str("billing=")
                .unwrap()
                .entry(&domain, "n2")
                .is_err()
        );
        assert!(
            ServiceOfUser::from_str("billing")
                .unwrap()
                .entry(&domain, "n 2")
                .is_err()
        );
    }
}
