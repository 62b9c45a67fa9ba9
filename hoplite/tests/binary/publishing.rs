//! Signed policy in a running mesh: published, tried as a shadow, explained, taken back, and overridden for an hour.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Up, until};

const SECURITY: &str = "policies/security.cedar";

/// The bundle revision of every proxy, once all have the same.
fn in_force(up: &Up, revision: u64) {
    until(&format!("revision {revision} is in force"), || {
        let status = up.json(&["policy", "status"]);
        let all = status
            .as_array()
            .unwrap()
            .iter()
            .all(|proxy| proxy.pointer("/policy/bundle_revision") == Some(&json!(revision)));
        all.then_some(())
    });
}

fn said(up: &Up, arguments: &[&str], code: i32) -> String {
    let output = up.tool(arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

#[test]
fn a_change_is_shown_before_it_is_made_and_can_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let policies = up.dir.join("policies").display().to_string();
    let file = up.dir.join(SECURITY);
    let original = fs::read_to_string(&file).unwrap();
    assert_eq!(up.get("/orders/42").status, 200);
    let refused: Value = serde_json::from_str(&up.get("/ledger/42").body).unwrap();
    let id = refused["decision"].as_str().unwrap();

    // What is in force becomes revision 1, and nothing flips.
    let text = said(&up, &["policy", "publish", &policies, "--note", "the first"], 0);
    assert!(text.contains("revision 1"), "{text}");
    in_force(&up, 1);
    assert_eq!((up.get("/orders/42").status, up.get("/ledger/42").status), (200, 403));

    // A change that would open the ledger is stopped by what happened before.
    let opened = original.lines().map(|line| format!("// {line}\n")).collect::<String>();
    fs::write(&file, opened).unwrap();
    let text = said(&up, &["policy", "publish", &policies], 1);
    assert!(
        text.contains("spiffe://demo.hoplite/shop/edge × ledger:GET /accounts/{id}"),
        "{text}"
    );
    assert!(said(&up, &["policy", "replay", &policies], 1).contains("denied → allowed"));
    assert_eq!(up.get("/ledger/42").status, 403, "the directory no longer counts");

    // Tried as a shadow: the answer stays, the record says what it would have been.
    said(&up, &["policy", "publish", &policies, "--shadow"], 0);
    until("a record tells of the shadow", || {
        assert_eq!(up.get("/ledger/42").status, 403);
        let records = up.json(&["audit", "query", "--shadow-differs"]);
        let record = records.as_array()?.first()?.clone();
        assert_eq!(
            (&record["outcome"], &record["shadow_outcome"]),
            (&json!("forbid"), &json!("allow"))
        );
        Some(())
    });
    said(&up, &["policy", "clear-shadow"], 0);

    // Accepted by name, and back.
    let accept = ["--accept", "spiffe://demo.hoplite/shop/edge × ledger:*"];
    said(&up, &[&["policy", "publish", &policies], &accept[..]].concat(), 0);
    in_force(&up, 3);
    assert_eq!(up.get("/ledger/42").status, 200);
    said(&up, &["policy", "rollback"], 0);
    in_force(&up, 4);
    assert_eq!(up.get("/ledger/42").status, 403);
    let history = up.json(&["policy", "history"]);
    let revisions: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| policy["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(revisions, [4, 3, 2, 1]);

    // Why was it refused?
    let text = said(&up, &["policy", "explain", id], 0);
    assert!(text.contains("security/edge-stays-out-of-the-ledger"), "{text}");
}

#[test]
fn two_people_break_the_glass_and_a_forbid_still_holds() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let policies = up.dir.join("policies").display().to_string();
    said(&up, &["policy", "publish", &policies], 0);
    in_force(&up, 1);
    let file = dir.path().join("inc.grant").display().to_string();
    let key = |name: &str| up.dir.join(format!("keys/{name}.key")).display().to_string();
    let create = |service: &str, ticket: &str, file: &str| {
        let who = "spiffe://demo.hoplite/shop/edge";
        let arguments = [
            "policy",
            "grant",
            "create",
            "--out",
            file,
            "--ticket",
            ticket,
            "--reason",
            "stuck",
            "--who",
            who,
            "--service",
            service,
            "--for",
            "1h",
            "--key",
            &key("alice"),
        ];
        said(&up, &arguments, 0)
    };
    create("ledger", "INC-1", &file);
    said(
        &up,
        &["policy", "grant", "approve", "--yes", &file, "--key", &key("alice")],
        1,
    );
    said(
        &up,
        &["policy", "grant", "approve", "--yes", &file, "--key", &key("bob")],
        0,
    );
    until("the grant is in force", || {
        let status = up.json(&["policy", "status"]);
        let all = status
            .as_array()
            .unwrap()
            .iter()
            .all(|proxy| proxy["policy"]["grants"] != json!([]));
        all.then_some(())
    });
    assert_eq!(
        up.get("/ledger/42").status,
        403,
        "security forbids it to the edge, whoever grants what"
    );
    assert!(said(&up, &["policy", "status"], 0).contains("BREAK-GLASS"));
}
