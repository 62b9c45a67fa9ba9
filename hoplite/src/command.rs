//! The subcommands, one file each.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod daemon;
pub(crate) mod demo_service;
pub(crate) mod diagnosis;
pub(crate) mod dial;
pub(crate) mod doctor;
pub(crate) mod entry;
pub(crate) mod healthcheck;
pub(crate) mod operator;
pub(crate) mod policy;
pub(crate) mod reach;
pub(crate) mod shell;
pub(crate) mod sign_in;
pub(crate) mod svid;
pub(crate) mod token;
pub(crate) mod up;

use std::path::PathBuf;

/// Where a mesh of `hoplite up` lives; tools find its sockets and logs from it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct MeshDir {
    /// The mesh's directory [default: $XDG_STATE_HOME/hoplite or ~/.local/state/hoplite]
    #[arg(long, value_name = "DIR", env = "HOPLITE_DIR")]
    dir: Option<PathBuf>,
}

// === impl MeshDir ===

impl MeshDir {
    /// Whether somebody said which.
    pub(crate) fn is_given(&self) -> bool {
        self.dir.is_some()
    }

    /// The directory given, or the user's state directory.
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.dir {
            return Ok(std::path::absolute(dir)?);
        }
        let state = match std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => match std::env::var_os("HOME").filter(|dir| !dir.is_empty()) {
                Some(home) => PathBuf::from(home).join(".local/state"),
                None => anyhow::bail!("neither XDG_STATE_HOME nor HOME is set; say where with --dir DIR"),
            },
        };
        Ok(state.join("hoplite"))
    }
}

/// A runtime for a command that mostly waits.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
