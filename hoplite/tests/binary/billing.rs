//! README's own walk: a service of one's own behind a proxy that names no signers, and what it obeys once a bundle is there.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::{Up, until};

const EVERYBODY: &str = "@id(\"open/everybody\")\n@owner(\"nobody\")\npermit (principal, action, resource);\n";

/// The proxy of README's `billing`, which also calls itself, so that somebody asks its policy.
pub(crate) struct Billing {
    config: PathBuf,
    program: PathBuf,
    /// Where its own service would call `billing`.
    port: u16,
    child: Option<Child>,
    said: Arc<Mutex<String>>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Answers 200 to everybody.
fn service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        }
    });
    port
}

impl Billing {
    /// As README says it, with other ports.
    pub(crate) fn register(up: &Up, dir: &Path) -> Self {
        let program = dir.join("billing-proxy");
        if fs::hard_link(env!("CARGO_BIN_EXE_hoplite"), &program).is_err() {
            fs::copy(env!("CARGO_BIN_EXE_hoplite"), &program).unwrap();
        }
        let uid = format!(
            "unix:uid:{}",
            fs::metadata("/proc/self")
                .map(|own| std::os::unix::fs::MetadataExt::uid(&own))
                .unwrap()
        );
        let path = format!("unix:path:{}", program.display());
        let created = up.tool(&[
            "entry",
            "create",
            "--spiffe-id",
            "spiffe://demo.hoplite/shop/billing",
            "--parent",
            "spiffe://demo.hoplite/hoplite/agent/local",
            "--selector",
            &uid,
            "--selector",
            &path,
        ]);
        assert!(created.status.success(), "{created:?}");
        let (inbound, port) = (free_port(), free_port());
        let mesh = up.dir.display();
        let text = format!(
            "name = \"billing\"\n\
             workload_api = \"unix://{mesh}/run/agent.sock\"\n\
             policy_dir = \"{mesh}/policies\"\n\
             audit_dir = \"{mesh}/audit/billing\"\n\
             state_dir = \"{mesh}/state/billing\"\n\
             admin_socket = \"{mesh}/run/billing.sock\"\n\
             [[inbound]]\n\
             listen = \"127.0.0.1:{inbound}\"\n\
             service = \"billing\"\n\
             protocol = \"http\"\n\
             forward_to = \"127.0.0.1:{service}\"\n\
             [[outbound]]\n\
             name = \"billing\"\n\
             listen = \"127.0.0.1:{port}\"\n\
             protocol = \"http\"\n\
             connect_to = \"127.0.0.1:{inbound}\"\n\
             expect = \"spiffe://demo.hoplite/shop/billing\"\n",
            service = service()
        );
        let config = dir.join("billing.toml");
        fs::write(&config, text).unwrap();
        Self {
            config,
            program,
            port,
            child: None,
            said: Arc::default(),
        }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["proxy", "run", "--config"]).arg(&self.config);
        command
    }

    fn run(&mut self) {
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::clone(&self.said);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *said.lock().unwrap() += &(line + "\n");
            }
        });
        self.child = Some(child);
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn says(&self, text: &str) {
        until(text, || self.said.lock().unwrap().contains(text).then_some(()));
    }

    fn status_of_call(&self, up: &Up) -> u16 {
        until("billing answers", || {
            let status = up.try_get_at(self.port, "/invoices").ok()?.status;
            matches!(status, 200 | 403).then_some(status)
        })
    }
}

impl Drop for Billing {
    fn drop(&mut self) {
        self.stop();
    }
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// What `policy status` says of billing, once it says so.
fn billing_says(up: &Up, pointer: &str, expected: &Value) {
    until(&format!("billing's {pointer} is {expected}"), || {
        let all = up.json(&["policy", "status"]);
        let own = all.as_array()?.iter().find(|proxy| proxy["name"] == "billing")?.clone();
        (own.pointer(pointer) == Some(expected)).then_some(())
    });
}

#[test]
fn readmes_billing_obeys_no_unsigned_file_once_a_bundle_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let up = Up::start(&dir.path().join("mesh"));
    let policies = up.dir.join("policies").display().to_string();
    let mut billing = Billing::register(&up, dir.path());
    billing.run();
    assert_eq!(up.get("/orders/42").status, 200);
    assert_eq!(billing.status_of_call(&up), 403, "nobody may call billing yet");

