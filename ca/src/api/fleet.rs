//! The mesh as operators are shown it, from what agents reported.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_host::clock;
use hoplite_host::program::Program;
use hoplite_host::shutdown::Shutdown;
use hoplite_telemetry::Site;
use hoplite_wire::ca as wire;
use hoplite_wire::report::{self, Point, Report};
use tokio::sync::mpsc;
use tonic::Status;

use crate::api::messages::unix_i64;
use crate::epoch::Epoch;
use crate::federation::keeper::Federation;
use crate::fleet::heard::{REPORTS_BYTES_MAX, Standing, decided, patience};
use crate::fleet::judge::{Level, Trouble};
use crate::fleet::{Fleet, Judged, View};
use crate::index::Index;
use crate::record::unix_seconds;
use crate::registry::Registry;
use crate::rotation::Rotation;

/// Programs that are listed.
const BUILDS_MAX: usize = 64;

/// Those that do not follow that are named.
const BEHIND_MAX: usize = 20;

/// How often somebody who watches is told.
const WATCHED_EVERY: Duration = Duration::from_secs(1);

/// Who watches asks anew after so many answers, a minute: whether it still may is asked then, too.
const WATCHED_MAX: u32 = 60;

/// Answers that wait for a slow reader.
const WAITING_MAX: usize = 16;

/// The answers of a call that lists.
pub(crate) type Answers<T> = mpsc::Receiver<Result<T, Status>>;

/// What operators ask of the fleet.
#[derive(Clone)]
pub(crate) struct Reported {
    registry: Registry,
    fleet: Fleet,
    rotation: Rotation,
    site: Arc<Site>,
    federation: Federation,
    shutdown: Shutdown,
}

// === impl Reported ===

impl Reported {
    pub(crate) fn new(
        registry: Registry,
        fleet: Fleet,
        rotation: Rotation,
        site: Arc<Site>,
        federation: Federation,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            registry,
            fleet,
            rotation,
            site,
            federation,
            shutdown,
        }
    }

    /// The mesh now, and again each second if it is watched.
    pub(crate) fn mesh(&self, request: wire::ShowMeshRequest) -> Answers<wire::Mesh> {
        let (sender, receiver) = mpsc::channel(1);
        let mut shown = self.clone();
        tokio::spawn(async move {
            for _ in 0..WATCHED_MAX {
                let mesh = shown.mesh_now(request.goal.as_ref());
                if sender.send(Ok(mesh)).await.is_err() || !request.watch {
                    return;
                }
                tokio::select! {
                    // By the clock, since nobody reports a silence.
                    () = tokio::time::sleep(WATCHED_EVERY) => {}
                    () = sender.closed() => return,
                    () = shown.shutdown.wait() => {
                        let _ = sender.send(Err(Status::unavailable("the CA is stopping; connect again"))).await;
                        return;
                    }
                }
            }
        });
        receiver
    }

    fn mesh_now(&self, goal: Option<&wire::Goal>) -> wire::Mesh {
        let now = clock::now();
        // Before the index is locked: these look there themselves.
        let not_ready = self.site.unready();
        let (warning, rotates) = (self.rotation.warning(now), self.rotation.plan().rotates);
        let federation_warnings = self.federation.warnings(now);
        let index = self.registry.index();
        let view = self.fleet.view(&index, Duration::ZERO, now);
        let authorities = wire::Mesh {
            not_ready,
            federation_warnings,
            ..authorities(&index, rotates, warning)
        };
        mesh(&index, &self.fleet, &view, goal, authorities)
    }

    /// What agents said, the worst first.
    pub(crate) fn reports(&self, request: &wire::ListReportsRequest) -> Answers<wire::NodeReport> {
        let within = Duration::from_secs(request.expiring_within_seconds.into());
        let mut view = self.fleet.view(&self.registry.index(), within, clock::now());
        view.sort();
        let (now, mut nodes) = (view.now, view.nodes);
        nodes.retain_mut(|node| {
            let everything = request.kinds.is_empty() && !request.wrong;
            node.troubles.retain(|trouble| everything || is_asked(request, trouble));
            let asked = !request.troubled && everything;
            (asked || !node.troubles.is_empty()) && node.name().contains(&request.node)
        });
        let matches = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        if request.limit > 0 {
            nodes.truncate(request.limit as usize);
        }
        let fired = request.fired;
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            for node in nodes {
                if sender.send(Ok(node_report(&node, matches, fired, now))).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }

    /// What one said: by its name or its SPIFFE ID.
    pub(crate) fn report(&self, node: &str) -> Result<wire::NodeReport, Status> {
        let view = self.fleet.view(&self.registry.index(), Duration::ZERO, clock::now());
        let found = view
            .nodes
            .iter()
            .find(|judged| judged.id == node || judged.name() == node);
        let found = found.ok_or_else(|| {
            Status::not_found(format!(
                "no agent `{}` has joined, or it is banned; `hoplite agent list` shows them all",
                node.escape_default()
            ))
        })?;
        Ok(node_report(found, 1, true, view.now))
    }
}

