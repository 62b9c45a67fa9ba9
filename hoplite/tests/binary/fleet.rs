//! What `hoplite status` and `hoplite fleet` say of a running mesh: all of it within seconds, and what is wrong by its name.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
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
        Self::of(up, name, |program| program.extend_from_slice(b"another build"))
    }

    /// Likewise, of a lower version: the number that it was built with is another one.
    fn older(up: &Up, name: &str) -> Self {
        Self::of(up, name, |program| {
            let (from, to) = (env!("CARGO_PKG_VERSION").as_bytes(), b"0.0.9");
            assert_eq!(from.len(), to.len());
            let mut at = 0;
            while let Some(rest) = program.get_mut(at..) {
                let Some(found) = rest.windows(from.len()).position(|part| part == from) else {
                    break;
                };
                at += found + to.len();
                rest.iter_mut().skip(found).zip(to).for_each(|(byte, new)| *byte = *new);
            }
        })
    }

    fn of(up: &Up, name: &str, change: impl Fn(&mut Vec<u8>)) -> Self {
        let binary = up.dir.join(format!("{name}-binary"));
        let mut program = fs::read(env!("CARGO_BIN_EXE_hoplite")).unwrap();
        change(&mut program);
        fs::write(&binary, program).unwrap();
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
        // Where a file may not grow, writing fails, as on a full disk, instead of killing the writer.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(binary);
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
    // On a full disk it ends with an error, and says so; nobody is well until it is back.
    let stranger = |up: &Up| {
        let proxies = up.json(&["fleet"])[0]["proxies"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        proxies.into_iter().find(|proxy| proxy["name"] == "stranger")
    };
    let listener = stranger(&up).unwrap()["listeners"][0]["address"].clone();
    let full = Rlimit {
        current: Some(0),
        maximum: None,
    };
    let pid = Pid::from_raw(extra.child.id().cast_signed());
    prlimit(pid, Resource::Fsize, full).unwrap();
    until("a call that cannot be recorded", || {
        let refused =
            TcpStream::connect(listener.as_str()?).and_then(|mut stream| stream.write_all(b"no TLS at all\n"));
        refused.is_err().then_some(())
    });
    let why = told(&up, "proxy-ended", Some("stranger"));
    assert!(
        why.contains("with an error") && why.contains("can no longer be written"),
        "{why}"
    );
    let output = up.tool(&["status"]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(stdout(&output).contains("local/stranger: it ended at"), "{output:?}");
    assert!(
        stranger(&up).unwrap()["failure"]
            .as_str()
            .unwrap()
            .contains("decision log")
    );
    drop(extra);
    let again = Extra {
        child: Extra::run(&up.dir.join("stranger-binary"), &up.dir.join("stranger.toml")),
    };
    until("it is back", || {
        stranger(&up).filter(|proxy| proxy["ended_at"].is_null())
    });
    // Killed, it ended without a word.
    drop(again);
    assert!(told(&up, "proxy-ended", Some("stranger")).contains("without a word"));
}

/// An operator on a machine that shares nothing with the mesh but its network.
struct Laptop {
    home: tempfile::TempDir,
    ca: String,
}

impl Laptop {
    fn sign_in(up: &Up) -> Self {
        let home = tempfile::tempdir().unwrap();
        let invited = up.tool(&[
            "token",
            "create",
            "--operator",
            "ann",
            "--role",
            "auditor",
            "--output",
            "json",
        ]);
        let invited: Value = serde_json::from_slice(&invited.stdout).unwrap();
        let word = |key: &str| invited.get(key).and_then(Value::as_str).unwrap().to_owned();
        let ca = word("address");
        let laptop = Self { home, ca };
        let login = laptop.command(&["login", &word("invitation")]).output().unwrap();
        assert_eq!(code(&login), Some(0), "{login:?}");
        laptop
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg("30").arg(env!("CARGO_BIN_EXE_hoplite")).args(arguments);
        for name in [
            "HOPLITE_CA",
            "HOPLITE_CA_SOCKET",
            "HOPLITE_DIR",
            "XDG_CONFIG_HOME",
            "XDG_STATE_HOME",
        ] {
            command.env_remove(name);
        }
        command
            .env("HOME", self.home.path())
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        command
    }

    /// A tool, with the CA's address.
    fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).args(["--ca", &self.ca]).output().unwrap()
    }
}

