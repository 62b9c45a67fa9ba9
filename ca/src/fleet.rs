//! What agents say of themselves and of those that decide on their nodes: kept in memory, the newest of each, and judged when
//! somebody asks.
//!
//! Reports are claims. They are shown and nothing is decided by them, so they stay what came over the wire; what the CA itself
//! knows, which agents there are and which policy is in force, is read from the index at the moment of the answer.

pub(crate) mod heard;
pub(crate) mod judge;
pub(crate) mod strangers;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_host::program::Program;
use hoplite_identity::SpiffeId;
use hoplite_wire::report::Report;

use crate::fleet::heard::{Heard, Node, REPORTS_BYTES_MAX, Standing, Taken, patience};
use crate::fleet::judge::{Build, Norm, Subject, Trouble};
use crate::fleet::strangers::{Stranger, Strangers};
use crate::index::Index;
use crate::record;
use crate::registry::Registry;

/// How often it is looked for agents that may speak no longer, or lack something.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// All reports. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Fleet(Arc<Shared>);

struct Shared {
    heard: Mutex<Heard>,
    streams: AtomicU64,
    /// Agents that follow a higher epoch than this CA's, and which.
    ahead: Mutex<BTreeMap<SpiffeId, u64>>,
    strangers: Mutex<Strangers>,
    started: SystemTime,
    period_ms: AtomicU64,
}

/// One agent, and what is wrong there.
pub(crate) struct Judged {
    pub(crate) id: String,
    pub(crate) node: Option<Node>,
    pub(crate) standing: Standing,
    pub(crate) in_step: bool,
    pub(crate) troubles: Vec<Trouble>,
}

/// All agents at one moment.
pub(crate) struct View {
    pub(crate) now: SystemTime,
    pub(crate) nodes: Vec<Judged>,
    /// How many run what.
    pub(crate) builds: BTreeMap<Build, u32>,
    pub(crate) usual: BTreeMap<(String, String), Build>,
    pub(crate) report_bytes: usize,
}

// === impl Fleet ===

impl Fleet {
    pub(crate) fn new(period: Duration) -> Self {
        let fleet = Self(Arc::new(Shared {
            heard: Mutex::new(Heard::new(REPORTS_BYTES_MAX)),
            streams: AtomicU64::new(0),
            ahead: Mutex::default(),
            strangers: Mutex::default(),
            started: clock::now(),
            period_ms: AtomicU64::new(0),
        }));
        fleet.set_period(period);
        fleet
    }

    /// How often agents are to report.
    pub(crate) fn period(&self) -> Duration {
        Duration::from_millis(self.0.period_ms.load(Relaxed))
    }

    /// What agents are told from their next report on.
    pub(crate) fn set_period(&self, period: Duration) {
        let ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        self.0.period_ms.store(ms, Relaxed);
    }

    /// Since when it is listened.
    pub(crate) fn started(&self) -> SystemTime {
        self.0.started
    }

    /// The number of a stream that begins now.
    pub(crate) fn begin(&self) -> u64 {
        self.0.streams.fetch_add(1, Relaxed) + 1
    }

    /// An agent that would follow this CA says which epoch it follows; None when that is not a higher one.
    pub(crate) fn follows(&self, agent: &SpiffeId, higher: Option<u64>) {
        let mut ahead = self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        match higher {
            Some(number) => drop(ahead.insert(agent.clone(), number)),
            None => drop(ahead.remove(agent)),
        }
    }

    /// A connection that was refused, by either end, for a certificate.
    pub(crate) fn stranger(&self, from: IpAddr, why: String, now: SystemTime) {
        self.strangers().came(from, why, now);
    }

