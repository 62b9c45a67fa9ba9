//! Secrets that systemd hands to a service (`LoadCredential=`): files of a directory whose name only the service knows.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer};

/// Where systemd says which directory that is.
const VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// As a configuration file names the directory.
const PREFIX: &str = "${CREDENTIALS_DIRECTORY}/";

/// A setting names a credential where there is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum NoCredential {
    #[error(
        "`{0}`: no service manager has given credentials to this process; name the file itself, or start it with `LoadCredential=`"
    )]
    NoDirectory(String),
    #[error("`{0}` is not the name of a credential; write `{PREFIX}` and one name without `/`")]
    NoName(String),
}

/// The path of a secret in a configuration file: `${CREDENTIALS_DIRECTORY}/NAME`, or any other as it is written. For
/// `#[serde(default, deserialize_with = …)]`.
///
/// # Errors
/// It names a credential where there is none.
pub fn optional_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| path(&text, std::env::var_os(VARIABLE)))
        .transpose()
        .map_err(de::Error::custom)
}

/// Whether a file is one that the service manager handed over: it vouches for who can read it.
pub fn is_one(file: &Path) -> bool {
    let directory = std::env::var_os(VARIABLE).filter(|directory| !directory.is_empty());
    directory.is_some_and(|directory| file.parent() == Some(Path::new(&directory)))
}

fn path(text: &str, directory: Option<OsString>) -> Result<PathBuf, NoCredential> {
    let Some(name) = text.strip_prefix(PREFIX) else {
        return Ok(PathBuf::from(text));
    };
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(NoCredential::NoName(text.to_owned()));
    }
    match directory.filter(|directory| Path::new(directory).is_absolute()) {
        Some(directory) => Ok(Path::new(&directory).join(name)),
        None => Err(NoCredential::NoDirectory(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directory_is_put_in() {
        let check = |text: &str, directory: Option<&str>, expected: Option<&str>| {
            let found = path(text, directory.map(Into::into));
            assert_eq!(found.ok(), expected.map(PathBuf::from), "{text}");
        };
        let given = Some("/run/credentials/hoplite-agent.service");
        check(
            "${CREDENTIALS_DIRECTORY}/token",
            given,
            Some("/run/credentials/hoplite-agent.service/token"),
        );
        check("/etc/hoplite/token", given, Some("/etc/hoplite/token"));
        check(
            "/etc/${CREDENTIALS_DIRECTORY}/token",
            given,
            Some("/etc/${CREDENTIALS_DIRECTORY}/token"),
        );
        check("${CREDENTIALS_DIRECTORY}/../token", given, None);
        check("${CREDENTIALS_DIRECTORY}/..", given, None);
        check("${CREDENTIALS_DIRECTORY}/", given, None);
        check("${CREDENTIALS_DIRECTORY}/token", None, None);
        check("${CREDENTIALS_DIRECTORY}/token", Some(""), None);
        check("${CREDENTIALS_DIRECTORY}/token", Some("credentials"), None);
    }
}
