//! Which token: the module that speaks with it, its label, and the file with its PIN.

use std::path::PathBuf;

use hoplite_host::credentials;
use serde::Deserialize;

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The library of the token's maker: `/usr/lib/softhsm/libsofthsm2.so`.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// A file with the PIN of the token's user, which nobody else may read: a path, or `${CREDENTIALS_DIRECTORY}/NAME`.
    #[serde(deserialize_with = "pin_file")]
    pub pin_file: PathBuf,
}

fn pin_file<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = credentials::optional_path(deserializer)?;
    path.ok_or_else(|| serde::de::Error::custom("no file with the PIN"))
}
