//! Administration from a laptop: two directories, one CA. What docs/guide/from-a-laptop.md shows is followed by `guides`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{PATIENCE, kill, until};

/// A CA of `prod.example` on one machine, and a laptop that shares nothing with it.
struct Machines {
    dir: tempfile::TempDir,
    address: String,
    children: Vec<Child>,
}

impl Machines {
    fn start(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("laptop")).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let at = dir.path().display();
        let text = format!(
            "founds = true\ntrust_domain = \"prod.example\"\ndata_dir = \"{at}/data\"\nlisten = \"{free}\"\nadmin_socket = \"{at}/ca.sock\"\n{more}"
        );
        fs::write(dir.path().join("ca.toml"), text).unwrap();
        let mut machines = Self {
            dir,
            address: free.to_string(),
            children: Vec::new(),
        };
        machines.run(&["ca", "run", "--config", "ca.toml"]);
        let socket = machines.path("ca.sock");
        until("the CA listens", || fs::metadata(&socket).ok().map(drop));
        machines
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn laptop(&self) -> PathBuf {
        self.path("laptop")
    }

    /// Of a user who has nothing but this directory.
    fn command(directory: &Path) -> Command {
        let mut command = Command::new("timeout");
        command
            .arg(PATIENCE.as_secs().to_string())
            .arg(env!("CARGO_BIN_EXE_hoplite"));
        for name in [
            "HOPLITE_CA",
            "HOPLITE_CA_SOCKET",
            "HOPLITE_DIR",
            "XDG_CONFIG_HOME",
            "XDG_STATE_HOME",
        ] {
            command.env_remove(name);
        }
        command
            .env("HOME", directory)
            .current_dir(directory)
            .stdin(Stdio::null());
        command
    }

    fn run(&mut self, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.children.push(child.unwrap());
    }

    fn on_laptop(&self, arguments: &[&str]) -> Output {
        Self::command(&self.laptop()).args(arguments).output().unwrap()
    }

    fn at_ca(&self, arguments: &[&str]) -> Output {
        let mut command = Self::command(self.dir.path());
        command.env("HOPLITE_CA_SOCKET", self.path("ca.sock"));
        command.args(arguments).output().unwrap()
    }

