//! What commands print for people and for the programs of others, over a mesh that runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Ca, Up, hoplite, until};

/// Standard output of a tool of the mesh, at a width and perhaps with colour.
fn shown(dir: &Path, columns: &str, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hoplite"))
        .args(arguments)
        .env("HOPLITE_DIR", dir)
        .env("COLUMNS", columns)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_listing_has_four_forms_and_any_width() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    assert_eq!(up.get("/orders/42").status, 200);
    assert_eq!(up.get("/ledger/42").status, 403);

    for listing in [
        &["entry", "list"][..],
        &["agent", "list"],
        &["audit", "query"],
        &["policy", "status"],
        &["policy", "what-can", "spiffe://demo.hoplite/shop/edge"],
        &["policy", "matrix"],
    ] {
        let form = |more: &[&str]| shown(dir.path(), "80", &[listing, more].concat());
        for width in ["80", "120"] {
            let narrow = shown(dir.path(), width, listing);
            let width: usize = width.parse().unwrap();
            assert!(
                narrow.lines().all(|line| line.chars().count() <= width),
                "{listing:?} at {width}\n{narrow}"
            );
            assert!(!narrow.contains('\x1b'), "no colour without a terminal: {narrow:?}");
        }
        let json: Value = serde_json::from_str(&form(&["--output", "json"])).unwrap();
        let rows = json.as_array().unwrap().len();
        assert!(rows > 0, "{listing:?}");
        assert_eq!(form(&["--output", "jsonl"]).lines().count(), rows, "{listing:?}");
        assert_eq!(
            form(&["--output", "csv"]).matches("\r\n").count(),
            rows + 1,
            "{listing:?}"
        );
    }

    // What was refused for want of a permit, and what would permit it.
    assert_eq!(up.get("/ledger/42").status, 403);
    let none = up.tool(&["policy", "suggest", "--from-denials"]);
    assert_eq!(none.status.code(), Some(1), "a forbid is no want of a permit");
    let policies = dir.path().join("policies");
    let without = fs::read_to_string(policies.join("ledger.cedar")).unwrap();
    let opened = without.replace(
        "Hoplite::Path::\"demo.hoplite/shop\"",
        "Hoplite::Path::\"demo.hoplite/nobody\"",
    );
    assert_ne!(without, opened, "the demo's policy has another shape now");
    fs::write(policies.join("ledger.cedar"), opened).unwrap();
    crate::support::until("the ledger permits nobody", || {
        (up.get("/orders/42").status != 200).then_some(())
    });
    let proposal = shown(dir.path(), "80", &["policy", "suggest", "--from-denials"]);
    assert!(
        proposal.contains("principal == Hoplite::Workload::\"spiffe://demo.hoplite/shop/orders\"")
            && proposal.contains("resource == Hoplite::Route::\"ledger:GET /accounts/{id}\""),
        "{proposal}"
    );
    fs::write(policies.join("proposal.cedar"), &proposal).unwrap();
    crate::support::until("what was proposed permits it", || {
        (up.get("/orders/42").status == 200).then_some(())
    });

    // Words that nobody knows.
    let query = |more: &[&str]| {
        let output = up.tool(&[&["audit", "query"], more].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = query(&["--service", "legder"]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("`legder`") && said.contains("did you mean `ledger`?"),
        "{said}"
    );
    let (code, said) = query(&["--principal", "spiffe://demo.hoplite/shop/"]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let (code, said) = query(&["--service", "ledger", "--since", "2099-01-01"]);
    assert_eq!(code, Some(0), "it is known, only not then");
    assert!(said.starts_with("no record matches in the 4 logs below"), "{said}");
    let (code, said) = query(&["--since", "today", "--until", "yesterday"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("--since is after --until"), "{said}");
}

#[test]
fn faults_are_reported_as_pipelines_read_them() {
    let dir = tempfile::tempdir().unwrap();
    let permit = "permit (principal, action, resource);\n";
    fs::write(dir.path().join("a.cedar"), permit.repeat(60)).unwrap();
    fs::write(
        dir.path().join("b.test"),
        "spiffe://x/y GET s / no_permit\nspiffe://x/y GET s / allow\n",
    )
    .unwrap();
    let at = dir.path().to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = hoplite(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let text = run(&["policy", "check", at]);
    assert!(
        text.contains("more: ") && text.contains("in a.cedar; --all shows them"),
        "{text}"
    );
    assert!(run(&["policy", "check", at, "--all"]).lines().count() > text.lines().count());
    let sarif: Value = serde_json::from_str(&run(&["policy", "check", at, "--output", "sarif"])).unwrap();
    let place = &sarif["runs"][0]["results"][0]["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "a.cedar");
    assert_eq!(place["region"]["startLine"], 1);
    let junit = run(&["policy", "check", at, "--output", "junit"]);
    assert!(well_formed(dir.path(), &junit), "{junit}");

    fs::write(
        dir.path().join("a.cedar"),
        "@id(\"a\") @owner(\"x\")\npermit (principal, action, resource);\n",
    )
    .unwrap();
    let junit = run(&["policy", "test", at, "--output", "junit"]);
    assert!(junit.contains("tests=\"2\" failures=\"1\""), "{junit}");
    assert!(well_formed(dir.path(), &junit), "{junit}");
    let sarif: Value = serde_json::from_str(&run(&["policy", "test", at, "--output", "sarif"])).unwrap();
    assert_eq!(sarif["runs"][0]["results"].as_array().map(Vec::len), Some(1));

    // Policies that do not compile are a failed report, not an empty one.
    fs::write(
        dir.path().join("a.cedar"),
        "@id(\"a\") permit (principal == Nobody::\"x\", action, resource);\n",
    )
    .unwrap();
    let junit = run(&["policy", "test", at, "--output", "junit"]);
    assert!(
        junit.contains("failures=\"1\" errors=\"0\"") && junit.contains("a.cedar:1:"),
        "{junit}"
    );
    assert!(well_formed(dir.path(), &junit), "{junit}");
    let sarif: Value = serde_json::from_str(&run(&["policy", "test", at, "--output", "sarif"])).unwrap();
    assert_eq!(sarif["runs"][0]["results"].as_array().map(Vec::len), Some(1));
}

/// Whether an XML parser of somebody else reads it.
fn well_formed(dir: &Path, xml: &str) -> bool {
    let file = dir.join("report.xml");
    fs::write(&file, xml).unwrap();
    let parse = "import sys, xml.etree.ElementTree as t; t.parse(sys.argv[1])";
    let status = Command::new("python3").arg("-c").arg(parse).arg(&file).status();
    status.unwrap().success()
}

#[test]
fn every_leaf_has_an_example_and_a_form_for_programs() {
    // Those that print a document of their own kind, or nothing.
    const OTHERS: [&str; 8] = [
        "up",
        "run",
        "help",
        "schema",
        "completions",
        "man",
        "healthcheck",
        "demo-service",
    ];
    let mut wanting = Vec::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(path) = open.pop() {
        let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let help = String::from_utf8(hoplite(&arguments).stdout).unwrap();
        let commands = help
            .split("Commands:\n")
            .nth(1)
            .map(|list| list.split("\n\n").next().unwrap_or_default());
        let Some(commands) = commands else {
            let is_other = path.last().is_some_and(|name| OTHERS.contains(&name.as_str()));
            if !help.contains("Example") || !(is_other || help.contains("--output")) {
                wanting.push(path.join(" "));
            }
            // Whatever is wrong, a program is told in the form that it asked for.
            if help.contains("--output") {
                let wrong = path
                    .iter()
                    .map(String::as_str)
                    .chain(["--output", "json", "--nonsense"]);
                let failed = hoplite(&wrong.collect::<Vec<_>>());
                let said = failure(&failed, 2);
                assert!(said.contains("--nonsense"), "{path:?}: {said}");
            }
            continue;
        };
        // A name is indented by two; what is further in belongs to the name above.
        for name in commands
            .lines()
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        {
            let name = name.split_whitespace().next().unwrap_or_default();
            if name != "help" {
                open.push(path.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
    }
    assert_eq!(wanting, Vec::<String>::new(), "these lack an example or --output");
}

/// What a program is told of a failure: one object, the last line of standard error. Gives the sentence.
#[track_caller]
fn failure(output: &Output, exit: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(exit), "{text}");
    let last: Value =
        serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("no JSON: {text}"));
    let keys: Vec<&String> = last.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["error", "causes", "exit"], "{text}");
    let part = |key: &str| last.get(key).cloned().unwrap_or_default();
    assert_eq!(part("exit"), exit, "{text}");
    assert!(
        part("causes").as_array().is_some_and(|causes| !causes.is_empty()),
        "{text}"
    );
    part("error").as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_failure_is_json_for_who_asked_for_json() {
    let nowhere = tempfile::tempdir().unwrap();
    let socket = nowhere.path().join("ca.sock").display().to_string();
    let at = nowhere.path().display().to_string();
    for (arguments, exit, part) in [
        (&["entry", "list", "--ca-socket", &socket][..], 1, "no CA answers"),
        (&["entry", "delete", "a", "--ca-socket", &socket], 1, "no CA answers"),
        (&["token", "list", "--ca-socket", &socket], 1, "no CA answers"),
        (&["status", "--ca-socket", &socket], 3, "no CA answers"),
        (&["fleet", "show", "n", "--ca-socket", &socket], 3, "no CA answers"),
        (&["fleet", "drift", "--ca-socket", &socket], 3, "no CA answers"),
        (&["policy", "check", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (&["policy", "diff", "/nowhere/a", "/nowhere/b"], 2, "/nowhere/a"),
        (&["audit", "query", "--dir", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (&["ca", "show", "--dir", &at], 1, "there is no CA"),
        (&["audit", "query", "--since", "noon"], 2, "`noon` is no moment"),
        (
            &["entry", "apply", "/nowhere.toml", "--dry-run", "--owner", "o"],
            2,
            "/nowhere.toml",
        ),
    ] {
        let output = hoplite(&[arguments, &["--output", "json"]].concat());
        let said = failure(&output, exit);
        assert!(said.contains(part), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        // To people it is a sentence.
        let output = hoplite(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("error: ") && !text.contains('{'), "{arguments:?}: {text}");
    }
    let twice = hoplite(&[
        "audit",
        "query",
        "--since",
        "2026-10-25 02:30",
        "--time-zone",
        "Europe/Berlin",
        "--output",
        "json",
    ]);
    assert!(failure(&twice, 2).contains("`2026-10-25T02:30:00+02:00`"));
}

#[test]
fn invitations_are_listed_without_their_secrets_and_taken_back() {
    let ca = Ca::start();
    let made = |arguments: &[&str]| -> Value {
        let output = ca.tool(&[&["token", "create", "--output", "json"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let node = made(&["--node", "n1", "--ttl", "1h"]);
    let operator = made(&["--operator", "ann", "--role", "auditor", "--ttl", "30m"]);
    let short = made(&["--node", "n2", "--ttl", "1s"]);
    let listed = |more: &[&str]| -> Value {
        let output = ca.tool(&[&["token", "list", "--output", "json"], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for made in [&node, &operator, &short] {
            assert!(!text.contains(made["token"].as_str().unwrap()), "a secret: {text}");
        }
        serde_json::from_str(&text).unwrap()
    };
    until("one has had its time", || {
        (listed(&["--open"]).as_array().unwrap().len() == 2).then_some(())
    });
    let all = listed(&[]);
    let seen: Vec<(&str, &str, &Value)> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|token| {
            (
                token["admits"].as_str().unwrap(),
                token["state"].as_str().unwrap(),
                &token["id"],
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("spiffe://test.example/hoplite/agent/n2", "expired", &short["id"]),
            ("spiffe://test.example/hoplite/operator/ann", "open", &operator["id"]),
            ("spiffe://test.example/hoplite/agent/n1", "open", &node["id"]),
        ]
    );
    let text = String::from_utf8(ca.tool(&["token", "list"]).stdout).unwrap();
    assert!(
        text.starts_with("ID ") && text.contains(node["id"].as_str().unwrap()),
        "{text}"
    );

    // One that is not there is said, and the others are taken back all the same.
    let ids = [
        node["id"].as_str().unwrap(),
        "0011223344556677",
        operator["id"].as_str().unwrap(),
    ];
    let output = ca.tool(&[&["token", "delete", "--output", "json"], &ids[..]].concat());
    assert!(failure(&output, 1).contains("`0011223344556677`: there is no such invitation"));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    let deleted: Vec<bool> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["deleted"] == true)
        .collect();
    assert_eq!(deleted, [true, false, true], "{rows}");
    assert_eq!(listed(&["--open"]).as_array().unwrap().len(), 0);
    // Nobody joins with it any more, and what was used is not taken back: that would keep nobody out.
    let home = tempfile::tempdir().unwrap();
    let join = |made: &Value, name: &str| {
        let at = home.path().join(name).display().to_string();
        hoplite(&["join", made["invitation"].as_str().unwrap(), "--dir", &at])
    };
    let refused = join(&node, "n1");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("not known here"),
        "{refused:?}"
    );
    let used = made(&["--node", "n3"]);
    let joined = join(&used, "n3");
    assert_eq!(joined.status.code(), Some(0), "{joined:?}");
    let output = ca.tool(&["token", "delete", used["id"].as_str().unwrap(), "--output", "json"]);
    assert!(failure(&output, 1).contains("`hoplite agent ban spiffe://test.example/hoplite/agent/n3` does"));
    let all = listed(&[]);
    let states: Vec<&str> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["state"].as_str().unwrap())
        .collect();
    assert!(states.contains(&"used"), "{states:?}");
}
