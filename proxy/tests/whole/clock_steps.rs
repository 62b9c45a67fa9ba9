//! A clock that is set past the end of a certificate ends what rests on it: connections that carry any bytes, too.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and its now is its own"
)]

#[path = "../../../tests/clock/mod.rs"]
mod clock;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clock::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{App, World, eventually};

const ANYBODY: &str = r#"@id("anybody") permit (principal, action, resource);"#;

#[tokio::test]
async fn a_clock_that_steps_past_the_end_ends_tcp_connections() {
    let (world, clock) = (World::new(), Clock::new());
    world.policy("anybody.cedar", ANYBODY);
    let app = App::tcp_echo().await;
    let agent = world.agent("db", &world.svid("/db")).await;
    let free = || {
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    };
    let (listen, out) = (free(), free());
    let config = format!(
        "name = \"db\"\nworkload_api = \"{}\"\npolicy_dir = \"policies\"\naudit_dir = \"db-audit\"\nadmin_socket = \"db.sock\"\n\
         [[inbound]]\nlisten = \"{listen}\"\nservice = \"db\"\nprotocol = \"tcp\"\nforward_to = \"{}\"\n\
         [[outbound]]\nlisten = \"{out}\"\nname = \"db\"\nprotocol = \"tcp\"\nconnect_to = \"{listen}\"\n\
         expect = \"spiffe://demo.hoplite/db\"\n",
        agent.address, app.address
    );
    std::fs::write(world.path("proxy.toml"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite-proxy"));
    command
        .arg("run")
        .arg("--config")
        .arg(world.path("proxy.toml"))
        .stderr(Stdio::null());
    clock.of(&mut command);
    let mut child = command.spawn().unwrap();
    eventually("it listens", async || TcpStream::connect(listen).await.is_ok()).await;

    // One of somebody else's, and one of the own service: through the outbound listener, and back in.
    let mut inbound = world.connect(listen, Some(&world.svid("/edge")), "/db").await.unwrap();
    let mut outbound = TcpStream::connect(out).await.unwrap();
    let mut echo = [0; 4];
    inbound.write_all(b"ping").await.unwrap();
    inbound.read_exact(&mut echo).await.unwrap();
    outbound.write_all(b"ping").await.unwrap();
    outbound.read_exact(&mut echo).await.unwrap();

    // Half an hour is nothing to a certificate of an hour, and neither is an hour back.
    for ahead in [1_800, -3_600, 0] {
        clock.ahead(ahead);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        inbound.write_all(b"ping").await.unwrap();
        inbound.read_exact(&mut echo).await.unwrap();
    }
    clock.ahead(2 * 3_600);
    let stepped = Instant::now();
    let ended = timeout(Duration::from_secs(5), inbound.read(&mut echo))
        .await
        .expect("it ends");
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    let ended = timeout(Duration::from_secs(5), outbound.read(&mut echo))
        .await
        .expect("it ends");
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    println!("ended {:?} after the step", stepped.elapsed());
    child.kill().unwrap();
    child.wait().unwrap();
}