    /// The word that `token create` prints, with all around it.
    fn invite(&self, arguments: &[&str]) -> String {
        let output = self.at_ca(&[&["token", "create", "--operator"], arguments].concat());
        said(&output, 0);
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().strip_prefix("hoplite login ").unwrap().to_owned()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[track_caller]
fn said(output: &Output, code: i32) -> String {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[track_caller]
fn says(output: &Output, code: i32, parts: &[&str]) {
    let text = said(output, code);
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing from: {text}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_said_when_it_does_not_work() {
    let machines = Machines::start("");
    says(
        &machines.on_laptop(&["agent", "list", "--ca", &machines.address]),
        1,
        &["has not signed in", "hoplite login"],
    );
    says(
        &machines.on_laptop(&["agent", "list"]),
        1,
        &["no CA answers", "hoplite login"],
    );
    says(&machines.on_laptop(&["logout"]), 1, &["not signed in"]);
    for nonsense in ["", "x", "a@b", "a@b#c", "a@b:1#c"] {
        says(&machines.on_laptop(&["login", nonsense]), 1, &["this is no invitation"]);
    }
    says(&machines.at_ca(&["token", "create"]), 2, &["--node", "--operator"]);
    says(
        &machines.at_ca(&["token", "create", "--operator", "ann"]),
        1,
        &["--role"],
    );
    says(
        &machines.at_ca(&["token", "create", "--operator", "ann", "--role", "boss"]),
        1,
        &["`boss`", "`admin`"],
    );
    says(
        &machines.at_ca(&["token", "create", "--node", "n1", "--role", "admin"]),
        2,
        &["--role", "--node"],
    );

    // Another CA behind the fingerprint, and nobody at all: nothing is sent.
    let invitation = machines.invite(&["ann", "--role", "auditor"]);
    let (start, fingerprint) = invitation.split_once('#').unwrap();
    let forged = format!("{start}#{}", fingerprint.chars().rev().collect::<String>());
    says(
        &machines.on_laptop(&["login", &forged]),
        1,
        &["is not the CA of the invitation", "nothing was sent"],
    );
    let nobody = invitation.replace(&machines.address, "127.0.0.1:1");
    says(
        &machines.on_laptop(&["login", &nobody]),
        1,
        &["nothing listens at `127.0.0.1:1`"],
    );

    // From standard input, and only once.
    let mut login = Machines::command(&machines.laptop());
    let mut child = login
        .args(["login", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(invitation.as_bytes()).unwrap();
    said(&child.wait_with_output().unwrap(), 0);
    let other = tempfile::tempdir().unwrap();
    let again = Machines::command(other.path())
        .args(["login", &invitation])
        .output()
        .unwrap();
    says(&again, 1, &["another key"]);
    let node = machines.at_ca(&["token", "create", "--node", "n1"]);
    let node = String::from_utf8(node.stdout).unwrap();
    let node = node.trim().strip_prefix("hoplite join ").unwrap();
    says(
        &Machines::command(other.path()).args(["login", node]).output().unwrap(),
        1,
        &["agent's"],
    );

    // What the role does not give, and what the CA took back.
    let banned = ["agent", "ban", "spiffe://prod.example/hoplite/agent/n1"];
    says(
        &machines.on_laptop(&banned),
        1,
        &["permission denied", "operator `ann`", "`BanAgent`"],
    );
    let whoami: Value = serde_json::from_slice(&machines.on_laptop(&["whoami", "--output", "json"]).stdout).unwrap();
    assert_eq!(
        (&whoami["who"], &whoami["roles"][0]),
        (&"operator `ann`".into(), &"auditor".into()),
        "{whoami}"
    );
    said(&machines.at_ca(&["operator", "ban", "ann"]), 0);
    says(&machines.on_laptop(&["whoami"]), 1, &["banned"]);
    says(&machines.on_laptop(&["logout"]), 1, &["--force"]);
    says(&machines.on_laptop(&["logout", "--force"]), 0, &["signed out"]);
    says(
        &machines.at_ca(&["operator", "remove", "bob"]),
        1,
        &["no operator `bob`"],
    );
}

#[test]
fn a_sign_in_is_of_one_ca_and_of_its_time() {
    let machines = Machines::start("operator_ttl = \"5s\"\n");
    said(
        &machines.on_laptop(&["login", &machines.invite(&["ann", "--role", "auditor"])]),
        0,
    );
    let dir = machines.laptop().join(".config/hoplite/prod.example");
    assert_eq!((mode(&dir), mode(&dir.join("operator.pem"))), (0o700, 0o600));
    // At another CA of the same name and address nothing is asked.
    let other = Machines::start("");
    let ca = machines.laptop().join(".config/hoplite/prod.example/ca.json");
    let right = fs::read_to_string(&ca).unwrap();
    fs::write(&ca, right.replace(&machines.address, &other.address)).unwrap();
    says(
        &machines.on_laptop(&["whoami"]),
        1,
        &[
            "is not the one where this user signed in",
            "signed the peer's certificate",
        ],
    );
    fs::write(&ca, right).unwrap();
    // Used, it goes on; left alone, it ends, and the sentence has both moments.
    let identity = machines.laptop().join(".config/hoplite/prod.example/operator.pem");
    let first = fs::read_to_string(&identity).unwrap();
    until("it is prolonged", || {
        said(&machines.on_laptop(&["whoami"]), 0);
        (fs::read_to_string(&identity).unwrap() != first).then_some(())
    });
    until("it ends", || {
        fs::write(&identity, &first).unwrap();
        let output = machines.on_laptop(&["agent", "list"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code() == Some(1) && text.contains("ended at") && text.contains("this clock says")).then_some(())
    });
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o644)).unwrap();
    says(&machines.on_laptop(&["whoami"]), 1, &["lets others in", "sign in anew"]);
}

/// A program whose SVID an admin policy names.
#[test]
fn a_job_with_an_svid_needs_no_sign_in() {
    let policies = tempfile::tempdir().unwrap();
    let file = policies.path().join("admin.cedar");
    fs::write(
        &file,
        "@id(\"local\") permit (principal in Admin::Role::\"local\", action, resource);\n\
         @id(\"ci\") permit (principal == Admin::Workload::\"spiffe://prod.example/ci\", action == Admin::Action::\"ListAgents\", resource);\n",
    )
    .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut machines = Machines::start(&format!("admin_policy_dir = \"{}\"\n", policies.path().display()));
    let created = machines.at_ca(&["token", "create", "--node", "n1", "--output", "json"]);
    let created: Value = serde_json::from_slice(&created.stdout).unwrap();
    let token = machines.path("token");
    fs::write(&token, created["token"].as_str().unwrap()).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let at = machines.dir.path().display().to_string();
    let text = format!(
        "trust_domain = \"prod.example\"\ndata_dir = \"{at}/agent\"\nca = \"{}\"\ntrust_bundle = \"{at}/data/bundle.pem\"\n\
         join_token_file = \"{at}/token\"\nsocket = \"{at}/agent.sock\"\n",
        machines.address
    );
    fs::write(machines.path("agent.toml"), text).unwrap();
    machines.run(&["agent", "run", "--config", "agent.toml"]);
    let uid = rustix::process::getuid().as_raw();
    let selector = format!("unix:uid:{uid}");
    let parent = "spiffe://prod.example/hoplite/agent/n1";
    let register = [
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://prod.example/ci",
        "--parent",
        parent,
        "--selector",
        &selector,
    ];
    said(&machines.at_ca(&register), 0);
    let (ca, agent) = (machines.address.clone(), format!("unix://{at}/agent.sock"));
    let by_svid = ["--ca", &ca, "--workload-api", &agent];
    until("the job is answered", || {
        let output = machines.on_laptop(&[&["agent", "list"], &by_svid[..]].concat());
        (output.status.success() && String::from_utf8_lossy(&output.stdout).contains("agent/n1")).then_some(())
    });
    let denied = machines.on_laptop(&[&["entry", "list"], &by_svid[..]].concat());
    says(&denied, 1, &["workload `spiffe://prod.example/ci`", "`ListEntries`"]);

    // SIGHUP reads the policies again: what does not compile changes nothing, what does holds at once.
    let right = fs::read_to_string(&file).unwrap();
    let ca = machines.children.first().unwrap().id();
    let list = || machines.on_laptop(&[&["agent", "list"], &by_svid[..]].concat());
    fs::write(&file, right.replace("ListAgents", "ListAgent")).unwrap();
    kill("-HUP", ca);
    says(&list(), 0, &["agent/n1"]);
    fs::write(&file, right.replace("prod.example/ci", "prod.example/cd")).unwrap();
    kill("-HUP", ca);
    until("the new policies hold", || {
        (list().status.code() == Some(1)).then_some(())
    });
    says(&list(), 1, &["`ListAgents`", "no admin policy permits it"]);
}
