//! Authorities as a person meets them: the warning before the end, and the guide's commands as written.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::clock::Clock;
use crate::support::{Up, hoplite, until};

const DAY: i64 = 24 * 3_600;

/// A CA by this clock, whose log is a file. Dropping it kills it.
struct Ca(Child);

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one whose authority lives for a year, and returns when it serves.
fn started(clock: &Clock, dir: &Path, port: u16, rotates: bool) -> Ca {
    let at = dir.display();
    let text = format!(
        "founds = true\ntrust_domain = \"test.example\"\ndata_dir = \"{at}/data\"\nlisten = \"127.0.0.1:0\"\nadmin_socket = \"{at}/ca.sock\"\n\
         metrics_listen = \"127.0.0.1:{port}\"\nauthority_rotates = {rotates}\n"
    );
    fs::write(dir.join("ca.toml"), text).unwrap();
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
    clock.of(&mut command);
    command.args(["ca", "run", "--config"]).arg(dir.join("ca.toml"));
    let ca = Ca(command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap());
    until("the CA serves", || {
        (Up::get_at(port, "/ready").ok()?.status == 200).then_some(())
    });
    ca
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn states(json: &[u8]) -> Vec<(String, String)> {
    let value: Value = serde_json::from_slice(json).unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let rows = value.as_array().unwrap().iter();
    rows.map(|row| (text(row, "state"), text(row, "fingerprint"))).collect()
}

#[test]
fn an_authority_of_a_year_without_a_successor_warns_on_its_last_day() {
    let (clock, dir, port) = (Clock::new(), tempfile::tempdir().unwrap(), free_port());
    let socket = dir.path().join("ca.sock").display().to_string();
    let tool = |arguments: &[&str]| hoplite(&[arguments, &["--ca-socket", &socket]].concat());
    let log = || fs::read_to_string(dir.path().join("log")).unwrap();
    let lacks = || {
        let metrics = Up::get_at(port, "/metrics").unwrap().body;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("hoplite_ca_authority_lacks_successor "));
        line.unwrap().ends_with(" 1")
    };
    drop(started(&clock, dir.path(), port, false));
    clock.ahead(272 * DAY);
    {
        let _ca = started(&clock, dir.path(), port, false);
        let status = tool(&["status"]);
        assert!(
            status.status.success() && !lacks() && !log().contains("no successor"),
            "{status:?} {}",
            log()
        );
    }
    clock.ahead(364 * DAY);
    {
        let _ca = started(&clock, dir.path(), port, false);
        until("the log warns", || log().contains("has no successor").then_some(()));
        let status = tool(&["status"]);
        let said = String::from_utf8_lossy(&status.stdout).replace("\n           ", " ");
        assert_eq!(status.status.code(), Some(1), "{said}");
        assert!(
            said.contains("has no successor") && said.contains("hoplite authority prepare"),
            "{said}"
        );
        let listed = tool(&["authority", "list"]);
        assert!(
            String::from_utf8_lossy(&listed.stderr).contains("has no successor"),
            "{listed:?}"
        );
        assert!(lacks());
        // What it asks for helps.
        let prepared = tool(&["authority", "prepare"]);
        assert!(prepared.status.success(), "{prepared:?}");
        let status = tool(&["status"]);
        assert!(status.status.success() && !lacks(), "{status:?}");
    }
    // A CA that rotates by itself has it sign, whatever it missed. Nobody has to be waited for that long.
    clock.ahead(364 * DAY + 60);
    let _ca = started(&clock, dir.path(), port, true);
    until("the successor signs", || {
        let listed = states(&tool(&["authority", "list", "--output", "json"]).stdout);
        let states: Vec<&str> = listed.iter().map(|(state, _)| state.as_str()).collect();
        (states == ["active", "old"]).then_some(())
    });
}

/// The commands of the guide, in its order, against a mesh that goes on working.
#[test]
fn the_guide_to_authorities_works_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut up = Up::start(dir.path());
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guide/authorities.md")).unwrap();
    let blocks = guide
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let commands: Vec<&str> = blocks.flat_map(str::lines).collect();
    assert!(commands.len() >= 7, "{commands:?}");
    let listed = || states(&up.tool(&["authority", "list", "--output", "json"]).stdout);
    let mut tainted = None;
    for command in commands {
        let signs = listed().into_iter().find(|(state, _)| state == "active").unwrap().1;
        let fingerprint = tainted.clone().unwrap_or(signs);
        let command = command.replace("FINGERPRINT", &fingerprint[..12]);
        let arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
        let (mut output, mut tries) = (up.tool(&arguments), 0);
        // It says what it waits for.
        while arguments[1] == "revoke" && !output.status.success() && tries < 100 {
            assert!(
                String::from_utf8_lossy(&output.stderr).contains("cannot be revoked yet"),
                "{output:?}"
            );
            std::thread::sleep(std::time::Duration::from_millis(200));
            (output, tries) = (up.tool(&arguments), tries + 1);
        }
        assert!(output.status.success(), "{command}: {output:?}");
        if arguments[1] == "taint" {
            tainted = Some(fingerprint);
        }
    }
    assert_eq!(up.get("/orders/42").status, 200);
    let revoked = tainted.unwrap();
    assert!(
        listed().contains(&("revoked".to_owned(), revoked.clone())),
        "{:?}",
        listed()
    );
    // What is done already is told apart, and nonsense is refused by name.
    assert_eq!(up.tool(&["authority", "revoke", &revoked]).status.code(), Some(3));
    let nonsense = up.tool(&["authority", "taint", "nonsense"]);
    assert_eq!(nonsense.status.code(), Some(1), "{nonsense:?}");
    assert!(
        String::from_utf8_lossy(&nonsense.stderr).contains("`nonsense`"),
        "{nonsense:?}"
    );
    assert!(up.interrupt().success());
}
