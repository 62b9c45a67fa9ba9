//! A PostgreSQL server of a test's own, on a port and a Unix socket of its own, ended with the test.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking, its helpers too"
)]

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::settings::{Host, Settings, Tls};

/// Nobody's user and group: PostgreSQL does not run as root.
const NOBODY: u32 = 65534;

/// How long a server may take to begin.
const STARTED: Duration = Duration::from_secs(60);

/// A server. Its files go with the directory that it was given.
pub struct Server {
    dir: PathBuf,
    port: u16,
    process: Option<Child>,
    schemas: AtomicU64,
}

/// Where Debian keeps the programs, which are not on its path; the newest version that there is.
#[must_use]
pub fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
        .collect();
    versions.sort();
    versions.pop()
}

/// Whether there is a server to start. Where there must be one (`CI=true`), there is, or the test fails.
#[must_use]
pub fn possible(test: &str) -> bool {
    if programs().is_some() {
        return true;
    }
    eprintln!("SKIPPED {test}: no PostgreSQL server; `tests/lib/packages postgresql`");
    assert!(
        std::env::var_os("CI").is_none_or(|value| value != "true"),
        "CI must have PostgreSQL"
    );
    false
}

// === impl Server ===

impl Server {
    /// In an empty directory, without TLS.
    #[must_use]
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, "")
    }

    /// With further lines in its configuration.
    #[must_use]
    pub fn start_with(dir: &Path, configuration: &str) -> Self {
        let data = dir.join("data");
        fs::create_dir_all(&data).unwrap();
        // Whoever it runs as must reach it.
        fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        if is_root() {
            chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
            chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let made = command("initdb", dir)
            .args(["--pgdata", data.to_str().unwrap(), "--username", "hoplite"])
            .args(["--auth", "trust", "--no-sync", "--encoding", "UTF8", "--locale", "C"])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "initdb");
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nmax_connections = 60\n{configuration}\n",
            dir.display()
        );
        let file = data.join("postgresql.auto.conf");
        fs::write(&file, settings).unwrap();
        let mut server = Self {
            dir: dir.to_owned(),
            port,
            process: None,
            schemas: AtomicU64::new(0),
        };
        server.begin();
        server
    }

    /// Starts it (again), and waits until it answers.
    pub fn begin(&mut self) {
        let log = File::create(self.dir.join("log")).unwrap();
        let process = command("postgres", &self.dir)
            .args(["-D", self.dir.join("data").to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let began = std::time::SystemTime::now();
        while !self.is_ready() {
            assert!(
                began.elapsed().unwrap_or_default() < STARTED,
                "it does not begin: {}",
                fs::read_to_string(self.dir.join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it, as a machine that is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Its children end with it; immediate shutdown is a crash to the data.
            let _ = command("pg_ctl", &self.dir)
                .args(["stop", "-m", "immediate", "-D", self.dir.join("data").to_str().unwrap()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// The port of 127.0.0.1 that it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A schema that no other has.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let schema = format!("s{}", self.schemas.fetch_add(1, Ordering::Relaxed));
        self.settings_of(&schema)
    }

    /// One schema, by TCP.
    #[must_use]
    pub fn settings_of(&self, schema: &str) -> Settings {
        Settings {
            hosts: vec![format!("127.0.0.1:{}", self.port).parse::<Host>().unwrap()],
            database: "postgres".to_owned(),
            user: "hoplite".to_owned(),
            schema: schema.to_owned(),
            password_file: None,
            tls: Tls::None,
            tls_ca: None,
        }
    }

    /// What `psql` says to a statement.
    pub fn sql(&self, statement: &str) -> String {
        let said = command("psql", &self.dir)
            .args(["-h", self.dir.to_str().unwrap(), "-p", &self.port.to_string()])
            .args([
                "-U",
                "hoplite",
                "-d",
                "postgres",
                "-v",
                "ON_ERROR_STOP=1",
                "-qAtc",
                statement,
            ])
            .output()
            .unwrap();
        assert!(
            said.status.success(),
            "{statement}: {}",
            String::from_utf8_lossy(&said.stderr)
        );
        String::from_utf8_lossy(&said.stdout).trim().to_owned()
    }

    fn is_ready(&self) -> bool {
        command("pg_isready", &self.dir)
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status()
            .is_ok_and(|status| status.success())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|own| own.uid() == 0)
}

fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(programs().expect("PostgreSQL").join(program));
    command.current_dir(dir).env_remove("PGHOST").env("HOME", dir);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}
