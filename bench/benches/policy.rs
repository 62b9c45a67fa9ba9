//! What a decision costs: by the number of policies there are, and by the number that concern the request.
//!
//! `cargo bench -p hoplite-bench --bench policy [FILTER]`

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a measurement that cannot start has nothing to measure"
)]

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::SystemTime;

use divan::{Bencher, black_box};
use hoplite_bench::sources;
use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{ServiceName, VerifiedPeer};
use hoplite_policy::{AuthzRequest, CanonicalRequest, Snapshot, Transport, decide, decide_by_reference};

/// Policies in the set, and how many of them concern the request.
#[derive(Clone, Copy)]
struct Size {
    policies: usize,
    candidates: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} policies, {:>3} candidates", self.policies, self.candidates)
    }
}

const SIZES: [Size; 10] = [
    size(10, 2),
    size(1_000, 2),
    size(10_000, 2),
    size(100_000, 2),
    size(1_000, 20),
    size(10_000, 20),
    size(100_000, 20),
    size(1_000, 200),
    size(10_000, 200),
    size(100_000, 200),
];

const fn size(policies: usize, candidates: usize) -> Size {
    Size { policies, candidates }
}

fn main() {
    divan::main();
}

fn snapshot(policies: usize) -> Arc<Snapshot> {
    static MADE: LazyLock<Mutex<HashMap<usize, Arc<Snapshot>>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap();
    let snapshot = made.entry(policies);
    Arc::clone(snapshot.or_insert_with(|| Arc::new(Snapshot::compile(&sources(policies)).unwrap())))
}

static PEER: LazyLock<VerifiedPeer> = LazyLock::new(|| TestAuthority::new("prod.acme").peer("/ns/pay/sa/refunds"));

fn request(snapshot: &Snapshot, prefix: &str, candidates: usize, transport: &Transport) -> AuthzRequest {
    let service = match candidates {
        2 => "two",
        20 => "twenty",
        _ => "many",
    };
    let service: ServiceName = format!("{prefix}{service}").parse().unwrap();
    let http = CanonicalRequest::parse("GET", &[service.as_str().as_bytes()], b"/accounts/7").unwrap();
    let route = snapshot.routes().route(&service, &http);
    AuthzRequest::http(&*PEER, &service, &route, &http, transport, SystemTime::now())
}

fn transport() -> Transport {
    Transport::new([10, 0, 0, 7].into())
}

/// A request of a caller and route seen before; one in four candidates looks at the context.
#[divan::bench(args = SIZES)]
fn cached(bencher: Bencher<'_, '_>, size: &Size) {
    let snapshot = snapshot(size.policies);
    let request = request(&snapshot, "", size.candidates, &transport());
    bencher.bench_local(|| decide(&snapshot, black_box(&request)));
}

/// As `cached`, where every candidate looks at the context.
#[divan::bench(args = SIZES)]
fn cached_all_contextual(bencher: Bencher<'_, '_>, size: &Size) {
    let snapshot = snapshot(size.policies);
    let request = request(&snapshot, "all-", size.candidates, &transport());
    bencher.bench_local(|| decide(&snapshot, black_box(&request)));
}

/// With all the request's own work: canonical form, route, context.
#[divan::bench(args = SIZES)]
fn cached_from_bytes(bencher: Bencher<'_, '_>, size: &Size) {
    let (snapshot, transport) = (snapshot(size.policies), transport());
    bencher.bench_local(|| decide(&snapshot, &request(&snapshot, "", size.candidates, &transport)));
}

/// The first request of this caller on this route since the policy came in force.
#[divan::bench(args = SIZES, sample_size = 1)]
fn cold(bencher: Bencher<'_, '_>, size: &Size) {
    let snapshot = snapshot(size.policies);
    let request = request(&snapshot, "", size.candidates, &transport());
    bencher
        .with_inputs(|| snapshot.forget_calls())
        .bench_local_values(|()| decide(&snapshot, black_box(&request)));
}

/// Cedar's authorizer over every policy.
#[divan::bench(args = [size(10, 2), size(1_000, 20), size(10_000, 20), size(100_000, 20)], sample_count = 10, sample_size = 1)]
fn plain_cedar(bencher: Bencher<'_, '_>, size: &Size) {
    let snapshot = snapshot(size.policies);
    let request = request(&snapshot, "", size.candidates, &transport());
    bencher.bench_local(|| decide_by_reference(&snapshot, black_box(&request)));
}
