//! A change of policy as people make it: explained, replayed, refused, accepted, published, taken back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use hoplite_audit::{Class, Options, Outcome, Phase, Record, Recorder};
use serde_json::Value;

use crate::support::{hoplite, until};

const READS: &str = "@id(\"ledger/reads\")\n@owner(\"team-ledger\")\npermit (\n  principal in Hoplite::Path::\"prod.acme/shop\",\n  \
                     action in [Hoplite::Action::\"read\"],\n  resource in Hoplite::Service::\"ledger\"\n)";
const ROUTES: &str = "[ledger]\nroutes = [\"GET /accounts/{id}\"]\n";
const TABLE: &str = "/shop/web   GET ledger /accounts/7   allow by ledger/reads\n";
const WEB: &str = "spiffe://prod.acme/shop/web";

/// A directory with two keys, policies, one logged decision and a CA that trusts both keys.
struct Place {
    dir: tempfile::TempDir,
    ca: Child,
    /// The public halves of both keys.
    signers: [String; 2],
    /// The id of the one decision in the log.
    decision: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let signers = ["alice", "bob"].map(|name| {
            let created = hoplite(&["policy", "key", "create", at(&format!("{name}.key")).to_str().unwrap()]);
            assert!(created.status.success(), "{created:?}");
            String::from_utf8(created.stdout).unwrap().trim().to_owned()
        });
        fs::write(
            at("ca.toml"),
            format!(
                "founds = true\ntrust_domain = \"prod.acme\"\ndata_dir = {:?}\nlisten = \"127.0.0.1:0\"\nadmin_socket = {:?}\n\
                 policy_signers = [{}]\n",
                at("ca"),
                at("ca.sock"),
                signers.each_ref().map(|signer| format!("{signer:?}")).join(", ")
            ),
        )
        .unwrap();
        let mut record = read_by(WEB);
        record.determining = vec!["ledger/reads".to_owned()];
        write_log(&at("audit/ledger"), &mut [&mut record]);
        let decision = record.id.to_string();
        let ca = Command::new(env!("CARGO_BIN_EXE_hoplite"))
            .args(["ca", "run", "--config"])
            .arg(at("ca.toml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("the CA's socket", || at("ca.sock").exists().then_some(()));
        Self {
            dir,
            ca,
            signers,
            decision,
        }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// A directory of this one policy.
    fn policies(&self, name: &str, policy: &str, table: Option<&str>) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("ledger.cedar"), policy).unwrap();
        fs::write(dir.join("routes.toml"), ROUTES).unwrap();
        if let Some(table) = table {
            fs::write(dir.join("ledger.test"), format!("[trust-domain prod.acme]\n{table}")).unwrap();
        }
        dir
    }

    /// Exit code, and all that was said.
    fn policy(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let place = ["--dir", self.dir.path().to_str().unwrap()];
        let output = hoplite(&[&["policy"], arguments, &place].concat());
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!said.contains("panicked"), "{said}");
        (output.status.code(), said)
    }

    /// By somebody who knows both signers.
    fn publish(&self, dir: &Path, key: &str, more: &[&str]) -> (Option<i32>, String) {
        self.publish_alone(dir, key, &[&["--trust", &self.signers.join(",")], more].concat())
    }

    fn publish_alone(&self, dir: &Path, key: &str, more: &[&str]) -> (Option<i32>, String) {
        let (key, socket) = (self.at(key), self.at("ca.sock"));
        let publish = ["publish", dir.to_str().unwrap(), "--key", &key, "--ca-socket", &socket];
        self.policy(&[&publish, more].concat())
    }

    fn rollback(&self, key: &str, more: &[&str]) -> (Option<i32>, String) {
        let (key, socket, trust) = (self.at(key), self.at("ca.sock"), self.signers.join(","));
        let rollback = ["rollback", "--key", &key, "--ca-socket", &socket, "--trust", &trust];
        self.policy(&[&rollback, more].concat())
    }
}

