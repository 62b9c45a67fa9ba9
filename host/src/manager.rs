//! The service manager that started this process, told by `sd_notify`: that it serves, reads its file again, stops, and is alive.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A manager that takes no word for so long is stuck itself, and must not hold up who serves.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// What a manager is told is one datagram; a status is for a line of a terminal.
const STATUS_CHARS_MAX: usize = 300;

/// What systemd, or whoever started this process, wants to hear. Without one nothing is said.
#[derive(Debug, Default)]
pub struct Manager {
    channel: Option<Channel>,
    watchdog: Option<Duration>,
}

#[derive(Debug)]
struct Channel {
    socket: UnixDatagram,
    to: SocketAddr,
}

/// Why a manager cannot be told.
#[derive(Debug, thiserror::Error)]
enum Unreachable {
    #[error("`NOTIFY_SOCKET={0}` is neither a path nor `@` with an abstract name")]
    Address(String),
    #[error("`NOTIFY_SOCKET={0}` cannot be used: {1}")]
    Socket(String, #[source] io::Error),
}

// === impl Manager ===

impl Manager {
    /// The one that the environment names: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self::named_by(|name| std::env::var_os(name), std::process::id())
    }

    fn named_by(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let Some(address) = variable("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Self::default();
        };
        let channel = match Channel::open(&address) {
            Ok(channel) => channel,
            Err(error) => {
                tracing::warn!(%error, "the service manager hears nothing of this process");
                return Self::default();
            }
        };
        let number = |name| variable(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
        // Without a process it is for whoever has the variable; with another process it was passed on by mistake.
        let is_meant = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(pid));
        let watchdog = number("WATCHDOG_USEC").filter(|micros| is_meant && *micros > 0);
        Self {
            channel: Some(channel),
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// How long it waits for [`Manager::alive`] before it takes this process for dead; none if it does not ask.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// It starts, and does not serve yet.
    pub fn starting(&self, status: &str) {
        self.say(&[&status_line(status)]);
    }

    /// It serves; also after [`Manager::reloading`].
    pub fn ready(&self, status: &str) {
        self.say(&["READY=1", &status_line(status)]);
    }

    /// It reads its file again, and says [`Manager::ready`] after that.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
        self.say(&["RELOADING=1", &format!("MONOTONIC_USEC={micros}")]);
    }

    /// It takes nothing new and ends.
    pub fn stopping(&self, status: &str) {
        self.say(&["STOPPING=1", &status_line(status)]);
    }

    /// Everything that works here has just answered.
    pub fn alive(&self, status: &str) {
        self.say(&["WATCHDOG=1", &status_line(status)]);
    }

    fn say(&self, lines: &[&str]) {
        if let Some(channel) = &self.channel
            && let Err(error) = channel.socket.send_to_addr(lines.join("\n").as_bytes(), &channel.to)
        {
            tracing::debug!(%error, "the service manager did not take a word");
        }
    }
}

fn status_line(status: &str) -> String {
    let line = status.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(STATUS_CHARS_MAX)
        .fold(String::from("STATUS="), |mut text, c| {
            text.push(c);
            text
        })
}

// === impl Channel ===

impl Channel {
    fn open(address: &OsStr) -> Result<Self, Unreachable> {
        let shown = || address.to_string_lossy().into_owned();
        let to = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            [b'/', ..] => SocketAddr::from_pathname(address),
            _ => return Err(Unreachable::Address(shown())),
        };
        let open = || -> io::Result<Self> {
            let (socket, to) = (UnixDatagram::unbound()?, to?);
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
            Ok(Self { socket, to })
        };
        open().map_err(|error| Unreachable::Socket(shown(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(address: &OsStr, more: &[(&str, &str)]) -> Manager {
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(address.to_owned()),
            _ => more
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.into()),
        };
        Manager::named_by(variable, 7)
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn words_arrive_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("hoplite-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, address) in [(by_path, path.into_os_string()), (by_name, format!("@{name}").into())] {
            let manager = manager(&address, &[]);
            manager.ready("serves\non two\tlines");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=serves on two lines");
            manager.reloading();
            let said = heard(&socket);
            let micros: u64 = said
                .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
                .unwrap()
                .parse()
                .unwrap();
            assert!(micros > 0);
            manager.stopping(&"x".repeat(1_000));
            assert_eq!(heard(&socket).len(), "STOPPING=1\nSTATUS=".len() + STATUS_CHARS_MAX);
        }
    }

    #[test]
    fn who_asks_for_a_heartbeat() {
        let check = |more: &[(&str, &str)], expected: Option<u64>| {
            let found = manager("/run/notify".as_ref(), more).watchdog();
            assert_eq!(found, expected.map(Duration::from_millis), "{more:?}");
        };
        check(&[], None);
        check(&[("WATCHDOG_USEC", "2000")], Some(2));
        check(&[("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "7")], Some(2));
        check(&[("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "8")], None);
        check(&[("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", "x")], None);
        check(&[("WATCHDOG_USEC", "0")], None);
        check(&[("WATCHDOG_USEC", "-1")], None);
    }

    #[test]
    fn a_manager_that_cannot_be_told_is_none() {
        for address in ["", "notify", "vsock:2:1", &format!("/{}", "x".repeat(200))] {
            let manager = manager(address.as_ref(), &[("WATCHDOG_USEC", "2000")]);
            assert!(manager.channel.is_none() && manager.watchdog().is_none(), "{address}");
            manager.ready("nobody hears");
        }
        // One that is gone is no reason to end.
        manager("/nowhere/notify".as_ref(), &[]).ready("nobody hears");
    }
}
