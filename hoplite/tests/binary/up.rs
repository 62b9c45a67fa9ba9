//! `hoplite up` from outside: what a person sees, edits, kills and starts again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::restored::{Daemon, said};
use crate::support::{Up, hoplite, is_alive, kill, until};
use serde_json::{Value, json};

const SECURITY: &str = "policies/security.cedar";

/// The forbid of the demo, commented out as its comment says.
fn commented_out(text: &str) -> String {
    text.lines()
        .map(|line| {
            if line.starts_with("//") {
                line.to_owned()
            } else {
                format!("//{line}")
            }
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_policy_edit_takes_effect_and_a_broken_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    assert_eq!(up.get("/orders/42").status, 200);
    let refused = up.get("/ledger/42");
    assert_eq!(refused.status, 403);
    let id = serde_json::from_str::<Value>(&refused.body).unwrap()["decision"]
        .as_str()
        .unwrap()
        .to_owned();
    let records = up.json(&["audit", "query", "--id", &id]);
    assert_eq!(
        records[0]["determining"],
        json!(["security/edge-stays-out-of-the-ledger"])
    );

    // Allowed, and back.
    let file = up.dir.join(SECURITY);
    let original = fs::read_to_string(&file).unwrap();
    fs::write(&file, commented_out(&original)).unwrap();
    until("the refused call is allowed", || {
        (up.get("/ledger/42").status == 200).then_some(())
    });
    fs::write(&file, &original).unwrap();
    until("the call is refused again", || {
        (up.get("/ledger/42").status == 403).then_some(())
    });
    assert!(up.tool(&["policy", "status"]).status.success());

    // Broken: said, with file and line, and the old one stays in force.
    fs::write(&file, format!("{original}\npermit (principal, action, resource")).unwrap();
    let status = until("the status tells of the broken file", || {
        let status = up.json(&["policy", "status"]);
        let broken = status
            .as_array()
            .unwrap()
            .iter()
            .all(|proxy| proxy["policy"]["faults"] != json!([]));
        broken.then_some(status)
    });
    for proxy in status.as_array().unwrap() {
        assert_eq!(proxy["policy"]["in_force"], "live");
        let fault = &proxy["policy"]["faults"][0];
        assert_eq!(fault["file"], "security.cedar");
        assert!(
            fault["line"].as_u64().unwrap() >= original.lines().count() as u64,
            "{fault}"
        );
    }
    let output = up.tool(&["policy", "status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("security.cedar:"),
        "{output:?}"
    );
    up.sees("security.cedar:");
    assert_eq!(up.get("/ledger/42").status, 403);
    assert_eq!(up.get("/orders/42").status, 200);

    // Not even a restart of a proxy in this moment changes that.
    let pid = up.processes()["ledger"];
    kill("-KILL", pid);
    up.sees(&format!("pid {pid} was killed"));
    until("the restarted proxy goes on with the last good policy", || {
        up.try_get("/orders/42")
            .is_ok_and(|answer| answer.status == 200)
            .then_some(())
    });
    let refused: Value = serde_json::from_str(&up.get("/ledger/42").body).unwrap();
    assert_eq!(refused["outcome"], "forbid");

    fs::write(&file, &original).unwrap();
    until("the repaired file is in force", || {
        up.tool(&["policy", "status"]).status.success().then_some(())
    });

    // Ctrl-C stops all of it.
    let processes = up.processes();
    assert_eq!(processes.len(), 8, "{processes:?}");
    assert!(up.interrupt().success());
    for (name, pid) in processes {
        assert!(!is_alive(pid), "{name} is still there");
    }
}

#[test]
fn a_killed_process_comes_back_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let mut acknowledged = Vec::new();
    let mut refuse = |up: &Up| {
        let answer = up.get("/ledger/42");
        assert_eq!(answer.status, 403, "{answer:?}");
        acknowledged.push(
            serde_json::from_str::<Value>(&answer.body).unwrap()["decision"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    };
    let told = [
        ("ca", "CA"),
        ("agent", "agent"),
        ("ledger", "ledger proxy"),
        ("ledger-service", "ledger service"),
        ("orders", "orders proxy"),
        ("edge", "edge proxy"),
        ("edge-service", "edge service"),
    ];
    for (name, called) in told {
        refuse(&up);
        let pid = *up
            .processes()
            .get(name)
            .unwrap_or_else(|| panic!("{name} does not run"));
        kill("-KILL", pid);
        // Traffic between the others goes on: without CA, agent or orders, edge and ledger still talk.
        if matches!(name, "ca" | "agent" | "orders") {
            for _ in 0..5 {
                refuse(&up);
            }
        }
        up.sees(&format!(
            "{called:<14}  pid {pid} was killed by signal 9; starting it again"
        ));
        until(&format!("{name} is back"), || {
            up.processes().get(name).filter(|new| **new != pid).copied()
        });
        until(&format!("the mesh works again after {name}"), || {
            let whole = up.try_get("/orders/42").is_ok_and(|answer| answer.status == 200);
            (whole && up.try_get("/ledger/42").is_ok_and(|answer| answer.status == 403)).then_some(())
        });
    }
    for id in &acknowledged {
        assert_eq!(
            up.json(&["audit", "query", "--id", id]).as_array().unwrap().len(),
            1,
            "{id} is lost"
        );
    }
    let verified = up.tool(&["audit", "verify"]);
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );
}

/// A proxy that cannot record must not decide, and must not stand there refusing for ever either.
#[test]
fn a_proxy_that_cannot_record_ends_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    // Where a file may not grow, writing to it then fails, as it does on a full disk, instead of killing the writer.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_hoplite")]);
    let mut up = Up::start_by(command, dir.path());
    let refused = up.get("/ledger/42");
    assert_eq!(refused.status, 403, "{refused:?}");
    let before = up.json(&["audit", "query"]).as_array().unwrap().len();

    let pid = up.processes()["ledger"];
    let full = Rlimit {
        current: Some(0),
        maximum: None,
    };
    prlimit(Pid::from_raw(i32::try_from(pid).unwrap()), Resource::Fsize, full).unwrap();
    let unanswered = up.try_get("/ledger/42");
    assert!(unanswered.is_ok_and(|answer| answer.status >= 500));
    up.sees(&format!("pid {pid} exited with code 1: the decision log"));
    let said = up.terminal();
    assert!(
        said.contains("can no longer be written, and nothing may be decided without a record"),
        "{said}"
    );
    assert!(said.contains("File too large"), "{said}");

    // The new process has room.
    until("the ledger is asked again", || {
        up.try_get("/ledger/42")
            .is_ok_and(|answer| answer.status == 403)
            .then_some(())
    });
    assert_ne!(up.processes()["ledger"], pid);
    assert!(up.json(&["audit", "query"]).as_array().unwrap().len() > before);
    let verified = up.tool(&["audit", "verify"]);
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );
}

#[test]
fn a_restart_keeps_trust_domain_registrations_and_log() {
    let dir = tempfile::tempdir().unwrap();
    let first = {
        let mut up = Up::start(dir.path());
        assert_eq!(up.get("/ledger/42").status, 403);
        let state = (
            up.json(&["bundle", "show"])["pem"].clone(),
            up.json(&["entry", "list"]),
            up.json(&["audit", "query"]).as_array().unwrap().clone(),
        );
        assert!(up.interrupt().success());
        state
    };
    let up = Up::start(dir.path());
    assert_eq!(up.get("/orders/42").status, 200);
    assert_eq!(up.json(&["bundle", "show"])["pem"], first.0);
    assert_eq!(up.json(&["entry", "list"]), first.1);
    let log = up.json(&["audit", "query"]);
    for record in first.2 {
        assert!(log.as_array().unwrap().contains(&record), "{record} is gone");
    }
    // A second one in the same directory is refused in one sentence.
    let second = hoplite(&["up", "--dir", &dir.path().display().to_string()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("runs in"),
        "{second:?}"
    );
}

#[test]
fn a_mesh_whose_node_was_banned_says_how_it_comes_up_again_and_does() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display().to_string();
    let mut up = Up::start(dir.path());
    let banned = up.tool(&["agent", "ban", "local"]);
    assert!(banned.status.success(), "{banned:?}");
    assert!(up.interrupt().success());
    let base = up.base.to_string();
    let config = dir.path().join("config/ca.toml").display().to_string();
    let refused = hoplite(&["up", "--base-port", &base, "--dir", &at]);
    said(
        &refused,
        1,
        &[
            "`local` is banned",
            &format!("`hoplite ca run --config {config}`"),
            &format!("`hoplite agent evict local --dir {at}`"),
        ],
    );
    // As it says.
    let ca = Daemon::start(&["ca", "run", "--config", &config], &dir.path().join("alone.log"));
    until("the node is evicted", || {
        let evicted = hoplite(&["agent", "evict", "local", "--dir", &at]);
        evicted.status.success().then_some(())
    });
    drop(ca);
    let up = Up::start(dir.path());
    assert_eq!(up.get("/orders/42").status, 200);
}

#[test]
fn no_orphan_outlives_a_killed_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let processes = up.processes();
    assert_eq!(processes.len(), 8, "{processes:?}");
    kill("-KILL", up.pid());
    for (name, pid) in processes {
        until(&format!("{name} ends"), || (!is_alive(pid)).then_some(()));
    }
}

