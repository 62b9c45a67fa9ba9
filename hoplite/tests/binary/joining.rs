//! `ca init`, `join` and `run` below a directory, as any user.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::keys::Ca;
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

/// As an image does whose machines nobody invites: the CA's address and fingerprint are in it, and each machine has a certificate.
#[test]
fn a_node_joins_by_its_certificate_and_no_token() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    let openssl = |words: &str| {
        let mut command = Command::new("openssl");
        let ran = command
            .args(words.split(' '))
            .current_dir(root.path())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{words}: {ran:?}");
    };
    for authority in ["machines", "others"] {
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {authority}.key -out {authority}.pem -days 9 -subj /CN={authority} \
             -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign"
        ));
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout of-{authority}.key -out of-{authority}.pem -days 9 -subj /CN=m7 \
             -CA {authority}.pem -CAkey {authority}.key -addext basicConstraints=critical,CA:FALSE -addext keyUsage=critical,digitalSignature"
        ));
        fs::set_permissions(path(&format!("of-{authority}.key")), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let mut ca = Ca::at(root.path(), "ca");
    let settings = format!(
        "[[attestor]]\nkind = \"x509pop\"\nnode = \"corp-{{x509pop:cn}}\"\nroots = \"{}\"\n",
        path("machines.pem")
    );
    assert!(ca.init(&[("--settings", &settings)]).status.success());
    ca.run();
    let shown = json(&hoplite(&["ca", "show", "--output", "json", "--dir", &path("ca")]));
    let (address, fingerprint) = (
        shown["address"].as_str().unwrap(),
        shown["fingerprints"][0].as_str().unwrap(),
    );
    let section = |directory: &str, authority: &str| {
        let text = format!(
            "[join]\nkind = \"x509pop\"\ncertificate = \"{directory}of-{authority}.pem\"\nkey = \"{directory}of-{authority}.key\"\n"
        );
        fs::write(path("join.toml"), text).unwrap();
    };
    let (here, node) = (format!("{}/", root.path().display()), path("node"));
    let join = |whom: &str, more: &[&str]| {
        let by = path("join.toml");
        hoplite(&[&["join", whom, "--by", &by, "--dir", &node], more].concat())
    };
    let whom = format!("{address}#{fingerprint}");
    section(&here, "machines");
    said(&join(address, &[]), 1, &["fingerprint", "hoplite ca show"]);
    said(&join(&format!("token@{whom}"), &[]), 1, &["there is no token"]);
    said(&join(&format!("{address}#{}", "0".repeat(64)), &[]), 1, &["mistyped"]);
    section("", "machines");
    said(&join(&whom, &[]), 1, &["`of-machines", "write `/"]);
    section(&here, "others");
    said(&join(&whom, &[]), 1, &["not believed", "the CA's log"]);
    assert!(!Path::new(&node).join("agent.toml").exists(), "nothing was joined");

    section(&here, "machines");
    let joined = json(&join(&whom, &["--output", "json"]));
    let id = "spiffe://test.example/hoplite/agent/corp-m7";
    assert_eq!(joined["spiffe_id"], id);
    said(&join(&whom, &[]), 3, &["is a node already"]);
    // Its agent finds there how to join anew.
    let written = fs::read_to_string(path("node/agent.toml")).unwrap();
    assert!(written.contains("[join]\nkind = \"x509pop\""), "{written}");
    let again = json(&join(&whom, &["--again", "--output", "json"]));
    assert_eq!(again["spiffe_id"], id);
    let edited = fs::read_to_string(path("node/agent.toml")).unwrap();
    assert_eq!(edited.matches("[join]").count(), 1, "{edited}");
    ca.register("app", "corp-m7");
    let _agent = Daemon::start(&["agent", "run", "--dir", &node]);
    until("the workload's SVID", || {
        let fetched = hoplite(&["svid", "fetch", "--output", "json", "--dir", &node]);
        String::from_utf8_lossy(&fetched.stdout)
            .contains("spiffe://test.example/app\"")
            .then_some(())
    });
}
