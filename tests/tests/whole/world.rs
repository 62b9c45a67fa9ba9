//! A whole trust domain in one process: traffic, registration, policy and rotation, and what happens when a part is away.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use hoplite_audit::{Outcome, Phase, Query};
use hoplite_proxy::OutboundProtocol;
use hoplite_tests::{HttpApp, Load, PlainClient, Proxy, TcpApp, World, get, id, own_selectors, until};
use hoplite_wire::FetchError;
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Each hop may be called by the one before it; only orders may call the ledger, and only to read.
const POLICY: &str = r#"
@id("shop/edge") permit (principal == Hoplite::Workload::"spiffe://world.test/visitor",
    action in [Hoplite::Action::"anyHttp"], resource in Hoplite::Service::"edge");
@id("shop/orders") permit (principal == Hoplite::Workload::"spiffe://world.test/edge",
    action in [Hoplite::Action::"anyHttp"], resource in Hoplite::Service::"orders");
@id("shop/ledger") permit (principal == Hoplite::Workload::"spiffe://world.test/orders",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"ledger");
@id("shop/edge-stays-out") forbid (principal == Hoplite::Workload::"spiffe://world.test/edge",
    action, resource in Hoplite::Service::"ledger");
"#;

/// `visitor → edge → orders → ledger`: four proxies, three services, and a door for a plain client.
struct Shop {
    visitor: Proxy,
    edge: Proxy,
    orders: Proxy,
    ledger: Proxy,
    _apps: [HttpApp; 3],
}

impl Shop {
    async fn start(world: &World, ttl: Duration) -> Self {
        world.policy(POLICY);
        let apps = [HttpApp::start().await, HttpApp::start().await, HttpApp::start().await];
        let ledger = world.proxy("ledger").http("ledger", &apps[2]).ttl(ttl).start().await;
        let peer = ledger.inbound("ledger");
        let orders = world
            .proxy("orders")
            .http("orders", &apps[1])
            .calls("ledger", peer)
            .ttl(ttl)
            .start()
            .await;
        apps[1].call(orders.outbound("ledger"));
        let edge = world
            .proxy("edge")
            .http("edge", &apps[0])
            .calls("orders", orders.inbound("orders"));
        let edge = edge.calls("ledger", peer).ttl(ttl).start().await;
        apps[0].call(edge.outbound("orders"));
        let visitor = world
            .proxy("visitor")
            .calls("edge", edge.inbound("edge"))
            .ttl(ttl)
            .start()
            .await;
        Self {
            visitor,
            edge,
            orders,
            ledger,
            _apps: apps,
        }
    }

    /// Where a plain client begins a call through all hops.
    fn door(&self) -> SocketAddr {
        self.visitor.outbound("edge")
    }

    fn load(&self) -> Load {
        Load::start(self.door(), Method::GET, "/accounts/42", StatusCode::OK)
    }

    async fn serials(&self) -> [String; 4] {
        [
            self.visitor.serial().await,
            self.edge.serial().await,
            self.orders.serial().await,
            self.ledger.serial().await,
        ]
    }

