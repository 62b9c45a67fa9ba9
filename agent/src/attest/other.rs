//! A process that did not call, by its pid: for operators who ask about it.

use std::fs;
use std::io;

use hoplite_host::socket::Peer;
use rustix::process::{Pid, PidfdFlags};

use crate::attest::LocalProcess;

/// Why nothing can be said of a process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoProcess {
    #[error("there is no process {0} here; pids are those of the agent's pid namespace")]
    Absent(i32),
    #[error("process {0} cannot be looked at: {1}")]
    Unreadable(i32, io::Error),
    #[error("`/proc/{0}/status` does not say whose the process is")]
    NoUser(i32),
}

/// A live process, as it would be seen if it called now.
pub(crate) fn process(pid: i32) -> Result<LocalProcess, NoProcess> {
    let absent = || NoProcess::Absent(pid);
    // Before anything is read of it: what is read is then this process's, for as long as it lives.
    let positive = Some(pid).filter(|pid| *pid > 0); // any other number is no pid, and `Pid` must not be asked
    let raw = positive.and_then(Pid::from_raw).ok_or_else(absent)?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).map_err(|_| absent())?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => absent(),
        _ => NoProcess::Unreadable(pid, error),
    })?;
    let (uid, gid) = users(&status).ok_or(NoProcess::NoUser(pid))?;
    LocalProcess::new(Peer { pid, uid, gid }, pidfd).map_err(|error| NoProcess::Unreadable(pid, error))
}

/// The effective user and group, as a socket shows them: the second number of each line.
fn users(status: &str) -> Option<(u32, u32)> {
    let effective = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    Some((effective("Uid:")?, effective("Gid:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_users() {
        let check = |text: &str, expected: Option<(u32, u32)>| assert_eq!(users(text), expected, "{text:?}");
        check("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n", Some((2, 6)));
        check("Uid:\t1\nGid:\t5\t6\t7\t8\n", None);
        check("Uid:\t1\t2\t3\t4\n", None);
        check("", None);
    }

    #[tokio::test]
    async fn a_process_by_its_pid() {
        let own = i32::try_from(std::process::id()).unwrap();
        let seen = process(own).unwrap();
        assert_eq!((seen.pid, seen.uid), (own, rustix::process::geteuid().as_raw()));
        for nobody in [i32::MAX, 0, -1] {
            assert!(matches!(process(nobody), Err(NoProcess::Absent(_))), "{nobody}");
        }
    }
}
