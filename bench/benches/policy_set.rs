//! What a set of policies costs before the first decision: time to parse, validate and index it, the same when all but
//! one of its policies are in force already, and the memory that it keeps.
//!
//! `cargo bench -p hoplite-bench --bench policy_set [-- POLICIES…]`. Memory is what the process has grown by.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot start has nothing to measure, and prints what it saw"
)]

use std::fs;
use std::time::Instant;

use hoplite_bench::sources;
use hoplite_policy::Snapshot;

const SIZES: [usize; 4] = [10, 1_000, 10_000, 100_000];
const PAGE_BYTES: usize = 4096;

fn main() {
    // `cargo test --benches` asks with `--test` whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let wanted: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if wanted.is_empty() { &SIZES } else { wanted.as_slice() };
    // What is made once is no part of the first set.
    Snapshot::compile(&sources(10)).unwrap();
    for &policies in sizes {
        let mut sources = sources(policies);
        let (began, before) = (Instant::now(), resident_bytes());
        let snapshot = Snapshot::compile(&sources).unwrap();
        let (compiled, kept) = (began.elapsed(), resident_bytes().saturating_sub(before));

        let one_more = "@id(\"one-more\") forbid (principal, action, resource == Hoplite::Route::\"two:unmatched\");";
        sources.first_mut().unwrap().text.push_str(one_more);
        let began = Instant::now();
        let next = snapshot.recompile(&sources).unwrap();
        let again = began.elapsed();
        assert_eq!(next.policy_ids().len(), policies + 1);
        println!(
            "{policies:>6} policies: compile {compiled:.2?}, with one more {again:.2?}, keep {:.1} MB, {} B each",
            kept as f64 / 1e6,
            kept / policies
        );
    }
}

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE_BYTES
}
