//! The agent's one Unix socket: who is at the other end, what they may have, and the services that give it to them.

pub(crate) mod admission;
pub(crate) mod diagnosis;
mod health;
mod jwt_api;
pub(crate) mod policy_service;
pub(crate) mod report_service;
pub(crate) mod sds;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod turns;
pub(crate) mod workload_api;

use std::sync::Arc;

use hoplite_wire::agent::diagnosis_server::DiagnosisServer;
use hoplite_wire::health::HealthService;
use hoplite_wire::policy::policies_server::PoliciesServer;
use hoplite_wire::report::reports_server::ReportsServer;
use hoplite_wire::reporting::REPORT_BYTES_MAX;
use hoplite_wire::sds::secret_discovery_service_server::SecretDiscoveryServiceServer;
use hoplite_wire::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use tokio::sync::watch;
use tonic_reflection::pb::v1::server_reflection_server::SERVICE_NAME;
use tonic_reflection::server::Builder;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use crate::policy::Feed;
use crate::reports::points::Points;
use crate::socket::admission::Admitted;
use crate::socket::diagnosis::DiagnosisService;
use crate::socket::health::SupplyReadiness;
use crate::socket::policy_service::PolicyService;
use crate::socket::report_service::ReportService;
use crate::socket::sds::SdsService;
use crate::socket::server::{REQUEST_BYTES_MAX, Routes};
use crate::socket::session::Sessions;
use crate::socket::workload_api::WorkloadApiService;

/// Adds what every agent serves: SVIDs and bundles in two protocols, the policy in force, why somebody has what, and what gRPC
/// asks of any server.
pub(crate) fn with_services(
    routes: Routes,
    sessions: &Sessions,
    policy: watch::Receiver<Arc<Feed>>,
    points: &Arc<Points>,
) -> Routes {
    let workload_api = WorkloadApiService::new(sessions.clone());
    let sds = SdsService::new(sessions.clone());
    let policy = PolicyService::new(sessions.clone(), policy);
    let diagnosis = DiagnosisService::new(sessions.clone());
    // More than is kept of one, so that whoever says too much is told so.
    let reports = ReportService::new(sessions.clone(), Arc::clone(points));
    let routes = routes
        .grpc(SpiffeWorkloadApiServer::new(workload_api).max_decoding_message_size(REQUEST_BYTES_MAX))
        .grpc(SecretDiscoveryServiceServer::new(sds).max_decoding_message_size(REQUEST_BYTES_MAX))
        .grpc(PoliciesServer::new(policy).max_decoding_message_size(REQUEST_BYTES_MAX))
        .grpc(DiagnosisServer::new(diagnosis).max_decoding_message_size(REQUEST_BYTES_MAX))
        .grpc(ReportsServer::new(reports).max_decoding_message_size(REPORT_BYTES_MAX));
    let readiness = SupplyReadiness {
        supply: sessions.supply.clone(),
        shutdown: sessions.shutdown.clone(),
    };
    let health = HealthService::server(readiness, routes.names()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let routes = routes.grpc(Admitted(health));
    match reflection(&routes) {
        Ok(reflection) => routes.grpc(Admitted(reflection)),
        // The descriptors are compiled in; a test asks for them.
        Err(error) => {
            tracing::error!(%error, "server reflection is not served");
            routes
        }
    }
}

/// Server reflection for what is served (W-2).
fn reflection(
    routes: &Routes,
) -> Result<ServerReflectionServer<impl ServerReflection>, tonic_reflection::server::Error> {
    let mut builder = Builder::configure()
        .register_encoded_file_descriptor_set(hoplite_wire::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(SERVICE_NAME);
    for name in routes.names() {
        builder = builder.with_service_name(name);
    }
    builder.build_v1()
}
