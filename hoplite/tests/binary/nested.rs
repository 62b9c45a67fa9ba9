//! The guide to a CA under another CA, as written, with real processes: two CAs and an agent of each.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::keys::Ca;
use crate::page;
use crate::support::{hoplite, until};

const PAGE: &str = "docs/guide/nested-cas.md";

/// The address that the guide gives the CA above.
const ABOVE: &str = "ca.prod.example:7443";

/// The guide's blocks for one machine, with what is this test's in the place of what the guide can only give an example of.
struct Guide<'a> {
    replaced: Vec<(&'a str, String)>,
}

impl Guide<'_> {
    fn text(&self, of: impl Fn(&page::Block) -> bool) -> Vec<String> {
        let blocks = page::blocks(PAGE).into_iter().filter(of);
        let replaced = |text: String| {
            let each = self.replaced.iter();
            each.fold(text, |text, (from, to)| text.replace(from, to))
        };
        blocks.map(|block| replaced(block.text)).collect()
    }

    /// Runs a block in a shell, as on a machine that has this directory. Gives what it printed.
    fn run(&self, text: &str, dir: &str, at: &Path) -> String {
        let program = Path::new(env!("CARGO_BIN_EXE_hoplite")).parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash");
        shell
            .args(["-e", "-c", text])
            .current_dir(at)
            .env("PATH", path)
            .env("HOPLITE_DIR", dir);
        let ran = shell.output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(
            ran.status.success(),
            "{text}\n{said}{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        said
    }
}

#[test]
fn the_guide_to_nested_cas_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let mut top = Ca::at(root.path(), "top");
    assert!(top.init(&[]).status.success());
    top.run();
    let node = top.node(root.path(), "eu-ca");
    let mut eu = Ca::at(root.path(), "eu");
    let guide = Guide {
        replaced: vec![
            (ABOVE, top.address.clone()),
            ("prod.example", "test.example".to_owned()),
            ("10.1.0.7:7443", eu.address.clone()),
            (
                "unix:user:hoplite",
                format!("unix:uid:{}", rustix::process::geteuid().as_raw()),
            ),
            (
                "unix:///run/hoplite/agent/agent.sock",
                format!("unix://{}/run/agent.sock", node.dir),
            ),
        ],
    };
    let on =
        |name: &'static str| move |block: &page::Block| block.language == "sh" && block.has(name) && !block.has("runs");
    let (above, below) = (guide.text(on("top")), guide.text(on("eu")));
    assert_eq!((above.len(), below.len()), (2, 2));

    guide.run(&above[0], &top.dir, root.path());
    node.has("hoplite/nested/eu");
    for file in guide.text(|block| block.has("upstream.toml")) {
        fs::write(root.path().join("upstream.toml"), file).unwrap();
    }
    guide.run(&below[0], &eu.dir, root.path());
    eu.run();
    let said = guide.run(&below[1], &eu.dir, root.path());
    assert!(said.contains("active"), "{said}");

    // One root for both, by which a node of the new CA joins it; what it has is under the nested authority.
    let bundle = |ca: &Ca| fs::read_to_string(format!("{}/ca/bundle.pem", ca.dir)).unwrap();
    assert_eq!(bundle(&top), bundle(&eu));
    let below_node = eu.node(root.path(), "n1");
    eu.register("app", "n1");
    below_node.has("app");

    // The CA above is killed: what is below goes on and says so. It is back: nobody has to do anything.
    top.stop();
    until("its absence is said", || {
        eu.warning().contains("the CA above cannot be asked").then_some(())
    });
    eu.register("meanwhile", "n1");
    below_node.has("meanwhile");
    top.run();
    until("it is heard again", || {
        (!eu.warning().contains("the CA above")).then_some(())
    });
    let before = eu.signs();
    assert!(eu.ask(&["authority", "prepare"]).status.success());
    let said = eu.ask(&["authority", "activate"]);
    assert!(said.status.success(), "{said:?}");
    assert_ne!(eu.signs(), before);

    // It starts again without the one above.
    top.stop();
    eu.stop();
    eu.run();
    below_node.has("app");
    top.run();

    // Cut off.
    let listed = top.json(&["entry", "list"]);
    let entries = listed.as_array().unwrap();
    let entry = entries
        .iter()
        .find(|entry| entry["spiffe_id"].as_str().unwrap().ends_with("/nested/eu"));
    let entry = entry.unwrap()["id"].as_str().unwrap();
    guide.run(&above[1].replace("ENTRY", entry), &top.dir, root.path());
    until("it is told", || {
        eu.warning().contains("the CA above cannot be asked").then_some(())
    });
    let said = eu.ask(&["authority", "prepare"]);
    assert!(!said.status.success(), "{said:?}");
    until("what it has signed counts no more", || {
        let log = hoplite(&[
            "audit", "query", "--kind", "control", "--output", "json", "--dir", &top.dir,
        ]);
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        log.contains("RevokeNestedAuthority").then_some(())
    });
}

/// What can be wrong with the section is told at the start, with the remedy.
#[test]
fn a_nested_ca_that_cannot_be_founded_says_why() {
    let root = tempfile::tempdir().unwrap();
    let mut top = Ca::at(root.path(), "top");
    assert!(top.init(&[]).status.success());
    top.run();
    let node = top.node(root.path(), "eu-ca");
    let check = |name: &str, addresses: &str, socket: &str, says: &str| {
        let eu = Ca::at(root.path(), name);
        let section = format!("[upstream]\nkind = \"hoplite\"\naddresses = {addresses}\nworkload_api = \"{socket}\"\n");
        let said = eu.init(&[("--upstream", &section)]);
        let text = String::from_utf8_lossy(&said.stderr).replace("\n  ", " ");
        assert!(!said.status.success() && text.contains(says), "{says}: {text}");
    };
    let here = format!("[\"{}\"]", top.address);
    let socket = format!("unix://{}/run/agent.sock", node.dir);
    check("none", "[]", &socket, "1 to 8 addresses");
    check("relative", &here, "agent.sock", "is not a Workload API address");
    check(
        "no-agent",
        &here,
        "unix:///nowhere/agent.sock",
        "an agent of the CA above has to run on this machine",
    );
    check("no-entry", &here, &socket, "gives this CA no identity");
    top.register("app", "eu-ca");
    node.has("app");
    check("no-such-entry", &here, &socket, "no SVID of `/hoplite/nested/<name>`");
    top.register("hoplite/nested/eu", "eu-ca");
    node.has("hoplite/nested/eu");
    check(
        "away",
        "[\"127.0.0.1:1\"]",
        &socket,
        "no CA above answers at `127.0.0.1:1`",
    );
}
