//! Envoy as a judge: it lives on what our agent gives it by SDS, calls a Hoplite proxy and is called by one, through
//! rotations; and with no proxy of ours, it asks our agent whom to let in.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use hoplite_audit::{Outcome, Phase, Query};
use hoplite_tests::TestClient;
use hoplite_tests::peers::{self, Process};
use hoplite_tests::{HttpApp, Load, PlainClient, Proxy, TRUST_DOMAIN, World, get, id, until};
use http::{Method, Request, StatusCode};
use http_body_util::Full;

/// Envoys renew with the agent every five seconds or earlier.
const TTL: Duration = Duration::from_secs(10);

/// The first SVID and five more.
const SVIDS: usize = 6;

/// Envoy may read the service behind the proxy, and not write.
const POLICY: &str = r#"
@id("backend/envoy-reads") permit (principal == Hoplite::Workload::"spiffe://world.test/envoy-client",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"backend");
"#;

pub(crate) struct Envoy {
    process: Process,
    port: u16,
    admin: SocketAddr,
}

impl Envoy {
    /// Starts one with a configuration, and returns when it listens.
    pub(crate) async fn start(program: &Path, dir: &Path, name: &str, port: u16, config: &str) -> Self {
        let place = |suffix: &str| dir.join(format!("{name}{suffix}"));
        fs::write(place(".yaml"), config).unwrap();
        let admin_port = peers::free_port();
        let mut command = Command::new(program);
        command.arg("--config-path").arg(place(".yaml"));
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
        command.arg("--config-yaml").arg(format!(
            "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin_port}}}}}}}"
        ));
        let process = Process::start(command, place(".log"));
        let envoy = Self {
            process,
            port,
            admin: ([127, 0, 0, 1], admin_port).into(),
        };
        until(&format!("{name} is ready"), async || {
            let answer = get(envoy.admin, "/ready").await.ok()?;
            (answer.status == StatusCode::OK).then_some(())
        })
        .await;
        envoy
    }

    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The serial number of the SVID that it holds now.
    async fn serial(&self) -> Option<String> {
        let certs = get(self.admin, "/certs").await.ok()?.json();
        let held = certs
            .get("certificates")?
            .as_array()?
            .iter()
            .find_map(|held| held.get("cert_chain")?.get(0))?
            .clone();
        Some(held.get("serial_number")?.as_str()?.to_owned())
    }
}

/// Distinct serial numbers seen on each side.
#[derive(Default)]
struct Seen([HashSet<String>; 4]);

