//! What there is to see of one machine: its kernel and clock, and of each configuration file that it has what the file
//! needs: sockets, directories, names, ports, identities.
//!
//! Nothing is changed, and nothing is waited for longer than a few seconds. What this user may not see is said.

mod daemons;
mod files;
pub(crate) mod finding;
mod machine;
mod network;
mod part;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::finding::{CHECK_MAX, Finding, fail, unseen, warn};
use self::part::load;

/// Which configuration files are looked at.
#[derive(Debug)]
pub(crate) struct Scope {
    files: Vec<PathBuf>,
    /// Directories in which more may lie, and into which this user may not look.
    closed: Vec<PathBuf>,
}

/// Looks at everything.
pub(crate) async fn examine(scope: Scope) -> Vec<Finding> {
    let mut findings = Vec::new();
    for dir in &scope.closed {
        findings.push(unseen(
            "configuration",
            format!("{}: this user may not look what lies there", dir.display()),
            "run this as root",
        ));
    }
    if scope.files.is_empty() && scope.closed.is_empty() {
        let seen = "no configuration in /etc/hoplite, and no mesh of `hoplite up`";
        findings.push(warn(
            "configuration",
            seen,
            "name a file with --config, or a mesh with --dir",
        ));
    }
    let mut parts = Vec::new();
    for file in scope.files {
        let shown = file.display().to_string();
        let loaded = blocking("configuration", &shown, move || vec![load(&file)]).await;
        for loaded in loaded {
            match loaded {
                Ok((finding, part)) => {
                    findings.push(finding);
                    parts.push(part);
                }
                Err(finding) => findings.push(finding),
            }
        }
    }
    let own = parts.clone();
    findings.extend(flat(
        blocking("machine", "", move || vec![Ok(machine::look(&own))]).await,
    ));
    for part in &parts {
        let own = part.clone();
        let name = part.name();
        // A directory of policies that several read is looked at for each, and told once.
        for finding in flat(blocking("files", &name, move || vec![Ok(files::look(&own))]).await) {
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    let own = parts.clone();
    findings.extend(flat(blocking("disk", "", move || vec![Ok(files::disks(&own))]).await));
    for part in &parts {
        let lives = daemons::look(part, &mut findings).await;
        network::look(part, lives, &mut findings).await;
    }
    findings
}

fn flat(found: Vec<Result<Vec<Finding>, Finding>>) -> Vec<Finding> {
    let each = found
        .into_iter()
        .map(|found| found.unwrap_or_else(|finding| vec![finding]));
    each.flatten().collect()
}

/// What may hang on a disk that does not answer.
async fn blocking<T: Send + 'static>(
    check: &'static str,
    what: &str,
    work: impl FnOnce() -> Vec<Result<T, Finding>> + Send + 'static,
) -> Vec<Result<T, Finding>> {
    match timeout(CHECK_MAX, spawn_blocking(work)).await {
        Ok(Ok(found)) => found,
        _ => {
            let seen = format!("{what} does not answer within {} s", CHECK_MAX.as_secs());
            vec![Err(fail(check, seen, "look at the disk below it"))]
        }
    }
}

// === impl Scope ===

impl Scope {
    pub(crate) fn of(files: Vec<PathBuf>) -> Self {
        Self::with(files, Vec::new())
    }

    pub(crate) fn with(files: Vec<PathBuf>, closed: Vec<PathBuf>) -> Self {
        Self { files, closed }
    }
}
