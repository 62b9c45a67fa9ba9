//! What a supervisor launched: the one way to tell processes apart that run as one user from one binary.
//!
//! The channel is a Unix socket pair that the agent inherits; it has no name in the file system, so nobody else can
//! speak on it. The supervisor says `{"launch":{"name":"edge","pid":123}}` in one line and reads `{"ok":true}` or
//! `{"error":"…"}`. The agent opens a pidfd at once. Only that very process gets the selector `launch:name:edge`: its
//! children are other processes, and when it has exited its pid is worth nothing.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hoplite_identity::ServiceName;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::attest::process::Process;

/// A supervisor launches a handful; this only keeps a broken one from filling the memory.
const LAUNCHED_MAX: usize = 4096;

/// Room for the longest legal line, many times over.
const LINE_BYTES_MAX: u64 = 4096;

/// An agent answers at once; one that does not is gone or stopped.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The supervisor's end of the channel.
#[derive(Debug)]
pub struct Launcher {
    stream: BufReader<UnixStream>,
}

/// Why the agent did not take note of a process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LauncherError {
    /// The agent refused, and says why.
    #[error("the agent refused to take note of the process: {0}")]
    Refused(String),
    /// The channel is broken: the agent is gone or does not answer.
    #[error("the agent does not answer on the launcher channel: {0}")]
    Channel(#[from] io::Error),
}

/// The agent's side: which live process was launched as what.
#[derive(Debug, Clone, Default)]
pub(crate) struct Launches {
    processes: Arc<Mutex<HashMap<i32, Launched>>>,
    changes: watch::Sender<()>,
}

#[derive(Debug)]
struct Launched {
    name: ServiceName,
    process: Arc<Process>,
}

/// Why a launch is not taken note of; the supervisor is told.
#[derive(Debug, thiserror::Error)]
enum NotNoted {
    #[error("this is no launch request: {0}")]
    NoRequest(#[from] serde_json::Error),
    #[error("`{0}` is no process id")]
    NoPid(u32),
    #[error("cannot watch process {pid}: {source}")]
    Unwatched { pid: i32, source: io::Error },
    #[error("process {0} has exited")]
    Exited(i32),
    #[error("{LAUNCHED_MAX} launched processes are alive; stop some first")]
    TooMany,
}

/// A line from the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Launch(LaunchRequest),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LaunchRequest {
    name: ServiceName,
    pid: u32,
}

/// The line in return.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(bool),
    Error(String),
}

// === impl Launcher ===

impl Launcher {
    /// Takes one end of a Unix socket pair whose other end the agent inherited.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    /// Says that the process `pid`, which the caller launched and has not reaped, is the service `name`. When this returns, the process can be attested as `launch:name:<name>`.
    /// Blocks until the agent has answered, at most 5 seconds.
    ///
    /// # Errors
    /// [`LauncherError::Refused`] for a process that is gone; [`LauncherError::Channel`] when the agent is.
    pub fn launch(&mut self, name: &ServiceName, pid: u32) -> Result<(), LauncherError> {
        let mut line = serde_json::to_string(&Request::Launch(LaunchRequest {
            name: name.clone(),
            pid,
        }))
        .map_err(io::Error::from)?;
        line.push('\n');
        self.stream.get_ref().set_read_timeout(Some(ANSWER_TIMEOUT))?;
        self.stream.get_ref().set_write_timeout(Some(ANSWER_TIMEOUT))?;
        self.stream.get_mut().write_all(line.as_bytes())?;
        line.clear();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str(&line).map_err(io::Error::from)? {
            Answer::Ok(_) => Ok(()),
            Answer::Error(reason) => Err(LauncherError::Refused(reason)),
        }
    }
}

// === impl Launches ===

