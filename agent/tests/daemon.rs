//! `hoplite-agent` from outside.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests: a panic is how they fail"
)]

mod as_a_process;

use std::process::Command;

#[test]
fn hoplite_agent_as_a_process() {
    as_a_process::judge(&|| Command::new(env!("CARGO_BIN_EXE_hoplite-agent")));
}
