//! Registrations as an operator keeps them: one by one, changed in place, and like a file.

use std::fmt::Write;
use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{Ca, Up};

const NODE: &str = "spiffe://test.example/hoplite/agent/n1";

/// Runs a tool, expects its exit code, and gives what it said on both outputs.
#[track_caller]
fn said(ca: &Ca, arguments: &[&str], code: i32) -> String {
    let output = ca.tool(arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

#[track_caller]
fn json(ca: &Ca, arguments: &[&str]) -> Value {
    let output = ca.tool(&[arguments, &["--output", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
}

/// `[[entry]]`s of `/w0`, `/w1`…, each with what is added to it.
fn file(range: std::ops::Range<usize>, more: &str) -> String {
    let mut text = String::new();
    for n in range {
        let _ = write!(
            text,
            "[[entry]]\nspiffe_id = \"spiffe://test.example/w{n}\"\nparent = \"{NODE}\"\nselectors = [\"unix:uid:{n}\"]\n{more}\n"
        );
    }
    text
}

#[test]
fn an_entry_that_differs_is_a_conflict_and_can_be_updated() {
    let ca = Ca::start();
    let a = [
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://test.example/a",
        "--parent",
        NODE,
    ];
    let a = [&a[..], &["--selector", "unix:uid:1"]].concat();
    let text = said(&ca, &a, 0);
    assert!(
        text.contains(&format!("warning: no agent `{NODE}` has joined")),
        "{text}"
    );
    assert!(said(&ca, &a, 3).contains("is registered already, the same way"));
    let id = json(&ca, &["entry", "list"])[0]["id"].as_str().unwrap().to_owned();

    let asked = ["--ttl", "10m", "--dns-name", "a.internal", "--hint", "it's"];
    let text = said(&ca, &[&a[..], &asked].concat(), 1);
    for part in [
        "ttl: default → 600s",
        "dns_names: none → a.internal",
        "hint: none → `it's`",
        &format!(r"`hoplite entry update {id} --ttl 600s --dns-name a.internal --hint 'it'\''s'`"),
    ] {
        assert!(text.contains(part), "`{part}` is missing from {text}");
    }
    let shown = |id: &str| -> Value {
        serde_json::from_str(&said(&ca, &["entry", "show", "--output", "json", id], 0)).unwrap()
    };
    assert_eq!(
        (&shown(&id)["ttl_seconds"], &shown(&id)["hint"]),
        (&json!(0), &json!(""))
    );

    let text = said(&ca, &[&["entry", "update", &id], &asked[..]].concat(), 0);
    assert!(text.contains("ttl: default → 600s"), "{text}");
    let now = shown(&id);
    let found = (&now["ttl_seconds"], &now["dns_names"], &now["hint"]);
    assert_eq!(found, (&json!(600), &json!(["a.internal"]), &json!("it's")));
    // What was asked for is what there is; what is not named stays.
    assert!(said(&ca, &[&a[..], &asked].concat(), 3).contains("registered already"));
    said(&ca, &["entry", "update", &id, "--selector", "unix:uid:2"], 0);
    assert_eq!(shown(&id)["dns_names"], json!(["a.internal"]));
    said(&ca, &["entry", "update", &id, "--no-dns-names", "--ttl", "default"], 0);
    assert_eq!(
        (&shown(&id)["dns_names"], &shown(&id)["ttl_seconds"]),
        (&json!([]), &json!(0))
    );
    assert!(said(&ca, &["entry", "update", &id, "--ttl", "default"], 3).contains("nothing was changed"));

    assert!(said(&ca, &["entry", "update", &id], 2).contains("--ttl"));
    assert!(
        said(&ca, &["entry", "update", "3f2a", "--hint", "h"], 1)
            .contains("`3f2a`: there is no registration of that id")
    );
    assert!(said(&ca, &["entry", "update", &id, "--ttl", "500ms"], 2).contains("whole seconds"));
    // Its first selectors are free, and then taken.
    said(&ca, &a, 0);
    let text = said(&ca, &["entry", "update", &id, "--selector", "unix:uid:1"], 1);
    assert!(
        text.contains("has this SPIFFE ID, parent and selectors already"),
        "{text}"
    );
}

#[test]
fn a_file_is_applied_once_and_then_changes_nothing() {
    let ca = Ca::start();
    let path = ca.dir().join("entries.toml");
    let at = path.display().to_string();
    let apply = |more: &[&str], code: i32| said(&ca, &[&["entry", "apply", &at], more].concat(), code);
    let count = |owner: &str| {
        let listed = json(&ca, &["entry", "list", "--owner", owner]);
        listed.as_array().unwrap().len()
    };
    fs::write(&path, file(0..3, "")).unwrap();
    let text = apply(&["--owner", "infra", "--dry-run"], 1);
    assert!(
        text.contains("3 changes would be made: 3 created")
            && text.contains("create  spiffe://test.example/w2  unix:uid:2"),
        "{text}"
    );
    assert_eq!(count("infra"), 0, "a dry run does nothing");
    let text = apply(&["--owner", "infra"], 0);
    assert!(text.contains("3 changes, in one commit: 3 created"), "{text}");
    assert!(apply(&["--owner", "infra"], 0).contains("0 changes: what is registered is as the file says (3 entries)"));
    assert!(apply(&["--owner", "infra", "--dry-run", "--prune"], 0).contains("0 changes"));

    // One differs, one is new, one is gone; another owner's and nobody's stay.
    let other = [
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://test.example/o",
        "--parent",
        NODE,
        "--selector",
        "unix:uid:1",
    ];
    said(&ca, &[&other[..], &["--owner", "web"]].concat(), 0);
    fs::write(&path, file(0..1, "") + &file(1..2, "ttl = \"10m\"") + &file(3..4, "")).unwrap();
    let plan = json(
        &ca,
        &["entry", "apply", &at, "--owner", "infra", "--prune", "--dry-run"],
    );
    assert_eq!(
        (&plan["changes"], &plan["commits"], &plan["unchanged"]),
        (&json!(3), &json!(0), &json!(1))
    );
    assert_eq!(plan["updated"][0]["differences"], json!(["ttl: default → 600s"]));
    assert_eq!(plan["deleted"][0]["spiffe_id"], json!("spiffe://test.example/w2"));
    assert_eq!(plan["unknown_parents"], json!([NODE]));
    let text = apply(&["--owner", "infra", "--prune"], 0);
    assert!(
        text.contains("3 changes, in one commit: 1 created, 1 updated, 1 deleted, 1 unchanged"),
        "{text}"
    );
    assert_eq!((count("infra"), count("web")), (3, 1));
    assert!(apply(&["--owner", "infra", "--prune"], 0).contains("0 changes"));

    // What is refused is refused as a whole, and says where.
    fs::write(&path, file(0..5, "") + &file(7..8, "ttl = \"1s\"")).unwrap();
    let text = apply(&["--owner", "infra"], 1);
    assert!(
        text.contains("entry 6, `spiffe://test.example/w7`: `x509_ttl_seconds`") && text.contains("nothing was done"),
        "{text}"
    );
    apply(&["--owner", "infra", "--dry-run"], 2);
    assert_eq!(count("infra"), 3);
    fs::write(&path, file(0..2, "ttl = \"20m\"")).unwrap();
    let text = apply(&["--owner", "web"], 1);
    assert!(text.contains("belongs to `infra`"), "{text}");
    fs::write(&path, file(4..5, "") + &file(4..5, "")).unwrap();
    assert!(apply(&[], 1).contains("twice, first as number 1"));

    // A file that was cut off deletes nothing.
    fs::write(&path, "").unwrap();
    assert!(apply(&["--owner", "infra", "--prune"], 1).contains("write `entry = []`"));
    assert!(apply(&["--prune"], 2).contains("--owner"));
    fs::write(&path, "entry = []").unwrap();
    assert!(apply(&["--owner", "infra", "--prune"], 0).contains("3 deleted"));
    assert_eq!((count("infra"), count("web")), (0, 1));
}

#[test]
fn ten_thousand_entries_are_one_commit_and_more_go_in_parts() {
    let ca = Ca::start();
    let path = ca.dir().join("entries.toml");
    let at = path.display().to_string();
    let apply = |what: &str| {
        let began = Instant::now();
        let text = said(&ca, &["entry", "apply", &at, "--owner", "infra", "--prune"], 0);
        eprintln!("{what}: {:?}", began.elapsed());
        text
    };
    fs::write(&path, file(0..2_500, "")).unwrap();
    assert!(apply("2 500 created").contains("2 500 changes, in one commit"));
    fs::write(&path, file(10_000..20_000, "")).unwrap();
    let text = apply("10 000 created, 2 500 deleted");
    assert!(
        text.contains("12 500 changes, in one commit: 10000 created, 0 updated, 2500 deleted"),
        "{text}"
    );
    assert!(apply("10 000 unchanged").contains("as the file says (10 000 entries)"));
    fs::write(&path, file(10_000..20_000, "dns_names = [\"a\"]")).unwrap();
    assert!(apply("10 000 updated").contains("10 000 changes, in one commit: 0 created, 10000 updated"));

    // More bytes than a commit takes.
    let selectors: Vec<String> = (0..20)
        .map(|n| format!("\"unix:path:/opt/{n}/{}\"", "x".repeat(190)))
        .collect();
    let mut text = String::new();
    for n in 0..2_500 {
        let _ = write!(
            text,
            "[[entry]]\nspiffe_id = \"spiffe://test.example/long/{n}\"\nparent = \"{NODE}\"\nselectors = [{}]\n",
            selectors.join(", ")
        );
    }
    fs::write(&path, text).unwrap();
    let text = apply("2 500 long ones created, 10 000 deleted");
    assert!(
        text.contains("too much for one commit: they go in parts of at most 2000"),
        "{text}"
    );
    assert!(
        text.contains("12 500 changes, in 13 commits: 2500 created, 0 updated, 10000 deleted"),
        "{text}"
    );
    assert!(apply("2 500 long ones unchanged").contains("0 changes"));
}

#[test]
fn why_a_process_has_an_identity_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let why = |pid: u32, code: i32| {
        let output = up.tool(&["entry", "why", "--pid", &pid.to_string()]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let orders = up.processes()["orders"];
    let text = why(orders, 0);
    assert!(text.contains("fits    spiffe://demo.hoplite/shop/orders"), "{text}");
    assert!(text.contains("launch:name:orders"), "{text}");
    // Of the same user and the same program, and not what was launched.
    let text = why(up.pid(), 1);
    for part in [
        "nearly  spiffe://demo.hoplite/shop/orders",
        "it demands launch:name:orders, which is not known of the process",
        "no entry fits, of 3",
    ] {
        assert!(text.contains(part), "`{part}` is missing from {text}");
    }
    let found = up.json(&["entry", "why", "--pid", &orders.to_string()]);
    assert_eq!(
        (&found["candidates"][0]["fits"], &found["entries"]),
        (&json!(true), &json!(3))
    );
    let output = up.tool(&["entry", "why", "--pid", "2147483647"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no process 2147483647"));
    let status = up.json(&["agent", "status"]);
    assert_eq!((&status["entries"], &status["without_svid"]), (&json!(3), &json!(0)));
    assert_eq!(status["refused"]["unknown secret"], json!(0));
}
