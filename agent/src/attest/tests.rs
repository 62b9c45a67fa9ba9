//! Real processes, and what is found out of them.

use super::*;
use proptest::prelude::*;
use rustix::process::{Pid, PidfdFlags};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

fn caller(pid: u32) -> LocalProcess {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let peer = Peer {
        pid: pid.as_raw_nonzero().get(),
        uid: 4_000_000,
        gid: 7,
    };
    LocalProcess::new(peer, pidfd).unwrap()
}

fn attestor() -> Attestor {
    Attestor::new(Launches::default())
}

fn value<'a>(seen: &'a Attestation, key: &str) -> Option<&'a str> {
    let is_it = |selector: &&Selector| selector.kind().as_str().rsplit(':').next() == Some(key);
    seen.selectors.iter().find(is_it).map(Selector::value)
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A copy of a real program, so that a test may replace or delete it.
fn program(directory: &Path) -> PathBuf {
    let path = directory.join("program");
    fs::copy("/bin/sleep", &path).unwrap();
    path
}

#[tokio::test]
async fn the_test_itself() {
    let seen = attestor().attest(&caller(std::process::id())).await.unwrap();
    let own = std::env::current_exe().unwrap();
    assert_eq!(value(&seen, "uid"), Some("4000000"));
    assert_eq!(value(&seen, "gid"), Some("7"));
    assert_eq!(value(&seen, "path"), own.to_str());
    assert_eq!(value(&seen, "sha256"), Some(&*hash(&File::open(own).unwrap()).unwrap()));
    assert_eq!(value(&seen, "name"), None);
    assert!(
        seen.unknown
            .iter()
            .any(|u| u.starts_with("unix:user (uid 4000000 is not in")),
        "{:?}",
        seen.unknown
    );
}

/// Who finds out a kind. A new row of the table does not compile without one, and `every_kind_of_selector_has_its_attestor`
/// fails until it does so.
fn attestor_of(kind: SelectorKind) -> &'static str {
    match kind {
        SelectorKind::UnixUid | SelectorKind::UnixGid => "the kernel, of the peer of the socket",
        SelectorKind::UnixUser => "the user database, by the uid",
        SelectorKind::UnixPath | SelectorKind::UnixSha256 => "/proc, of the program that runs",
        SelectorKind::LaunchName => "the launcher's channel",
        SelectorKind::SystemdUnit | SelectorKind::SystemdUserUnit => "the control group, as systemd made it",
        SelectorKind::ContainerId | SelectorKind::K8sPodUid => "the control group, as the runtime made it",
        SelectorKind::K8sNs
        | SelectorKind::K8sSa
        | SelectorKind::K8sPodName
        | SelectorKind::K8sContainerName
        | SelectorKind::K8sImage => "the kubelet, by the container",
        SelectorKind::K8sNode
        | SelectorKind::NodeAttestor
        | SelectorKind::NodeName
        | SelectorKind::TokenLabel
        | SelectorKind::TpmEkSha256
        | SelectorKind::OidcClaim
        | SelectorKind::OidcIss
        | SelectorKind::OidcSub
        | SelectorKind::X509popCn
        | SelectorKind::X509popDns
        | SelectorKind::X509popFingerprint
        | SelectorKind::X509popRoot => "the CA, of nodes",
    }
}

#[tokio::test]
async fn every_kind_of_selector_has_its_attestor() {
    let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let launches = Launches::default();
    launches.note("edge", child.id());
    let mut caller = caller(child.id());
    caller.uid = 0;
    let seen = Attestor::new(launches).attest(&caller).await.unwrap();
    let unix = |kind: &SelectorKind| kind.as_str().starts_with("unix:") || *kind == SelectorKind::LaunchName;
    for kind in SelectorKind::ALL.into_iter().filter(unix) {
        let found = seen.selectors.iter().find(|selector| selector.kind() == kind);
        let found = found.unwrap_or_else(|| panic!("{kind} is not attested by {}: {seen:?}", attestor_of(kind)));
        assert_eq!(
            Selector::parse(&found.to_string()),
            Ok(found.clone()),
            "it can be registered"
        );
    }
    // Where it is among the control groups depends on the machine.
    let is_unix = |selector: &&Selector| unix(&selector.kind());
    assert_eq!(
        seen.selectors.iter().filter(is_unix).count(),
        SelectorKind::ALL.into_iter().filter(unix).count()
    );
    end(child);
}

