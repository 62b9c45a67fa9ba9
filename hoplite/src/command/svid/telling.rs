//! Tells a program that its files have changed: a command that is run, or a signal that is sent.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use hoplite_host::clock;
use hoplite_host::hand::{self, OtherHand};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, open};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::process::Command;

/// How much later than its pid file a process may seem to have begun: a boot time is known to a second.
const STALE_SLACK: Duration = Duration::from_secs(2);

use crate::output::one_line;

/// A pid file has a number first; postmaster.pid has a few lines behind it.
const PID_FILE_BYTES_MAX: u64 = 4096;

/// Of a directory in which only owners remove and rename.
const STICKY: u32 = 0o1000;

/// What `/proc` counts in; it is 100 on every architecture that Linux has nowadays, whatever the kernel's own is.
const TICKS_A_SECOND: u32 = 100;

/// Whom to tell, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Listeners {
    /// Run this command after each change. Its words are parted at spaces, and no shell sees them
    #[arg(long, value_name = "COMMAND", requires = "write")]
    exec: Option<String>,
    /// Give the command to `/bin/sh -c`
    #[arg(long, requires = "exec")]
    shell: bool,
    /// What runs longer is killed, with what of it stays in its process group
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = crate::output::moment::span, requires = "write")]
    exec_timeout: Duration,
    /// Send a signal to this process after each change; end when it is gone
    #[arg(long, value_name = "PID", requires = "write", conflicts_with = "pid_file")]
    signal: Option<i32>,
    /// Send it to the process that this file names on its first line
    #[arg(long, value_name = "FILE", requires = "write")]
    pid_file: Option<PathBuf>,
    /// Which signal
    #[arg(long, value_name = "NAME", default_value = "HUP", value_parser = signal_of, requires = "write")]
    signal_name: NamedSignal,
}

impl Listeners {
    pub(crate) fn is_anybody(&self) -> bool {
        self.exec.is_some() || self.signal.is_some() || self.pid_file.is_some()
    }
}

/// A signal that programs reload at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NamedSignal {
    name: &'static str,
    signal: Signal,
}

/// Whom to tell, found.
#[derive(Debug)]
pub(crate) struct Telling {
    command: Option<Vec<String>>,
    timeout: Duration,
    target: Option<Target>,
    signal: NamedSignal,
}

#[derive(Debug)]
enum Target {
    /// One process, whatever becomes of its number.
    Process(i32, OwnedFd),
    PidFile(PathBuf),
}

/// Why a program does not know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Untold {
    /// There is nobody left to write for.
    #[error("the process {0} is gone, so nobody reads the files any more")]
    Gone(i32),
    /// Worth trying again.
    #[error("{}", one_line(.0))]
    Failed(anyhow::Error),
}

// === impl Listeners ===

impl Listeners {
    /// Finds them; a process has to be there.
    pub(crate) fn find(&self) -> anyhow::Result<Telling> {
        let target = match (self.signal, &self.pid_file) {
            (Some(pid), _) => Some(Target::Process(pid, opened(pid)?)),
            (None, Some(file)) => Some(Target::PidFile(file.clone())),
            (None, None) => None,
        };
        Ok(Telling {
            command: self.exec.as_deref().map(|text| words(text, self.shell)).transpose()?,
            timeout: self.exec_timeout,
            target,
            signal: self.signal_name,
        })
    }
}

/// A command's words.
fn words(text: &str, shell: bool) -> anyhow::Result<Vec<String>> {
    if shell {
        return Ok(["/bin/sh", "-c", text].map(str::to_owned).to_vec());
    }
    if let Some(odd) = text.chars().find(|c| "'\"\\$`|&;<>*?()[]{}~#\n".contains(*c)) {
        anyhow::bail!("`{odd}` in the command `{text}` would need a shell; add `--shell`, or run a script");
    }
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        anyhow::bail!("the command is empty; name a program");
    }
    Ok(words)
}

fn signal_of(text: &str) -> anyhow::Result<NamedSignal> {
    let known = [
        ("HUP", Signal::HUP),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("TERM", Signal::TERM),
        ("INT", Signal::INT),
        ("WINCH", Signal::WINCH),
    ];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let found = known.into_iter().find(|(known, _)| *known == name);
    found
        .map(|(name, signal)| NamedSignal { name, signal })
        .with_context(|| "a signal is HUP, USR1, USR2, TERM, INT or WINCH".to_owned())
}

/// A handle of a process, which stays its own when the number is given to another.
fn opened(pid: i32) -> anyhow::Result<OwnedFd> {
    let pid = Pid::from_raw(pid)
        .filter(|pid| pid.as_raw_pid() > 1)
        .with_context(|| format!("`{pid}` is no process to signal"))?;
    pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("there is no process {}", pid.as_raw_pid()))
}

