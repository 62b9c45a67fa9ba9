//! Who is calling: the attested properties of the process at the other end of the socket.
//!
//! What is read from `/proc/<pid>` belonged to the caller, because its pidfd is asked *afterwards* whether the process
//! is still alive: until it has exited, its pid cannot be anybody else's. Attestation happens anew for each call and each
//! push, so a process that became another program is judged as that program. What cannot be read is no selector, and the
//! reason is kept for the message with which the caller is refused.
//!
//! Path and digest say which program the process runs *now*. A socket can be shared with other processes of the same
//! user, who could as well trace that program: where that matters, give each service its own user.

pub(crate) mod launch;
pub(crate) mod other;
pub(crate) mod process;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hoplite_host::socket::Peer;
use hoplite_identity::{InvalidSelector, Selector, SelectorKind};
use hoplite_telemetry::{Counter, Family};
use ring::digest;
use tokio::sync::Semaphore;

use crate::attest::launch::Launches;
use crate::attest::process::Process;

/// Digests kept. A node runs fewer binaries than this.
const DIGESTS_MAX: usize = 1024;

/// A larger binary is not hashed: it would take seconds at each change.
const BINARY_BYTES_MAX: u64 = 4 << 30;

/// Binaries hashed at once, so that hashing leaves the machine to others.
const HASHING_MAX: usize = 2;

/// A user database larger than this is not read.
const PASSWD_BYTES_MAX: u64 = 16 << 20;

/// What comes of looking at a caller is from a fixed set.
const RESULTS_MAX: usize = 10;

/// The process at the other end of a connection.
#[derive(Debug)]
pub(crate) struct LocalProcess {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    process: Process,
}

/// What is known of a caller at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attestation {
    pub(crate) selectors: BTreeSet<Selector>,
    /// What could not be learnt, and why: `unix:path (permission denied)`.
    pub(crate) unknown: Vec<String>,
}

/// The caller has exited: whoever reads the answer is somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the calling process has exited")]
pub(crate) struct Exited;

/// Attests callers; shared by all connections.
#[derive(Debug)]
pub(crate) struct Attestor {
    launches: Launches,
    users: Mutex<Users>,
    digests: Mutex<Digests>,
    hashing: Semaphore,
    /// What came of looking at callers.
    results: Family<1, Counter>,
}

/// What identifies the content of a binary without reading it. The change time is part of it because, unlike the
/// modification time, the file's owner cannot set it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Digests by file version, the oldest thrown out first.
#[derive(Debug, Default)]
struct Digests {
    by_version: HashMap<FileVersion, String>,
    order: VecDeque<FileVersion>,
}

/// User names by uid, read again when the file changes.
#[derive(Debug, Default)]
struct Users {
    modified: Option<SystemTime>,
    names: HashMap<u32, String>,
}

/// Why something is not known of a process, in words that stand in the log beside the kind of selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Unknown {
    #[error("{0}")]
    Unread(String),
    #[error("`{path}`: {1}", path = .0.display())]
    UsersUnread(PathBuf, String),
    #[error("uid {0} is not in `{file}`", file = .1.display())]
    NoUser(u32, PathBuf),
    #[error("the binary is too large to hash")]
    TooLarge,
    #[error("{0}")]
    Unhashed(String),
    #[error("the binary changed while it was read")]
    Changed,
    #[error("the binary is no longer there under the name it was started by")]
    Renamed,
    #[error("another file has the name that the binary was started by")]
    Replaced,
    #[error("the path is not UTF-8")]
    NotUtf8,
    #[error(transparent)]
    NoSelector(#[from] InvalidSelector),
}

// === impl Unknown ===

impl From<io::Error> for Unknown {
    fn from(error: io::Error) -> Self {
        Self::Unread(describe(&error))
    }
}

// === impl LocalProcess ===

impl LocalProcess {
    pub(crate) fn new(peer: Peer, process: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            pid: peer.pid,
            uid: peer.uid,
            gid: peer.gid,
            process: Process::new(Arc::new(process))?,
        })
    }

    /// Returns when the process has exited.
    pub(crate) async fn exited(&self) {
        self.process.exited().await;
    }
}

// === impl Attestation ===

