//! The guide for two machines, run as it is written: each machine is a namespace with a network, files, processes and users of its
//! own, and a cable between them.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::clock::Clock;
use crate::machine::{self, Machine, text};
use crate::reader::Reader;
use crate::support::until;

/// As the guide promises.
const COMMANDS_MAX: usize = 8;

/// Two machines with a cable between them: `10.77.0.1` and `10.77.0.2`. None, said loudly, where they cannot be had.
fn machines(dir: &Path) -> Option<[Machine; 2]> {
    if !machine::possible("two machines") {
        return None;
    }
    let both = [Machine::start("n1", dir), Machine::start("n2", dir)];
    machine::cable(&both);
    Some(both)
}

/// The word of the last line that `hoplite token create` prints.
fn invitation(created: &Output) -> String {
    assert!(created.status.success(), "{created:?}");
    let printed = text(&created.stdout);
    let last = printed.lines().last().unwrap();
    last.strip_prefix("hoplite join ").unwrap().to_owned()
}

#[test]
fn the_guide_is_true_and_the_bad_day_has_an_answer() {
    let dir = tempfile::Builder::new().prefix("two").tempdir().unwrap();
    let Some(machines) = machines(dir.path()) else {
        return;
    };
    let commands = Reader::new("docs/guide/two-machines.md", &machines).believe();
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
        let logs = two.run("cat .typed.*.said log.* 2>/dev/null");
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
    ends(two, "agent run");
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
        refused(&ran, 1, &["the clocks", "the clock here says", "same command"]);
    }
    let joined = two.run(&format!("hoplite join --dir $PWD/n6 {word}"));
    assert!(joined.status.success(), "the invitation counts still: {joined:?}");
}
