//! Who is calling: the attested properties of the process at the other end of the socket.
//!
//! What is read from `/proc/<pid>` belonged to the caller, because its pidfd is asked *afterwards* whether the process
//! is still alive: until it has exited, its pid cannot be anybody else's. Attestation happens anew for each call and each
//! push, so a process that became another program is judged as that program. What cannot be read is no selector, and the
//! reason is kept for the message with which the caller is refused.
//!
//! What there is to find out is a table: each attestor is a file below this one, and a row in [`Attestor::attest`].
//!
//! Path and digest say which program the process runs *now*. A socket can be shared with other processes of the same
//! user, who could as well trace that program: where that matters, give each service its own user.

mod binary;
mod cgroup;
mod container;
mod found;
pub(crate) mod k8s;
pub(crate) mod launch;
pub(crate) mod other;
mod path;
pub(crate) mod process;
mod systemd;

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hoplite_host::socket::Peer;
use hoplite_identity::{Selector, SelectorKind};
use hoplite_telemetry::{Counter, Family};
use ring::digest;
use tokio::sync::Semaphore;

use crate::attest::binary::Binary;
pub(crate) use crate::attest::found::Attestation;
use crate::attest::found::{Unknown, describe};
use crate::attest::k8s::Kubelet;
use crate::attest::launch::Launches;
use crate::attest::path::Paths;
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
    started: OnceLock<u64>,
}

/// The caller has exited: whoever reads the answer is somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the calling process has exited")]
pub(crate) struct Exited;

/// Attests callers; shared by all connections.
#[derive(Debug)]
pub(crate) struct Attestor {
    launches: Launches,
    kubelet: Option<Kubelet>,
    paths: Paths,
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

// === impl LocalProcess ===

impl LocalProcess {
    pub(crate) fn new(peer: Peer, process: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            pid: peer.pid,
            uid: peer.uid,
            gid: peer.gid,
            process: Process::new(Arc::new(process))?,
            started: OnceLock::new(),
        })
    }

    /// Its pid, and when it was started, in ticks since the machine was: nobody else ever has both.
    ///
    /// Read once, for no process is started twice. Whoever reads it asks [`Process::is_alive`] afterwards, as of everything in
    /// `/proc`: what was read of a pid's next owner is kept for a caller that is gone for good.
    fn known_as(&self) -> Option<(i32, u64)> {
        let started = match self.started.get() {
            Some(started) => *started,
            None => {
                let read = path::started(self.pid)?;
                *self.started.get_or_init(|| read)
            }
        };
        Some((self.pid, started))
    }

    /// Returns when the process has exited.
    pub(crate) async fn exited(&self) {
        self.process.exited().await;
    }
}

// === impl Attestor ===

impl Attestor {
    pub(crate) fn new(launches: Launches) -> Self {
        Self {
            launches,
            kubelet: None,
            paths: Paths::default(),
            users: Mutex::default(),
            digests: Mutex::default(),
            hashing: Semaphore::new(HASHING_MAX),
            results: Family::new(["result!"], RESULTS_MAX),
        }
    }

    /// It asks the kubelet, too.
    pub(crate) fn with(self, kubelet: Option<Kubelet>) -> Self {
        Self { kubelet, ..self }
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
        match Binary::open(caller.pid) {
            Ok(binary) => {
                seen.add(SelectorKind::UnixPath, self.paths.of(caller.known_as(), &binary));
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
        let place = cgroup::of(caller.pid).map_err(Unknown::from);
        systemd::attest(&place, &mut seen);
        container::attest(&place, &mut seen);
        if let Some(kubelet) = &self.kubelet {
            kubelet.attest(&place, &mut seen).await;
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

    async fn sha256(&self, binary: Binary) -> Result<String, Unknown> {
        let version = FileVersion::of(&binary.metadata);
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
            let digest = hash(&binary.file)?;
            Ok::<_, io::Error>((digest, FileVersion::of(&binary.file.metadata()?)))
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

// === impl FileVersion ===

impl FileVersion {
    fn of(m: &Metadata) -> Self {
        Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }
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
mod tests;
