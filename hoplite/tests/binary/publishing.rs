//! Signed policy in a running mesh: published, tried as a shadow, explained, taken back, and overridden for an hour.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Up, hoplite, until};

const SECURITY: &str = "policies/security.cedar";
/// The demo's table, and one that holds whatever is changed here.
const TABLE: &str = "policies/demo.test";
const ANYTHING: &str = "spiffe://demo.hoplite/visitor GET edge /orders/42 allow\n";

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
        text.contains("test     FAILED") && text.contains("demo.test:"),
        "{text}"
    );
    fs::write(up.dir.join(TABLE), ANYTHING).unwrap();
    let text = said(&up, &["policy", "publish", &policies], 1);
    let removed = ["--accept-removed", "security/edge-stays-out-of-the-ledger"];
    assert!(
        text.contains("compare  FAILED") && text.contains(&format!("{} '{}'", removed[0], removed[1])),
        "{text}"
    );
    let text = said(&up, &[&["policy", "publish", &policies], &removed[..]].concat(), 1);
    assert!(
        text.contains("--accept 'allow spiffe://demo.hoplite/shop/edge × ledger:GET /accounts/{id}"),
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
    let accept = ["--accept", "allow spiffe://demo.hoplite/shop/edge × ledger:*"];
    said(
        &up,
        &[&["policy", "publish", &policies], &accept[..], &removed[..]].concat(),
        0,
    );
    in_force(&up, 3);
    assert_eq!(up.get("/ledger/42").status, 200);
    let text = said(&up, &["policy", "rollback"], 1);
    let back = "deny spiffe://demo.hoplite/shop/edge × ledger:GET /accounts/{id}";
    assert!(text.contains(&format!("--accept '{back}'")), "{text}");
    said(&up, &["policy", "rollback", "--accept", back], 0);
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
    // Twice in a row is not forward again.
    let text = said(&up, &["policy", "rollback"], 1);
    assert!(text.contains("content is that of revision 1"), "{text}");

    // Why was it refused?
    let text = said(&up, &["policy", "explain", id], 0);
    assert!(text.contains("security/edge-stays-out-of-the-ledger"), "{text}");
}

#[test]
fn a_publication_waits_until_every_proxy_follows() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let policies = up.dir.join("policies").display().to_string();
    let publish = |more: &[&str], code: i32| said(&up, &[&["policy", "publish", &policies], more].concat(), code);
    assert_eq!(up.get("/ledger/42").status, 403);
    until("the CA has heard of every proxy", || {
        (up.json(&["status"])["policy"]["proxies"] == 3).then_some(())
    });
    let text = publish(&["--wait"], 0);
    assert!(
        text.contains("wait     3 of 3 proxies on 1 node enforce revision 1\n"),
        "{text}"
    );
    let status = up.json(&["policy", "status"]);
    assert!(
        status
            .as_array()
            .unwrap()
            .iter()
            .all(|proxy| proxy["policy"]["bundle_revision"] == 1),
        "{status:#}"
    );

    // The same again is no news.
    let text = publish(&["--wait"], 0);
    assert!(
        text.contains("nothing changed: revision 1") && text.contains("3 of 3 proxies"),
        "{text}"
    );
    let same = up.json(&["policy", "publish", &policies]);
    assert_eq!(
        (&same["ok"], &same["changed"], &same["revision"]),
        (&json!(true), &json!(false), &json!(1))
    );
    assert_eq!(up.json(&["policy", "history"]).as_array().unwrap().len(), 1);
    let renewed = up.json(&["policy", "publish", &policies, "--renew", "--wait"]);
    assert_eq!((&renewed["changed"], &renewed["revision"]), (&json!(true), &json!(2)));
    assert_eq!(
        renewed["proxies"],
        json!({"known": 3, "follow": 3, "behind": [], "nodes": 1, "nodes_not_heard": 0})
    );
    let text = publish(&["--shadow", "--wait"], 0);
    assert!(text.contains("3 of 3 proxies on 1 node try revision 3"), "{text}");
    let text = publish(&["--shadow"], 0);
    assert!(text.contains("nothing changed: revision 3"), "{text}");

    // Who is behind is named, and the code says so.
    let (edge, gone) = (up.dir.join("run/edge.sock"), up.dir.join("run/gone.sock"));
    let (edge, gone) = (edge.to_str().unwrap(), gone.to_str().unwrap());
    let text = publish(
        &["--renew", "--wait", "--timeout", "2s", "--proxy", edge, "--proxy", gone],
        3,
    );
    let behind = "1 of 2 proxies enforce revision 4; behind after 2s: gone (away";
    assert!(
        text.contains(behind) && text.contains("revision 4 is with the CA"),
        "{text}"
    );
    let text = publish(&["--wait", "--timeout", "1s", "--proxy", gone], 3);
    assert!(
        text.contains("no proxy runs here, so nobody enforces it yet: gone"),
        "{text}"
    );
}