/// Whether a filter lets it pass: by its kind, or because it is wrong.
fn is_asked(request: &wire::ListReportsRequest, trouble: &Trouble) -> bool {
    (request.wrong && trouble.level == Level::Wrong) || request.kinds.iter().any(|kind| kind == trouble.kind.as_str())
}

/// What is said of authorities, and nothing else.
fn authorities(index: &Index, rotates: bool, warning: Option<String>) -> wire::Mesh {
    let course = index.authority.course();
    let active = course.active().map(|(_, life)| life);
    wire::Mesh {
        authority_not_after_unix: active.map_or(0, |life| unix_i64(life.not_after)),
        successor_not_after_unix: course.prepared().map_or(0, |(_, life)| unix_i64(life.not_after)),
        successor_signs_unix: active
            .filter(|_| rotates)
            .map_or(0, |life| unix_i64(life.hands_over_at())),
        authority_warning: warning.unwrap_or_default(),
        ..wire::Mesh::default()
    }
}

fn mesh(index: &Index, fleet: &Fleet, view: &View, goal: Option<&wire::Goal>, authorities: wire::Mesh) -> wire::Mesh {
    let own = Program::this();
    let (head, now, period) = (index.policy.head(), view.now, fleet.period());
    let manifest = head
        .live
        .and_then(|live| Some(index.policy.published(live)?.manifest.0.to_vec()));
    let mut mesh = wire::Mesh {
        trust_domain: index
            .authority
            .bundle()
            .map(|bundle| bundle.trust_domain().to_string())
            .unwrap_or_default(),
        program: Some(report::Program {
            version: own.version.to_owned(),
            sha256: own.sha256.map(|digest| digest.to_vec()).unwrap_or_default(),
            target: own.target.clone(),
            started_at_unix: unix(fleet.started()),
        }),
        now_unix: unix(now),
        store_revision: index.revision(),
        period_ms: u32::try_from(period.as_millis()).unwrap_or(u32::MAX),
        agents: count(view.nodes.len()),
        banned: count(index.agents.iter().filter(|agent| agent.banned).count()),
        just_started: now.duration_since(fleet.started()).unwrap_or_default() <= patience(period),
        live_revision: head.live.unwrap_or_default(),
        shadow_revision: head.shadow.unwrap_or_default(),
        signers_version: index.policy.signers().map_or(0, |chain| chain.version()),
        report_bytes: view.report_bytes as u64,
        report_bytes_max: REPORTS_BYTES_MAX as u64,
        restored: index.epoch.epoch().map(|epoch| restored(index, epoch)),
        strangers: fleet
            .strangers_at(now)
            .into_iter()
            .map(|(from, stranger)| wire::Stranger {
                address: from.to_string(),
                why: stranger.why,
                times: stranger.times,
                last_unix: unix_i64(unix_seconds(stranger.last)),
            })
            .collect(),
        ..authorities
    };
    let mut troubles: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for node in &view.nodes {
        match node.standing {
            Standing::Heard => mesh.heard += 1,
            Standing::Silent => mesh.silent += 1,
            Standing::NotHeard => mesh.not_heard += 1,
        }
        for trouble in &node.troubles {
            *troubles
                .entry((trouble.kind.as_str(), trouble.level.as_str()))
                .or_default() += 1;
        }
        let Some(held) = node.node.as_ref().filter(|_| node.standing == Standing::Heard) else {
            continue;
        };
        mesh.in_step += u32::from(node.in_step);
        mesh.denials_per_minute = mesh.denials_per_minute.saturating_add(held.denials.per_minute(now));
        mesh.nodes_with_points += u32::from(!held.report.points.is_empty());
        for point in held.report.points.iter().filter(|point| !has_ended(point)) {
            mesh.points += 1;
            let (all, denied) = decided(point);
            mesh.decisions = mesh.decisions.saturating_add(all);
            mesh.denials = mesh.denials.saturating_add(denied);
            mesh.points_with_live += u32::from(has_live(point, head.live, manifest.as_deref()));
            if let Some(goal) = goal {
                let name = name(point).to_owned();
                if goal.names.contains(&name) && !mesh.known.contains(&name) {
                    mesh.known.push(name.clone());
                }
                match why_not(point, goal) {
                    None => mesh.following += 1,
                    Some(why) if mesh.behind.len() < BEHIND_MAX => mesh.behind.push(wire::Behind {
                        node: node.name().to_owned(),
                        name,
                        why,
                    }),
                    Some(_) => {}
                }
            }
        }
    }
    mesh.troubles = troubles
        .into_iter()
        .map(|((kind, level), count)| wire::TroubleCount {
            kind: kind.to_owned(),
            level: level.to_owned(),
            count,
        })
        .collect();
    let mut builds: Vec<_> = view.builds.iter().collect();
    builds.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
    mesh.builds = builds
        .into_iter()
        .take(BUILDS_MAX)
        .map(|(build, count)| wire::Build {
            kind: build.kind.clone(),
            version: build.version.clone(),
            sha256: build.sha256.clone(),
            target: build.target.clone(),
            count: *count,
            usual: view.usual.get(&(build.kind.clone(), build.target.clone())) == Some(build),
        })
        .collect();
    mesh
}

