//! Waiting until every proxy follows what was published: who does, and who is behind, and why.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hoplite_host::clock;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::steps::{Ended, Steps};
use crate::command::policy::{ProxyArgs, mesh_proxies};
use crate::command::{MeshDir, runtime};
use crate::output::{Output, part, plain};

/// How often the proxies are asked.
const TICK: Duration = Duration::from_millis(100);
/// For so long it is waited where no proxy answers at all.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// The most proxies that a sentence names.
const NAMED_MAX: usize = 10;

/// Whether it is waited, for whom, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// Wait until every proxy follows; exit 3 if one does not in time [default: on a terminal]
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Return when the CA has it
    #[arg(long)]
    no_wait: bool,
    /// For how long it is waited
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    proxies: ProxyArgs,
}

/// What every proxy should do.
#[derive(Debug, Clone)]
pub(crate) enum Goal {
    /// Enforce this revision, or one after it.
    Live(u64),
    /// Try this one, whose policies have this revision.
    Shadow(u64, String),
}

/// A proxy that does not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Behind {
    name: String,
    why: String,
    is_away: bool,
}

// === impl WaitArgs ===

impl WaitArgs {
    /// The proxies that were named, or those of the mesh.
    pub(crate) fn proxies(&self, mesh: &MeshDir) -> anyhow::Result<Vec<PathBuf>> {
        Ok(match self.proxies.named() {
            [] => mesh_proxies(mesh).unwrap_or_default(),
            named => named.to_vec(),
        })
    }

    /// Waits, if it is to be waited.
    pub(crate) fn follow(
        &self,
        mesh: &MeshDir,
        goal: &Goal,
        output: Output,
        steps: &mut Steps,
    ) -> anyhow::Result<Ended> {
        let by_default = output == Output::Table && std::io::stdout().is_terminal() && !self.no_wait;
        if !(self.wait || by_default) {
            return Ok(Ended::Well);
        }
        let sockets = self.proxies(mesh)?;
        if sockets.is_empty() {
            steps.fact("proxies", json!({"known": 0, "follow": 0, "behind": []}));
            let what = "no proxy is known here, so nobody was waited for; --proxy SOCKET names them";
            return if self.wait {
                steps.behind("wait", what).map(|()| Ended::NotFollowed)
            } else {
                steps.done("wait", what).map(|()| Ended::Well)
            };
        }
        let all = sockets.len();
        let behind = runtime()?.block_on(wait(sockets, goal, self.timeout));
        let follow = all - behind.len();
        let listed: Vec<Value> = behind
            .iter()
            .map(|proxy| json!({"name": proxy.name, "why": proxy.why}))
            .collect();
        steps.fact("proxies", json!({"known": all, "follow": follow, "behind": listed}));
        let counted = counted(follow, all, goal);
        if behind.is_empty() {
            return steps.done("wait", &counted).map(|()| Ended::Well);
        }
        let what = if behind.len() == all && behind.iter().all(|proxy| proxy.is_away) {
            format!("no proxy runs here, so nobody enforces it yet: {}", named(&behind))
        } else {
            format!(
                "{counted}; behind after {}: {}",
                humantime::format_duration(self.timeout),
                named(&behind)
            )
        };
        steps.behind("wait", &what).map(|()| Ended::NotFollowed)
    }
}

