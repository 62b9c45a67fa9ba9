//! What the agent says of itself, from what its parts hold.

use std::sync::Arc;
use std::time::SystemTime;

use hoplite_decision::reporting::{program, unix};
use hoplite_host::program::Program;
use hoplite_policy::bundle::Stage;
use hoplite_policy::holding::{BundleRef, Holding};
use hoplite_wire::report::{Count, NodeAbout, NodeCounters, NodeState};
use tokio::sync::watch;

use crate::node::link::Credentials;
use crate::policy::Feed;
use crate::refused::Refused;
use crate::supply::SupplyReceiver;
use crate::supply::sync::Registrations;

/// Where it is looked.
#[derive(Debug, Clone)]
pub(crate) struct NodeFacts {
    pub(crate) started: SystemTime,
    pub(crate) credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub(crate) registrations: watch::Receiver<Option<Arc<Registrations>>>,
    pub(crate) supply: SupplyReceiver,
    pub(crate) holdings: watch::Receiver<Arc<Holding>>,
    pub(crate) feed: watch::Receiver<Arc<Feed>>,
    pub(crate) refused: Arc<Refused>,
}

// === impl NodeFacts ===

impl NodeFacts {
    pub(crate) fn about(&self) -> NodeAbout {
        let this = Program::this();
        NodeAbout {
            program: Some(program(self.started)),
            kernel: this.kernel.clone(),
            os: this.os.clone(),
        }
    }

    pub(crate) fn state(&self) -> NodeState {
        let holding = self.holdings.borrow().clone();
        let live = holding.live().map(BundleRef::seen);
        let shadow = holding.bundle(Stage::Shadow).map(BundleRef::seen);
        let signers = self.feed.borrow().signers.as_ref().map(|chain| chain.version());
        let supply = self.supply.borrow().clone();
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        let mut state = NodeState {
            live_revision: live.map_or(0, |seen| seen.revision),
            live_manifest_sha256: live.map(|seen| seen.manifest.0.to_vec()).unwrap_or_default(),
            shadow_revision: shadow.map_or(0, |seen| seen.revision),
            signers_version: signers.unwrap_or_default(),
            entries: supply.as_ref().map_or(0, |supply| count(supply.len())),
            entries_without_svid: supply.as_ref().map_or(0, |supply| count(supply.without_svid())),
            svids_tainted: supply.as_ref().map_or(0, |supply| count(supply.tainted())),
            ..NodeState::default()
        };
        if let Some(own) = self.credentials.borrow().as_ref() {
            let leaf = own.svid.leaf();
            state.svid_not_before_unix = unix(leaf.not_before());
            state.svid_not_after_unix = unix(leaf.not_after());
            state.authority_not_after_unix = own.bundle.last_end().map(unix).unwrap_or_default();
            state.bundle_sequence = own.bundle.sequence();
        }
        if let Some(registrations) = self.registrations.borrow().as_ref() {
            state.entries_revision = registrations.revision;
            state.entries_digest = registrations.digest.to_vec();
            state.last_sync_unix = unix(registrations.heard);
        }
        state
    }

    pub(crate) fn counters(&self) -> NodeCounters {
        let refusals = self.refused.counts().into_iter().filter(|(_, count)| *count > 0);
        let refusals = refusals.map(|(cause, count)| Count {
            name: cause.to_owned(),
            count,
        });
        NodeCounters {
            refusals: refusals.collect(),
        }
    }

    /// The end of the node's own SVID.
    pub(crate) fn svid_life(&self) -> Option<(SystemTime, SystemTime)> {
        self.credentials
            .borrow()
            .as_ref()
            .map(|own| (own.svid.leaf().not_before(), own.svid.leaf().not_after()))
    }

    /// The agent's own name.
    pub(crate) fn spiffe_id(&self) -> String {
        let own = self.credentials.borrow();
        own.as_ref()
            .map(|own| own.svid.spiffe_id().to_string())
            .unwrap_or_default()
    }

    /// Returns when something of it may have changed. Of a part that has ended nothing changes any more.
    pub(crate) async fn changed(&mut self) {
        async fn changed<T>(receiver: &mut watch::Receiver<T>) {
            if receiver.changed().await.is_err() {
                std::future::pending().await
            }
        }
        tokio::select! {
            () = changed(&mut self.credentials) => {}
            () = changed(&mut self.registrations) => {}
            () = changed(&mut self.supply) => {}
            () = changed(&mut self.holdings) => {}
            () = changed(&mut self.feed) => {}
        }
    }
}
