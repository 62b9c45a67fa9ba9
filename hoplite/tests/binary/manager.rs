//! The daemons tell a service manager how they are: a socket of ours takes the place of systemd's.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::billing::Billing;
use crate::support::{PATIENCE, Up, kill, skip};

/// How long a manager waits for a heartbeat here.
const WATCHDOG: Duration = Duration::from_secs(2);

/// So many heartbeats may come after a thread was stopped: what was sent before, and what was about to be.
const ON_THEIR_WAY: usize = 5;

/// How often all threads are tried in turn.
const ROUNDS: usize = 10;

/// A manager that hears what is said to it.
struct Manager {
    socket: UnixDatagram,
    address: String,
}

/// A daemon that it started. Dropping it kills it.
struct Service(Child);

#[test]
fn a_ca_says_when_it_serves_reads_again_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    for manager in [Manager::at(&dir.path().join("notify")), Manager::abstract_name("ca")] {
        let config = ca_config(dir.path());
        let service = manager.start(&["ca", "run", "--config", &config], None);
        manager.hears("STATUS=starting");
        manager.hears("READY=1\nSTATUS=serving the agents of test.example on 127.0.0.1:");
        kill("-HUP", service.0.id());
        let said = manager.hears("RELOADING=1");
        assert!(said.contains("\nMONOTONIC_USEC="), "{said}");
        manager.hears("READY=1");
        // A file that cannot be used does not leave it in between.
        fs::write(&config, "colour = 1").unwrap();
        kill("-HUP", service.0.id());
        manager.hears("RELOADING=1");
        manager.hears("READY=1");
        kill("-TERM", service.0.id());
        manager.hears("STOPPING=1");
        assert_eq!(
            manager.said_within(Duration::from_millis(200)),
            None,
            "no heartbeat was asked for"
        );
    }
    // Why it does not start is there too.
    let manager = Manager::abstract_name("bad");
    let file = dir.path().join("ca.toml");
    fs::write(&file, "colour = 1").unwrap();
    let _service = manager.start(&["ca", "run", "--config", file.to_str().unwrap()], None);
    manager.hears("STATUS=starting");
    let said = manager.hears("STOPPING=1");
    assert!(said.contains("colour"), "{said}");
}

#[test]
fn a_heartbeat_stops_when_one_thread_of_a_ca_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::abstract_name("ca-hangs");
    let service = manager.start(&["ca", "run", "--config", &ca_config(dir.path())], Some(WATCHDOG));
    manager.hears("STATUS=starting");
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    judge_hang(&manager, &service, "tokio-rt-worker");
}

#[test]
fn a_heartbeat_stops_when_the_thread_that_carries_traffic_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let home = tempfile::tempdir().unwrap();
    let billing = Billing::register(&up, home.path());
    let manager = Manager::abstract_name("proxy-hangs");
    let service = manager.start_as(billing.command(), Some(WATCHDOG));
    manager.hears("STATUS=starting");
    let said = manager.hears("READY=1");
    assert!(said.contains("in: billing on 127.0.0.1:"), "{said}");
    manager.hears("WATCHDOG=1");
    judge_hang(&manager, &service, "worker");
}

/// Stops one thread of that name and no other: the rest of the process runs on, and no heartbeat comes until it does too. One that
/// sleeps while another waits for what comes in is missed by nobody, and they change places when they please: the one that was stopped in
/// vain often waits for it from then on. So each is tried twice, and all of them again, until one is missed.
fn judge_hang(manager: &Manager, service: &Service, name: &str) {
    for _ in 0..ROUNDS {
        for thread in threads(service.0.id(), name)
            .into_iter()
            .flat_map(|thread| [thread.clone(), thread])
        {
            let Some(hung) = Hung::new(&thread) else {
                // A thread for one piece of work has the same name and ends when it likes.
                if !is_there(service.0.id(), &thread) {
                    continue;
                }
                return skip(
                    "a_heartbeat_stops",
                    "nobody may stop a thread of another process here (ptrace)",
                );
            };
            // Some may have been on their way; then nothing for longer than a manager waits.
            let is_noticed = (0..ON_THEIR_WAY).any(|_| manager.said_within(2 * WATCHDOG).is_none());
            drop(hung);
            manager.hears("WATCHDOG=1");
            if is_noticed {
                return;
            }
        }
    }
    panic!("a hung thread is alive");
}

fn is_there(pid: u32, thread: &str) -> bool {
    Path::new(&format!("/proc/{pid}/task/{thread}")).exists()
}

fn ca_config(dir: &Path) -> String {
    let file = dir.join("ca.toml");
    let text = format!(
        "founds = true\ntrust_domain = \"test.example\"\ndata_dir = \"{0}/data\"\nlisten = \"127.0.0.1:0\"\nadmin_socket = \"{0}/ca.sock\"\n",
        dir.display()
    );
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// The threads of a process that have this name.
fn threads(pid: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut found: Vec<String> = tasks
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name))
        .map(|task| task.file_name().into_string().unwrap())
        .collect();
    assert!(!found.is_empty(), "no thread of {pid} is called `{name}`");
    // In the order in which they were made: numbers begin anew at some time.
    found.sort_by_key(|thread| thread.parse::<u32>().unwrap().wrapping_sub(pid));
    found
}

// === impl Manager ===

impl Manager {
    fn at(path: &Path) -> Self {
        Self {
            socket: UnixDatagram::bind(path).unwrap(),
            address: path.to_str().unwrap().to_owned(),
        }
    }

    fn abstract_name(name: &str) -> Self {
        let name = format!("hoplite-{}-{name}", std::process::id());
        Self {
            socket: UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            address: format!("@{name}"),
        }
    }

    fn start(&self, arguments: &[&str], watchdog: Option<Duration>) -> Service {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command.args(arguments);
        self.start_as(command, watchdog)
    }

    fn start_as(&self, mut command: Command, watchdog: Option<Duration>) -> Service {
        command.env("NOTIFY_SOCKET", &self.address);
        if let Some(watchdog) = watchdog {
            command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Service(command.spawn().unwrap())
    }

    /// The next word, if there is one within this time.
    fn said_within(&self, time: Duration) -> Option<String> {
        let mut buffer = [0; 4096];
        self.socket.set_read_timeout(Some(time)).unwrap();
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer.get(..length)?.to_vec()).unwrap())
    }

    /// The next word that is no heartbeat, or the next heartbeat if one is expected; it must begin so.
    #[track_caller]
    fn hears(&self, expected: &str) -> String {
        loop {
            let said = self.said_within(PATIENCE);
            let said = said.unwrap_or_else(|| panic!("nothing, instead of `{expected}`"));
            if said.starts_with(expected) {
                return said;
            }
            assert!(said.starts_with("WATCHDOG=1"), "`{said}` instead of `{expected}`");
        }
    }
}

/// A thread that is stopped until this is dropped.
struct Hung(Child);

impl Hung {
    /// None where nobody may.
    fn new(thread: &str) -> Option<Self> {
        let script = "import ctypes, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n\
                      SEIZE, INTERRUPT = 0x4206, 0x4207\n\
                      for request in (SEIZE, INTERRUPT):\n    \
                      if libc.ptrace(request, int(sys.argv[1]), 0, 0) != 0: sys.exit(1)\n\
                      print('stopped', flush=True)\nsys.stdin.read()\n";
        let mut tracer = Command::new("python3")
            .args(["-c", script, thread])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(tracer.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let hung = Self(tracer);
        (line == "stopped\n").then_some(hung)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