impl Attestation {
    /// INVARIANT: the only way to a selector here, so that what is attested could also be registered.
    fn add(&mut self, kind: SelectorKind, value: Result<String, Unknown>) {
        match value.and_then(|value| Ok(Selector::new(kind, &value)?)) {
            Ok(selector) => {
                self.selectors.insert(selector);
            }
            Err(reason) => self.unknown.push(format!("{kind} ({reason})")),
        }
    }
}

// === impl Attestor ===

impl Attestor {
    pub(crate) fn new(launches: Launches) -> Self {
        Self {
            launches,
            users: Mutex::default(),
            digests: Mutex::default(),
            hashing: Semaphore::new(HASHING_MAX),
            results: Family::new(["result!"], RESULTS_MAX),
        }
    }

    /// The launches that this attestor knows of.
    pub(crate) fn launches(&self) -> &Launches {
        &self.launches
    }

    /// What came of looking at callers, by result.
    pub(crate) fn results(&self) -> &Family<1, Counter> {
        &self.results
    }

    /// Everything that can be said of the caller now.
    pub(crate) async fn attest(&self, caller: &LocalProcess) -> Result<Attestation, Exited> {
        let mut seen = Attestation::default();
        seen.add(SelectorKind::UnixUid, Ok(caller.uid.to_string()));
        seen.add(SelectorKind::UnixGid, Ok(caller.gid.to_string()));
        seen.add(SelectorKind::UnixUser, self.user(Path::new("/etc/passwd"), caller.uid));
        match open_binary(caller.pid) {
            Ok((binary, link)) => {
                seen.add(SelectorKind::UnixPath, path_of(&binary, &link));
                seen.add(SelectorKind::UnixSha256, self.sha256(binary).await);
            }
            Err(reason) => {
                seen.add(SelectorKind::UnixPath, Err(reason.clone()));
                seen.add(SelectorKind::UnixSha256, Err(reason));
            }
        }
        if let Some(name) = self.launches.name_of(caller.pid) {
            seen.add(SelectorKind::LaunchName, Ok(name.to_string()));
        }
        // INVARIANT: the last thing done. While the process lives its pid is its own, so all of the above was its.
        if caller.process.is_alive() {
            Ok(seen)
        } else {
            Err(Exited)
        }
    }

    fn user(&self, file: &Path, uid: u32) -> Result<String, Unknown> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users
            .refresh(file)
            .map_err(|error| Unknown::UsersUnread(file.to_owned(), describe(&error)))?;
        users
            .names
            .get(&uid)
            .cloned()
            .ok_or_else(|| Unknown::NoUser(uid, file.to_owned()))
    }

    async fn sha256(&self, binary: File) -> Result<String, Unknown> {
        let version = FileVersion::of(&binary)?;
        if let Some(known) = self
            .digests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .by_version
            .get(&version)
        {
            return Ok(known.clone());
        }
        if version.size > BINARY_BYTES_MAX {
            return Err(Unknown::TooLarge);
        }
        let _permit = self
            .hashing
            .acquire()
            .await
            .map_err(|e| Unknown::Unhashed(e.to_string()))?;
        let (digest, after) = tokio::task::spawn_blocking(move || {
            let digest = hash(&binary)?;
            Ok::<_, io::Error>((digest, FileVersion::of(&binary)?))
        })
        .await
        .map_err(|e| Unknown::Unhashed(e.to_string()))??;
        if after != version {
            return Err(Unknown::Changed);
        }
        self.digests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(version, digest.clone());
        Ok(digest)
    }
}

/// The file a process runs, and where the kernel says that it lies.
fn open_binary(pid: i32) -> Result<(File, PathBuf), Unknown> {
    let link = PathBuf::from(format!("/proc/{pid}/exe"));
    let binary = File::open(&link)?;
    let target = fs::read_link(&link)?;
    Ok((binary, target))
}

/// The path, if in our own view of the file system it names the very file that runs. A binary deleted or replaced since
/// it was started, or one in another mount namespace, has no path that an operator could have meant.
fn path_of(binary: &File, path: &Path) -> Result<String, Unknown> {
    let running = FileVersion::of(binary)?;
    let named = fs::metadata(path).map_err(|_| Unknown::Renamed)?;
    if (named.dev(), named.ino()) != (running.device, running.inode) {
        return Err(Unknown::Replaced);
    }
    path.to_str().map(str::to_owned).ok_or(Unknown::NotUtf8)
}

