//! Where a CA's keys are: sealed in files, in the database of several CAs, in a PKCS#11 token that comes and goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hoplite_pkcs11::testing::{SoftToken, possible};
use serde_json::Value;

use crate::support::{hoplite, until};

/// A CA, and what it needs around it. Dropping it kills it.
pub(crate) struct Ca {
    pub(crate) dir: String,
    pub(crate) address: String,
    environment: Vec<(String, PathBuf)>,
    daemon: Option<Child>,
}

// === impl Ca ===

impl Ca {
    /// Where it will be; `sections` are parts of its file.
    pub(crate) fn at(root: &Path, name: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self {
            dir: root.join(name).display().to_string(),
            address: format!("127.0.0.1:{port}"),
            environment: Vec::new(),
            daemon: None,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command.args(words).args(["--dir", &self.dir]).stdin(Stdio::null());
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        command
    }

    pub(crate) fn init(&self, sections: &[(&str, &str)]) -> Output {
        let mut words = vec![
            "ca",
            "init",
            "--trust-domain",
            "test.example",
            "--listen",
            &self.address,
        ];
        let files: Vec<String> = sections
            .iter()
            .map(|(flag, text)| {
                let file = format!("{}{flag}.toml", self.dir);
                fs::write(&file, text).unwrap();
                file
            })
            .collect();
        for ((flag, _), file) in sections.iter().zip(&files) {
            words.extend([*flag, file]);
        }
        self.command(&words).output().unwrap()
    }

    pub(crate) fn begin(&mut self) {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log())
            .unwrap();
        let mut command = self.command(&["ca", "run"]);
        self.daemon = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    pub(crate) fn run(&mut self) {
        self.begin();
        until("the CA answers", || {
            self.ask(&["entry", "list"]).status.success().then_some(())
        });
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    pub(crate) fn log(&self) -> String {
        format!("{}.log", self.dir)
    }

    /// What it says when it does not start.
    pub(crate) fn refuses(&self) -> String {
        let said = self.command(&["ca", "run"]).output().unwrap();
        assert!(!said.status.success());
        String::from_utf8_lossy(&said.stderr).into_owned()
    }

    pub(crate) fn ask(&self, words: &[&str]) -> Output {
        hoplite(&[words, &["--dir", &self.dir]].concat())
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let said = self.ask(&[words, &["--output", "json"]].concat());
        serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"))
    }

    /// The authorities' states, those that sign first.
    pub(crate) fn states(&self, more: &[&str]) -> Vec<String> {
        let listed = self.json(&[&["authority", "list"], more].concat());
        let state = |authority: &Value| authority["state"].as_str().unwrap().to_owned();
        listed.as_array().unwrap().iter().map(state).collect()
    }

    /// The fingerprint of the one that signs.
    pub(crate) fn signs(&self) -> String {
        self.json(&["authority", "list"])
            .pointer("/0/fingerprint")
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// What people are told beside the list.
    pub(crate) fn warning(&self) -> String {
        String::from_utf8_lossy(&self.ask(&["authority", "list"]).stderr).into_owned()
    }

    pub(crate) fn register(&self, name: &str, node: &str) {
        let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
        let (id, parent) = (
            format!("spiffe://test.example/{name}"),
            format!("spiffe://test.example/hoplite/agent/{node}"),
        );
        let words = [
            "entry",
            "create",
            "--spiffe-id",
            &id,
            "--parent",
            &parent,
            "--selector",
            &uid,
            "--ttl",
            "5s",
        ];
        let said = self.ask(&words);
        assert!(said.status.success(), "{said:?}");
    }

    /// A node of its, with its agent.
    pub(crate) fn node(&self, root: &Path, name: &str) -> Node {
        let created = self.json(&["token", "create", "--node", name]);
        let invitation = created.get("invitation").and_then(Value::as_str).unwrap();
        let dir = root.join(name).display().to_string();
        let joined = hoplite(&["join", invitation, "--dir", &dir]);
        assert!(joined.status.success(), "{joined:?}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        let log = fs::File::create(format!("{dir}.log")).unwrap();
        command
            .args(["agent", "run", "--dir", &dir])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Node {
            dir,
            agent: command.spawn().unwrap(),
        }
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A node. Dropping it kills its agent.
pub(crate) struct Node {
    pub(crate) dir: String,
    agent: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Node {
    /// The SVIDs that a process of this user gets here, as one text.
    pub(crate) fn fetched(&self) -> String {
        let fetched = hoplite(&["svid", "fetch", "--output", "json", "--dir", &self.dir]);
        String::from_utf8_lossy(&fetched.stdout).into_owned()
    }

    pub(crate) fn has(&self, name: &str) {
        let id = format!("spiffe://test.example/{name}\"");
        until(&format!("the SVID of {name}"), || {
            self.fetched().contains(&id).then_some(())
        });
    }
}

#[test]
fn keys_in_files_are_sealed_once_they_are_to_be() {
    let root = tempfile::tempdir().unwrap();
    let mut ca = Ca::at(root.path(), "ca");
    assert!(ca.init(&[]).status.success());
    ca.run();
    ca.stop();
    let key = format!("{}/ca/authority.key", ca.dir);
    assert!(fs::read_to_string(&key).unwrap().contains("BEGIN PRIVATE KEY"));
    let secret = root.path().join("secret");
    fs::write(&secret, "a passphrase of some length\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let file = format!("{}/ca.toml", ca.dir);
    let text = fs::read_to_string(&file).unwrap();
    let keys = format!("\n[keys]\nkind = \"file\"\nsecret_file = \"{}\"\n", secret.display());
    fs::write(&file, format!("{text}{keys}")).unwrap();
    ca.run();
    assert!(ca.ask(&["authority", "prepare"]).status.success());
    ca.stop();
    for name in ["authority.key", "jwt.key"] {
        let sealed = fs::read_to_string(format!("{}/ca/{name}", ca.dir)).unwrap();
        assert!(
            !sealed.contains("PRIVATE") && sealed.contains("HOPLITE SEALED KEY"),
            "{name}: {sealed}"
        );
    }
    fs::write(&secret, "another passphrase\n").unwrap();
    let said = ca.refuses();
    assert!(said.contains("does not open"), "{said}");
    fs::write(&file, text).unwrap();
    let said = ca.refuses();
    assert!(said.contains("secret_file"), "{said}");
}

/// Its absence fails closed, is said, and ends by itself; and the next keys are made there.
#[test]
fn a_token_signs_and_its_absence_is_said() {
    if !possible("a_token_signs_and_its_absence_is_said") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let soft = SoftToken::make(root.path());
    let mut ca = Ca::at(root.path(), "ca").with("SOFTHSM2_CONF", &soft.config);
    let keys = format!(
        "[keys]\nkind = \"pkcs11\"\nmodule = \"{}\"\ntoken = \"hoplite\"\npin_file = \"{}\"\n",
        soft.settings.module.display(),
        soft.settings.pin_file.display()
    );
    let said = ca.init(&[("--keys", &keys)]);
    assert!(said.status.success(), "{said:?}");
    ca.run();
    assert!(!Path::new(&format!("{}/ca/authority.key", ca.dir)).exists());
    let node = ca.node(root.path(), "n1");
    ca.register("app", "n1");
    node.has("app");
    // One process after the other, and the same keys.
    ca.stop();
    ca.run();
    let took = ca.ask(&["authority", "prepare"]);
    assert!(took.status.success(), "{took:?}");
    let took = ca.ask(&["authority", "activate"]);
    assert!(took.status.success(), "{took:?}");
    assert_eq!(ca.states(&[]), ["active", "old"]);
    ca.register("later", "n1");
    node.has("later");

    soft.pull();
    until("its absence is said", || {
        ca.warning().contains("nothing can be signed").then_some(())
    });
    let doctor = ca.ask(&["doctor"]);
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(told.contains("nothing can be signed"), "{told}");
    ca.register("while-away", "n1");
    std::thread::sleep(Duration::from_secs(2));
    assert!(!node.fetched().contains("/while-away\""), "nothing is issued");
    soft.plug();
    let began = Instant::now();
    node.has("while-away");
    println!("issued {:?} after the token was back", began.elapsed());
    until("that is said no more", || ca.warning().is_empty().then_some(()));

    ca.stop();
    fs::write(&soft.settings.pin_file, "0000\n").unwrap();
    let said = ca.refuses();
    assert!(said.contains("pin_file") && !said.contains("0000"), "{said}");
}

/// By time, at whichever of them, and each signs with the other's.
#[test]
fn several_cas_have_their_keys_in_the_database_and_rotate_by_time() {
    if !hoplite_postgres::testing::possible("several_cas_have_their_keys_in_the_database_and_rotate_by_time") {
        return;
    }
    let (root, database) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = hoplite_postgres::testing::Server::start(database.path());
    let secret = root.path().join("secret");
    fs::write(&secret, "7f".repeat(32)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let keys = format!("[keys]\nkind = \"store\"\nsecret_file = \"{}\"\n", secret.display());
    let mut cas = ["one", "two"].map(|name| Ca::at(root.path(), name));
    // The first part of it is above all sections.
    let store = format!(
        "replicas = [\"{}\", \"{}\"]\nauthority_ttl = \"30s\"\nx509_ttl = \"5s\"\nagent_ttl = \"5s\"\n\n[store]\nkind = \"postgres\"\n\
         hosts = [\"127.0.0.1:{}\"]\ndatabase = \"postgres\"\nuser = \"hoplite\"\ntls = \"none\"\n",
        cas[0].address,
        cas[1].address,
        server.port()
    );
    for ca in &cas {
        let said = ca.init(&[("--store", &store), ("--keys", &keys)]);
        assert!(said.status.success(), "{said:?}");
        assert!(!Path::new(&format!("{}/ca/authority.key", ca.dir)).exists());
    }
    // Another secret opens none of it.
    let other = root.path().join("other");
    fs::write(&other, "0a".repeat(32)).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    let wrong = format!("[keys]\nkind = \"store\"\nsecret_file = \"{}\"\n", other.display());
    let said = Ca::at(root.path(), "wrong").init(&[("--store", &store), ("--keys", &wrong)]);
    assert!(
        !said.status.success() && String::from_utf8_lossy(&said.stderr).contains("does not open"),
        "{said:?}"
    );

    let [one, two] = &mut cas;
    one.run();
    two.run();
    let first = one.signs();
    assert_eq!(two.signs(), first);
    one.register("app", "n1");
    let node = one.node(root.path(), "n1");
    node.has("app");
    // It has joined by one, and knows the other.
    let file = fs::read_to_string(format!("{}/agent.toml", node.dir)).unwrap();
    assert!(file.contains(&one.address) && file.contains(&two.address), "{file}");
    two.stop();
    two.run();
    until("the next one signs, by time", || {
        let (at_one, at_two) = (one.signs(), two.signs());
        assert!(node.fetched().contains("/app\""), "never without one");
        (at_one == at_two && at_one != first).then_some(())
    });
    assert!(two.ask(&["authority", "list"]).status.success(), "it did not end");
}

/// What was backed up of a CA on its own disk goes on in a database, and of one in a database in another.
#[test]
fn a_backup_is_restored_into_a_database() {
    if !hoplite_postgres::testing::possible("a_backup_is_restored_into_a_database") {
        return;
    }
    let (root, database) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = hoplite_postgres::testing::Server::start(database.path());
    let store = |schema: &str| {
        format!(
            "[store]\nkind = \"postgres\"\nhosts = [\"127.0.0.1:{}\"]\ndatabase = \"postgres\"\nuser = \"hoplite\"\ntls = \"none\"\nschema = \"{schema}\"\n",
            server.port()
        )
    };
    let passphrase = root.path().join("passphrase");
    fs::write(&passphrase, "a passphrase of some length\n").unwrap();
    fs::set_permissions(&passphrase, fs::Permissions::from_mode(0o600)).unwrap();
    let passphrase = passphrase.display().to_string();
    let mut ca = Ca::at(root.path(), "ca");
    assert!(ca.init(&[]).status.success());
    ca.run();
    ca.register("app", "n1");
    let (node, signs) = (ca.node(root.path(), "n1"), ca.signs());
    node.has("app");
    for schema in ["first", "second"] {
        let backup = format!("{}.backup", ca.dir);
        let said = ca.ask(&["ca", "backup", &backup, "--passphrase-file", &passphrase]);
        assert!(said.status.success(), "{said:?}");
        ca.stop();
        let mut next = Ca::at(root.path(), schema);
        next.address = ca.address.clone();
        let config = fs::read_to_string(format!("{}/ca.toml", ca.dir)).unwrap();
        let above = config.split("\n[store]").next().unwrap().replace(&ca.dir, &next.dir);
        let rotates = if config.contains("authority_rotates") {
            ""
        } else {
            "authority_rotates = false\n"
        };
        fs::create_dir_all(&next.dir).unwrap();
        fs::write(
            format!("{}/ca.toml", next.dir),
            format!("{above}\n{rotates}\n{}", store(schema)),
        )
        .unwrap();
        let words = [
            "ca",
            "restore",
            &backup,
            "--no-later-bans",
            "--passphrase-file",
            &passphrase,
        ];
        let said = next.ask(&words);
        assert!(said.status.success(), "{said:?}");
        // It replaces nothing.
        fs::rename(format!("{}/ca", next.dir), format!("{}/elsewhere", next.dir)).unwrap();
        let again = next.ask(&words);
        let told = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(!again.status.success() && told.contains("replaces nothing"), "{told}");
        fs::remove_dir_all(format!("{}/ca", next.dir)).ok();
        fs::rename(format!("{}/elsewhere", next.dir), format!("{}/ca", next.dir)).unwrap();
        next.run();
        assert_eq!(next.signs(), signs);
        let name = format!("after-{schema}");
        next.register(&name, "n1");
        // The node follows the new epoch, without a token.
        node.has(&name);
        ca = next;
    }
}
