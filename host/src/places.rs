//! Where things lie on a machine: of an installed Hoplite, and below one directory.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The places of one machine's CA, agent and proxies.
///
/// | what | installed | below `DIR` |
/// |---|---|---|
/// | the CA's file | `/etc/hoplite/ca.toml` | `DIR/ca.toml` |
/// | the CA's data | `/var/lib/hoplite/ca` | `DIR/ca` |
/// | the operators' socket | `/run/hoplite/ca/admin.sock` | `DIR/run/ca.sock` |
/// | the agent's file | `/etc/hoplite/agent.toml` | `DIR/agent.toml` |
/// | the agent's data | `/var/lib/hoplite/agent` | `DIR/agent` |
/// | the workloads' socket | `/run/hoplite/agent/agent.sock` | `DIR/run/agent.sock` |
/// | a proxy's file | `/etc/hoplite/proxy/SERVICE.toml` | `DIR/proxy/SERVICE.toml` |
/// | a proxy's data | `/var/lib/hoplite/proxy/SERVICE` | `DIR/proxy/SERVICE` |
/// | a proxy's socket | `/run/hoplite/proxy/SERVICE/proxy.sock` | `DIR/proxy/SERVICE/proxy.sock` |
///
/// Each daemon has directories of its own, because each may run as a user of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    below: Option<PathBuf>,
}

// === impl Places ===

impl Places {
    /// The directory that the environment names, `HOPLITE_DIR`, for whoever was not told another one.
    pub fn named_dir() -> Option<PathBuf> {
        let dir = std::env::var_os("HOPLITE_DIR").filter(|dir| !dir.is_empty());
        dir.map(PathBuf::from)
    }

    /// Those of an installed Hoplite.
    pub fn installed() -> Self {
        Self::default()
    }

    /// Those below one directory.
    pub fn below(dir: impl Into<PathBuf>) -> Self {
        Self {
            below: Some(dir.into()),
        }
    }

    /// The directory, unless they are the installed ones.
    pub fn dir(&self) -> Option<&Path> {
        self.below.as_deref()
    }

    /// The CA's configuration file.
    pub fn ca_config(&self) -> PathBuf {
        self.place("/etc/hoplite/ca.toml", "ca.toml")
    }

    /// The CA's `data_dir`.
    pub fn ca_data(&self) -> PathBuf {
        self.place("/var/lib/hoplite/ca", "ca")
    }

    /// The CA's `admin_socket`.
    pub fn ca_socket(&self) -> PathBuf {
        self.place("/run/hoplite/ca/admin.sock", "run/ca.sock")
    }

    /// The agent's configuration file.
    pub fn agent_config(&self) -> PathBuf {
        self.place("/etc/hoplite/agent.toml", "agent.toml")
    }

    /// The agent's `data_dir`.
    pub fn agent_data(&self) -> PathBuf {
        self.place("/var/lib/hoplite/agent", "agent")
    }

    /// The agent's `socket`.
    pub fn agent_socket(&self) -> PathBuf {
        self.place("/run/hoplite/agent/agent.sock", "run/agent.sock")
    }

    /// The configuration file of the proxy before a service.
    pub fn proxy_config(&self, service: &str) -> PathBuf {
        self.place(
            &format!("/etc/hoplite/proxy/{service}.toml"),
            &format!("proxy/{service}.toml"),
        )
    }

    /// Where the proxy before a service keeps its decision log (`audit`) and its state (`state`).
    pub fn proxy_data(&self, service: &str) -> PathBuf {
        self.place(
            &format!("/var/lib/hoplite/proxy/{service}"),
            &format!("proxy/{service}"),
        )
    }

    /// The `admin_socket` of the proxy before a service.
    pub fn proxy_socket(&self, service: &str) -> PathBuf {
        self.place(
            &format!("/run/hoplite/proxy/{service}/proxy.sock"),
            &format!("proxy/{service}/proxy.sock"),
        )
    }

    /// The sockets of all proxies that lie there now, in the order of their services.
    pub fn proxy_sockets(&self) -> Vec<PathBuf> {
        let all = self.place("/run/hoplite/proxy", "proxy");
        let services = std::fs::read_dir(all).into_iter().flatten().flatten();
        let services = services.filter_map(|entry| entry.file_name().into_string().ok());
        let mut sockets: Vec<PathBuf> = services.map(|service| self.proxy_socket(&service)).collect();
        sockets.retain(|socket| socket.exists());
        sockets.sort();
        sockets
    }

    /// The configuration files of all daemons that lie there now: of the CA, of the agent, of the proxies that units run, and of
    /// those that `hoplite run` wrote.
    pub fn configs(&self) -> Vec<PathBuf> {
        let listed = |dir: PathBuf| {
            let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let mut files: Vec<PathBuf> = files.map(|entry| entry.path()).collect();
            files.sort();
            files
        };
        let is_toml = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "toml");
        let mut configs = vec![self.ca_config(), self.agent_config()];
        configs.extend(
            listed(self.place("/etc/hoplite/proxy", "proxy"))
                .into_iter()
                .filter(is_toml),
        );
        configs.extend(listed(self.proxies_data()).iter().map(|dir| dir.join("proxy.toml")));
        configs.retain(|file| file.is_file());
        configs
    }

    /// The directories of [`configs`](Self::configs) that this user may not look into, so that nobody can say what lies there.
    pub fn closed(&self) -> Vec<PathBuf> {
        let is_closed =
            |dir: &PathBuf| fs::read_dir(dir).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        let parents = [self.ca_config(), self.agent_config()];
        let parents = parents.iter().filter_map(|file| file.parent().map(Path::to_owned));
        let data = self.proxies_data();
        let services = fs::read_dir(&data).into_iter().flatten().flatten();
        let services: Vec<PathBuf> = services.map(|entry| entry.path()).collect();
        let below = [self.place("/etc/hoplite/proxy", "proxy"), data];
        let mut closed: Vec<PathBuf> = parents.chain(below).chain(services).filter(is_closed).collect();
        closed.sort();
        closed.dedup();
        closed
    }

    /// Below which the decision logs of all proxies lie.
    pub fn proxies_data(&self) -> PathBuf {
        self.place("/var/lib/hoplite/proxy", "proxy")
    }

    fn place(&self, installed: &str, below: &str) -> PathBuf {
        match &self.below {
            Some(dir) => dir.join(below),
            None => PathBuf::from(installed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_daemons_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        assert_eq!(places.configs(), Vec::<PathBuf>::new());
        let all = [
            places.ca_config(),
            places.agent_config(),
            places.proxy_config("edge"),
            places.proxy_data("ledger").join("proxy.toml"),
        ];
        for file in &all {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        assert_eq!(places.configs(), all);
    }

    #[test]
    fn no_two_things_lie_in_one_place() {
        for places in [Places::installed(), Places::below("/srv/mesh")] {
            let mut all = vec![
                places.ca_config(),
                places.ca_data(),
                places.ca_socket(),
                places.agent_config(),
                places.agent_data(),
                places.agent_socket(),
            ];
            for service in ["ca", "agent", "ledger"] {
                all.extend([
                    places.proxy_config(service),
                    places.proxy_data(service),
                    places.proxy_socket(service),
                ]);
            }
            let whole = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), whole);
            let root = places.dir().unwrap_or(Path::new("/")).to_owned();
            assert!(all.iter().all(|path| path.starts_with(&root) && path.is_absolute()));
        }
    }
}