/// `GET /accounts/7` of the ledger by somebody, allowed.
fn read_by(principal: &str) -> Record {
    let mut record = Record::new(Phase::Request, Outcome::Allow, "ledger", SystemTime::now());
    record.principal = Some(principal.to_owned());
    record.source = Some("10.0.0.1:4711".to_owned());
    record.action = "GET".to_owned();
    record.host = Some("ledger".to_owned());
    record.path = Some("/accounts/7".to_owned());
    record
}

fn write_log(directory: &Path, records: &mut [&mut Record]) {
    let (recorder, _) = Recorder::open(directory, "ledger", Options::default()).unwrap();
    for record in records {
        recorder.append(&mut **record, Class::Must).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.ca.kill();
        let _ = self.ca.wait();
    }
}

#[track_caller]
fn says(answer: &(Option<i32>, String), code: i32, parts: &[&str]) {
    assert_eq!(answer.0, Some(code), "{}", answer.1);
    for part in parts {
        assert!(answer.1.contains(part), "`{part}` is not in:\n{}", answer.1);
    }
}

#[test]
fn a_change_is_published_step_by_step_and_taken_back() {
    let place = Place::new();
    let socket = place.at("ca.sock");
    let good = place.policies("good", &format!("{READS};\n"), Some(TABLE));
    let narrow = format!("{READS}\nwhen {{ context.conn.src == ip(\"10.0.0.2\") }};\n");
    let table = format!("[from 10.0.0.2]\n{TABLE}");
    let narrow = place.policies("narrow", &narrow, Some(&table));

    says(
        &place.publish(&good, "alice.key", &["--trust-domain", "prod.acne"]),
        1,
        &["`prod.acme`, not for `prod.acne`; nothing was signed"],
    );
    says(
        &place.publish(&good, "alice.key", &["--trust-domain", "prod.acme"]),
        0,
        &[
            "for      the trust domain prod.acme",
            "1 policy in",
            "1 case in",
            "1 of 1 decisions replayed, none would flip",
            "revision 1 is with",
        ],
    );

    // Each step that fails ends it, and nothing is sent.
    let broken = place.policies("broken", "@id(\"a\") permit(principal, action, resource)", None);
    says(
        &place.publish(&broken, "alice.key", &[]),
        1,
        &["broken/ledger.cedar:1", "check    FAILED"],
    );
    let failing = format!(
        "[trust-domain prod.acme]\n{}",
        TABLE.replace("allow by ledger/reads", "forbid")
    );
    fs::write(good.join("ledger.test"), failing).unwrap();
    says(&place.publish(&good, "alice.key", &[]), 1, &["test     FAILED"]);
    let untested = place.policies("untested", &format!("{READS};\n"), None);
    let no_case = "test     FAILED: there is no case to test";
    says(&place.publish(&untested, "alice.key", &[]), 1, &[no_case]);
    fs::write(untested.join("a.test"), "# nothing yet\n").unwrap();
    says(&place.publish(&untested, "alice.key", &["--shadow"]), 1, &[no_case]);
    let flips = format!("deny {WEB} × ledger:GET /accounts/{{id}}");
    let accept = format!("--accept '{flips}'");
    says(
        &place.publish(&narrow, "bob.key", &[]),
        1,
        &["replay   FAILED", "now no_permit", &place.decision, &accept],
    );
    says(
        &place.publish(&narrow, "bob.key", &["--accept", "deny * × orders:*"]),
        1,
        &["replay   FAILED"],
    );
    // Who lets somebody in has not thereby shut anybody out.
    says(
        &place.publish(&narrow, "bob.key", &["--accept", "allow * × *"]),
        1,
        &["replay   FAILED", "1 of 1 decisions replayed"],
    );
    says(
        &place.publish(&narrow, "bob.key", &["--accept", "* × *"]),
        2,
        &["write `allow PRINCIPAL × ROUTE`"],
    );
    fs::copy(place.at("alice.key"), place.at("eve.key")).unwrap();
    says(
        &place.publish(&narrow, "eve.key", &["--accept", "deny * × *"]),
        1,
        &["trusts no signer `eve`"],
    );

    // A shadow changes no answer, so it may differ.
    says(
        &place.publish(&narrow, "bob.key", &["--shadow"]),
        0,
        &["would flip", "revision 2 is with the CA: tried"],
    );
    says(
        &place.publish(&narrow, "bob.key", &["--accept", &flips]),
        0,
        &["1 of 1 decisions replayed, 1 will flip, all accepted", "revision 3"],
    );

    // The CA's word that alice signed it is not enough, neither for what comes back nor for what is in force.
    let key = place.at("bob.key");
    let untrusting = place.policy(&["rollback", "1", "--key", &key, "--ca-socket", &socket]);
    says(&untrusting, 1, &["revision 1 is not proved", "--trust"]);
    says(
        &place.publish_alone(&narrow, "alice.key", &[]),
        1,
        &["revision 3 is not proved", "--trust"],
    );
    // What it flips is accepted as for any other publication.
    let accept = format!("--accept 'allow {WEB} × ledger:GET /accounts/{{id}}'");
    says(
        &place.rollback("bob.key", &["1"]),
        1,
        &[
            "against  revision 3, in force, signed by bob",
            "replay   FAILED",
            &accept,
        ],
    );
    says(
        &place.rollback("bob.key", &["1", "--accept", "allow * × ledger:*"]),
        0,
        &[
            "signed by alice",
            "1 will flip, all accepted",
            "revision 4 is with the CA",
        ],
    );
    let diff = |old, new| place.policy(&["diff", old, new, "--ca-socket", &socket]);
    says(&diff("1", "4"), 0, &["They mean the same"]);
    says(
        &diff("1", "3"),
        1,
        &["~ permit ledger/reads", "+ context.conn.src == ip(\"10.0.0.2\")"],
    );
    // Not the code that says that they differ.
    says(&diff("1", "5"), 2, &["error: "]);
    says(&diff("1", "nowhere"), 2, &["neither a directory"]);
    let history = |more: &[&str]| place.policy(&[&["history", "--ca-socket", &socket], more].concat());
    says(&history(&["--limit", "3"]), 0, &["only the newest 3 are shown"]);
    let (_, whole) = history(&["--limit", "4"]);
    assert!(!whole.contains("only the newest"), "{whole}");
}