#[test]
fn what_cannot_be_registered_is_not_attested() {
    let mut seen = Attestation::default();
    for (kind, value) in [
        (SelectorKind::UnixUid, "4294967295"),
        (SelectorKind::UnixPath, "/opt/a\nb"),
        (SelectorKind::UnixPath, "/opt/program (deleted)/"),
        (SelectorKind::UnixUser, "+nis"),
    ] {
        seen.add(kind, Ok(value.to_owned()));
    }
    assert!(seen.selectors.is_empty());
    assert!(
        seen.unknown[0].starts_with("unix:uid (`4294967295` is no value of"),
        "{:?}",
        seen.unknown
    );
    assert_eq!(seen.unknown.len(), 4);
}

#[tokio::test]
async fn an_exited_process_is_nobody() {
    let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let (attestor, caller) = (attestor(), caller(child.id()));
    attestor.attest(&caller).await.unwrap();
    end(child);
    assert_eq!(attestor.attest(&caller).await, Err(Exited));
    caller.exited().await;
}

#[tokio::test]
async fn a_zombie_is_nobody() {
    let mut child = Command::new("/bin/true").spawn().unwrap();
    let caller = caller(child.id());
    caller.exited().await; // not reaped: the pid is still its own, but nothing can be said of it
    assert_eq!(attestor().attest(&caller).await, Err(Exited));
    child.wait().unwrap();
}

#[tokio::test]
async fn a_program_that_becomes_another_is_judged_as_the_other() {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read line; exec /bin/sleep 60"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let (attestor, caller) = (attestor(), caller(child.id()));
    let sleep = fs::canonicalize("/bin/sleep").unwrap();
    let shell = fs::canonicalize("/bin/sh").unwrap();
    let path = |seen: &Attestation| value(seen, "path").map(PathBuf::from);
    // The parent's image runs until the child has called exec.
    let mut before = attestor.attest(&caller).await.unwrap();
    while path(&before) != Some(shell.clone()) {
        before = attestor.attest(&caller).await.unwrap();
    }
    drop(child.stdin.take());
    let mut after = attestor.attest(&caller).await.unwrap();
    while path(&after) != Some(sleep.clone()) {
        after = attestor.attest(&caller).await.unwrap();
    }
    assert_ne!(value(&before, "sha256"), value(&after, "sha256"));
    end(child);
}

/// A program that is run until the test ends. Another test that forks at this moment may hold the copy open for writing.
fn spawned(command: &mut Command) -> Child {
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
            spawned => break spawned.unwrap(),
        }
    }
}

/// As a package manager replaces it: the new file beside it, and then in its place.
#[tokio::test]
async fn a_running_program_keeps_its_path_and_its_digest_when_it_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    let child = spawned(Command::new(&program).arg("60"));
    let (attestor, caller) = (attestor(), caller(child.id()));
    while value(&attestor.attest(&caller).await.unwrap(), "path") != program.to_str() {}
    let digest = value(&attestor.attest(&caller).await.unwrap(), "sha256").map(str::to_owned);

    // Moved: it lies elsewhere, and that is its path.
    let moved = directory.path().join("moved");
    fs::rename(&program, &moved).unwrap();
    let seen = attestor.attest(&caller).await.unwrap();
    assert_eq!(value(&seen, "path"), moved.to_str());
    fs::rename(&moved, &program).unwrap();

    let next = directory.path().join("program.dpkg-new");
    fs::copy("/bin/sleep", &next).unwrap();
    File::options()
        .append(true)
        .open(&next)
        .unwrap()
        .write_all(b"newer")
        .unwrap();
    fs::rename(&next, &program).unwrap();
    // An agent that has never seen this process before, one that has just been started, knows it too.
    for attestor in [&attestor, &super::Attestor::new(Launches::default())] {
        let seen = attestor.attest(&caller).await.unwrap();
        assert_eq!(value(&seen, "path"), program.to_str(), "{:?}", seen.unknown);
        assert_eq!(
            value(&seen, "sha256").map(str::to_owned),
            digest,
            "of what runs, not of what lies there now"
        );
    }
    let second = spawned(Command::new(&program).arg("60"));
    let newer = super::tests::caller(second.id());
    while value(&attestor.attest(&newer).await.unwrap(), "path") != program.to_str() {}
    assert_ne!(
        value(&attestor.attest(&newer).await.unwrap(), "sha256").map(str::to_owned),
        digest
    );
    end(child);
    end(second);
}

