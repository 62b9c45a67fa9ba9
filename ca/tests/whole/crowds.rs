//! Crowds that hold what everybody needs, from the very address or user that a legitimate caller has.

use std::time::Duration;

use hoplite_wire::ca::{ListAgentsRequest, WatchRequest};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;

use crate::world::{World, csr, next};

/// What is promised is two seconds; a test's machine may be busy with other things.
const IN_TIME: Duration = Duration::from_secs(10);

async fn in_time<T>(what: &str, call: impl Future<Output = T>) -> T {
    let called = tokio::time::timeout(IN_TIME, call).await;
    called.unwrap_or_else(|_| panic!("{what}: no answer within {IN_TIME:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_agent_out() {
    let world = World::start().await;
    let token = world.token("n1").await;
    let mut held = Vec::new();
    for n in 0..1_600 {
        let mut stream = TcpStream::connect(world.ca.node_address()).await.unwrap();
        // Half of them begin a handshake.
        if n % 2 == 0 {
            stream.write_all(&[0x16, 3, 1]).await.unwrap();
        }
        held.push(stream);
    }
    in_time("a join", world.try_join(&token, csr().1)).await.unwrap();
    let mut agent = in_time("another", world.join("n2")).await;
    let mut updates = in_time("a watch", agent.client.watch(WatchRequest::default()))
        .await
        .unwrap()
        .into_inner();
    in_time("an update", next(&mut updates)).await.unwrap();
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_operator_out() {
    let world = World::start().await;
    let mut held = Vec::new();
    for _ in 0..600 {
        held.push(UnixStream::connect(world.dir.path().join("ca.sock")).await.unwrap());
    }
    let mut admin = world.admin().await;
    in_time("a list", admin.list_agents(ListAgentsRequest {}))
        .await
        .unwrap();
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_hold_up_nobody_who_has_a_token() {
    let world = World::start().await;
    let token = world.token("n1").await;
    for _ in 0..40 {
        world.try_join("a guess", csr().1).await.unwrap_err();
    }
    let limited = world.try_join("a guess", csr().1).await.unwrap_err();
    assert_eq!(limited.code(), Code::ResourceExhausted, "{limited:?}");
    world.try_join(&token, csr().1).await.unwrap();
    // Nor does one who wears out a token that is known hold up those who have others.
    let mut codes = Vec::new();
    for _ in 0..40 {
        codes.push(world.try_join(&token, csr().1).await.unwrap_err().code());
    }
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
    world.join("n2").await;
}
