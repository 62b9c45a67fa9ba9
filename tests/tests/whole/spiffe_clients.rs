//! Other people's Workload API clients against our agent: py-spiffe, the `spiffe` crate, go-spiffe, java-spiffe, spiffe-helper and
//! ghostunnel, entitled and not.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod ghostunnel;
mod go;
mod java;
mod spiffe_helper;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use hoplite_identity::{BundleSet, TrustBundle, TrustDomain, X509Svid};
use hoplite_tests::{HttpApp, Proxy, TestClient, World, id, own_selectors, peers, until};
use http::StatusCode;
use serde_json::{Value, json};
use spiffe::transport::{GrpcStatusCode, TransportError};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Source};

const TTL: Duration = Duration::from_secs(5);

/// The client may read the service.
const POLICY: &str = r#"
@id("backend/client-reads") permit (principal == Hoplite::Workload::"spiffe://world.test/client",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"backend");
"#;

async fn backend(world: &World) -> (HttpApp, Proxy) {
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let proxy = world.proxy("backend").http("backend", &app).start().await;
    (app, proxy)
}

/// Runs one of our scripts for py-spiffe.
async fn script(python: &Path, name: &str, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let mut command = Command::new(python);
    command.arg("-B").arg(peers::file(name)).args(arguments);
    told(peers::output(command).await)
}

