//! What a running agent takes over of a file that was edited: all of what it can, or nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use hoplite_host::config::ConfigError;
use hoplite_host::logging;
use hoplite_host::reload::{Reloaded, Settings};
use hoplite_seal::SignerChain;
use tokio::task::spawn_blocking;

use crate::authorize::authorizer::{Authorizer, AuthorizerError};
use crate::config::{Authorization, Config};
use crate::{Running, StartError};

// === impl Running ===

impl Running {
    /// Reads its file again. After an error everything is as it was.
    pub(crate) async fn read_again(&mut self, file: &Path) -> Result<Reloaded, StartError> {
        let (config, next) = (Config::load(file)?, Settings::read(file)?);
        // Decisions for others that begin, or end, need another start; so does a directory that is named no more.
        let decides = self.config.authorization.is_some() && config.authorization.is_some();
        let directory = config
            .authorization
            .as_ref()
            .is_some_and(|next| next.policy_dir.is_some());
        self.take_over(file, config).await?;
        Ok(self.settings.reload(&next, |name| match name {
            "log_levels" | "ca" | "join_token_file" | "socket_mode" | "policy_signers" | "policy_max_bytes" => true,
            "authorization.on_stale_policy" => decides,
            "authorization.policy_dir" => decides && directory,
            _ => decides && name.starts_with("authorization.services."),
        }))
    }

    async fn take_over(&mut self, file: &Path, config: Config) -> Result<(), StartError> {
        // All that can fail comes first.
        if !config.policy_signers.is_empty() {
            let set = SignerChain::configured(&self.config.trust_domain, &config.policy_signers);
            let names: Vec<&str> = config.policy_signers.names().collect();
            set.map_err(|bad| ConfigError::unusable(file, "policy_signers", format_args!("{names:?}"), bad))?;
        }
        let authorization = match (&self.authorizer, &config.authorization) {
            (Some(authorizer), Some(next)) => Some((Arc::clone(authorizer), next.clone())),
            _ => None,
        };
        if let Some((authorizer, next)) = &authorization {
            let before = self
                .config
                .authorization
                .as_ref()
                .and_then(|before| before.policy_dir.as_ref());
            if next.policy_dir.is_some() && next.policy_dir.as_ref() != before {
                follow(file, authorizer, next).await?;
            }
        }
        if config.socket_mode() != self.config.socket_mode() {
            let mode = config.socket_mode();
            fs::set_permissions(self.socket.path(), Permissions::from_mode(mode))
                .map_err(|error| ConfigError::unusable(file, "socket_mode", format_args!("{mode:#o}"), error))?;
        }

        // From here on nothing fails.
        logging::set(config.log_levels.as_ref());
        self.link.move_to(&config.ca);
        self.token_files.send_replace(config.join_token_file.clone());
        self.policy.send_if_modified(|held| {
            let wanted = config.policy();
            let differs = *held != wanted;
            *held = wanted;
            differs
        });
        if let Some((authorizer, next)) = authorization {
            authorizer.change(&next.services, next.on_stale_policy);
        }
        let now = self.config.clone();
        self.config = Config {
            ca: config.ca,
            join_token_file: config.join_token_file,
            socket_mode: config.socket_mode,
            log_levels: config.log_levels,
            policy_signers: config.policy_signers,
            policy_max_bytes: config.policy_max_bytes,
            authorization: match (now.authorization, config.authorization) {
                (Some(now), Some(next)) => Some(Authorization {
                    policy_dir: next.policy_dir.or(now.policy_dir),
                    on_stale_policy: next.on_stale_policy,
                    services: next.services,
                    ..now
                }),
                (now, _) => now,
            },
            ..now
        };
        Ok(())
    }
}

/// Follows another directory of policies, if its files could be in force.
async fn follow(file: &Path, authorizer: &Arc<Authorizer>, next: &Authorization) -> Result<(), StartError> {
    let Some(directory) = next.policy_dir.clone() else {
        return Ok(());
    };
    let authorizer = Arc::clone(authorizer);
    let shown = directory.display().to_string();
    // It may be a compilation.
    let followed = spawn_blocking(move || {
        authorizer
            .try_directory(&directory)
            .map_err(|unusable| unusable.to_string())?;
        authorizer
            .follow_directory(directory)
            .map_err(|error| error.to_string())
    });
    let refused = |why: String| ConfigError::unusable(file, "authorization.policy_dir", &shown, why);
    match followed.await {
        Ok(followed) => Ok(followed.map_err(refused)?),
        Err(error) => Err(AuthorizerError::from(std::io::Error::other(error)).into()),
    }
}
