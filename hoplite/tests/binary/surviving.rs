//! A node's agent that is killed, starts without its CA, and is taken out: real processes, real files.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{hoplite, until};

/// A daemon. Dropping it kills it.
struct Daemon(Child);

/// A CA and a node of it, below a directory.
struct Node {
    root: tempfile::TempDir,
    ca: String,
    node: String,
}

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

impl Node {
    fn found() -> (Self, Daemon) {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).display().to_string();
        let (ca, node) = (path("ca"), path("node"));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut founding = vec!["ca", "init", "--trust-domain", "test.example"];
        founding.extend(["--listen", &address, "--dir", &ca]);
        assert!(hoplite(&founding).status.success());
        let daemon = Daemon::start(&["ca", "run", "--dir", &ca]);
        let made = Self { root, ca, node };
        assert!(
            hoplite(&["join", &made.invitation(), "--dir", &made.node])
                .status
                .success()
        );
        let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
        let created = hoplite(&[
            "entry",
            "create",
            "--spiffe-id",
            "spiffe://test.example/app",
            "--parent",
            "spiffe://test.example/hoplite/agent/n1",
            "--selector",
            &uid,
            "--dir",
            &made.ca,
        ]);
        assert!(created.status.success(), "{created:?}");
        (made, daemon)
    }

    fn invitation(&self) -> String {
        until("an invitation", || {
            let created = hoplite(&["token", "create", "--node", "n1", "--dir", &self.ca, "--output", "json"]);
            let shown: Value = serde_json::from_slice(&created.stdout).ok()?;
            shown.get("invitation")?.as_str().map(str::to_owned)
        })
    }

    fn agent(&self) -> Daemon {
        Daemon::start(&["agent", "run", "--dir", &self.node])
    }

    fn data(&self) -> PathBuf {
        self.root.path().join("node/agent")
    }

    fn status(&self) -> Option<Value> {
        let shown = hoplite(&["agent", "status", "--dir", &self.node, "--output", "json"]);
        serde_json::from_slice(&shown.stdout).ok()
    }

    /// The serial of what a process of this user gets.
    fn fetched(&self) -> Option<String> {
        let named = ["--spiffe-id", "spiffe://test.example/other"];
        let other = hoplite(&[&["svid", "fetch", "--pem", "--dir", &self.node], &named[..]].concat());
        assert!(!other.status.success() && other.stdout.is_empty(), "{other:?}");
        let fetched = hoplite(&["svid", "fetch", "--pem", "--dir", &self.node]);
        let pem = String::from_utf8(fetched.stdout).unwrap();
        (fetched.status.success() && pem.contains("BEGIN CERTIFICATE")).then_some(pem)
    }

    fn is_kept(&self) {
        until("the SVID is on the disk", || {
            let status = self.status()?;
            let kept = status.get("kept")?;
            (!kept.get("written_at")?.is_null() && kept.get("waiting")? == false).then_some(())
        });
    }

    fn purge(&self) -> Output {
        hoplite(&["agent", "purge", "--dir", &self.node, "--output", "json"])
    }
}

/// All bytes below a directory.
fn bytes(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            all.extend(bytes(&path));
        } else if kind.is_file() {
            all.extend(fs::read(&path).unwrap());
        }
    }
    all
}

