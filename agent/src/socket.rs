//! The agent's one Unix socket: who is at the other end, what they may have, and the services that give it to them.

pub(crate) mod admission;
pub(crate) mod policy_service;
pub(crate) mod sds;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod workload_api;

use std::sync::Arc;

use hoplite_wire::policy::policies_server::PoliciesServer;
use hoplite_wire::sds::secret_discovery_service_server::SecretDiscoveryServiceServer;
use hoplite_wire::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use tokio::sync::watch;

use crate::policy::Feed;
use crate::socket::policy_service::PolicyService;
use crate::socket::sds::SdsService;
use crate::socket::server::{REQUEST_BYTES_MAX, Routes};
use crate::socket::session::Sessions;
use crate::socket::workload_api::WorkloadApiService;

/// Adds what every agent serves: SVIDs and bundles in two protocols, and the policy in force.
pub(crate) fn with_services(routes: Routes, sessions: &Sessions, policy: watch::Receiver<Arc<Feed>>) -> Routes {
    let workload_api = WorkloadApiService::new(sessions.clone());
    let sds = SdsService::new(sessions.clone());
    let policy = PolicyService::new(sessions.clone(), policy);
    routes
        .grpc(SpiffeWorkloadApiServer::new(workload_api).max_decoding_message_size(REQUEST_BYTES_MAX))
        .grpc(SecretDiscoveryServiceServer::new(sds).max_decoding_message_size(REQUEST_BYTES_MAX))
        .grpc(PoliciesServer::new(policy).max_decoding_message_size(REQUEST_BYTES_MAX))
}