#[test]
fn the_first_revision_takes_no_forbid_away_unseen() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let (policies, other) = (up.dir.join("policies"), dir.path().join("other"));
    fs::create_dir(&other).unwrap();
    for file in fs::read_dir(&policies)
        .unwrap()
        .flatten()
        .filter(|file| file.file_name() != "security.cedar")
    {
        fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    fs::write(other.join("demo.test"), ANYTHING).unwrap();
    let other = other.display().to_string();
    let publish = |more: &[&str], code: i32| {
        said(
            &up,
            &[&["policy", "publish", &other, "--accept-unreplayed"], more].concat(),
            code,
        )
    };
    // No request has met the forbid, and nothing was published that has it.
    let text = publish(&[], 1);
    let local = "local    edge enforces another set from its own directory, with 1 forbid that this one lacks";
    let accept = "--accept-removed 'security/edge-stays-out-of-the-ledger'";
    assert!(
        text.contains(local) && text.contains("compare  FAILED") && text.contains(accept),
        "{text}"
    );
    publish(&["--accept-removed", "security/*"], 0);
}

#[test]
fn a_forbid_that_nobody_can_read_stays_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let policies = up.dir.join("policies");
    let (shown, file) = (policies.display().to_string(), up.dir.join(SECURITY));
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(up.get("/ledger/42").status, 403);
    let not_applied = |what: &str| {
        until("the proxies say what they do not apply", || {
            up.tool(&["policy", "status"])
                .stdout
                .windows(what.len())
                .any(|part| part == what.as_bytes())
                .then_some(())
        });
        assert_eq!(up.tool(&["policy", "status"]).status.code(), Some(1));
        assert_eq!(up.get("/ledger/42").status, 403, "the forbid is still there");
    };
    let refused = |what: &str| {
        for verb in ["check", "publish", "replay"] {
            let code = if verb == "replay" { 2 } else { 1 };
            let output = if verb == "check" {
                hoplite(&["policy", verb, &shown])
            } else {
                up.tool(&["policy", verb, &shown])
            };
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            assert!(
                output.status.code() == Some(code) && text.contains(what),
                "{verb}: {text}"
            );
        }
    };

    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("gone.cedar", &file).unwrap();
    let dangling = "`security.cedar` is a link to `gone.cedar`";
    not_applied(dangling);
    refused(dangling);
    fs::remove_file(&file).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(&file).status().unwrap();
    assert!(pipe.success());
    not_applied("`security.cedar` is a pipe and no file; remove it");
    refused("`security.cedar` is a pipe");
    fs::remove_file(&file).unwrap();
    fs::write(&file, &text).unwrap();
    until("the directory is good again", || {
        up.tool(&["policy", "status"]).status.success().then_some(())
    });

    // A proxy names what an editor leaves; people mend it.
    fs::write(policies.join("more.cedar.bak"), &text).unwrap();
    fs::write(policies.join("notes.md"), "").unwrap();
    refused("`more.cedar.bak` looks like a policy and is not read");
    up.sees("`more.cedar.bak` looks like a policy and is not read");
    fs::remove_file(policies.join("more.cedar.bak")).unwrap();
    let said = hoplite(&["policy", "check", &shown]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.status.success() && text.contains("beside: `notes.md` is no policy"),
        "{text}"
    );
}

