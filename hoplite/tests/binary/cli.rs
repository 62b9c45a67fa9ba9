//! Wrong input, file by file and flag by flag: one clear sentence, a non-zero exit, nothing half-written.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::support::hoplite;

/// Runs the binary and expects one sentence that has all of `expected`.
#[track_caller]
fn check(arguments: &[&str], expected: &[&str]) {
    let output = hoplite(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{arguments:?} ended with {:?}: {said}",
        output.status
    );
    for part in expected {
        assert!(said.contains(part), "{arguments:?}: `{part}` is missing from:\n{said}");
    }
    for noise in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
        assert!(!said.contains(noise), "{arguments:?}: {said}");
    }
    if output.status.code() == Some(1) {
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{arguments:?} should say one sentence:\n{said}");
    }
}

/// A path as the command line takes it.
fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What is replaced in a good file, and what must be said then.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn configuration_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let path = text(&file);
    for daemon in ["ca", "agent", "proxy"] {
        let run: &[&str] = &[daemon, "run", "--config", &path];
        let _ = fs::remove_file(&file);
        check(run, &["c.toml"]);
        fs::write(&file, "").unwrap();
        check(run, &["c.toml:1:1", "missing field"]);
        fs::write(&file, "trust_domain = \"demo").unwrap();
        check(run, &["c.toml:1:"]);
        fs::write(&file, [0xff, 0xfe, 0]).unwrap();
        check(run, &["c.toml", "UTF-8"]);
        fs::write(&file, "colour = 3\n").unwrap();
        check(run, &["c.toml:1:1", "colour"]);
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        check(run, &["cannot read", "c.toml", "directory"]);
        fs::remove_dir(&file).unwrap();
    }
    let written = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(written, 0, "nothing half-written");
}

/// A good CA configuration, with lines replaced.
fn ca_config(dir: &Path, replace: &[(&str, &str)]) -> String {
    let mut config = format!(
        "trust_domain = \"test.example\"\ndata_dir = \"{0}/data\"\nlisten = \"127.0.0.1:0\"\nadmin_socket = \"{0}/ca.sock\"\nfounds = true\n",
        dir.display()
    );
    for (from, to) in replace {
        assert!(config.contains(from));
        config = config.replace(from, to);
    }
    config
}

#[test]
fn values_of_the_ca() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.toml");
    let path = text(&file);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let blocked = dir.path().join("blocked");
    fs::write(&blocked, "").unwrap();
    let socket = text(&dir.path().join("ca.sock"));
    let long = text(&dir.path().join("x".repeat(120)));
    let data = text(&dir.path().join("data"));
    let cases: &[Case<'_>] = &[
        (
            &[("test.example", "Test.Example")],
            &["ca.toml", "trust_domain", "Test.Example"],
        ),
        (&[("\"127.0.0.1:0\"", "7700")], &["ca.toml:3:", "listen = 7700"]),
        (&[("127.0.0.1:0", "localhost")], &["ca.toml:3:", "localhost"]),
        (&[("127.0.0.1:0", &taken)], &[&taken]),
        (&[(&data, &text(&blocked))], &["blocked"]),
        (&[(&socket, &long)], &["106", "shorter"]),
        (
            &[("listen =", "x509_ttl = \"1s\"\nlisten =")],
            &["ca.toml", "x509_ttl", "1s"],
        ),
        (
            &[("listen =", "x509_ttl = \"soon\"\nlisten =")],
            &["ca.toml:3:", "soon"],
        ),
    ];
    for (replace, expected) in cases {
        fs::write(&file, ca_config(dir.path(), replace)).unwrap();
        check(&["ca", "run", "--config", &path], expected);
        assert!(
            !dir.path().join("ca.sock").exists(),
            "a socket stays behind after {replace:?}"
        );
    }
}

#[test]
fn a_ca_without_its_key_makes_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = crate::support::Up::start(dir.path());
    assert!(up.interrupt().success());
    let key = dir.path().join("ca/authority.key");
    fs::remove_file(&key).unwrap();
    check(
        &["ca", "run", "--config", &text(&dir.path().join("config/ca.toml"))],
        &["authority.key"],
    );
    assert!(!key.exists());
}

