//! Several CAs over one database: real processes, one of which is killed, cut off, or without its key; and a database that goes away.

#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hoplite_postgres::testing::{Server, possible};
use serde_json::Value;

use crate::support::{hoplite, until};

/// What fail-over may take.
const FAIL_OVER: Duration = Duration::from_secs(5);

/// A daemon. Dropping it kills it.
struct Daemon(Child);

/// A way to the database that can be cut.
struct Cable {
    port: u16,
    is_cut: Arc<AtomicBool>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

/// One CA over the database.
struct Replica {
    dir: String,
    address: String,
    cable: Cable,
    daemon: Option<Daemon>,
}

/// A database and two CAs over it.
struct World {
    replicas: [Replica; 2],
    root: tempfile::TempDir,
    server: Server,
    _database: tempfile::TempDir,
}

// === impl Daemon ===

impl Daemon {
    fn start(arguments: &[&str], log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let log = fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        Self(command.stderr(log).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// === impl Cable ===

impl Cable {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Self {
            port: listener.local_addr().unwrap().port(),
            is_cut: Arc::default(),
            ends: Arc::default(),
        };
        let (is_cut, ends) = (Arc::clone(&cable.is_cut), Arc::clone(&cable.ends));
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                if is_cut.load(Ordering::Acquire) {
                    continue;
                }
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    thread::spawn(move || {
                        let _ = copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                ends.lock().unwrap().extend([near, far]);
            }
        });
        cable
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.is_cut.store(false, Ordering::Release);
    }
}

fn copy(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read])?;
    }
}

// === impl Replica ===

impl Replica {
    fn run(&mut self) {
        let log = format!("{}.log", self.dir);
        self.daemon = Some(Daemon::start(&["ca", "run", "--dir", &self.dir], Path::new(&log)));
        until("the CA answers", || {
            let said = self.ask(&["entry", "list"]);
            said.status.success().then_some(())
        });
    }

    fn kill(&mut self) {
        self.daemon = None;
    }

    fn ask(&self, words: &[&str]) -> Output {
        hoplite(&[words, &["--dir", &self.dir]].concat())
    }

    fn invite(&self, node: &str) -> String {
        let created = self.ask(&["token", "create", "--node", node, "--output", "json"]);
        assert!(created.status.success(), "{created:?}");
        let shown: Value = serde_json::from_slice(&created.stdout).unwrap();
        shown["invitation"].as_str().unwrap().to_owned()
    }

    /// Registers a workload of this user at a node.
    fn register(&self, name: &str, node: &str) -> Output {
        let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
        let (id, parent) = (
            format!("spiffe://test.example/{name}"),
            format!("spiffe://test.example/hoplite/agent/{node}"),
        );
        self.ask(&[
            "entry",
            "create",
            "--spiffe-id",
            &id,
            "--parent",
            &parent,
            "--selector",
            &uid,
            "--ttl",
            "10s",
        ])
    }
}

// === impl World ===