/// `policy grant create` for the edge at the ledger, signed by alice.
fn grant(up: &Up, ticket: &str, duration: &str, file: &str) -> Value {
    let (who, key) = ("spiffe://demo.hoplite/shop/edge", key(up, "alice"));
    let create = ["policy", "grant", "create", "--out", file, "--ticket", ticket];
    let what = ["--reason", "stuck", "--who", who, "--service", "ledger"];
    up.json(&[&create[..], &what, &["--for", duration, "--key", &key]].concat())
}

fn approve<'a>(file: &'a str, key: &'a str) -> [&'a str; 7] {
    ["policy", "grant", "approve", "--yes", file, "--key", key]
}

fn key(up: &Up, name: &str) -> String {
    up.dir.join(format!("keys/{name}.key")).display().to_string()
}

/// Whether every proxy says that a grant is in force, or none does.
fn granted(up: &Up, expected: bool) {
    until("what the proxies say of grants", || {
        let status = up.json(&["policy", "status"]);
        let mut proxies = status.as_array()?.iter();
        let all = proxies.all(|proxy| (proxy.pointer("/policy/grants") != Some(&json!([]))) == expected);
        all.then_some(())
    });
}

#[test]
fn two_people_break_the_glass_and_a_forbid_still_holds() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let policies = up.dir.join("policies").display().to_string();
    assert_eq!(up.get("/ledger/42").status, 403);
    let published = up.json(&["policy", "publish", &policies]);
    assert_eq!((&published["ok"], &published["revision"]), (&json!(true), &json!(1)));
    in_force(&up, 1);
    let file = dir.path().join("inc.grant").display().to_string();
    grant(&up, "INC-1", "1h", &file);
    said(&up, &approve(&file, &key(&up, "bob")), 0);
    granted(&up, true);
    assert_eq!(
        up.get("/ledger/42").status,
        403,
        "security forbids it to the edge, whoever grants what"
    );
    let ended = up.json(&["policy", "grant", "revoke", "inc-1"]);
    assert_eq!(ended, json!({"id": "inc-1", "revoked": true}));
    granted(&up, false);
}

#[test]
fn a_grant_is_loud_and_ends_by_itself() {
    const LASTS: &str = "12s";
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let policies = up.dir.join("policies").display().to_string();
    // Nothing forbids it to the edge, and nothing permits it.
    let only_orders = fs::read_to_string(up.dir.join("policies/ledger.cedar"))
        .unwrap()
        .replace(
            "principal in Hoplite::Path::\"demo.hoplite/shop\"",
            "principal == Hoplite::Workload::\"spiffe://demo.hoplite/shop/orders\"",
        );
    fs::write(up.dir.join("policies/ledger.cedar"), only_orders).unwrap();
    fs::write(up.dir.join(SECURITY), "// nothing yet\n").unwrap();
    fs::write(up.dir.join(TABLE), ANYTHING).unwrap();
    // The proxies may not have seen yet that the directory forbids nothing.
    let publish = ["policy", "publish", &policies, "--accept-removed", "security/*"];
    let text = said(&up, &publish, 1);
    assert!(text.contains("the logs have no decision since"), "{text}");
    said(&up, &[&publish[..], &["--accept-unreplayed"]].concat(), 0);
    in_force(&up, 1);
    assert_eq!(up.get("/ledger/42").status, 403);

    // One person asks …
    let file = dir.path().join("inc.grant").display().to_string();
    let asked = grant(&up, "INC-2", LASTS, &file);
    assert_eq!(
        (&asked["signed_by"], &asked["in_force"]),
        (&json!(["alice"]), &json!(false))
    );
    let text = said(&up, &approve(&file, &key(&up, "alice")), 1);
    assert!(text.contains("takes a second person"), "{text}");
    assert_eq!(
        up.json(&["policy", "grant", "list"]),
        json!([]),
        "one person gives nothing"
    );
    // … and another agrees.
    let approve = approve(&file, &key(&up, "bob")).map(str::to_owned);
    let given = up.json(&approve.each_ref().map(String::as_str));
    assert_eq!(
        (&given["id"], &given["signed_by"]),
        (&json!("inc-2"), &json!(["alice", "bob"]))
    );
    until("the grant lets it through", || {
        (up.get("/ledger/42").status == 200).then_some(())
    });
    up.sees("BREAK-GLASS: a grant is in force");
    up.sees("BREAK-GLASS: a grant let a request through");
    assert!(said(&up, &["policy", "status"], 0).contains("BREAK-GLASS"));
    assert!(said(&up, &["policy", "grant", "list"], 0).contains("IN FORCE"));
    let records = up.json(&["audit", "query", "--outcome", "allow"]);
    let by_grant = json!(["break-glass/inc-2"]);
    assert!(
        records
            .as_array()
            .unwrap()
            .iter()
            .any(|record| record["determining"] == by_grant)
    );

    until("the grant has ended", || {
        (up.get("/ledger/42").status == 403).then_some(())
    });
    up.sees("BREAK-GLASS: a grant has ended");
    granted(&up, false);
    assert!(!said(&up, &["policy", "status"], 0).contains("BREAK-GLASS"));
    assert_eq!(up.json(&["policy", "grant", "list"]), json!([]));
}

