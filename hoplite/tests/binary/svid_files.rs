//! `hoplite svid fetch|watch --write`: the files of a real mesh's SVIDs, over rotations, refusals and full disks.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use hoplite_identity::X509Svid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::support::{Up, kill, until};

/// A mesh, and entries for whoever runs as this user.
struct Scene {
    up: Up,
    dir: tempfile::TempDir,
}

/// A running `svid watch`, and what it said.
struct Watch {
    child: Child,
    said: Arc<Mutex<String>>,
}

// === impl Scene ===

impl Scene {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let up = Up::start(&dir.path().join("mesh"));
        Self { up, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Registers `/hint`, and gives the entry's id.
    fn register(&self, hint: &str) -> String {
        let uid = rustix::process::getuid().as_raw();
        let created = self.up.tool(&[
            "entry",
            "create",
            "--spiffe-id",
            &format!("spiffe://demo.hoplite/{hint}"),
            "--parent",
            "spiffe://demo.hoplite/hoplite/agent/local",
            "--selector",
            &format!("unix:uid:{uid}"),
            "--hint",
            hint,
            "--ttl",
            "5s",
        ]);
        assert!(created.status.success(), "{created:?}");
        let listed = self.up.json(&["entry", "list"]);
        let entries = listed.as_array().unwrap().iter();
        let mut own = entries.filter(|entry| entry["spiffe_id"] == format!("spiffe://demo.hoplite/{hint}"));
        own.next().unwrap()["id"].as_str().unwrap().to_owned()
    }

    fn watch(&self, arguments: &[&str]) -> Watch {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command
            .args(["svid", "watch", "--dir"])
            .arg(&self.up.dir)
            .args(arguments);
        Watch::start(command)
    }
}

// === impl Watch ===

impl Watch {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::<Mutex<String>>::default();
        let outputs: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for output in outputs {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    *said.lock().unwrap() += &(line + "\n");
                }
            });
        }
        Self { child, said }
    }

    fn says(&self, text: &str) {
        until(text, || self.said.lock().unwrap().contains(text).then_some(()));
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn end(&mut self) -> Option<i32> {
        until("it ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program to be told; dropping it kills it.
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The set that is there, if there is one; its key must be its certificate's.
fn svid(dir: &Path) -> Option<X509Svid> {
    let set = dir.join(fs::read_link(dir.join("..data")).ok()?);
    let chain: Vec<_> = CertificateDer::pem_file_iter(set.join("svid.pem"))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let key = PrivatePkcs8KeyDer::from_pem_file(set.join("svid_key.pem")).unwrap();
    Some(X509Svid::from_parts(chain, key).unwrap())
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn an_svid_is_written_once_by_its_hint_or_id() {
    let scene = Scene::start();
    let at = scene.path("tls");
    let fetch = |arguments: &[&str], good: bool| {
        let output = scene
            .up
            .tool(&[&["svid", "fetch", "--write", at.to_str().unwrap()], arguments].concat());
        assert_eq!(output.status.success(), good, "{arguments:?}: {}", text(&output));
        text(&output)
    };
    let said = fetch(&[], false);
    assert!(
        said.contains("nothing was written into") && said.contains("no entry matches"),
        "{said}"
    );
    assert!(svid(&at).is_none());

    scene.register("web");
    scene.register("orders");
    until("both SVIDs are there", || {
        let listed = scene.up.tool(&["svid", "fetch"]);
        let listed = text(&listed);
        (listed.contains("/web ") && listed.contains("/orders ")).then_some(())
    });
    for hint in ["orders", "web"] {
        let said = fetch(&["--hint", hint], true);
        assert!(said.contains(&format!("spiffe://demo.hoplite/{hint} until ")), "{said}");
        assert_eq!(svid(&at).unwrap().spiffe_id().path(), format!("/{hint}"));
    }
    let said = fetch(
        &["--spiffe-id", "spiffe://demo.hoplite/orders", "--output", "json"],
        true,
    );
    let line: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&line["spiffe_id"], &line["written"]),
        (&"spiffe://demo.hoplite/orders".into(), &at.to_str().unwrap().into())
    );
    let said = fetch(&["--hint", "nobody"], false);
    assert!(
        said.contains("gives no SVID with the hint `nobody`") && said.contains("/orders"),
        "{said}"
    );
    assert_eq!(svid(&at).unwrap().spiffe_id().path(), "/orders", "what was there stays");
}

#[test]
fn files_are_kept_fresh_and_programs_are_told() {
    let scene = Scene::start();
    let id = scene.register("web");
    let (at, ran, heard) = (scene.path("tls"), scene.path("ran"), scene.path("heard"));
    let script = scene.path("reload");
    let log = ran.display();
    fs::write(
        &script,
        format!("#!/bin/sh\ntest -e $HOPLITE_SVID_DIR/svid.pem && echo \"$1\" >>{log}\n"),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let listener = format!(
        "trap 'echo x >>{}' HUP; echo ready; while :; do sleep 0.05; done",
        heard.display()
    );
    let mut listening = Listener(
        Command::new("sh")
            .args(["-c", &listener])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(listening.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let lines = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();

    let exec = format!("{} one", script.display());
    let pid = listening.0.id().to_string();
    let mut watch = scene.watch(&["--write", at.to_str().unwrap(), "--exec", &exec, "--signal", &pid]);
    let mut serials = Vec::new();
    until("three rotations", || {
        if let Some(svid) = svid(&at) {
            serials.push(svid.leaf().serial().to_owned());
            serials.dedup();
        }
        (serials.len() >= 4).then_some(())
    });
    until("everybody was told", || {
        (lines(&ran) >= 4 && lines(&heard) >= 4).then_some(())
    });
    assert!(fs::read_to_string(&ran).unwrap().lines().all(|line| line == "one"));
    assert!(
        watch.said().contains("; the command ran, SIGHUP to "),
        "{}",
        watch.said()
    );

    // The registration goes: the files too. It comes again: they do.
    let deleted = scene.up.tool(&["entry", "delete", &id]);
    assert!(deleted.status.success(), "{}", text(&deleted));
    watch.says("certificate, key and bundle were removed from");
    assert!(fs::read(at.join("svid_key.pem")).is_err() && svid(&at).is_none());
    scene.register("web");
    until("the files are there again", || svid(&at));

    // Who was to be told is gone, and its number must not be signalled when it is another's.
    listening.0.kill().unwrap();
    assert_eq!(watch.end(), Some(1), "it has ended, though nobody has waited for it");
    assert!(
        watch.said().contains("is gone, so nobody reads the files any more"),
        "{}",
        watch.said()
    );
}

#[test]
fn what_fails_is_said_and_tried_again() {
    let scene = Scene::start();
    scene.register("web");
    let (at, script, pid_file) = (scene.path("tls"), scene.path("reload"), scene.path("pid"));
    let write = |text: &str| {
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let at_text = at.to_str().unwrap();
    write("#!/bin/sh\nexit 3\n");
    let watch = scene.watch(&["--write", at_text, "--exec", script.to_str().unwrap()]);
    watch.says("failed: exit status: 3; it is tried again");
    assert!(svid(&at).is_some(), "the files are there all the same");
    write("#!/bin/sh\nexit 0\n");
    until("it ran", || watch.said().contains("the command ran").then_some(()));
    drop(watch);

    // It runs too long, and so does what it started.
    let left = scene.path("left");
    let slow = format!("(sleep 2; touch {}) & sleep 60", left.display());
    let started = std::time::Instant::now();
    let watch = scene.watch(&[
        "--write",
        at_text,
        "--shell",
        "--exec",
        &slow,
        "--exec-timeout",
        "300ms",
    ]);
    watch.says("was killed: it ran longer than 300ms");
    drop(watch);
    std::thread::sleep(std::time::Duration::from_secs(3).saturating_sub(started.elapsed()));
    assert!(!left.exists(), "what it started goes on");

    // A pid file of before: the number is another's now.
    let mut other = Listener(Command::new("sleep").arg("60").spawn().unwrap());
    fs::write(&pid_file, format!("{}\nmore\n", other.0.id())).unwrap();
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options()
        .write(true)
        .open(&pid_file)
        .unwrap()
        .set_modified(hour_ago)
        .unwrap();
    let mut watch = scene.watch(&[
        "--write",
        at_text,
        "--pid-file",
        pid_file.to_str().unwrap(),
        "--signal-name",
        "SIGTERM",
    ]);
    watch.says("began after it was written");
    assert!(other.0.try_wait().unwrap().is_none(), "a stranger was signalled");
    fs::write(&pid_file, other.0.id().to_string()).unwrap();
    until("it is signalled", || other.0.try_wait().unwrap());
    fs::write(&pid_file, "nonsense\n").unwrap();
    watch.says("holds no process number but `nonsense`");
    // A stop is a stop, and leaves the files.
    kill("-TERM", watch.child.id());
    assert_eq!(watch.end(), Some(0));
    assert!(svid(&at).is_some());

    for (arguments, reason) in [
        (&["--exec", "echo $HOME"][..], "would need a shell; add `--shell`"),
        (&["--signal", "1"], "is no process to signal"),
        (&["--signal", "4194305"], "there is no process"),
        (&["--key-mode", "644"], "everybody could read the key"),
    ] {
        let output = scene
            .up
            .tool(&[&["svid", "watch", "--write", at_text], arguments].concat());
        assert!(
            !output.status.success() && text(&output).contains(reason),
            "{arguments:?}: {}",
            text(&output)
        );
    }
    assert_eq!(
        scene.up.tool(&["svid", "watch", "--exec", "true"]).status.code(),
        Some(2),
        "--write is missing"
    );
}

#[test]
fn files_stay_while_the_agent_is_away() {
    let scene = Scene::start();
    scene.register("web");
    let at = scene.path("tls");
    let watch = scene.watch(&["--write", at.to_str().unwrap()]);
    watch.says("until");
    drop(scene.up);
    watch.says("the files stay, and are good until");
    assert!(svid(&at).is_some());
    watch.says("the files stay, and ended at");
    assert!(
        svid(&at).is_some() && watch.said().lines().count() < 40,
        "{}",
        watch.said()
    );
}

#[test]
fn a_full_disk_leaves_the_set_before() {
    let namespace = ["--mount", "--map-root-user"];
    let possible = Command::new("unshare").args(namespace).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED a_full_disk_leaves_the_set_before: no mount namespace can be made here");
        assert!(std::env::var_os("CI").is_none(), "CI must be able to");
        return;
    }
    let scene = Scene::start();
    scene.register("web");
    let disk = scene.path("disk");
    fs::create_dir(&disk).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(namespace)
        .args([
            "sh",
            "-c",
            "mount -t tmpfs -o size=128k,mode=755 tmpfs \"$DISK\" && exec \"$0\" \"$@\"",
        ])
        .arg(env!("CARGO_BIN_EXE_hoplite"))
        .args(["svid", "watch", "--dir"])
        .arg(&scene.up.dir)
        .arg("--write")
        .arg(disk.join("tls"))
        .env("DISK", &disk);
    let watch = Watch::start(command);
    watch.says("until");
    let seen = PathBuf::from(format!("/proc/{}/root{}", watch.child.id(), disk.display()));
    let mut filler = fs::File::create(seen.join("filler")).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}
    watch.says("No space left on device");
    let before = svid(&seen.join("tls")).unwrap().leaf().serial().to_owned();
    drop(filler);
    fs::remove_file(seen.join("filler")).unwrap();
    until("it goes on", || {
        (svid(&seen.join("tls"))?.leaf().serial() != before).then_some(())
    });
    let names = fs::read_dir(seen.join("tls")).unwrap().count();
    assert!(names <= 6, "{names} names are left");
}
