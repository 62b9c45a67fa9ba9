//! A machine that sleeps for a day, and a clock that is set: the mesh mends itself.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::support::{Up, until};

const DAY: i64 = 24 * 3_600;

/// What is promised.
const MENDED_WITHIN: Duration = Duration::from_secs(60);

fn started(clock: &Clock, dir: &std::path::Path) -> Up {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoplite"));
    clock.of(&mut command);
    Up::start_by(command, dir)
}

/// The mesh answers as it should again.
fn mends(up: &Up, what: &str) {
    let since = Instant::now();
    let whole = |up: &Up| {
        let answers = ["/orders/42", "/ledger/42"].map(|path| up.try_get(path).map(|answer| answer.status).ok());
        answers == [Some(200), Some(403)]
    };
    while !whole(up) {
        assert!(
            since.elapsed() < MENDED_WITHIN,
            "{what}: not mended:\n{}",
            up.terminal()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_mesh_survives_a_sleep_of_more_than_a_day() {
    let (clock, dir) = (Clock::new(), tempfile::tempdir().unwrap());
    let mut up = started(&clock, dir.path());
    mends(&up, "at first");
    let pids = up.processes();
    // Every SVID has ended, the agent's own too.
    clock.ahead(DAY + 3_600);
    up.sees("outcome=admitted");
    mends(&up, "after 25 hours");
    clock.ahead(30 * DAY);
    mends(&up, "after a month");
    // Now all are of the future. What is open stays so; what is new needs new ones.
    let joined = |up: &Up| {
        let said = up.terminal();
        let (by_key, anew) = ("outcome=admitted", "it joins anew with a token from the CA");
        said.matches(by_key).count() + said.matches(anew).count()
    };
    let before = joined(&up);
    clock.ahead(0);
    until("the agent is let in once more", || (joined(&up) > before).then_some(()));
    mends(&up, "after the clock was set back by a month");
    assert_eq!(up.processes(), pids, "nothing had to be started again");
    assert!(up.interrupt().success());
}

/// All processes stop for longer than any certificate lives, as they do when a laptop is closed.
#[test]
fn a_mesh_survives_being_stopped_for_longer_than_its_certificates_live() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec \"$0\" \"$@\" --svid-ttl 5s --agent-ttl 5s",
        env!("CARGO_BIN_EXE_hoplite"),
    ]);
    let mut up = Up::start_by(command, dir.path());
    mends(&up, "at first");
    let everyone: Vec<u32> = up.processes().into_values().chain([up.pid()]).collect();
    for signal in ["-STOP", "-CONT"] {
        for pid in &everyone {
            crate::support::kill(signal, *pid);
        }
        if signal == "-STOP" {
            std::thread::sleep(Duration::from_secs(8));
        }
    }
    mends(&up, "after 8 s with certificates of 5 s");
    assert!(up.interrupt().success());
}

/// The screen stays true: a bundle that comes in force makes edits count no more, and that is said.
#[test]
fn a_bundle_that_comes_in_force_is_told_on_the_screen() {
    let dir = tempfile::tempdir().unwrap();
    {
        let mut up = Up::start(dir.path());
        assert!(up.terminal().contains("save an edit in"), "{}", up.terminal());
        assert!(
            up.terminal()
                .contains(&format!("Everything is in       {}", dir.path().display()))
        );
        let (policies, key) = (dir.path().join("policies"), dir.path().join("keys/alice.key"));
        let (policies, key) = (policies.display().to_string(), key.display().to_string());
        let published = up.tool(&["policy", "publish", &policies, "--key", &key, "--accept-unreplayed"]);
        assert!(published.status.success(), "{published:?}");
        up.sees("signed revision 1 is in force");
        assert!(up.interrupt().success());
    }
    let mut up = Up::start(dir.path());
    assert!(!up.terminal().contains("save an edit"), "{}", up.terminal());
    up.sees("signed revision 1 is in force");
}
