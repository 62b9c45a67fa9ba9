//! Waiting until every proxy follows what was published: who does, and who is behind, and why.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hoplite_host::clock;
use hoplite_wire::ca::{self as wire, Mesh};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::steps::{Ended, Steps};
use crate::command::fleet::ask;
use crate::command::fleet::text::many;
use crate::command::policy::{ProxyArgs, mesh_proxies};
use crate::command::reach::CaArgs;
use crate::command::{MeshDir, runtime};
use crate::output::{Output, part, plain};

/// How often the proxies are asked.
const TICK: Duration = Duration::from_millis(100);
/// How often the CA is asked what others report.
const TICK_FAR: Duration = Duration::from_millis(300);
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
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::output::moment::span)]
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

/// What all proxies of the mesh do, by what they report: those that lie here too, and those of other nodes.
#[derive(Debug, Clone)]
struct Reported(Mesh);

/// What came of waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    all: usize,
    follow: usize,
    /// Nodes with proxies; none where only sockets of this machine were asked.
    nodes: Option<u32>,
    behind: Vec<Behind>,
    /// Nodes of which nothing is known.
    unheard: u32,
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
    pub(crate) fn follow(&self, ca: &CaArgs, goal: &Goal, output: Output, steps: &mut Steps) -> anyhow::Result<Ended> {
        let by_default = output == Output::Table && std::io::stdout().is_terminal() && !self.no_wait;
        if !(self.wait || by_default) {
            return Ok(Ended::Well);
        }
        let sockets = self.proxies(ca.mesh())?;
        let here = runtime()?.block_on(names_of(&sockets));
        let reported = self
            .proxies
            .named()
            .is_empty()
            .then(|| Reported::ask(ca, goal, &here))
            .flatten();
        if sockets.is_empty() && reported.as_ref().is_none_or(Reported::is_nobody) {
            steps.fact("proxies", json!({"known": 0, "follow": 0, "behind": []}));
            let what = "no proxy is known here, so nobody was waited for; --proxy SOCKET names them";
            return if self.wait {
                steps.behind("wait", what).map(|()| Ended::NotFollowed)
            } else {
                steps.done("wait", what).map(|()| Ended::Well)
            };
        }
        let start = clock::moment();
        let behind = runtime()?.block_on(wait(sockets, goal, self.timeout));
        let Outcome {
            all,
            follow,
            nodes,
            behind,
            unheard,
        } = match reported {
            Some(reported) => {
                let reported = reported.wait(ca, goal, &here, self.timeout.saturating_sub(start.elapsed()));
                reported.outcome(&here, behind)
            }
            None => Outcome::here(here.len(), behind),
        };
        let listed: Vec<Value> = behind
            .iter()
            .map(|proxy| json!({"name": proxy.name, "why": proxy.why}))
            .collect();
        steps.fact(
            "proxies",
            json!({"known": all, "follow": follow, "behind": listed, "nodes": nodes, "nodes_not_heard": unheard}),
        );
        let counted = match nodes {
            Some(nodes @ 1..) => counted_on(follow, all, nodes, goal),
            _ => counted(follow, all, goal),
        };
        if unheard > 0 && behind.is_empty() {
            let unheard = many(unheard, "node is", "nodes are");
            let what = format!("{counted}; {unheard} not heard, so nobody knows of theirs: `hoplite fleet` names them");
            return steps.behind("wait", &what).map(|()| Ended::NotFollowed);
        }
        if behind.is_empty() {
            return steps.done("wait", &counted).map(|()| Ended::Well);
        }
        let what = if nodes.is_none_or(|nodes| nodes == 0)
            && behind.len() == all
            && behind.iter().all(|proxy| proxy.is_away)
        {
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

// === impl Reported ===

impl Reported {
    /// None where the CA cannot be asked, or is older than reports.
    fn ask(ca: &CaArgs, goal: &Goal, here: &[String]) -> Option<Self> {
        let names = here.to_vec();
        let goal = match goal {
            Goal::Live(revision) => wire::Goal {
                live_revision: *revision,
                names,
                ..wire::Goal::default()
            },
            Goal::Shadow(_, digest) => wire::Goal {
                shadow: digest.clone(),
                names,
                ..wire::Goal::default()
            },
        };
        ask::following(ca, goal).ok().flatten().map(Self)
    }

    fn is_nobody(&self) -> bool {
        self.0.points == 0 && self.unheard() == 0
    }

    fn unheard(&self) -> u32 {
        self.0.silent + self.0.not_heard
    }

    /// Asks until all follow, or the time is over.
    fn wait(self, ca: &CaArgs, goal: &Goal, here: &[String], timeout: Duration) -> Self {
        let (start, mut last) = (clock::moment(), self);
        while (last.0.following < last.0.points || last.unheard() > 0) && start.elapsed() < timeout {
            std::thread::sleep(TICK_FAR);
            last = Self::ask(ca, goal, here).unwrap_or(last);
        }
        last
    }

    /// With those of this machine that do not report: what was found of them here counts.
    fn outcome(self, here: &[String], behind_here: Vec<Behind>) -> Outcome {
        let unheard = self.unheard();
        let Self(mesh) = self;
        let is_known = |name: &String| mesh.known.contains(name);
        let unreported = here.iter().filter(|name| !is_known(name)).count();
        let behind_here: Vec<Behind> = behind_here.into_iter().filter(|proxy| !is_known(&proxy.name)).collect();
        let (points, following) = (mesh.points as usize, mesh.following as usize);
        let behind = mesh.behind.into_iter().map(|behind| Behind {
            name: format!("{}/{}", behind.node, behind.name),
            is_away: behind.why == "away",
            why: behind.why,
        });
        Outcome {
            all: points + unreported,
            follow: following + unreported.saturating_sub(behind_here.len()),
            nodes: Some(mesh.nodes_with_points),
            behind: behind.chain(behind_here).collect(),
            unheard,
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// Of this machine alone.
    fn here(all: usize, behind: Vec<Behind>) -> Self {
        Self {
            all,
            follow: all.saturating_sub(behind.len()),
            nodes: None,
            behind,
            unheard: 0,
        }
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

/// `6 of 6 proxies on 3 nodes enforce revision 4`.
fn counted_on(follow: usize, all: usize, nodes: u32, goal: &Goal) -> String {
    let on = format!(" on {}", many(nodes, "node", "nodes"));
    counted_at(follow, all, &on, goal)
}

/// `6 of 6 proxies enforce revision 4`.
fn counted(follow: usize, all: usize, goal: &Goal) -> String {
    counted_at(follow, all, "", goal)
}

fn counted_at(follow: usize, all: usize, on: &str, goal: &Goal) -> String {
    let one = all == 1;
    let proxies = if one { "proxy" } else { "proxies" };
    let does = match (goal, one) {
        (Goal::Live(revision), true) => format!("enforces revision {revision}"),
        (Goal::Live(revision), false) => format!("enforce revision {revision}"),
        (Goal::Shadow(revision, _), true) => format!("tries revision {revision}"),
        (Goal::Shadow(revision, _), false) => format!("try revision {revision}"),
    };
    format!("{follow} of {all} {proxies}{on} {does}")
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

/// What the proxies at these sockets call themselves, which is what they report.
async fn names_of(sockets: &[PathBuf]) -> Vec<String> {
    let ask = |socket: &PathBuf| {
        let socket = socket.clone();
        tokio::spawn(async move {
            let status = hoplite_proxy::admin_status(&socket).await.unwrap_or_default();
            let own = part(&status, "/name").as_str().map(str::to_owned);
            own.unwrap_or_else(|| name(&socket))
        })
    };
    let asked: Vec<_> = sockets.iter().map(ask).collect();
    let mut names = Vec::new();
    for (socket, asked) in sockets.iter().zip(asked) {
        // A failed join is a panic of ours in there.
        names.push(asked.await.unwrap_or_else(|_| name(socket)));
    }
    names
}

/// What a proxy that does not answer is called: by its own socket, `ledger.sock`, or by the directory of it, `ledger/proxy.sock`.
fn name(socket: &Path) -> String {
    let dir = socket.parent().and_then(Path::file_name);
    let stem = match socket.file_name().is_some_and(|name| name == "proxy.sock") {
        true => dir,
        false => socket.file_stem(),
    };
    let stem = stem.and_then(|stem| stem.to_str());
    stem.map_or_else(|| socket.display().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_all_nodes_count_and_those_here_that_do_not_report() {
        let behind = |name: &str| Behind {
            name: name.to_owned(),
            why: "w".to_owned(),
            is_away: false,
        };
        let mesh = Mesh {
            points: 6,
            following: 5,
            nodes_with_points: 3,
            silent: 1,
            known: vec!["edge".into()],
            behind: vec![wire::Behind {
                node: "web-2".into(),
                name: "edge".into(),
                why: "w".into(),
            }],
            ..Mesh::default()
        };
        let here = ["run/edge.sock", "run/own.sock", "proxy/old/proxy.sock"].map(|socket| name(Path::new(socket)));
        let outcome = Reported(mesh).outcome(&here, vec![behind("edge"), behind("old")]);
        assert_eq!(
            outcome,
            Outcome {
                all: 8,
                follow: 6,
                nodes: Some(3),
                behind: vec![behind("web-2/edge"), behind("old")],
                unheard: 1,
            }
        );
        assert_eq!(
            counted_on(6, 8, 3, &Goal::Live(4)),
            "6 of 8 proxies on 3 nodes enforce revision 4"
        );
    }

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
