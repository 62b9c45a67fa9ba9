//! ghostunnel, with our Workload API for TLS on either side: against itself and against our proxies, over a rotation.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use hoplite_identity::Leaf;
use hoplite_tests::peers::Process;
use hoplite_tests::{TestClient, World, get, id, peers, until};
use http::StatusCode;

use super::{TTL, backend};

struct Tunnel {
    address: SocketAddr,
    process: Process,
}

// === impl Tunnel ===

impl Tunnel {
    /// Starts it, with the Workload API for keys and authorities.
    fn start(program: &Path, world: &World, dir: &Path, mode: &str, target: SocketAddr, accept: &[String]) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, peers::free_port()));
        let mut command = Command::new(program);
        command
            .arg(mode)
            .arg(format!("--use-workload-api-addr={}", world.workload_api()))
            .arg(format!("--listen={address}"))
            .arg(format!("--target={target}"))
            .args(accept);
        let process = Process::start(command, dir.join(format!("{mode}-{}.log", address.port())));
        Self { address, process }
    }

    /// The end of a call through it, once it listens.
    async fn answers(&self, path: &str) -> StatusCode {
        let mut last = String::new();
        let status = until("the tunnel is there", async || match get(self.address, path).await {
            Ok(answer) => Some(answer.status),
            Err(error) => {
                last = error.to_string();
                None
            }
        });
        tokio::select! {
            status = status => status,
            () = tokio::time::sleep(TTL * 5) => panic!("{last}: {}", self.process.said()),
        }
    }
}

/// The certificate that a server shows.
async fn shown(caller: &TestClient, address: SocketAddr) -> Option<Leaf> {
    let stream = caller.connect(address, &id("/tunnel"), &[b"http/1.1"]).await.ok()?;
    let (_, session) = stream.get_ref();
    Some(Leaf::parse(session.peer_certificates()?.first()?).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ghostunnel_calls_and_serves_over_a_rotation() {
    let Some(program) = peers::ghostunnel("ghostunnel_calls_and_serves_over_a_rotation") else {
        return;
    };
    let world = World::start().await;
    let (app, backend) = backend(&world).await;
    let dir = tempfile::tempdir().unwrap();
    // One program, two workloads: they are told apart by their paths.
    let copy = |name: &str| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::copy(&program, &path).unwrap();
        path
    };
    let (client, server) = (copy("client"), copy("server"));
    for (path, program) in [("/client", &client), ("/tunnel", &server)] {
        world.register(path, &peers::selectors(program)[..1], Some(TTL)).await;
    }
    let frontend_caller = world.caller("/frontend-caller").await;

    let accept = [id("/frontend"), id("/client"), id("/frontend-caller")].map(|id| format!("--allow-uri={id}"));
    let served = Tunnel::start(&server, &world, dir.path(), "server", app.address(), &accept);
    let expect = |path: &str| [format!("--verify-uri={}", id(path))];
    let start = |target, expected| Tunnel::start(&client, &world, dir.path(), "client", target, &expect(expected));
    let to_proxy = start(backend.inbound("backend"), "/backend");
    let to_itself = start(served.address, "/tunnel");
    let astray = start(backend.inbound("backend"), "/somebody-else");
    let frontend = world.proxy("frontend").calls("tunnel", served.address).start().await;

    let first = until("the server has its SVID", async || {
        shown(&frontend_caller, served.address).await
    })
    .await;
    let all_answer = async || {
        assert_eq!(to_proxy.answers("/accounts/1").await, StatusCode::OK);
        assert_eq!(to_itself.answers("/accounts/1").await, StatusCode::OK);
        let answer = get(frontend.outbound("tunnel"), "/accounts/1").await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    };
    all_answer().await;
    // Whoever still had the first certificate would be refused now.
    until("the first certificates have ended", async || {
        let now = shown(&frontend_caller, served.address).await?;
        (now.not_before() > first.not_after()).then_some(())
    })
    .await;
    all_answer().await;

    // Our policy holds for it as for everybody, and it keeps to the name that it was told.
    let answer = hoplite_tests::PlainClient::new(to_proxy.address)
        .call(http::Method::DELETE, "/accounts/1")
        .await;
    assert_eq!(answer.unwrap().status, StatusCode::FORBIDDEN);
    until("it listens", async || {
        tokio::net::TcpStream::connect(astray.address).await.ok()
    })
    .await;
    assert!(
        get(astray.address, "/accounts/1").await.is_err(),
        "{}",
        astray.process.said()
    );
    // A workload that the server does not accept.
    let other = world.proxy("other").calls("tunnel", served.address).start().await;
    let answer = get(other.outbound("tunnel"), "/accounts/1").await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{}", answer.body);
}
