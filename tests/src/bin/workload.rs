//! A workload that is not ours: fetches its X.509-SVID with the `spiffe` crate and prints what it got as one line of JSON.
//! That crate keeps a refusal's code and drops its reason, so the reason is asked for again with our own client.
//!
//! Usage: workload SOCKET. Ends with 0 for an SVID, with 3 when the agent refuses one, with 1 for anything else.

use std::io::Write;
use std::process::ExitCode;

use hoplite_wire::{FetchError, WorkloadApi};
use serde_json::json;
use spiffe::{WorkloadApiClient, WorkloadApiError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let socket = std::env::args().nth(1).unwrap_or_default();
    let fetched = async { WorkloadApiClient::connect_to(&socket).await?.fetch_x509_svid().await };
    let (code, line) = match fetched.await {
        Ok(svid) => (0, json!({ "spiffe_id": svid.spiffe_id().to_string() })),
        Err(WorkloadApiError::PermissionDenied(_) | WorkloadApiError::NoIdentityIssued) => (
            3,
            json!({ "error": "PermissionDenied", "detail": reason(&socket).await }),
        ),
        Err(error) => (1, json!({ "error": "other", "detail": error.to_string() })),
    };
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::FAILURE,
    }
}

async fn reason(socket: &str) -> Option<String> {
    match WorkloadApi::open(socket).await {
        Err(FetchError::Denied(reason)) => Some(reason),
        Ok(mut api) => match api.next().await {
            Err(FetchError::Denied(reason)) => Some(reason),
            _ => None,
        },
        Err(_) => None,
    }
}
