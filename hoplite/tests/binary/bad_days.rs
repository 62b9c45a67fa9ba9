//! What operators meet on a bad day: a stolen key, a clock that was ahead at a restore, a data directory with nothing in it, a list
//! that names nobody.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::restored::{Daemon, Mesh, NONE_LATER, id, json, said};
use crate::support::{hoplite, until};

/// Short enough to wait for.
const AGENT_TTL: &str = "5s";

impl Mesh {
    /// A node's files at somebody else's.
    fn steal(&self, node: &str, thief: &str) {
        let (from, to) = (
            self.path(&format!("nodes/{node}")),
            self.path(&format!("nodes/{thief}")),
        );
        let copied = Command::new("cp").arg("-a").args([&from, &to]).status().unwrap();
        assert!(copied.success());
        let file = to.join("agent.toml");
        let text = fs::read_to_string(&file).unwrap();
        let moved = text.replace(&from.display().to_string(), &to.display().to_string());
        fs::write(&file, moved).unwrap();
    }

    fn contested(&self, node: &str) -> bool {
        let listed = self.json(&["agent", "list"]);
        let agents = listed.as_array().unwrap();
        let found = agents.iter().find(|agent| agent["spiffe_id"] == id(node).as_str());
        found.is_some_and(|agent| !agent["contested_at"].is_null())
    }

    /// Restored, and running, of a backup.
    fn restored(&mut self, more: &[&str]) -> Value {
        self.lose_the_ca();
        let restored = json(&self.restore("backup", &[more, &["--output", "json"]].concat()));
        self.run();
        restored
    }
}

#[test]
fn a_thief_who_came_back_by_the_key_is_noticed_when_the_agent_does_and_a_restore_forgets_nothing() {
    let mut mesh = Mesh::found(AGENT_TTL);
    mesh.join("n");
    mesh.register("/n", "n");
    until("it has its entry", || (mesh.entries("n") == 1).then_some(()));
    mesh.agents.clear();
    mesh.steal("n", "thief");
    let last = mesh.serial("n");
    std::thread::sleep(Duration::from_secs(6)); // longer than the certificate lives
    mesh.start("thief");
    until("the thief is let in", || (mesh.serial("n") != last).then_some(()));
    until("it uses what it got", || (mesh.entries("thief") == 1).then_some(()));
    assert!(!mesh.contested("n"));

    mesh.start("n");
    until("two are noticed", || mesh.contested("n").then_some(()));
    let log = mesh.log("ca");
    let alarm = log.lines().find(|line| line.contains("ALARM")).unwrap();
    assert!(alarm.contains(&id("n")), "{alarm}");
    let refused = log
        .lines()
        .find(|line| line.contains("reattest") && line.contains("refused"));
    assert!(refused.is_some_and(|line| line.contains(&id("n"))), "{log}");
    let fleet = mesh.tool(&["fleet"]);
    assert_eq!(fleet.status.code(), Some(1), "{fleet:?}");
    assert!(
        String::from_utf8_lossy(&fleet.stdout).contains("two-holders"),
        "{fleet:?}"
    );
    assert_eq!(mesh.tool(&["status"]).status.code(), Some(1));
    let (code, status) = until("the agent says so", || {
        let (code, status) = mesh.agent_status("n");
        status["troubles"].to_string().contains("two").then_some((code, status))
    });
    assert_eq!((code, &status["in_step"]), (Some(1), &false.into()), "{status}");

    // The backup knows of it, and so does the CA that is made of it.
    mesh.back_up("backup");
    mesh.restored(&NONE_LATER);
    assert!(mesh.contested("n"));
    std::thread::sleep(Duration::from_secs(6)); // what they had has ended
    fs::write(mesh.path("thief.log"), "").unwrap();
    until("the thief gets nothing", || {
        mesh.log("thief").contains("two have its key").then_some(())
    });
    // Until the node joins anew: then the old key counts for nothing, and contests nothing.
    assert!(mesh.tool(&["agent", "evict", "n"]).status.success());
    let invitation = mesh.invitation("n");
    let joined = hoplite(&["join", &invitation, "--dir", &mesh.text("nodes/n"), "--again"]);
    assert!(joined.status.success(), "{joined:?}");
    until("it is back", || (mesh.entries("n") == 1).then_some(()));
    mesh.agents.clear();
    mesh.start("n");
    until("it is back", || (mesh.entries("n") == 1).then_some(()));
    fs::write(mesh.path("thief.log"), "").unwrap();
    mesh.start("thief");
    until("the thief is refused", || {
        mesh.log("thief").contains("refused").then_some(())
    });
    assert!(!mesh.contested("n"), "{}", mesh.log("thief"));
}

