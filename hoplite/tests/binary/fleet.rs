//! What `hoplite status` and `hoplite fleet` say of a running mesh: all of it within seconds, and what is wrong by its name.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Up, hoplite, kill, until};

/// A mesh of `hoplite up` reports every two seconds; an agent is silent after another two.
const PERIOD: Duration = Duration::from_secs(4);

/// A proxy of its own in a mesh, with a binary and a configuration that the test chooses. Dropping it kills it.
struct Extra {
    child: Child,
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a tool in a terminal of so many columns.
fn at(up: &Up, columns: usize, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_hoplite"))
        .args(arguments)
        .arg("--dir")
        .arg(&up.dir)
        .env("COLUMNS", columns.to_string())
        .env("HOPLITE_TIME_ZONE", "utc")
        .stdin(Stdio::null())
        .output();
    output.unwrap()
}

/// Waits until the whole mesh is reported and well.
fn well(up: &Up, proxies: u64) -> Value {
    until("all is well", || {
        let status = up.json(&["status"]);
        let is = |pointer: &str, value: Value| status.pointer(pointer) == Some(&value);
        let all = is("/policy/proxies", proxies.into()) && is("/verdict", "well".into());
        all.then_some(status)
    })
}

/// Waits until something of a kind is told of somebody, and gives its text.
fn told(up: &Up, kind: &str, proxy: Option<&str>) -> String {
    until(&format!("{kind} of {proxy:?}"), || {
        let drift = up.json(&["fleet", "drift"]);
        let found = drift
            .as_array()?
            .iter()
            .find(|trouble| trouble["kind"] == kind && trouble["proxy"].as_str() == proxy)?;
        Some(found["text"].as_str()?.to_owned())
    })
}

impl Extra {
    /// A copy of the binary, which is another one: something is appended to it. It goes by a directory of its own, and believes
    /// a signer whom nobody else knows.
    fn start(up: &Up, name: &str) -> Self {
        let binary = up.dir.join(format!("{name}-binary"));
        fs::copy(env!("CARGO_BIN_EXE_hoplite"), &binary).unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&binary).unwrap();
        file.write_all(b"another build").unwrap();
        drop(file);
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        let key = up.dir.join(format!("{name}.key")).display().to_string();
        let created = hoplite(&["policy", "key", "create", &key, "--name", "mallory"]);
        assert_eq!(code(&created), Some(0), "{created:?}");
        let signer = stdout(&created);
        let signer = signer.trim();
        let registered = up.tool(&[
            "entry",
            "create",
            "--spiffe-id",
            &format!("spiffe://demo.hoplite/{name}"),
            "--parent",
            "spiffe://demo.hoplite/hoplite/agent/local",
            "--selector",
            &format!("unix:path:{}", fs::canonicalize(&binary).unwrap().display()),
        ]);
        assert_eq!(code(&registered), Some(0), "{registered:?}");
        let child = Self::run(&binary, &Self::configure(up, name, signer));
        Self { child }
    }

    fn configure(up: &Up, name: &str, signer: &str) -> PathBuf {
        let dir = up.dir.display();
        let config = up.dir.join(format!("{name}.toml"));
        let text = format!(
            "name = \"{name}\"\nworkload_api = \"unix://{dir}/run/agent.sock\"\nspiffe_id = \"spiffe://demo.hoplite/{name}\"\n\
             policy_dir = \"{dir}/policies\"\npolicy_signers = [\"{signer}\"]\ntrust_domain = \"demo.hoplite\"\n\
             audit_dir = \"{dir}/audit-{name}\"\nstate_dir = \"{dir}/state-{name}\"\nadmin_socket = \"{dir}/{name}.sock\"\n\
             [[inbound]]\nlisten = \"127.0.0.1:0\"\nservice = \"{name}\"\nprotocol = \"tcp\"\nforward_to = \"127.0.0.1:9\"\n"
        );
        fs::write(&config, text).unwrap();
        config
    }

    fn run(binary: &Path, config: &Path) -> Child {
        let mut command = Command::new(binary);
        command.args(["proxy", "run", "--config"]).arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_mesh_is_seen_whole_within_seconds_and_what_goes_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(dir.path());
    let started = Instant::now();
    let status = well(&up, 3);
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(10),
        "the status was whole only after {took:?}"
    );
    assert_eq!(status["agents"]["heard"], 1, "{status}");
    assert_eq!(status["agents"]["in_step"], 1, "{status}");