// === impl Telling ===

impl Telling {
    /// Whether there is anybody to tell.
    pub(crate) fn is_empty(&self) -> bool {
        self.command.is_none() && self.target.is_none()
    }

    /// Tells them, and says what was done.
    pub(crate) async fn tell(&self, dir: &Path) -> Result<String, Untold> {
        let mut done = Vec::new();
        if let Some(words) = &self.command {
            self.run(words, dir).await.map_err(Untold::Failed)?;
            done.push("the command ran".to_owned());
        }
        match &self.target {
            // A signal to one that nobody has waited for yet would go well.
            Some(Target::Process(pid, process)) if has_ended(process) => return Err(Untold::Gone(*pid)),
            Some(Target::Process(pid, process)) => match pidfd_send_signal(process, self.signal.signal) {
                Ok(()) => done.push(format!("SIG{} to {pid}", self.signal.name)),
                Err(rustix::io::Errno::SRCH) => return Err(Untold::Gone(*pid)),
                Err(error) => return Err(self.not_signalled(*pid, error)),
            },
            Some(Target::PidFile(file)) => {
                let (pid, process) = named(file).map_err(Untold::Failed)?;
                pidfd_send_signal(&process, self.signal.signal).map_err(|error| self.not_signalled(pid, error))?;
                done.push(format!("SIG{} to {pid}", self.signal.name));
            }
            None => {}
        }
        Ok(done.join(", "))
    }

    fn not_signalled(&self, pid: i32, error: rustix::io::Errno) -> Untold {
        let what = format!("cannot send SIG{} to process {pid}", self.signal.name);
        Untold::Failed(anyhow::Error::new(error).context(what))
    }

    async fn run(&self, words: &[String], dir: &Path) -> anyhow::Result<()> {
        let (program, arguments) = words.split_first().context("the command is empty")?;
        let stderr = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
        let mut child = Command::new(program)
            .args(arguments)
            .env("HOPLITE_SVID_DIR", dir)
            .stdin(Stdio::null())
            .stdout(stderr()?)
            .stderr(stderr()?)
            // A group of its own, so that what it started ends with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run `{program}`"))?;
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        match tokio::time::timeout(self.timeout, child.wait()).await {
            Ok(ended) => {
                let status = ended?;
                anyhow::ensure!(status.success(), "`{}` failed: {status}", words.join(" "));
                Ok(())
            }
            Err(_) => {
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.kill().await;
                let timeout = humantime::format_duration(self.timeout);
                anyhow::bail!(
                    "`{}` was killed: it ran longer than {timeout} (`--exec-timeout`)",
                    words.join(" ")
                )
            }
        }
    }
}

/// The process that a pid file names. A number is used again by others: one who began after the file was written is not
/// the one that it means.
fn named(file: &Path) -> anyhow::Result<(i32, OwnedFd)> {
    let (text, found) = short(file).with_context(|| format!("cannot read the pid file `{}`", file.display()))?;
    let written = found.modified()?;
    let first = text.lines().next().unwrap_or_default().trim();
    let pid: i32 = first.parse().with_context(|| {
        let start: String = first.chars().take(40).collect();
        format!(
            "`{}` holds no process number but `{}`",
            file.display(),
            start.escape_debug()
        )
    })?;
    let process = opened(pid).with_context(|| format!("the pid file `{}` is stale", file.display()))?;
    // It is that process from here on, whichever it is.
    trusted(file, &found, pid)?;
    if began(pid)? > written + STALE_SLACK {
        anyhow::bail!(
            "the pid file `{}` is stale: process {pid} began after it was written",
            file.display()
        );
    }
    Ok((pid, process))
}

/// Whoever writes a pid file says whom this process signals, which may be root's: so it has to be root's, this user's, or of the user
/// whose process it names, who could signal that himself; and so has the directory that it lies in.
fn trusted(file: &Path, found: &Metadata, pid: i32) -> anyhow::Result<()> {
    let process = user_of(pid)?;
    let dir = match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let around = fs::metadata(dir).with_context(|| format!("cannot look at `{}`", dir.display()))?;
    let owners = [hand::own_user(), process];
    // In one like `/tmp` nobody puts his own in the place of another's, and what he puts there is his own.
    let is_sticky = around.mode() & STICKY != 0;
    let judged = in_hand(file, found, owners).and_then(|()| match is_sticky {
        true => Ok(()),
        false => in_hand(dir, &around, owners),
    });
    judged.with_context(|| {
        format!(
            "the pid file `{}` is not believed, since somebody else than root and user {process}, whose process {pid} is, could have named it",
            file.display()
        )
    })
}