    let published = up.tool(&["policy", "publish", &policies]);
    assert!(published.status.success(), "{}", text(&published));
    billing_says(&up, "/policy/bundle_revision", &json!(1));
    fs::write(up.dir.join("policies/open.cedar"), EVERYBODY).unwrap();
    billing.says("the directory is no longer read");
    assert_eq!(billing.status_of_call(&up), 403, "an unsigned file changes nothing");
    let status = up.tool(&["policy", "status"]);
    assert!(
        status.status.success() && text(&status).contains("billing"),
        "{}",
        text(&status)
    );

    // People change who may sign; no file on this node is edited.
    let (next, keys) = (dir.path().join("next.signers"), up.dir.join("keys"));
    let key = |name: &str| keys.join(format!("{name}.key")).display().to_string();
    let carol = up_key(&dir.path().join("carol.key"));
    let next = next.display().to_string();
    let run = |arguments: &[&str], good: bool| {
        let output = up.tool(arguments);
        assert_eq!(output.status.success(), good, "{arguments:?}: {}", text(&output));
        text(&output)
    };
    let propose = [
        "policy",
        "signers",
        "propose",
        "--add",
        &carol,
        "--key",
        &key("alice"),
        "--out",
        &next,
    ];
    assert!(
        run(&propose, true).contains("1 more of the present signers"),
        "two of two must"
    );
    assert!(run(&["policy", "signers", "publish", &next], false).contains("only `alice` signed it"));
    let sign = ["policy", "signers", "sign", &next, "--yes", "--key", &key("bob")];
    assert!(run(&sign, true).contains("hoplite policy signers publish"));
    run(&["policy", "signers", "publish", &next], true);
    billing_says(&up, "/policy/signers_version", &json!(2));
    let listed = up.json(&["policy", "signers", "list"]);
    assert_eq!(
        (&listed["version"], listed["signers"].as_array().unwrap().len()),
        (&json!(2), 3)
    );
    // What alice signed is in force, so she cannot go yet.
    let leaves = dir.path().join("leaves.signers").display().to_string();
    let propose = [
        "policy",
        "signers",
        "propose",
        "--remove",
        "alice",
        "--key",
        &key("alice"),
        "--out",
        &leaves,
    ];
    run(&propose, true);
    run(
        &["policy", "signers", "sign", &leaves, "--yes", "--key", &key("bob")],
        true,
    );
    let refused = run(&["policy", "signers", "publish", &leaves], false);
    assert!(refused.contains("every node would deny everything"), "{refused}");

    // A restart goes on with whom it followed.
    billing.stop();
    billing.run();
    assert_eq!(billing.status_of_call(&up), 403);
    billing_says(&up, "/policy/signers_version", &json!(2));

    // A proxy whose own file names somebody else obeys the directory: everybody sees it.
    billing.stop();
    let stranger = up_key(&dir.path().join("mallory.key"));
    let config = fs::read_to_string(&billing.config).unwrap();
    let own = config.replace(
        "state_dir =",
        &format!("trust_domain = \"demo.hoplite\"\npolicy_signers = [\"{stranger}\"]\nstate_dir ="),
    );
    fs::write(&billing.config, own.replace("/state/billing", "/state/other")).unwrap();
    billing.run();
    billing.says("ALARM: there is a signed bundle, and an unsigned directory decides here");
    let status = up.tool(&["policy", "status"]);
    let shown = text(&status);
    assert!(
        !status.status.success() && shown.contains("ALARM") && shown.contains("an unsigned directory decides"),
        "{shown}"
    );
}

/// A new key; its signer as others write it.
fn up_key(file: &Path) -> String {
    let made = crate::support::hoplite(&["policy", "key", "create", &file.display().to_string()]);
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}
