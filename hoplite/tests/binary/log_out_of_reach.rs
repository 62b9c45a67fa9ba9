//! A decision log that its proxy can reach no longer, though every file of it is there: a mount over it, a disk that became
//! read-only, files that became immutable. It is noticed within a second, and nothing is permitted until it is mended.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, Up, until};

/// A disk of the mesh's own, in a mount namespace of its own.
const MOUNT: &str = "mount -t tmpfs -o mode=700 tmpfs \"$DISK\" && exec \"$0\" \"$@\"";

/// The same on a disk that can fail.
const LOOP: &str = "mount -o loop \"$IMAGE\" \"$DISK\" && exec \"$0\" \"$@\"";

/// How long a log out of reach may go unnoticed, and what a busy machine needs besides.
const NOTICED_WITHIN: Duration = Duration::from_secs(3);

/// Whether this machine lets the test do so; where it does not, that is said.
fn is_possible(what: &str, mut tried: Command) -> bool {
    let possible = tried.output().is_ok_and(|output| output.status.success());
    if !possible {
        eprintln!("SKIPPED a_log_out_of_reach: {what} is not possible here");
        assert!(std::env::var_os("CI").is_none(), "CI must be able to");
    }
    possible
}

fn status(up: &Up) -> Option<u16> {
    up.try_get("/orders/42").ok().map(|answer| answer.status)
}

/// Whatever is asked is refused, soon, and stays so.
fn permits_nothing_soon(up: &Up, what: &str) {
    let since = Instant::now();
    while status(up) == Some(200) {
        let late = since.elapsed() > NOTICED_WITHIN;
        assert!(!late, "{what}: still permitted\n{}", up.terminal());
    }
    eprintln!("{what}: noticed after {:?}", since.elapsed());
    for _ in 0..20 {
        assert_ne!(status(up), Some(200), "{what}");
    }
}

/// Takes the log out of reach, sees that nothing is permitted soon, and that all is well once it is mended.
fn judge(up: &Up, what: &str, spoil: impl FnOnce(), mend: impl FnOnce()) {
    until("the mesh answers", || (status(up) == Some(200)).then_some(()));
    spoil();
    let since = Instant::now();
    while status(up) == Some(200) {
        assert!(
            since.elapsed() < NOTICED_WITHIN,
            "{what}: still permitted\n{}",
            up.terminal()
        );
    }
    let noticed = since.elapsed();
    eprintln!("{what}: noticed after {noticed:?}");
    for _ in 0..20 {
        assert_ne!(status(up), Some(200), "{what}");
    }
    mend();
    let since = Instant::now();
    while status(up) != Some(200) {
        assert!(since.elapsed() < PATIENCE, "{what}: not mended\n{}", up.terminal());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_log_under_a_mount_permits_nothing() {
    let namespace = ["--mount", "--map-root-user"];
    let mut tried = Command::new("unshare");
    tried.args(namespace).arg("true");
    if !is_possible("a mount namespace", tried) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command
        .args(namespace)
        .args(["sh", "-c", MOUNT, env!("CARGO_BIN_EXE_hoplite")])
        .env("DISK", dir.path());
    let up = Up::start_by(command, dir.path());
    let inside = |words: &[&str]| {
        let pid = up.pid().to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &pid, "--mount", "--user", "--preserve-credentials"])
            .args(words);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    let log = dir.path().join("audit/orders").display().to_string();
    judge(
        &up,
        "a mount over the log",
        || inside(&["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", &log]),
        || inside(&["umount", "--lazy", &log]),
    );
}

#[test]
fn a_log_on_a_disk_that_became_read_only_permits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mut made = Command::new("sh");
    made.args([
        "-c",
        "truncate -s 64M \"$0\" && mkfs.ext4 -q \"$0\" && unshare --mount mount -o loop \"$0\" \"$1\"",
    ]);
    made.args([&image, &disk]);
    if !is_possible("a disk on a loop device", made) {
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", LOOP, env!("CARGO_BIN_EXE_hoplite")]);
    command.env("DISK", &disk).env("IMAGE", &image);
    let up = Up::start_by(command, &disk);
    assert_eq!(status(&up), Some(200));
    // What a kernel does on its own when a disk fails under a journal.
    let pid = up.pid().to_string();
    let mut abort = Command::new("nsenter");
    abort
        .args(["--target", &pid, "--mount", "mount", "-o", "remount,abort"])
        .arg(&disk);
    assert!(abort.status().unwrap().success());
    permits_nothing_soon(&up, "a disk that became read-only");
}

#[test]
fn a_log_of_immutable_files_permits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let probe = dir.path().join("probe");
    std::fs::write(&probe, "").unwrap();
    let change = |how: &str, path: &std::path::Path| {
        let mut command = Command::new("chattr");
        command.args(["-R", how]).arg(path);
        command
    };
    if !is_possible("to make files immutable", change("+i", &probe)) {
        return;
    }
    assert!(change("-i", &probe).status().unwrap().success());
    let up = Up::start(&dir.path().join("mesh"));
    let log = up.dir.join("audit/orders");
    let make = |how: &str| assert!(change(how, &log).status().unwrap().success());
    judge(&up, "immutable files", || make("+i"), || make("-i"));
}
