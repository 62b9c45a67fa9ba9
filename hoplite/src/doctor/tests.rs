//! Each check, failing once: a machine, a directory or a daemon made bad on purpose.

use std::fs::{self, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_wire::ca::{Authority, Federation, ListAuthoritiesResponse};
use serde_json::json;

use super::daemons::{Lives, ends, federated, policy, signs, socket};
use super::files::{
    admin_policies, authority, bundle, directory, loose, policies, secret, signing_key, space, trusted,
};
use super::finding::{Finding, Verdict};
use super::machine::{clock, descriptors, entropy, kernel, time_server, timedatectl};
use super::network::{listening, port, upstream};
use super::part::{Part, load};
use super::{Scope, examine};

#[track_caller]
fn is(finding: &Finding, verdict: Verdict, words: &str) {
    assert_eq!(finding.verdict, verdict, "{finding:?}");
    let all = format!("{} {}", finding.seen, finding.remedy.clone().unwrap_or_default());
    assert!(all.contains(words), "`{words}` is missing from {finding:?}");
    assert_eq!(finding.remedy.is_some(), verdict != Verdict::Ok, "{finding:?}");
}

fn agent(more: &str) -> Part {
    let text = format!(
        "trust_domain = \"a.example\"\ndata_dir = \"/nowhere/agent\"\nca = \"localhost:1\"\ntrust_bundle = \"/nowhere/bundle.pem\"\n\
         socket = \"/nowhere/agent.sock\"\n{more}"
    );
    part_of(&text)
}

fn part_of(text: &str) -> Part {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    fs::write(&file, text).unwrap();
    load(&file).unwrap().1
}

fn proxy() -> Part {
    part_of(
        "name = \"a\"\nworkload_api = \"unix:///nowhere/agent.sock\"\naudit_dir = \"/nowhere/audit\"\nadmin_socket = \"/nowhere/a.sock\"\n\
         [[inbound]]\nlisten = \"127.0.0.1:1\"\nservice = \"a\"\nprotocol = \"http\"\nforward_to = \"127.0.0.1:2\"\n",
    )
}

#[test]
fn a_machine() {
    let too_old = || Err(io::Error::new(io::ErrorKind::Unsupported, "too old"));
    let release = || Ok("6.1.0".to_owned());
    is(&kernel(&release(), &[], Ok(())), Verdict::Ok, "6.1.0");
    is(
        &kernel(&release(), &[agent("")], too_old()),
        Verdict::Fail,
        "peer_process = \"pid\"",
    );
    is(
        &kernel(&release(), &[agent("peer_process = \"pid\"\n")], too_old()),
        Verdict::Warn,
        "threat-model",
    );
    is(
        &kernel(&too_old().map(|()| String::new()), &[], Ok(())),
        Verdict::Unseen,
        "/proc",
    );

    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    is(&clock(now, Some(now)), Verdict::Ok, "2027");
    is(
        &clock(now, Some(now + Duration::from_secs(3_600))),
        Verdict::Fail,
        "set back",
    );
    is(&clock(UNIX_EPOCH, None), Verdict::Fail, "set the clock");
    let nowhere = Path::new("/nowhere");
    is(&time_server(nowhere, || None), Verdict::Unseen, "chronyc");
    is(&time_server(nowhere, || Some(false)), Verdict::Warn, "chrony");
    is(&time_server(nowhere, || Some(true)), Verdict::Ok, "in step");
    is(&time_server(Path::new("/"), || None), Verdict::Ok, "heard");
    assert_eq!(timedatectl("/nowhere/timedatectl"), None);
    let dir = tempfile::tempdir().unwrap();
    for (says, code, expected) in [
        ("yes", 0, Some(true)),
        ("no", 0, Some(false)),
        ("yes", 1, None),
        ("maybe", 0, None),
    ] {
        let program = dir.path().join(format!("{says}{code}"));
        fs::write(&program, format!("#!/bin/sh\necho {says}\nexit {code}\n")).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(timedatectl(program.to_str().unwrap()), expected, "{says} {code}");
    }

    is(&descriptors(1 << 20, &[proxy()]), Verdict::Ok, "1048576");
    is(&descriptors(8_192, &[proxy()]), Verdict::Warn, "would need 20000");
    is(&descriptors(256, &[]), Verdict::Fail, "LimitNOFILE");
    is(&entropy(&Ok("256".to_owned())), Verdict::Ok, "256");
    is(&entropy(&Ok("12".to_owned())), Verdict::Warn, "virtio-rng");
    is(&entropy(&Ok("many".to_owned())), Verdict::Unseen, "does not say");
}

#[test]
fn files_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    is(&directory(&dir.path().join("none")), Verdict::Fail, "start the daemon");
    mode(dir.path(), 0o700);
    is(&directory(dir.path()), Verdict::Ok, "0700");
    mode(dir.path(), 0o755);
    is(&directory(dir.path()), Verdict::Warn, "chmod 700");
    mode(dir.path(), 0o777);
    is(&directory(dir.path()), Verdict::Fail, "others may write");
    mode(dir.path(), 0o700);

    let key = dir.path().join("authority.key");
    assert_eq!(secret(&key), None);
    fs::write(&key, "key").unwrap();
    mode(&key, 0o644);
    is(&secret(&key).unwrap(), Verdict::Fail, "chmod 600");
    is(&directory(&key), Verdict::Fail, "no directory");
    mode(&key, 0o600);
    is(&secret(&key).unwrap(), Verdict::Ok, "0600");

    let pem = dir.path().join("bundle.pem");
    let domain = hoplite_identity::TrustDomain::parse("a.example").unwrap();
    is(&bundle(&pem, &domain), Verdict::Fail, "bundle.pem");
    for text in ["", "garbage"] {
        fs::write(&pem, text).unwrap();
        is(&bundle(&pem, &domain), Verdict::Fail, "hoplite bundle show");
    }
    let authority = hoplite_identity::testing::TestAuthority::new("a.example");
    fs::write(&pem, authority.bundle().to_pem()).unwrap();
    is(&bundle(&pem, &domain), Verdict::Ok, "bundle.pem");

    let rules = dir.path().join("policies");
    let own = hoplite_host::hand::own_user();
    is(&policies(&rules, own), Verdict::Fail, "policies");
    fs::create_dir(&rules).unwrap();
    is(&policies(&rules, own), Verdict::Fail, "policy-files.md");
    fs::write(rules.join("a.cedar"), "permit (").unwrap();
    is(&policies(&rules, own), Verdict::Fail, "a.cedar:1");
    fs::write(
        rules.join("a.cedar"),
        "@id(\"a\") permit (principal, action, resource);\n",
    )
    .unwrap();
    is(&policies(&rules, own), Verdict::Ok, "1 policy is good");
    mode(&rules.join("a.cedar"), 0o666);
    is(&policies(&rules, own), Verdict::Fail, "chmod go-w");
    is(&admin_policies(&rules, own), Verdict::Fail, "chmod go-w");
    mode(&rules.join("a.cedar"), 0o644);
    is(&admin_policies(&rules, own), Verdict::Ok, "are good");
    fs::write(rules.join("a.cedar"), "permit (").unwrap();
    is(&admin_policies(&rules, own), Verdict::Fail, "a.cedar:1");

    is(&space("/a", 1 << 40, Some(1 << 20)), Verdict::Ok, "1048576 MiB");
    is(&space("/a", 1 << 40, None), Verdict::Ok, "/a");
    is(&space("/a", 1 << 28, None), Verdict::Warn, "make room");
    is(&space("/a", 1 << 20, None), Verdict::Fail, "make room");
    is(&space("/a", 1 << 40, Some(7)), Verdict::Warn, "7 inodes");
    is(&space("/a", 1 << 40, Some(0)), Verdict::Fail, "no inode");

    for (text, words) in [
        ("", "no CA's"),
        ("colour = \"blue\"\n", "no CA's"),
        ("ca = \"nowhere\"\n", "a.toml"),
        ("listen = \"nowhere\"\n", "a.toml:1"),
        ("workload_api = 7\n", "a.toml:1"),
        ("=", "a.toml:1"),
    ] {
        let file = dir.path().join("a.toml");
        fs::write(&file, text).unwrap();
        is(&load(&file).unwrap_err(), Verdict::Fail, words);
    }
}