/// Exit code, JSON lines, and what else was said.
fn told(output: Output) -> (Option<i32>, Vec<Value>, String) {
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (
        output.status.code(),
        lines,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn py_spiffe_fetches_rotates_and_calls() {
    let Some(python) = peers::python("py_spiffe_fetches_rotates_and_calls") else {
        return;
    };
    let world = World::start().await;
    let (_app, backend) = backend(&world).await;
    let socket = world.workload_api();

    // Not registered yet: refused, with what the agent saw.
    let (code, lines, errors) = script(&python, "fetch_svid.py", &["--socket", &socket]).await;
    assert_eq!(code, Some(3), "{lines:?} {errors}");
    assert_eq!(lines[0]["error"], "PermissionDenied", "{lines:?}");
    let selectors = peers::selectors(&python);
    for selector in &selectors {
        assert!(
            lines[0]["detail"].as_str().unwrap().contains(selector),
            "`{selector}` is not told: {lines:?}"
        );
    }

    world.register("/client", &selectors, Some(TTL)).await;
    until("py-spiffe gets an SVID", async || {
        let (code, _, _) = script(&python, "fetch_svid.py", &["--socket", &socket]).await;
        (code == Some(0)).then_some(())
    })
    .await;
    let (code, lines, errors) = script(&python, "fetch_svid.py", &["--socket", &socket, "--count", "3"]).await;
    assert_eq!(code, Some(0), "{lines:?} {errors}");
    assert!(lines.iter().all(|line| line["spiffe_id"] == id("/client")), "{lines:?}");

    let url = format!("https://{}/accounts/1", backend.inbound("backend"));
    let call = async |method: &str, expect: &str| {
        let arguments = [
            "--socket",
            &socket,
            "--url",
            &url,
            "--expect",
            &id(expect),
            "--method",
            method,
        ];
        script(&python, "mtls_call.py", &arguments).await
    };
    let (code, lines, errors) = call("GET", "/backend").await;
    assert_eq!(
        (code, lines[0]["status"].as_u64()),
        (Some(0), Some(200)),
        "{lines:?} {errors}"
    );
    assert_eq!(
        (&lines[0]["peer"], &lines[0]["tls"]),
        (&id("/backend").into(), &"TLSv1.3".into())
    );
    let (code, lines, errors) = call("DELETE", "/backend").await;
    assert_eq!(
        (code, lines[0]["status"].as_u64()),
        (Some(0), Some(403)),
        "{lines:?} {errors}"
    );
    let (code, lines, _) = call("GET", "/somebody-else").await;
    assert_eq!(code, Some(1), "{lines:?}");
}

/// A source of JWT-SVIDs is there at once, and its library believes what it brings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn py_spiffe_has_a_jwt_source() {
    let Some(python) = peers::python("py_spiffe_has_a_jwt_source") else {
        return;
    };
    let world = World::start().await;
    let socket = world.workload_api();
    let arguments = ["source", "--socket", &socket, "--audience", "vault"];
    let (code, lines, _) = script(&python, "jwt_svid.py", &arguments).await;
    assert_eq!(code, Some(1), "{lines:?}");
    assert!(lines[0].to_string().contains("PERMISSION_DENIED"), "{lines:?}");
    world.register("/client", &peers::selectors(&python), None).await;
    let line = until("py-spiffe gets a JWT-SVID", async || {
        let (code, mut lines, _) = script(&python, "jwt_svid.py", &arguments).await;
        (code == Some(0)).then(|| lines.remove(0))
    })
    .await;
    assert_eq!(
        (&line["spiffe_id"], &line["audience"]),
        (&id("/client").into(), &json!(["vault"]))
    );
    assert_eq!(line["other"], "InvalidTokenError", "{line}");
    quick(&line, "py-spiffe");
}

/// The source was there soon: in well under a second, and a little more where tests run beside it.
fn quick(line: &Value, library: &str) {
    let took = line["source_ms"].as_u64().unwrap();
    eprintln!("the JWT source of {library} was there after {took} ms");
    assert!(took < 5_000, "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spiffe_crate_fetches_rotates_and_calls() {
    let world = World::start().await;
    let (_app, backend) = backend(&world).await;
    // The default identity is the one with the most selectors (W-10).
    let mut selectors = own_selectors();
    selectors.extend(peers::selectors(&std::env::current_exe().unwrap()));
    selectors.dedup();
    world.register("/client", &selectors, Some(TTL)).await;
    until("the agent serves it", async || {
        world.fetch("/client").await.ok().flatten()
    })
    .await;

    let source = X509Source::builder()
        .endpoint(world.workload_api())
        .build()
        .await
        .unwrap();
    let first = source.svid().unwrap();
    assert_eq!(first.spiffe_id().to_string(), id("/client"));
    let mut updates = source.updated();
    while source.svid().unwrap().leaf().as_ref() == first.leaf().as_ref() {
        tokio::time::timeout(TTL * 3, updates.changed()).await.unwrap().unwrap();
    }

    let svid = source.svid().unwrap();
    let chain: Vec<u8> = svid
        .cert_chain()
        .iter()
        .flat_map(|certificate| certificate.as_ref())
        .copied()
        .collect();
    let domain = spiffe::TrustDomain::new("world.test").unwrap();
    let bundle = source.try_bundle_for_trust_domain(&domain).unwrap();
    let authorities: Vec<u8> = bundle
        .authorities()
        .iter()
        .flat_map(|authority| authority.as_ref())
        .copied()
        .collect();
    let bundle = TrustBundle::from_der(TrustDomain::parse("world.test").unwrap(), &authorities, 0).unwrap();
    let caller = TestClient {
        svid: Some(X509Svid::from_der(&chain, svid.private_key().as_ref()).unwrap()),
        bundles: [bundle].into_iter().collect::<BundleSet>(),
    };
    let address = backend.inbound("backend");
    let call = async |path: &str, method: &str| {
        let request = http::Request::builder()
            .method(method)
            .uri(format!("https://backend.test{path}"));
        caller
            .call(address, &id("/backend"), request.body(Default::default()).unwrap())
            .await
            .unwrap()
    };
    assert_eq!(call("/accounts/1", "GET").await.status, StatusCode::OK);
    assert_eq!(call("/accounts/1", "PUT").await.status, StatusCode::FORBIDDEN);
    source.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spiffe_crate_fetches_and_validates_jwt_svids() {
    let world = World::start().await;
    world.register("/client", &own_selectors(), None).await;
    let client = WorkloadApiClient::connect_to(world.workload_api()).await.unwrap();
    let svid = until("a JWT-SVID", async || client.fetch_jwt_svid(["vault"], None).await.ok()).await;
    assert_eq!(svid.spiffe_id().to_string(), id("/client"));
    let began = std::time::Instant::now();
    let bundles = client.fetch_jwt_bundles().await.unwrap();
    let domain = spiffe::TrustDomain::new("world.test").unwrap();
    assert!(bundles.get(&domain).is_some(), "{bundles:?}");
    println!("the bundles came after {:?}", began.elapsed());
    let believed = client.validate_jwt_token("vault", svid.token()).await.unwrap();
    assert_eq!(believed.spiffe_id().to_string(), id("/client"));
    let refused = client.validate_jwt_token("bank", svid.token()).await.unwrap_err();
    let WorkloadApiError::Transport(TransportError::Status(status)) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!(status.code(), GrpcStatusCode::InvalidArgument);
}

/// A socket of each kind, with an RPC that it serves to the process that tests.
fn sockets(world: &World) -> [(&str, &'static str); 2] {
    [
        (world.admin_socket().to_str().unwrap(), "hoplite.ca.v1.Admin/ListAgents"),
        (
            world.agent_socket().to_str().unwrap(),
            "SpiffeWorkloadAPI/FetchX509SVID",
        ),
    ]
}

/// Whether a program that prints the code of each of its `calls` printed `OK` for all. The agent refuses until the SVID is there.
fn all_answered((code, lines, errors): (Option<i32>, Vec<Value>, String), calls: usize) -> Option<()> {
    assert_eq!((code, lines.len()), (Some(0), calls), "{lines:?} {errors}");
    let codes: Vec<&str> = lines.iter().map(|line| line["code"].as_str().unwrap()).collect();
    let early = |code: &&str| ["OK", "PERMISSION_DENIED", "UNAVAILABLE"].contains(code);
    assert!(codes.iter().all(early), "{lines:?}");
    codes.iter().all(|code| *code == "OK").then_some(())
}

/// A copy of the foreign workload where every user may run it.
fn workload(dir: &Path, name: &str, more: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::copy(env!("CARGO_BIN_EXE_hoplite-test-workload"), &path).unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(more)
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_with_a_wrong_uid_or_binary_is_refused_and_told_what_was_seen() {
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let right = workload(dir.path(), "right", b"");
    let uid = fs::metadata(dir.path()).unwrap().uid();
    let mut selectors = peers::selectors(&right);
    selectors.push(format!("unix:uid:{uid}"));
    world.register("/client", &selectors, None).await;
    let socket = world.workload_api();
    let run = async |program: &Path| {
        let mut command = Command::new(program);
        command.arg(&socket);
        told(peers::output(command).await)
    };
    until("the right one gets its SVID", async || {
        let (code, lines, _) = run(&right).await;
        (code == Some(0) && lines[0]["spiffe_id"] == id("/client")).then_some(())
    })
    .await;

    let refused = |(code, lines, errors): (Option<i32>, Vec<Value>, String), seen: &str| {
        assert_eq!(code, Some(3), "{lines:?} {errors}");
        let detail = lines[0]["detail"].as_str().unwrap();
        assert!(detail.contains(seen), "the reason does not tell `{seen}`: {detail}");
    };
    // The same bytes under another name, and other bytes.
    let elsewhere = workload(dir.path(), "elsewhere", b"");
    refused(run(&elsewhere).await, &format!("unix:path:{}", elsewhere.display()));
    let changed = workload(dir.path(), "changed", b"one byte more is another program");
    refused(run(&changed).await, &peers::selectors(&changed)[1]);
    // Another program in the place of the right one, while the right one's path is what was registered.
    fs::rename(&changed, &right).unwrap();
    refused(run(&right).await, &peers::selectors(&right)[1]);

    if uid != 0 {
        let test = "a_workload_with_a_wrong_uid_or_binary_is_refused_and_told_what_was_seen";
        return peers::skip(test, "the wrong uid needs root, to run a process as somebody else");
    }
    let back = workload(dir.path(), "back", b"");
    fs::rename(&back, &right).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&right)
        .arg(&socket);
    refused(told(peers::output(command).await), "unix:uid:65534");
    let (code, lines, errors) = run(&right).await;
    assert_eq!(code, Some(0), "the same file as the right user: {lines:?} {errors}");
}

/// gRPC's C core names a Unix socket in `:authority` by its escaped path. It gets in everywhere, with what others write too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_client_may_name_a_socket_as_it_likes() {
    let Some(python) = peers::python("a_grpc_client_may_name_a_socket_as_it_likes") else {
        return;
    };
    let world = World::start().await;
    world.register("/client", &own_selectors()[..1], None).await;
    for (socket, method) in sockets(&world) {
        until("every call is answered", async || {
            let escaped = socket.replace('/', "%2F");
            let arguments = [
                "--socket",
                socket,
                "--method",
                method,
                "--header",
                "workload.spiffe.io=true",
            ];
            let arguments = [&arguments[..], &[socket, &escaped, "a b", "localhost"]].concat();
            all_answered(script(&python, "call_rpc.py", &arguments).await, 5)
        })
        .await;
    }
}
