//! Which machine's places a command means: the installed ones, or those below `--dir`.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use hoplite_host::places::Places;

/// Where everything lies.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PlacesArgs {
    /// Keep everything below this directory [default: /etc/hoplite, /var/lib/hoplite and /run/hoplite, for root]
    #[arg(long, value_name = "DIR", env = "HOPLITE_DIR")]
    dir: Option<PathBuf>,
}

// === impl PlacesArgs ===

impl PlacesArgs {
    /// To read from: nobody in particular.
    pub(crate) fn places(&self) -> anyhow::Result<Places> {
        Ok(match &self.dir {
            Some(dir) => Places::below(std::path::absolute(dir)?),
            None => Places::installed(),
        })
    }

    /// To write to: the installed ones are root's.
    pub(crate) fn own(&self, command: &str) -> anyhow::Result<Places> {
        if self.dir.is_none() && !rustix::process::geteuid().is_root() {
            bail!(
                "`{command}` writes into /etc/hoplite and /var/lib/hoplite, which are root's; run it as root, or say where with --dir DIR"
            );
        }
        self.places()
    }

    /// As it stands on the command line of the next command.
    pub(crate) fn flag(&self) -> String {
        match &self.dir {
            Some(dir) => format!(" --dir {}", dir.display()),
            None => String::new(),
        }
    }
}

/// A path in a configuration file, in quotes.
pub(crate) fn quoted(path: &Path) -> anyhow::Result<String> {
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(toml_edit::Value::from(text).to_string()),
        _ => bail!(
            "the path {path:?} cannot stand in a configuration file; choose a directory with a name of printable characters"
        ),
    }
}
