//! The subcommands, one file each.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod authority;
pub(crate) mod backup;
pub(crate) mod bundle;
pub(crate) mod daemon;
pub(crate) mod demo_service;
pub(crate) mod diagnosis;
pub(crate) mod dial;
pub(crate) mod doctor;
pub(crate) mod entry;
pub(crate) mod federation;
pub(crate) mod fleet;
pub(crate) mod found;
pub(crate) mod healthcheck;
pub(crate) mod join;
pub(crate) mod jwt;
pub(crate) mod operator;
pub(crate) mod places;
pub(crate) mod policy;
pub(crate) mod purge;
pub(crate) mod reach;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod secret;
pub(crate) mod section;
pub(crate) mod shell;
pub(crate) mod sign_in;
pub(crate) mod status;
pub(crate) mod svid;
pub(crate) mod token;
pub(crate) mod up;
pub(crate) mod user;

use std::path::PathBuf;

use hoplite_host::places::Places;

/// Where a mesh of `hoplite up` lives; tools find its sockets and logs from it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct MeshDir {
    /// The mesh's directory [env: HOPLITE_DIR] [default: $XDG_STATE_HOME/hoplite or ~/.local/state/hoplite]
    // Read by `said`: what stands in the environment must not conflict with a flag.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Whose files lie on a machine.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Of its CA, its agent and its proxies; an error where there is nothing.
    pub(crate) configs: anyhow::Result<Vec<PathBuf>>,
    /// Directories that this user may not look into.
    pub(crate) closed: Vec<PathBuf>,
}

// === impl MeshDir ===

impl MeshDir {
    /// Whether somebody said which.
    pub(crate) fn is_given(&self) -> bool {
        self.said().is_some()
    }

    /// What somebody said, here or in the environment.
    fn said(&self) -> Option<PathBuf> {
        self.dir.clone().or_else(Places::named_dir)
    }

    /// The operators' socket of the CA: that below the directory given, or of the CA that is installed on this machine, or of
    /// the user's own mesh.
    pub(crate) fn ca_socket(&self) -> anyhow::Result<PathBuf> {
        self.socket(Places::ca_socket, Places::ca_config)
    }

    /// The socket of this machine's agent, in the same order.
    pub(crate) fn agent_socket(&self) -> anyhow::Result<PathBuf> {
        self.socket(Places::agent_socket, Places::agent_config)
    }

    /// Below which the decision logs lie: those of a mesh of `hoplite up`, or of proxies of `hoplite run`.
    pub(crate) fn logs(&self) -> anyhow::Result<PathBuf> {
        let installed = Places::installed().proxies_data();
        if !self.is_given() && installed.exists() {
            return Ok(installed);
        }
        let dir = self.path()?;
        let (mesh, run) = (dir.join("audit"), Places::below(&dir).proxies_data());
        Ok(if run.exists() && !mesh.exists() { run } else { mesh })
    }

    /// Where a CA on this machine writes down what is done at it, by the default of its file.
    pub(crate) fn ca_log(&self) -> anyhow::Result<PathBuf> {
        let log = |places: &Places| places.ca_data().join("audit");
        let installed = log(&Places::installed());
        if self.dir.is_none() && installed.exists() {
            return Ok(installed);
        }
        Ok(log(&Places::below(self.path()?)))
    }

    /// The configuration files of the daemons in the directory given: of a mesh of `hoplite up`, and of what `hoplite ca init`, `join`
    /// and `run` left there.
    pub(crate) fn configs(&self) -> anyhow::Result<Vec<PathBuf>> {
        let dir = self.path()?;
        let mesh = std::fs::read_dir(dir.join("config")).into_iter().flatten().flatten();
        let mut configs: Vec<PathBuf> = mesh.map(|entry| entry.path()).collect();
        configs.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
        let place = |file: &PathBuf| match file.file_stem().and_then(|name| name.to_str()) {
            Some("ca") => 0,
            Some("agent") => 1,
            _ => 2,
        };
        configs.sort();
        configs.sort_by_key(place);
        configs.extend(Places::below(dir).configs());
        if configs.is_empty() {
            anyhow::bail!(
                "nothing of Hoplite lies in `{}`; `hoplite up`, `hoplite ca init` and `hoplite join` begin something there, and --dir says \
                 where else",
                self.path()?.display()
            );
        }
        Ok(configs)
    }

    /// The configuration files of the daemons of this machine, which are one list for all that look at daemons: those below the
    /// directory that somebody said; else those that are installed; else those of this user's mesh.
    pub(crate) fn of_machine(&self) -> Machine {
        let installed = Places::installed();
        if self.is_given() {
            let configs = self.configs();
            return Machine {
                closed: self.path().map(|dir| Places::below(dir).closed()).unwrap_or_default(),
                configs,
            };
        }
        let (configs, closed) = (installed.configs(), installed.closed());
        if !configs.is_empty() {
            return Machine {
                configs: Ok(configs),
                closed,
            };
        }
        match self.configs() {
            // Who has a mesh of his own asks for that.
            Ok(own) => Machine {
                configs: Ok(own),
                closed: Vec::new(),
            },
            nothing => Machine {
                configs: nothing,
                closed,
            },
        }
    }

    /// The sockets of the proxies that `hoplite run` started, or units of this machine.
    pub(crate) fn run_proxies(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut sockets = Places::below(self.path()?).proxy_sockets();
        if !self.is_given() {
            sockets.extend(Places::installed().proxy_sockets());
        }
        Ok(sockets)
    }

    /// One that is not there now is that of a daemon that is installed and does not run, if one is installed.
    fn socket(&self, place: fn(&Places) -> PathBuf, config: fn(&Places) -> PathBuf) -> anyhow::Result<PathBuf> {
        let installed = Places::installed();
        if !self.is_given() && place(&installed).exists() {
            return Ok(place(&installed));
        }
        let own = place(&Places::below(self.path()?));
        if !self.is_given() && !own.exists() && config(&installed).exists() {
            return Ok(place(&installed));
        }
        Ok(own)
    }

    /// The directory given, or the user's state directory.
    pub(crate) fn path(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = self.said() {
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