/// What is known of the last restore.
fn restored(index: &Index, epoch: &Epoch) -> wire::Restored {
    let since = epoch.began_at();
    let adopted = index
        .agents
        .iter()
        .filter(|agent| agent.adopted_at.is_some_and(|at| at >= since));
    wire::Restored {
        epoch: Some(epoch.name.into()),
        backup_at_unix: unix_i64(epoch.backup_at),
        revision: epoch.revision,
        adopted: count(adopted.count()),
    }
}

/// Whether a point enforces what is in force. Before the first bundle whatever it enforces is right.
fn has_live(point: &Point, live: Option<u64>, manifest: Option<&[u8]>) -> bool {
    let Some(policy) = point.policy.as_ref().filter(|_| is_there(point)) else {
        return false;
    };
    match live {
        Some(live) => policy.revision == live && Some(policy.manifest_sha256.as_slice()) == manifest,
        None => policy.revision == 0,
    }
}

fn is_there(point: &Point) -> bool {
    let is_silent = point.state.as_ref().is_some_and(|state| state.silent_since_unix > 0);
    !is_silent && !has_ended(point)
}

fn has_ended(point: &Point) -> bool {
    point.state.as_ref().is_some_and(|state| state.ended_unix > 0)
}

/// What keeps a point from doing what it should, by what it says of itself.
fn why_not(point: &Point, goal: &wire::Goal) -> Option<String> {
    if !is_there(point) {
        return Some("away".to_owned());
    }
    let Some(policy) = &point.policy else {
        return Some("has said nothing of its policy".to_owned());
    };
    let refused = policy.faults.first().map(|fault| format!("; it refused: {fault}"));
    let refused = refused.unwrap_or_default();
    if !goal.shadow.is_empty() {
        return match policy.shadow.as_str() {
            shadow if shadow == goal.shadow => None,
            "" => Some(format!("tries none{refused}")),
            _ => Some(format!("tries another{refused}")),
        };
    }
    if !policy.denies_all.is_empty() {
        return Some(format!("denies all: {}{refused}", policy.denies_all));
    }
    match policy.revision {
        revision if revision >= goal.live_revision => None,
        0 => Some(format!("goes by a directory of its own{refused}")),
        revision => Some(format!("enforces revision {revision}{refused}")),
    }
}

fn name(point: &Point) -> &str {
    let name = point.about.as_ref().map(|about| about.name.as_str());
    name.filter(|name| !name.is_empty()).unwrap_or(&point.key)
}

fn node_report(node: &Judged, matches: u32, fired: bool, now: SystemTime) -> wire::NodeReport {
    let held = node.node.as_ref();
    let report = held.map(|held| {
        let mut report = Report::clone(&held.report);
        if !fired {
            report.points.iter_mut().for_each(|point| point.fired = None);
        }
        report
    });
    wire::NodeReport {
        spiffe_id: node.id.clone(),
        node: node.name().to_owned(),
        standing: node.standing.as_str().to_owned(),
        heard_at_unix_ms: held.map_or(0, |held| unix_ms(held.heard)),
        clock_offset_ms: held.map_or(0, |held| held.offset_ms),
        troubles: node.troubles.iter().map(wire::Trouble::from).collect(),
        denials_per_minute: held.map_or(0, |held| held.denials.per_minute(now)),
        report,
        matches,
        in_step: node.in_step,
    }
}

impl From<&Trouble> for wire::Trouble {
    fn from(trouble: &Trouble) -> Self {
        Self {
            kind: trouble.kind.as_str().to_owned(),
            level: trouble.level.as_str().to_owned(),
            point: trouble.point.clone(),
            text: trouble.text.clone(),
            weight: trouble.level as u32 * 100 + trouble.kind as u32,
        }
    }
}

fn unix(at: SystemTime) -> i64 {
    unix_i64(unix_seconds(at))
}

fn unix_ms(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::judge::Kind;

    /// No kind is forgotten by who asks for what is wrong.
    #[test]
    fn what_is_wrong_is_asked_for_whatever_its_kind() {
        let trouble = |kind, level| Trouble {
            kind,
            level,
            point: String::new(),
            text: String::new(),
        };
        let drift = wire::ListReportsRequest {
            kinds: vec!["other-build".to_owned()],
            wrong: true,
            ..wire::ListReportsRequest::default()
        };
        for (kind, level, expected) in [
            (Kind::PointEnded, Level::Wrong, true),
            (Kind::Clock, Level::Wrong, true),
            (Kind::Clock, Level::Notice, false),
            (Kind::RecordFailures, Level::Wrong, true),
            (Kind::WithoutSvid, Level::Wrong, true),
            (Kind::OtherBuild, Level::Notice, true),
            (Kind::Grants, Level::Notice, false),
        ] {
            assert_eq!(is_asked(&drift, &trouble(kind, level)), expected, "{kind:?}");
        }
    }
}
