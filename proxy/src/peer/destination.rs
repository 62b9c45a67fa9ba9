//! Whom an outbound listener calls: one peer at a time, and another one while the listener runs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hoplite_identity::SpiffeId;

/// A peer's address, and the one identity that it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    /// Of this listener's: counts up from 1.
    pub(crate) number: u64,
    /// `host:port`.
    pub(crate) address: String,
    /// A workload's.
    pub(crate) expect: SpiffeId,
}

/// The destination in force, shared by all workers.
#[derive(Debug)]
pub(crate) struct DestinationFeed(ArcSwap<Destination>);

/// Why nobody can be called there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadDestination {
    #[error("write `host:port`, for example `10.0.0.7:7713`")]
    Address,
    #[error("a workload's SPIFFE ID has a path")]
    TrustDomain,
}

// === impl Destination ===

impl Destination {
    /// Checks address and identity.
    pub(crate) fn new(address: &str, expect: &SpiffeId) -> Result<Self, BadDestination> {
        if !is_address(address) {
            return Err(BadDestination::Address);
        }
        if expect.is_trust_domain() {
            return Err(BadDestination::TrustDomain);
        }
        Ok(Self {
            number: 1,
            address: address.to_owned(),
            expect: expect.clone(),
        })
    }
}

// === impl DestinationFeed ===

impl DestinationFeed {
    pub(crate) fn new(first: Destination) -> Self {
        Self(ArcSwap::from_pointee(first))
    }

    pub(crate) fn current(&self) -> Arc<Destination> {
        self.0.load_full()
    }

    /// The number of the destination in force, without touching its count of users.
    pub(crate) fn number(&self) -> u64 {
        self.0.load().number
    }

    /// From the next call on it is this one. What is under way with the one before finishes there.
    pub(crate) fn replace(&self, next: &Destination) {
        self.0.rcu(|before| Destination {
            number: before.number + 1,
            ..next.clone()
        });
    }
}

/// `host:port` with a port that can be dialled.
pub(crate) fn is_address(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_an_address_and_a_workload() {
        let check = |address: &str, expect: &str, fault| {
            let destination = Destination::new(address, &expect.parse().unwrap());
            assert_eq!(destination.err(), fault, "{address} {expect}");
        };
        let ledger = "spiffe://demo.hoplite/ledger";
        check("10.0.0.7:7713", ledger, None);
        check("[::1]:1", ledger, None);
        for address in ["", "10.0.0.7", ":1", "a:0", "a:65536", "a:b"] {
            check(address, ledger, Some(BadDestination::Address));
        }
        check("a:1", "spiffe://demo.hoplite", Some(BadDestination::TrustDomain));
    }

    #[test]
    fn each_destination_has_a_number_of_its_own() {
        let one = Destination::new("a:1", &"spiffe://demo.hoplite/a".parse().unwrap()).unwrap();
        let feed = DestinationFeed::new(one.clone());
        feed.replace(&one);
        feed.replace(&one);
        assert_eq!((feed.number(), feed.current().number), (3, 3));
    }
}
