//! Measurements: what things cost, beside what they are compared with, in one run. `cargo bench -p hoplite-bench`.
//!
//! Nothing here is a test: a busy machine must not fail a build. bench/README.md holds what was measured, where and when.