impl World {
    fn start() -> Self {
        let (root, database) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = Server::start(database.path());
        let path = |name: &str| root.path().join(name).display().to_string();
        let founded = |name: &str, more: &[&str]| {
            let (dir, cable) = (path(name), Cable::to(server.port()));
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let section = path(&format!("{name}-store.toml"));
            let text = format!(
                "[store]\nkind = \"postgres\"\nhosts = [\"127.0.0.1:{}\"]\ndatabase = \"postgres\"\nuser = \"hoplite\"\ntls = \"none\"\n",
                cable.port
            );
            fs::write(&section, text).unwrap();
            let words = [
                "ca",
                "init",
                "--trust-domain",
                "test.example",
                "--listen",
                &address,
                "--store",
                &section,
                "--dir",
                &dir,
            ];
            let said = hoplite(&[&words, more].concat());
            let replica = Replica {
                dir,
                address,
                cable,
                daemon: None,
            };
            (replica, said)
        };
        let (mut first, said) = founded("one", &[]);
        assert!(said.status.success(), "{said:?}");
        first.run();

        // Another that has not its key, or another key, is none, and leaves nothing that would pass for one.
        let (_, said) = founded("keyless", &[]);
        let told = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && told.contains("authority.key"), "{told}");
        let own = path("own");
        let alone = [
            "ca",
            "init",
            "--trust-domain",
            "test.example",
            "--listen",
            "127.0.0.1:7443",
            "--dir",
            &own,
        ];
        assert!(hoplite(&alone).status.success());
        let foreign = format!("{own}/ca/authority.key");
        let (foreigner, said) = founded("foreign", &["--authority-key", &foreign]);
        let told = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && told.contains("authority.key"), "{told}");
        assert!(!Path::new(&format!("{}/ca/authority.key", foreigner.dir)).exists());

        let key = format!("{}/ca/authority.key", first.dir);
        let (mut second, said) = founded("two", &["--authority-key", &key]);
        assert!(said.status.success(), "{said:?}");
        second.run();
        Self {
            replicas: [first, second],
            root,
            server,
            _database: database,
        }
    }

    /// A node that has joined by one of them, and knows these. Its directory, and its agent.
    fn node(&self, name: &str, by: usize, knows: &[usize]) -> (String, Daemon) {
        let dir = self.root.path().join(name).display().to_string();
        let joined = hoplite(&["join", &self.replicas[by].invite(name), "--dir", &dir]);
        assert!(joined.status.success(), "{joined:?}");
        let file = format!("{dir}/agent.toml");
        let text = fs::read_to_string(&file).unwrap();
        let known: Vec<String> = knows
            .iter()
            .map(|at| format!("{:?}", self.replicas[*at].address))
            .collect();
        let written = format!("ca = \"{}\"", self.replicas[by].address);
        assert!(text.contains(&written), "{text}");
        fs::write(&file, text.replace(&written, &format!("ca = [{}]", known.join(", ")))).unwrap();
        let agent = Daemon::start(&["agent", "run", "--dir", &dir], Path::new(&format!("{dir}.log")));
        (dir, agent)
    }
}

/// The SVIDs that a process of this user gets at a node, as one text.
fn fetched(dir: &str) -> String {
    let fetched = hoplite(&["svid", "fetch", "--output", "json", "--dir", dir]);
    String::from_utf8_lossy(&fetched.stdout).into_owned()
}

/// Waits until a node has an SVID of this name, and says for how long.
fn reaches(dir: &str, name: &str, since: Instant) -> Duration {
    let id = format!("spiffe://test.example/{name}\"");
    until(&format!("the SVID of {name}"), || {
        fetched(dir).contains(&id).then_some(())
    });
    since.elapsed()
}

#[test]
fn a_ca_that_is_killed_is_not_missed() {
    if !possible("a_ca_that_is_killed_is_not_missed") {
        return;
    }
    let mut world = World::start();
    let (node, _agent) = world.node("n1", 0, &[0, 1]);
    assert!(world.replicas[1].register("first", "n1").status.success());
    reaches(&node, "first", Instant::now());
    // Whichever it is at, in one of the two rounds it is at the one that goes.
    for (gone, left) in [(0, 1), (1, 0)] {
        world.replicas[gone].kill();
        let began = Instant::now();
        let name = format!("after-{gone}-was-killed");
        let registered = world.replicas[left].register(&name, "n1");
        assert!(registered.status.success(), "{registered:?}");
        let took = reaches(&node, &name, began);
        println!("{name}: {took:?}");
        assert!(took < FAIL_OVER, "{name}: {took:?}");
        world.replicas[gone].run();
    }
}

#[test]
fn a_ca_that_is_cut_off_from_the_database_is_left() {
    if !possible("a_ca_that_is_cut_off_from_the_database_is_left") {
        return;
    }
    let world = World::start();
    let (node, _agent) = world.node("n1", 0, &[0, 1]);
    assert!(world.replicas[1].register("first", "n1").status.success());
    reaches(&node, "first", Instant::now());
    for (gone, left) in [(0, 1), (1, 0)] {
        world.replicas[gone].cable.cut();
        let began = Instant::now();
        let name = format!("after-{gone}-was-cut-off");
        let registered = world.replicas[left].register(&name, "n1");
        assert!(registered.status.success(), "{registered:?}");
        let took = reaches(&node, &name, began);
        println!("{name}: {took:?}");
        assert!(took < FAIL_OVER, "{name}: {took:?}");
        let refused = world.replicas[gone].register("nowhere", "n1");
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && told.contains("cannot reach its database"),
            "{told}"
        );
        world.replicas[gone].cable.mend();
        // It catches up by itself.
        until("it sees what was registered meanwhile", || {
            let listed = world.replicas[gone].ask(&["entry", "list", "--output", "json"]);
            String::from_utf8_lossy(&listed.stdout).contains(&name).then_some(())
        });
    }
}