    /// Waits until every proxy shows another SVID than then.
    async fn rotated_since(&self, then: &[String; 4]) {
        until("every proxy has a new SVID", async || {
            let now = self.serials().await;
            now.iter().zip(then).all(|(now, then)| now != then).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_crosses_all_hops_or_is_refused_and_the_log_says_why() {
    let world = World::start().await;
    let shop = Shop::start(&world, Duration::from_secs(3600)).await;

    let answer = get(shop.door(), "/accounts/42").await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let reached = answer.json();
    assert_eq!(reached["target"], "/accounts/42");
    let caller = reached["headers"]["x-forwarded-client-cert"][0]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        caller.ends_with(&format!(";URI={}", id("/orders"))),
        "the ledger saw {caller}"
    );

    // A write is permitted on every hop but the last.
    let refused = PlainClient::new(shop.door())
        .call(Method::POST, "/accounts/42")
        .await
        .unwrap();
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused:?}");
    let decision = refused.json()["decision"].as_str().unwrap().to_owned();
    assert!(decision.starts_with("ledger-"), "{decision}");
    let record = world.record(&decision);
    assert_eq!(
        (record.outcome, record.phase, record.action.as_str()),
        (Outcome::NoPermit, Phase::Request, "POST")
    );
    assert_eq!(record.principal, Some(id("/orders")));
    assert_eq!(record.tls.as_deref(), Some("1.3 X25519MLKEM768"));

    // What is forbidden names the policy in the log, and nothing of it in the answer.
    let forbidden = get(shop.edge.outbound("ledger"), "/accounts/42").await.unwrap();
    assert_eq!(forbidden.status, StatusCode::FORBIDDEN, "{forbidden:?}");
    assert!(
        !forbidden.body.contains("shop/") && !forbidden.body.contains("Hoplite"),
        "{}",
        forbidden.body
    );
    let record = world.record(forbidden.decision().unwrap());
    assert_eq!(
        (record.outcome, record.determining),
        (Outcome::Forbid, vec!["shop/edge-stays-out".to_owned()])
    );

    // One record for each decision that was taken, none for calls that were not made.
    let allowed = |service: &str| {
        let query = Query {
            service: Some(service.to_owned()),
            outcome: vec![Outcome::Allow],
            ..Query::default()
        };
        world.records(&query).len()
    };
    assert_eq!((allowed("edge"), allowed("orders"), allowed("ledger")), (2, 2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_reaches_the_socket_and_its_deletion_takes_the_svid_away() {
    let world = World::start().await;
    let denied = world.fetch("/late").await.unwrap_err();
    assert!(matches!(denied, FetchError::Denied(_)), "{denied:?}");

    let entry = world.register("/late", &own_selectors(), None).await;
    let caller = until("the SVID", async || world.fetch("/late").await.ok().flatten()).await;
    assert_eq!(caller.svid.unwrap().spiffe_id().as_str(), id("/late"));

    world.unregister(&entry).await;
    let denied = until("the SVID is gone", async || world.fetch("/late").await.err()).await;
    let FetchError::Denied(reason) = denied else {
        panic!("{denied:?}")
    };
    for selector in own_selectors() {
        assert!(
            reason.contains(&selector),
            "the reason does not tell `{selector}`, which was seen: {reason}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_ca_is_away_traffic_goes_on_and_renewals_resume_when_it_is_back() {
    let mut world = World::start().await;
    let ttl = Duration::from_secs(16);
    let shop = Shop::start(&world, ttl).await;
    let load = shop.load();
    let first = shop.serials().await;

    world.stop_ca().await;
    // Past half life: the agent has tried to renew, in vain, and nothing has expired.
    tokio::time::sleep(ttl / 2 + Duration::from_secs(1)).await;
    assert_eq!(shop.serials().await, first, "somebody renewed without a CA");
    assert!(
        world.fetch("/edge").await.unwrap().is_some(),
        "the agent no longer serves what is valid"
    );

    world.start_ca().await;
    shop.rotated_since(&first).await;
    load.finish(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_agent_restarts_proxies_keep_their_traffic_and_find_it_again() {
    let mut world = World::start().await;
    let shop = Shop::start(&world, Duration::from_secs(20)).await;
    let load = shop.load();
    let first = shop.serials().await;

    world.stop_agent().await;
    assert_eq!(get(shop.door(), "/accounts/1").await.unwrap().status, StatusCode::OK);
    world.start_agent().await;
    // What the agent kept on its disk is served on; what is due afterwards reaches whoever found it again.
    shop.rotated_since(&first).await;
    load.finish(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_policy_takes_effect_and_a_broken_one_does_not() {
    let world = World::start().await;
    let shop = Shop::start(&world, Duration::from_secs(3600)).await;
    let status = async || get(shop.edge.outbound("ledger"), "/accounts/1").await.unwrap().status;
    assert_eq!(status().await, StatusCode::FORBIDDEN);

    let permitted = r#"@id("open") permit (principal, action in [Hoplite::Action::"anyHttp"], resource);"#;
    world.policy(permitted);
    until("the call is allowed", async || {
        (status().await == StatusCode::OK).then_some(())
    })
    .await;

    world.policy("permit (principal, action, resource) when { nonsense };");
    until("the fault is told", async || {
        let status = shop.ledger.status().await;
        let faults = status["policy"]["faults"].as_array()?;
        faults
            .iter()
            .any(|fault| fault.to_string().contains("world.cedar"))
            .then_some(())
    })
    .await;
    assert_eq!(
        status().await,
        StatusCode::OK,
        "the policy before the broken one is no longer in force"
    );

    world.policy(POLICY);
    until("the call is refused again", async || {
        (status().await == StatusCode::FORBIDDEN).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn svids_of_five_seconds_rotate_on_every_hop_and_no_request_fails() {
    let world = World::start().await;
    let shop = Shop::start(&world, Duration::from_secs(5)).await;
    let load = shop.load();
    let mut seen: [HashSet<String>; 4] = Default::default();
    until("eight SVIDs on every hop", async || {
        for (seen, serial) in seen.iter_mut().zip(shop.serials().await) {
            seen.insert(serial);
        }
        seen.iter().all(|seen| seen.len() >= 8).then_some(())
    })
    .await;
    load.finish(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_connection_passes_until_policy_takes_it_back() {
    let world = World::start().await;
    let permit = |who: &str| {
        format!(
            "@id(\"tcp\") permit (principal == Hoplite::Workload::\"{}\", action == Hoplite::Action::\"connect\", resource == Hoplite::Service::\"db\");",
            id(who)
        )
    };
    world.policy(&permit("/client"));
    let app = TcpApp::start().await;
    let db = world.proxy("db").tcp("db", &app).start().await;
    let peer = db.inbound("db");
    let client = world
        .proxy("client")
        .outbound("db", OutboundProtocol::Tcp, peer)
        .start()
        .await;
    let stranger = world
        .proxy("stranger")
        .outbound("db", OutboundProtocol::Tcp, peer)
        .start()
        .await;

    let mut stream = TcpStream::connect(client.outbound("db")).await.unwrap();
    let mut echo = [0; 4];
    stream.write_all(b"ping").await.unwrap();
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");

    let mut refused = TcpStream::connect(stranger.outbound("db")).await.unwrap();
    let _ = refused.write_all(b"ping").await;
    assert!(
        matches!(refused.read(&mut echo).await, Ok(0) | Err(_)),
        "a stranger got an echo"
    );

    // The live connection ends when nobody permits it any more.
    world.policy(&permit("/nobody"));
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut echo))
        .await
        .unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");

    let outcomes = |phase: Phase| -> Vec<_> {
        let records = world.records(&Query {
            service: Some("db".to_owned()),
            ..Query::default()
        });
        records
            .into_iter()
            .filter(|r| r.phase == phase)
            .map(|r| (r.principal.unwrap(), r.outcome))
            .collect()
    };
    assert_eq!(
        outcomes(Phase::Connect),
        [(id("/client"), Outcome::Allow), (id("/stranger"), Outcome::NoPermit)]
    );
    assert_eq!(outcomes(Phase::Recheck), [(id("/client"), Outcome::NoPermit)]);
}

/// The way of old kernels, chosen by the setting: callers are attested as before, and a caller that has gone is nobody.
#[tokio::test(flavor = "multi_thread")]
async fn callers_are_known_by_number_where_that_is_declared() {
    let mut world = World::start().await;
    world.know_callers_by_number().await;
    world.caller("/own").await;
    world
        .register("/other", &["unix:uid:4294967294".to_owned()], None)
        .await;
    assert!(world.fetch("/other").await.unwrap().is_none(), "what is another user's");
}
