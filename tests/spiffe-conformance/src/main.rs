//! `spiffe-conformance`: judges a Workload API, a bundle endpoint, SVIDs, tokens and bundles, and reports clause by clause.

use std::io::{stderr, stdout};
use std::process::ExitCode;
use std::time::SystemTime;

fn main() -> ExitCode {
    ExitCode::from(spiffe_conformance::cli::run(
        std::env::args_os(),
        &mut stdout(),
        &mut stderr(),
        now,
    ))
}

#[expect(clippy::disallowed_methods, reason = "time enters here")]
fn now() -> SystemTime {
    SystemTime::now()
}
