//! A disk that is full and has room again: everything that stopped goes on, without anybody's help, and nothing that was
//! acknowledged is lost.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::{Up, until};

/// A disk of the mesh's own, in a mount namespace of its own.
const MOUNT: &str = "mount -t tmpfs -o size=24m,mode=700 tmpfs \"$DISK\" && exec \"$0\" \"$@\"";

struct Disk {
    /// As this process sees it.
    seen: PathBuf,
    /// Which process to ask where it lies.
    pid: u32,
}

impl Disk {
    fn fill(&self) {
        let mut file = fs::File::create(self.seen.join("filler")).unwrap();
        let mut size = 1 << 16;
        while size > 0 {
            if file.write_all(&vec![7; size]).is_err() {
                size /= 2;
            }
        }
    }

    fn empty(&self) {
        fs::remove_file(self.seen.join("filler")).unwrap();
    }

    /// A tool, on this disk.
    fn tool(&self, up: &Up, arguments: &[&str]) -> Output {
        Command::new("timeout")
            .args([
                "20",
                "nsenter",
                "--target",
                &self.pid.to_string(),
                "--mount",
                "--user",
                "--preserve-credentials",
            ])
            .arg(env!("CARGO_BIN_EXE_hoplite"))
            .args(arguments)
            .arg("--dir")
            .arg(&up.dir)
            .output()
            .unwrap()
    }

    fn register(&self, up: &Up, path: &str) -> bool {
        let id = format!("spiffe://demo.hoplite{path}");
        let parent = "spiffe://demo.hoplite/hoplite/agent/local";
        let mut arguments = ["entry", "create", "--spiffe-id", &id, "--parent", parent].to_vec();
        arguments.extend(["--selector", "unix:uid:4711"]);
        // So large that a store has soon used up what room it keeps.
        let label = "x".repeat(60);
        let names: Vec<String> = (0..30).map(|n| format!("n{n}.{label}.{label}.{label}")).collect();
        for name in &names {
            arguments.extend(["--dns-name", name]);
        }
        self.tool(up, &arguments).status.success()
    }
}

fn answers(up: &Up) -> [Option<u16>; 2] {
    ["/orders/42", "/ledger/42"].map(|path| up.try_get(path).map(|answer| answer.status).ok())
}

#[test]
fn a_mesh_on_a_full_disk_goes_on_when_there_is_room() {
    let namespace = ["--mount", "--map-root-user"];
    let possible = Command::new("unshare").args(namespace).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED a_mesh_on_a_full_disk_goes_on_when_there_is_room: no mount namespace can be made here");
        assert!(std::env::var_os("CI").is_none(), "CI must be able to");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command
        .args(namespace)
        .args(["sh", "-c", MOUNT, env!("CARGO_BIN_EXE_hoplite")])
        .env("DISK", dir.path());
    let mut up = Up::start_by(command, dir.path());
    let disk = Disk {
        seen: PathBuf::from(format!("/proc/{}/root{}", up.pid(), dir.path().display())),
        pid: up.pid(),
    };
    assert_eq!(answers(&up), [Some(200), Some(403)]);
    assert!(disk.register(&up, "/before"));
    let ca = up.processes()["ca"];

    disk.fill();
    // The key of another authority has no room: nothing of it is left, and the one that signs stays.
    let states = || {
        let listed = disk.tool(&up, &["authority", "list", "--output", "json"]);
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        let rows = listed.as_array().cloned().unwrap_or_default();
        Vec::from_iter(
            rows.iter()
                .map(|row| row["state"].as_str().unwrap_or_default().to_owned()),
        )
    };
    let prepared = disk.tool(&up, &["authority", "prepare"]);
    let said = String::from_utf8_lossy(&prepared.stderr).into_owned();
    assert!(
        !prepared.status.success() && (said.contains("No space left") || said.contains("cannot write down")),
        "{prepared:?}"
    );
    assert_eq!(states(), ["active"], "{said}");
    // The log can take no refusal any more, and the store no entry: proxies refuse, and so does the CA.
    until("nothing is permitted unrecorded", || {
        (!answers(&up).contains(&Some(200)) && !answers(&up).contains(&Some(403))).then_some(())
    });
    let mut taken = 0;
    until("no entry is taken", || {
        let is_taken = disk.register(&up, &format!("/taken/{taken}"));
        taken += usize::from(is_taken);
        (!is_taken).then_some(())
    });
    // Its log has no room, and it refuses until there is some; or its store has none, and it ends.
    until("the CA says why", || {
        let said = up.terminal();
        let ended = |line: &str| line.contains(&format!("pid {ca} exited with code 1")) && line.contains("the store");
        (said.contains("so nothing is done") || said.lines().any(ended)).then_some(())
    });

    disk.empty();
    let since = Instant::now();
    let minute = Duration::from_secs(60);
    while answers(&up) != [Some(200), Some(403)] || !disk.register(&up, "/after") {
        assert!(since.elapsed() < minute, "{:?}\n{}", answers(&up), up.terminal());
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("whole {:?} after there was room", since.elapsed());
    let prepared = disk.tool(&up, &["authority", "prepare"]);
    assert!(prepared.status.success(), "{prepared:?}");
    assert_eq!(states(), ["active", "prepared"]);
    let listed = disk.tool(&up, &["entry", "list", "--output", "json"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let taken = (0..taken).map(|n| format!("/taken/{n}\""));
    for path in taken.chain(["/shop/ledger", "/before", "/after"].map(|path| format!("{path}\""))) {
        assert!(listed.contains(&path), "{path} is not in {listed}");
    }
    let verified = disk.tool(&up, &["audit", "verify"]);
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );
    assert!(up.interrupt().success());
}