#[test]
fn what_scripts_are_told_of_a_publication() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let policies = up.dir.join("policies").display().to_string();
    assert_eq!(up.get("/ledger/42").status, 403);
    let first = up.json(&["policy", "publish", &policies]);
    let steps: Vec<_> = first["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| &step["step"])
        .collect();
    assert_eq!(steps, ["check", "test", "compare", "replay", "sign", "publish"]);
    assert_eq!(
        (&first["stage"], &first["signed_by"]),
        (&json!("live"), &json!("alice"))
    );
    assert!(first["bytes"].as_u64().unwrap() > 0 && first["manifest"].is_string());
    in_force(&up, 1);
    assert_eq!(up.get("/ledger/42").status, 403);

    // What the proxies have counted is found without being told where they are.
    let unused = up.json(&["policy", "unused", &policies]);
    assert_eq!(unused["proxies"], json!(["edge", "ledger", "orders"]));
    assert_eq!(unused["away"], json!([]));
    let listed = |id: &str| {
        unused["unused"]
            .as_array()
            .unwrap()
            .iter()
            .any(|policy| policy["id"] == id)
    };
    assert!(
        listed("ledger/orders-book") && !listed("security/edge-stays-out-of-the-ledger"),
        "{unused:#}"
    );
    assert!(said(&up, &["policy", "unused", &policies], 0).contains("3 proxies"));

    fs::write(up.dir.join(SECURITY), "// nothing\n").unwrap();
    fs::write(up.dir.join(TABLE), ANYTHING).unwrap();
    let forbid = json!(["security/edge-stays-out-of-the-ledger"]);
    let lost = up.json(&["policy", "publish", &policies]);
    assert_eq!((&lost["ok"], &lost["unaccepted_removed"]), (&json!(false), &forbid));
    assert_eq!(lost["difference"]["lost_forbids"][0]["id"], forbid[0]);
    let flips = up.json(&["policy", "publish", &policies, "--accept-removed", "security/*"]);
    assert_eq!((&flips["ok"], &flips["revision"]), (&json!(false), &Value::Null));
    let group = json!(["allow spiffe://demo.hoplite/shop/edge × ledger:GET /accounts/{id}"]);
    assert_eq!((&flips["unaccepted"], &flips["replay"]["flips"]), (&group, &json!(2)));
    fs::write(up.dir.join(SECURITY), "permit (principal, action, resource);\n").unwrap();
    let faults = up.json(&["policy", "publish", &policies]);
    assert_eq!(
        (&faults["ok"], &faults["faults"][0]["line"]),
        (&json!(false), &json!(1))
    );
    let history = up.json(&["policy", "history"]);
    assert_eq!(history.as_array().unwrap().len(), 1, "nothing more was published");
    let back = up.json(&["policy", "rollback", "1"]);
    assert_eq!(
        (&back["ok"], &back["changed"], &back["revision"], &back["content_of"]),
        (&json!(true), &json!(false), &json!(1), &json!(1))
    );
    assert_eq!(up.json(&["policy", "clear-shadow"]), json!({"cleared": false}));
}
