//! What nodes are compared with, and whom is looked at.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hoplite_wire::report::Program;

use super::moments::unix;
use crate::agents::agent::Readmitted;
use crate::fleet::heard::Node;

/// A policy that was published, or an entry that was registered, so lately is on its way.
pub(super) const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// A program that runs somewhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Build {
    /// `ca`, `agent` or `proxy`.
    pub(crate) kind: String,
    pub(crate) target: String,
    pub(crate) version: String,
    pub(crate) sha256: Vec<u8>,
}

/// What nodes are compared with.
pub(crate) struct Norm<'a> {
    /// What each SPIFFE ID here begins with, as `spiffe://prod.example/`.
    pub(crate) domain: &'a str,
    pub(crate) now: SystemTime,
    pub(crate) started: SystemTime,
    pub(crate) period: Duration,
    /// The live policy: revision, manifest, when it was published.
    pub(crate) live: Option<(u64, Vec<u8>, SystemTime)>,
    /// The manifest of a revision of this CA.
    pub(crate) manifest: &'a dyn Fn(u64) -> Option<Vec<u8>>,
    /// The CA's own program.
    pub(crate) version: &'a str,
    /// What most run, by kind and target.
    pub(crate) usual: &'a BTreeMap<(String, String), Build>,
    /// Ends sooner than this are told, too.
    pub(crate) expiring_within: Duration,
    /// This CA's.
    pub(crate) epoch: u64,
    /// When the backup was begun of which this CA was restored, if it was.
    pub(crate) backup_at: Option<SystemTime>,
}

/// Whom is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) id: &'a str,
    pub(crate) node: Option<&'a Node>,
    /// Its newest certificate's end, by the CA's own record.
    pub(crate) certificate_ends: SystemTime,
    /// How it was let in without a token, if it was.
    pub(crate) readmitted: Option<&'a Readmitted>,
    /// Whether it has all that is registered under it.
    pub(crate) in_step: bool,
    /// When it was noticed that two have its key.
    pub(crate) contested: Option<SystemTime>,
    /// The epoch that it follows, if that is higher than this CA's.
    pub(crate) follows: Option<u64>,
}

/// What most run: of each kind and target the build that most have; the CA's own if it is one of several that as many have.
pub(crate) fn usual(builds: &BTreeMap<Build, u32>, own: &[u8]) -> BTreeMap<(String, String), Build> {
    let mut usual: BTreeMap<(String, String), (u32, bool, Build)> = BTreeMap::new();
    for (build, count) in builds.iter().filter(|(build, _)| !build.sha256.is_empty()) {
        let key = (build.kind.clone(), build.target.clone());
        let is_own = build.sha256 == own;
        let entry = usual.entry(key).or_insert_with(|| (*count, is_own, build.clone()));
        if (*count, is_own) > (entry.0, entry.1) {
            *entry = (*count, is_own, build.clone());
        }
    }
    usual.into_iter().map(|(key, (_, _, build))| (key, build)).collect()
}

/// The build that a report names.
pub(crate) fn build(kind: &str, program: &Program) -> Build {
    Build {
        kind: kind.to_owned(),
        target: program.target.clone(),
        version: program.version.clone(),
        sha256: program.sha256.clone(),
    }
}

// === impl Norm ===

impl Norm<'_> {
    /// Whether an end, in Unix seconds, is so near that it is told.
    pub(super) fn is_near(&self, end: i64) -> bool {
        let span = i64::try_from(self.expiring_within.as_secs()).unwrap_or(i64::MAX);
        span > 0 && end.saturating_sub(unix(self.now)) <= span
    }
}