#[test]
fn a_restore_by_a_clock_that_was_ahead_binds_nobody() {
    const AHEAD: u64 = 3 * 24 * 3600;
    let mut mesh = Mesh::found("1h");
    mesh.join("n");
    mesh.back_up("backup");
    let first = mesh.restored(&NONE_LATER)["epoch"].as_u64().unwrap();
    // As a clock that is three days ahead does it.
    let ahead = (first + AHEAD).to_string();
    let restored = mesh.restored(&[NONE_LATER[0], "--after", &ahead]);
    assert_eq!(restored["epoch"], first + AHEAD + 1, "{restored}");
    mesh.register("/ahead", "n");
    until("it follows", || (mesh.entries("n") == 1).then_some(()));

    let behind = mesh.restored(&NONE_LATER);
    assert!(behind["epoch"].as_u64().unwrap() < first + AHEAD, "{behind}");
    let follows = format!("epoch {}", first + AHEAD + 1);
    let (code, status) = until("the agent says whom it refuses", || {
        let (code, status) = mesh.agent_status("n");
        status["troubles"]
            .to_string()
            .contains("--after")
            .then_some((code, status))
    });
    assert_eq!((code, &status["in_step"]), (Some(1), &false.into()), "{status}");
    let fleet = until("the CA does, too", || {
        let shown = mesh.tool(&["fleet", "show", "n"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        shown.contains("refuses this CA").then_some(shown)
    });
    assert!(fleet.contains(&follows) && fleet.contains("--after"), "{fleet}");
    assert_eq!(mesh.tool(&["fleet"]).status.code(), Some(1));

    let after = (first + AHEAD + 1).to_string();
    let again = mesh.restored(&[NONE_LATER[0], "--after", &after]);
    assert_eq!(again["epoch"], first + AHEAD + 2, "{again}");
    mesh.register("/again", "n");
    mesh.register("/again/too", "n");
    until("it follows", || (mesh.entries("n") == 2).then_some(()));
    until("all is well with it", || {
        let (code, status) = mesh.agent_status("n");
        (code == Some(0) && status["troubles"] == serde_json::json!([])).then_some(())
    });
}

#[test]
fn a_data_directory_with_nothing_in_it_is_not_a_first_day() {
    let mut mesh = Mesh::found("1h");
    mesh.ca = None;
    // A disk that is not mounted.
    fs::rename(mesh.path("ca"), mesh.path("disk")).unwrap();
    fs::create_dir(mesh.path("ca")).unwrap();
    let refused = mesh.tool(&["ca", "run"]);
    said(&refused, 1, &["there is no CA in", "mount", "ca restore", "--init"]);
    assert_eq!(fs::read_dir(mesh.path("ca")).unwrap().count(), 0, "nothing is made");
    fs::remove_dir(mesh.path("ca")).unwrap();
    fs::rename(mesh.path("disk"), mesh.path("ca")).unwrap();
    mesh.run();
}

#[test]
fn what_a_restore_is_told_is_kept_and_what_tells_nothing_is_refused() {
    let mut mesh = Mesh::found("1h");
    mesh.back_up("backup");
    mesh.lose_the_ca();
    let list = mesh.text("banned.txt");
    fs::write(&list, "# nobody yet\n\n").unwrap();
    said(
        &mesh.restore("backup", &["--banned", &list]),
        1,
        &["names nobody", "--no-later-bans"],
    );
    assert!(!mesh.path("ca").exists());
    let zed = "spiffe://test.example/hoplite/operator/zed";
    let restored = json(&mesh.restore("backup", &["--banned", zed, "--output", "json"]));
    assert_eq!(restored["banned"], 1);
    mesh.run();
    let operators = mesh.json(&["operator", "list"]);
    let named = operators.as_array().unwrap().iter();
    let banned: Vec<_> = named.filter(|operator| operator["banned"] == true).collect();
    assert_eq!(banned.len(), 1, "{operators}");
    assert_eq!(banned[0]["name"], "zed", "{operators}");
}

#[test]
fn a_backup_replaces_files_and_nothing_else() {
    let mesh = Mesh::found("1h");
    let (pipe, key) = (mesh.text("pipe"), mesh.text("backup.key"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let back_up = |file: &str| mesh.tool(&["ca", "backup", file, "--replace", "--key-file", &key]);
    said(&back_up(&pipe), 1, &["no regular file"]);
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    said(&back_up("-"), 1, &["name a file"]);
    // A key that is a pipe nobody writes is not waited for.
    let file = mesh.text("x");
    said(
        &mesh.tool(&["ca", "backup", &file, "--key-file", &pipe]),
        1,
        &["it is no file"],
    );
    assert!(!mesh.path("x").exists());
}

/// Whose nodes they are is said where somebody looks, though nobody has joined here.
#[test]
fn agents_of_a_ca_of_before_are_told_of() {
    let mut mesh = Mesh::found("1h");
    mesh.join("n");
    until("it is heard", || {
        (mesh.agent_status("n").1["in_step"] == true).then_some(())
    });
    mesh.lose_the_ca();
    // Told so, and so it begins anew.
    let dir = mesh.path("").display().to_string();
    let log = mesh.path("ca.log");
    mesh.ca = Some(Daemon::start(&["ca", "run", "--init", "--dir", &dir], &log));
    let status = until("it is said", || {
        let shown = mesh.tool(&["status"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        shown.contains("strangers").then_some(shown)
    });
    assert!(status.contains("127.0.0.1"), "{status}");
}

#[test]
fn a_second_agent_of_a_directory_is_told_of_the_first_and_of_nothing_else() {
    let mut mesh = Mesh::found("1h");
    mesh.join("n");
    until("it is heard", || {
        (mesh.agent_status("n").1["in_step"] == true).then_some(())
    });
    let second = hoplite(&["agent", "run", "--dir", &mesh.text("nodes/n")]);
    said(&second, 1, &["another process serves", "agent.sock", "stop it"]);
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!text.contains("kept on the disk"), "{text}");
}

#[test]
fn a_mesh_of_banned_nodes_only_is_not_well() {
    let mut mesh = Mesh::found("1h");
    mesh.join("n");
    until("it is heard", || {
        (mesh.agent_status("n").1["in_step"] == true).then_some(())
    });
    assert!(mesh.tool(&["agent", "ban", "n"]).status.success());
    let status = mesh.tool(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout);
    assert_eq!(status.status.code(), Some(1), "{text}");
    for words in ["0 of 1 heard, 1 banned", "every agent that joined is banned"] {
        assert!(text.contains(words), "`{words}` is missing from:\n{text}");
    }
    assert!(
        !text.contains("has joined yet") && !text.contains("all is well"),
        "{text}"
    );
    let fleet = mesh.tool(&["fleet"]);
    said(&fleet, 0, &["every agent that joined is banned"]);
    let status = mesh.tool(&["status", "--output", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        (
            &status["verdict"],
            &status["agents"]["banned"],
            &status["agents"]["joined"]
        ),
        (&"wrong".into(), &1.into(), &0.into())
    );
}
