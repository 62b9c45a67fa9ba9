//! What a set of policies costs before the first decision: time to parse, validate and index, and the memory it keeps.
//!
//! `cargo bench -p hoplite-bench --bench policy_set`: `alloc` less `dealloc` is what is kept. Counting every allocation
//! makes it slower than it is.

#![expect(
    clippy::unwrap_used,
    reason = "a measurement that cannot start has nothing to measure"
)]

use divan::{AllocProfiler, Bencher, black_box};
use hoplite_bench::sources;
use hoplite_policy::Snapshot;

#[global_allocator]
static ALLOC: AllocProfiler<std::alloc::System> = AllocProfiler::system();

fn main() {
    divan::main();
}

/// Parse, validate strictly, index.
#[divan::bench(args = [10, 1_000, 10_000, 100_000], sample_count = 1, sample_size = 1)]
fn compile(bencher: Bencher<'_, '_>, policies: usize) {
    let sources = sources(policies);
    bencher.bench_local(|| Snapshot::compile(black_box(&sources)).unwrap());
}
