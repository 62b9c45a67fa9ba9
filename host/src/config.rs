//! Configuration files: TOML, strict, with errors that name file, line, key, value and remedy.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};

use crate::files;

/// A configuration file that cannot be used. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] files::FileError),
    /// The file is not the TOML that was expected; line and column are 1-based.
    #[error("{file}:{line}:{column}: {reason}", file = .file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Its line.
        line: usize,
        /// The column in that line.
        column: usize,
        /// What is wrong, in one sentence, with the offending line.
        reason: String,
    },
    /// Every key is legal by itself, but a value cannot be used.
    #[error("{file}: `{key} = {value}`: {reason}", file = .file.display())]
    Unusable {
        /// The file.
        file: PathBuf,
        /// The key, with its table.
        key: String,
        /// The value as written.
        value: String,
        /// Why not, and what to write instead.
        reason: String,
    },
}

/// Characters of a line, or of a reason, that an error shows.
const SHOWN_CHARS_MAX: usize = 200;

/// A text that is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no IP address with a port; write for example `127.0.0.1:7443`, or `0.0.0.0:7443` for every address of this machine"
)]
pub struct NoListenAddress(String);

/// A length of time written as people write it: `5s`, `1h 30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Reads and parses a file. Types should `deny_unknown_fields`, so that a misspelt key is an error.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    parse(path, &files::read_trusted_text(path)?)
}

/// Parses text that came from `path`.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let offending = text.lines().nth(line - 1).unwrap_or("").trim();
        let message = shown(&error.message().lines().collect::<Vec<_>>().join(", "));
        let reason = if offending.is_empty() {
            message
        } else {
            format!("{message} in `{}`", shown(offending))
        };
        ConfigError::Invalid {
            file: path.to_owned(),
            line,
            column,
            reason,
        }
    })
}

/// An address of this machine, for a field that is one: `#[serde(deserialize_with = "config::listen")]`.
///
/// # Errors
/// A text that is no IP address with a port.
pub fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    listen_address(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// An address of this machine.
///
/// # Errors
/// A text that is no IP address with a port.
pub fn listen_address(text: &str) -> Result<SocketAddr, NoListenAddress> {
    text.parse().map_err(|_| NoListenAddress(shown(text)))
}

/// The beginning of a text, without what a terminal would obey.
fn shown(text: &str) -> String {
    let mut shown = printable(text.chars().take(SHOWN_CHARS_MAX));
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// These characters, each that has no picture of its own as its escape: a terminal would obey it.
pub fn printable(text: impl IntoIterator<Item = char>) -> String {
    let mut shown = String::new();
    for character in text {
        match character {
            '\n' | '\'' | '"' | '\\' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

// === impl ConfigError ===

impl ConfigError {
    /// A value that parses but cannot be used.
    pub fn unusable(file: &Path, key: &str, value: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self::Unusable {
            file: file.to_owned(),
            key: key.to_owned(),
            value: value.to_string(),
            reason: reason.to_string(),
        }
    }
}

// === impl Span ===

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|_| {
            de::Error::custom(format!(
                "`{text}` is not a length of time; write for example \"30s\" or \"1h\""
            ))
        })
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_string())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its parsing is tested")]
    struct Sample {
        name: String,
        #[serde(default)]
        ttl: Option<Span>,
    }

    #[test]
    fn errors_name_file_line_key_and_value() {
        let check = |text: &str, expected: &[&str]| {
            let error = parse::<Sample>(Path::new("ca.toml"), text).unwrap_err().to_string();
            assert!(!error.contains('\n'), "one sentence: {error}");
            for part in expected {
                assert!(error.contains(part), "`{part}` is missing from `{error}`");
            }
        };
        check("", &["ca.toml:1:1", "name"]);
        check("name = 3", &["ca.toml:1:8", "name = 3", "string"]);
        check("name = \"a\"\nnaem = 1", &["ca.toml:2:1", "naem", "expected"]);
        check("name = \"a\"\nttl = \"soon\"", &["ca.toml:2:7", "soon", "30s"]);
        check("name = \"a", &["ca.toml:1:"]);
        check("\u{0}", &["ca.toml:1:"]);
        check("name = \"a\" \u{1b}[31m", &["ca.toml:1:", "\\u{1b}[31m"]);
        let long = parse::<Sample>(Path::new("a"), &format!("x{} = ", "[".repeat(100_000)));
        assert!(long.unwrap_err().to_string().len() < 1_000);
    }

    #[test]
    fn an_address_to_listen_on_has_an_ip_address_and_a_port() {
        #[derive(Debug, Deserialize)]
        struct Listens {
            #[serde(deserialize_with = "listen")]
            at: SocketAddr,
        }
        let read = |value: &str| parse::<Listens>(Path::new("ca.toml"), &format!("at = {value}"));
        for good in ["127.0.0.1:0", "0.0.0.0:7443", "[::1]:7443"] {
            assert_eq!(read(&format!("\"{good}\"")).unwrap().at.to_string(), good);
        }
        for bad in ["localhost:1", "127.0.0.1", ":7443", "::1:7443", ""] {
            let error = read(&format!("\"{bad}\"")).unwrap_err().to_string();
            for part in [
                &*format!("`{bad}` is no IP address"),
                "ca.toml:1:6",
                "write for example",
            ] {
                assert!(error.contains(part), "`{part}` is missing from `{error}`");
            }
        }
        assert!(read("7443").unwrap_err().to_string().contains("string"));
    }

    #[test]
    fn a_terminal_obeys_nothing_that_is_shown() {
        assert_eq!(
            printable("a\u{1b}[2J\u{202e}b\nc `d` 'ü' \\".chars()),
            "a\\u{1b}[2J\\u{202e}b\nc `d` 'ü' \\"
        );
    }
}
