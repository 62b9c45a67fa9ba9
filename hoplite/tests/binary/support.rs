//! A mesh of `hoplite up` as a person would run it: the real binary, real processes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing that is asked of a mesh takes longer, debug build and busy machine included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running `hoplite up`. Dropping it kills it, and with it all its children.
pub(crate) struct Up {
    pub(crate) dir: PathBuf,
    pub(crate) base: u16,
    child: Child,
    terminal: Arc<Mutex<String>>,
}

/// A running `hoplite ca run`, alone. Dropping it kills it.
pub(crate) struct Ca {
    dir: tempfile::TempDir,
    child: Child,
}

/// What a service answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Runs the binary to its end, which must come: what should be refused must not run. A large change in a debug build on a busy machine takes
/// its time.
pub(crate) fn hoplite(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command
        .arg((4 * PATIENCE).as_secs().to_string())
        .arg(env!("CARGO_BIN_EXE_hoplite"))
        .args(arguments);
    command.stdin(Stdio::null()).output().unwrap()
}

/// A test that cannot run here says so, and `tests/run` counts it as skipped.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("\n=== SKIPPED {test}: {reason} ===\n");
    if let Some(path) = std::env::var_os("HOPLITE_SKIPS") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {reason}").unwrap();
    }
}

/// Waits until `ask` gives something.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first of a run of ports that are all free. Tests run side by side, so each process looks elsewhere first.
fn free_base() -> u16 {
    static NEXT: Mutex<u16> = Mutex::new(0);
    let mut next = NEXT.lock().unwrap();
    loop {
        *next += 1;
        let base = 20_000 + (u16::try_from(std::process::id() % 200).unwrap() * 100 + *next * 25) % 25_000;
        if (base..base + 24).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return base;
        }
    }
}

impl Up {
    /// Starts a mesh in a directory and waits for its picture.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_hoplite")), dir)
    }

    /// Starts a mesh by a command that ends in running the binary with the arguments it is given.
    pub(crate) fn start_by(mut command: Command, dir: &Path) -> Self {
        let base = free_base();
        let mut child = command
            .args(["up", "--base-port", &base.to_string(), "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let terminal = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let copy = Arc::clone(&terminal);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut terminal = copy.lock().unwrap();
                terminal.push_str(&line);
                terminal.push('\n');
            }
        });
        let mut up = Self {
            dir: dir.to_owned(),
            base,
            child,
            terminal,
        };
        up.sees("Ctrl-C stops all of it");
        up
    }

    /// Waits until the terminal shows a text.
    pub(crate) fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.terminal().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "`up` ended ({ended:?}):\n{}", self.terminal());
            assert!(
                Instant::now() < deadline,
                "the terminal never said `{text}`:\n{}",
                self.terminal()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn terminal(&self) -> String {
        self.terminal.lock().unwrap().clone()
    }

    /// GET from the demo's `edge`.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.try_get(path)
            .unwrap_or_else(|error| panic!("GET {path}: {error}\n{}", self.terminal()))
    }

    pub(crate) fn try_get(&self, path: &str) -> std::io::Result<Answer> {
        self.try_get_at(self.base + 1, path)
    }

    /// GET from any port of this machine.
    pub(crate) fn try_get_at(&self, port: u16, path: &str) -> std::io::Result<Answer> {
        Self::get_at(port, path)
    }

    /// The same, for other threads than the one that has the mesh.
    pub(crate) fn get_at(port: u16, path: &str) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = text
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.trim().to_owned())
            .unwrap_or_default();
        Ok(Answer { status, body })
    }

    /// Runs a tool against this mesh.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Output {
        let dir = self.dir.display().to_string();
        hoplite(&[arguments, &["--dir", &dir]].concat())
    }

    /// Runs a tool and parses its JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.tool(&[arguments, &["--output", "json"]].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
    }

    /// The mesh's processes by what they run: `ca`, `agent`, `edge` (proxies), `edge-service`…
    pub(crate) fn processes(&self) -> BTreeMap<String, u32> {
        let up = self.child.id().to_string();
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1))
                .unwrap_or_default();
            let state = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').next())
                .unwrap_or_default();
            if parent != up || state == "Z" {
                continue;
            }
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<String> = command
                .split(|b| *b == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let after = |flag: &str| {
                words
                    .iter()
                    .skip_while(|word| *word != flag)
                    .nth(1)
                    .cloned()
                    .unwrap_or_default()
            };
            let name = if words.iter().any(|word| word == "demo-service") {
                format!("{}-service", after("--name"))
            } else {
                Path::new(&after("--config"))
                    .file_stem()
                    .map(|s| s.to_string_lossy().into_owned())
                    .unwrap_or_default()
            };
            found.insert(name, pid);
        }
        found
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ctrl-C, and how it ended.
    pub(crate) fn interrupt(&mut self) -> ExitStatus {
        kill("-INT", self.pid());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "Ctrl-C did not stop it:\n{}",
                self.terminal()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Ca {
    /// Of `test.example`, on a free port.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("ca.toml");
        let at = dir.path().display();
        let text = format!(
            "founds = true\ntrust_domain = \"test.example\"\ndata_dir = \"{at}/data\"\nlisten = \"127.0.0.1:0\"\nadmin_socket = \"{at}/ca.sock\"\n"
        );
        fs::write(&config, text).unwrap();
        // The build directory may be closed to other users; the program itself is not.
        let program = dir.path().join("hoplite");
        let built = env!("CARGO_BIN_EXE_hoplite");
        fs::hard_link(built, &program)
            .or_else(|_| fs::copy(built, &program).map(drop))
            .unwrap();
        let child = Self::run(dir.path());
        let ca = Self { dir, child };
        until("the CA listens", || fs::metadata(ca.socket()).ok().map(drop));
        ca
    }

    fn run(dir: &Path) -> Child {
        Command::new(dir.join("hoplite"))
            .args(["ca", "run", "--config"])
            .arg(dir.join("ca.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// After a kill: serves when this returns.
    pub(crate) fn start_again(&mut self) {
        let _ = fs::remove_file(self.socket());
        self.child = Self::run(self.dir.path());
        until("the CA listens again", || fs::metadata(self.socket()).ok().map(drop));
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The binary, where every user can run it.
    pub(crate) fn program(&self) -> PathBuf {
        self.dir.path().join("hoplite")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("ca.sock")
    }

    /// Runs a tool against this CA.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Output {
        let socket = self.socket().display().to_string();
        hoplite(&[arguments, &["--ca-socket", &socket]].concat())
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Changes a daemon's file, and asks it to read it.
pub(crate) fn edit(up: &Up, name: &str, change: impl Fn(String) -> String) {
    let file = up.dir.join(format!("config/{name}.toml"));
    let text = change(fs::read_to_string(&file).unwrap());
    fs::write(&file, text).unwrap();
    kill("-HUP", *up.processes().get(name).unwrap());
}

/// Sends a signal to a process of ours.
pub(crate) fn kill(signal: &str, pid: u32) {
    assert!(
        Command::new("kill")
            .args([signal, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// Whether a process is there (and not just waiting to be reaped).
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}
