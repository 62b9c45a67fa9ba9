//! `hoplite doctor` on a mesh that runs, on one that does not, and on files that are nonsense.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Up, hoplite};

/// The verdicts of a check, in order.
fn verdicts<'a>(findings: &'a Value, check: &str) -> Vec<&'a str> {
    let all = findings.as_array().unwrap().iter();
    let of_check = all.filter(|finding| finding["check"] == check);
    of_check.map(|finding| finding["verdict"].as_str().unwrap()).collect()
}

#[test]
fn a_mesh_is_well_until_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let output = up.tool(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(!text.contains("FAIL"), "{text}");
    println!("{text}");
    let findings = up.json(&["doctor"]);
    for (check, count) in [
        ("configuration", 5),
        ("socket", 5),
        ("answer", 2),
        ("SVID", 4),
        ("policy", 3),
        ("trust", 2),
        ("CA", 1),
    ] {
        assert_eq!(verdicts(&findings, check), vec!["ok"; count], "{check}: {findings:#}");
    }
    // A socket that was left by a proxy that is gone is nobody's fault; one that nobody configured is not looked at.
    drop(std::os::unix::net::UnixListener::bind(up.dir.join("run/billing.sock")).unwrap());
    let status = up.tool(&["policy", "status"]);
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    assert!(
        String::from_utf8_lossy(&status.stderr).contains("was left by a proxy that is gone"),
        "{status:?}"
    );
    assert!(up.interrupt().success());
    for name in ["ca", "agent", "edge", "orders", "ledger"] {
        assert!(
            !up.dir.join(format!("run/{name}.sock")).exists(),
            "{name} leaves its socket behind"
        );
    }

    let output = up.tool(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("does not run"), "{text}");
    // Away is away, and not gone: it is configured here.
    assert_eq!(up.tool(&["policy", "status"]).status.code(), Some(1));
    fs::write(up.dir.join("policies/edge.cedar"), "permit (").unwrap();
    fs::write(up.dir.join("config/orders.toml"), "name = 7\nworkload_api = \"x\"\n").unwrap();
    let findings = up.json(&["doctor"]);
    assert!(verdicts(&findings, "policies").contains(&"FAIL"), "{findings:#}");
    assert!(verdicts(&findings, "configuration").contains(&"FAIL"), "{findings:#}");
}

#[test]
fn wrong_usage_is_two_and_no_mesh_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display().to_string();
    let code = |arguments: &[&str]| hoplite(arguments).status.code();
    assert_eq!(code(&["doctor", "--colour"]), Some(2));
    assert_eq!(code(&["doctor", "--output", "yaml"]), Some(2));
    assert_eq!(code(&["doctor", "--dir", &at]), Some(1));
    assert_eq!(code(&["doctor", "--config", "/nowhere.toml"]), Some(1));
}

/// Every file and directory below a directory, with its mode.
fn modes(dir: &Path, found: &mut Vec<(String, u32)>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() || metadata.is_file() {
            found.push((entry.path().display().to_string(), metadata.mode() & 0o777));
        }
        if metadata.is_dir() {
            modes(&entry.path(), found);
        }
    }
}

/// Whatever umask somebody has: what daemons keep is theirs alone. And what is missing or open is told.
#[test]
fn what_daemons_keep_is_closed_to_others_and_what_is_not_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut open = Command::new("sh");
    open.args(["-c", "umask 000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_hoplite")]);
    // What stands in the environment is for those who name nothing else.
    open.env("HOPLITE_DIR", "/nowhere/at/all");
    let up = Up::start_by(open, dir.path());
    let mut found = Vec::new();
    for name in ["ca", "agent", "audit", "state"] {
        modes(&up.dir.join(name), &mut found);
    }
    assert!(found.iter().any(|(path, _)| path.ends_with("ca/store/db")), "{found:?}");
    let is_open = |(path, mode): &(String, u32)| mode & if path.ends_with(".pem") { 0o022 } else { 0o077 } != 0;
    let wide: Vec<_> = found.iter().filter(|found| is_open(found)).collect();
    assert!(wide.is_empty(), "others may open {wide:?}");
    let findings = up.json(&["doctor"]);
    assert!(verdicts(&findings, "modes").is_empty(), "{findings:#}");

    fs::set_permissions(up.dir.join("ca/store/db"), Permissions::from_mode(0o644)).unwrap();
    let findings = up.json(&["doctor"]);
    assert_eq!(verdicts(&findings, "modes"), ["warn"], "{findings:#}");
    fs::set_permissions(up.dir.join("ca/store/db"), Permissions::from_mode(0o666)).unwrap();
    fs::rename(up.dir.join("ca/authority.key"), up.dir.join("kept")).unwrap();
    let output = up.tool(&["doctor", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdicts(&findings, "modes"), ["FAIL"], "{findings:#}");
    assert_eq!(verdicts(&findings, "signing key"), ["FAIL"], "{findings:#}");
}