fn hash(mut binary: &File) -> io::Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = binary.read(&mut buffer)?;
        if read == 0 {
            return Ok(HEXLOWER.encode(context.finish().as_ref()));
        }
        context.update(buffer.get(..read).unwrap_or_default());
    }
}

/// An operating-system error without its number, for people.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "the agent may not read it: permission denied".to_owned(),
        io::ErrorKind::NotFound => "not found".to_owned(),
        _ => error.to_string(),
    }
}

// === impl FileVersion ===

impl FileVersion {
    fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        Ok(Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        })
    }
}

// === impl Digests ===

impl Digests {
    fn insert(&mut self, version: FileVersion, digest: String) {
        if self.by_version.insert(version, digest).is_none() {
            self.order.push_back(version);
        }
        while self.order.len() > DIGESTS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.by_version.remove(&oldest);
            }
        }
    }
}

// === impl Users ===

impl Users {
    fn refresh(&mut self, file: &Path) -> io::Result<()> {
        let metadata = fs::metadata(file)?;
        let modified = metadata.modified()?;
        if self.modified == Some(modified) {
            return Ok(());
        }
        if metadata.len() > PASSWD_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.names = parse_passwd(&fs::read_to_string(file)?);
        self.modified = Some(modified);
        Ok(())
    }
}

/// Names by uid; of several names of one uid the first counts, as for `getpwuid`. Lines that are no entry are skipped,
/// so are entries of other databases (`+nis`) and names that would not print.
fn parse_passwd(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(uid), Some(_)) = (fields.next(), fields.next(), fields.next(), fields.next())
            && Selector::new(SelectorKind::UnixUser, name).is_ok()
            && let Ok(uid) = uid.parse()
        {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::process::{Pid, PidfdFlags};
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
            _ => "",
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
        assert_eq!(seen.selectors.len(), SelectorKind::ALL.into_iter().filter(unix).count());
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

    #[tokio::test]
    async fn a_replaced_binary_has_no_path() {
        let directory = tempfile::tempdir().unwrap();
        let program = program(directory.path());
        // Another test that forks at this moment may hold the copy open for writing.
        let child = loop {
            match Command::new(&program).arg("60").spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                spawned => break spawned.unwrap(),
            }
        };
        let (attestor, caller) = (attestor(), caller(child.id()));
        while value(&attestor.attest(&caller).await.unwrap(), "path") != program.to_str() {}
        let digest = value(&attestor.attest(&caller).await.unwrap(), "sha256").map(str::to_owned);

        fs::rename(&program, directory.path().join("moved")).unwrap();
        fs::copy("/bin/true", &program).unwrap();
        let moved = attestor.attest(&caller).await.unwrap();
        assert_eq!(value(&moved, "path"), directory.path().join("moved").to_str());

        fs::remove_file(directory.path().join("moved")).unwrap();
        let seen = attestor.attest(&caller).await.unwrap();
        assert_eq!(value(&seen, "path"), None);
        assert!(
            seen.unknown.iter().any(|u| u.starts_with("unix:path (")),
            "{:?}",
            seen.unknown
        );
        assert_eq!(
            value(&seen, "sha256").map(str::to_owned),
            digest,
            "the digest is of what runs, not of what lies there now"
        );
        end(child);
    }

    #[test]
    fn another_file_under_the_same_name_is_not_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let program = program(directory.path());
        let running = File::open(&program).unwrap();
        assert_eq!(path_of(&running, &program).as_deref(), Ok(program.to_str().unwrap()));
        fs::remove_file(&program).unwrap();
        fs::copy("/bin/true", &program).unwrap();
        assert!(path_of(&running, &program).unwrap_err() == Unknown::Replaced);
    }

    #[tokio::test]
    async fn the_cache_is_not_fooled_by_a_modification_time_set_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binary");
        fs::write(&path, "good").unwrap();
        let attestor = attestor();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let good = attestor.sha256(File::open(&path).unwrap()).await.unwrap();
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
        assert_ne!(attestor.sha256(File::open(&path).unwrap()).await.unwrap(), good);
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
        let error = open_binary(i32::MAX).unwrap_err();
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
}