fn has(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[test]
fn a_killed_agent_serves_from_its_disk_and_a_purge_leaves_nothing() {
    let (node, ca) = Node::found();
    let agent = node.agent();
    let first = until("the SVID", || node.fetched());
    node.is_kept();
    drop((agent, ca)); // SIGKILL, both

    let agent = node.agent();
    let again = until("the SVID from the disk", || node.fetched());
    assert_eq!(again, first);
    let status = node.status().unwrap();
    assert_eq!(
        (&status["from_disk"], &status["in_step"]),
        (&true.into(), &false.into()),
        "{status}"
    );
    assert_eq!(status["kept"]["key"], "beside");
    let doctor = hoplite(&["doctor", "--config", &format!("{}/agent.toml", node.node)]);
    let told = String::from_utf8_lossy(&doctor.stdout).replace('\n', " ");
    let told: String = told.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        told.contains("SVIDs are sealed on the disk") && told.contains("from its disk"),
        "{told}"
    );
    // Of what is kept nothing can be read.
    for entry in fs::read_dir(node.data()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("supply-") {
            let log = fs::read(&path).unwrap();
            assert!(!has(&log, "spiffe://") && !has(&log, "test.example"), "{path:?}");
        }
    }

    // Not while it runs.
    let refused = node.purge();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("stop it first"),
        "{refused:?}"
    );
    assert!(node.fetched().is_some());
    drop(agent);
    let stray = node.data().join("somebody-elses");
    fs::write(&stray, "x").unwrap();
    let purged = node.purge();
    let told: Value = serde_json::from_slice(&purged.stdout).unwrap();
    assert_eq!(purged.status.code(), Some(1), "{told}");
    assert_eq!(told["left"][0], stray.display().to_string());
    assert_eq!(told["spiffe_id"], "spiffe://test.example/hoplite/agent/n1");
    assert_eq!(fs::read_dir(node.data()).unwrap().count(), 1, "{told}");
    fs::remove_file(&stray).unwrap();
    assert_eq!(node.purge().status.code(), Some(0));
    assert!(!node.data().exists());
    let left = bytes(&node.root.path().join("node"));
    for secret in ["PRIVATE KEY", "BEGIN CERTIFICATE", "hoplite supply"] {
        assert!(!has(&left, secret), "`{secret}` is left");
    }
    assert_eq!(node.purge().status.code(), Some(3), "there is nothing any more");

    // Its configuration stayed, and the machine joins again.
    let refused = hoplite(&["agent", "run", "--dir", &node.node]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && said.contains("was purged; `hoplite join`"),
        "{refused:?}"
    );
    let _ca = Daemon::start(&["ca", "run", "--dir", &node.ca]);
    let joined = hoplite(&["join", &node.invitation(), "--dir", &node.node]);
    assert!(joined.status.success(), "{joined:?}");
    let _agent = node.agent();
    until("the SVID of the node that joined again", || node.fetched());
}

/// A join that failed leaves a key, and nothing says where but the place itself.
#[test]
fn what_a_failed_join_leaves_is_purged_too() {
    let (node, _ca) = Node::found();
    let other = node.root.path().join("other").display().to_string();
    let used = node.invitation();
    assert!(
        hoplite(&["join", &used, "--dir", &node.node, "--again"])
            .status
            .success()
    );
    assert!(!hoplite(&["join", &used, "--dir", &other]).status.success());
    let purge = || hoplite(&["agent", "purge", "--dir", &other]);
    assert_eq!(purge().status.code(), Some(0));
    assert!(!Path::new(&other).join("agent").exists());
    assert_eq!(purge().status.code(), Some(3));
}

/// Whatever lies there in the place of what was kept: the agent says what is wrong with it, starts as without it, and keeps anew.
#[test]
fn what_was_not_written_so_is_told_and_not_served() {
    let (node, ca) = Node::found();
    let mut agent = Some(node.agent());
    let first = until("the SVID", || node.fetched());
    node.is_kept();
    drop(agent.take());
    let head = node.data().join("supply.head");
    let good = fs::read(&head).unwrap();
    drop(ca);
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&head, bad).unwrap();
    agent = Some(node.agent());
    // It answers before it has read all that lies there.
    let status = until("the agent has looked", || {
        node.status().filter(|status| status["kept"]["doubt"] != "")
    });
    assert!(
        status["kept"]["doubt"].as_str().unwrap().contains("damaged"),
        "{status}"
    );
    assert_eq!((&status["from_disk"], node.fetched()), (&false.into(), None));
    drop(agent.take());
    // Put right, it counts: nothing was written over it.
    fs::write(&head, good).unwrap();
    let _agent = node.agent();
    assert_eq!(until("the SVID from the disk", || node.fetched()), first);
}
