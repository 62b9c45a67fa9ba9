//! Who may not call is told so, and the command fails: every time, and with many at once.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::policy_check::GOOD;
use crate::support::Ca;

/// Whoever has it is neither the CA's user nor root.
const STRANGER: u32 = 65534;

/// Calls of one kind at once.
const AT_ONCE: usize = 60;

const AGENT: &str = "spiffe://test.example/hoplite/agent/n1";

/// A CA whose socket everybody may open, so that only the CA itself can say no.
fn open_ca() -> Ca {
    let ca = Ca::start();
    fs::set_permissions(ca.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    ca
}

fn command(ca: &Ca, as_stranger: bool, arguments: &[&str]) -> Command {
    let mut command = match as_stranger {
        true => {
            let mut command = Command::new("setpriv");
            let uid = STRANGER.to_string();
            command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
            command.arg(ca.program());
            command
        }
        false => Command::new(ca.program()),
    };
    command
        .args(arguments)
        .env("HOPLITE_CA_SOCKET", ca.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The same call many times at once.
fn strangers(ca: &Ca, arguments: &[&str]) -> Vec<Output> {
    let running: Vec<Child> = (0..AT_ONCE)
        .map(|_| command(ca, true, arguments).spawn().unwrap())
        .collect();
    running
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect()
}

/// A directory of the stranger's own, with a signing key in it and a policy.
fn strangers_home(ca: &Ca) -> (PathBuf, PathBuf) {
    let home = ca.dir().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("a.cedar"), "@id(\"a\") permit (principal, action, resource);").unwrap();
    chown(&home, Some(STRANGER), Some(STRANGER)).unwrap();
    let key = home.join("mallory.key");
    let made = command(ca, true, &["policy", "key", "create", &text(&key)]).output();
    assert!(made.unwrap().status.success());
    (home, key)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn is_root(test: &str) -> bool {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root && let Some(path) = std::env::var_os("HOPLITE_SKIPS") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: it needs root, to call as another user").unwrap();
    }
    is_root
}

#[test]
fn a_stranger_is_told_so_every_time() {
    if !is_root("a_stranger_is_told_so_every_time") {
        return;
    }
    let ca = open_ca();
    let (policies, key) = strangers_home(&ca);
    let (policies, key) = (text(&policies), text(&key));
    let create = ["--spiffe-id", "spiffe://test.example/a", "--parent", AGENT];
    let calls: &[&[&str]] = &[
        &[&["entry", "create", "--selector", "unix:uid:1"], &create[..]].concat(),
        &["entry", "list", "--output", "json"],
        &["entry", "delete", "3f2a"],
        &["agent", "ban", AGENT],
        &["agent", "evict", AGENT],
        &["agent", "list"],
        &["token", "create", "--node", "n1"],
        &["bundle", "show"],
        &["policy", "publish", &policies, "--key", &key, "--accept-unreplayed"],
        &["policy", "history"],
        &["policy", "clear-shadow"],
        &["policy", "grant", "list"],
    ];
    for call in calls {
        for output in strangers(&ca, call) {
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{call:?}: {said}");
            assert!(
                said.contains("permission denied: user 65534 may not call this CA"),
                "{call:?}: {said}"
            );
            assert!(output.stdout.is_empty(), "{call:?}: {output:?}");
        }
    }
    // The strangers took nobody's place, and nothing was done.
    let listed = command(&ca, false, &["entry", "list", "--output", "json"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "[]\n", "{listed:?}");
}

#[test]
fn a_socket_that_others_may_not_open_says_so() {
    if !is_root("a_socket_that_others_may_not_open_says_so") {
        return;
    }
    let ca = open_ca();
    fs::set_permissions(ca.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    let output = command(&ca, true, &["agent", "list"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("this user may not open the CA's socket"), "{said}");
}

/// What a socket breaks is no reader who left: whoever closes without a word is a failure.
#[test]
fn a_socket_that_closes_without_a_word_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("closes.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let (ca, agent) = (text(&socket), format!("unix://{}", socket.display()));
    let calls: &[&[&str]] = &[
        &["agent", "ban", AGENT, "--ca-socket", &ca],
        &["token", "create", "--node", "n1", "--ca-socket", &ca],
        &["entry", "list", "--ca-socket", &ca],
        &["policy", "history", "--ca-socket", &ca],
        &["policy", "status", "--proxy", &ca],
        &["svid", "fetch", "--socket", &agent],
        &["svid", "watch", "--socket", &agent],
    ];
    for call in calls {
        for _ in 0..AT_ONCE / 6 {
            let output = crate::support::hoplite(call);
            assert_eq!(output.status.code(), Some(1), "{call:?}: {output:?}");
            let said = !output.stderr.is_empty() || String::from_utf8_lossy(&output.stdout).contains("away: ");
            assert!(said, "{call:?} says nothing");
        }
    }
}

/// A reader of the output who left makes no bad answer good, and no good one bad.
#[test]
fn a_reader_who_left_changes_no_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let check = |policy: &str, expected: i32| {
        fs::write(dir.path().join("a.cedar"), policy).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = Command::new(env!("CARGO_BIN_EXE_hoplite"))
            .args(["policy", "check"])
            .arg(dir.path())
            .stdout(writer)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(expected), "{policy}");
    };
    check(GOOD, 0);
    check("permit (principal, action, resource)", 1);
}
