//! A CA that is lost with its disk, and made again of a backup: its agents go on by themselves, and those who were banned do not.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{hoplite, skip, until};

/// Enough that each is one of many, few enough for a laptop.
const NODES: usize = 20;

/// Within which the agents of a restored CA have what is new there.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// That a backup knows of every ban.
pub(crate) const NONE_LATER: [&str; 1] = ["--no-later-bans"];

/// A daemon. Dropping it kills it.
pub(crate) struct Daemon(Child);

/// A trust domain below a directory.
pub(crate) struct Mesh {
    root: tempfile::TempDir,
    pub(crate) ca: Option<Daemon>,
    pub(crate) agents: Vec<Daemon>,
}

impl Daemon {
    pub(crate) fn start(arguments: &[&str], log: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.stderr(log).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill(); // SIGKILL
        let _ = self.0.wait();
    }
}

pub(crate) fn json(ran: &Output) -> Value {
    assert!(ran.status.success(), "{ran:?}");
    serde_json::from_slice(&ran.stdout).unwrap()
}

pub(crate) fn said(ran: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing from `{text}`");
    }
}

pub(crate) fn id(node: &str) -> String {
    format!("spiffe://test.example/hoplite/agent/{node}")
}

impl Mesh {
    /// Of `test.example`, with agents that live for so long without a renewal.
    pub(crate) fn found(agent_ttl: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut mesh = Self {
            root,
            ca: None,
            agents: Vec::new(),
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let founding = ["ca", "init", "--trust-domain", "test.example", "--listen", &address];
        assert!(mesh.tool(&founding).status.success());
        let file = mesh.path("ca.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(
            &file,
            format!("{text}agent_ttl = \"{agent_ttl}\"\nreport_period = \"1s\"\n"),
        )
        .unwrap();
        let key = mesh.path("backup.key");
        fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
        assert!(Command::new("chmod").arg("600").arg(&key).status().unwrap().success());
        mesh.run();
        mesh
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn tool(&self, arguments: &[&str]) -> Output {
        let dir = self.root.path().display().to_string();
        hoplite(&[arguments, &["--dir", &dir]].concat())
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        json(&self.tool(&[arguments, &["--output", "json"]].concat()))
    }

    pub(crate) fn run(&mut self) {
        let dir = self.root.path().display().to_string();
        self.ca = Some(Daemon::start(&["ca", "run", "--dir", &dir], &self.path("ca.log")));
        until("the CA answers", || {
            let listed = self.tool(&["agent", "list", "--output", "json"]);
            listed.status.success().then_some(())
        });
    }

    pub(crate) fn invitation(&self, node: &str) -> String {
        let created = self.json(&["token", "create", "--node", node]);
        created.get("invitation").and_then(Value::as_str).unwrap().to_owned()
    }

    /// A node of its own, which runs.
    pub(crate) fn join(&mut self, node: &str) -> String {
        let (dir, invitation) = (self.text(&format!("nodes/{node}")), self.invitation(node));
        let joined = hoplite(&["join", &invitation, "--dir", &dir]);
        assert!(joined.status.success(), "{joined:?}");
        self.start(node);
        invitation
    }

    pub(crate) fn start(&mut self, node: &str) {
        let (dir, log) = (self.text(&format!("nodes/{node}")), self.path(&format!("{node}.log")));
        self.agents.push(Daemon::start(&["agent", "run", "--dir", &dir], &log));
    }

    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// The agents as the CA knows them: serial numbers, and whether they are banned.
    pub(crate) fn agents(&self) -> Vec<(String, String, bool)> {
        let listed = self.json(&["agent", "list"]);
        let row = |agent: &Value| {
            let text = |field: &str| agent[field].as_str().unwrap().to_owned();
            (text("spiffe_id"), text("serial"), agent["banned"].as_bool().unwrap())
        };
        listed.as_array().unwrap().iter().map(row).collect()
    }

    pub(crate) fn serial(&self, node: &str) -> String {
        let id = id(node);
        let found = self.agents().into_iter().find(|(agent, ..)| *agent == id);
        found.unwrap_or_else(|| panic!("{node}")).1
    }

    /// What an agent says of itself, and its exit code.
    pub(crate) fn agent_status(&self, node: &str) -> (Option<i32>, Value) {
        let dir = self.text(&format!("nodes/{node}"));
        let status = hoplite(&["agent", "status", "--dir", &dir, "--output", "json"]);
        (
            status.status.code(),
            serde_json::from_slice(&status.stdout).unwrap_or_default(),
        )
    }

    pub(crate) fn entries(&self, node: &str) -> u64 {
        let dir = self.text(&format!("nodes/{node}"));
        let status = hoplite(&["agent", "status", "--dir", &dir, "--output", "json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        let [entries, without] =
            ["entries", "without_svid"].map(|field| status.get(field).and_then(Value::as_u64).unwrap_or(0));
        entries.saturating_sub(without)
    }

    pub(crate) fn register(&self, path: &str, node: &str) {
        let (spiffe_id, parent) = (format!("spiffe://test.example{path}"), id(node));
        let created = self.tool(&[
            "entry",
            "create",
            "--spiffe-id",
            &spiffe_id,
            "--parent",
            &parent,
            "--selector",
            "unix:uid:4711",
        ]);
        assert!(created.status.success(), "{created:?}");
    }

    pub(crate) fn back_up(&self, file: &str) -> Value {
        self.json(&["ca", "backup", &self.text(file), "--key-file", &self.text("backup.key")])
    }

    pub(crate) fn restore(&self, file: &str, more: &[&str]) -> Output {
        let (file, key) = (self.text(file), self.text("backup.key"));
        self.tool(&[&["ca", "restore", &file, "--key-file", &key], more].concat())
    }

    /// As a fire does it.
    pub(crate) fn lose_the_ca(&mut self) {
        self.ca = None;
        fs::remove_dir_all(self.path("ca")).unwrap();
    }
}

#[test]
fn twenty_agents_that_renewed_since_the_backup_follow_the_restored_ca_and_the_banned_do_not() {
    let mut mesh = Mesh::found("40s");
    let nodes: Vec<String> = (0..NODES).map(|n| format!("n{n}")).collect();
    for node in &nodes {
        mesh.join(node);
    }
    for node in ["gone", "late"] {
        mesh.join(node);
        mesh.register(&format!("/of-{node}"), node);
        until("it has its entry", || (mesh.entries(node) == 1).then_some(()));
    }
    assert!(mesh.tool(&["agent", "ban", &id("gone")]).status.success());
    let unused = mesh.invitation("later");
    let backup = mesh.back_up("backup");
    assert_eq!(backup["entries"], 2, "{backup}");
    let before = mesh.agents();
    let keys = mesh.json(&["bundle", "show"])["jwt_authorities"].clone();
    assert_eq!(keys.as_array().map(Vec::len), Some(1), "{keys}");

    // What the backup knows nothing of.
    until("all have renewed", || {
        let now = mesh.agents();
        let mut renewed = now.iter().filter(|(_, _, banned)| !banned);
        renewed.all(|agent| !before.contains(agent)).then_some(())
    });
    assert!(mesh.tool(&["agent", "ban", &id("late")]).status.success());
    let used = mesh.join("young");
    mesh.lose_the_ca();

    // What is not said or not right changes nothing.
    said(&mesh.restore("backup", &[]), 2, &["--banned", "--no-later-bans"]);
    said(
        &mesh.restore("backup", &["--revoked", "00"]),
        2,
        &["--banned", "--no-later-bans"],
    );
    fs::write(mesh.path("other.key"), "another key than the one of the backup").unwrap();
    let (file, other) = (mesh.text("backup"), mesh.text("other.key"));
    assert!(Command::new("chmod").args(["600", &other]).status().unwrap().success());
    let refused = mesh.tool(&["ca", "restore", &file, "--key-file", &other, NONE_LATER[0]]);
    said(&refused, 1, &["passphrase does not open it"]);
    assert!(!mesh.path("ca").exists());

    let late = id("late");
    let restored = json(&mesh.restore("backup", &["--banned", &late, "--output", "json"]));
    assert_eq!(restored["revision"], backup["revision"]);
    assert_eq!(
        (&restored["banned"], &restored["void_tokens"]),
        (&1.into(), &22.into()),
        "{restored}"
    );
    let since = Instant::now();
    mesh.run();
    // The key for JWT-SVIDs came along, and signs: no other was made.
    assert_eq!(mesh.json(&["bundle", "show"])["jwt_authorities"], keys);
    for (n, node) in nodes
        .iter()
        .map(String::as_str)
        .chain(["young", "gone", "late"])
        .enumerate()
    {
        mesh.register(&format!("/new/{n}"), node);
    }
    for node in nodes.iter().map(String::as_str).chain(["young"]) {
        let had = until(&format!("{node} has the new entry"), || {
            (mesh.entries(node) == 1).then(|| since.elapsed())
        });
        assert!(had < BACK_WITHIN, "{node} after {had:?}\n{}", mesh.log(node));
    }
    println!(
        "{} agents had a new entry {:?} after the restored CA was started",
        NODES + 1,
        since.elapsed()
    );

    // Those who are out are out, by either way of having been banned.
    let banned: Vec<_> = mesh
        .agents()
        .into_iter()
        .filter(|(.., banned)| *banned)
        .map(|(agent, ..)| agent)
        .collect();
    assert_eq!(banned, [id("gone"), id("late")]);
    until("the banned one is told so", || {
        mesh.log("late").contains("is banned").then_some(())
    });
    for node in ["late", "gone"] {
        until("it has nothing any more", || (mesh.entries(node) == 0).then_some(()));
    }

    // It is known who was let in, and by what.
    let status = until("the status has all", || {
        let status = mesh.json_of_status();
        (status["restored"]["adopted"].as_u64() == Some(NODES as u64 + 1)).then_some(status)
    });
    assert_eq!(status["restored"]["revision"], backup["revision"], "{status}");
    let shown = mesh.tool(&["fleet", "show", "n3"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("without a token, by a certificate of which the restored CA knew nothing"),
        "{shown}"
    );
    assert!(mesh.log("ca").contains("takes its authority's word for it"));

    // Tokens from before are void, used or not.
    for invitation in [&used, &unused] {
        let refused = hoplite(&["join", invitation, "--dir", &mesh.text("nodes/again")]);
        said(&refused, 1, &["the join token is not known here"]);
    }
    // Adopted once: from here on certificates are known, and renewed as ever.
    let adopted = mesh.serial("n0");
    until("it renews", || (mesh.serial("n0") != adopted).then_some(()));
}

impl Mesh {
    /// Whatever it says of how all is.
    pub(crate) fn json_of_status(&self) -> Value {
        let status = self.tool(&["status", "--output", "json"]);
        serde_json::from_slice(&status.stdout).unwrap_or_else(|error| panic!("{error}: {status:?}"))
    }
}

#[test]
fn a_ca_of_an_older_epoch_is_not_followed() {
    let mut mesh = Mesh::found("1h");
    mesh.join("n");
    mesh.back_up("backup");
    mesh.lose_the_ca();
    // Restored twice: the agent follows the second, and then the first comes back.
    assert!(mesh.restore("backup", &NONE_LATER).status.success());
    fs::rename(mesh.path("ca"), mesh.path("first")).unwrap();
    let first = mesh.json_of_check("backup");
    std::thread::sleep(Duration::from_millis(1100)); // another second
    assert!(mesh.restore("backup", &NONE_LATER).status.success());
    mesh.run();
    mesh.register("/second", "n");
    until("it follows the second", || (mesh.entries("n") == 1).then_some(()));
    mesh.ca = None;
    fs::rename(mesh.path("ca"), mesh.path("second")).unwrap();
    fs::rename(mesh.path("first"), mesh.path("ca")).unwrap();
    mesh.run();
    mesh.register("/first", "n");
    mesh.register("/first/too", "n");
    until("it says whom it does not follow", || {
        mesh.log("n").contains("the one of a later restore").then_some(())
    });
    assert_eq!(mesh.entries("n"), 1, "{first}");
    // A restart forgets nothing of that.
    mesh.agents.clear();
    fs::write(mesh.path("n.log"), "").unwrap();
    mesh.start("n");
    until("it still says so", || {
        mesh.log("n").contains("the one of a later restore").then_some(())
    });
}

impl Mesh {
    fn json_of_check(&self, file: &str) -> Value {
        json(&self.restore(file, &["--check", "--output", "json"]))
    }
}

#[test]
fn an_agent_that_was_off_comes_back_by_its_key_unless_it_is_banned_or_evicted() {
    let mut mesh = Mesh::found("5s");
    for node in ["n", "banned", "evicted"] {
        mesh.join(node);
        mesh.register(&format!("/{node}"), node);
        until("it has its entry", || (mesh.entries(node) == 1).then_some(()));
    }
    mesh.agents.clear();
    let last = mesh.serial("n");
    assert!(mesh.tool(&["agent", "ban", &id("banned")]).status.success());
    assert!(mesh.tool(&["agent", "evict", &id("evicted")]).status.success());
    std::thread::sleep(Duration::from_secs(6)); // longer than their certificates live
    for node in ["n", "banned", "evicted"] {
        fs::write(mesh.path(&format!("{node}.log")), "").unwrap();
        mesh.start(node);
    }
    until("it is back", || (mesh.serial("n") != last).then_some(()));
    // Though it has no certificate by which to watch.
    let status = until("the banned one is told so", || {
        let (code, status) = mesh.agent_status("banned");
        let is_told = status["dismissed"]
            .as_str()
            .is_some_and(|said| said.contains("is banned"));
        is_told.then_some((code, status))
    });
    assert_eq!((status.0, &status.1["in_step"]), (Some(1), &false.into()), "{status:?}");
    assert!(status.1["kept"]["written_at"].is_null(), "{status:?}");
    let lines = mesh.log("banned");
    let (_, after) = lines.split_once("the CA has dismissed this node").unwrap();
    assert!(!after.contains("what is known stays in force"), "{lines}");
    until("the evicted one is told so", || {
        mesh.log("evicted").contains("was evicted").then_some(())
    });
    assert!(mesh.log("evicted").contains("token"), "{}", mesh.log("evicted"));
    let shown = until("it is named", || {
        let shown = mesh.tool(&["fleet", "show", "n"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        shown
            .contains("by the key of a certificate that had ended")
            .then_some(shown)
    });
    assert!(shown.contains("without a token"), "{shown}");
    let audited = mesh.log("ca");
    assert!(
        audited
            .lines()
            .any(|line| line.contains("reattest") && line.contains("admitted")),
        "{audited}"
    );

    // And not at all where the setting says so.
    mesh.agents.clear();
    mesh.ca = None;
    let file = mesh.path("ca.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}reattest_within = \"0s\"\n")).unwrap();
    mesh.run();
    std::thread::sleep(Duration::from_secs(6));
    fs::write(mesh.path("n.log"), "").unwrap();
    mesh.start("n");
    until("it is too late", || {
        mesh.log("n").contains("`reattest_within`").then_some(())
    });
}

/// By state, the fingerprints.
fn in_state(mesh: &Mesh, state: &str) -> Vec<String> {
    let listed = mesh.json(&["authority", "list"]);
    let rows = listed.as_array().unwrap().iter().filter(|row| row["state"] == state);
    rows.map(|row| row["fingerprint"].as_str().unwrap().to_owned())
        .collect()
}

/// A backup of before a theft would have the stolen key sign again: whoever restores it is asked.
#[test]
fn a_restored_ca_does_not_sign_with_what_was_revoked_after_the_backup() {
    let mut mesh = Mesh::found("1h");
    mesh.join("n");
    let stolen = in_state(&mesh, "active").remove(0);
    mesh.back_up("before");
    assert!(mesh.tool(&["authority", "prepare"]).status.success());
    mesh.back_up("prepared");
    assert!(mesh.tool(&["authority", "taint", &stolen]).status.success());
    let next = in_state(&mesh, "active").remove(0);
    until("the node is under the next one", || {
        mesh.tool(&["authority", "revoke", &stolen])
            .status
            .success()
            .then_some(())
    });
    mesh.lose_the_ca();
    said(
        &mesh.restore("prepared", &[]),
        2,
        &["--revoked FINGERPRINT", "tainted or revoked"],
    );
    // Who was banned is another question.
    said(
        &mesh.restore("prepared", &["--revoked", &stolen]),
        2,
        &["--banned ID", "--no-later-bans"],
    );
    said(
        &mesh.restore("prepared", &["--no-later-bans", "--revoked", "0123"]),
        1,
        &["no authority in the backup", "`0123`"],
    );
    assert!(!mesh.path("ca").exists());

    // The successor was in the backup: it signs, and the node goes on by itself.
    let restored = json(&mesh.restore(
        "prepared",
        &["--no-later-bans", "--revoked", &stolen[..12], "--output", "json"],
    ));
    assert_eq!(restored["signing_authority"].as_str(), Some(&*next), "{restored}");
    assert_eq!(restored["joins_anew"], false, "{restored}");
    mesh.run();
    assert_eq!(
        (in_state(&mesh, "active"), in_state(&mesh, "revoked")),
        (vec![next], vec![stolen.clone()])
    );
    mesh.register("/after", "n");
    until("the node follows", || (mesh.entries("n") == 1).then_some(()));

    // It was not: a new one signs, which no node can know, and none believes what the stolen one would say.
    mesh.lose_the_ca();
    let restored = mesh.restore("before", &["--no-later-bans", "--revoked", &stolen]);
    let shown = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(
        restored.status.success() && shown.contains("each has to join anew"),
        "{restored:?}"
    );
    fs::write(mesh.path("n.log"), "").unwrap();
    mesh.run();
    assert_eq!(in_state(&mesh, "revoked"), [stolen]);
    let keys = fs::read_to_string(mesh.path("ca/authority.key")).unwrap();
    until("the stolen key is gone", || {
        let keys = fs::read_to_string(mesh.path("ca/authority.key")).unwrap();
        (keys.matches("BEGIN").count() == 1).then_some(())
    });
    assert!(keys.contains("BEGIN"));
    until("the node says whom it does not believe", || {
        mesh.log("n").contains("no authority in the trust bundle").then_some(())
    });
    // With a new invitation it is back, while it runs.
    let (dir, invitation) = (mesh.text("nodes/n"), mesh.invitation("n"));
    let joined = hoplite(&["join", "--again", &invitation, "--dir", &dir]);
    assert!(joined.status.success(), "{joined:?}");
    mesh.agents.clear();
    mesh.start("n");
    mesh.register("/anew", "n");
    until("the node is back", || (mesh.entries("n") == 1).then_some(()));
}

#[test]
fn a_backup_is_whole_private_and_read_only_by_its_key() {
    let mesh = Mesh::found("1h");
    mesh.register("/a", "nobody");
    let backup = mesh.back_up("backup");
    for field in ["revision", "entries", "bytes", "authorities", "begun_at", "took_ms"] {
        assert!(!backup[field].is_null(), "{field}: {backup}");
    }
    let (file, key) = (mesh.text("backup"), mesh.text("backup.key"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let whole = fs::read(&file).unwrap();
    assert!(
        !String::from_utf8_lossy(&whole).contains("test.example"),
        "nothing is in the clear"
    );
    said(
        &mesh.tool(&["ca", "backup", &file, "--key-file", &key]),
        1,
        &["there is a file of that name", "--replace"],
    );
    assert!(
        mesh.tool(&["ca", "backup", &file, "--key-file", &key, "--replace"])
            .status
            .success()
    );
    said(
        &mesh.tool(&["ca", "backup", &mesh.text("x")]),
        1,
        &["no terminal", "--key-file"],
    );
    assert!(!mesh.path("x").exists());
    let verified = mesh.tool(&["ca", "backup", "--verify", &file, "--key-file", &key]);
    assert!(
        String::from_utf8_lossy(&verified.stdout).contains("can be restored"),
        "{verified:?}"
    );

    // Into what is there, or beside what runs: nothing.
    said(&mesh.restore("backup", &NONE_LATER), 1, &["a CA runs", "stop it first"]);
    let other = mesh.path("other.toml");
    let text = fs::read_to_string(mesh.path("ca.toml"))
        .unwrap()
        .replace("run/ca.sock", "run/other.sock");
    fs::write(&other, &text).unwrap();
    let other = other.display().to_string();
    said(
        &mesh.restore("backup", &[NONE_LATER[0], "--config", &other]),
        1,
        &["is not empty", "move it away"],
    );

    // Any damage, anywhere: an error, and an empty directory.
    let elsewhere = text.replace("/ca\"", "/elsewhere\"");
    fs::write(&other, elsewhere).unwrap();
    let whole = fs::read(&file).unwrap();
    let middle = whole.len() / 2;
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        bytes
    };
    let cases = [
        ("flipped", flipped(middle), "damaged or cut off"),
        ("its end flipped", flipped(whole.len() - 1), "damaged or cut off"),
        ("its head flipped", flipped(3), "is no backup"),
        ("cut", whole[..middle].to_vec(), "damaged or cut off"),
        ("cut by one", whole[..whole.len() - 1].to_vec(), "damaged or cut off"),
        ("empty", Vec::new(), "is no backup"),
    ];
    for (what, bytes, expected) in cases {
        fs::write(mesh.path("damaged"), bytes).unwrap();
        for arguments in [&[NONE_LATER[0], "--config", &*other][..], &["--check"]] {
            said(&mesh.restore("damaged", arguments), 1, &[expected]);
        }
        assert!(!mesh.path("elsewhere").exists(), "{what}: nothing is left");
    }
    said(
        &mesh.restore(
            "backup",
            &["--banned", "spiffe://test.example/orders", "--config", &other],
        ),
        1,
        &["neither an agent nor an operator"],
    );
    let printed = mesh.restore("backup", &["--print-config"]);
    assert_eq!(
        String::from_utf8_lossy(&printed.stdout),
        fs::read_to_string(mesh.path("ca.toml")).unwrap()
    );

    opened_by_age(&mesh, &file);
}

/// Debian's `age` is another judge of the format.
fn opened_by_age(mesh: &Mesh, file: &str) {
    let test = "a_backup_is_whole_private_and_read_only_by_its_key";
    if Command::new("age").arg("--version").output().is_err() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must have `age`: tests/lib/packages age"
        );
        return skip(test, "there is no `age` to open it with");
    }
    let plain = mesh.text("plain");
    // It asks on a terminal only.
    let mut script = Command::new("script")
        .args(["-qec", &format!("age --decrypt -o {plain} {file}"), "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = script.stdin.take().unwrap();
    keyboard.write_all(&fs::read(mesh.path("backup.key")).unwrap()).unwrap();
    let ended = script.wait().unwrap();
    drop(keyboard);
    assert!(ended.success(), "{ended:?}");
    let plain = fs::read(plain).unwrap();
    let plain = String::from_utf8_lossy(&plain);
    assert!(
        plain.contains("test.example") && plain.contains("PRIVATE KEY"),
        "it is all there"
    );
}
