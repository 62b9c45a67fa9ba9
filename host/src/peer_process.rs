//! Which process is at the other end of a Unix socket: by the kernel's own word, or, where a kernel has none, by its number.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::socket::Peer;

/// How a process is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PeerProcess {
    /// The kernel says which process connected (`SO_PEERPIDFD`, Linux 6.5), whatever becomes of its number.
    #[default]
    Kernel,
    /// The kernel gives the number that the process had when it connected, and the user and group it had then. What has the
    /// number now is taken for it if it is of that user and group and is older than the accepted connection. See the threat
    /// model for what that leaves open.
    Pid,
}

impl fmt::Display for PeerProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Pid => "pid",
        })
    }
}

/// Hundredths of a second since the machine started, as `/proc` counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hundredths(u64);

/// What `/proc` says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    started: Hundredths,
    uid: u32,
    gid: u32,
}

// === impl PeerProcess ===

impl PeerProcess {
    /// The better one of those that this kernel can.
    ///
    /// # Errors
    /// It can neither.
    pub fn best() -> io::Result<Self> {
        match Self::Kernel.ensure_possible() {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                Self::Pid.ensure_possible()?;
                Ok(Self::Pid)
            }
            possible => possible.map(|()| Self::Kernel),
        }
    }

    /// Fails on a kernel on which processes cannot be known so, and says what to do; for a daemon to say when it starts.
    ///
    /// # Errors
    /// The kernel is too old.
    pub fn ensure_possible(self) -> io::Result<()> {
        let unsupported = |text| io::Error::new(io::ErrorKind::Unsupported, text);
        match self {
            Self::Kernel => {
                let (one, _other) = std::os::unix::net::UnixStream::pair()?;
                match getsockopt(&one, sockopt::PeerPidfd) {
                    Ok(_) => Ok(()),
                    Err(Errno::ENOPROTOOPT) => Err(unsupported(
                        "this kernel cannot tell which process connected (SO_PEERPIDFD, Linux 6.5); run a newer kernel, or set \
                         `peer_process = \"pid\"` after reading what that leaves open (docs/threat-model.md)",
                    )),
                    Err(errno) => Err(errno.into()),
                }
            }
            Self::Pid => match pidfd_open(rustix::process::getpid(), PidfdFlags::empty()) {
                Ok(_) => {
                    uptime()?;
                    Ok(())
                }
                Err(rustix::io::Errno::NOSYS) => Err(unsupported(
                    "this kernel has no descriptors for processes (pidfd_open, Linux 5.3); run a newer one",
                )),
                Err(errno) => Err(errno.into()),
            },
        }
    }

    /// The process at the other end, held so that its number can be nobody else's as long as it lives. To be asked right
    /// after the connection was accepted.
    ///
    /// # Errors
    /// It has exited, or it is not certain which process it is.
    pub fn of(self, stream: &UnixStream, peer: Peer) -> io::Result<OwnedFd> {
        match self {
            Self::Kernel => Ok(getsockopt(stream, sockopt::PeerPidfd)?),
            Self::Pid => by_number(peer, uptime()?),
        }
    }
}

/// The process that has the peer's number, unless it may be another than the one that connected before `accepted`.
fn by_number(peer: Peer, accepted: Hundredths) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(peer.pid).ok_or(io::ErrorKind::NotFound)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let seen = Seen::of(peer.pid)?;
    // INVARIANT: asked last. What lives still had its number all the while, so what was seen is of this very process.
    if has_exited(&process) {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the calling process has exited",
        ));
    }
    if seen.started > accepted {
        return Err(refused(
            "the process with the caller's number is younger than its connection",
        ));
    }
    if (seen.uid, seen.gid) != (peer.uid, peer.gid) {
        return Err(refused(
            "the process with the caller's number is of another user or group than the caller was",
        ));
    }
    Ok(process)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// In doubt it has.
fn has_exited(process: &impl AsFd) -> bool {
    let mut descriptors = [PollFd::new(process, PollFlags::IN)];
    !matches!(poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// Since the machine started, its sleep counted, as a process' start is.
fn uptime() -> io::Result<Hundredths> {
    let text = fs::read_to_string("/proc/uptime")?;
    text.split(' ')
        .next()
        .and_then(parse_uptime)
        .ok_or_else(|| strange("/proc/uptime"))
}

fn parse_uptime(text: &str) -> Option<Hundredths> {
    let (seconds, hundredths) = text.split_once('.')?;
    let (seconds, hundredths): (u64, u64) = (seconds.parse().ok()?, hundredths.parse().ok()?);
    Some(Hundredths(seconds.checked_mul(100)?.checked_add(hundredths)?))
}

fn strange(file: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("`{file}` does not read as on Linux"),
    )
}

// === impl Seen ===

impl Seen {
    fn of(pid: i32) -> io::Result<Self> {
        let (stat, status) = (format!("/proc/{pid}/stat"), format!("/proc/{pid}/status"));
        let started = started(&fs::read_to_string(&stat)?).ok_or_else(|| strange(&stat))?;
        let text = fs::read_to_string(&status)?;
        let id = |name| effective(&text, name).ok_or_else(|| strange(&status));
        Ok(Self {
            started,
            uid: id("Uid:")?,
            gid: id("Gid:")?,
        })
    }
}

/// The 22nd field, in ticks of a hundredth of a second. The second is the program's name in brackets and may hold anything.
fn started(stat: &str) -> Option<Hundredths> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok().map(Hundredths)
}

