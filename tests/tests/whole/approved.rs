//! Every RPC of every socket × who may call it, compared with a file that a reviewer reads.
//!
//! What is written there was found by calling, with an empty message, as each of the callers. A new RPC, or one that
//! lets somebody else in, changes the file: run the test with `HOPLITE_APPROVE=1`, read the difference, commit it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{BundleSet, PeerVerifier, SpiffeId, X509Svid, tls};
use hoplite_tests::rpc::{Rpc, call, rpcs};
use hoplite_tests::{HttpApp, TRUST_DOMAIN, World, id, peers, until};
use hoplite_wire::channel;
use tonic::Code;
use tonic::transport::Channel;

/// What each caller was told, by RPC: a column.
type Answers = BTreeMap<String, String>;

const TEST: &str = "who_may_call_what";

/// The caller that leaves out `workload.spiffe.io: true`.
const NO_HEADER: &str = "without the header";

const KEPT_OUT: &str = "no: not connected";

/// Where the protobuf files are, seen from this crate.
fn protos() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/proto")
}

fn approved() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/approved/rpcs.txt")
}

/// Let in, whatever is then made of an empty message; kept out; or not served on this socket at all.
fn told(who: &str, code: &str) -> String {
    match code {
        "Unimplemented" | "404" => "-".to_owned(),
        "PermissionDenied" | "Unauthenticated" | "401" | "403" => format!("no: {code}"),
        "InvalidArgument" if who == NO_HEADER => format!("no: {code}"),
        // The socket's mode, the TLS handshake, or whoever accepted kept the caller out before any word.
        "unreachable" | "Unavailable" | "Unknown" | "Cancelled" | "no answer" => KEPT_OUT.to_owned(),
        code => format!("yes: {code}"),
    }
}

/// One socket: a row for what it serves, a column for each caller, and the number of RPCs that it serves to none of them.
fn table(title: &str, columns: &[(&str, Answers)]) -> String {
    let asked: Vec<&String> = columns[0].1.keys().collect();
    let row = |asked: &String| -> Vec<String> {
        columns
            .iter()
            .map(|(who, answers)| told(who, &answers[asked]))
            .collect()
    };
    let is_served = |asked: &&String| row(asked).iter().any(|told| told != "-" && told != KEPT_OUT);
    let (served, other): (Vec<&String>, Vec<&String>) = asked.into_iter().partition(is_served);
    let width = served.iter().map(|asked| asked.len()).max().unwrap_or_default();
    let line = |first: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|cell| format!("  {cell:24}")).collect();
        format!("{first:width$}{cells}").trim_end().to_owned() + "\n"
    };
    let callers = columns.iter().map(|(who, _)| (*who).to_owned()).collect();
    let rows: String = served.iter().map(|asked| line(asked, row(asked))).collect();
    let rest = match other.len() {
        0 => String::new(),
        count => format!("{count} others are served to nobody here.\n"),
    };
    format!("\n## {title}\n\n{}{rows}{rest}", line("", callers))
}

