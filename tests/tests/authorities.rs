//! Authorities take their turns under traffic of every kind of peer; a taint has all keys replaced, a revocation ends what is left.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hoplite_host::config::Span;
use hoplite_identity::tls::{self, ClientAuth};
use hoplite_identity::{Fingerprint, HostPort, PeerVerifier, TrustBundle, X509Svid};
use hoplite_proxy::OutboundProtocol;
use hoplite_tests::peers::{self, Process};
use hoplite_tests::{HttpApp, Load, TRUST_DOMAIN, TestClient, World, get, id, until};
use hoplite_wire::ca::{
    Authority, AuthorityRequest, CreateEntriesRequest, CreateTokenRequest, CreateTokenResponse, Entry,
    ListAuthoritiesRequest, PrepareAuthorityRequest,
};
use hoplite_wire::{WorkloadApi, channel};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What a taint may take with a thousand workloads.
const REKEYED_WITHIN: Duration = Duration::from_secs(5);

/// Those that measure, or make traffic of every kind, do so one after the other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What a revocation may take at a proxy.
const ENDED_WITHIN: Duration = Duration::from_secs(1);

/// Whoever is named may read the service.
const POLICY: &str = r#"
@id("backend/peers") permit (principal in Hoplite::TrustDomain::"world.test",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"backend");
"#;

async fn authorities(world: &World) -> Vec<Authority> {
    let asked = ListAuthoritiesRequest {};
    let answer = world.admin().await.list_authorities(asked).await.unwrap().into_inner();
    answer.authorities
}

async fn active(world: &World) -> String {
    let all = authorities(world).await;
    let active: Vec<_> = all.iter().filter(|authority| authority.state == "active").collect();
    assert_eq!(active.len(), 1, "{all:?}");
    active[0].fingerprint.clone()
}

fn named(fingerprint: &str) -> AuthorityRequest {
    AuthorityRequest {
        fingerprint: fingerprint.to_owned(),
        ..AuthorityRequest::default()
    }
}

/// Calls again and again by a program that ends after each, and counts what failed.
struct Calls {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u32, Vec<String>)>,
}