/// The second of the four ids of a line.
fn effective(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::{bind, peer};
    use std::process::{Child, Command};

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn as_peer(child: &Child) -> Peer {
        Peer {
            pid: i32::try_from(child.id()).unwrap(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    #[tokio::test]
    async fn both_ways_know_who_calls() {
        let dir = tempfile::tempdir().unwrap();
        let listener = bind(&dir.path().join("s"), 0o600).unwrap();
        let _client = UnixStream::connect(dir.path().join("s")).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        for how in [PeerProcess::Kernel, PeerProcess::Pid] {
            how.ensure_possible().unwrap();
            let process = how.of(&stream, peer(&stream).unwrap()).unwrap();
            assert!(!has_exited(&process), "{how:?}");
        }
    }

    /// Every way in which a number can be another process's by the time it is looked at.
    #[test]
    fn a_number_that_is_another_process_now_is_refused() {
        let mut child = sleeper();
        let caller = as_peer(&child);
        let now = uptime().unwrap();
        by_number(caller, now).unwrap();

        let before = Hundredths(Seen::of(caller.pid).unwrap().started.0 - 1);
        let kind = |result: io::Result<OwnedFd>| result.map(drop).map_err(|error| error.kind());
        let denied = Err(io::ErrorKind::PermissionDenied);
        assert_eq!(
            kind(by_number(caller, before)),
            denied,
            "it started after the connection was accepted"
        );
        assert_eq!(
            kind(by_number(
                Peer {
                    uid: caller.uid + 1,
                    ..caller
                },
                now
            )),
            denied,
            "another user's"
        );
        assert_eq!(
            kind(by_number(
                Peer {
                    gid: caller.gid + 1,
                    ..caller
                },
                now
            )),
            denied,
            "another group's"
        );

        // It has exited and its number is not free yet; then it is.
        child.kill().unwrap();
        rustix::event::poll(
            &mut [PollFd::new(
                &pidfd_open(Pid::from_raw(caller.pid).unwrap(), PidfdFlags::empty()).unwrap(),
                PollFlags::IN,
            )],
            None,
        )
        .unwrap();
        assert!(by_number(caller, now).is_err(), "it has exited");
        child.wait().unwrap();
        assert!(by_number(caller, now).is_err(), "nobody has the number");
    }

    /// With the privilege to say which number comes next, the caller's is given to another process after it has gone.
    #[tokio::test]
    async fn a_number_that_is_given_again_is_refused() {
        const LAST: &str = "/proc/sys/kernel/ns_last_pid";
        let dir = tempfile::tempdir().unwrap();
        let listener = bind(&dir.path().join("s"), 0o666).unwrap();
        let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])";
        let connect = || {
            Command::new("python3")
                .args(["-c", script])
                .arg(dir.path().join("s"))
                .spawn()
        };
        let mut tried = 0;
        while tried < 50 {
            tried += 1;
            let mut caller = connect().unwrap();
            let pid = caller.id();
            caller.wait().unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let (peer, accepted) = (peer(&stream).unwrap(), uptime().unwrap());
            assert_eq!(peer.pid as u32, pid);
            // So that the next is younger by more than a clock of hundredths can miss.
            std::thread::sleep(std::time::Duration::from_millis(20));
            if fs::write(LAST, (pid - 1).to_string()).is_err() {
                println!("not allowed to say which number comes next; the refusals themselves are in the test before");
                return;
            }
            let mut other = sleeper();
            let again = other.id() == pid;
            let known = by_number(peer, accepted).map(drop).map_err(|error| error.kind());
            other.kill().unwrap();
            other.wait().unwrap();
            if again {
                assert_eq!(known, Err(io::ErrorKind::PermissionDenied));
                return;
            }
        }
        panic!("no number was given twice");
    }

    #[test]
    fn what_proc_says_is_read() {
        let stat = "7 (a ) b (c) S 1 7 7 0 -1 4194560 2 0 0 0 0 0 0 0 20 0 1 0 123456 2703360 210 18446744073709551615";
        assert_eq!(started(stat), Some(Hundredths(123_456)));
        assert_eq!(started("7 (a) S 1"), None);
        assert_eq!(parse_uptime("11823.07"), Some(Hundredths(1_182_307)));
        let status = "Name:\ta\nUid:\t1000\t1001\t1002\t1003\nGid:\t1\t2\t3\t4\n";
        assert_eq!(
            (effective(status, "Uid:"), effective(status, "Gid:")),
            (Some(1001), Some(2))
        );
    }
}
