//! The machine itself: kernel, clock, descriptors, entropy.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_host::clock;
use hoplite_host::peer_process::PeerProcess;
use hoplite_host::process;

use super::finding::{Finding, fail, ok, unseen, warn};
use super::part::Part;

/// This program was not written before (2025-01-01): a clock that says so is wrong.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// A file written later than now by more than this tells of a clock that was set back.
const AHEAD_MAX: Duration = Duration::from_secs(60);

/// Where systemd's client of time servers says that it has heard one.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";

/// What the kernel says once its random numbers can be had.
const ENTROPY_FULL: u32 = 256;

/// Fewer descriptors serve a handful of connections.
const DESCRIPTORS_FEW: usize = 4_096;

/// All of it.
pub(super) fn look(parts: &[Part]) -> Vec<Finding> {
    let written: Vec<_> = parts.iter().filter_map(newest_file).collect();
    vec![
        kernel(
            &read(Path::new("/proc/sys/kernel/osrelease")),
            parts,
            PeerProcess::Kernel.ensure_possible(),
        ),
        clock(clock::now(), written.into_iter().max()),
        time_server(Path::new(SYNCHRONIZED), || timedatectl("timedatectl")),
        descriptors(process::descriptors_most(), parts),
        entropy(&read(Path::new("/proc/sys/kernel/random/entropy_avail"))),
    ]
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

pub(super) fn kernel(release: &io::Result<String>, parts: &[Part], says: io::Result<()>) -> Finding {
    let Ok(release) = release else {
        return unseen(
            "kernel",
            "/proc is not mounted",
            "mount it: the agent needs it to attest workloads",
        );
    };
    let needs = parts
        .iter()
        .any(|part| matches!(part, Part::Agent(agent) if agent.peer_process == PeerProcess::Kernel));
    match says {
        Ok(()) => ok(
            "kernel",
            format!("Linux {release} says which process calls (SO_PEERPIDFD)"),
        ),
        Err(_) => match PeerProcess::Pid.ensure_possible() {
            Err(error) => fail("kernel", format!("Linux {release}: {error}"), "run Linux 5.3 or later"),
            Ok(()) if needs => fail(
                "kernel",
                format!(
                    "Linux {release} cannot say which process calls (SO_PEERPIDFD, Linux 6.5), and the agent asks it to"
                ),
                "set `peer_process = \"pid\"` in the agent's file after reading docs/threat-model.md, or run a newer kernel",
            ),
            Ok(()) => warn(
                "kernel",
                format!("Linux {release} cannot say which process calls (SO_PEERPIDFD, Linux 6.5)"),
                "callers are known by number, user and group: docs/threat-model.md says what that leaves open",
            ),
        },
    }
}

/// Against what was written here: a clock that was set back makes certificates not yet valid.
pub(super) fn clock(now: SystemTime, written: Option<SystemTime>) -> Finding {
    let shown = humantime::format_rfc3339_seconds(now);
    if now < UNIX_EPOCH + EARLIEST {
        return fail("clock", format!("it is {shown} by this machine"), "set the clock");
    }
    match written {
        Some(written) if written > now + AHEAD_MAX => fail(
            "clock",
            format!(
                "it is {shown} by this machine, and its files are from {}",
                humantime::format_rfc3339_seconds(written)
            ),
            "the clock was set back: set it right, or certificates are not valid yet",
        ),
        _ => ok("clock", format!("{shown}, after all that was written here")),
    }
}

/// Whether somebody keeps the clock in step. The kernel knows (`adjtimex`), and no safe way leads there but through `timedatectl`, which
/// asks it.
pub(super) fn time_server(said: &Path, asked: impl FnOnce() -> Option<bool>) -> Finding {
    if said.exists() {
        return ok("time server", "systemd-timesyncd has heard one");
    }
    match asked() {
        Some(true) => ok("time server", "the kernel's clock is kept in step, as timedatectl says"),
        Some(false) => warn(
            "time server",
            "nobody keeps the kernel's clock in step, as timedatectl says",
            "run a client of time servers (chrony, systemd-timesyncd): certificates begin and end by the clock",
        ),
        None => unseen(
            "time server",
            "neither systemd-timesyncd nor timedatectl says whether somebody keeps the clock in step",
            "ask whatever sets the clock here (`timedatectl`, `chronyc tracking`)",
        ),
    }
}

/// What `timedatectl` says of the kernel's clock; none where it cannot be asked.
pub(super) fn timedatectl(program: &str) -> Option<bool> {
    let asked = Command::new(program)
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    match asked.stdout.trim_ascii() {
        b"yes" if asked.status.success() => Some(true),
        b"no" if asked.status.success() => Some(false),
        _ => None,
    }
}

pub(super) fn descriptors(most: usize, parts: &[Part]) -> Finding {
    let wanted: usize = parts
        .iter()
        .map(|part| match part {
            // A connection may need another one.
            Part::Proxy(proxy) => {
                let listeners = proxy.inbound.len() + proxy.outbound.len();
                proxy.limits.connections_max.saturating_mul(2).saturating_mul(listeners)
            }
            Part::Ca(_) | Part::Agent(_) => DESCRIPTORS_FEW,
        })
        .max()
        .unwrap_or(DESCRIPTORS_FEW);
    let seen = format!("{most} for a process started as this one is");
    if most >= wanted {
        ok("descriptors", seen)
    } else if most >= DESCRIPTORS_FEW {
        warn(
            "descriptors",
            format!("{seen}; all connections that the files allow would need {wanted}"),
            "raise the hard limit (`LimitNOFILE=`, `ulimit -Hn`), or there are fewer connections",
        )
    } else {
        fail(
            "descriptors",
            seen,
            "raise the hard limit (`LimitNOFILE=`, `ulimit -Hn`) to 65536",
        )
    }
}

pub(super) fn entropy(available: &io::Result<String>) -> Finding {
    match available.as_ref().ok().and_then(|text| text.parse::<u32>().ok()) {
        None => unseen("entropy", "the kernel does not say", "look at /proc/sys/kernel/random"),
        Some(bits) if bits >= ENTROPY_FULL => ok("entropy", format!("{bits} bits: keys can be made")),
        Some(bits) => warn(
            "entropy",
            format!("{bits} bits: the kernel gathers it still, and whoever makes a key waits"),
            "give the machine a source (virtio-rng, rng-tools)",
        ),
    }
}

/// When something was written last that a daemon of ours keeps.
fn newest_file(part: &Part) -> Option<SystemTime> {
    let dir = match part {
        Part::Ca(ca) => &ca.data_dir,
        Part::Agent(agent) => &agent.data_dir,
        Part::Proxy(proxy) => &proxy.audit_dir,
    };
    let entries = fs::read_dir(dir).ok()?.flatten();
    entries.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
}
