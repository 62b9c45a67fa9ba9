//! The guide for two machines, run as it is written: each machine is a namespace with a network, files, processes and users of its
//! own, and a cable between them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::clock::Clock;
use crate::support::until;

const GUIDE: &str = include_str!("../../../docs/guide/two-machines.md");

/// As the guide promises.
const COMMANDS_MAX: usize = 8;

/// A machine. Dropping it ends everything on it.
struct Machine {
    name: &'static str,
    /// Its first process, by our number.
    init: u32,
    holder: Child,
    /// Where its root user works.
    home: PathBuf,
}

/// A fenced block of the guide.
#[derive(Debug)]
struct Block<'a> {
    /// `sh n1`, `cedar n1 policies/ledger.cedar`.
    kind: Vec<&'a str>,
    text: String,
    /// What is written between it and the next.
    after: String,
}

fn blocks(guide: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut inside = false;
    for line in guide.lines() {
        match (line.strip_prefix("```"), blocks.last_mut()) {
            (Some(_), _) if inside => inside = false,
            (Some(kind), _) => {
                inside = true;
                blocks.push(Block {
                    kind: kind.split_whitespace().collect(),
                    text: String::new(),
                    after: String::new(),
                });
            }
            (None, Some(block)) => {
                let text = if inside { &mut block.text } else { &mut block.after };
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

// === impl Machine ===

impl Machine {
    fn start(name: &'static str, dir: &Path) -> Self {
        let home = dir.join(name);
        fs::create_dir(&home).unwrap();
        let setup = format!(
            "set -e\n\
             mkdir {home}/etc {home}/work\n\
             cp -a /etc/. {home}/etc\n\
             mount --bind {home}/etc /etc\n\
             mount -t tmpfs tmpfs /run\n\
             mount -t tmpfs tmpfs /var/lib\n\
             hostname {name}\n\
             ip link set lo up\n\
             echo ready\n\
             exec sleep infinity\n",
            home = home.display()
        );
        let mut holder = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--uts",
                "--pid",
                "--mount-proc",
                "--fork",
                "--kill-child",
                "bash",
                "-c",
            ])
            .arg(setup)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "{name}");
        let pid = holder.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        Self {
            name,
            init: children.trim().parse().unwrap(),
            holder,
            home: home.join("work"),
        }
    }

    /// A command line in a shell of its root user.
    fn shell(&self, text: &str) -> Command {
        let mut command = Command::new("nsenter");
        let bin = Path::new(env!("CARGO_BIN_EXE_hoplite")).parent().unwrap().display();
        command
            .args([
                "--target",
                &self.init.to_string(),
                "--mount",
                "--net",
                "--uts",
                "--pid",
                "--",
            ])
            .args(["bash", "-c", text])
            .current_dir(&self.home)
            .env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap()))
            .env_remove("HOPLITE_DIR")
            .env_remove("XDG_STATE_HOME")
            .env("HOME", &self.home)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command line to its end, or until what it leaves running has been left.
    fn run(&self, text: &str) -> Output {
        self.run_by(text, |_| ())
    }

    fn run_by(&self, text: &str, change: impl FnOnce(&mut Command)) -> Output {
        let text = format!("cd {}; {text}", self.home.display());
        let mut command = self.shell(&text);
        change(&mut command);
        let (out, err) = (self.file("out"), self.file("err"));
        let status = command
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .status()
            .unwrap();
        Output {
            status,
            stdout: fs::read(out).unwrap(),
            stderr: fs::read(err).unwrap(),
        }
    }

    /// Leaves a command line running, and waits until it says this.
    fn leave(&self, text: &str, says: &str) {
        let log = self.file("log");
        let text = format!("cd {}; {{\n{text}\n}} > {} 2>&1", self.home.display(), log.display());
        assert!(self.shell(&text).status().unwrap().success());
        let said = || fs::read_to_string(&log).unwrap_or_default();
        if says.is_empty() {
            return;
        }
        let deadline = std::time::Instant::now() + crate::support::PATIENCE;
        while !said().contains(says) {
            assert!(
                std::time::Instant::now() < deadline,
                "{}: `{text}` never said `{says}`:\n{}",
                self.name,
                said()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.home.join(format!("{name}.{number}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process ends with it, and all others with that.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Two machines with a cable between them: `10.77.0.1` and `10.77.0.2`. None, said loudly, where they cannot be had.
fn machines(dir: &Path) -> Option<[Machine; 2]> {
    let possible = Command::new("unshare")
        .args([
            "--mount", "--net", "--uts", "--pid", "--fork", "ip", "link", "set", "lo", "up",
        ])
        .stderr(Stdio::null())
        .status();
    if !rustix::process::geteuid().is_root() || !possible.is_ok_and(|status| status.success()) {
        let reason = "two machines need root, namespaces and `ip`";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("SKIPPED: {reason}");
        return None;
    }
    let both = [Machine::start("n1", dir), Machine::start("n2", dir)];
    let [one, two] = &both;
    let cable = Command::new("ip")
        .args(["link", "add", "eth0", "netns", &one.init.to_string(), "type", "veth"])
        .args(["peer", "name", "eth0", "netns", &two.init.to_string()])
        .status();
    assert!(cable.unwrap().success());
    for (machine, address) in [(one, "10.77.0.1/24"), (two, "10.77.0.2/24")] {
        let up = machine.run(&format!("ip addr add {address} dev eth0 && ip link set eth0 up"));
        assert!(up.status.success(), "{up:?}");
    }
    Some(both)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The word of the last line that `hoplite token create` prints.
fn invitation(created: &Output) -> String {
    assert!(created.status.success(), "{created:?}");
    let printed = text(&created.stdout);
    let last = printed.lines().last().unwrap();
    last.strip_prefix("hoplite join ").unwrap().to_owned()
}

/// Follows the guide to its end.
fn follow(machines: &[Machine; 2]) -> usize {
    let machine = |name: &str| machines.iter().find(|machine| machine.name == name).unwrap();
    let (mut commands, mut word, mut printed) = (0, None, String::new());
    for block in blocks(GUIDE) {
        let line = block.text.trim_end();
        match block.kind.as_slice() {
            ["sh", name, "before"] => {
                // The shell that leaves something running ends.
                machine(name).leave(line, "");
            }
            ["sh", name] => {
                commands += 1;
                assert!(!line.contains('\n'), "one command: {line}");
                let mut line = line.to_owned();
                if line.contains("TOKEN@10.77.0.1:7443#FINGERPRINT") {
                    let word: String = word.take().unwrap();
                    line = line.replace("TOKEN@10.77.0.1:7443#FINGERPRINT", &word);
                }
                if line.ends_with('&') {
                    let says = block.after.split("It runs when it says `").nth(1).unwrap();
                    machine(name).leave(&line, says.split('`').next().unwrap());
                } else {
                    let ran = machine(name).run(&line);
                    assert!(
                        ran.status.success(),
                        "{line}: {}\n{}",
                        text(&ran.stdout),
                        text(&ran.stderr)
                    );
                    if line.contains("token create") {
                        word = Some(invitation(&ran));
                    }
                    printed = text(&ran.stdout);
                }
            }
            ["text"] => assert_eq!(printed, block.text, "{commands}"),
            [_, name, file] => {
                let file = machine(name).home.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, &block.text).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    commands
}

#[test]
fn the_guide_is_true_and_the_bad_day_has_an_answer() {
    let dir = tempfile::Builder::new().prefix("two").tempdir().unwrap();
    let Some(machines) = machines(dir.path()) else {
        return;
    };
    let commands = follow(&machines);
    assert!(commands <= COMMANDS_MAX, "{commands}");
    let [one, two] = &machines;
    secrets_are_private(one);
    secrets_are_private(two);
    a_second_join_does_nothing(two);
    the_printed_configuration_is_the_one_that_runs(one);
    a_node_that_was_evicted_joins_beside_its_agent(one, two);
    a_node_restarts(one, two);
    the_ca_moves(one, two);
    an_invitation_is_for_one_machine_and_one_ca(one, two);
    a_wrong_clock_is_named(one, two);
}

fn secrets_are_private(machine: &Machine) {
    let open = machine.run("find /etc/hoplite /var/lib/hoplite /run/hoplite -type f -perm /077 | sort");
    for file in text(&open.stdout).lines() {
        let shown = machine.run(&format!("cat {file}"));
        assert!(!text(&shown.stdout).contains("PRIVATE KEY"), "{file}");
    }
    let token = machine.run("grep -rlE '[0-9a-f]{64}@' /etc/hoplite /var/lib/hoplite /run/hoplite");
    assert_eq!(text(&token.stdout), "", "no invitation lies anywhere");
    let owners = machine.run("stat -c '%U %a' /var/lib/hoplite/proxy/*");
    let expected = if machine.name == "n1" {
        "ledger 700\n"
    } else {
        "billing 700\n"
    };
    assert_eq!(text(&owners.stdout), expected);
}

fn refused(ran: &Output, code: i32, words: &[&str]) {
    let said = text(&ran.stderr);
    assert_eq!(ran.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is missing from `{said}`");
    }
}

fn a_second_join_does_nothing(two: &Machine) {
    let word = format!("{}@10.77.0.1:7443#{}", "a".repeat(64), "b".repeat(64));
    let again = two.run(&format!("hoplite join {word}"));
    refused(
        &again,
        3,
        &[
            "a node already",
            "spiffe://prod.example/hoplite/agent/n2",
            "of another CA",
            "--again",
        ],
    );
    assert!(!text(&again.stderr).contains("aaaa"), "no token is shown");
}

fn the_printed_configuration_is_the_one_that_runs(one: &Machine) {
    let same = one.run(
        "hoplite run --service ledger --port 9000 --print-config | cmp - /var/lib/hoplite/proxy/ledger/proxy.toml",
    );
    assert!(same.status.success(), "{same:?}");
    // A user without rights changes nothing, and is told what to do.
    let other = one.run("setpriv --reuid 4711 --regid 4711 --clear-groups hoplite run --service late --port 1");
    refused(&other, 1, &["/var/lib/hoplite/proxy", "as root", "--dir"]);
    let init = one.run("hoplite ca init --trust-domain other.example --advertise ca:1");
    refused(&init, 3, &["a CA is here already", "prod.example", "Nothing was done"]);
}

fn a_node_that_was_evicted_joins_beside_its_agent(one: &Machine, two: &Machine) {
    let evicted = one.run("hoplite agent evict spiffe://prod.example/hoplite/agent/n2");
    assert!(evicted.status.success(), "{evicted:?}");
    let word = invitation(&one.run("hoplite token create --node n2"));
    refused(
        &two.run(&format!("hoplite join {word}")),
        3,
        &["was not used", "--again"],
    );
    let joined = two.run(&format!("hoplite join {word} --again"));
    assert!(joined.status.success(), "{joined:?}");
    until("the running agent goes on", || {
        let logs = two.run("cat log.*");
        text(&logs.stdout).contains("this node has joined anew").then_some(())
    });
    until("billing calls again", || calls(two).then_some(()));
}

fn calls(machine: &Machine) -> bool {
    let called = machine.run("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:9001/");
    text(&called.stdout) == "200"
}

/// Ends the daemon of this command line, and waits for its end.
fn ends(machine: &Machine, daemon: &str) {
    let ended = machine.run(&format!(
        "pid=$(pgrep -o -f 'hoplite {daemon}'); kill $pid; while kill -0 $pid && ! grep -q Z /proc/$pid/stat; do sleep 0.05; done"
    ));
    assert!(ended.status.success() || !ended.stderr.is_empty(), "{ended:?}");
}

fn a_node_restarts(one: &Machine, two: &Machine) {
    ends(two, "join");
    ends(two, "proxy run");
    assert!(!calls(two));
    two.leave("hoplite agent run &", "serving workloads");
    two.leave(
        "hoplite run --service billing --to ledger=10.77.0.1:8443@9001 &",
        "listening",
    );
    until("billing calls again", || calls(two).then_some(()));
    let agents = one.run("hoplite agent list --output json");
    assert_eq!(
        text(&agents.stdout).matches("hoplite/agent/n2").count(),
        1,
        "{agents:?}"
    );
}

fn the_ca_moves(one: &Machine, two: &Machine) {
    let moved = one.run("ip addr add 10.77.0.11/24 dev eth0 && sed -i s/10.77.0.1:7443/10.77.0.11:7443/ /etc/hoplite/ca.toml && sed -i s/0.0.0.0:7443/10.77.0.11:7443/ /etc/hoplite/ca.toml");
    assert!(moved.status.success());
    ends(one, "ca init");
    one.leave("hoplite ca run &", "the CA serves");
    let told = two.run(
        "sed -i s/10.77.0.1:/10.77.0.11:/ /etc/hoplite/agent.toml && kill -HUP $(pgrep -o -f 'hoplite agent run')",
    );
    assert!(told.status.success(), "{told:?}");
    // What is registered from now on arrives, so the agent is with its CA.
    let entry = one.run("hoplite entry create --service late --node n2 --user nobody");
    assert!(entry.status.success(), "{entry:?}");
    until("the entry arrives", || {
        let status = two.run("hoplite agent status");
        text(&status.stdout).contains("2 entries, 0 without SVID").then_some(())
    });
}

fn an_invitation_is_for_one_machine_and_one_ca(one: &Machine, two: &Machine) {
    let word = invitation(&one.run("hoplite token create --node n3"));
    let join = |dir: &str, word: &str| two.run(&format!("hoplite join --dir $PWD/{dir} {word}"));
    let (token, rest) = word.split_once('@').unwrap();
    let (address, fingerprint) = rest.split_once('#').unwrap();
    assert_eq!(address, "10.77.0.11:7443");

    let wrong = fingerprint.replace(|digit: char| digit != 'e', "e");
    refused(
        &join("n3", &format!("{token}@{address}#{wrong}")),
        1,
        &[fingerprint, &wrong, "nothing was sent", "hoplite ca show"],
    );
    for (address, words) in [
        (
            "10.77.0.11:7444",
            &["nothing listens at `10.77.0.11:7444`", "hoplite ca run"][..],
        ),
        ("10.77.0.99:7443", &["`10.77.0.99:7443`"]),
        (
            "nowhere.invalid:7443",
            &["the name `nowhere.invalid` has no address", "DNS"],
        ),
        ("10.77.0.1:8443", &["10.77.0.1:8443"]),
    ] {
        refused(&join("n3", &format!("{token}@{address}#{fingerprint}")), 1, words);
    }
    assert!(
        !two.home.join("n3/agent.toml").exists(),
        "nothing is left of what failed"
    );

    let joined = join("n3", &word);
    assert!(joined.status.success(), "{joined:?}");
    assert!(
        text(&joined.stdout).contains("next: hoplite agent run --dir"),
        "{joined:?}"
    );
    refused(&join("n4", &word), 1, &["used with another key", "new token"]);
    // From a file that others may read, or from nowhere.
    let created = one.run("hoplite token create --node n5");
    fs::write(two.home.join("word"), &created.stdout).unwrap();
    refused(
        &two.run("chmod 644 word; hoplite join --dir $PWD/n5 @word"),
        1,
        &["`word`", "0644", "chmod 600"],
    );
    refused(
        &two.run("hoplite join --dir $PWD/n5 -"),
        1,
        &["standard input is empty"],
    );
    let joined = two.run("chmod 600 word; hoplite join --dir $PWD/n5 @word --output json");
    assert!(
        joined.status.success() && text(&joined.stdout).contains("/agent/n5"),
        "{joined:?}"
    );
}

fn a_wrong_clock_is_named(one: &Machine, two: &Machine) {
    let word = invitation(&one.run("hoplite token create --node n6"));
    let clock = Clock::new();
    for days in [-30, 400] {
        clock.ahead(days * 24 * 3_600);
        let ran = two.run_by(&format!("hoplite join --dir $PWD/n6 {word}"), |command| {
            clock.of(command)
        });
        refused(&ran, 1, &["the clocks", "the clock here says", "same invitation"]);
    }
    let joined = two.run(&format!("hoplite join --dir $PWD/n6 {word}"));
    assert!(joined.status.success(), "the invitation counts still: {joined:?}");
}
