//! What a CA counts, and what of it is shown to the tools that people have.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use hoplite_host::clock;
use hoplite_otlp::Sent;
use hoplite_telemetry::{Counter, Exposition, Family, Kind, Site};

use crate::acts::Acts;
use crate::authority::course::Life;
use crate::authority::upstream::Upstream;
use crate::federation::keeper::Federation;
use crate::issuer::Issuer;
use crate::record;
use crate::registry::Registry;

/// RPCs of both APIs, times the codes they are answered with.
const CALLS_MAX: usize = 1_000;

/// Results are of a fixed set.
const RESULTS_MAX: usize = 50;

/// Folders of the store below its own, looked through for its size.
const FOLDERS_DEEP: usize = 4;

/// What has happened since the start. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    calls: Family<3, Counter>,
    joins: Family<1, Counter>,
    two_holders: Counter,
    /// Pages of OpenID Connect discovery that were asked for.
    pub(crate) oidc_reads: Family<2, Counter>,
    /// Pages of the bundle endpoint that were asked for.
    pub(crate) bundle_reads: Family<2, Counter>,
    watches: Arc<AtomicU64>,
    /// What became of metrics that are sent.
    pub(crate) sent: Sent,
}

/// How calls of one API are answered.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    api: &'static str,
    calls: Family<3, Counter>,
}

/// An agent that watches, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Watching(Arc<AtomicU64>);

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Family::new(["api!", "rpc", "code!"], CALLS_MAX),
            joins: Family::new(["result"], RESULTS_MAX),
            two_holders: Counter::default(),
            oidc_reads: Family::new(["page!", "result!"], RESULTS_MAX),
            bundle_reads: Family::new(["page!", "result!"], RESULTS_MAX),
            watches: Arc::default(),
            sent: Sent::default(),
        }
    }
}

impl Metrics {
    /// Those of one API: `node` or `admin`.
    pub(crate) fn calls(&self, api: &'static str) -> Calls {
        Calls {
            api,
            calls: self.calls.clone(),
        }
    }

    /// An agent has tried to join.
    pub(crate) fn joined(&self, result: &'static str) {
        self.joins.get([result]).inc();
    }

    /// It was noticed that two have an agent's key.
    pub(crate) fn two_holders(&self) {
        self.two_holders.inc();
    }

    /// An agent begins to watch.
    pub(crate) fn watching(&self) -> Watching {
        self.watches.fetch_add(1, Relaxed);
        Watching(self.watches.clone())
    }

    /// All that is shown of a CA. It keeps the store open no longer than `registry` does, and the log than `acts`.
    pub(crate) fn site(
        &self,
        registry: &Registry,
        issuer: &Issuer,
        acts: &Acts,
        federation: &Federation,
        upstream: Option<Arc<dyn Upstream>>,
        store: PathBuf,
    ) -> Site {
        let mut to = Exposition::new("hoplite_ca");
        to.register(
            "calls",
            "Calls answered, by API, RPC and code; of a stream it is how that began",
            self.calls.clone(),
        );
        to.register("joins", "Attempts of agents to join, by result", self.joins.clone());
        to.register(
            "key_holders_doubled",
            "How often it was noticed that two have one agent's key",
            self.two_holders.clone(),
        );
        self.sent.register(&mut to);
        issuer.register(&mut to);
        to.register(
            "oidc_reads",
            "Pages of OpenID Connect discovery that were asked for: `configuration`, `keys`, `other`",
            self.oidc_reads.clone(),
        );
        to.register(
            "bundle_endpoint_reads",
            "Pages of the bundle endpoint that were asked for: `bundle`, `other`",
            self.bundle_reads.clone(),
        );
        federation.register(&mut to);
        to.sampled(
            Kind::Gauge,
            "upstream_away",
            "1 while the CA above cannot be asked: no authority is signed, and nothing is heard of its trust bundle; 0 where there is none",
            move |to| to.put(u64::from(upstream.as_ref().is_some_and(|upstream| upstream.away().is_some()))),
        );
        registry.register(&mut to);
        let watches = self.watches.clone();
        to.sampled(
            Kind::Gauge,
            "watch_streams",
            "Agents that are told of changes now",
            move |to| to.put(watches.load(Relaxed)),
        );
        to.sampled(
            Kind::Gauge,
            "store_bytes",
            "What the store takes on the disk, policy bundles included",
            move |to| to.put(bytes_below(&store, FOLDERS_DEEP)),
        );
        let (held, unwritten) = (registry.downgrade(), acts.unwritten());
        Site::new(to, move || match held.upgrade() {
            None => vec!["the CA is stopping".to_owned()],
            Some(registry) => unready(&registry, unwritten(), clock::now()),
        })
    }
}

fn unready(registry: &Registry, unwritten: Option<String>, now: SystemTime) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(error) = unwritten {
        reasons.push(format!(
            "what is done can be written down no longer, so nothing is done and nothing issued: {error}"
        ));
    }
    if let Some(error) = registry.stopped_because() {
        reasons.push(format!("nothing can be stored any more: {error}"));
    }
    if registry.is_left_behind() {
        reasons.push("the CA no longer follows its store".to_owned());
    }
    let has_ended = |(_, life): (&_, &Life)| life.not_after <= record::unix_seconds(now);
    if registry.index().authority.course().active().is_none_or(has_ended) {
        reasons.push("no authority is valid now".to_owned());
    }
    reasons
}

/// The files below a directory; what cannot be read is nothing.
fn bytes_below(directory: &Path, deep: usize) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let each = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() && deep > 0 => bytes_below(&entry.path(), deep - 1),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    });
    each.sum()
}

// === impl Calls ===

impl Calls {
    pub(crate) fn answered(&self, rpc: &str, code: &str) {
        self.calls.get([self.api, rpc, code]).inc();
    }
}

// === impl Watching ===

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