impl Calls {
    fn start(mut command: impl FnMut() -> Command + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut sent, mut failures) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let output = peers::output(command()).await;
                sent += 1;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let line: Value = said
                    .lines()
                    .next()
                    .and_then(|line| serde_json::from_str(line).ok())
                    .unwrap_or_default();
                if !output.status.success() || line["status"] != 200 {
                    failures.push(format!("{said} {}", String::from_utf8_lossy(&output.stderr)));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            (sent, failures)
        });
        Self { stop, task }
    }

    async fn stop(self) -> (u32, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A server of go-spiffe, which ends with this value.
struct GoServer(Child, SocketAddr);

impl GoServer {
    async fn start(program: &std::path::Path, socket: &str, caller: &str) -> Self {
        let mut child = Command::new(program)
            .args(["serve", socket, caller])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let first = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let first: Value = serde_json::from_str(&first.await.unwrap().unwrap()).unwrap();
        Self(child, first["address"].as_str().unwrap().parse().unwrap())
    }
}

impl Drop for GoServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `HOPLITE_ROTATION_SECONDS=600` runs it for so long, with authorities of 120 s and SVIDs of 10 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_five_authorities_take_their_turns() {
    const TEST: &str = "no_call_fails_while_five_authorities_take_their_turns";
    let _alone = ALONE.lock().await;
    let asked: Option<u64> = std::env::var("HOPLITE_ROTATION_SECONDS")
        .ok()
        .map(|text| text.parse().unwrap());
    let (ttl, life) = if asked.is_some() { (10, 120) } else { (5, 30) };
    let ttl = Duration::from_secs(ttl);
    let world = World::start_with(|config| {
        config.x509_ttl = Span(ttl);
        config.agent_ttl = Span(ttl);
        config.authority_ttl = Span(Duration::from_secs(life));
    })
    .await;
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let backend = world.proxy("backend").http("backend", &app).ttl(ttl).start().await;
    let target = backend.inbound("backend");
    let frontend = world.proxy("frontend").calls("backend", target).ttl(ttl).start().await;
    let socket = world.workload_api();
    let ok = |address, path| Load::start(address, Method::GET, path, StatusCode::OK);
    let answers = async |what: &str, address: SocketAddr, path: &str| {
        until(what, async || {
            get(address, path)
                .await
                .ok()
                .filter(|answer| answer.status == StatusCode::OK)
        })
        .await;
    };
    answers("a proxy reaches another", frontend.outbound("backend"), "/accounts/1").await;
    let mut loads = vec![("Hoplite to Hoplite", ok(frontend.outbound("backend"), "/accounts/1"))];
    let mut calls = Vec::new();
    let mut processes = Vec::new();
    let mut proxies = Vec::new();

    if let Some(program) = peers::ghostunnel(TEST) {
        let copy = world.dir().join("tunnel");
        fs::copy(&program, &copy).unwrap();
        world
            .register("/tunnel", &peers::selectors(&copy)[..1], Some(ttl))
            .await;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, peers::free_port()));
        let mut command = Command::new(&copy);
        command
            .arg("client")
            .arg(format!("--use-workload-api-addr={socket}"))
            .arg(format!("--listen={address}"))
            .arg(format!("--target={target}"))
            .arg(format!("--verify-uri={}", id("/backend")));
        processes.push(Process::start(command, world.dir().join("tunnel.log")));
        answers("ghostunnel reaches the proxy", address, "/accounts/1").await;
        loads.push(("ghostunnel to Hoplite", ok(address, "/accounts/1")));
    }
    if let Some(program) = peers::envoy(TEST) {
        for path in ["/envoy-client", "/envoy-server"] {
            world.register(path, &peers::selectors(&program), Some(ttl)).await;
        }
        let socket = world.agent_socket().display().to_string();
        let mut start = |name: &str, config: String| {
            let file = world.dir().join(format!("{name}.yaml"));
            fs::write(&file, config).unwrap();
            let mut command = Command::new(&program);
            command.arg("--config-path").arg(file);
            command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
            processes.push(Process::start(command, world.dir().join(format!("{name}.log"))));
        };
        let port = peers::free_port();
        let config = peers::template(
            "envoy-client.yaml.in",
            &[
                ("PORT", &port.to_string()),
                ("UPSTREAM_PORT", &target.port().to_string()),
                ("SOCKET", &socket),
                ("SVID", &id("/envoy-client")),
                ("EXPECT", &id("/backend")),
                ("TRUST_DOMAIN", TRUST_DOMAIN),
            ],
        );
        start("envoy-client", config);
        let client = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
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
        start("envoy-server", config);
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let caller = world
            .proxy("caller")
            .calls("envoy-server", server)
            .ttl(ttl)
            .start()
            .await;
        answers("Envoy reaches the proxy", client, "/accounts/1").await;
        answers("a proxy reaches Envoy", caller.outbound("envoy-server"), "/").await;
        loads.push(("Envoy to Hoplite", ok(client, "/accounts/1")));
        loads.push(("Hoplite to Envoy", ok(caller.outbound("envoy-server"), "/")));
        proxies.push(caller);
    }
    let url = format!("https://{target}/accounts/1");
    let mut go_server = None;
    if let Some(program) = peers::go(TEST) {
        world.register("/client", &peers::selectors(&program), Some(ttl)).await;
        until("go-spiffe gets an SVID", async || {
            let mut command = Command::new(&program);
            command.args(["watch", &socket, "1"]);
            (peers::output(command).await.status.success()).then_some(())
        })
        .await;
        let server = GoServer::start(&program, &socket, &id("/go-caller")).await;
        let caller = world
            .proxy("go-caller")
            .calls("client", server.1)
            .ttl(ttl)
            .start()
            .await;
        answers("a proxy reaches go-spiffe", caller.outbound("client"), "/").await;
        loads.push(("Hoplite to go-spiffe", ok(caller.outbound("client"), "/")));
        proxies.push(caller);
        go_server = Some(server);
        let (socket, url) = (socket.clone(), url.clone());
        let call = move || {
            let mut command = Command::new(&program);
            command.args(["call", &socket, &id("/backend"), "GET", &url]);
            command
        };
        calls.push(("go-spiffe to Hoplite", Calls::start(call)));
    }
    if let Some((jvm, start)) = peers::java(TEST) {
        world.register("/java", &peers::selectors(&jvm), Some(ttl)).await;
        let (socket, url) = (socket.clone(), url.clone());
        let call = move || {
            let mut command = Command::new(&jvm);
            command
                .args(&start)
                .args(["call", &socket, "TLSv1.3", &id("/backend"), "GET", &url]);
            command
        };
        until("java-spiffe calls", async || {
            (peers::output(call()).await.status.success()).then_some(())
        })
        .await;
        calls.push(("java-spiffe to Hoplite", Calls::start(call)));
    }

    let started = Instant::now();
    let patience = Duration::from_secs(asked.unwrap_or(150));
    let (mut signed, mut prepared) = (Vec::new(), BTreeSet::new());
    while started.elapsed() < patience && (asked.is_some() || signed.len() < 5) {
        let all = authorities(&world).await;
        let signs: Vec<_> = all.iter().filter(|authority| authority.state == "active").collect();
        assert_eq!(signs.len(), 1, "{all:?}");
        let now = i64::try_from(
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_secs(),
        )
        .unwrap();
        assert!(
            all.iter().all(|authority| authority.not_after_unix >= now - 2),
            "what has ended leaves: {all:?}"
        );
        if !signed.contains(&signs[0].fingerprint) {
            assert!(
                signed.is_empty() || prepared.contains(&signs[0].fingerprint),
                "it was prepared first"
            );
            signed.push(signs[0].fingerprint.clone());
        }
        prepared.extend(all.into_iter().filter(|a| a.state == "prepared").map(|a| a.fingerprint));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let mut failed = Vec::new();
    println!(
        "{} authorities of {life} s in {:.0} s",
        signed.len(),
        started.elapsed().as_secs_f64()
    );
    for (what, load) in loads {
        let tally = load.stop().await;
        println!("{what}: {} requests, {} failed", tally.sent, tally.failures.len());
        assert!(tally.sent > 100, "{what}: only {}", tally.sent);
        failed.extend(tally.failures.into_iter().map(|failure| format!("{what}: {failure}")));
    }
    for (what, calls) in calls {
        let (sent, failures) = calls.stop().await;
        println!("{what}: {sent} calls, {} failed", failures.len());
        failed.extend(failures.into_iter().map(|failure| format!("{what}: {failure}")));
    }
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(signed.len() >= 5, "{signed:?}");
    drop((processes, go_server));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_workloads_are_rekeyed_after_a_taint() {
    let _alone = ALONE.lock().await;
    let world = World::start().await;
    let parent = id("/hoplite/agent/node");
    let entry = |n: u32| Entry {
        spiffe_id: id(&format!("/w/{n}")),
        parent_id: parent.clone(),
        selectors: vec![hoplite_wire::ca::Selector {
            kind: "unix:uid".to_owned(),
            value: (100_000 + n).to_string(),
        }],
        ..Entry::default()
    };
    let registered = Instant::now();
    let entries = (0..1_000).map(entry).collect();
    world
        .admin()
        .await
        .create_entries(CreateEntriesRequest { entries })
        .await
        .unwrap();
    world.caller("/listener").await;
    let mut stream = WorkloadApi::open(&world.workload_api()).await.unwrap();
    let mut first = stream.next().await.unwrap();
    while first.svids.is_empty() {
        first = stream.next().await.unwrap();
    }
    until("all have their SVIDs", async || {
        (number(world.agent_metrics(), "hoplite_agent_svids ").await? > 1_000).then_some(())
    })
    .await;
    let minted = registered.elapsed();
    let issued = async || number(world.ca_metrics(), ISSUED).await;
    let before_taint = issued().await.unwrap();
    let old = active(&world).await;
    let before = world.bundle();
    let next = world
        .admin()
        .await
        .prepare_authority(PrepareAuthorityRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (next.state.as_str(), next.sequence),
        ("prepared", before.sequence() + 1)
    );
    // It waits until the agent knows the successor: that is not what is measured.
    let activated = world
        .admin()
        .await
        .activate_authority(AuthorityRequest::default())
        .await
        .unwrap();
    assert_eq!(activated.into_inner().fingerprint, next.fingerprint);
    let started = Instant::now();
    let tainted = world
        .admin()
        .await
        .taint_authority(named(&old))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((tainted.state.as_str(), tainted.agents), ("tainted", 1), "{tainted:?}");
    // The CA refuses to cut them off, and then there is nothing to cut off.
    let refused = world.admin().await.revoke_authority(named(&old)).await.unwrap_err();
    assert!(refused.message().contains("--force"), "{refused}");
    let rekeyed = until("all are re-keyed", async || {
        let new = issued().await? - before_taint;
        let tainted = number(world.agent_metrics(), "hoplite_agent_svids_tainted ").await?;
        (new > 1_000 && tainted == 0).then(|| started.elapsed())
    })
    .await;
    println!("1 001 workloads re-keyed in {rekeyed:.2?} after the taint; their first SVIDs took {minted:.2?}");
    assert!(rekeyed < REKEYED_WITHIN, "{rekeyed:?}");
    let mut now = stream.next().await.unwrap();
    while now.svids[0].leaf().authority_key() == first.svids[0].leaf().authority_key() {
        now = stream.next().await.unwrap();
    }
    assert_ne!(now.svids[0].key(), first.svids[0].key(), "a new key, too");
    until(
        "the agent itself is under another authority, and says that all are",
        async || {
            let all = authorities(&world).await;
            let old = all.iter().find(|authority| authority.fingerprint == old)?;
            (old.agents == 0 && old.svids == 0).then_some(())
        },
    )
    .await;
    let revoked = world
        .admin()
        .await
        .revoke_authority(named(&old))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(revoked.state, "revoked");
    until("nobody trusts it", async || {
        let now = stream.next().await.ok()?;
        let bundle = now.bundles.iter().next()?.clone();
        (bundle.authorities().len() == 1 && !now.svids.is_empty()).then_some(())
    })
    .await;
}

/// How many SVIDs of workloads the CA has issued.
const ISSUED: &str = "hoplite_ca_issued_total{kind=\"workload\",result=\"issued\"} ";

/// What a metric says.
async fn number(metrics: SocketAddr, name: &str) -> Option<u64> {
    let text = get(metrics, "/metrics").await.ok()?.body;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.rsplit(' ').next()?.parse::<f64>().ok()? as u64)
}