/// The README's "Put your own service behind it", step by step.
#[test]
fn a_service_of_ones_own_joins_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("billing-proxy");
    fs::copy(env!("CARGO_BIN_EXE_hoplite"), &program).unwrap();
    let uid = fs::metadata(home.path()).unwrap().uid();
    let created = up.tool(&[
        "entry",
        "create",
        "--spiffe-id",
        "spiffe://demo.hoplite/shop/billing",
        "--parent",
        "spiffe://demo.hoplite/hoplite/agent/local",
        "--selector",
        &format!("unix:uid:{uid}"),
        "--selector",
        &format!("unix:path:{}", program.display()),
    ]);
    assert!(created.status.success(), "{created:?}");

    let (listen, outbound) = (up.base + 8, up.base + 9);
    let config = format!(
        "name = \"billing\"\n\
         workload_api = \"unix://{mesh}/run/agent.sock\"\n\
         policy_dir = \"{mesh}/policies\"\n\
         audit_dir = \"{mesh}/audit/billing\"\n\
         state_dir = \"{mesh}/state/billing\"\n\
         admin_socket = \"{mesh}/run/billing.sock\"\n\
         [[inbound]]\n\
         listen = \"127.0.0.1:{listen}\"\n\
         service = \"billing\"\n\
         protocol = \"http\"\n\
         forward_to = \"127.0.0.1:9\"\n\
         [[outbound]]\n\
         name = \"ledger\"\n\
         listen = \"127.0.0.1:{outbound}\"\n\
         protocol = \"http\"\n\
         connect_to = \"127.0.0.1:{}\"\n\
         expect = \"spiffe://demo.hoplite/shop/ledger\"\n",
        up.base + 13,
        mesh = up.dir.display(),
    );
    let file = home.path().join("billing.toml");
    fs::write(&file, config).unwrap();
    let mut proxy = Command::new(&program)
        .args(["proxy", "run", "--config"])
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let answer = until("billing reads the ledger", || {
        up.try_get_at(outbound, "/accounts/7").ok()
    });
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains("spiffe://demo.hoplite/shop/billing"), "{answer:?}");
    assert!(up.interrupt().success());
}