/// A proxy whose process runs and says nothing is told of by its agent, which goes on; one of a lower version is told as soon as it
/// reports. Whoever asks from elsewhere sees the same, with the same exit codes.
#[test]
fn a_silent_proxy_and_an_older_program_are_named_to_a_laptop_too() {
    /// What an agent allows a proxy (agent/src/reports/points.rs).
    const SILENT_AFTER: Duration = Duration::from_secs(16);
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    well(&up, 3);
    let laptop = Laptop::sign_in(&up);
    for command in [
        &["status"][..],
        &["fleet"],
        &["fleet", "drift"],
        &["fleet", "show", "local"],
    ] {
        let (there, here) = (laptop.ask(command), up.tool(command));
        assert_eq!(
            (code(&there), code(&here)),
            (Some(0), Some(0)),
            "{command:?}: {there:?} {here:?}"
        );
    }
    assert!(stdout(&laptop.ask(&["status"])).ends_with("all is well\n"));

    let ledger = up.processes()["ledger"];
    kill("-STOP", ledger);
    let stopped = Instant::now();
    let text = told(&up, "proxy-silent", Some("ledger"));
    let took = stopped.elapsed();
    assert!(
        text.contains(&format!("process {ledger} runs and has said nothing since")),
        "{text}"
    );
    assert!(
        took < SILENT_AFTER + PERIOD,
        "a silent proxy was named only after {took:?}"
    );
    let text = format!("process {ledger} runs");
    for (command, part) in [
        (&["status"][..], &*text),
        (&["fleet"], "proxy-silent (ledger)"),
        (&["fleet", "show", "local"], &*text),
    ] {
        let output = laptop.ask(command);
        assert_eq!(code(&output), Some(1), "{command:?}: {output:?}");
        assert!(stdout(&output).contains(part), "{command:?}: {output:?}");
    }
    // The agent goes on: the node itself is heard, and the two other proxies are as they were.
    let status: Value = serde_json::from_slice(&laptop.ask(&["status", "--output", "json"]).stdout).unwrap();
    assert_eq!(
        (&status["agents"]["silent"], &status["agents"]["heard"]),
        (&0.into(), &1.into()),
        "{status}"
    );
    kill("-CONT", ledger);
    well(&up, 3);
    assert_eq!(code(&laptop.ask(&["status"])), Some(0));

    let older = Extra::older(&up, "older");
    let began = Instant::now();
    let text = told(&up, "old-version", Some("older"));
    assert!(text.contains("runs version 0.0.9, and the CA "), "{text}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let drift = laptop.ask(&["fleet", "drift"]);
    assert_eq!(code(&drift), Some(1), "{drift:?}");
    assert!(stdout(&drift).contains("0.0.9"), "{drift:?}");
    let versions = stdout(&laptop.ask(&["fleet", "versions", "--output", "csv"]));
    assert!(versions.contains("0.0.9"), "{versions}");
    drop(older);

    // From a laptop as from the machine: a CA that is away is no verdict, and a program is told so in its form.
    assert!(up.interrupt().success());
    for command in [
        &["status"][..],
        &["fleet"],
        &["fleet", "drift"],
        &["fleet", "show", "local"],
    ] {
        let output = laptop.ask(&[command, &["--output", "json"]].concat());
        assert_eq!(
            (code(&output), &*stdout(&output)),
            (Some(3), ""),
            "{command:?}: {output:?}"
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert_eq!(last["exit"], 3, "{said}");
        assert!(last["error"].as_str().unwrap().contains(&laptop.ca), "{said}");
    }
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
