//! Many agents in one process, and a CA that was away: nobody asks all at once, neither when it is back nor half a life later.
//!
//! 40 agents and 20 s, or as `HOPLITE_STORM=AGENTS,SECONDS` says: `HOPLITE_STORM=200,60 cargo test --test storm -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::time::Duration;

use hoplite_tests::{World, get, own_selectors, until};

/// Of each agent.
const ENTRIES: usize = 5;

/// So short that all of them fall due while the CA is away, and twice more while it is watched.
const TTL: Duration = Duration::from_secs(60);

/// The share of all renewals of a life that fall into one second at the most, in percent. Evenly spread it were 3 at half of a
/// life of 60 s.
const SHARE_MAX: u64 = 15;

/// Sum of the samples of a metric whose line has these texts.
async fn counted(world: &World, name: &str, having: &str) -> u64 {
    let shown = get(world.ca_metrics(), "/metrics").await.unwrap().body;
    let lines = shown
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(having));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_agents_come_back_without_a_second_peak() {
    let asked = std::env::var("HOPLITE_STORM").unwrap_or_else(|_| "40,20".to_owned());
    let (agents, outage) = asked.split_once(',').unwrap();
    let (agents, outage) = (agents.parse::<usize>().unwrap(), outage.parse().unwrap());
    let mut world = World::start().await;
    let mut running = Vec::new();
    for n in 0..agents {
        let node = format!("n{n}");
        running.push(world.start_node(&node).await);
        for entry in 0..ENTRIES {
            let path = format!("/{node}/w{entry}");
            world.register_under(&node, &path, &own_selectors(), Some(TTL)).await;
        }
    }
    let all = (agents * ENTRIES) as u64;
    until("all SVIDs are issued", async || {
        (counted(&world, "hoplite_ca_issued_total", "kind=\"workload\"").await >= all).then_some(())
    })
    .await;

    world.stop_ca().await;
    tokio::time::sleep(Duration::from_secs(outage)).await;
    world.start_ca().await;
    let (mut renewed, mut watched, mut before) = (Vec::new(), Vec::new(), (0, 0));
    for _ in 0..TTL.as_secs() + TTL.as_secs() / 2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = (
            counted(&world, "hoplite_ca_issued_total", "kind=\"workload\"").await,
            counted(&world, "hoplite_ca_calls_total", "Watch").await,
        );
        renewed.push(now.0 - before.0);
        watched.push(now.1 - before.1);
        before = now;
    }
    println!(
        "{agents} agents of {ENTRIES} SVIDs (life {TTL:?}), CA away for {outage} s; from its return, a second each:"
    );
    println!("renewals {renewed:?}");
    println!("watches  {watched:?}");
    let peak = |seconds: &[u64]| seconds.iter().copied().max().unwrap_or_default();
    let first = 30.min(renewed.len());
    println!(
        "highest: renewals {} ({} % of {all}) and after 30 s {}, watches {}",
        peak(&renewed),
        peak(&renewed) * 100 / all,
        peak(&renewed[first..]),
        peak(&watched)
    );
    assert!(before.0 >= all, "they renew: {}", before.0);
    assert!(watched.iter().sum::<u64>() >= agents as u64, "they are back");
    assert!(
        peak(&renewed) * 100 <= SHARE_MAX * all,
        "{} of {all} in one second",
        peak(&renewed)
    );
    for agent in running {
        agent.stop().await;
    }
}
