//! Five thousand findings: people see the first and how many more there are, by whose they are; `--all` and JSON have each.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use hoplite_audit::{Class, Options, Outcome, Phase, Record, Recorder};
use serde_json::Value;

use crate::support::{Up, hoplite};

const MANY: usize = 5_000;

const POLICY: &str = "@id(\"a\")\n@owner(\"team\")\npermit (\n  principal in Hoplite::TrustDomain::\"x\",\n  \
                      action in [Hoplite::Action::\"read\"],\n  resource in Hoplite::Service::\"pay\"\n);\n";

/// One policy, and as many routes of two services, each with this word for a method.
fn policies(dir: &Path, method: &str, routes: usize) {
    let of = |service: &str| {
        let routes: Vec<String> = (0..routes / 2)
            .map(|number| format!("\"{method} /r{number}\""))
            .collect();
        format!("[{service}]\nroutes = [{}]\n", routes.join(", "))
    };
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("a.cedar"), POLICY).unwrap();
    fs::write(dir.join("routes.toml"), of("pay") + &of("web")).unwrap();
}

/// Runs it for people, for people who want all, and for programs; a finding is a line that holds this.
#[track_caller]
fn check(arguments: &[&str], finding: &str, more: &str, in_json: impl Fn(&Value) -> usize) {
    let run = |more: &[&str]| {
        let output = hoplite(&[arguments, more].concat());
        assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let count = |text: &str| text.lines().filter(|line| line.contains(finding)).count();
    let short = run(&[]);
    assert_eq!(count(&short), 50, "{arguments:?}: {short}");
    assert!(short.contains(more), "{arguments:?}: {short}");
    let whole = run(&["--all"]);
    assert_eq!(count(&whole), MANY, "{arguments:?}");
    assert!(!whole.contains("--all shows them"), "{arguments:?}");
    let json = serde_json::from_str(&run(&["--output", "json"])).unwrap();
    assert_eq!(in_json(&json), MANY, "{arguments:?}");
}

fn length(pointer: &'static str) -> impl Fn(&Value) -> usize {
    move |json| json.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len)
}

#[test]
fn of_policies_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    policies(Path::new(&at("bad")), "get", MANY);
    policies(Path::new(&at("all")), "GET", MANY);
    policies(Path::new(&at("none")), "GET", 0);

    let faults = "and 4 950 more: 4 950 in routes.toml; --all shows them";
    check(
        &["policy", "check", &at("bad")],
        "/routes.toml:",
        faults,
        length("/faults"),
    );
    let of_services = "and 4 950 more: 2 500 in web, 2 450 in pay; --all shows them";
    check(
        &["policy", "diff", &at("none"), &at("all")],
        "+ route ",
        of_services,
        length("/difference/routes_added"),
    );

    let cases: String = (0..MANY)
        .map(|number| format!("spiffe://x/w{number} POST pay /r1 allow\n"))
        .collect();
    fs::write(dir.path().join("all/pay.test"), cases).unwrap();
    let failed = "and 4 950 more: 4 950 in pay.test; --all shows them";
    check(&["policy", "test", &at("all")], "came out", failed, |json| {
        let tables = json["tables"].as_array().unwrap();
        tables
            .iter()
            .map(|table| table["failed"].as_array().unwrap().len())
            .sum()
    });

    let (recorder, _) = Recorder::open(&dir.path().join("log"), "pay", Options::default()).unwrap();
    for number in 0..MANY {
        let mut record = Record::new(Phase::Request, Outcome::NoPermit, "pay", SystemTime::now());
        record.principal = Some(format!("spiffe://x/w{number}"));
        record.source = Some("10.0.0.1:4711".to_owned());
        (record.action, record.host, record.path) = ("GET".to_owned(), Some("x".to_owned()), Some("/r1".to_owned()));
        recorder.append(&mut record, Class::Full).unwrap();
    }
    drop(recorder);
    let flips = "and 4 950 more: 4 950 in pay; --all shows them";
    let replay = ["policy", "replay", &at("all"), "--audit", &at("log")];
    check(&replay, " × pay:GET /r1", flips, length("/groups"));
}

#[test]
fn of_a_publication_and_of_a_list_of_entries() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("mesh"));
    let mesh = up.dir.to_str().unwrap().to_owned();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    policies(Path::new(&at("bad")), "get", MANY);
    let faults = "and 4 950 more: 4 950 in routes.toml; --all shows them";
    check(
        &["policy", "publish", &at("bad"), "--dir", &mesh],
        "/routes.toml:",
        faults,
        length("/faults"),
    );

    let entries: String = (0..MANY)
        .map(|number| {
            format!(
                "[[entry]]\nspiffe_id = \"spiffe://demo.hoplite/w{number}\"\nparent = \"spiffe://demo.hoplite/hoplite/agent/local\"\n\
                 selectors = [\"unix:uid:{number}\"]\n"
            )
        })
        .collect();
    fs::write(at("entries.toml"), entries).unwrap();
    let more = "and 4 950 more: 4 950 in spiffe://demo.hoplite/hoplite/agent/local; --all shows them";
    check(
        &["entry", "apply", &at("entries.toml"), "--dry-run", "--dir", &mesh],
        "create  ",
        more,
        length("/created"),
    );
}
