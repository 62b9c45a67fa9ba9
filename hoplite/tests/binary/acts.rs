//! The log of what is done at a CA, as an operator and an auditor see it: over kills, and with one byte changed.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{Ca, hoplite, until};

const NODE: &str = "spiffe://test.example/hoplite/agent/n1";

fn create(ca: &Ca, name: &str) -> Child {
    Command::new(ca.program())
        .args(["entry", "create", "--spiffe-id"])
        .arg(format!("spiffe://test.example/{name}"))
        .args(["--parent", NODE, "--selector", "unix:uid:1", "--output", "json"])
        .env("HOPLITE_CA_SOCKET", ca.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn query(ca: &Ca, more: &[&str]) -> Vec<Value> {
    let log = ca.dir().join("data/audit").display().to_string();
    let output = hoplite(
        &[
            &["audit", "query", "--log", &log, "--limit", "100000", "--output", "json"],
            more,
        ]
        .concat(),
    );
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_killed_ca_has_written_down_all_that_it_did() {
    let mut ca = Ca::start();
    let mut answered = BTreeSet::new();
    for round in 0..6 {
        // Many at once, and a kill in the midst: when so many have been answered.
        let mut calls: Vec<(String, Child)> = (0..12)
            .map(|n| format!("r{round}/e{n}"))
            .map(|name| (name.clone(), create(&ca, &name)))
            .collect();
        until("some are answered", || {
            let ended = calls.iter_mut().filter_map(|(_, child)| child.try_wait().unwrap());
            (ended.count() > round).then_some(())
        });
        ca.kill();
        for (name, child) in calls {
            if child.wait_with_output().unwrap().status.success() {
                answered.insert(format!("spiffe://test.example/{name}"));
            }
        }
        ca.start_again();
    }
    assert!(!answered.is_empty(), "nothing was answered");
    let listed = ca.tool(&["entry", "list", "--output", "json"]);
    let listed: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    let there: BTreeSet<&str> = listed.iter().filter_map(|entry| entry["spiffe_id"].as_str()).collect();
    let acts = query(&ca, &["--kind", "control"]);
    let recorded: BTreeSet<&str> = acts
        .iter()
        .filter_map(|act| act["detail"]["spiffe_id"].as_str())
        .collect();
    for id in &answered {
        assert!(there.contains(id.as_str()), "`{id}` was answered, and is not there");
        assert!(
            recorded.contains(id.as_str()),
            "`{id}` was answered, and is not in the log"
        );
    }
    // What is there and has no record of its own is of an act that began and has no end.
    let open = acts.iter().filter(|act| act["stage"] == "begun").count();
    let silent = there.difference(&recorded).count();
    assert!(
        silent <= open,
        "{silent} entries without a record, {open} acts without an end"
    );
    let starts = acts.iter().filter(|act| act["action"] == "Start").count();
    assert_eq!(starts, 7);
    let verified = hoplite(&[
        "audit",
        "verify",
        "--log",
        &ca.dir().join("data/audit").display().to_string(),
    ]);
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn an_auditor_finds_acts_and_a_byte_that_changed() {
    let mut ca = Ca::start();
    assert!(create(&ca, "a").wait_with_output().unwrap().status.success());
    assert_eq!(query(&ca, &[]), Vec::<Value>::new());
    let acts = query(&ca, &["--kind", "control"]);
    assert!(
        acts.iter()
            .any(|act| act["action"] == "CreateEntries" && act["stage"] == "done")
    );
    // How it began is seen only where its end is not.
    assert!(acts.iter().all(|act| act["stage"] != "begun"), "{acts:?}");
    assert_eq!(query(&ca, &["--kind", "decision"]), Vec::<Value>::new());
    let id = acts.last().unwrap()["id"].as_str().unwrap();
    assert_eq!(query(&ca, &["--id", id]).len(), 1);
    // A table that people read.
    let log = ca.dir().join("data/audit");
    let of_log = log.display().to_string();
    let counted = hoplite(&["audit", "query", "--log", &of_log]);
    let said = String::from_utf8(counted.stderr).unwrap();
    assert!(said.contains("2 acts at the CA; `--kind control`"), "{said}");
    let table = hoplite(&["audit", "query", "--log", &of_log, "--kind", "control"]);
    let table = String::from_utf8(table.stdout).unwrap();
    for word in ["RECORD", "CreateEntries", "done", "local user", "local/all"] {
        assert!(table.contains(word), "`{word}` is not in:\n{table}");
    }

    ca.kill();
    let segment = fs::read_dir(&log)
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|file| file.extension().is_some_and(|ending| ending == "seg"))
        .unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(13).position(|window| window == b"CreateEntries").unwrap();
    bytes[at] = b'D';
    fs::write(&segment, bytes).unwrap();
    let verified = hoplite(&["audit", "verify", "--log", &log.display().to_string()]);
    let said = String::from_utf8(verified.stdout).unwrap();
    assert_eq!(verified.status.code(), Some(1), "{said}");
    assert!(said.contains("NOT INTACT") && said.contains("ca-"), "{said}");
    // One byte hides no other record.
    let query = hoplite(&[
        "audit", "query", "--log", &of_log, "--kind", "control", "--output", "json",
    ]);
    assert_eq!(query.status.code(), Some(1), "{query:?}");
    let said = String::from_utf8_lossy(&query.stderr);
    assert!(
        said.contains("is damaged at") && said.contains("what can be read is shown"),
        "{said}"
    );
    let shown: Vec<Value> = serde_json::from_slice(&query.stdout).unwrap();
    assert!(!shown.is_empty(), "{query:?}");
}
