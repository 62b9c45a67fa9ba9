//! docs/guide/files.md as it stands: nginx, PostgreSQL and Node read an SVID's files, and go on when the first has ended.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use hoplite_identity::Leaf;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::page;
use crate::support::{PATIENCE, Up, kill, until};

const GUIDE: &str = "docs/guide/files.md";

/// The section before the first program.
const HEAD: &str = "Certificates in files";

/// The guide's directory and ports, and ours.
struct Scene {
    dir: tempfile::TempDir,
    words: BTreeMap<&'static str, String>,
    up: Up,
}

/// One section's program, and what keeps its files. Both end with this value.
struct Running<'a> {
    scene: &'a Scene,
    watch: Child,
    log: PathBuf,
    stop: &'static str,
}

/// Whether everything is there; else the test is skipped, aloud.
fn possible(test: &str, programs: &[&str]) -> bool {
    let path = format!("{}:/usr/sbin", path());
    let is_there = |program: &&&str| !std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing: Vec<_> = programs.iter().filter(is_there).collect();
    let is_root = rustix::process::getuid().is_root();
    if missing.is_empty() && is_root {
        return true;
    }
    eprintln!("\n=== SKIPPED {test}: it needs root and {missing:?}; tests/run installs them ===\n");
    assert!(
        std::env::var_os("CI").is_none_or(|value| value != "true"),
        "CI must be able to"
    );
    false
}

/// Where programs are looked for: the binary first, and PostgreSQL's own directory, which Debian leaves off the path.
fn path() -> String {
    let own = Path::new(env!("CARGO_BIN_EXE_hoplite"))
        .parent()
        .unwrap()
        .display()
        .to_string();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let postgres = versions.map(|version| version.path().join("bin").display().to_string());
    let rest = std::env::var("PATH").unwrap_or_default();
    [own]
        .into_iter()
        .chain(postgres)
        .chain([rest])
        .collect::<Vec<_>>()
        .join(":")
}

/// The blocks of a section with these words behind the fence.
fn blocks(section: &str, words: &str) -> Vec<String> {
    let blocks = page::blocks(GUIDE).into_iter();
    let of_section = blocks.filter(|block| block.section.starts_with(section));
    let found = of_section.filter(|block| format!("{} {}", block.language, block.words.join(" ")).trim() == words);
    found.map(|block| block.text).collect()
}

// === impl Scene ===