#[test]
fn a_forbid_that_is_lost_and_an_owner_who_gains_are_named() {
    const MODULES: &str =
        "[pay]\nowner = \"team-ledger\"\nservices = [\"ledger\"]\n[rails]\nowner = \"security\"\nsecurity = true\n";
    const STOP: &str = "@id(\"rails/stop\")\n@owner(\"security\")\nforbid (\n  principal in Hoplite::Path::\"prod.acme/evil\",\n  action,\n  resource\n)";
    let place = Place::new();
    let dir = place.policies("set", "", Some(TABLE));
    fs::remove_file(dir.join("ledger.cedar")).unwrap();
    for module in ["pay", "rails"] {
        fs::create_dir(dir.join(module)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    write("modules.toml", MODULES);
    write("pay/reads.cedar", &format!("{READS};\n"));
    write("rails/stop.cedar", &format!("{STOP};\n"));
    let publish = |more: &[&str]| place.publish(&dir, "alice.key", more);
    says(
        &publish(&[]),
        0,
        &["2 added, 0 removed, 0 changed", "revision 1 is with"],
    );

    // Nobody evil has called yet, so no replay tells of it.
    write("rails/stop.cedar", "// nothing to stop\n");
    let gone = ["- forbid rails/stop   security"];
    let refused = publish(&[]);
    says(
        &refused,
        1,
        &[
            gone[0],
            "compare  FAILED",
            "--accept-removed 'rails/stop'",
            "it is gone",
            "nothing was published",
        ],
    );
    says(&publish(&["--accept-removed", "rails/other"]), 1, &["compare  FAILED"]);
    says(
        &publish(&["--accept", "allow * × *", "--accept-unreplayed"]),
        1,
        &["compare  FAILED"],
    );
    // A shadow is shown, and lets nobody in.
    says(&publish(&["--shadow"]), 0, &[gone[0], "revision 2"]);
    write(
        "rails/stop.cedar",
        &format!("{STOP}\nwhen {{ context.conn.dow == \"Mon\" }};\n"),
    );
    let narrowed = ["~ forbid rails/stop", "it was changed", "--accept-removed 'rails/stop'"];
    says(&publish(&[]), 1, &narrowed);
    // What is laid out anew, renamed or wider loses nothing.
    let wider = STOP.replace(
        "principal in Hoplite::Path::\"prod.acme/evil\"",
        "principal in Hoplite::Path::\"prod.acme/evil\", // all",
    );
    write(
        "rails/stop.cedar",
        &format!(
            "{};\n",
            wider
                .replace("rails/stop", "rails/halt")
                .replace(", // all,", ", // all\n")
        ),
    );
    says(
        &publish(&[]),
        0,
        &["- forbid rails/stop", "+ forbid rails/halt", "revision 3"],
    );
    write("rails/stop.cedar", "// nothing to stop\n");
    says(
        &publish(&["--accept-removed", "rails/halt"]),
        0,
        &["- forbid rails/halt", "revision 4"],
    );

    // An owner who gains something, or a table that is gone.
    write(
        "modules.toml",
        &MODULES.replace("[\"ledger\"]", "[\"ledger\", \"orders\"]"),
    );
    let gains = "~ module pay: team-ledger over ledger, now team-ledger over ledger, orders   gains";
    says(&publish(&[]), 1, &[gains, "compare  FAILED", "--accept-module 'pay'"]);
    says(&publish(&["--accept-module", "pay"]), 0, &[gains, "revision 5"]);
    write("modules.toml", MODULES);
    says(&publish(&[]), 0, &["~ module pay", "revision 6"]);
    // Going back loses and gains as going forward does.
    says(
        &place.rollback("bob.key", &["5"]),
        1,
        &["compare  FAILED", "--accept-module 'pay'"],
    );
    says(
        &place.rollback("bob.key", &["1"]),
        0,
        &["+ forbid rails/stop", "revision 7"],
    );
    says(
        &place.rollback("bob.key", &["6"]),
        1,
        &["--accept-removed 'rails/stop'"],
    );
}

#[test]
fn a_flip_that_somebody_accepted_blocks_nobody_afterwards() {
    let place = Place::new();
    let good = place.policies("good", &format!("{READS};\n"), Some(TABLE));
    let narrow = format!("{READS}\nwhen {{ context.conn.src == ip(\"10.0.0.2\") }};\n");
    let table = format!("[from 10.0.0.2]\n{TABLE}");
    let narrow = place.policies("narrow", &narrow, Some(&table));
    let against = "no live revision yet: until the first, each proxy goes by its own `policy_dir`";
    says(
        &place.publish(&good, "alice.key", &[]),
        0,
        &[against, "none would flip"],
    );
    let accept = ["--accept", "deny * × ledger:*"];
    says(&place.publish(&narrow, "bob.key", &accept), 0, &["1 will flip"]);

    // On Tuesday the log still says that it was allowed once.
    let text = fs::read_to_string(narrow.join("ledger.cedar")).unwrap();
    let more = text
        .replace("ledger/reads", "ledger/also-reads")
        .replace("10.0.0.2", "10.0.0.3");
    fs::write(narrow.join("more.cedar"), more).unwrap();
    let on_tuesday = place.publish(&narrow, "alice.key", &[]);
    says(
        &on_tuesday,
        0,
        &[
            "against  revision 2",
            "1 of 1 decisions replayed, none would flip",
            "revision 3 is with",
        ],
    );
    let socket = place.at("ca.sock");
    let diff = |old: &str| {
        place.policy(&[
            "diff",
            old,
            narrow.to_str().unwrap(),
            "--since",
            "1h",
            "--ca-socket",
            &socket,
        ])
    };
    says(&diff("3"), 0, &["They mean the same", "1 the same, 0 would flip"]);
    says(&diff("1"), 1, &["0 the same, 1 would flip", "allowed → denied: 1\n"]);
}

#[test]
fn going_back_again_goes_further_back() {
    let place = Place::new();
    for text in ["a", "b", "c"] {
        let policies = place.policies(text, &format!("// {text}\n{READS};\n"), Some(TABLE));
        assert_eq!(place.publish(&policies, "alice.key", &[]).0, Some(0));
    }
    let (key, socket) = (place.at("alice.key"), place.at("ca.sock"));
    let rollback = || place.policy(&["rollback", "--key", &key, "--ca-socket", &socket]);
    says(&rollback(), 0, &["check    revision 2,", "revision 4 is with"]);
    says(&rollback(), 0, &["check    revision 1,", "revision 5 is with"]);
    says(&rollback(), 1, &["content is that of revision 1; say which one"]);
}

#[test]
fn a_log_that_says_too_little_stops_a_publication() {
    let place = Place::new();
    let good = place.policies("good", &format!("{READS};\n"), Some(TABLE));
    let audit = |name: &str| {
        let dir = place.dir.path().join(name);
        let (recorder, _) = Recorder::open(&dir.join("ledger"), "ledger", Options::default()).unwrap();
        (dir.to_str().unwrap().to_owned(), recorder)
    };
    let publish = |logs: &str, more: &[&str]| place.publish(&good, "alice.key", &[&["--audit", logs], more].concat());

    let (strangers, recorder) = audit("strangers");
    let mut record = Record::new(Phase::Handshake, Outcome::Unauthenticated, "ledger", SystemTime::now());
    recorder.append(&mut record, Class::Must).unwrap();
    drop(recorder);
    says(
        &publish(&strangers, &[]),
        1,
        &[
            "0 of 1 decisions replayed",
            "--accept-unreplayed",
            "nothing was published",
        ],
    );
    says(&publish(&strangers, &["--shadow"]), 0, &["0 of 1 decisions replayed"]);
    says(
        &publish(&strangers, &["--accept-unreplayed"]),
        0,
        &["revision 2 is with"],
    );

    let (damaged, recorder) = audit("damaged");
    for _ in 0..3 {
        let mut record = Record::new(Phase::Connect, Outcome::NoPermit, "ledger", SystemTime::now());
        record.principal = Some(WEB.to_owned());
        record.source = Some("10.0.0.1:4711".to_owned());
        record.determining = vec!["ledger/reads".to_owned()];
        recorder.append(&mut record, Class::Must).unwrap();
    }
    drop(recorder);
    let segments = fs::read_dir(place.dir.path().join("damaged/ledger")).unwrap();
    let mut segments = segments.map(|entry| entry.unwrap().path());
    let segment = segments
        .find(|path| path.extension().is_some_and(|ending| ending == "seg"))
        .unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&segment, bytes).unwrap();
    says(
        &publish(&damaged, &["--renew"]),
        1,
        &["the log is damaged", "decisions replayed", "nothing was published"],
    );
    says(
        &place.policy(&["unused", good.to_str().unwrap(), "--audit", &damaged]),
        0,
        &["0 of 1 policy", "cannot be read: 1 record "],
    );
    let (empty, _recorder) = audit("empty");
    says(
        &publish(&empty, &["--renew"]),
        1,
        &[
            "0 of 0 decisions replayed: the logs have no decision since",
            "empty/ledger",
        ],
    );
}

#[test]
fn what_no_replay_has_seen_is_said_and_accepted() {
    let place = Place::new();
    let good = place.policies("good", &format!("{READS};\n"), Some(TABLE));
    let publish = |more: &[&str]| place.publish(&good, "alice.key", more);
    let (nowhere, file) = (place.at("nowhere"), place.at("ca.toml"));
    let unseen = |more: &[&str], what: &[&str]| {
        says(
            &publish(more),
            1,
            &[
                what,
                &["replay   FAILED", "--accept-unreplayed", "nothing was published"],
            ]
            .concat(),
        );
    };

    // No log, of which nobody said where it is, where one was said to be, or that cannot be read.
    unseen(
        &["--audit", &nowhere],
        &["there is no decision log to replay", &nowhere],
    );
    unseen(&["--audit", &file], &["there is no decision log to replay", &file]);
    let audit = place.at("audit");
    unseen(
        &["--audit", &audit, "--audit", &nowhere],
        &["logs cannot be read", &nowhere],
    );
    fs::rename(&audit, place.at("moved")).unwrap();
    unseen(&[], &["there is no decision log to replay", &audit]);
    fs::create_dir(&audit).unwrap();
    unseen(&[], &["there is no decision log to replay", &audit]);

    // Requests of another mesh say nothing about this one.
    let other = place.at("other");
    let mut stranger = read_by("spiffe://test.acme/shop/web");
    write_log(&Path::new(&other).join("ledger"), &mut [&mut stranger]);
    unseen(
        &["--audit", &other],
        &["0 of 1 decisions replayed", "of another trust domain"],
    );

    // Less time than there is, and services of which there is nothing.
    let old = place.at("old");
    let (mut before, mut after) = (read_by(WEB), read_by(WEB));
    before.at -= Duration::from_secs(2 * 24 * 3600);
    write_log(&Path::new(&old).join("ledger"), &mut [&mut before, &mut after]);
    unseen(
        &["--audit", &old, "--since", "1d"],
        &["only decisions since", "the logs go back to"],
    );
    let routes = format!("{ROUTES}[orders]\nroutes = [\"GET /\"]\n");
    fs::write(good.join("routes.toml"), &routes).unwrap();
    unseen(&["--audit", &old], &["no log of `orders` was among those replayed"]);
    fs::write(good.join("routes.toml"), ROUTES).unwrap();

    says(
        &publish(&["--accept-unreplayed"]),
        0,
        &[
            "not seen there is no decision log to replay",
            ": accepted",
            "revision 1 is with",
        ],
    );
    // Nobody looks for a proxy unless asked.
    says(
        &publish(&["--wait"]),
        3,
        &["nothing changed: revision 1", "no proxy is known here"],
    );
    let json = publish(&["--audit", &nowhere, "--renew", "--output", "json"]);
    let document: Value = serde_json::from_str(&json.1).unwrap();
    assert_eq!(
        (json.0, &document["ok"], &document["in_force"]),
        (Some(1), &false.into(), &1.into())
    );
    assert!(document["gaps"][0].as_str().unwrap().contains(&nowhere), "{document:#}");
    // A shadow changes no answer.
    says(
        &publish(&["--audit", &nowhere, "--shadow"]),
        0,
        &["not seen there is no", "revision 2"],
    );
}

#[test]
fn what_is_newly_allowed_is_not_lost_among_what_is_not() {
    let place = Place::new();
    let good = place.policies("good", &format!("{READS};\n"), Some(TABLE));
    let logs = place.dir.path().join("many");
    let (recorder, _) = Recorder::open(&logs.join("ledger"), "ledger", Options::default()).unwrap();
    let asked = |outcome, who: String| {
        let mut record = Record::new(Phase::Request, outcome, "ledger", SystemTime::now());
        record.principal = Some(who);
        record.source = Some("10.0.0.1:4711".to_owned());
        record.action = "GET".to_owned();
        record.host = Some("ledger".to_owned());
        record.path = Some("/accounts/7".to_owned());
        recorder.append(&mut record, Class::Full).unwrap();
    };
    for n in 0..60 {
        asked(Outcome::Allow, format!("spiffe://prod.acme/other/{n}"));
        asked(Outcome::Allow, format!("spiffe://prod.acme/other/{n}"));
    }
    asked(Outcome::NoPermit, WEB.to_owned());
    drop(recorder);
    let logs = logs.to_str().unwrap();
    let replayed = place.policy(&["replay", good.to_str().unwrap(), "--audit", logs]);
    says(
        &replayed,
        1,
        &[
            "121 would flip",
            "denied → allowed: 1\n",
            "allowed → denied: 120\n",
            "\nand 10 more: 10 in ledger; --all shows them\n",
        ],
    );
    assert!(
        replayed.1.find("denied → allowed") < replayed.1.find("allowed → denied"),
        "{}",
        replayed.1
    );
    let accept = format!("--accept 'allow {WEB} × ledger:GET /accounts/{{id}}'");
    let published = place.publish(&good, "alice.key", &["--audit", logs]);
    says(
        &published,
        1,
        &[&accept, "\nand 10 more: 10 in ledger; --all shows them\n"],
    );
    let only_denied = ["--audit", logs, "--accept", "deny * × *"];
    says(
        &place.publish(&good, "alice.key", &only_denied),
        1,
        &[&accept, "replay   FAILED"],
    );
    let both = ["--accept", "allow * × ledger:*"];
    says(
        &place.publish(&good, "alice.key", &[&only_denied[..], &both].concat()),
        0,
        &["121 will flip"],
    );
}

#[test]
fn methods_without_an_action_of_their_own_are_listed_by_their_routes() {
    let place = Place::new();
    let policies = place.policies("policies", &format!("{READS};\n"), None);
    fs::write(
        policies.join("routes.toml"),
        "[ledger]\nroutes = [\"PURGE /cache\", \"GET /a\"]\n",
    )
    .unwrap();
    let (code, said) = place.policy(&["who-can", "other", "ledger"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("other on ledger:PURGE /cache") && !said.contains("ledger:GET /a"),
        "{said}"
    );
}

#[test]
fn a_decision_is_explained_by_its_conditions() {
    let place = Place::new();
    let narrow = format!("{READS}\nwhen {{ context.conn.src == ip(\"10.0.0.2\") }};\n");
    let narrow = place.policies("policies", &narrow, None);
    let narrow = narrow.to_str().unwrap();
    says(
        &place.policy(&["explain", &place.decision]),
        0,
        &[
            &format!("{}, ", place.decision),
            "allow by ledger/reads",
            "other policies",
            "they decide no_permit",
            "✗ context.conn.src == ip(\"10.0.0.2\")   ledger.cedar:8",
            "context.conn.src is ip(\"10.0.0.1\")",
        ],
    );
    let other = place.decision.replace("ledger-", "orders-");
    says(
        &place.policy(&["explain", &other]),
        1,
        &[&format!("there is no decision `{other}`")],
    );
    let asked = [
        "explain",
        "--as",
        WEB,
        "--do",
        "POST ledger /accounts/7",
        "--output",
        "json",
    ];
    let (code, said) = place.policy(&asked);
    assert_eq!(code, Some(0), "{said}");
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(answer["outcome"], "no_permit");
    assert_eq!(answer["near_misses"][0]["miss"], "action");

    let (code, said) = place.policy(&["replay", narrow, "--output", "json"]);
    assert_eq!(code, Some(1), "{said}");
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(answer["groups"][0]["principal"], WEB);
    says(
        &place.policy(&["replay", narrow, "--audit", "/nonexistent"]),
        2,
        &["cannot read"],
    );

    says(&place.policy(&["unused", narrow]), 0, &["0 of 1 policy"]);
    says(
        &place.policy(&["what-can", WEB]),
        0,
        &["depends", "ledger/reads if context.conn.src"],
    );
    // A name that no policy knows is answered, and said to be unknown.
    says(
        &place.policy(&["what-can", "spiffe://prod.acme/shpo/web"]),
        0,
        &[
            "no policy names the caller `spiffe://prod.acme/shpo/web`",
            "did you mean `prod.acme/shop`?",
        ],
    );
    says(
        &place.policy(&["who-can", "GET", "ledger", "/accounts/7"]),
        0,
        &["prod.acme/shop", "if context.conn.src"],
    );
    let among = place.at("among");
    fs::write(&among, format!("{WEB} # a comment\nspiffe://prod.acme/pay\n")).unwrap();
    let among = place.policy(&["who-can", "GET", "ledger", "/accounts/7", "--among", &among]);
    says(
        &among,
        0,
        &[
            "depends  spiffe://prod.acme/shop/web",
            "no       spiffe://prod.acme/pay",
        ],
    );
}
