//! java-spiffe: its watch and its TLS; and the grpc-java below it, which names our Unix sockets in a way of its own.

use std::process::Command;

use hoplite_tests::{World, id, own_selectors, peers, until};

use super::{TTL, all_answered, backend, quick, sockets, told};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn java_spiffe_watches_and_calls() {
    let Some((jvm, start)) = peers::java("java_spiffe_watches_and_calls") else {
        return;
    };
    let world = World::start().await;
    let (_app, backend) = backend(&world).await;
    let socket = world.workload_api();
    let judge = async |arguments: &[&str]| {
        let mut command = Command::new(&jvm);
        command.args(&start).args(arguments);
        told(peers::output(command).await)
    };

    // Not registered yet: refused, with what the agent saw.
    let (code, lines, errors) = judge(&["watch", &socket, "1"]).await;
    assert_eq!(code, Some(3), "{lines:?} {errors}");
    let selectors = peers::selectors(&jvm);
    for selector in &selectors {
        let error = lines[0]["error"].as_str().unwrap();
        assert!(error.contains(selector), "`{selector}` is not told: {error}");
    }

    world.register("/client", &selectors, Some(TTL)).await;
    until("java-spiffe gets an SVID", async || {
        (judge(&["watch", &socket, "1"]).await.0 == Some(0)).then_some(())
    })
    .await;
    // It rotates on one stream.
    let (code, lines, errors) = judge(&["watch", &socket, "3"]).await;
    assert_eq!((code, lines.len()), (Some(0), 3), "{lines:?} {errors}");
    assert!(lines.iter().all(|line| line["spiffe_id"] == id("/client")), "{lines:?}");
    assert_ne!(lines[0]["serial"], lines[2]["serial"], "{lines:?}");

    let url = format!("https://{}/accounts/1", backend.inbound("backend"));
    let call = async |protocol: &str, expect: &str, method: &str| {
        judge(&["call", &socket, protocol, &id(expect), method, &url]).await
    };
    let (code, lines, errors) = call("TLSv1.3", "/backend", "GET").await;
    assert_eq!(code, Some(0), "{lines:?} {errors}");
    assert_eq!(
        (&lines[0]["status"], &lines[0]["tls"], &lines[0]["peer"]),
        (&200.into(), &"TLSv1.3".into(), &id("/backend").into())
    );
    let (code, lines, errors) = call("TLSv1.3", "/backend", "DELETE").await;
    assert_eq!(
        (code, &lines[0]["status"]),
        (Some(0), &403.into()),
        "{lines:?} {errors}"
    );
    let (code, lines, _) = call("TLSv1.3", "/somebody-else", "GET").await;
    assert_eq!(code, Some(1), "{lines:?}");

    // The guide says to set the protocol: what the library takes by itself is TLS 1.2, which we do not speak.
    let (code, lines, errors) = call("default", "/backend", "GET").await;
    assert_eq!(code, Some(1), "{lines:?}");
    assert!(errors.contains("protocol_version"), "{errors}");
}

/// grpc-java names a Unix socket in `:authority` by its raw path. It gets in everywhere, with what others write too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_java_may_name_a_socket_as_it_likes() {
    let Some((jvm, start)) = peers::java("grpc_java_may_name_a_socket_as_it_likes") else {
        return;
    };
    let world = World::start().await;
    world.register("/client", &own_selectors()[..1], None).await;
    for (socket, method) in sockets(&world) {
        until("every call is answered", async || {
            let escaped = socket.replace('/', "%2F");
            let mut command = Command::new(&jvm);
            command
                .args(&start)
                .args(["rpc", socket, method, &escaped, "localhost"]);
            all_answered(told(peers::output(command).await), 3)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn java_spiffe_has_a_jwt_source() {
    let Some((jvm, start)) = peers::java("java_spiffe_has_a_jwt_source") else {
        return;
    };
    let world = World::start().await;
    world.register("/client", &peers::selectors(&jvm), None).await;
    let socket = world.workload_api();
    let line = until("java-spiffe gets a JWT-SVID", async || {
        let mut command = Command::new(&jvm);
        command.args(&start).args(["jwt", &socket, "vault"]);
        let (code, mut lines, _) = told(peers::output(command).await);
        (code == Some(0)).then(|| lines.remove(0))
    })
    .await;
    assert_eq!(
        (&line["spiffe_id"], &line["agents"]),
        (&id("/client").into(), &id("/client").into())
    );
    assert!(line["other"].as_str().unwrap().contains("INVALID_ARGUMENT"), "{line}");
    quick(&line, "java-spiffe");
}
