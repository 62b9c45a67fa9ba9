//! `hoplite policy test` and `hoplite policy routes import`, as a person or a CI job runs them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::hoplite;

/// Runs the binary; what it printed and whether it was content.
fn run(arguments: &[&str]) -> (bool, String, String) {
    let output = hoplite(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const READ: &str = "@id(\"read\") @owner(\"x\")\npermit (principal in Hoplite::TrustDomain::\"a\", action in [Hoplite::Action::\"read\"], resource in Hoplite::Service::\"ledger\");\n";

#[test]
fn tables_are_found_run_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    let test: &[&str] = &["policy", "test", &path];
    write(dir.path(), "a.cedar", READ);

    let (ok, _, said) = run(test);
    assert!(
        !ok && said.contains("there are no tests beneath") && said.contains("`.test`"),
        "{said}"
    );
    write(dir.path(), "a.test", "# nothing yet\n");
    let (ok, _, said) = run(test);
    assert!(!ok && said.contains("no case"), "{said}");

    write(dir.path(), "a.test", "spiffe://a/b GET ledger / allow by read\n");
    write(dir.path(), "pay/b.test", "spiffe://c/d GET ledger / no_permit\n");
    write(dir.path(), ".hidden/c.test", "nonsense\n");
    write(dir.path(), "d.test.json", "[]");
    let (ok, printed, said) = run(test);
    assert!(ok, "{printed}{said}");
    assert!(printed.contains("ok      a.test       1 case\n"), "{printed}");
    assert!(
        printed.contains("2 cases in 3 tables came out as expected"),
        "{printed}"
    );

    write(dir.path(), "pay/b.test", "spiffe://c/d GET ledger / allow\n");
    let (ok, printed, _) = run(test);
    assert!(!ok && printed.contains("FAILED  pay/b.test   1 of 1 case"), "{printed}");
    assert!(
        printed.contains("  pay/b.test:1:1: spiffe://c/d GET ledger /\n    expected  allow\n    came out  no_permit"),
        "{printed}"
    );
    let (ok, printed, _) = run(&["policy", "test", &path, "--output", "json"]);
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert!(
        !ok && report["ok"] == false && report["tables"][2]["failed"][0]["line"] == 1,
        "{report:#}"
    );

    write(dir.path(), "d.test.json", "{}");
    let (ok, printed, _) = run(test);
    assert!(!ok && printed.contains("d.test.json:1:1: "), "{printed}");

    write(dir.path(), "a.cedar", "permit (");
    let (ok, _, said) = run(test);
    assert!(
        !ok && said.contains("do not compile") && said.contains("a.cedar:1:"),
        "{said}"
    );
}

#[test]
fn routes_come_out_of_an_openapi_document() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    write(
        dir.path(),
        "api.yaml",
        "openapi: 3.0.3\npaths:\n  /accounts/{id}: {get: {}}\n  /files/{a}{b}: {get: {}}\n",
    );
    let api = path("api.yaml");
    let import: &[&str] = &["policy", "routes", "import", "--service", "ledger", &api];
    let (ok, printed, said) = run(import);
    assert!(ok, "{said}");
    assert_eq!(printed, "[ledger]\nroutes = [\n    \"GET /accounts/{id}\",\n]\n");
    assert!(
        said.contains("warning: ") && said.contains("api.yaml:4:3: `/files/{a}{b}` is left out"),
        "{said}"
    );
    assert!(
        said.contains("1 operation is left out:\n  GET /files/{a}{b}\n"),
        "{said}"
    );

    // Two documents of one service, and a part of them.
    write(
        dir.path(),
        "more.json",
        r#"{"openapi": "3.0.3", "paths": {"/apis/apps": {"get": {"tags": ["apps"]}}}}"#,
    );
    let more = path("more.json");
    let (ok, printed, said) = run(&[import, &[&more]].concat());
    assert!(
        ok && printed.contains("/accounts/{id}") && printed.contains("/apis/apps"),
        "{printed}{said}"
    );
    let (ok, printed, said) = run(&[import, &[&more, "--tag", "apps"]].concat());
    assert!(
        ok && printed == "[ledger]\nroutes = [\n    \"GET /apis/apps\",\n]\n",
        "{printed}{said}"
    );

    let table = path("routes.toml");
    write(dir.path(), "routes.toml", "# ours\n[edge]\nroutes = []\n");
    let into = [import, &["--into", &table]].concat();
    let (ok, printed, said) = run(&into);
    assert!(ok && printed.contains("+ GET /accounts/{id}\n"), "{printed}{said}");
    let after = fs::read_to_string(&table).unwrap();
    assert!(
        after.starts_with("# ours\n[edge]\nroutes = []\n") && after.contains("[ledger]"),
        "{after}"
    );
    let (ok, printed, _) = run(&into);
    assert!(ok && printed.contains("0 changed"), "{printed}");
    assert_eq!(fs::read_to_string(&table).unwrap(), after);

    write(dir.path(), "routes.toml", "[edge\n");
    let (ok, _, said) = run(&into);
    assert!(
        !ok && said.contains("left as it was") && said.contains("routes.toml:1:"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&table).unwrap(), "[edge\n");
    write(dir.path(), "api.yaml", "a: &a [*a]\n");
    let (ok, _, said) = run(import);
    assert!(!ok && said.contains("api.yaml:1:8: "), "{said}");
}
