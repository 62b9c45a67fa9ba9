//! Envoy as a judge: it lives on what our agent gives it by SDS, calls a Hoplite proxy and is called by one, through rotations.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hoplite_tests::peers::{self, Process};
use hoplite_tests::{HttpApp, Load, PlainClient, Proxy, TRUST_DOMAIN, World, get, id, until};
use http::{Method, StatusCode};

/// Envoys renew with the agent every five seconds or earlier.
const TTL: Duration = Duration::from_secs(10);

/// The first SVID and five more.
const SVIDS: usize = 6;

/// Envoy may read the service behind the proxy, and not write.
const POLICY: &str = r#"
@id("backend/envoy-reads") permit (principal == Hoplite::Workload::"spiffe://world.test/envoy-client",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"backend");
"#;

struct Envoy {
    process: Process,
    port: u16,
    admin: SocketAddr,
}

impl Envoy {
    /// Starts one with a configuration, and returns when it listens.
    async fn start(program: &Path, dir: &Path, name: &str, port: u16, config: &str) -> Self {
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

    fn address(&self) -> SocketAddr {
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