    // Terminals of any width.
    for columns in [80, 120] {
        for command in [
            &["status"][..],
            &["fleet"],
            &["fleet", "versions"],
            &["fleet", "show", "local"],
        ] {
            let output = at(&up, columns, command);
            let text = stdout(&output);
            assert_eq!(code(&output), Some(0), "{command:?}: {output:?}");
            assert!(
                text.lines().all(|line| line.chars().count() <= columns),
                "{command:?}:\n{text}"
            );
            if std::env::var_os("HOPLITE_SHOW").is_some() {
                eprintln!("$ hoplite {}\n{text}", command.join(" "));
            }
        }
    }
    assert!(stdout(&up.tool(&["status"])).ends_with("all is well\n"));
    let nothing = up.tool(&["fleet", "drift"]);
    assert_eq!((code(&nothing), &*stdout(&nothing)), (Some(0), "nothing drifts\n"));
    assert_eq!(code(&up.tool(&["fleet", "expiring", "--within", "10m"])), Some(0));
    // SVIDs of an hour renew themselves; an authority of a year does not.
    let expiring = up.tool(&["fleet", "expiring", "--within", "2h"]);
    assert_eq!(
        (code(&expiring), &*stdout(&expiring)),
        (Some(0), "nothing ends within 2h\n")
    );
    let expiring = up.tool(&["fleet", "expiring", "--within", "400d"]);
    assert_eq!(code(&expiring), Some(1), "{expiring:?}");
    let said = stdout(&expiring);
    assert!(
        said.contains("an authority that it trusts ends at") && !said.contains("its SVID"),
        "{said}"
    );
    let lines = up.tool(&["fleet", "--output", "jsonl"]);
    let only: Value = serde_json::from_str(&stdout(&lines)).unwrap();
    assert_eq!(only["proxies"].as_array().unwrap().len(), 3);
    // A name that nobody has is no node that is well.
    for command in [
        &["fleet", "show", "nobody"][..],
        &["fleet", "--node", "nobody"],
        &["fleet", "drift", "--node", "nobody"],
    ] {
        let output = up.tool(command);
        assert_eq!(code(&output), Some(3), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("`nobody`"),
            "{output:?}"
        );
    }
    assert_eq!(code(&up.tool(&["fleet", "drift", "--node", "loc"])), Some(0));

    // Policy is followed, and that is known of every node.
    assert_eq!(up.get("/orders/42").status, 200);
    let policies = up.dir.join("policies").display().to_string();
    let published = up.tool(&["policy", "publish", &policies, "--note", "first", "--wait"]);
    let text = stdout(&published);
    assert!(
        text.contains("wait     3 of 3 proxies on 1 node enforce revision 1\n"),
        "{published:?}"
    );
    let rows = up.json(&["policy", "status"]);
    assert_eq!(rows.as_array().unwrap().len(), 3, "none is told twice: {rows}");
    let shown = until("revision 1 in the status", || {
        let text = stdout(&up.tool(&["status"]));
        text.contains("revision 1 is in force at 3 of 3 proxies on 1 node")
            .then_some(text)
    });
    assert!(shown.ends_with("all is well\n"), "{shown}");

    // Somebody with another binary, a directory and a signer of his own.
    let extra = Extra::start(&up, "stranger");
    let began = Instant::now();
    assert!(told(&up, "unsigned-directory", Some("stranger")).contains("revision 1 is in force"));
    let build = told(&up, "other-build", Some("stranger"));
    assert!(build.contains("another build of"), "{build}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(told(&up, "policy-alarm", Some("stranger")).contains("unsigned directory decides here"));
    let output = up.tool(&["status"]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(
        stdout(&output).contains("local/stranger: decides by an unsigned directory"),
        "{output:?}"
    );
    let versions = up.json(&["fleet", "versions"]);
    let proxies: Vec<&Value> = versions
        .as_array()
        .unwrap()
        .iter()
        .filter(|b| b["kind"] == "proxy")
        .collect();
    assert_eq!(proxies.len(), 2, "{versions}");
    let behind = up.tool(&["policy", "status"]);
    assert_eq!(code(&behind), Some(1), "{behind:?}");
    assert!(stdout(&behind).contains("local/stranger"), "{behind:?}");
    // Killed, it ended without a word.
    drop(extra);
    until("its end", || {
        let fleet = up.json(&["fleet"]);
        let troubles = fleet[0]["troubles"].as_array()?.clone();
        troubles.into_iter().find(|trouble| trouble["kind"] == "proxy-ended")
    });
}

#[test]
fn a_silent_agent_is_named_within_a_period_and_a_ca_that_starts_again_says_what_it_has_not_heard() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    well(&up, 3);
    let agent = up.processes()["agent"];
    kill("-STOP", agent);
    let stopped = Instant::now();
    let text = told(&up, "silent", None);
    let took = stopped.elapsed();
    assert!(text.starts_with("nothing was heard for "), "{text}");
    assert!(
        took < PERIOD + Duration::from_secs(11),
        "a silent agent was named only after {took:?}"
    );
    let output = up.tool(&["status"]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(
        stdout(&output).contains("0 of 1 heard, 0 in step, 1 silent"),
        "{output:?}"
    );

    // A CA that starts anew knows nothing, and says that; it does not say that all is well.
    let ca = up.processes()["ca"];
    kill("-KILL", ca);
    until("the CA is back", || {
        up.processes().get("ca").filter(|pid| **pid != ca).copied()
    });
    let unknown = until("an answer of the CA that is back", || {
        let output = up.tool(&["status", "--output", "json"]);
        serde_json::from_slice::<Value>(&output.stdout)
            .ok()
            .map(|status| (output, status))
    });
    let (output, status) = unknown;
    assert_eq!(
        (code(&output), &status["verdict"]),
        (Some(3), &Value::from("unknown")),
        "{status}"
    );
    let text = told(&up, "not-heard", None);
    assert!(text.starts_with("not heard since the CA started at "), "{text}");
    until("it is wrong after a period", || {
        (code(&up.tool(&["status"])) == Some(1)).then_some(())
    });

    kill("-CONT", agent);
    well(&up, 3);
    // Nobody to ask is not the same as something wrong.
    assert!(up.interrupt().success());
    let output = up.tool(&["status"]);
    assert_eq!(code(&output), Some(3), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no CA answers"),
        "{output:?}"
    );
}
