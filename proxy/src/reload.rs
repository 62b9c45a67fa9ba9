//! What a running proxy takes over of a file that was edited: all of what it can, or nothing.

use std::path::Path;

use hoplite_host::clock;
use hoplite_host::config::ConfigError;
use hoplite_host::logging;
use hoplite_host::reload::{Reloaded, Settings};
use tokio::task::spawn_blocking;

use crate::config::Config;
use crate::error::StartError;
use crate::limits::Limits;
use crate::listening::CannotListen;
use crate::running::{Running, connections_max, kinds};

// === impl Running ===

impl Running {
    /// Reads its file again. After an error everything is as it was.
    pub(crate) async fn read_again(&mut self, file: &Path) -> Result<Reloaded, StartError> {
        let (config, next) = (Config::load(file)?, Settings::read(file)?);
        // Without signers or a directory in the file, those of before count until the next start.
        let (signers, policy) = (!config.policy_signers.is_empty(), config.policy_dir.is_some());
        self.take_over(file, config).await?;
        let listeners = ["inbound.", "outbound.", "limits."];
        Ok(self.settings.reload(&next, |name| match name {
            "log_levels" | "removed_headers" | "useless_frames_max" | "on_stale_policy" => true,
            "policy_signers" | "trust_domain" => signers,
            "policy_dir" => policy,
            // All connections share it.
            "limits.unread_bytes_max" => false,
            _ => listeners.iter().any(|table| name.starts_with(table)),
        }))
    }

    /// Becomes as `config` says, as far as that is possible while it serves. `file` is where it is from.
    ///
    /// # Errors
    /// Something in it cannot be had. Everything is as it was then.
    async fn take_over(&mut self, file: &Path, config: Config) -> Result<(), StartError> {
        // All that can fail comes first.
        let config = self.effective(config);
        let policy_dir = config.policy_dir.clone();
        let policy_dir = policy_dir.filter(|dir| self.config.policy_dir.as_ref() != Some(dir));
        if let Some(dir) = policy_dir.clone() {
            let policy = self.policy.clone();
            let tried = blocking(move || policy.try_directory(&dir).map_err(|unusable| (dir, unusable))).await?;
            tried.map_err(|(dir, unusable)| {
                let remedy = format!("{unusable}; mend that, or name another directory");
                ConfigError::unusable(file, "policy_dir", dir.display(), remedy)
            })?;
        }
        let plan = self.listeners.plan(kinds(&config)?, connections_max(&config));
        let plan = plan.map_err(|CannotListen { key, listen, why }| ConfigError::unusable(file, key, listen, why))?;
        if let Some(dir) = policy_dir {
            let policy = self.policy.clone();
            let following = blocking(move || policy.follow(dir)).await?;
            self.following = Some(following.map_err(|source| StartError::System {
                what: "a thread for the policy directory",
                source,
            })?);
        }

        // From here on nothing fails.
        logging::set(config.log_levels.as_ref());
        self.rules.replace(self.rules.current().changed(&config));
        self.point.set_on_stale(config.on_stale_policy);
        if config.policy_signers != self.config.policy_signers || config.trust_domain != self.config.trust_domain {
            let (policy, trust) = (self.policy.clone(), config.bundle_trust());
            // It may be a compilation.
            let _ = blocking(move || trust.map(|trust| policy.believe(trust, clock::now()))).await;
        }
        self.listeners.carry_out(plan).await;
        self.config = config;
        Ok(())
    }

    /// What counts from then on: of what needs another start, what is in force now.
    fn effective(&self, config: Config) -> Config {
        let now = self.config.clone();
        let no_signers = config.policy_signers.is_empty();
        Config {
            name: now.name,
            workload_api: now.workload_api,
            spiffe_id: now.spiffe_id,
            reference_check_every: now.reference_check_every,
            audit_dir: now.audit_dir,
            state_dir: now.state_dir,
            admin_socket: now.admin_socket,
            workers: now.workers,
            policy_signers: if no_signers {
                now.policy_signers
            } else {
                config.policy_signers
            },
            trust_domain: if no_signers {
                now.trust_domain
            } else {
                config.trust_domain
            },
            policy_dir: config.policy_dir.or(now.policy_dir),
            limits: Limits {
                unread_bytes_max: now.limits.unread_bytes_max,
                ..config.limits
            },
            ..config
        }
    }
}

/// Does what takes the processor or the disk for a while.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StartError> {
    spawn_blocking(work).await.map_err(|error| StartError::System {
        what: "a thread for work",
        source: std::io::Error::other(error),
    })
}