/// By which bundle whoever knows this fingerprint believes the CA.
async fn introduced(world: &World, fingerprint: &str) -> Option<TrustBundle> {
    let (address, fingerprint) = (
        HostPort::parse(&world.ca_address()).unwrap(),
        fingerprint.parse().unwrap(),
    );
    let introduced = channel::introduce(&address, fingerprint, SystemTime::now()).await;
    introduced.inspect_err(|error| eprintln!("{error}")).ok()
}

async fn invite(world: &World, node: &str) -> CreateTokenResponse {
    let request = CreateTokenRequest {
        node: node.to_owned(),
        ttl_seconds: 600,
        ..CreateTokenRequest::default()
    };
    let mut admin = world.admin().await;
    admin.create_token(request).await.unwrap().into_inner()
}

/// A server that shows this SVID, and keeps its connections.
async fn keeps(svid: &X509Svid, verifier: Arc<PeerVerifier>) -> (SocketAddr, Arc<AtomicU32>) {
    let config = tls::server_config(svid, verifier, ClientAuth::Required, &[]).unwrap();
    let (listener, acceptor) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TlsAcceptor::from(config),
    );
    let (address, open) = (listener.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&open);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(tcp).await else {
                    return;
                };
                count.fetch_add(1, Ordering::Relaxed);
                let mut byte = [0];
                while stream.read(&mut byte).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(&byte).await;
                    let _ = stream.flush().await;
                }
                count.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    (address, open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_a_revoked_authority_ends_at_once_both_ways() {
    let _alone = ALONE.lock().await;
    let world = World::start().await;
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let backend = world.proxy("backend").http("backend", &app).start().await;
    let old = active(&world).await;
    let invitation = invite(&world, "late").await;
    assert_eq!(invitation.fingerprint, old);
    // A caller and a server that keep what they got under the first authority, whatever comes: somebody may have stolen it.
    let visitor: TestClient = world.caller("/visitor").await;
    let server = world.caller("/server").await;
    let verifier = Arc::new(PeerVerifier::new(server.bundles.clone()).unwrap());
    let (address, open) = keeps(server.svid.as_ref().unwrap(), verifier).await;
    let outward = world
        .proxy("outward")
        .outbound("server", OutboundProtocol::Tcp, address)
        .start()
        .await;
    let mut inward = visitor
        .connect(backend.inbound("backend"), &id("/backend"), &[b"http/1.1"])
        .await
        .unwrap();
    let mut through = TcpStream::connect(outward.outbound("server")).await.unwrap();
    let mut byte = [0];
    through.write_all(b"x").await.unwrap();
    through.read_exact(&mut byte).await.unwrap();
    assert_eq!(open.load(Ordering::Relaxed), 1);
    let ask = b"GET /accounts/1 HTTP/1.1\r\nhost: backend\r\n\r\n";
    inward.write_all(ask).await.unwrap();
    let mut answer = vec![0; 64];
    assert!(inward.read(&mut answer).await.unwrap() > 0 && answer.starts_with(b"HTTP/1.1 200"));

    // The one that signs is tainted: its successor is made for that, and nothing breaks.
    let tainted = world
        .admin()
        .await
        .taint_authority(named(&old))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(tainted.state, "tainted");
    let new = active(&world).await;
    assert_ne!(new, old);
    through.write_all(b"x").await.unwrap();
    through.read_exact(&mut byte).await.unwrap();
    until("the node is under the new one", async || {
        let all = authorities(&world).await;
        let old = all.iter().find(|authority| authority.fingerprint == old)?;
        (old.agents == 0 && old.svids == 0).then_some(())
    })
    .await;
    let started = Instant::now();
    world.admin().await.revoke_authority(named(&old)).await.unwrap();
    let ended = async {
        let mut rest = vec![0; 4096];
        while inward.read(&mut rest).await.is_ok_and(|n| n > 0) {}
        let inward = started.elapsed();
        while through.read(&mut byte).await.is_ok_and(|n| n > 0) {}
        (inward, started.elapsed())
    };
    let (inward, outward) = tokio::time::timeout(Duration::from_secs(10), ended).await.unwrap();
    println!("the caller's connection ended after {inward:?}, the one to the server after {outward:?}");
    assert!(
        inward < ENDED_WITHIN && outward < ENDED_WITHIN,
        "{inward:?} {outward:?}"
    );
    // Nor is it let in again, by a proxy or by the CA.
    assert!(
        visitor
            .get(backend.inbound("backend"), &id("/backend"), "/")
            .await
            .is_err()
    );
    assert!(introduced(&world, &old).await.is_none());
    assert_eq!(invite(&world, "later").await.fingerprint, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_of_before_a_rotation_is_good_while_its_authority_is() {
    let world = World::start().await;
    let mut names = vec![active(&world).await];
    for _ in 0..2 {
        world
            .admin()
            .await
            .prepare_authority(PrepareAuthorityRequest::default())
            .await
            .unwrap();
        world
            .admin()
            .await
            .activate_authority(AuthorityRequest::default())
            .await
            .unwrap();
        names.push(active(&world).await);
        for name in &names {
            let bundle = until("the CA is believed by it", async || introduced(&world, name).await).await;
            assert_eq!(Fingerprint::of(&bundle.authorities()[0]).to_string(), *name);
        }
    }
    // Restarted, it signs with the last one, and is believed as before.
    let mut world = world;
    world.stop_ca().await;
    world.start_ca().await;
    assert_eq!(active(&world).await, names[2]);
    until("the CA is believed after a restart", async || {
        introduced(&world, &names[0]).await
    })
    .await;
    assert_eq!(world.join("late").await.spiffe_id().as_str(), id("/hoplite/agent/late"));
}

/// The serial number of the agent's own certificate as the CA knows it, once it is under this authority.
async fn is_under(world: &World, authority: &str) -> Option<()> {
    let all = authorities(world).await;
    let of = |fingerprint: &str| all.iter().find(|authority| authority.fingerprint == fingerprint);
    (of(authority)?.agents == 1).then_some(())
}

async fn rotated(world: &World) -> String {
    let prepared = world
        .admin()
        .await
        .prepare_authority(PrepareAuthorityRequest::default())
        .await;
    prepared.unwrap();
    let activated = world
        .admin()
        .await
        .activate_authority(AuthorityRequest::default())
        .await;
    activated.unwrap().into_inner().fingerprint
}

/// Without a token, and without a restart: the CA knows each agent's certificates to the byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_a_revocation_cut_off_comes_back_by_its_key() {
    let world = World::start().await;
    let visitor = world.caller("/visitor").await;
    let old = active(&world).await;
    let new = rotated(&world).await;
    let started = Instant::now();
    world.admin().await.taint_authority(named(&old)).await.unwrap();
    let asked = AuthorityRequest {
        force: true,
        ..named(&old)
    };
    world.admin().await.revoke_authority(asked).await.unwrap();
    until("the agent is under the new one", async || is_under(&world, &new).await).await;
    until("its workloads, too", async || {
        let again = world.fetch("/visitor").await.ok()??;
        let of = |client: &TestClient| client.svid.as_ref().unwrap().leaf().authority_key().to_owned();
        (of(&again) != of(&visitor) && again.bundles.iter().next()?.authorities().len() == 1).then_some(())
    })
    .await;
    println!(
        "an agent that was cut off is back, and its workload, {:.2?} after the taint",
        started.elapsed()
    );
}

/// What it knows when it is back: the first authority, which was revoked meanwhile, and the second, which signs no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_was_away_for_two_rotations_and_a_revocation_comes_back() {
    let mut world = World::start().await;
    world.register("/visitor", &hoplite_tests::own_selectors(), None).await;
    let first = active(&world).await;
    world
        .admin()
        .await
        .prepare_authority(PrepareAuthorityRequest::default())
        .await
        .unwrap();
    until("the agent knows the second", async || {
        let visitor = world.fetch("/visitor").await.ok()??;
        (visitor.bundles.iter().next()?.authorities().len() == 2).then_some(())
    })
    .await;
    world.stop_agent().await;
    let second = world
        .admin()
        .await
        .activate_authority(AuthorityRequest::default())
        .await;
    let second = second.unwrap().into_inner().fingerprint;
    let third = rotated(&world).await;
    world.admin().await.taint_authority(named(&first)).await.unwrap();
    let asked = AuthorityRequest {
        force: true,
        ..named(&first)
    };
    world.admin().await.revoke_authority(asked).await.unwrap();
    assert_eq!(active(&world).await, third);
    world.begin_agent().await;
    until("it is under the third", async || is_under(&world, &third).await).await;
    until("it serves what the third has signed", async || {
        let visitor = world.fetch("/visitor").await.ok()??;
        let names = visitor.bundles.iter().next()?.authorities().iter().map(Fingerprint::of);
        let names: BTreeSet<String> = names.map(|name| name.to_string()).collect();
        (names == BTreeSet::from([second.clone(), third.clone()])).then_some(())
    })
    .await;
}
