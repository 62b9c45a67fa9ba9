//! Foreign judges: where other people's programs are, what they are started with, and what is said when they are absent.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

/// A foreign process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// Envoy, or none after saying that `test` is skipped.
pub fn envoy(test: &str) -> Option<PathBuf> {
    installed(test, "envoy")
}

/// A Python that has py-spiffe, or none after saying that `test` is skipped.
pub fn python(test: &str) -> Option<PathBuf> {
    installed(test, "bin/python")
}

/// A program with go-spiffe (`tests/peers/go`), or none after saying that `test` is skipped.
pub fn go(test: &str) -> Option<PathBuf> {
    installed(test, "go/judge")
}

/// spiffe-helper, or none after saying that `test` is skipped.
pub fn spiffe_helper(test: &str) -> Option<PathBuf> {
    installed(test, "spiffe-helper/spiffe-helper")
}

/// ghostunnel, or none after saying that `test` is skipped.
pub fn ghostunnel(test: &str) -> Option<PathBuf> {
    installed(test, "ghostunnel/ghostunnel")
}

/// The OpenTelemetry Collector (`tests/peers/collector`), or none after saying that `test` is skipped.
pub fn collector(test: &str) -> Option<PathBuf> {
    installed(test, "collector/collector")
}

/// A JVM and the arguments that start a program with java-spiffe in it (`tests/peers/java`), or none after saying that `test` is skipped.
pub fn java(test: &str) -> Option<(PathBuf, Vec<String>)> {
    let directory = installed(test, "java/.made")?.parent()?.to_owned();
    let classes = format!("{0}/classes:{0}/libraries/*", directory.display());
    // A small heap, so that it starts fast beside all that runs here.
    let arguments = ["-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", &classes, "Judge"];
    Some((directory.join("java"), arguments.map(str::to_owned).to_vec()))
}

/// OpenSSL's tool, or none after saying that `test` is skipped.
pub fn openssl(test: &str) -> Option<PathBuf> {
    let found = Command::new("openssl")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        lacking(test, "peer openssl is not on the path");
    }
    found.then(|| PathBuf::from("openssl"))
}

/// curl, or none after saying that `test` is skipped.
pub fn curl(test: &str) -> Option<PathBuf> {
    on_path(test, "curl")
}

/// Prometheus and promtool, or none after saying that `test` is skipped.
pub fn prometheus(test: &str) -> Option<[PathBuf; 2]> {
    Some([on_path(test, "prometheus")?, on_path(test, "promtool")?])
}

fn on_path(test: &str, program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|program| program.is_file());
    if found.is_none() {
        lacking(test, &format!("peer {program} is not on the path"));
    }
    found
}

/// Says that a test cannot run here, and why, where the closing count finds it.
pub fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "\n=== SKIPPED {test}: {reason} ===\n");
    if let Some(path) = std::env::var_os("HOPLITE_SKIPS") {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("HOPLITE_SKIPS can be written");
        file.write_all(format!("{test}: {reason}\n").as_bytes())
            .expect("HOPLITE_SKIPS can be written");
    }
}

/// A port that was free a moment ago, for programs that cannot take one themselves.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// What the agent sees of a program: the file that runs, links resolved, and its digest.
pub fn selectors(program: &Path) -> Vec<String> {
    let path = program.canonicalize().expect("the program exists");
    let bytes = std::fs::read(&path).expect("the program can be read");
    let sha256 = HEXLOWER.encode(digest(&SHA256, &bytes).as_ref());
    vec![format!("unix:path:{}", path.display()), format!("unix:sha256:{sha256}")]
}

/// A file of `tests/peers`.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

/// A template of `tests/peers` with every `@KEY@` filled in.
pub fn template(name: &str, values: &[(&str, &str)]) -> String {
    let text = std::fs::read_to_string(file(name)).expect("the template can be read");
    // Its comments name the keys, and say what each means.
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    let filled = values.iter().fold(text, |text, (key, value)| {
        let marker = format!("@{key}@");
        assert!(text.contains(&marker), "{name} has no {marker}");
        text.replace(&marker, value)
    });
    let left = filled
        .split('@')
        .skip(1)
        .step_by(2)
        .find(|key| !key.is_empty() && key.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
    assert_eq!(left, None, "{name} has a key without a value");
    filled
}

/// Runs a program to its end, without blocking the worlds around it.
pub async fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null());
    tokio::task::spawn_blocking(move || {
        command
            .output()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
    })
    .await
    .unwrap()
}

fn installed(test: &str, name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("HOPLITE_PEERS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers"),
        PathBuf::from,
    );
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    lacking(test, &format!("peer {name} is not installed; tests/run installs it"));
    None
}

/// In CI an absent judge is a failure: nothing may pass because nobody looked.
fn lacking(test: &str, reason: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|value| value != "true"),
        "{test}: {reason}, and CI=true allows no skip"
    );
    skip(test, reason);
}

// === impl Process ===

impl Process {
    /// Starts it; what it says goes into the file `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        let out = std::fs::File::create(&log).expect("the log can be written");
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        Self { child, log }
    }

    /// What it said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
