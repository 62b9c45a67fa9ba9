//! A decision log that somebody touches: nothing is permitted that is recorded nowhere.

#![expect(clippy::disallowed_methods, reason = "a test's now is its own")]

use std::time::{Duration, Instant};

use hoplite_host::daemon::one_line;
use hoplite_proxy::InboundProtocol;

use crate::support::{App, Proxy, World, eventually, get, status};

const ANYBODY: &str = r#"@id("anybody") permit (principal, action, resource);"#;

#[tokio::test]
async fn a_log_that_is_removed_ends_what_is_permitted() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = App::http().await;
    let mut proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let address = proxy.inbound("orders");
    assert_eq!(status(&world.raw(address, "/orders", &get("/")).await), 200);
    let (log, aside) = (proxy.config.audit_dir.clone(), world.path("aside"));
    std::fs::rename(&log, &aside).unwrap();

    let touched = Instant::now();
    let why = one_line(&proxy.running.wait().await);
    assert!(touched.elapsed() < Duration::from_secs(1), "{:?}", touched.elapsed());
    assert!(why.contains("somebody has touched"), "{why}");
    let answer = world.raw(address, "/orders", &get("/")).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(
        answer.contains("unrecorded") && !answer.contains("x-hoplite-decision"),
        "{answer}"
    );
    assert_eq!(app.count(), 1, "nothing more was forwarded");

    // Whoever starts it again does not begin a new log in its place, until the old one is back.
    let Proxy { running, agent, config } = proxy;
    running.stop().await;
    let refused = one_line(&hoplite_proxy::start(config.clone()).await.unwrap_err());
    assert!(
        refused.contains("does not hold what was written there last"),
        "{refused}"
    );
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::rename(&aside, &log).unwrap();
    // The refused one, in this very process, may hold its lock a moment longer.
    eventually("the lock is free", async || {
        let lock = std::fs::File::open(log.join("lock")).unwrap();
        lock.try_lock().is_ok()
    })
    .await;
    let proxy = Proxy::start(config, agent).await;
    assert_eq!(
        status(&world.raw(proxy.inbound("orders"), "/orders", &get("/")).await),
        200
    );
    assert_eq!(world.records("orders").len(), 2);
}
