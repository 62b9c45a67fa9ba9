//! The only crate with protobuf types: Workload API, SDS v3, external authorization v3 and Hoplite's own services.
//!
//! Types from [`workload`], [`ca`], [`sds`] and [`ext_authz`] are parsed into domain types at the edge, once, and go no further. The
//! client side of the protocols that others speak stands here too, so that no other crate repeats it: [`channel`] dials
//! Unix sockets and TLS endpoints, [`WorkloadApi`] is a Workload API client, [`PolicyFeed`] is told what is in force,
//! [`reporting`] says what of a report has changed, [`https`] fetches a document from a server of somebody else's.
//! [`read_part`] and [`write_part`] are the form of a backup. [`health`] answers gRPC's health protocol. [`Served`] is a connection on the server's side, [`Counted`] what is asked on it.

mod backup_parts;
pub mod channel;
mod codec;
mod entry;
pub mod health;
mod hearing;
pub mod https;
mod policy_feed;
mod report_link;
pub mod reporting;
mod served;
mod trust_bundle;
mod workload_api;
mod workload_jwt;

pub use backup_parts::{BACKUP_PART_BYTES_MAX, read_part, write_part};
pub use entry::entry_message;
pub use policy_feed::{POLICY_BYTES_MAX, PolicyFeed};
pub use report_link::ReportLink;
pub use served::{Begins, Beside, Counted, NO_RPC, Served};
pub use trust_bundle::{BadTrustBundle, jwt_authorities, trust_bundle};
pub use workload_api::{FetchError, Identity, WorkloadApi, socket_path};
pub use workload_jwt::{NotBelieved, WorkloadJwt};

/// Every protobuf file as an encoded `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The SPIFFE Workload API, as the standard's proto file defines it.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/workload.proto, which is documented"
)]
pub mod workload {
    tonic::include_proto!("_");
}

/// What is generated of packages of ours that name each other, in the places where each looks for the other.
mod generated {
    pub(crate) mod ca {
        /// What agents and operators ask of the CA.
        #[expect(
            missing_docs,
            clippy::allow_attributes,
            clippy::allow_attributes_without_reason,
            reason = "generated from proto/hoplite/ca.proto, which is documented"
        )]
        pub mod v1 {
            tonic::include_proto!("hoplite.ca.v1");
        }
    }

    pub(crate) mod report {
        /// What the parts of a mesh say of themselves.
        #[expect(
            missing_docs,
            clippy::allow_attributes,
            clippy::allow_attributes_without_reason,
            reason = "generated from proto/hoplite/report.proto, which is documented"
        )]
        pub mod v1 {
            tonic::include_proto!("hoplite.report.v1");
        }
    }
}

pub use generated::ca::v1 as ca;
pub use generated::report::v1 as report;

/// What people ask of the agent on their node.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/hoplite/agent.proto, which is documented"
)]
pub mod agent {
    tonic::include_proto!("hoplite.agent.v1");
}

/// What an agent tells those on its node that enforce policy.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/hoplite/policy.proto, which is documented"
)]
pub mod policy {
    tonic::include_proto!("hoplite.policy.v1");
}

/// Envoy's secret discovery service, v3.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/envoy/sds.proto, which is documented"
)]
pub mod sds {
    tonic::include_proto!("envoy.service.secret.v3");
}

/// Envoy's external authorization service, v3.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/envoy/ext_authz.proto, which is documented"
)]
pub mod ext_authz {
    tonic::include_proto!("envoy.service.auth.v3");
}

/// What an OpenTelemetry collector takes: the part of OTLP that is sent from here.
#[cfg(feature = "otlp")]
pub mod otlp {
    /// What spans and metrics share.
    pub mod common {
        #[expect(
            missing_docs,
            reason = "generated from proto/opentelemetry/common.proto, which is documented"
        )]
        pub mod v1 {
            tonic::include_proto!("opentelemetry.proto.common.v1");
        }
    }

    /// Spans and metrics, and who takes them.
    pub mod collector {
        /// Spans.
        pub mod trace {
            #[expect(
                missing_docs,
                clippy::allow_attributes_without_reason,
                reason = "generated from proto/opentelemetry/trace.proto, which is documented"
            )]
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
            }
        }

        /// Metrics.
        pub mod metrics {
            #[expect(
                missing_docs,
                clippy::allow_attributes_without_reason,
                reason = "generated from proto/opentelemetry/metrics.proto, which is documented"
            )]
            pub mod v1 {
                tonic::include_proto!("opentelemetry.proto.collector.metrics.v1");
            }
        }
    }
}