/// A namespace of its own, in which another file lay at a path that is somebody else's.
#[tokio::test]
async fn who_mounts_over_a_path_and_deletes_does_not_gain_it() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    let script = "mount -t tmpfs none \"$1\" && cp /bin/sleep \"$1/program\" && { \"$1/program\" 60 & rm \"$1/program\"; wait; }";
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "--user", "--map-root-user", "/bin/sh", "-c", script, "sh"])
        .arg(directory.path());
    let mut shell = spawned(unshare.stderr(Stdio::null()));
    let task = format!("/proc/{0}/task/{0}/children", shell.id());
    let began = std::time::Instant::now();
    let child = loop {
        let is_late = began.elapsed() > std::time::Duration::from_secs(10);
        if is_late || shell.try_wait().unwrap().is_some() {
            let _ = shell.kill();
            let _ = shell.wait();
            eprintln!("SKIPPED: no mount namespace can be made here");
            return;
        }
        let children = fs::read_to_string(&task).unwrap_or_default();
        let of = |pid: &&str| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| exe.to_string_lossy().contains("program (deleted)"))
        };
        if let Some(pid) = children.split_whitespace().find(of) {
            break pid.parse::<u32>().unwrap();
        }
    };
    let link = fs::read_link(format!("/proc/{child}/exe")).unwrap();
    assert!(
        link.starts_with(&program) || link.to_string_lossy().ends_with("program (deleted)"),
        "{link:?}"
    );
    let seen = attestor().attest(&caller(child)).await.unwrap();
    assert_eq!(value(&seen, "path"), None, "{:?}", seen.selectors);
    rustix::process::kill_process(
        Pid::from_raw(i32::try_from(child).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    shell.wait().unwrap();
}

/// A real control group, which this test makes where it may.
#[tokio::test]
async fn the_unit_and_the_container_of_a_real_control_group() {
    let id = "c0ffee01".repeat(8);
    let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let root = Path::new("/sys/fs/cgroup");
    let hierarchy = if root.join("cgroup.procs").exists() {
        root.to_owned()
    } else {
        root.join("pids")
    };
    let group = hierarchy.join("docker").join(&id);
    let made = fs::create_dir_all(&group).and_then(|()| fs::write(group.join("cgroup.procs"), child.id().to_string()));
    let seen = attestor().attest(&caller(child.id())).await.unwrap();
    end(child);
    let _ = fs::remove_dir(&group);
    let _ = fs::remove_dir(hierarchy.join("docker"));
    match made {
        Ok(()) => {
            let container = seen
                .selectors
                .iter()
                .find(|selector| selector.kind() == SelectorKind::ContainerId);
            assert_eq!(container.map(Selector::value), Some(&*id), "{seen:?}");
        }
        Err(error) => eprintln!("SKIPPED: no control group can be made here: {error}"),
    }
}

/// As if a process ran this file.
fn opened(path: &Path) -> Binary {
    let file = File::open(path).unwrap();
    Binary {
        metadata: file.metadata().unwrap(),
        link: path.to_owned(),
        file,
    }
}

/// When a process was started is read once; what has its pid after it has another start, and is not it.
#[tokio::test]
async fn a_process_keeps_its_start_and_its_pid_alone_is_nobody() {
    let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let known = caller(child.id());
    let (pid, started) = known.known_as().unwrap();
    assert_eq!(path::started(pid), Some(started));
    attestor().attest(&known).await.unwrap();
    end(child);
    assert_eq!(path::started(pid), None);
    assert_eq!(known.known_as(), Some((pid, started)), "it is not read again");
    assert_eq!(attestor().attest(&known).await, Err(Exited));
    // One that was gone before anybody asked has no start.
    let child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    let unknown = caller(child.id());
    end(child);
    assert_eq!(unknown.known_as(), None);
}

#[test]
fn another_file_under_the_same_name_is_not_the_path() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    let running = opened(&program);
    let path_of = |binary: &Binary| Paths::default().of(None, binary);
    assert_eq!(path_of(&running).as_deref(), Ok(program.to_str().unwrap()));
    fs::remove_file(&program).unwrap();
    fs::copy("/bin/true", &program).unwrap();
    assert!(path_of(&running).unwrap_err() == Unknown::Replaced);
}

