//! Those who cannot prove who they are: refused before anything else, and the log says which and why.

#![expect(clippy::disallowed_methods, reason = "a test's now is its own")]

use std::time::{Duration, SystemTime};

use hoplite_audit::{Outcome, Phase};
use hoplite_identity::X509Svid;
use hoplite_identity::testing::TestAuthority;
use hoplite_proxy::InboundProtocol;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{App, HOUR, Proxy, World, eventually, exchange, get, inbound, status};

const ANYBODY: &str = r#"@id("anybody") permit (principal, action, resource);"#;

#[tokio::test]
async fn strangers_are_refused_and_recorded() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = App::http().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let address = proxy.inbound("orders");
    let foreign = TestAuthority::new("demo.hoplite");
    let elsewhere = TestAuthority::new("other.example");
    let now = SystemTime::now();
    let ago = |seconds| now - Duration::from_secs(seconds);
    let expired = world.authority.svid_valid("/edge", ago(600), ago(300));
    let check = async |svid: Option<&X509Svid>, code: &str| {
        let before = world.records("orders").len();
        // With TLS 1.3 a client's handshake may end before the server has looked at its certificate.
        if let Ok(stream) = world.connect(address, svid, "/orders").await {
            let answer = exchange(stream, &get("/")).await;
            assert_eq!(answer, "", "{code}");
        }
        eventually(code, async || world.records("orders").len() > before).await;
        let records = world.records("orders");
        let record = &records[before];
        assert_eq!(
            (record.phase, record.outcome),
            (Phase::Handshake, Outcome::Unauthenticated),
            "{code}"
        );
        assert_eq!(record.principal, None, "{code}");
        assert!(record.source.is_some(), "{code}");
        let reason = record.reason.as_deref().unwrap_or_default();
        assert!(reason.starts_with(&format!("{code}: ")), "{code}: {reason}");
    };
    check(None, "no_certificate").await;
    check(Some(&foreign.svid("/edge", HOUR)), "unknown_authority").await;
    check(Some(&elsewhere.svid("/edge", HOUR)), "unknown_trust_domain").await;
    check(Some(&expired), "expired").await;

    let before = world.records("orders").len();
    let plain = TcpStream::connect(address).await.unwrap();
    assert_eq!(exchange(plain, &get("/")).await, "");
    eventually("plaintext", async || world.records("orders").len() > before).await;
    let reason = world.records("orders")[before].reason.clone().unwrap();
    assert!(reason.starts_with("plaintext: "), "{reason}");
    assert_eq!(app.count(), 0, "nothing reached the service");
}

#[tokio::test]
async fn a_health_check_is_no_stranger() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = App::http().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    drop(TcpStream::connect(proxy.inbound("orders")).await.unwrap());
    eventually("it is gone", async || proxy.status().await["connections"] == 0).await;
    assert_eq!(world.records("orders").len(), 0);
}

#[tokio::test]
async fn silent_strangers_do_not_keep_others_out() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = App::http().await;
    let agent = world.agent("orders", &world.svid("/orders")).await;
    let mut config = world.config("orders", &agent);
    config.limits.connections_max = 227; // and an eighth more for newcomers
    config
        .inbound
        .push(inbound("orders", InboundProtocol::Http, app.address));
    let proxy = Proxy::start(config, agent).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(proxy.inbound("orders")).await.unwrap();
        stream.write_all(&[0x16]).await.unwrap();
        silent.push(stream);
    }
    let request = get("/");
    let call = world.raw(proxy.inbound("orders"), "/orders", &request);
    let answer = tokio::time::timeout(Duration::from_secs(5), call).await;
    assert_eq!(status(&answer.expect("an answer while they are silent")), 200);
    eventually("the oldest are recorded", async || {
        let reasons = world.records("orders").into_iter().filter_map(|record| record.reason);
        reasons.filter(|reason| reason.starts_with("crowded_out: ")).count() >= 44
    })
    .await;
}

#[tokio::test]
async fn whoever_is_no_longer_vouched_for_is_cut_off() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = App::tcp_echo().await;
    let proxy = world.inbound("db", InboundProtocol::Tcp, app.address).await;
    let svid = world.svid("/edge");
    let stream = world.connect(proxy.inbound("db"), Some(&svid), "/db").await.unwrap();
    eventually("it is connected", async || app.count() == 1).await;
    // The trust domain has another authority now, and the old one is not in the bundle any more.
    let next = TestAuthority::new("demo.hoplite");
    proxy.agent.push(&next.svid("/db", HOUR), &next);
    assert_eq!(exchange(stream, "").await, "");
    eventually("it is closed", async || proxy.status().await["connections"] == 0).await;
}

#[tokio::test]
async fn a_connection_ends_with_the_first_certificate() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = App::tcp_echo().await;
    let proxy = world.inbound("db", InboundProtocol::Tcp, app.address).await;
    let short = world.authority.svid("/edge", Duration::from_secs(2));
    let stream = world.connect(proxy.inbound("db"), Some(&short), "/db").await.unwrap();
    assert_eq!(
        exchange(stream, "ping").await,
        "ping",
        "it worked, and then it was closed"
    );
    assert!(SystemTime::now() >= short.leaf().not_after());
}
