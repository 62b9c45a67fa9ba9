//! A workload that calls: fetches its X.509-SVID from the agent, and with it one path of a service. For a user other than the test's.
//!
//! Usage: caller SOCKET ADDRESS EXPECTED-SPIFFE-ID PATH. Prints one line of JSON: its SPIFFE ID and the status of the answer. Ends with 3
//! when the agent gives it nothing, and says why.

use std::io::Write;
use std::process::ExitCode;

use hoplite_tests::TestClient;
use hoplite_wire::{FetchError, WorkloadApi};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().unwrap_or_default();
    let (socket, address, expected, path) = (next(), next(), next(), next());
    let fetched = async { WorkloadApi::open(&socket).await?.next().await };
    let (code, line) = match fetched.await {
        Ok(identity) => {
            let client = TestClient {
                svid: identity.svids.into_iter().next(),
                bundles: identity.bundles,
            };
            let own = client.svid.as_ref().map(|svid| svid.spiffe_id().to_string());
            let status = match address.parse() {
                Ok(address) => client
                    .get(address, &expected, &path)
                    .await
                    .map(|answer| answer.status.as_u16())
                    .ok(),
                Err(_) => None,
            };
            (0, json!({ "spiffe_id": own, "status": status }))
        }
        Err(FetchError::Denied(reason)) => (3, json!({ "denied": reason })),
        Err(error) => (1, json!({ "error": error.to_string() })),
    };
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::FAILURE,
    }
}