    /// Who came so lately.
    pub(crate) fn strangers_at(&self, now: SystemTime) -> Vec<(IpAddr, Stranger)> {
        self.strangers().told(now)
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.0.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message of an agent.
    pub(crate) fn take(&self, agent: &SpiffeId, stream: u64, news: Report, now: SystemTime) -> Taken {
        self.heard().take(agent.as_str(), stream, news, now)
    }

    /// Forgets those that were banned or evicted, and notes who lacks entries, for ever.
    pub(crate) async fn look_after(self, registry: Registry) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (index, mut heard) = (registry.index(), self.heard());
            heard.retain(|agent| {
                let agent = SpiffeId::parse(agent).ok().and_then(|id| index.agents.get(&id));
                agent.is_some_and(|agent| !agent.banned)
            });
            let is_in_step = |agent: &str, revision| {
                let agent = SpiffeId::parse(agent);
                agent.is_ok_and(|agent| !index.entries.has_changed(&agent, revision))
            };
            heard.look(is_in_step, clock::now());
        }
    }

    /// All agents that joined and are not banned, by SPIFFE ID, each with what is wrong.
    pub(crate) fn view(&self, index: &Index, expiring_within: Duration, now: SystemTime) -> View {
        let heard = self.heard();
        let ahead = self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let agents = index.agents.iter().filter(|agent| !agent.banned);
        let known: Vec<_> = agents
            .map(|agent| (agent, heard.get(agent.spiffe_id.as_str())))
            .collect();
        let own = Program::this();
        let own_digest = own.sha256.map(|digest| digest.to_vec()).unwrap_or_default();
        let mut builds: BTreeMap<Build, u32> = BTreeMap::new();
        for (_, node) in &known {
            for build in node.iter().flat_map(|node| programs(&node.report)) {
                *builds.entry(build).or_default() += 1;
            }
        }
        let usual = judge::usual(&builds, &own_digest);
        let live = index
            .policy
            .head()
            .live
            .and_then(|revision| index.policy.published(revision));
        let manifest = |revision: u64| Some(index.policy.published(revision)?.manifest.0.to_vec());
        let bundle = index.authority.bundle();
        let domain = bundle.map(|bundle| format!("spiffe://{}/", bundle.trust_domain()));
        let norm = Norm {
            domain: domain.as_deref().unwrap_or_default(),
            now,
            started: self.0.started,
            period: self.period(),
            live: live.map(|live| {
                let published = record::from_unix_seconds(live.published);
                (live.revision, live.manifest.0.to_vec(), published)
            }),
            manifest: &manifest,
            version: own.version,
            usual: &usual,
            expiring_within,
            epoch: index.epoch.name().number,
            backup_at: index
                .epoch
                .epoch()
                .map(|epoch| record::from_unix_seconds(epoch.backup_at)),
        };
        let nodes = known.into_iter().map(|(agent, node)| {
            let has_revision = node.and_then(|node| node.report.state.as_ref());
            let in_step =
                has_revision.is_some_and(|state| !index.entries.has_changed(&agent.spiffe_id, state.entries_revision));
            let subject = Subject {
                id: agent.spiffe_id.as_str(),
                node,
                certificate_ends: record::from_unix_seconds(agent.newest().not_after),
                readmitted: agent.readmitted.as_ref(),
                in_step,
                contested: agent.contested.map(record::from_unix_seconds),
                follows: ahead.get(&agent.spiffe_id).copied(),
            };
            Judged {
                troubles: judge::troubles(&norm, subject),
                id: agent.spiffe_id.to_string(),
                standing: Standing::of(node, norm.period, now),
                node: node.cloned(),
                in_step,
            }
        });
        let nodes = nodes.collect();
        builds.insert(
            Build {
                kind: "ca".to_owned(),
                target: own.target.clone(),
                version: own.version.to_owned(),
                sha256: own_digest,
            },
            1,
        );
        View {
            now,
            nodes,
            builds,
            usual,
            report_bytes: heard.bytes(),
        }
    }

    /// The newest trust bundle that all agents in contact know, by its sequence number; 0 while it is too soon to tell.
    pub(crate) fn known_bundle(&self, now: SystemTime) -> u64 {
        let listened = now.duration_since(self.0.started).unwrap_or_default();
        match listened > patience(self.period()) {
            true => self.heard().known_bundle(self.period(), now),
            false => 0,
        }
    }

    /// How many SVIDs of workloads are under a tainted authority still, as agents say.
    pub(crate) fn svids_tainted(&self) -> u64 {
        self.heard().svids_tainted()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What runs on a node: its agent, and whoever decides there in a process of its own.
fn programs(report: &Report) -> impl Iterator<Item = Build> {
    let agent = report.about.as_ref().and_then(|about| about.program.as_ref());
    let agent = agent.map(|program| judge::build("agent", program));
    let points = report.points.iter().filter_map(|point| {
        let ended = point.state.as_ref().is_some_and(|state| state.ended_unix > 0);
        let about = point.about.as_ref().filter(|about| !ended && about.kind != "agent")?;
        Some(judge::build(&about.kind, about.program.as_ref()?))
    });
    agent.into_iter().chain(points)
}

// === impl View ===

impl View {
    /// The worst node first.
    pub(crate) fn sort(&mut self) {
        self.nodes
            .sort_by(|a, b| b.weight().cmp(&a.weight()).then_with(|| a.id.cmp(&b.id)));
    }
}

// === impl Judged ===

impl Judged {
    fn weight(&self) -> Option<(judge::Level, judge::Kind, usize)> {
        let worst = self.troubles.first()?;
        Some((worst.level, worst.kind, self.troubles.len()))
    }

    /// The node's name: the last part of its agent's SPIFFE ID.
    pub(crate) fn name(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or(&self.id)
    }
}