/// Asks until all follow, or the time is over; those that are behind then.
async fn wait(sockets: Vec<PathBuf>, goal: &Goal, timeout: Duration) -> Vec<Behind> {
    let (all, start) = (sockets.len(), clock::moment());
    let draws = std::io::stderr().is_terminal();
    let mut left = sockets;
    let mut somebody = false;
    loop {
        let mut asked = JoinSet::new();
        for socket in left {
            asked.spawn(async move {
                let status = hoplite_proxy::admin_status(&socket).await;
                let status = status.unwrap_or_else(|error| json!({"name": name(&socket), "error": error.to_string()}));
                (socket, status)
            });
        }
        let mut behind: Vec<(PathBuf, Behind)> = Vec::new();
        // A failed join is a panic of ours in there; whom it asked counts as behind.
        while let Some(Ok((socket, status))) = asked.join_next().await {
            match behind_of(&status, goal) {
                Some(proxy) => {
                    somebody |= !proxy.is_away;
                    behind.push((socket, proxy));
                }
                None => somebody = true,
            }
        }
        behind.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        if draws {
            let _ = write!(
                std::io::stderr(),
                "\r\x1b[K{} …",
                counted(all - behind.len(), all, goal)
            );
        }
        let patience = if somebody { timeout } else { timeout.min(SILENCE_MAX) };
        if behind.is_empty() || start.elapsed() >= patience {
            if draws {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
            return behind.into_iter().map(|(_, proxy)| proxy).collect();
        }
        left = behind.into_iter().map(|(socket, _)| socket).collect();
        tokio::time::sleep(TICK).await;
    }
}

/// What keeps a proxy from doing what it should, by what it says of itself.
fn behind_of(status: &Value, goal: &Goal) -> Option<Behind> {
    let cell = |pointer| plain(part(status, pointer));
    let behind = |why: String, is_away: bool| {
        Some(Behind {
            name: cell("/name"),
            why,
            is_away,
        })
    };
    if let Some(error) = part(status, "/error").as_str() {
        return behind(format!("away, {error}"), true);
    }
    let fault = part(status, "/policy/faults/0/reason").as_str();
    let refused = fault.map(|fault| format!("; it refused: {fault}")).unwrap_or_default();
    let revision = part(status, "/policy/bundle_revision").as_u64();
    match goal {
        Goal::Live(wanted) => match revision {
            Some(revision) if revision >= *wanted && part(status, "/policy/in_force") == "live" => None,
            Some(revision) if revision >= *wanted => {
                behind(format!("denies all: {}{refused}", cell("/policy/reason")), false)
            }
            Some(revision) => behind(format!("enforces revision {revision}{refused}"), false),
            None if part(status, "/policy/in_force") == "live" => {
                behind(format!("goes by a directory of its own{refused}"), false)
            }
            None => behind(format!("denies all: {}{refused}", cell("/policy/reason")), false),
        },
        Goal::Shadow(_, wanted) => match part(status, "/policy/shadow").as_str() {
            Some(shadow) if shadow == wanted => None,
            Some(_) => behind(format!("tries another{refused}"), false),
            None => behind(format!("tries none{refused}"), false),
        },
    }
}

/// `6 of 6 proxies enforce revision 4`.
fn counted(follow: usize, all: usize, goal: &Goal) -> String {
    match goal {
        Goal::Live(revision) => format!("{follow} of {all} proxies enforce revision {revision}"),
        Goal::Shadow(revision, _) => format!("{follow} of {all} proxies try revision {revision}"),
    }
}

fn named(behind: &[Behind]) -> String {
    let each = behind.iter().take(NAMED_MAX);
    let mut text = each
        .map(|proxy| format!("{} ({})", proxy.name, proxy.why))
        .collect::<Vec<_>>()
        .join(", ");
    let more = behind.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// What a proxy that does not answer is called.
fn name(socket: &Path) -> String {
    let stem = socket.file_stem().and_then(|stem| stem.to_str());
    stem.map_or_else(|| socket.display().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_behind_is_told_with_the_reason() {
        let live = |policy: Value| json!({"name": "edge", "policy": policy});
        let shadow = Goal::Shadow(4, "abc".to_owned());
        for (status, goal, expected) in [
            (
                live(json!({"in_force": "live", "bundle_revision": 4})),
                Goal::Live(4),
                None,
            ),
            (
                live(json!({"in_force": "live", "bundle_revision": 5})),
                Goal::Live(4),
                None,
            ),
            (
                live(json!({"in_force": "live", "bundle_revision": 3, "faults": [{"reason": "signed by nobody"}]})),
                Goal::Live(4),
                Some("enforces revision 3; it refused: signed by nobody"),
            ),
            (
                live(json!({"in_force": "live", "bundle_revision": null})),
                Goal::Live(4),
                Some("goes by a directory of its own"),
            ),
            (
                live(json!({"in_force": "deny_all", "reason": "expired", "bundle_revision": 4})),
                Goal::Live(4),
                Some("denies all: expired"),
            ),
            (
                live(json!({"in_force": "deny_all", "reason": "no policy"})),
                Goal::Live(4),
                Some("denies all: no policy"),
            ),
            (
                json!({"name": "edge", "error": "gone"}),
                Goal::Live(4),
                Some("away, gone"),
            ),
            (live(json!({"shadow": "abc"})), shadow.clone(), None),
            (live(json!({"shadow": "abd"})), shadow.clone(), Some("tries another")),
            (live(json!({"shadow": null})), shadow, Some("tries none")),
        ] {
            let found = behind_of(&status, &goal).map(|behind| behind.why);
            assert_eq!(found.as_deref(), expected, "{status}");
        }
    }
}
