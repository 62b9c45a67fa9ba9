//! README and every guide, followed as they stand by a reader with a machine of its own; and which blocks nobody follows.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::machine::{self, Machine, text};
use crate::page;
use crate::reader::Reader;
use crate::support::{skip, until};

const POLICY: &str = "@id(\"ledger/web-reads\")\n@owner(\"team-ledger\")\n\
    permit (principal in Hoplite::Path::\"prod.example/web\", action in [Hoplite::Action::\"read\"],\n\
    resource in Hoplite::Service::\"ledger\");\n";

const CASE: &str = "spiffe://prod.example/web GET ledger /accounts/7 allow\n";

/// What a page takes for granted. It says so in its first lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum World {
    /// A checkout that has been built, and an empty home.
    Checkout,
    /// A mesh of `hoplite up` in its usual place.
    Mesh,
    /// The CA of `prod.example` and the node `web-1`, installed as root without the package.
    Production,
    /// That on a machine `ca`, which has a CI job that may publish; and a laptop with policies and a key to sign with.
    Laptop,
    /// Two such CAs, each on a machine of its own and with its bundle endpoint, and the node `web-1` of the first.
    Partners,
}

/// Pages that are followed here, each by a test of this name.
macro_rules! pages {
    ($($test:ident: $page:literal in $world:ident,)*) => {
        const FOLLOWED: &[&str] = &[$($page),*];
        $(
            #[test]
            fn $test() {
                follow(stringify!($test), $page, World::$world);
            }
        )*
    };
}

pages! {
    readme: "README.md" in Checkout,
    first_policy: "docs/guide/write-your-first-policy.md" in Checkout,
    editor: "docs/guide/editor.md" in Mesh,
    observe: "docs/guide/observe.md" in Checkout,
    jwt_svids: "docs/guide/jwt-svids.md" in Mesh,
    change_a_policy_safely: "docs/guide/change-a-policy-safely.md" in Mesh,
    doctor: "docs/guide/doctor.md" in Mesh,
    operate: "docs/guide/operate.md" in Mesh,
    production: "docs/guide/production.md" in Mesh,
    upgrade: "docs/guide/upgrade.md" in Mesh,
    bad_day: "docs/guide/bad-day.md" in Mesh,
    records: "docs/reference/records.md" in Mesh,
    register_workloads: "docs/guide/register-workloads.md" in Production,
    from_a_laptop: "docs/guide/from-a-laptop.md" in Laptop,
    authorize_from_anything: "docs/guide/authorize-from-anything.md" in Production,
    federation: "docs/guide/federation.md" in Partners,
}

/// Pages with more to show than a reader sees; their tests follow every block, and then go on.
const ELSEWHERE: &[(&str, &str)] = &[
    ("docs/guide/two-machines.md", "hoplite/tests/binary/two_machines.rs"),
    ("docs/guide/authorities.md", "hoplite/tests/binary/authorities.rs"),
    ("docs/guide/files.md", "hoplite/tests/binary/files_guide.rs"),
    ("docs/guide/nested-cas.md", "hoplite/tests/binary/nested.rs"),
    ("docs/guide/install.md", "tests/lib/packaging"), // tests/lib/guide, on a machine with systemd
];

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every page of the documentation, by its path in the repository.
fn every_page() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    let mut directories = vec!["docs".to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root().join(&directory)).unwrap().flatten() {
            let path = format!("{directory}/{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => directories.push(path),
                false if path.ends_with(".md") => pages.push(path),
                false => {}
            }
        }
    }
    pages
}

