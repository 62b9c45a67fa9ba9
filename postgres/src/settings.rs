//! Where the database is and how it is reached, as an operator writes it.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hoplite_host::config::ConfigError;
use hoplite_host::credentials;
use hoplite_identity::{HostPort, InvalidHostPort};
use serde::Deserialize;
use serde::de::{self, Deserializer};

/// The port of a server on a Unix socket whose name says none.
pub(crate) const PORT: u16 = 5432;

/// Identifiers of PostgreSQL are cut beyond 63 bytes; ours get suffixes.
const SCHEMA_BYTES_MAX: usize = 40;

/// Hosts that are tried one after the other.
const HOSTS_MAX: usize = 8;

/// The database of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The servers of one cluster, of which the one that takes writes is used: `["db1.internal:5432"]`, or the directory of a
    /// Unix socket.
    pub hosts: Vec<Host>,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// Where our tables are; made when it is not there.
    #[serde(default = "hoplite")]
    pub schema: String,
    /// A file (0600) with the role's password, or a credential. Read anew for each connection.
    #[serde(default, deserialize_with = "credentials::optional_path")]
    pub password_file: Option<PathBuf>,
    /// How the server is known.
    #[serde(default)]
    pub tls: Tls,
    /// PEM file with the authorities that the server's certificate is verified with.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// By TCP.
    Tcp(HostPort),
    /// By the Unix socket in a directory of this machine, and the port in its name.
    Socket(PathBuf),
}

/// Whether the server must show a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// TLS 1.3, with a certificate of `tls_ca` for the host's name. Needless on a Unix socket, where it is not asked for.
    #[default]
    VerifyFull,
    /// None: for a server on this machine.
    None,
}

/// No server is written like this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` names no server ({problem}); write `HOST:PORT`, or the directory of a Unix socket, `/run/postgresql`"
)]
pub struct InvalidHost {
    text: String,
    problem: InvalidHostPort,
}

// === impl Settings ===

impl Settings {
    /// What every start checks.
    ///
    /// # Errors
    /// [`ConfigError`] names file, key and value, and says what to write instead.
    pub fn check(&self, file: &Path) -> Result<(), ConfigError> {
        let unusable = |key: &'static str, value: &dyn fmt::Display, reason: &str| {
            Err(ConfigError::unusable(file, key, value, reason.to_owned()))
        };
        if self.hosts.is_empty() || self.hosts.len() > HOSTS_MAX {
            let reason = format!("write 1 to {HOSTS_MAX} servers: [\"db1.internal:5432\"]");
            return unusable("store.hosts", &self.hosts.len(), &reason);
        }
        for (key, value) in [("store.database", &self.database), ("store.user", &self.user)] {
            if value.is_empty() || value.contains('\0') {
                return unusable(key, value, "no name; write for example \"hoplite\"");
            }
        }
        let is_name = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        if !self.schema.bytes().all(is_name)
            || !self.schema.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            || self.schema.starts_with("pg_")
            || self.schema.len() > SCHEMA_BYTES_MAX
        {
            let reason = "write at most 40 lower-case letters, digits and `_`, a letter first: \"hoplite\"";
            return unusable("store.schema", &self.schema, reason);
        }
        let remote = self.hosts.iter().find(|host| !host.is_on_this_machine());
        match (self.tls, remote, &self.tls_ca) {
            (Tls::None, Some(remote), _) => {
                let reason = format!(
                    "`{remote}` is another machine, and whoever is in between would read and change what the CA stores; take it out, and name the server's \
                     authorities by `tls_ca`"
                );
                unusable("store.tls", &"none", &reason)
            }
            (Tls::VerifyFull, _, None) if self.hosts.iter().any(|host| matches!(host, Host::Tcp(_))) => {
                let reason = "the server's certificate has to be verified with something: name the PEM file of its authorities (`tls = \"none\"` \
                     is for a server on this machine)";
                unusable("store.tls_ca", &"", reason)
            }
            _ => Ok(()),
        }
    }

    /// What people recognise, without a secret.
    #[must_use]
    pub fn location(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        format!(
            "postgresql://{}@{}/{}#{}",
            self.user,
            hosts.join(","),
            self.database,
            self.schema
        )
    }
}

fn hoplite() -> String {
    "hoplite".to_owned()
}

// === impl Host ===

impl Host {
    /// Whether what is said to it stays on this machine.
    fn is_on_this_machine(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Tcp(address) => {
                let host = unbracketed(address);
                host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
            }
        }
    }
}

/// As a name or an address: brackets are how one is written beside a port.
pub(crate) fn unbracketed(address: &HostPort) -> &str {
    address.host().trim_start_matches('[').trim_end_matches(']')
}

impl FromStr for Host {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        if text.starts_with('/') {
            return Ok(Self::Socket(PathBuf::from(text)));
        }
        HostPort::parse(text).map(Self::Tcp).map_err(|problem| InvalidHost {
            text: text.to_owned(),
            problem,
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Socket(directory) => directory.display().fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(hosts: &[&str]) -> Settings {
        Settings {
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            database: "ca".into(),
            user: "ca".into(),
            schema: hoplite(),
            password_file: None,
            tls: Tls::VerifyFull,
            tls_ca: Some("/etc/db.pem".into()),
        }
    }

    #[test]
    fn what_is_no_setting_is_told() {
        let check = |change: &dyn Fn(&mut Settings), expected: &str| {
            let mut settings = settings(&["db.internal:5432"]);
            change(&mut settings);
            let said = settings
                .check(Path::new("ca.toml"))
                .map_or_else(|e| e.to_string(), |()| "good".into());
            assert!(said.contains(expected), "expected `{expected}`, got `{said}`");
        };
        check(&|_| (), "good");
        check(&|s| s.hosts.clear(), "store.hosts");
        check(&|s| s.database.clear(), "store.database");
        check(&|s| s.user = "a\0b".into(), "store.user");
        for schema in ["", "1a", "A", "a-b", "a\"; drop", "pg_x", &"a".repeat(41)] {
            check(&|s| s.schema = schema.into(), "store.schema");
        }
        check(&|s| s.tls_ca = None, "store.tls_ca");
        check(&|s| s.tls = Tls::None, "`db.internal:5432` is another machine");
        let local = |s: &mut Settings, host: &str| {
            s.hosts = vec![host.parse().unwrap()];
            (s.tls, s.tls_ca) = (Tls::None, None);
        };
        for host in ["127.0.0.1:1", "[::1]:1", "localhost:1", "/run/postgresql"] {
            check(&|s| local(s, host), "good");
        }
        check(&|s| local(s, "10.0.0.1:1"), "another machine");
        check(&|s| local(s, "localhost.example:1"), "another machine");
        check(&|s| (s.hosts, s.tls_ca) = (vec!["/run".parse().unwrap()], None), "good");
    }

    #[test]
    fn a_server_is_an_address_or_a_directory() {
        for text in ["db.internal:5432", "[::1]:5432", "/run/postgresql"] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), text);
        }
        for text in ["", "db.internal", "db:x", "run/postgresql"] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
        let location = settings(&["db1:5432", "db2:5433"]).location();
        assert_eq!(location, "postgresql://ca@db1:5432,db2:5433/ca#hoplite");
    }
}
