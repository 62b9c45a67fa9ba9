//! `ca init`, `join` and `run` below a directory, as any user.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{hoplite, until};

/// A daemon. Dropping it ends it.
struct Daemon(Child);

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn json(ran: &Output) -> Value {
    assert!(ran.status.success(), "{ran:?}");
    serde_json::from_slice(&ran.stdout).unwrap()
}

fn said(ran: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing from `{text}`");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn from_an_empty_directory_to_a_node() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    let (ca, node, key) = (path("ca"), path("node"), path("alice.key"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let founding = [
        "ca",
        "init",
        "--trust-domain",
        "test.example",
        "--listen",
        &address,
        "--dir",
        &ca,
    ];

    let printed = hoplite(&[&founding[..], &["--print-config"]].concat());
    assert!(
        printed.status.success() && !root.path().join("ca").exists(),
        "{printed:?}"
    );
    let founded = json(&hoplite(
        &[&founding[..], &["--signer-key", &key, "--output", "json"]].concat(),
    ));
    let fingerprint = founded["fingerprints"][0].as_str().unwrap();
    assert_eq!(
        (founded["address"].as_str(), mode(Path::new(&key))),
        (Some(&*address), 0o600)
    );
    // What was printed is what lies there, but for the signer.
    let written = fs::read_to_string(path("ca/ca.toml")).unwrap();
    assert!(
        written.starts_with(&*String::from_utf8_lossy(&printed.stdout)),
        "{written}"
    );
    said(&hoplite(&founding), 3, &["a CA is here already", fingerprint]);
    assert_eq!(
        json(&hoplite(&["ca", "show", "--dir", &ca, "--output", "json"])),
        founded
    );

    let word = format!("{}@{address}#{fingerprint}", "a".repeat(64));
    let join = |word: &str| hoplite(&["join", word, "--dir", &node]);
    said(&join(&word), 1, &["nothing listens at", "hoplite ca run"]);
    let _ca = Daemon::start(&["ca", "run", "--dir", &ca]);
    let created = until("the CA answers", || {
        let created = hoplite(&["token", "create", "--node", "n1", "--dir", &ca, "--output", "json"]);
        created.status.success().then(|| json(&created))
    });
    let invitation = created["invitation"].as_str().unwrap();
    assert!(
        invitation.ends_with(&format!("@{address}#{fingerprint}")),
        "{invitation}"
    );
    said(&join(&word), 1, &["the join token is not known here"]);
    let wrong = invitation.replace(fingerprint, &"0".repeat(64));
    said(
        &join(&wrong),
        1,
        &[fingerprint, &"0".repeat(64), "nothing was sent", "hoplite ca show"],
    );
    assert!(!Path::new(&node).join("agent.toml").exists());

    let joined = join(invitation);
    assert!(joined.status.success(), "{joined:?}");
    assert_eq!(
        (
            mode(&root.path().join("node/agent")),
            mode(&root.path().join("node/agent/node.json"))
        ),
        (0o700, 0o600)
    );
    assert!(
        !root.path().join("node/agent/joining").exists(),
        "nothing half-made stays"
    );
    said(
        &join(invitation),
        3,
        &["a node already", "spiffe://test.example/hoplite/agent/n1"],
    );
    said(
        &hoplite(&["join", invitation, "--dir", &path("other")]),
        1,
        &["used with another key"],
    );

    let _agent = Daemon::start(&["agent", "run", "--dir", &node]);
    until("the agent is with its CA", || {
        let status = hoplite(&["agent", "status", "--dir", &node]);
        String::from_utf8_lossy(&status.stdout)
            .contains("0 entries")
            .then_some(())
    });
    let run = [
        "run",
        "--service",
        "ledger",
        "--port",
        "9000",
        "--dir",
        &node,
        "--print-config",
    ];
    let printed = hoplite(&run);
    let file = path("ledger.toml");
    fs::write(&file, &printed.stdout).unwrap();
    hoplite_proxy::Config::load(Path::new(&file)).unwrap();
    let text = String::from_utf8_lossy(&printed.stdout);
    assert!(text.contains("spiffe_id = \"spiffe://test.example/ledger\""), "{text}");
    said(
        &hoplite(&["run", "--service", "ledger", "--port", "9000", "--dir", &path("empty")]),
        1,
        &["no node yet", "hoplite join"],
    );
}