#[test]
fn every_shell_block_is_run_or_says_why_not() {
    let mut nobodys = Vec::new();
    for page in every_page() {
        let elsewhere = ELSEWHERE.iter().find(|(known, _)| *known == page);
        for block in page::blocks(&page).iter().filter(|block| block.is_shell()) {
            if let Some(reason) = block.setting("not-run") {
                // Root, another distribution, a download: not that it would be work.
                assert!(reason.split(' ').count() > 2, "{}: a reason is a sentence", block.place);
                continue;
            }
            let is_run = match elsewhere {
                // A console only shows there.
                Some(_) => block.language == "sh",
                None => FOLLOWED.contains(&page.as_str()),
            };
            if !is_run {
                nobodys.push(block.place.clone());
            }
        }
        if let Some((_, test)) = elsewhere {
            assert!(
                fs::read_to_string(root().join(test)).unwrap().contains(&page),
                "{test} has nothing of {page}"
            );
        }
    }
    assert!(
        nobodys.is_empty(),
        "nothing runs these, and they have no `not-run=\"reason\"`:\n{}",
        nobodys.join("\n")
    );
}

/// Programs of others that a page calls.
const NEEDS: &[(&str, &str)] = &[
    ("docs/guide/observe.md", "promtool"),
    ("docs/reference/records.md", "jq"),
];

/// The collector of `tests/peers`, if it is installed.
fn collector(test: &str) -> Option<std::path::PathBuf> {
    let peers = std::env::var_os("HOPLITE_PEERS").map_or_else(|| root().join("target/peers"), Into::into);
    let collector = peers.join("collector/collector");
    if collector.exists() {
        return Some(collector);
    }
    let reason = "peer collector is not installed; tests/run installs it";
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{reason}");
    skip(test, reason);
    None
}

#[test]
fn every_page_of_the_table_says_whom_it_is_for() {
    let table = fs::read_to_string(root().join("docs/README.md")).unwrap();
    let (table, _) = table.split_once("**Change Hoplite**").unwrap();
    let links = table
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next());
    let pages: Vec<&str> = links
        .filter(|link| link.ends_with(".md") && !link.starts_with(".."))
        .collect();
    assert!(pages.len() >= 30, "{pages:?}");
    for link in pages {
        let page = fs::read_to_string(root().join("docs").join(link)).unwrap();
        let first = page.lines().nth(2).unwrap_or_default();
        assert!(first.starts_with("For "), "docs/{link} begins with `{first}`");
    }
}

fn follow(test: &str, page: &'static str, world: World) {
    if !machine::possible(test) {
        return;
    }
    let missing = |program: &str| Command::new(program).arg("--version").output().is_err();
    let needs = NEEDS.iter().filter(|(of, _)| *of == page).map(|(_, program)| *program);
    if let Some(program) = ["curl"].into_iter().chain(needs).find(|program| missing(program)) {
        let reason = format!("peer {program} is not installed");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{reason}");
        return skip(test, &reason);
    }
    let dir = tempfile::Builder::new().prefix("guide").tempdir().unwrap();
    if world == World::Laptop {
        let both = [Machine::start("ca", dir.path()), Machine::start("laptop", dir.path())];
        machine::cable(&both);
        let [ca, laptop] = &both;
        world.prepare(ca);
        for name in ["alice.key", "policies/ledger.cedar", "policies/ledger.test"] {
            fs::create_dir_all(laptop.home.join("policies")).unwrap();
            fs::copy(ca.home.join(name), laptop.home.join(name)).unwrap();
        }
        laptop.run("echo 10.77.0.1 ca.prod.example >>/etc/hosts");
        Reader::new(page, [laptop, ca]).believe();
        return;
    }
    if world == World::Partners {
        let both = [
            Machine::start("prod", dir.path()),
            Machine::start("partner", dir.path()),
        ];
        machine::cable(&both);
        both.iter().for_each(|machine| world.prepare(machine));
        let [prod, partner] = &both;
        Reader::new(page, [prod, partner]).believe();
        return;
    }
    let machine = Machine::start("local", dir.path());
    world.prepare(&machine);
    if page == "docs/guide/observe.md" {
        let Some(collector) = collector(test) else { return };
        std::os::unix::fs::symlink(collector, machine.home.join("bin/otelcol-contrib")).unwrap();
    }
    Reader::new(page, [&machine]).believe();
}

// === impl World ===