#[test]
fn the_key_that_signs_and_how_long_anybody_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    assert_eq!(signing_key(path), None, "no CA was founded");
    fs::write(path.join("bundle.pem"), "").unwrap();
    is(&signing_key(path).unwrap(), Verdict::Fail, "is gone, though");
    let key = path.join("authority.key");
    for text in [
        "",
        "garbage",
        "-----BEGIN PRIVATE KEY-----\nA\n-----END PRIVATE KEY-----\n",
    ] {
        fs::write(&key, text).unwrap();
        is(&signing_key(path).unwrap(), Verdict::Fail, "no key is in");
    }
    let one = hoplite_identity::pem::write_private_key(b"a key");
    for text in [one.to_string(), format!("{}{}", *one, *one)] {
        fs::write(&key, text).unwrap();
        assert_eq!(signing_key(path), None, "it is good");
    }
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    is(&signing_key(path).unwrap(), Verdict::Fail, "authority.key");

    let at = |days: u64| UNIX_EPOCH + Duration::from_secs(86_400 * (20_000 + days));
    let (begins, ends) = (at(0), at(364));
    is(&authority("the CA", begins, ends, at(1)), Verdict::Ok, "2025-10-03");
    is(&authority("the CA", begins, ends, at(273)), Verdict::Ok, "ends at");
    is(
        &authority("the CA", begins, ends, at(274)),
        Verdict::Warn,
        "in 90 days: less than a quarter",
    );
    is(
        &authority("the CA", begins, ends, at(365)),
        Verdict::Fail,
        "no SVID counts",
    );

    let domain = hoplite_identity::TrustDomain::parse("a.example").unwrap();
    let bundle = hoplite_identity::testing::TestAuthority::new("a.example").bundle();
    let file = path.join("b.pem");
    assert_eq!(trusted(&file, &domain, "the CA"), None);
    fs::write(&file, bundle.to_pem()).unwrap();
    is(
        &trusted(&file, &domain, "the CA").unwrap(),
        Verdict::Ok,
        "the last authority that the CA trusts",
    );
    fs::write(&file, json!({"bundle": bundle.to_pem()}).to_string()).unwrap();
    is(
        &trusted(&file, &domain, "the agent").unwrap(),
        Verdict::Ok,
        "the last authority that the agent trusts",
    );
}