#[tokio::test]
async fn the_cache_is_not_fooled_by_a_modification_time_set_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("binary");
    fs::write(&path, "good").unwrap();
    let attestor = attestor();
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let good = attestor.sha256(opened(&path)).await.unwrap();
    assert_eq!(good, "770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c");
    let changed = fs::metadata(&path).unwrap().ctime_nsec();
    while fs::metadata(&path).unwrap().ctime_nsec() == changed {
        fs::write(&path, "evil").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    }
    assert_ne!(attestor.sha256(opened(&path)).await.unwrap(), good);
}

#[test]
fn the_cache_is_bounded() {
    let mut digests = Digests::default();
    let version = |inode| FileVersion {
        device: 1,
        inode,
        size: 1,
        modified: (0, 0),
        changed: (0, 0),
    };
    for inode in 0..2 * DIGESTS_MAX as u64 {
        digests.insert(version(inode), String::new());
        digests.insert(version(inode), String::new());
    }
    assert_eq!(
        (digests.order.len(), digests.by_version.len()),
        (DIGESTS_MAX, DIGESTS_MAX)
    );
    assert!(digests.by_version.contains_key(&version(2 * DIGESTS_MAX as u64 - 1)));
}

#[tokio::test]
async fn what_cannot_be_read_is_absent_with_the_reason() {
    let error = Binary::open(i32::MAX).err().unwrap();
    assert_eq!(error.to_string(), "not found");
    let attestor = attestor();
    assert!(
        attestor
            .user(Path::new("/nowhere/passwd"), 0)
            .unwrap_err()
            .to_string()
            .contains("not found")
    );
    assert_eq!(attestor.user(Path::new("/etc/passwd"), 0).as_deref(), Ok("root"));
}

#[test]
fn passwd_lines() {
    let check = |text: &str, uid: u32, expected: Option<&str>| {
        assert_eq!(parse_passwd(text).get(&uid).map(String::as_str), expected, "{text:?}");
    };
    check("root:x:0:0:root:/root:/bin/sh\n", 0, Some("root"));
    check("a:x:5:5::/:\nb:x:5:5::/:", 5, Some("a"));
    check("a:x:5", 5, None);
    check("a:x:5:", 5, Some("a"));
    check(":x:5:5", 5, None);
    check("+nis:x:5:5", 5, None);
    check("#a:x:5:5", 5, None);
    check("a b:x:5:5", 5, None);
    check("a:x:-1:5\na:x:4294967296:5\na:x:z:5", u32::MAX, None);
    check("", 0, None);
}

proptest! {
    #[test]
    fn any_passwd_is_survived(text in "\\PC*") {
        for name in parse_passwd(&text).values() {
            prop_assert!(!name.contains(':') && !name.is_empty());
        }
    }
}
