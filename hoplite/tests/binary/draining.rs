//! SIGTERM at a CA and at an agent with calls under way: streams end cleanly, what was begun is answered, nobody new gets in,
//! and it is over within the time that `docs/reference/configuration.md` says, with exit code 0.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, hoplite, is_alive, kill, until};

const ENTRIES: usize = 400;

/// A CA and an agent that joined it, each a process with a log.
struct Node {
    dir: tempfile::TempDir,
    ca: Daemon,
    agent: Daemon,
    address: String,
}

struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(dir: &Path, kind: &str) -> Self {
        let log = dir.join(format!("{kind}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_hoplite"))
            .args([kind, "run", "--log", "json", "--config"])
            .arg(dir.join(format!("{kind}.toml")))
            .env("HOPLITE_LOG", "info,hoplite::audit=debug") // each SVID by itself
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn says(&self, text: &str) {
        until(&format!("`{text}` in {}", self.log.display()), || {
            self.log().contains(text).then_some(())
        });
    }

    fn terminate(&self) {
        kill("-TERM", self.child.id());
    }

    fn end(&mut self) -> ExitStatus {
        until("it ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display().to_string();
        let write = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
        write(
            "ca.toml",
            format!(
                "founds = true\ntrust_domain = \"test.example\"\ndata_dir = \"{at}/ca\"\nlisten = \"127.0.0.1:0\"\nadmin_socket = \"{at}/ca.sock\"\n"
            ),
        );
        let ca = Daemon::start(dir.path(), "ca");
        ca.says("the CA serves");
        let log = ca.log();
        let (_, rest) = log.split_once("\"node_address\":\"").unwrap();
        let address = rest.split('"').next().unwrap().to_owned();
        let socket = dir.path().join("ca.sock").display().to_string();
        let token = hoplite(&[
            "token",
            "create",
            "--node",
            "n1",
            "--output",
            "json",
            "--ca-socket",
            &socket,
        ]);
        let token: serde_json::Value = serde_json::from_slice(&token.stdout).unwrap();
        write("token", token.get("token").unwrap().as_str().unwrap().to_owned());
        Command::new("chmod")
            .arg("600")
            .arg(dir.path().join("token"))
            .status()
            .unwrap();
        write(
            "agent.toml",
            format!(
                "trust_domain = \"test.example\"\ndata_dir = \"{at}/agent\"\nca = \"{address}\"\ntrust_bundle = \"{at}/ca/bundle.pem\"\n\
                 join_token_file = \"{at}/token\"\nsocket = \"{at}/agent.sock\"\n"
            ),
        );
        let agent = Daemon::start(dir.path(), "agent");
        ca.says("\"watch\"");
        Self {
            dir,
            ca,
            agent,
            address,
        }
    }

    fn tool(&self, arguments: &[&str]) -> std::process::Output {
        let socket = self.dir.path().join("ca.sock").display().to_string();
        hoplite(&[arguments, &["--ca-socket", &socket]].concat())
    }
}

#[test]
fn a_ca_answers_what_was_begun_and_ends() {
    let mut node = Node::start();
    let mut text = String::new();
    for n in 0..ENTRIES {
        let _ = write!(
            text,
            "[[entry]]\nspiffe_id = \"spiffe://test.example/w{n}\"\nparent = \"spiffe://test.example/hoplite/agent/n1\"\nselectors = [\"unix:uid:{n}\"]\n"
        );
    }
    let file = node.dir.path().join("entries.toml").display().to_string();
    fs::write(&file, text).unwrap();
    let applied = node.tool(&["entry", "apply", &file, "--owner", "test"]);
    assert!(applied.status.success(), "{applied:?}");
    // The first of many has been signed: the rest of the call is under way.
    node.ca.says("\"outcome\":\"issued\"");
    node.ca.terminate();
    let since = Instant::now();
    until("nobody new gets in", || {
        TcpStream::connect(&node.address).err().map(drop)
    });
    assert!(UnixStream::connect(node.dir.path().join("ca.sock")).is_err());
    assert_eq!(node.ca.end().code(), Some(0));
    assert!(
        since.elapsed() < Duration::from_secs(5) + PATIENCE / 10,
        "{:?}",
        since.elapsed()
    );
    assert!(!node.dir.path().join("ca.sock").exists(), "its socket goes with it");
    assert!(
        node.agent.child.try_wait().unwrap().is_none(),
        "the agent goes on without it"
    );

    // The watch ended as such, and what was signed has been answered: the agent has an SVID for each line of the CA.
    node.agent.says("the CA is stopping; connect again");
    let issued = node.ca.log().matches("\"outcome\":\"issued\"").count();
    let socket = format!("unix://{}", node.dir.path().join("agent.sock").display());
    until("the agent holds what was signed", || {
        let status = hoplite(&["agent", "status", "--output", "json", "--socket", &socket]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let held = status["entries"].as_u64().unwrap() - status["without_svid"].as_u64().unwrap();
        (held == issued as u64).then_some(())
    });
}

#[test]
fn an_agent_ends_its_streams_and_ends() {
    let mut node = Node::start();
    let uid = rustix::process::geteuid().as_raw();
    let selector = format!("unix:uid:{uid}");
    let parent = "spiffe://test.example/hoplite/agent/n1";
    let made = node.tool(&[
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://test.example/w",
        "--parent",
        parent,
        "--selector",
        &selector,
    ]);
    assert!(made.status.success(), "{made:?}");
    let socket = node.dir.path().join("agent.sock");
    let shown = node.dir.path().join("shown");
    let address = format!("unix://{}", socket.display());
    let fetch = || {
        hoplite(&["svid", "fetch", "--socket", &address])
            .status
            .success()
            .then_some(())
    };
    until("the workload has its SVID", fetch);
    let mut watching = Command::new(env!("CARGO_BIN_EXE_hoplite"))
        .args(["svid", "watch", "--socket", &address])
        .stdin(Stdio::null())
        .stdout(File::create(&shown).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the stream has told something", || {
        fs::read_to_string(&shown).unwrap().contains("/w").then_some(())
    });
    // A connection that says nothing does not hold it up.
    let silent = UnixStream::connect(&socket).unwrap();
    node.agent.terminate();
    let since = Instant::now();
    until("nobody new gets in", || UnixStream::connect(&socket).err().map(drop));
    assert_eq!(node.agent.end().code(), Some(0));
    println!("ended after {:?}", since.elapsed());
    assert!(
        since.elapsed() < Duration::from_secs(3) + PATIENCE / 10,
        "{:?}",
        since.elapsed()
    );
    assert!(!socket.exists(), "its socket goes with it");
    drop(silent);
    // Whoever watched is told by the end of the stream, and asks again; nobody is there.
    let pid = watching.id();
    until("the watcher ends", || watching.try_wait().unwrap().map(drop));
    assert!(!is_alive(pid));
}
