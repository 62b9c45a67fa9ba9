//! What the agent does as a process: how it starts, refuses, runs and ends. Asked of `hoplite-agent` here, and of
//! `hoplite agent` in `hoplite/tests/binary`: they must not differ.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hoplite_identity::testing::TestAuthority;

const PATIENCE: Duration = Duration::from_secs(30);

/// A process that ends with this value.
struct Running(Child);

/// Asks the program that `agent` makes a command of, with the arguments of the daemon after it.
pub(crate) fn judge(agent: &dyn Fn() -> Command) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    let with_config = |arguments: &[&str]| {
        let mut command = agent();
        command.args(["run", "--config"]).arg(&config).args(arguments);
        command
    };

    // A wrong use is 2 and a wrong configuration 1, and both are named.
    let mut wrong = agent();
    wrong.args(["run", "--nonsense"]);
    assert_refused(wrong, 2, "--nonsense");
    // Without a file named, it is the one of the place.
    let mut bare = agent();
    bare.arg("run").env("HOPLITE_DIR", dir.path().join("empty"));
    assert_refused(bare, 1, &dir.path().join("empty").display().to_string());
    assert_refused(with_config(&[]), 1, &format!("`{}`", config.display()));
    fs::write(&config, "trust_domain = \"prod.example\"\nsockett = \"/a\"\n").unwrap();
    assert_refused(with_config(&[]), 1, &format!("{}:2:", config.display()));

    // Nobody is at this CA: the agent goes on asking.
    let bundle = TestAuthority::new("prod.example").bundle();
    fs::write(dir.path().join("bundle.pem"), bundle.to_pem()).unwrap();
    fs::write(dir.path().join("token"), "A".repeat(43)).unwrap();
    let text = format!(
        "trust_domain = \"prod.example\"\ndata_dir = \"{0}/data\"\nca = \"127.0.0.1:1\"\ntrust_bundle = \"{0}/bundle.pem\"\n\
         join_token_file = \"{0}/token\"\nsocket = \"{0}/agent.sock\"\n",
        dir.path().display()
    );
    fs::write(&config, text).unwrap();
    let mut running = Running::start(with_config(&[]));
    running.has_workers(2);
    assert_eq!(running.core_limit(), "0 0", "core files");
    rustix::process::kill_process(running.pid(), rustix::process::Signal::TERM).unwrap();
    assert_eq!(running.end(), Some(0), "a stop as asked");

    // A supervisor that is gone, however it went, takes the agent with it.
    let mut running = Running::start(with_config(&["--supervised"]));
    running.has_workers(2);
    drop(running.0.stdin.take());
    assert_eq!(running.end(), Some(0), "its supervisor is gone");
}

fn assert_refused(mut command: Command, code: i32, named: &str) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    assert!(said.starts_with("error: "), "{command:?}: {said}");
    assert!(said.contains(named), "{command:?} does not name `{named}`: {said}");
    assert!(output.stdout.is_empty(), "{command:?} writes to stdout");
}

fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

// === impl Running ===

impl Running {
    fn start(mut command: Command) -> Self {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self(child.spawn().unwrap())
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.0)
    }

    /// Waits until its runtime has so many threads.
    fn has_workers(&mut self, expected: usize) {
        let tasks = format!("/proc/{}/task", self.0.id());
        // A thread for work that blocks is called as they are, and ends when it has had none for ten seconds.
        until("the runtime has so many threads", || {
            assert_eq!(self.0.try_wait().unwrap(), None, "it ended: {}", self.said());
            let names = fs::read_dir(Path::new(&tasks)).ok()?.filter_map(|task| {
                let name = fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
                name.contains("tokio").then_some(())
            });
            (names.count() == expected).then_some(())
        });
    }

    /// Soft and hard limit of core files.
    fn core_limit(&self) -> String {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.0.id())).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ")
    }

    fn end(&mut self) -> Option<i32> {
        until("it ends", || self.0.try_wait().unwrap()).code()
    }

    /// What it said. Waits for its end.
    fn said(&mut self) -> String {
        let mut text = String::new();
        let _ = self.0.stderr.take().map(|mut stderr| stderr.read_to_string(&mut text));
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
