//! A decision allocates by what concerns the request, and not by how many policies there are.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "what it counts is made of constants"
)]

use std::time::SystemTime;

use allocation_counter::{AllocationInfo, measure};
use hoplite_bench::sources;
use hoplite_identity::testing::TestAuthority;
use hoplite_policy::{AuthzRequest, CanonicalRequest, Snapshot, Transport, decide};

/// What deciding allocates with this many policies, 20 of which cover the request: the first time, and afterwards.
fn allocated(policies: usize) -> [AllocationInfo; 2] {
    let snapshot = Snapshot::compile(&sources(policies)).unwrap();
    let peer = TestAuthority::new("prod.acme").peer("/ns/pay/sa/refunds");
    let http = CanonicalRequest::parse("GET", &[b"twenty"], b"/accounts/7").unwrap();
    let service = "twenty".parse().unwrap();
    let route = snapshot.routes().route(&service, &http);
    let from = Transport::new([10, 0, 0, 7].into());
    let request = AuthzRequest::http(&peer, &service, &route, &http, &from, SystemTime::now());
    // What is made once per process, and once per thread.
    decide(&snapshot, &request);
    snapshot.forget_calls();
    let cold = measure(|| drop(decide(&snapshot, &request)));
    let cached = measure(|| drop(decide(&snapshot, &request)));
    [cold, cached]
}

#[test]
fn ten_times_the_policies_allocate_the_same() {
    let (few, many) = (allocated(1_000), allocated(10_000));
    for (kind, few, many) in [("cold", &few[0], &many[0]), ("cached", &few[1], &many[1])] {
        assert!(few.bytes_total > 0, "{kind}: nothing was counted");
        assert_eq!(
            (few.count_total, few.bytes_total),
            (many.count_total, many.bytes_total),
            "{kind}: allocations, bytes"
        );
    }
}