#[test]
fn flags_and_tools() {
    let dir = tempfile::tempdir().unwrap();
    let empty = text(dir.path());
    let file = text(&dir.path().join("file"));
    fs::write(&file, "").unwrap();
    let long = text(&dir.path().join("x".repeat(120)));

    check(&["up", "--base-port", "80"], &["--base-port", "80"]);
    check(&["up", "--base-port", "many"], &["--base-port", "many"]);
    check(&["up", "--dir", &file], &["file"]);
    check(&["up", "--dir", &long], &["106", "shorter"]);
    assert!(!Path::new(&long).exists(), "nothing half-written");
    check(&["up", "--svid-ttl", "1s", "--dir", &empty], &["5s"]);
    check(&["up", "--check", "--dir", &empty], &["--check", "--dir"]);
    check(&["nonsense"], &["nonsense"]);
    check(&["ca", "run"], &["--config"]);
    check(
        &["svid", "fetch", "--socket", "tcp://127.0.0.1:1"],
        &["tcp://127.0.0.1:1", "unix:///"],
    );
    check(
        &["svid", "fetch", "--dir", &empty],
        &["cannot reach the Workload API", "agent running"],
    );
    check(&["token", "create", "--node", "a", "--dir", &empty], &["no CA answers"]);
    check(&["token", "create", "--node", "a", "--ttl", "soon"], &["soon"]);
    check(
        &[
            "entry",
            "create",
            "--spiffe-id",
            "x",
            "--parent",
            "y",
            "--selector",
            "z",
        ],
        &["`z` is no selector kind", "`unix:uid`"],
    );
    check(&["entry", "apply", &file, "--dir", &empty], &["no CA answers"]);
    check(&["policy", "check", &long], &["cannot read the policy directory"]);
    check(&["policy", "check", &empty], &["no `*.cedar` file"]);
    check(&["policy", "status", "--dir", &empty], &["there is no mesh"]);
    check(&["audit", "query", "--log", &empty], &["there is no log in"]);
    check(
        &["audit", "query", "--since", "28.11.2026"],
        &["28.11.2026", "yesterday 18:00"],
    );
    check(
        &["audit", "query", "--time-zone", "Europe/Berlim"],
        &["Europe/Berlim", "Europe/Berlin"],
    );
    check(&["audit", "query", "--outcome", "denied"], &["denied"]);
    check(&["audit", "query", "--id", "nonsense"], &["nonsense"]);
}

#[test]
fn every_command_helps_with_an_example() {
    let commands: &[&[&str]] = &[
        &["up"],
        &["ca", "init"],
        &["ca", "run"],
        &["ca", "show"],
        &["join"],
        &["run"],
        &["agent", "run"],
        &["agent", "status"],
        &["agent", "list"],
        &["agent", "ban"],
        &["agent", "evict"],
        &["proxy", "run"],
        &["completions"],
        &["man"],
        &["token", "create"],
        &["entry", "create"],
        &["entry", "update"],
        &["entry", "apply"],
        &["entry", "list"],
        &["entry", "show"],
        &["entry", "delete"],
        &["entry", "why"],
        &["bundle", "show"],
        &["bundle", "set"],
        &["federation", "add"],
        &["federation", "list"],
        &["federation", "show"],
        &["federation", "refresh"],
        &["federation", "delete"],
        &["federation", "set", "put"],
        &["federation", "set", "list"],
        &["federation", "set", "delete"],
        &["svid", "fetch"],
        &["svid", "watch"],
        &["policy", "check"],
        &["policy", "fmt"],
        &["policy", "status"],
        &["policy", "schema"],
        &["audit", "query"],
        &["audit", "tail"],
        &["audit", "verify"],
    ];
    for command in commands {
        let output = hoplite(&[command, &["--help"][..]].concat());
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command:?}");
        assert!(help.contains("Example"), "{command:?} has no example:\n{help}");
        assert!(
            help.contains(&format!("hoplite {}", command.join(" "))),
            "{command:?}:\n{help}"
        );
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (base, _taken) = (20_000..60_000)
        .step_by(137)
        .find_map(|base: u16| Some((base, TcpListener::bind(("127.0.0.1", base + 12)).ok()?)))
        .unwrap();
    check(
        &["up", "--dir", &text(dir.path()), "--base-port", &base.to_string()],
        &[
            &format!("port {}", base + 12),
            "the inbound listener of orders",
            "--base-port",
        ],
    );
}

#[test]
fn values_of_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    let path = text(&file);
    let mut up = crate::support::Up::start(&dir.path().join("mesh"));
    assert!(up.interrupt().success());
    fs::copy(up.dir.join("ca/bundle.pem"), dir.path().join("bundle.pem")).unwrap();
    let blocked = dir.path().join("blocked");
    fs::write(&blocked, "this is no certificate").unwrap();
    let good = format!(
        "trust_domain = \"demo.hoplite\"\ndata_dir = \"{0}/data\"\nca = \"127.0.0.1:1\"\n\
         trust_bundle = \"{0}/bundle.pem\"\nsocket = \"{0}/agent.sock\"\n",
        dir.path().display()
    );
    let (data, socket) = (text(&dir.path().join("data")), text(&dir.path().join("agent.sock")));
    let long = text(&dir.path().join("x".repeat(120)));
    let cases: &[Case<'_>] = &[
        (&[("127.0.0.1:1", "localhost")], &["agent.toml", "`ca", "localhost"]),
        (&[("demo.hoplite", "TEST")], &["agent.toml:1:", "TEST"]),
        (
            &[("bundle.pem", "nowhere.pem")],
            &["nowhere.pem", "`hoplite join` joins it"],
        ),
        (&[("bundle.pem", "blocked")], &["blocked", "no trust bundle"]),
        (&[(&data, &text(&blocked))], &["blocked"]),
        (&[(&data, "/proc/hoplite")], &["/proc/hoplite", "choose a directory"]),
        (&[(&socket, "agent.sock")], &["agent.toml", "socket", "agent.sock"]),
        (
            &[("socket =", "socket_mode = \"open\"\nsocket =")],
            &["agent.toml:5:", "open"],
        ),
        (&[(&socket, &long)], &["106", "shorter"]),
    ];
    for (replace, expected) in cases {
        let config = replace
            .iter()
            .fold(good.clone(), |text, (from, to)| text.replace(from, to));
        fs::write(&file, config).unwrap();
        check(&["agent", "run", "--config", &path], expected);
    }
}