/// A copy of the caller's program of its own path, so that it can be registered, or not, by itself.
fn program(world: &World, name: &str) -> PathBuf {
    let path = world.dir().join(name);
    fs::copy(env!("CARGO_BIN_EXE_hoplite-test-rpc"), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

async fn ask(program: &Path, other_uid: bool, socket: &Path, header: bool, asked: &[String]) -> Answers {
    let mut command = if other_uid {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    command.arg(socket).args((!header).then_some("--no-header")).args(asked);
    let output = peers::output(command).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Answers = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(asked, code)| (asked.to_owned(), code.to_owned()))
        .collect();
    assert_eq!(
        answers.len(),
        asked.len(),
        "{text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    answers
}

/// Asks the CA over TLS, showing this SVID.
async fn ask_ca(world: &World, svid: Option<&X509Svid>, asked: &[Rpc]) -> Answers {
    let mut answers = Answers::new();
    for rpc in asked {
        let verifier = Arc::new(PeerVerifier::new(BundleSet::from_iter([world.bundle()])).unwrap());
        let ca = SpiffeId::parse(&id("/hoplite/ca")).unwrap();
        let config = tls::client_config(svid, verifier, ca, &[b"h2"]).unwrap();
        let code = match channel::tls(world.ca_address(), config).await {
            Ok(channel) => patient(channel, rpc).await,
            Err(_) => "unreachable".to_owned(),
        };
        answers.insert(name(rpc), code);
    }
    answers
}

/// The code of the answer. Attempts without a token are forgiven one in a second, and all here come from one address.
async fn patient(channel: Channel, rpc: &Rpc) -> String {
    let mut code = call(channel.clone(), rpc, false).await;
    for _ in 0..60 {
        if code != Code::ResourceExhausted {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        code = call(channel.clone(), rpc, false).await;
    }
    format!("{code:?}")
}

fn name(rpc: &Rpc) -> String {
    format!("{}/{}", rpc.service, rpc.method)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_call_what() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return peers::skip(TEST, "it needs root, to call as another user");
    }
    let mut all = rpcs(&protos());
    // What gRPC itself asks of a server comes with its libraries, and has no file here.
    for (service, method) in [
        ("grpc.health.v1.Health", "Check"),
        ("grpc.health.v1.Health", "Watch"),
        ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"),
    ] {
        all.push(Rpc {
            service: service.to_owned(),
            method: method.to_owned(),
        });
    }
    // What no CA has: unknown to those who may call, and refused to the others like all the rest.
    all.push(Rpc {
        service: "hoplite.ca.v1.Admin".to_owned(),
        method: "NoSuchCall".to_owned(),
    });
    let names: Vec<String> = all.iter().map(name).collect();
    let mut world = World::start().await;
    let mut text =
        "# Every RPC of every socket, and who may call it. Made by tests/tests/whole/approved.rs, which says how.\n\
                    # `yes` and the code for an empty message; `no` and why; `-` where it is not served.\n\
                    # `Check` answers `Ok` to everybody: what it decided, a denial too, is in the message.\n"
            .to_owned();

    // The CA's port.
    let joined = world.join("another").await;
    let banned = world.join("banned").await;
    world.ban("banned").await;
    let workload = world.caller("/client").await.svid.unwrap();
    let nested = world.caller("/hoplite/nested/eu").await.svid.unwrap();
    let stranger = TestAuthority::new(TRUST_DOMAIN).svid("/hoplite/agent/another", Duration::from_secs(600));
    text += &table(
        "The CA's port (mutual TLS)",
        &[
            ("nobody", ask_ca(&world, None, &all).await),
            ("another CA's agent", ask_ca(&world, Some(&stranger), &all).await),
            ("a workload", ask_ca(&world, Some(&workload), &all).await),
            ("a nested CA", ask_ca(&world, Some(&nested), &all).await),
            ("an agent", ask_ca(&world, Some(&joined), &all).await),
            ("a banned agent", ask_ca(&world, Some(&banned), &all).await),
        ],
    );

    // The same port, as operators of each role of the default policy.
    let mut columns = Vec::new();
    for (role, path) in [
        ("admin", None),
        ("auditor", None),
        ("policy", None),
        ("nodes", None),
        ("entries", Some("/ns/pay")),
    ] {
        let svid = world.sign_in(role, role, path).await;
        columns.push((role, ask_ca(&world, Some(&svid), &all).await));
    }
    let banned = world.sign_in("banned", "admin", None).await;
    world.ban_operator("banned").await;
    columns.push(("a banned admin", ask_ca(&world, Some(&banned), &all).await));
    text += &table("The CA's port, for operators of these roles", &columns);

    // The CA's admin socket.
    let anyone = program(&world, "anyone");
    let admin = world.admin_socket().to_owned();
    let own = ask(&anyone, false, &admin, false, &names).await;
    // Its mode keeps others out; without that the CA says no by itself.
    fs::set_permissions(&admin, fs::Permissions::from_mode(0o666)).unwrap();
    let mut other = ask(&anyone, true, &admin, false, &names).await;
    // They are refused before it is looked up what they ask.
    other.retain(|asked, code| own[asked] != "Unimplemented" || code != "PermissionDenied");
    let unserved = own.iter().filter(|(_, code)| *code == "Unimplemented");
    other.extend(unserved.map(|(asked, code)| (asked.clone(), code.clone())));
    text += &table(
        "The CA's admin socket",
        &[("its own user", own), ("another user", other)],
    );

    // The agent's socket.
    world.policy("@id(\"a\") permit (principal, action, resource);");
    world.authorize("ledger", "/ledger").await;
    let (ledger, client) = (program(&world, "ledger"), program(&world, "client"));
    for (path, program) in [("/ledger", &ledger), ("/client", &client)] {
        world.register(path, &peers::selectors(program), None).await;
    }
    let agent = world.agent_socket().to_owned();
    let known = ["SpiffeWorkloadAPI/FetchX509SVID".to_owned()];
    for program in [&ledger, &client] {
        until("it is registered", async || {
            let answers = ask(program, false, &agent, true, &known).await;
            (answers[&known[0]] == "Ok").then_some(())
        })
        .await;
    }
    let mut on_agent = names.clone();
    on_agent.extend(
        [
            "POST:/access/v1/evaluation",
            "POST:/access/v1/evaluations",
            "GET:/.well-known/authzen-configuration",
        ]
        .map(str::to_owned),
    );
    text += &table(
        "The agent's socket",
        &[
            (
                "a service it decides for",
                ask(&ledger, false, &agent, true, &on_agent).await,
            ),
            ("another workload", ask(&client, false, &agent, true, &on_agent).await),
            (NO_HEADER, ask(&client, false, &agent, false, &on_agent).await),
            (
                "an unregistered process",
                ask(&anyone, false, &agent, true, &on_agent).await,
            ),
            ("another user", ask(&anyone, true, &agent, true, &on_agent).await),
        ],
    );

    // A proxy's admin socket.
    let app = HttpApp::start().await;
    let proxy = world.proxy("orders").http("orders", &app).start().await;
    let asked = ["GET:/status", "GET:/policies", "GET:/metrics"].map(str::to_owned);
    let socket = proxy.admin_socket().to_owned();
    text += &table(
        "A proxy's admin socket",
        &[
            ("its own user", ask(&anyone, false, &socket, false, &asked).await),
            ("another user", ask(&anyone, true, &socket, false, &asked).await),
        ],
    );

    if env::var_os("HOPLITE_APPROVE").is_some() {
        fs::write(approved(), &text).unwrap();
    }
    let expected = fs::read_to_string(approved()).unwrap_or_default();
    assert!(
        text == expected,
        "who may call what has changed. If that is meant, run this test with HOPLITE_APPROVE=1 and commit the file.\n{text}"
    );
}