impl Scene {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let up = Up::start(&dir.path().join("mesh"));
        let port = || {
            TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port()
                .to_string()
        };
        let words = BTreeMap::from([
            ("/srv/", format!("{}/", dir.path().display())),
            ("8443", port()),
            ("8444", port()),
            ("5433", port()),
            ("entry create ", "entry create --ttl 10s ".to_owned()),
        ]);
        let scene = Self { dir, words, up };
        for block in blocks(HEAD, "sh") {
            let (good, said) = scene.run(&block);
            assert!(good, "{block}: {said}");
        }
        until("the three SVIDs are issued", || {
            let (_, said) = scene.run("hoplite svid fetch");
            ["/web ", "/db ", "/orders "]
                .iter()
                .all(|id| said.contains(id))
                .then_some(())
        });
        scene
    }

    fn ours(&self, text: &str) -> String {
        self.words
            .iter()
            .fold(text.to_owned(), |text, (word, own)| text.replace(word, own))
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-euc", &self.ours(script)])
            .env("PATH", path())
            .env("HOPLITE_DIR", &self.up.dir)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Runs a block to its end.
    fn run(&self, script: &str) -> (bool, String) {
        // A file, for what goes on in the background keeps a pipe open.
        let log = self.dir.path().join("log");
        let out = fs::File::create(&log).unwrap();
        let mut command = self.shell(script);
        let status = command.stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
        (status.success(), fs::read_to_string(&log).unwrap())
    }

    /// What is in a section is done: files written, commands run, the watch begun.
    fn begin(&self, title: &str, (language, files): (&str, &[&str]), stop: &'static str) -> Running<'_> {
        for (name, contents) in files.iter().zip(blocks(title, language)) {
            fs::write(self.dir.path().join(name), self.ours(&contents)).unwrap();
        }
        for block in blocks(title, "sh") {
            let (good, said) = self.run(&block);
            assert!(good, "{block}: {said}");
        }
        let log = self.dir.path().join("watch.log");
        let out = fs::File::create(&log).unwrap();
        let mut command = self.shell(&blocks(title, "sh watch").concat());
        let watch = command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Running {
            scene: self,
            watch,
            log,
            stop,
        }
    }

    /// Calls as the guide does, with fresh files of this caller.
    fn call(&self, title: &str, caller: &str) -> (bool, String) {
        let fetch = blocks(HEAD, "sh caller").concat();
        let (good, said) = self.run(&fetch.replace("--hint orders", &format!("--hint {caller}")));
        assert!(good, "{said}");
        self.run(&blocks(title, "sh call").concat())
    }

    /// Waits until what is in a file now is worth nothing to anybody.
    fn outlive(&self, certificate: &str) {
        let der = CertificateDer::from_pem_file(self.dir.path().join(certificate)).unwrap();
        let end = Leaf::parse(&der).unwrap().not_after() + Duration::from_millis(1_100);
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        std::thread::sleep(left);
    }
}

// === impl Running ===

impl Running<'_> {
    /// The whole of it: calls succeed, before and after the first certificate's end; others are refused.
    fn check(&self, title: &str, certificate: &str, hello: &str) {
        let watch = || fs::read_to_string(&self.log).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (good, said) = self.scene.call(title, "orders");
            if good && said.contains(hello) {
                break;
            }
            assert!(Instant::now() < deadline, "no call succeeds: {said}\n{}", watch());
            std::thread::sleep(Duration::from_millis(100));
        }
        self.scene.outlive(certificate);
        let (good, said) = self.scene.call(title, "orders");
        assert!(good && said.contains(hello), "{said}\n{}", watch());
        let (good, said) = self.scene.call(title, "web");
        assert!(!good || !said.contains("hello"), "another caller is let in: {said}");
        let (good, said) = self.scene.call(title, "orders");
        assert!(good && said.contains(hello), "{said}\n{}", watch());
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let (_, said) = self.scene.run(self.stop);
        eprintln!("{said}");
        kill("-KILL", self.watch.id());
        let group = rustix::process::Pid::from_child(&self.watch);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.watch.wait();
    }
}

#[test]
fn nginx_serves_over_a_rotation() {
    if !possible("nginx_serves_over_a_rotation", &["nginx", "curl", "bash"]) {
        return;
    }
    let scene = Scene::start();
    let running = scene.begin("nginx", ("nginx", &["nginx.conf"]), "nginx -c /srv/nginx.conf -s stop");
    running.check("nginx", "web/svid.pem", "hello CN=orders");
    // Were the files not kept, it would end here: the test sees it.
    kill("-STOP", running.watch.id());
    let (_, children) = scene.run(&format!("pgrep -P {} || true", running.watch.id()));
    for pid in children.split_whitespace() {
        kill("-STOP", pid.parse().unwrap());
    }
    scene.outlive("web/svid.pem");
    let (good, said) = scene.call("nginx", "orders");
    assert!(!good && said.contains("expired"), "{said}");
}

#[test]
fn postgresql_knows_its_users_over_a_rotation() {
    let programs = ["initdb", "pg_ctl", "psql", "runuser", "bash"];
    if !possible("postgresql_knows_its_users_over_a_rotation", &programs) {
        return;
    }
    let scene = Scene::start();
    let stop = "runuser -u postgres -- pg_ctl -D /srv/db -m immediate stop";
    let running = scene.begin("PostgreSQL", ("conf", &[]), stop);
    running.check("PostgreSQL", "dbtls/svid.pem", "hello orders");
    let (good, said) = scene.call("PostgreSQL", "db");
    assert!(!good && said.contains("certificate authentication failed"), "{said}");
}

#[test]
fn node_serves_and_calls_over_a_rotation() {
    if !possible("node_serves_and_calls_over_a_rotation", &["node", "bash"]) {
        return;
    }
    let scene = Scene::start();
    let running = scene.begin("Node", ("js", &["server.js", "client.js"]), "true");
    running.check("Node", "web/svid.pem", "hello URI:spiffe://demo.hoplite/orders");
}