fn in_hand(path: &Path, found: &Metadata, [own, process]: [u32; 2]) -> Result<(), OtherHand> {
    match hand::check_metadata(path, found, process) {
        Err(OtherHand::Owner { owner, .. }) if owner == own => Ok(()),
        judged => judged,
    }
}

/// The user whom a process belongs to: with whichever of its four user numbers it acts, they must be one.
fn user_of(pid: i32) -> anyhow::Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid} is gone"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    let users: Vec<u32> = line
        .unwrap_or_default()
        .split_whitespace()
        .flat_map(str::parse)
        .collect();
    match users.as_slice() {
        [first, rest @ ..] if rest.len() == 3 && rest.iter().all(|user| user == first) => Ok(*first),
        // It has root's rights, or may take them.
        [_, ..] => Ok(0),
        [] => anyhow::bail!("`/proc` does not say whose process {pid} is"),
    }
}

/// The start of a file, and what it is. Whoever owns it may have put anything in its place: what is no regular file is
/// not read, and of a long one no more than a number's length.
fn short(file: &Path) -> io::Result<(String, Metadata)> {
    // A pipe that nobody writes to is opened at once, and then refused.
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(open(file, flags | OFlags::RDONLY, rustix::fs::Mode::empty())?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    file.take(PID_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok((text, found))
}

/// Whether a process has ended, waited for or not; in doubt it has not.
fn has_ended(process: &OwnedFd) -> bool {
    let mut descriptors = [PollFd::new(process, PollFlags::IN)];
    matches!(
        poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })),
        Ok(1..)
    )
}

/// When a process began, by the wall clock: its time since boot, and now.
fn began(pid: i32) -> anyhow::Result<SystemTime> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything; the 22nd field is the 20th after it.
    let ticks: u64 = text
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(19))
        .and_then(|field| field.parse().ok())
        .context("`/proc` tells no start time")?;
    let uptime: f64 = fs::read_to_string("/proc/uptime")?
        .split(' ')
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .context("`/proc/uptime` cannot be read")?;
    let after_boot = Duration::from_secs(ticks) / TICKS_A_SECOND;
    let age = Duration::try_from_secs_f64(uptime)?.saturating_sub(after_boot);
    clock::now()
        .checked_sub(age)
        .context("the clock stands before the start of time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    /// Whoever owns the file may put anything there; nobody waits for it, and nobody reads it to its end.
    #[test]
    fn a_pid_file_is_a_short_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let long = dir.path().join("long");
        File::create(&long).unwrap().set_len(1 << 40).unwrap();
        for (file, expected) in [
            (pipe.as_path(), "no regular file"),
            (Path::new("/dev/zero"), "no regular file"),
            (dir.path(), "no regular file"),
            (long.as_path(), "holds no process number"),
            (Path::new("/nowhere"), "No such file"),
        ] {
            let error = named(file).unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
        let own = dir.path().join("own");
        fs::write(&own, format!("{}\nand more\n", std::process::id())).unwrap();
        assert_eq!(named(&own).unwrap().0, std::process::id().cast_signed());
    }

    /// Who may write the file, or put another in its place, chooses whom root signals.
    #[test]
    fn a_pid_file_that_others_could_have_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pid");
        fs::write(&file, std::process::id().to_string()).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = |words: &str| {
            let error = format!("{:#}", named(&file).unwrap_err());
            assert!(error.contains("is not believed") && error.contains(words), "{error}");
        };
        mode(&file, 0o646);
        refused("chmod go-w");
        mode(&file, 0o644);
        mode(dir.path(), 0o707);
        refused("chmod go-w");
        mode(dir.path(), 0o1707);
        named(&file).unwrap();
        mode(dir.path(), 0o700);
        if hand::own_user() != 0 {
            return; // what follows is for root to make
        }
        let give = |path: &Path, user| std::os::unix::fs::chown(path, Some(user), None).unwrap();
        give(&file, 65_534);
        refused("belongs to user 65534");
        give(&file, 0);
        give(dir.path(), 65_534);
        refused("belongs to user 65534");
        // Its own process it may name, as PostgreSQL does in its data directory.
        give(&file, 65_534);
        let mut sleeper = std::process::Command::new("sleep")
            .arg("60")
            .uid(65_534)
            .spawn()
            .unwrap();
        fs::write(&file, sleeper.id().to_string()).unwrap();
        assert_eq!(named(&file).unwrap().0, sleeper.id().cast_signed());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}
