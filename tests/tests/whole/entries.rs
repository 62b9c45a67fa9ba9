//! An entry that is changed in place: its workload gets a new certificate soon, and is at no moment without one.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hoplite_identity::X509Svid;
use hoplite_tests::{World, own_selectors, until};
use hoplite_wire::{Identity, WorkloadApi};

/// A change is pushed in milliseconds; this is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits on the stream for an SVID of which this holds. Whatever else comes must be an SVID, too.
async fn wait_for(stream: &mut WorkloadApi, holds: impl Fn(&X509Svid) -> bool) {
    let waiting = async {
        loop {
            let Identity { svids, .. } = stream.next().await.expect("the stream goes on");
            if svids.iter().any(&holds) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("a new SVID in time");
}

fn has_dns_name(svid: &X509Svid, name: &str) -> bool {
    svid.chain()[0]
        .windows(name.len())
        .any(|window| window == name.as_bytes())
}

fn life(svid: &X509Svid) -> Duration {
    let leaf = svid.leaf();
    leaf.not_after().duration_since(leaf.not_before()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_changes_is_reissued_and_at_no_moment_away() {
    let world = World::start().await;
    let entry = world.register("/web", &own_selectors(), None).await;
    until("an SVID", async || world.fetch("/web").await.ok().flatten()).await;
    let mut stream = WorkloadApi::open(&world.workload_api()).await.unwrap();
    wait_for(&mut stream, |_| true).await;

    // Somebody with the same selectors who comes anew all the time.
    let (ends, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let others = {
        let (address, ends, asked) = (world.workload_api(), Arc::clone(&ends), Arc::clone(&asked));
        tokio::spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                let mut api = WorkloadApi::open(&address).await.expect("let in");
                api.next().await.expect("given an SVID");
                asked.fetch_add(1, Ordering::Relaxed);
            }
        })
    };

    for n in 0..5 {
        let name = format!("web-{n}.internal");
        world.update(&entry, |entry| entry.dns_names = vec![name.clone()]).await;
        wait_for(&mut stream, |svid| has_dns_name(svid, &name)).await;
    }
    world.update(&entry, |entry| entry.x509_ttl_seconds = 600).await;
    wait_for(&mut stream, |svid| life(svid) < Duration::from_secs(3000)).await;
    world
        .update(&entry, |entry| {
            entry.hint = "h".to_owned();
            entry.owner = "infra".to_owned();
        })
        .await;
    // Selectors that the process has as well.
    let uid = own_selectors()[0].parse::<hoplite_identity::Selector>().unwrap();
    world
        .update(&entry, |entry| entry.selectors = vec![(&uid).into()])
        .await;
    let before = asked.load(Ordering::Relaxed);
    until("it was asked since", async || {
        (asked.load(Ordering::Relaxed) > before + 5).then_some(())
    })
    .await;
    ends.store(true, Ordering::Relaxed);
    others.await.expect("nobody was refused");
}