impl Launches {
    /// Answers the supervisor until it is gone.
    pub(crate) async fn serve(&self, stream: tokio::net::UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = tokio::io::BufReader::new(reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the supervisor sent a line that does not end",
                ));
            }
            let answer = match self.request(&line) {
                Ok(()) => Answer::Ok(true),
                Err(reason) => Answer::Error(reason.to_string()),
            };
            let mut answer = serde_json::to_vec(&answer)?;
            answer.push(b'\n');
            writer.write_all(&answer).await?;
        }
    }

    /// The name under which the live process with this pid was launched. That it is the caller must be asked of the
    /// caller's own pidfd afterwards: two live processes with one pid are one process.
    pub(crate) fn name_of(&self, pid: i32) -> Option<ServiceName> {
        let processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes
            .get(&pid)
            .filter(|launched| launched.process.is_alive())
            .map(|launched| launched.name.clone())
    }

    /// Changes whenever a process was launched, for streams that wait for their identity.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn request(&self, line: &[u8]) -> Result<(), NotNoted> {
        let Request::Launch(LaunchRequest { name, pid }) = serde_json::from_slice(line)?;
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(NotNoted::NoPid(pid))?;
        let raw = pid.as_raw_nonzero().get();
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|pidfd| Process::new(Arc::new(pidfd)))
            .map_err(|source| NotNoted::Unwatched { pid: raw, source })?;
        if !process.is_alive() {
            return Err(NotNoted::Exited(raw));
        }
        self.insert(raw, name, Arc::new(process))
    }

    fn insert(&self, pid: i32, name: ServiceName, process: Arc<Process>) -> Result<(), NotNoted> {
        {
            let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
            if processes.len() >= LAUNCHED_MAX && !processes.contains_key(&pid) {
                return Err(NotNoted::TooMany);
            }
            tracing::info!(pid, %name, "launched");
            processes.insert(
                pid,
                Launched {
                    name,
                    process: Arc::clone(&process),
                },
            );
        }
        self.changes.send_replace(());
        let processes = Arc::downgrade(&self.processes);
        tokio::spawn(async move {
            process.exited().await;
            if let Some(processes) = processes.upgrade() {
                let mut processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
                // Its pid may have been launched anew by now.
                if processes
                    .get(&pid)
                    .is_some_and(|launched| Arc::ptr_eq(&launched.process, &process))
                {
                    processes.remove(&pid);
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> Child {
        Command::new("/bin/sleep").arg("60").spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A supervisor and an agent that talk over a real socket pair.
    fn channel() -> (Launcher, Launches, tokio::task::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let launches = Launches::default();
        let served = launches.clone();
        let stream = tokio::net::UnixStream::from_std(theirs).unwrap();
        (
            Launcher::new(ours),
            launches,
            tokio::spawn(async move { served.serve(stream).await }),
        )
    }

    async fn launch(launcher: Launcher, name: &str, pid: u32) -> (Launcher, Result<(), LauncherError>) {
        let name = ServiceName::parse(name).unwrap();
        tokio::task::spawn_blocking(move || {
            let mut launcher = launcher;
            let result = launcher.launch(&name, pid);
            (launcher, result)
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn a_launched_process_has_its_name_until_it_exits() {
        let (launcher, launches, served) = channel();
        let (edge, orders) = (sleeper(), sleeper());
        let pid = |child: &Child| i32::try_from(child.id()).unwrap();
        let (launcher, result) = launch(launcher, "edge", edge.id()).await;
        result.unwrap();
        assert_eq!(
            launches.name_of(pid(&edge)).as_ref().map(ServiceName::as_str),
            Some("edge")
        );
        assert_eq!(launches.name_of(pid(&orders)), None);
        let gone = pid(&edge);
        end(edge);
        assert_eq!(launches.name_of(gone), None);
        let (launcher, result) = launch(launcher, "edge", u32::try_from(gone).unwrap()).await;
        assert!(matches!(result, Err(LauncherError::Refused(_))), "{result:?}");
        end(orders);
        drop(launcher);
        served.await.unwrap().unwrap(); // the supervisor is gone, and that is an orderly end
    }

    impl Launches {
        /// What the supervisor's line does.
        pub(crate) fn note(&self, name: &str, pid: u32) {
            let line = format!("{{\"launch\":{{\"name\":\"{name}\",\"pid\":{pid}}}}}");
            self.request(line.as_bytes()).unwrap();
        }
    }

    #[tokio::test]
    async fn an_exited_process_is_forgotten() {
        let launches = Launches::default();
        let child = sleeper();
        launches.note("a", child.id());
        end(child);
        while !launches.processes.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn bad_requests_are_answered_with_the_reason() {
        let launches = Launches::default();
        let own = std::process::id();
        let check = |line: &str, expected: &str| {
            let error = launches.request(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        };
        check("", "no launch request");
        check("{}", "no launch request");
        check(r#"{"kill":{"pid":1}}"#, "no launch request");
        check(r#"{"launch":{"name":"a"}}"#, "no launch request");
        check(r#"{"launch":{"name":"a","pid":-1}}"#, "no launch request");
        check(r#"{"launch":{"name":"a","pid":1,"uid":0}}"#, "no launch request");
        check(r#"{"launch":{"name":"a","pid":0}}"#, "no process id");
        check(r#"{"launch":{"name":"a","pid":4294967295}}"#, "no process id");
        check(r#"{"launch":{"name":"a","pid":2147483646}}"#, "cannot watch");
        for name in ["", "Edge", "a b", "a:b", "é", &"a".repeat(65)] {
            check(
                &format!(r#"{{"launch":{{"name":"{name}","pid":{own}}}}}"#),
                "not a service name",
            );
        }
    }

    #[tokio::test]
    async fn a_line_without_an_end_closes_the_channel() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.write_all(&[b'x'; 5000]).unwrap();
        let error = Launches::default()
            .serve(tokio::net::UnixStream::from_std(theirs).unwrap())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
