//! The real binary from outside: what a person types, sees, edits, kills and starts again.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests: a panic is how they fail"
)]

mod acts;
#[path = "../../../agent/tests/as_a_process/mod.rs"]
mod as_a_process;
mod authorities;
mod bad_days;
mod billing;
mod cli;
#[path = "../../../tests/clock/mod.rs"]
mod clock;
mod clock_steps;
mod daemon;
mod denied;
mod doctor;
mod draining;
mod entries;
mod files_guide;
mod fleet;
mod full_disk;
mod guides;
mod joining;
mod keys;
mod listeners;
mod listings;
mod log_out_of_reach;
mod machine;
mod manager;
mod many_findings;
mod nested;
mod old_kernel;
mod operators;
#[path = "../../../tests/page/mod.rs"]
mod page;
mod policy_change;
mod policy_check;
mod publishing;
mod reader;
mod replicas;
mod restored;
mod screens;
mod shell;
mod signals;
mod support;
mod surviving;
mod svid_files;
mod tables;
mod telemetry;
mod two_machines;
mod unheard;
mod up;
mod upstreams;
