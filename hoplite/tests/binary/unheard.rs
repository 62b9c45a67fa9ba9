//! Standard error that nobody reads, or that lies on a full disk: daemons and commands do what they do. And daemons that are there and do not
//! answer: commands end, and say so.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::{PATIENCE, hoplite, until};

/// A daemon whose every line is lost. Dropping it kills it.
struct Unheard(Child);

// === impl Unheard ===

impl Unheard {
    fn start(arguments: &[&str]) -> Self {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.stderr(full).spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn daemons_whose_log_cannot_be_written_do_what_they_do() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).display().to_string();
    let (ca, node) = (path("ca"), path("node"));
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let founded = hoplite(&[
        "ca",
        "init",
        "--trust-domain",
        "test.example",
        "--listen",
        &address,
        "--dir",
        &ca,
    ]);
    assert!(founded.status.success(), "{founded:?}");
    let mut daemon = Unheard::start(&["ca", "run", "--dir", &ca]);
    let invitation = until("the CA answers", || {
        let created = hoplite(&["token", "create", "--node", "n1", "--dir", &ca, "--output", "json"]);
        let created: Option<serde_json::Value> = serde_json::from_slice(&created.stdout).ok();
        Some(created?["invitation"].as_str()?.to_owned())
    });
    let joined = hoplite(&["join", &invitation, "--dir", &node]);
    assert!(joined.status.success(), "{joined:?}");
    let mut agent = Unheard::start(&["agent", "run", "--dir", &node]);
    until("the agent is with its CA", || {
        let status = hoplite(&["agent", "status", "--dir", &node]);
        String::from_utf8_lossy(&status.stdout)
            .contains("0 entries")
            .then_some(())
    });
    let launch = [
        "run",
        "--service",
        "ledger",
        "--port",
        "9",
        "--listen",
        "127.0.0.1:0",
        "--dir",
        &node,
        "--user",
    ];
    let uid = rustix::process::geteuid();
    let uid = if uid.is_root() {
        "65534".to_owned()
    } else {
        uid.as_raw().to_string()
    };
    // Below a directory that only this user may enter the proxy would not find its own.
    std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let launch = [&launch[..], &[&uid]].concat();
    let mut proxy = Unheard::start(&launch);
    let config = Path::new(&node).join("proxy/ledger/proxy.toml");
    let status = format!("/proc/{}/status", proxy.0.id());
    until("the proxy runs under its own name, and takes SIGHUP for a word", || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let said = |field: &str| {
            Some(
                status
                    .split_once(&format!("\n{field}:\t"))?
                    .1
                    .lines()
                    .next()?
                    .to_owned(),
            )
        };
        let is_named = status.starts_with("Name:\thoplite\n");
        // The first bit of the signals that are caught.
        let caught = said("SigCgt").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
        (config.exists() && is_named && caught? & 1 == 1).then_some(())
    });

    // Each of these is told in the log.
    for daemon in [&daemon, &agent, &proxy] {
        daemon.signal("-HUP");
    }
    let nobody = hoplite(&["svid", "fetch", "--dir", &node]);
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(
        !nobody.status.success() && !said.contains("h2 protocol error"),
        "{said}"
    );
    for _ in 0..3 {
        let created = hoplite(&["token", "create", "--node", "n2", "--dir", &ca]);
        assert!(created.status.success(), "{created:?}");
    }
    assert!(daemon.lives() && agent.lives() && proxy.lives());

    // A second one that would be refused leaves the file of the first as it is.
    let socket = Path::new(&node).join("proxy/ledger/proxy.sock");
    until("the proxy serves its admin socket", || socket.exists().then_some(()));
    let before = std::fs::read(&config).unwrap();
    let second = [&launch[..], &["--to", "billing=127.0.0.1:1"]].concat();
    let second = hoplite(&second);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        second.status.code() == Some(1) && said.contains("runs already"),
        "{said}"
    );
    assert_eq!(std::fs::read(&config).unwrap(), before);

    // One that is stopped is away, and who asks it hears that soon.
    daemon.signal("-STOP");
    let began = Instant::now();
    let status = hoplite(&["entry", "list", "--dir", &ca]);
    daemon.signal("-CONT");
    assert_eq!(status.status.code(), Some(1), "{status:?}");
    assert!(began.elapsed() < PATIENCE, "{status:?}");

    // Whoever asks an agent that is stopped hears which one, and what to look at.
    agent.signal("-STOP");
    let pid = std::process::id().to_string();
    let asked = [
        &["agent", "status"][..],
        &["entry", "why", "--pid", &pid],
        &["svid", "fetch"],
        &["jwt", "fetch", "--audience", "vault"],
    ];
    let answers: Vec<_> = std::thread::scope(|scope| {
        let node = &node;
        let asking = asked.map(|command| scope.spawn(move || hoplite(&[command, &["--dir", node]].concat())));
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    agent.signal("-CONT");
    for (command, answer) in asked.iter().zip(answers) {
        let said = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains(&format!("the agent at `{node}/")) && said.contains("its log says which"),
            "{command:?}: {said}"
        );
    }
}

#[test]
fn commands_whose_reader_has_left_do_what_they_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display().to_string();
    for arguments in [
        &["doctor", "--dir", &dir][..],
        &["entry", "list", "--dir", &dir],
        &["ca", "show", "--dir", &dir],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        let status = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(writer)
            .status();
        assert!(status.unwrap().code().is_some_and(|code| code < 100), "{arguments:?}");
    }
}