impl Seen {
    async fn look(&mut self, envoys: [&Envoy; 2], proxies: [&Proxy; 2]) {
        let [a, b, c, d] = &mut self.0;
        a.extend(envoys[0].serial().await);
        b.extend(envoys[1].serial().await);
        c.insert(proxies[0].serial().await);
        d.insert(proxies[1].serial().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_calls_a_proxy_and_is_called_by_one_through_five_rotations() {
    let Some(program) = peers::envoy("envoy_calls_a_proxy_and_is_called_by_one_through_five_rotations") else {
        return;
    };
    let world = World::start().await;
    world.policy(POLICY);
    for path in ["/envoy-client", "/envoy-server"] {
        world.register(path, &peers::selectors(&program), Some(TTL)).await;
    }
    let socket = world.agent_socket().display().to_string();

    // Envoy calls a Hoplite proxy.
    let app = HttpApp::start().await;
    let backend = world.proxy("backend").http("backend", &app).ttl(TTL).start().await;
    let port = peers::free_port();
    let config = peers::template(
        "envoy-client.yaml.in",
        &[
            ("PORT", &port.to_string()),
            ("UPSTREAM_PORT", &backend.inbound("backend").port().to_string()),
            ("SOCKET", &socket),
            ("SVID", &id("/envoy-client")),
            ("EXPECT", &id("/backend")),
            ("TRUST_DOMAIN", TRUST_DOMAIN),
        ],
    );
    let client = Envoy::start(&program, world.dir(), "envoy-client", port, &config).await;

    // A Hoplite proxy calls Envoy, which lets in this one caller.
    let port = peers::free_port();
    let config = peers::template(
        "envoy-server.yaml.in",
        &[
            ("PORT", &port.to_string()),
            ("SOCKET", &socket),
            ("SVID", &id("/envoy-server")),
            ("EXPECT", &id("/caller")),
        ],
    );
    let server = Envoy::start(&program, world.dir(), "envoy-server", port, &config).await;
    let caller = world
        .proxy("caller")
        .calls("envoy-server", server.address())
        .ttl(TTL)
        .start()
        .await;
    let other = world
        .proxy("other")
        .calls("envoy-server", server.address())
        .start()
        .await;

    // Each side knows whom it speaks with.
    let answer = until("Envoy reaches the proxy", async || {
        get(client.address(), "/accounts/1")
            .await
            .ok()
            .filter(|answer| answer.status == StatusCode::OK)
    })
    .await;
    let seen_by_app = answer.json()["headers"]["x-forwarded-client-cert"].to_string();
    assert!(
        seen_by_app.contains(&format!("URI={}\"", id("/envoy-client"))),
        "{seen_by_app}"
    );
    let refused = PlainClient::new(client.address())
        .call(Method::POST, "/accounts/1")
        .await
        .unwrap();
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "{refused:?}");
    let record = world.record(refused.decision().unwrap());
    assert_eq!(record.principal, Some(id("/envoy-client")));

    let answer = get(caller.outbound("envoy-server"), "/").await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}\n{}", server.process.said());
    assert_eq!(answer.headers["x-caller"], id("/caller"));
    let answer = get(other.outbound("envoy-server"), "/").await.unwrap();
    assert_eq!(
        answer.status,
        StatusCode::FORBIDDEN,
        "Envoy lets in whom it should not: {answer:?}"
    );

    // Steady requests both ways, while every SVID is replaced five times.
    let inward = Load::start(client.address(), Method::GET, "/accounts/1", StatusCode::OK);
    let refused = Load::start(client.address(), Method::POST, "/accounts/1", StatusCode::FORBIDDEN);
    let outward = Load::start(caller.outbound("envoy-server"), Method::GET, "/", StatusCode::OK);
    let mut seen = Seen::default();
    for _ in 0..SVIDS {
        let before = seen.0.iter().map(HashSet::len).min();
        until("another SVID on every side", async || {
            seen.look([&client, &server], [&backend, &caller]).await;
            (seen.0.iter().map(HashSet::len).min() > before).then_some(())
        })
        .await;
    }
    assert!(seen.0.iter().all(|serials| serials.len() >= SVIDS));
    let tallies = [inward.stop().await, refused.stop().await, outward.stop().await];
    for (tally, what) in tallies
        .iter()
        .zip(["Envoy to Hoplite", "Envoy to Hoplite, refused", "Hoplite to Envoy"])
    {
        assert!(
            tally.failures.is_empty(),
            "{what}: {} of {} failed: {:#?}\n{}\n{}",
            tally.failures.len(),
            tally.sent,
            tally.failures,
            client.process.said(),
            server.process.said()
        );
        assert!(tally.sent >= 200, "{what}: only {} requests", tally.sent);
    }
}

/// `web` may read the ledger and connect to it.
const LEDGER_POLICY: &str = r#"
@id("ledger/web-reads") permit (principal == Hoplite::Workload::"spiffe://world.test/web",
    action in [Hoplite::Action::"read", Hoplite::Action::"connect"], resource in Hoplite::Service::"ledger");
"#;

/// The configuration of the guide, with what is said there in the place of what is said here.
fn guide(values: &[(&str, &str)]) -> String {
    let text = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/guide/authorize-from-envoy.md"
    ));
    let text = text.unwrap();
    let config = text.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    values.iter().fold(config.to_owned(), |config, (from, to)| {
        assert!(config.contains(from), "the guide has no {from}");
        config.replace(from, to)
    })
}