#[test]
fn values_of_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proxy.toml");
    let path = text(&file);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let blocked = dir.path().join("blocked");
    fs::write(&blocked, "").unwrap();
    let long = "x".repeat(120);
    let good = "name = \"orders\"\nworkload_api = \"unix:///nowhere/agent.sock\"\npolicy_dir = \"policies\"\n\
                audit_dir = \"audit\"\nadmin_socket = \"orders.sock\"\n\
                [[inbound]]\nlisten = \"127.0.0.1:0\"\nservice = \"orders\"\nprotocol = \"http\"\nforward_to = \"127.0.0.1:9\"\n\
                [[outbound]]\nname = \"ledger\"\nlisten = \"127.0.0.2:0\"\nprotocol = \"http\"\nconnect_to = \"127.0.0.1:9\"\n\
                expect = \"spiffe://demo.hoplite/ledger\"\n";
    let cases: &[Case<'_>] = &[
        (
            &[("\"orders\"\nworkload", "\"Orders!\"\nworkload")],
            &["proxy.toml", "name", "Orders!"],
        ),
        (
            &[("unix:///nowhere/agent.sock", "nowhere")],
            &["proxy.toml", "workload_api", "nowhere", "unix:///"],
        ),
        (
            &[("protocol = \"http\"\nforward", "protocol = \"ftp\"\nforward")],
            &["proxy.toml:9:", "ftp"],
        ),
        (
            &[("127.0.0.2:0", "0.0.0.0:9")],
            &["proxy.toml", "outbound.listen", "0.0.0.0:9", "127.0.0.1"],
        ),
        (
            &[("spiffe://demo.hoplite/ledger", "ledger")],
            &["proxy.toml:16:", "ledger"],
        ),
        (
            &[("\"127.0.0.1:9\"\n[[", "\"nine\"\n[[")],
            &["proxy.toml", "inbound.forward_to", "nine"],
        ),
        (
            &[("policy_dir", "workers = 0\npolicy_dir")],
            &["proxy.toml", "workers", "0"],
        ),
        (&[("127.0.0.1:0", &taken)], &[&taken]),
        (&[("audit_dir = \"audit\"", "audit_dir = \"blocked\"")], &["blocked"]),
        (
            &[("audit_dir = \"audit\"", "audit_dir = \"/proc/hoplite\"")],
            &["/proc/hoplite"],
        ),
        (
            &[(
                "audit_dir = \"audit\"",
                "audit_dir = \"audit\"\nstate_dir = \"audit/state\"",
            )],
            &["state_dir", "outside `audit_dir`"],
        ),
        (&[("orders.sock", &long)], &["106", "shorter"]),
    ];
    for (replace, expected) in cases {
        let config = replace.iter().fold(good.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        fs::write(&file, config).unwrap();
        check(&["proxy", "run", "--config", &path], expected);
        assert!(
            !dir.path().join("orders.sock").exists(),
            "a socket stays behind after {replace:?}"
        );
    }
}

/// Every command about policy shows an example, and answers scripts in JSON.
#[test]
fn every_policy_command_has_an_example_and_json() {
    /// What is printed is a document of its own kind.
    const NO_JSON: &[&str] = &["schema"];
    fn visit(path: &[&str], seen: &mut usize) {
        let output = hoplite(&[path, &["--help"]].concat());
        assert!(output.status.success(), "{path:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        let commands: Vec<&str> = help
            .lines()
            .skip_while(|line| *line != "Commands:")
            .skip(1)
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|command| *command != "help")
            .collect();
        for command in &commands {
            visit(&[path, &[*command]].concat(), seen);
        }
        if commands.is_empty() {
            *seen += 1;
            assert!(help.contains("Example"), "{path:?} has no example:\n{help}");
            let json = NO_JSON.contains(path.last().unwrap()) || help.contains("--output <OUTPUT>");
            assert!(json, "{path:?} has no --output:\n{help}");
        }
    }
    let mut seen = 0;
    visit(&["policy"], &mut seen);
    assert!(seen >= 22, "only {seen} commands were looked at");
}
