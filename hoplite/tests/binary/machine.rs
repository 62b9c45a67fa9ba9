//! A machine for a test: a namespace with a network, files, processes and users of its own. Its root user has a home and a shell.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A machine. Dropping it ends everything on it.
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    /// Its first process, by our number.
    pub(crate) init: u32,
    holder: Child,
    /// Where its root user works.
    pub(crate) home: PathBuf,
}

/// Whether a machine can be had here. Where not, it is said loudly.
pub(crate) fn possible(test: &str) -> bool {
    let possible = Command::new("unshare")
        .args([
            "--mount", "--net", "--uts", "--pid", "--fork", "ip", "link", "set", "lo", "up",
        ])
        .stderr(Stdio::null())
        .status();
    if rustix::process::geteuid().is_root() && possible.is_ok_and(|status| status.success()) {
        return true;
    }
    let reason = "a machine of its own needs root, namespaces and `ip`";
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    crate::support::skip(test, reason);
    false
}

/// Lays a cable between two machines: `10.77.0.1` and `10.77.0.2`.
pub(crate) fn cable([one, two]: &[Machine; 2]) {
    let cable = Command::new("ip")
        .args(["link", "add", "eth0", "netns", &one.init.to_string(), "type", "veth"])
        .args(["peer", "name", "eth0", "netns", &two.init.to_string()])
        .status();
    assert!(cable.unwrap().success());
    for (machine, address) in [(one, "10.77.0.1/24"), (two, "10.77.0.2/24")] {
        let up = machine.run(&format!("ip addr add {address} dev eth0 && ip link set eth0 up"));
        assert!(up.status.success(), "{up:?}");
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// === impl Machine ===

impl Machine {
    pub(crate) fn start(name: &'static str, dir: &Path) -> Self {
        let home = dir.join(name);
        fs::create_dir(&home).unwrap();
        let setup = format!(
            "set -e\n\
             mkdir {home}/etc {home}/work\n\
             cp -a /etc/. {home}/etc\n\
             mount --bind {home}/etc /etc\n\
             mount -t tmpfs tmpfs /run\n\
             mount -t tmpfs tmpfs /var/lib\n\
             hostname {name}\n\
             ip link set lo up\n\
             echo ready\n\
             exec sleep infinity\n",
            home = home.display()
        );
        let mut holder = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--uts",
                "--pid",
                "--mount-proc",
                "--fork",
                "--kill-child",
            ])
            .args(["bash", "-c"])
            .arg(setup)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "{name}");
        let pid = holder.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        Self {
            name,
            init: children.trim().parse().unwrap(),
            holder,
            home: home.join("work"),
        }
    }

    /// A command line in a shell of its root user.
    pub(crate) fn shell(&self, text: &str) -> Command {
        let mut command = Command::new("nsenter");
        let bin = Path::new(env!("CARGO_BIN_EXE_hoplite")).parent().unwrap().display();
        command
            .args([
                "--target",
                &self.init.to_string(),
                "--mount",
                "--net",
                "--uts",
                "--pid",
                "--",
            ])
            .args(["bash", "-c", text])
            .current_dir(&self.home)
            .env(
                "PATH",
                format!("{}/bin:{bin}:{}", self.home.display(), std::env::var("PATH").unwrap()),
            )
            .env_remove("HOPLITE_DIR")
            .env_remove("XDG_STATE_HOME")
            .env("HOME", &self.home)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command line to its end, or until what it leaves running has been left.
    pub(crate) fn run(&self, text: &str) -> Output {
        self.run_by(text, |_| ())
    }

    pub(crate) fn run_by(&self, text: &str, change: impl FnOnce(&mut Command)) -> Output {
        let text = format!("cd {}; {text}", self.home.display());
        let mut command = self.shell(&text);
        change(&mut command);
        let (out, err) = (self.file("out"), self.file("err"));
        let status = command
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .status()
            .unwrap();
        Output {
            status,
            stdout: fs::read(out).unwrap(),
            stderr: fs::read(err).unwrap(),
        }
    }

    /// Leaves a command line running, and waits until it says this.
    pub(crate) fn leave(&self, text: &str, says: &str) {
        let log = self.file("log");
        let text = format!("cd {}; {{\n{text}\n}} > {} 2>&1", self.home.display(), log.display());
        assert!(self.shell(&text).status().unwrap().success());
        crate::support::until(&format!("{}: `{text}` says `{says}`", self.name), || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            said.contains(says).then_some(())
        });
    }

    /// A name in its home that nothing has yet.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.home.join(format!("{name}.{number}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process ends with it, and all others with that.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