#[test]
fn files_that_others_may_open() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, mode: u32| {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    };
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::set_permissions(&store, Permissions::from_mode(0o700)).unwrap();
    put("authority.key", 0o644); // told by itself
    put("bundle.pem", 0o644);
    put("store/db", 0o600);
    assert_eq!(loose(dir.path()), None);
    put("store/db", 0o644);
    is(&loose(dir.path()).unwrap(), Verdict::Warn, "store/db (mode 0644)");
    put("bundle.pem", 0o664);
    is(&loose(dir.path()).unwrap(), Verdict::Fail, "2 files below");
    put("store/db", 0o600);
    is(&loose(dir.path()).unwrap(), Verdict::Fail, "bundle.pem (mode 0664)");
    put("bundle.pem", 0o644);
    fs::set_permissions(&store, Permissions::from_mode(0o755)).unwrap();
    is(&loose(dir.path()).unwrap(), Verdict::Warn, "1 file below");
}

#[test]
fn sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let look = || socket(&path, 0o600, &proxy());
    let (finding, lives) = look();
    is(&finding, Verdict::Fail, "is not there");
    assert_eq!(lives, Lives::No);
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    is(&look().0, Verdict::Warn, "should be 0600");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let (finding, lives) = look();
    is(&finding, Verdict::Ok, "0600");
    assert_eq!(lives, Lives::Yes);
    drop(listener);
    let (finding, lives) = look();
    is(&finding, Verdict::Fail, "was left behind");
    assert_eq!(lives, Lives::No);
}

#[tokio::test]
async fn names_and_ports() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = held.local_addr().unwrap();
    is(&upstream("it", &at.to_string()).await, Verdict::Ok, "takes connections");
    is(
        &upstream("it", "nobody.invalid:1").await,
        Verdict::Fail,
        "nobody.invalid",
    );
    is(
        &port("it", at, Lives::Yes),
        Verdict::Ok,
        &format!("process {}", std::process::id()),
    );
    is(&port("it", at, Lives::No), Verdict::Fail, "stop that");
    drop(held);
    is(&upstream("it", &at.to_string()).await, Verdict::Warn, "start it");
    is(&port("it", at, Lives::No), Verdict::Ok, "is free");
    is(&port("it", at, Lives::Yes), Verdict::Fail, "nobody listens");
    is(&port("it", at, Lives::Unknown), Verdict::Warn, "start it");
    is(
        &port("it", "192.0.2.1:9".parse().unwrap(), Lives::No),
        Verdict::Fail,
        "no such address",
    );
    let line = "   0: 0100007F:1E14 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0";
    assert_eq!(listening(line, 7_700).as_deref(), Some("12345"));
    assert_eq!((listening(line, 7_701), listening("sl local", 7_700)), (None, None));
}