/// An agent that comes to a CA which is cut off goes to the one that is not.
#[test]
fn an_agent_that_starts_beside_a_ca_that_is_cut_off_finds_the_other() {
    if !possible("an_agent_that_starts_beside_a_ca_that_is_cut_off_finds_the_other") {
        return;
    }
    let world = World::start();
    let (node, agent) = world.node("n1", 0, &[0, 1]);
    assert!(world.replicas[1].register("first", "n1").status.success());
    reaches(&node, "first", Instant::now());
    drop(agent);
    world.replicas[0].cable.cut();
    until("it has lost sight of the database", || {
        let log = fs::read_to_string(format!("{}.log", world.replicas[0].dir)).unwrap_or_default();
        log.contains("cannot be reached").then_some(())
    });
    // Whichever of the two it begins at: four starts, of which each is at the other with one half.
    for round in 0..4 {
        let log = format!("{node}.{round}.log");
        let _agent = Daemon::start(&["agent", "run", "--dir", &node], Path::new(&log));
        let name = format!("while-cut-off-{round}");
        let registered = world.replicas[1].register(&name, "n1");
        assert!(registered.status.success(), "{registered:?}");
        let began = Instant::now();
        let took = reaches(&node, &name, began);
        println!("{name}: {took:?}");
        assert!(took < FAIL_OVER, "{name}: {took:?}");
    }
}

#[test]
fn a_ban_at_one_ca_is_in_force_at_the_agents_of_the_other() {
    if !possible("a_ban_at_one_ca_is_in_force_at_the_agents_of_the_other") {
        return;
    }
    let world = World::start();
    let (node, _agent) = world.node("n1", 0, &[0]);
    assert!(world.replicas[1].register("app", "n1").status.success());
    reaches(&node, "app", Instant::now());
    let banned = world.replicas[1].ask(&["agent", "ban", "n1"]);
    assert!(banned.status.success(), "{banned:?}");
    let began = Instant::now();
    until("it gets nothing any more", || {
        (!fetched(&node).contains("/app\"")).then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // Nobody joins by the same token twice, at whichever.
    let invitation = world.replicas[0].invite("n2");
    let dir = |n: usize| world.root.path().join(format!("spent-{n}")).display().to_string();
    let won: usize = thread::scope(|scope| {
        let joins: Vec<_> = (0..8)
            .map(|n| {
                let (dir, invitation) = (
                    dir(n),
                    invitation.replace(&world.replicas[0].address, &world.replicas[n % 2].address),
                );
                scope.spawn(move || usize::from(hoplite(&["join", &invitation, "--dir", &dir]).status.success()))
            })
            .collect();
        joins.into_iter().map(|join| join.join().unwrap()).sum()
    });
    assert_eq!(won, 1);
}

#[test]
fn while_the_database_is_away_certificates_are_issued_and_nothing_is_registered() {
    if !possible("while_the_database_is_away_certificates_are_issued_and_nothing_is_registered") {
        return;
    }
    let mut world = World::start();
    let (node, _agent) = world.node("n1", 1, &[0, 1]);
    assert!(world.replicas[0].register("app", "n1").status.success());
    reaches(&node, "app", Instant::now());
    world.server.kill();
    let before = fetched(&node);
    // Two lives of a certificate: the second was asked for when the database was gone.
    for round in 0..3 {
        let held = fetched(&node);
        until(&format!("another certificate, round {round}"), || {
            let now = fetched(&node);
            assert!(now.contains("/app\""), "never without one: {now}");
            (now != held).then_some(())
        });
    }
    assert_ne!(before, fetched(&node));
    for replica in &world.replicas {
        let began = Instant::now();
        let refused = replica.register("nowhere", "n1");
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && told.contains("cannot reach its database"),
            "{told}"
        );
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    world.server.begin();
    until("it is registered once the database is back", || {
        world.replicas[1].register("later", "n1").status.success().then_some(())
    });
    reaches(&node, "later", Instant::now());
}