impl World {
    fn prepare(self, machine: &Machine) {
        let root = root();
        let done = |script: &str| {
            let ran = machine.run(script);
            assert!(
                ran.status.success(),
                "{script}: {}{}",
                text(&ran.stdout),
                text(&ran.stderr)
            );
        };
        match self {
            Self::Checkout => {
                // The repository is read where it lies; what is built has been built. `cargo run` then runs it.
                done(&format!(
                    "for each in {root}/*; do [ ${{each##*/}} = target ] || ln -s $each; done; mkdir -p target/release bin
                     ln -s {binary} target/release/hoplite
                     printf '#!/bin/sh\\n[ \"$1 $2 $3\" = \"run --release --\" ] && shift 3 && exec ~/target/release/hoplite \"$@\"\\n' >bin/cargo
                     chmod +x bin/cargo",
                    root = root.display(),
                    binary = env!("CARGO_BIN_EXE_hoplite")
                ));
            }
            Self::Mesh => {
                machine.leave("hoplite up &", "Ctrl-C stops all of it");
                // A reader is slower than this.
                let heard = "hoplite fleet drift && hoplite status | grep -q ': 3 proxies on 1 node'";
                until("the mesh has reported", || {
                    machine.run(heard).status.success().then_some(())
                });
            }
            Self::Partners => {
                let (name, other) = match machine.name {
                    "prod" => ("prod", "partner"),
                    _ => ("partner", "prod"),
                };
                let theirs = machine.home.join(format!("../../{other}/work"));
                done(&format!(
                    "echo 10.77.0.1 ca.prod.example >>/etc/hosts; echo 10.77.0.2 ca.partner.example >>/etc/hosts; mkdir -p bin
                     printf '#!/bin/sh\\ncp {theirs}/${{1#*:}} $2\\n' >bin/scp; chmod +x bin/scp
                     hoplite ca init --trust-domain {name}.example --advertise ca.{name}.example:7443 --signer-key alice.key
                     printf '[bundle_endpoint]\\nlisten = \"0.0.0.0:8443\"\\n' >>/etc/hoplite/ca.toml",
                    theirs = theirs.display()
                ));
                machine.leave("hoplite ca run &", "the CA serves");
                if name == "prod" {
                    done("hoplite token create --node web-1 | hoplite join -");
                    machine.leave("hoplite agent run &", "serving workloads");
                }
            }
            Self::Production | Self::Laptop => {
                done(
                    "echo 127.0.0.1 ca.prod.example >>/etc/hosts; mkdir -p /etc/hoplite/policies /etc/hoplite/admin policies
                     hoplite policy key create ci.key >ci.pub
                     hoplite ca init --trust-domain prod.example --advertise ca.prod.example:7443 --signer-key alice.key --signer $(cat ci.pub)",
                );
                if self == Self::Laptop {
                    fs::write(machine.home.join("policies/ledger.cedar"), POLICY).unwrap();
                    fs::write(machine.home.join("policies/ledger.test"), CASE).unwrap();
                    // What the reference says of a CI job, from this network.
                    let mut reference = page::blocks("docs/reference/admin-policy.md").into_iter();
                    let job = reference.find(|block| block.language == "cedar").unwrap();
                    fs::write(
                        machine.home.join("job"),
                        job.text.replace("10.20.0.0/16", "127.0.0.0/8"),
                    )
                    .unwrap();
                    done(&format!(
                        "cp {}/ca/admin/default.cedar /etc/hoplite/admin; tr \\' \\\" <job >/etc/hoplite/admin/ci.cedar
                         echo 'admin_policy_dir = \"/etc/hoplite/admin\"' >>/etc/hoplite/ca.toml",
                        root.display()
                    ));
                }
                machine.leave("hoplite ca run &", "the CA serves");
                done("hoplite token create --node web-1 | hoplite join -");
                machine.leave("hoplite agent run &", "serving workloads");
                if self == Self::Laptop {
                    done(
                        "hoplite entry create --spiffe-id spiffe://prod.example/ci/deploy --parent spiffe://prod.example/hoplite/agent/web-1 \\
                         --selector unix:user:root",
                    );
                }
            }
        }
    }
}