#[test]
fn what_a_daemon_says() {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let at = |seconds: i64| -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(1_800_000_000 + seconds).unwrap())
    };
    is(&ends("it", at(3_600), now), Verdict::Ok, "2027");
    is(&ends("it", at(10), now), Verdict::Warn, "in 10 s");
    is(&ends("it", at(-1), now), Verdict::Fail, "ended at");
    let status = |in_force: &str, alarms: &[&str], faults: &[&str], stale: bool| json!({"policy": {"in_force": in_force, "reason": "none yet", "alarms": alarms, "faults": faults, "stale": stale, "revision": "3f"}});
    is(&policy("a", &status("live", &[], &[], false)), Verdict::Ok, "3f");
    is(
        &policy("a", &status("deny_all", &[], &[], false)),
        Verdict::Fail,
        "none yet",
    );
    is(
        &policy("a", &status("live", &["unsigned"], &[], false)),
        Verdict::Fail,
        "unsigned",
    );
    is(
        &policy("a", &status("live", &[], &["bad"], false)),
        Verdict::Warn,
        "bad",
    );
    let fault = json!({"policy": {"in_force": "live", "faults": [{"file": "a.cedar", "line": 2, "column": null, "reason": "no"}]}});
    is(&policy("a", &fault), Verdict::Warn, "old policies: a.cedar:2: no");
    is(&policy("a", &status("live", &[], &[], true)), Verdict::Warn, "publish");
}

#[test]
fn who_signs_and_who_comes_after() {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let answer = |state: &str, not_after_unix: i64, warning: &str| ListAuthoritiesResponse {
        authorities: vec![Authority {
            state: state.to_owned(),
            not_after_unix,
            ..Authority::default()
        }],
        warning: warning.to_owned(),
        ..ListAuthoritiesResponse::default()
    };
    is(&signs(&answer("active", 1_800_000_001, ""), now), Verdict::Ok, "2027");
    is(
        &signs(&answer("active", 1_800_000_001, "it has no successor"), now),
        Verdict::Warn,
        "no successor",
    );
    is(
        &signs(&answer("active", 1_800_000_000, ""), now),
        Verdict::Fail,
        "nothing is issued",
    );
    is(
        &signs(&answer("old", 1_800_000_001, ""), now),
        Verdict::Fail,
        "authority list",
    );
}

#[test]
fn foreign_bundles() {
    let check = |state: &str, verdict: Verdict| {
        let federation = Federation {
            trust_domain: "partner.example".to_owned(),
            state: state.to_owned(),
            failure: "no answer in time".to_owned(),
            ..Federation::default()
        };
        is(&federated(&federation), verdict, "partner.example");
    };
    check("fresh", Verdict::Ok);
    check("by_hand", Verdict::Ok);
    check("stale", Verdict::Warn);
    check("withdrawn", Verdict::Fail);
    check("missing", Verdict::Fail);
}

/// Nothing is there at all, and it ends soon.
#[tokio::test]
async fn everything_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, three] = ["agent", "proxy", "ca"].map(|name| dir.path().join(format!("{name}.toml")));
    fs::write(&one, "trust_domain = \"a.example\"\ndata_dir = \"/nowhere/agent\"\nca = \"localhost:1\"\ntrust_bundle = \"/nowhere/b.pem\"\nsocket = \"/nowhere/agent.sock\"\n").unwrap();
    fs::write(&two, "no toml").unwrap();
    let findings = examine(Scope::of(vec![one, two, three])).await;
    let failed: Vec<_> = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Fail)
        .map(|finding| finding.check)
        .collect();
    for check in ["configuration", "directory", "trust bundle", "socket"] {
        assert!(failed.contains(&check), "{check}: {findings:#?}");
    }
    assert!(findings.iter().any(|finding| finding.check == "CA"));
}