/// What `caller` is told by the Envoy before the ledger.
async fn ask(
    caller: &TestClient,
    envoy: SocketAddr,
    method: Method,
    path: &str,
    lies: &[(&str, &str)],
) -> hoplite_tests::Answer {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("https://ledger.test{path}"));
    for (name, value) in lies {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default()).unwrap();
    caller.call(envoy, &id("/ledger"), request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_without_our_proxy_asks_the_agent() {
    let Some(program) = peers::envoy("an_envoy_without_our_proxy_asks_the_agent") else {
        return;
    };
    let mut world = World::start().await;
    world.policy(LEDGER_POLICY);
    world.authorize("ledger", "/ledger").await;
    world.register("/ledger", &peers::selectors(&program), None).await;
    let web = world.caller("/web").await;
    let mallory = world.caller("/mallory").await;
    let app = HttpApp::start().await;
    let (http_port, tcp_port) = (peers::free_port(), peers::free_port());
    let config = guide(&[
        ("0.0.0.0", "127.0.0.1"),
        ("8443", &http_port.to_string()),
        ("8444", &tcp_port.to_string()),
        ("8080", &app.address().port().to_string()),
        (
            "/run/hoplite/agent/agent.sock",
            &world.agent_socket().display().to_string(),
        ),
        ("spiffe://prod.example/ledger", &id("/ledger")),
    ]);
    let envoy = Envoy::start(&program, world.dir(), "envoy-ledger", http_port, &config).await;

    // Permitted, with the record of a proxy of ours, and one name for it on both sides.
    let lies = [("x-hoplite-decision", "forged-1-1"), ("x-original-url", "/admin")];
    let answer = ask(&web, envoy.address(), Method::GET, "/accounts/1?all", &lies).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}\n{}", envoy.process.said());
    let decision = answer.decision().unwrap();
    let record = world.record(decision);
    assert_eq!((record.outcome, record.phase), (Outcome::Allow, Phase::Request));
    assert_eq!(record.principal, Some(id("/web")));
    assert_eq!(record.vouched_by, Some(id("/ledger")));
    assert_eq!((record.service.as_str(), record.action.as_str()), ("ledger", "GET"));
    assert_eq!(record.route.as_deref(), Some("ledger:unmatched"));
    assert_eq!(
        (record.host.as_deref(), record.path.as_deref()),
        (Some("ledger.test"), Some("/accounts/1"))
    );
    assert_eq!(record.determining, ["ledger/web-reads"]);
    assert!(record.source.unwrap().starts_with("127.0.0.1:"));
    let seen = &answer.json()["headers"];
    assert_eq!(seen["x-hoplite-decision"], serde_json::json!([decision]));
    assert!(seen.get("x-original-url").is_none(), "{seen}");
    assert_eq!(answer.headers.get_all("x-hoplite-decision").iter().count(), 1);

    // What is decided on is what the service sees.
    let answer = ask(&web, envoy.address(), Method::GET, "/x/..//accounts/%37", &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let record = world.record(answer.decision().unwrap());
    assert_eq!(answer.json()["target"].as_str(), record.path.as_deref());
    for path in ["/accounts%2f1", "/accounts/1;a"] {
        let answer = ask(&web, envoy.address(), Method::GET, path, &[]).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}: {answer:?}");
    }

    // Refused, whatever the caller says of itself.
    let lie = format!("By={};Hash=00;URI={}", id("/ledger"), id("/web"));
    for (caller, name, method) in [(&mallory, "/mallory", Method::GET), (&web, "/web", Method::POST)] {
        let lies = [("x-forwarded-client-cert", &*lie), ("x-forwarded-for", "10.9.9.9")];
        let answer = ask(caller, envoy.address(), method, "/accounts/1", &lies).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name}: {answer:?}");
        let record = world.record(answer.decision().unwrap());
        assert_eq!((record.outcome, record.principal), (Outcome::NoPermit, Some(id(name))));
        assert!(record.source.unwrap().starts_with("127.0.0.1:"));
        let expected = serde_json::json!({
            "error": "denied", "outcome": "no_permit", "decision": answer.decision().unwrap(),
        });
        assert_eq!(answer.json(), expected);
    }
    let stranger = web.stranger().get(envoy.address(), &id("/ledger"), "/accounts/1").await;
    assert!(stranger.is_err(), "{stranger:?}");

    // A connection.
    let tcp = SocketAddr::from(([127, 0, 0, 1], tcp_port));
    let connect = async |caller: &TestClient| {
        let stream = caller.connect(tcp, &id("/ledger"), &[]).await?;
        let request = Request::builder().uri("/tcp").header("host", "any.test");
        hoplite_tests::exchange(stream, false, request.body(Full::<Bytes>::default())?).await
    };
    let answer = connect(&web).await.unwrap();
    assert_eq!(answer.json()["target"], "/tcp");
    assert!(connect(&mallory).await.is_err());
    let connects: Vec<_> = world
        .records(&Query::default())
        .into_iter()
        .filter(|record| record.phase == Phase::Connect)
        .map(|record| (record.principal, record.outcome, record.action))
        .collect();
    let connect = |path: &str, outcome| (Some(id(path)), outcome, "connect".to_owned());
    assert_eq!(
        connects,
        [connect("/web", Outcome::Allow), connect("/mallory", Outcome::NoPermit)]
    );

    // A change of policy counts from the next request on.
    world.policy(&LEDGER_POLICY.replace("world.test/web", "world.test/mallory"));
    until("the new policy counts", async || {
        let answer = ask(&mallory, envoy.address(), Method::GET, "/accounts/1", &[]).await;
        (answer.status == StatusCode::OK).then_some(())
    })
    .await;
    let answer = ask(&web, envoy.address(), Method::GET, "/accounts/1", &[]).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{answer:?}");

    // Without the agent nobody comes in; with it again, who may.
    world.stop_agent().await;
    let answer = ask(&mallory, envoy.address(), Method::GET, "/accounts/1", &[]).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    assert_eq!(answer.decision(), None);
    world.start_agent().await;
    until("the agent is back", async || {
        let answer = ask(&mallory, envoy.address(), Method::GET, "/accounts/1", &[]).await;
        (answer.status == StatusCode::OK).then_some(())
    })
    .await;
}
