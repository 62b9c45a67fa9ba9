//! The daemons from outside.

use std::process::Command;

#[test]
fn hoplite_agent_run_as_a_process() {
    crate::as_a_process::judge(&|| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command.arg("agent");
        command
    });
}
