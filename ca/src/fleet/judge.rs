//! What is wrong with a node, by what it said last. Pure; each kind of trouble has a name that scripts may rely on.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use hoplite_wire::report::{NodeState, Point, PointPolicy, Program};

use crate::agents::agent::{Readmission, Readmitted};
use crate::fleet::heard::{Node, Standing};
use crate::record;

/// A policy that was published, or an entry that was registered, so lately is on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// The way of a report takes some of it.
const CLOCK_NOTICED: Duration = Duration::from_secs(5);

/// Certificates begin a minute before they are made.
const CLOCK_WRONG: Duration = Duration::from_secs(30);

/// For so long it is told that an agent was let in without a token.
const READMISSION_TOLD: Duration = Duration::from_secs(24 * 3600);

/// Digests and reasons in a sentence.
const DIGEST_CHARS: usize = 12;

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Worth knowing, as in the middle of an upgrade.
    Notice,
    /// Somebody has to do something.
    Wrong,
}

/// What kinds of trouble there are, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Cut,
    OtherBuild,
    OldVersion,
    Readmitted,
    Grants,
    Clock,
    WithoutSvid,
    NotInStep,
    Ends,
    PointSilent,
    PointEnded,
    PolicyBehind,
    PolicyRefused,
    PolicyStale,
    RecordsLost,
    RecordFailures,
    NotHeard,
    Silent,
    PolicyAlarm,
    DeniesAll,
    UnsignedDirectory,
    ForeignPolicy,
    ForeignIdentity,
    OtherEpoch,
    TwoHolders,
}

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: Kind,
    pub(crate) level: Level,
    /// The name of who decides; empty for the node.
    pub(crate) point: String,
    pub(crate) text: String,
}

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

/// All that is wrong, the worst first.
pub(crate) fn troubles(norm: &Norm<'_>, subject: Subject<'_>) -> Vec<Trouble> {
    let mut found = Vec::new();
    let mut node = |kind: Kind, level: Level, text: String| {
        found.push(Trouble {
            kind,
            level,
            point: String::new(),
            text,
        });
    };
    if let Some(since) = subject.contested {
        let text = format!(
            "two have its key, as was noticed at {}: neither gets another certificate; the CA's log says where they are. Join the one that is the \
             node anew with a new token",
            rfc3339(since)
        );
        node(Kind::TwoHolders, Level::Wrong, text);
    }
    if let Some(follows) = subject.follows.filter(|follows| *follows > norm.epoch) {
        let text = format!(
            "it follows epoch {follows}, and refuses this CA, which is of epoch {}: another one was restored later, or by a clock that was \
             ahead. Stop that one, or make this one again with `hoplite ca restore --after {follows}`",
            norm.epoch
        );
        node(Kind::OtherEpoch, Level::Wrong, text);
    }
    if let Some(readmitted) = subject.readmitted {
        about_readmission(norm, readmitted, &mut node);
    }
    let standing = Standing::of(subject.node, norm.period, norm.now);
    let Some(held) = subject.node else {
        let since = rfc3339(norm.started);
        let text = format!("not heard since the CA started at {since}{}", remedy(norm, subject));
        let is_young =
            norm.now.duration_since(norm.started).unwrap_or_default() <= crate::fleet::heard::patience(norm.period);
        node(
            Kind::NotHeard,
            if is_young { Level::Notice } else { Level::Wrong },
            text,
        );
        return found;
    };
    if standing == Standing::Silent {
        let silent = norm.now.duration_since(held.heard).unwrap_or_default();
        let silent = humantime::format_duration(Duration::from_secs(silent.as_secs()));
        node(
            Kind::Silent,
            Level::Wrong,
            format!("nothing was heard for {silent}{}", remedy(norm, subject)),
        );
    }
    let offset = Duration::from_millis(held.offset_ms.unsigned_abs());
    if standing == Standing::Heard && offset >= CLOCK_NOTICED {
        let level = if offset >= CLOCK_WRONG {
            Level::Wrong
        } else {
            Level::Notice
        };
        let (ahead, by) = (if held.offset_ms > 0 { "ahead of" } else { "behind" }, offset.as_secs());
        node(
            Kind::Clock,
            level,
            format!("its clock is {by} s {ahead} the CA's; keep both in step"),
        );
    }
    let report = &held.report;
    if let Some(state) = &report.state {
        about_state(norm, state, subject, &mut node);
    }
    if let Some(cut) = report
        .cut
        .filter(|cut| (cut.points, cut.fired, cut.listeners) != (0, 0, 0))
    {
        let text = format!(
            "its report is too long: {} that decide, the listeners of {} and the policies of {} are left out",
            cut.points, cut.listeners, cut.fired
        );
        node(Kind::Cut, Level::Notice, text);
    }
    let program = report.about.as_ref().and_then(|about| about.program.as_ref());
    if let Some(program) = program {
        about_program(norm, "agent", program, &mut node);
    }
    for point in &report.points {
        about_point(norm, point, &mut found);
    }
    found.sort_by(|a, b| {
        (b.level, b.kind)
            .cmp(&(a.level, a.kind))
            .then_with(|| a.point.cmp(&b.point))
    });
    found
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

fn remedy(norm: &Norm<'_>, subject: Subject<'_>) -> String {
    let id = subject.id;
    if subject.certificate_ends <= norm.now {
        format!(
            ", and its certificate has ended: started again it comes back by the key of it, within `reattest_within`, and joins anew after that; \
             if it is gone, `hoplite agent evict {id}`"
        )
    } else {
        format!("; is it up, and does it reach the CA? If it is gone: `hoplite agent evict {id}`")
    }
}

fn about_state(norm: &Norm<'_>, state: &NodeState, subject: Subject<'_>, node: &mut impl FnMut(Kind, Level, String)) {
    if !subject.in_step {
        let since = subject.node.and_then(|held| held.behind_since);
        let lasts = since.is_some_and(|since| norm.now.duration_since(since).unwrap_or_default() > ON_ITS_WAY);
        let level = if lasts { Level::Wrong } else { Level::Notice };
        let text = "it does not have all that is registered under it yet; its log says why if that lasts";
        node(Kind::NotInStep, level, text.to_owned());
    }
    if state.entries_without_svid > 0 {
        let text = format!(
            "{} of {} entries have no SVID; the agent's log says why",
            state.entries_without_svid, state.entries
        );
        node(Kind::WithoutSvid, Level::Wrong, text);
    }
    about_svid(norm, state.svid_not_before_unix, state.svid_not_after_unix, node);
    if state.authority_not_after_unix > 0 && within(norm, state.authority_not_after_unix) {
        let text = format!(
            "an authority that it trusts ends at {}",
            moment(state.authority_not_after_unix)
        );
        node(Kind::Ends, Level::Notice, text);
    }
}

/// SVIDs are renewed by themselves, at half of their lives: one is worth a word only when that did not happen.
fn about_svid(norm: &Norm<'_>, begins: i64, ends: i64, tell: &mut impl FnMut(Kind, Level, String)) {
    let left = ends.saturating_sub(unix(norm.now));
    let text = match (ends, left) {
        (..=0, _) => return,
        (_, ..=0) => format!("its SVID has ended at {}; the agent's log says why", moment(ends)),
        _ if left < ends.saturating_sub(begins) / 4 => format!(
            "its SVID ends at {} and should have been renewed at half of its life; the agent's log says why",
            moment(ends)
        ),
        _ => return,
    };
    tell(Kind::Ends, Level::Wrong, text);
}

/// Somebody should know that it was let in, and ask whether it is the same machine.
fn about_readmission(norm: &Norm<'_>, readmitted: &Readmitted, node: &mut impl FnMut(Kind, Level, String)) {
    let at = record::from_unix_seconds(readmitted.at);
    if norm.now.duration_since(at).unwrap_or_default() > READMISSION_TOLD {
        return;
    }
    let how = match readmitted.how {
        Readmission::Adopted => "by a certificate of which the restored CA knew nothing",
        Readmission::Reattested => "by the key of a certificate that had ended",
    };
    let times = match readmitted.times {
        0 | 1 => String::new(),
        times => format!(", {times} times so far"),
    };
    let text = format!("it was let in at {} without a token, {how}{times}", rfc3339(at));
    node(Kind::Readmitted, Level::Notice, text);
}

fn about_program(norm: &Norm<'_>, kind: &str, program: &Program, tell: &mut impl FnMut(Kind, Level, String)) {
    if is_older(&program.version, norm.version) {
        let text = format!(
            "runs version {}, and the CA {}; {}",
            program.version,
            norm.version,
            if kind == "agent" {
                "upgrade the agent"
            } else {
                "upgrade it"
            }
        );
        return tell(Kind::OldVersion, Level::Notice, text);
    }
    let usual = norm.usual.get(&(kind.to_owned(), program.target.clone()));
    if let Some(usual) = usual.filter(|usual| !program.sha256.is_empty() && usual.sha256 != program.sha256) {
        let text = format!(
            "runs another build of {} ({}) than most ({} of {})",
            program.version,
            short(&program.sha256),
            short(&usual.sha256),
            usual.version
        );
        tell(Kind::OtherBuild, Level::Notice, text);
    }
}

fn about_point(norm: &Norm<'_>, point: &Point, found: &mut Vec<Trouble>) {
    let about = point.about.clone().unwrap_or_default();
    let name = if about.name.is_empty() {
        point.key.clone()
    } else {
        about.name.clone()
    };
    let mut tell = |kind: Kind, level: Level, text: String| {
        found.push(Trouble {
            kind,
            level,
            point: name.clone(),
            text,
        });
    };
    let state = point.state.unwrap_or_default();
    if state.ended_unix > 0 {
        let text = format!("its process ended at {} without a word", moment(state.ended_unix));
        return tell(Kind::PointEnded, Level::Wrong, text); // what it said before is over
    }
    if state.silent_since_unix > 0 {
        let text = format!(
            "process {} runs and has said nothing since {}",
            state.pid,
            moment(state.silent_since_unix)
        );
        tell(Kind::PointSilent, Level::Wrong, text);
    }
    if !about.spiffe_id.is_empty() && !about.spiffe_id.starts_with(norm.domain) {
        let text = format!(
            "says that it is `{}`, whom this trust domain does not vouch for; what it says of policy is measured by this CA's all the same",
            about.spiffe_id
        );
        tell(Kind::ForeignIdentity, Level::Wrong, text);
    }
    about_svid(norm, state.svid_not_before_unix, state.svid_not_after_unix, &mut tell);
    if let Some(policy) = &point.policy {
        about_policy(norm, policy, &mut tell);
    }
    if let Some(counters) = &point.counters {
        if counters.record_failures > 0 {
            let text = format!(
                "{} requests were refused since its start because their record could not be written",
                counters.record_failures
            );
            tell(Kind::RecordFailures, Level::Wrong, text);
        }
        if counters.records_lost > 0 {
            let text = format!(
                "{} records were missing from its decision log when it started; `hoplite audit verify` has the findings",
                counters.records_lost
            );
            tell(Kind::RecordsLost, Level::Wrong, text);
        }
    }
    if let Some(program) = &about.program {
        about_program(norm, &about.kind, program, &mut tell);
    }
}

fn about_policy(norm: &Norm<'_>, policy: &PointPolicy, tell: &mut impl FnMut(Kind, Level, String)) {
    if !policy.denies_all.is_empty() {
        tell(
            Kind::DeniesAll,
            Level::Wrong,
            format!("denies everything: {}", policy.denies_all),
        );
    }
    for alarm in &policy.alarms {
        tell(Kind::PolicyAlarm, Level::Wrong, alarm.clone());
    }
    if let Some(fault) = policy.faults.first() {
        let more = match policy.faults.len() {
            1 => String::new(),
            all => format!(" (and {} more)", all - 1),
        };
        tell(
            Kind::PolicyRefused,
            Level::Wrong,
            format!("refused what is new: {fault}{more}"),
        );
    }
    if policy.grants > 0 {
        let text = match policy.grants {
            1 => "BREAK-GLASS: a grant is in force".to_owned(),
            all => format!("BREAK-GLASS: {all} grants are in force"),
        };
        tell(Kind::Grants, Level::Notice, text);
    }
    if policy.expires_unix > 0 && policy.expires_unix <= unix(norm.now) {
        let text = format!(
            "its policy has expired at {}; publish it anew",
            moment(policy.expires_unix)
        );
        tell(Kind::PolicyStale, Level::Wrong, text);
    } else if policy.expires_unix > 0 && within(norm, policy.expires_unix) {
        tell(
            Kind::Ends,
            Level::Notice,
            format!("its policy expires at {}", moment(policy.expires_unix)),
        );
    }
    match (policy.source.as_str(), &norm.live) {
        ("directory", Some((live, ..))) => {
            let text = format!("decides by an unsigned directory on its node, and revision {live} is in force");
            tell(Kind::UnsignedDirectory, Level::Wrong, text);
        }
        ("bundle", live) => about_bundle(norm, policy, live.as_ref(), tell),
        _ => {}
    }
}

fn about_bundle(
    norm: &Norm<'_>,
    policy: &PointPolicy,
    live: Option<&(u64, Vec<u8>, SystemTime)>,
    tell: &mut impl FnMut(Kind, Level, String),
) {
    let revision = policy.revision;
    match (norm.manifest)(revision) {
        None => {
            let since = match norm.backup_at {
                Some(at) if norm.live.as_ref().is_none_or(|(live, ..)| revision > *live) => format!(
                    ": it was restored from a backup of {}, and no node goes back; publish the newest policies with `hoplite policy publish --above {revision}`",
                    rfc3339(at)
                ),
                _ => String::new(),
            };
            let text = format!("enforces revision {revision}, which this CA never published{since}");
            return tell(Kind::ForeignPolicy, Level::Wrong, text);
        }
        Some(manifest) if manifest != policy.manifest_sha256 => {
            let text = format!(
                "enforces another revision {revision} ({}) than this CA published ({})",
                short(&policy.manifest_sha256),
                short(&manifest)
            );
            return tell(Kind::ForeignPolicy, Level::Wrong, text);
        }
        Some(_) => {}
    }
    if let Some((live, _, published)) = live.filter(|(live, ..)| *live > revision) {
        let lately = norm.now.duration_since(*published).unwrap_or_default() <= ON_ITS_WAY;
        let level = if lately { Level::Notice } else { Level::Wrong };
        let text = format!(
            "enforces revision {revision}, and {live} is in force since {}",
            rfc3339(*published)
        );
        tell(Kind::PolicyBehind, level, text);
    }
}

fn within(norm: &Norm<'_>, end: i64) -> bool {
    let span = i64::try_from(norm.expiring_within.as_secs()).unwrap_or(i64::MAX);
    span > 0 && end.saturating_sub(unix(norm.now)) <= span
}

/// Whether one version is before another; one that cannot be read is not.
fn is_older(version: &str, than: &str) -> bool {
    let parts = |text: &str| -> Option<Vec<u64>> {
        let core = text.split(['-', '+']).next()?;
        core.split('.').map(|part| part.parse().ok()).collect()
    };
    matches!((parts(version), parts(than)), (Some(version), Some(than)) if version < than)
}

fn short(digest: &[u8]) -> String {
    let hex = HEXLOWER.encode(digest);
    hex.get(..DIGEST_CHARS).unwrap_or(&hex).to_owned()
}

fn unix(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Whatever a node says, this can be shown: times beyond the year 9999 cannot.
fn moment(unix: i64) -> String {
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(unix).unwrap_or_default().min(LAST);
    rfc3339(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

// === impl Kind ===

impl Kind {
    /// The name in answers and filters.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::OtherBuild => "other-build",
            Self::OldVersion => "old-version",
            Self::Readmitted => "readmitted",
            Self::Grants => "break-glass",
            Self::Clock => "clock",
            Self::WithoutSvid => "without-svid",
            Self::NotInStep => "not-in-step",
            Self::Ends => "ends",
            Self::PointSilent => "proxy-silent",
            Self::PointEnded => "proxy-ended",
            Self::PolicyBehind => "policy-behind",
            Self::PolicyRefused => "policy-refused",
            Self::PolicyStale => "policy-stale",
            Self::RecordsLost => "records-lost",
            Self::RecordFailures => "record-failures",
            Self::NotHeard => "not-heard",
            Self::Silent => "silent",
            Self::PolicyAlarm => "policy-alarm",
            Self::DeniesAll => "denies-all",
            Self::UnsignedDirectory => "unsigned-directory",
            Self::ForeignPolicy => "foreign-policy",
            Self::ForeignIdentity => "foreign-identity",
            Self::OtherEpoch => "other-epoch",
            Self::TwoHolders => "two-holders",
        }
    }
}

// === impl Level ===

impl Level {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Wrong => "wrong",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::heard::{Heard, REPORTS_BYTES_MAX};
    use hoplite_wire::report::{Cut, NodeAbout, PointAbout, PointCounters, PointState, Report};

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn program(version: &str, digest: u8) -> Option<Program> {
        Some(Program {
            version: version.into(),
            sha256: vec![digest; 32],
            target: "x".into(),
            started_at_unix: 0,
        })
    }

    /// A node on which all is well: an agent, and a proxy that enforces revision 7.
    fn good() -> Report {
        let seconds = |n: u64| i64::try_from(n).unwrap();
        Report {
            full: true,
            sequence: 1,
            sent_at_unix_ms: seconds(NOW * 1000),
            about: Some(NodeAbout {
                program: program("0.2.0", 1),
                ..NodeAbout::default()
            }),
            state: Some(NodeState {
                svid_not_before_unix: seconds(NOW - 100),
                svid_not_after_unix: seconds(NOW + 900),
                authority_not_after_unix: seconds(NOW + 100_000),
                entries: 3,
                ..NodeState::default()
            }),
            points: vec![Point {
                key: "p1".into(),
                about: Some(PointAbout {
                    kind: "proxy".into(),
                    name: "ledger".into(),
                    spiffe_id: "spiffe://x/ledger".into(),
                    program: program("0.2.0", 1),
                }),
                policy: Some(PointPolicy {
                    source: "bundle".into(),
                    revision: 7,
                    manifest_sha256: vec![7; 32],
                    expires_unix: seconds(NOW + 5_000),
                    ..PointPolicy::default()
                }),
                counters: Some(PointCounters::default()),
                state: Some(PointState {
                    svid_not_before_unix: seconds(NOW - 100),
                    svid_not_after_unix: seconds(NOW + 900),
                    ..PointState::default()
                }),
                ..Point::default()
            }],
            cut: Some(Cut::default()),
            ..Report::default()
        }
    }

    fn judge(report: Option<Report>, change: impl FnOnce(&mut Norm<'_>), in_step: bool) -> Vec<Trouble> {
        let mut heard = Heard::new(REPORTS_BYTES_MAX);
        if let Some(report) = report {
            heard.take("a", 1, report, at(NOW));
        }
        let manifest = |revision: u64| {
            (1..=7)
                .contains(&revision)
                .then(|| vec![u8::try_from(revision).unwrap(); 32])
        };
        let builds =
            [("agent", 1), ("proxy", 1)].map(|(kind, digest)| (build(kind, &program("0.2.0", digest).unwrap()), 2));
        let usual = usual(&builds.into(), &[1; 32]);
        let mut norm = Norm {
            domain: "spiffe://x/",
            now: at(NOW),
            started: at(NOW - 1_000),
            period: Duration::from_secs(30),
            live: Some((7, vec![7; 32], at(NOW - 60))),
            manifest: &manifest,
            version: "0.2.0",
            usual: &usual,
            expiring_within: Duration::ZERO,
            epoch: 0,
            backup_at: None,
        };
        change(&mut norm);
        let subject = Subject {
            id: "spiffe://x/hoplite/agent/a",
            node: heard.get("a"),
            certificate_ends: at(NOW + 900),
            readmitted: None,
            in_step,
            contested: None,
            follows: None,
        };
        troubles(&norm, subject)
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |change: &dyn Fn(&mut Report), kind: Kind, level: Level, part: &str| {
            let mut report = good();
            change(&mut report);
            let found = judge(Some(report), |_| (), true);
            let [trouble] = found.as_slice() else {
                panic!("{kind:?}: {found:?}")
            };
            assert_eq!((trouble.kind, trouble.level), (kind, level), "{trouble:?}");
            assert!(trouble.text.contains(part), "{trouble:?}");
        };
        assert_eq!(judge(Some(good()), |_| (), true), []);
        fn policy(report: &mut Report) -> &mut PointPolicy {
            report.points[0].policy.as_mut().unwrap()
        }
        fn state(report: &mut Report) -> &mut PointState {
            report.points[0].state.as_mut().unwrap()
        }
        use Level::{Notice, Wrong};
        for id in ["spiffe://y/ledger", "spiffe://x.y/ledger", "spiffe://x", "ledger"] {
            check(
                &|r| r.points[0].about.as_mut().unwrap().spiffe_id = id.into(),
                Kind::ForeignIdentity,
                Wrong,
                &format!("`{id}`"),
            );
        }
        check(
            &|r| policy(r).manifest_sha256 = vec![9; 32],
            Kind::ForeignPolicy,
            Wrong,
            "another revision 7 (090909090909)",
        );
        check(
            &|r| policy(r).revision = 8,
            Kind::ForeignPolicy,
            Wrong,
            "never published",
        );
        check(
            &|r| {
                policy(r).source = "directory".into();
                policy(r).revision = 0;
            },
            Kind::UnsignedDirectory,
            Wrong,
            "revision 7 is in force",
        );
        check(
            &|r| {
                policy(r).revision = 6;
                policy(r).manifest_sha256 = vec![6; 32];
            },
            Kind::PolicyBehind,
            Wrong,
            "enforces revision 6, and 7",
        );
        check(&|r| policy(r).denies_all = "why".into(), Kind::DeniesAll, Wrong, "why");
        check(
            &|r| policy(r).alarms = vec!["loud".into()],
            Kind::PolicyAlarm,
            Wrong,
            "loud",
        );
        check(
            &|r| policy(r).faults = vec!["a".into(), "b".into()],
            Kind::PolicyRefused,
            Wrong,
            "a (and 1 more)",
        );
        check(&|r| policy(r).grants = 2, Kind::Grants, Notice, "2 grants");
        check(&|r| policy(r).expires_unix = 1, Kind::PolicyStale, Wrong, "1970");
        check(&|r| state(r).ended_unix = 1, Kind::PointEnded, Wrong, "without a word");
        check(
            &|r| state(r).silent_since_unix = 1,
            Kind::PointSilent,
            Wrong,
            "said nothing",
        );
        check(&|r| state(r).svid_not_after_unix = 1, Kind::Ends, Wrong, "has ended");
        let renewed_late = i64::try_from(NOW).unwrap() + 20;
        check(
            &|r| state(r).svid_not_after_unix = renewed_late,
            Kind::Ends,
            Wrong,
            "should have been renewed",
        );
        let counters = |r: &mut Report, change: fn(&mut PointCounters)| change(r.points[0].counters.as_mut().unwrap());
        check(
            &|r| counters(r, |c| c.record_failures = 3),
            Kind::RecordFailures,
            Wrong,
            "3 requests",
        );
        check(
            &|r| counters(r, |c| c.records_lost = 3),
            Kind::RecordsLost,
            Wrong,
            "3 records",
        );
        check(
            &|r| r.points[0].about.as_mut().unwrap().program = program("0.1.9", 1),
            Kind::OldVersion,
            Notice,
            "0.1.9",
        );
        check(
            &|r| r.points[0].about.as_mut().unwrap().program = program("0.2.0", 2),
            Kind::OtherBuild,
            Notice,
            "another build of 0.2.0 (020202020202)",
        );
        check(
            &|r| r.about.as_mut().unwrap().program = program("0.2.0", 3),
            Kind::OtherBuild,
            Notice,
            "most",
        );
        check(&|r| r.sent_at_unix_ms += 6_000, Kind::Clock, Notice, "6 s ahead of");
        check(&|r| r.sent_at_unix_ms -= 60_000, Kind::Clock, Wrong, "60 s behind");
        check(
            &|r| r.state.as_mut().unwrap().entries_without_svid = 2,
            Kind::WithoutSvid,
            Wrong,
            "2 of 3",
        );
        check(
            &|r| r.state.as_mut().unwrap().svid_not_before_unix -= 1_000_000,
            Kind::Ends,
            Wrong,
            "should have been renewed",
        );
        check(
            &|r| r.cut.as_mut().unwrap().points = 4,
            Kind::Cut,
            Notice,
            "4 that decide",
        );
        // Times that nobody has.
        check(&|r| state(r).ended_unix = i64::MAX, Kind::PointEnded, Wrong, "9999");
    }

    #[test]
    fn who_is_not_there_is_named() {
        let one = |found: Vec<Trouble>| {
            assert_eq!(found.len(), 1, "{found:?}");
            found.into_iter().next().unwrap()
        };
        let silent = one(judge(Some(good()), |norm| norm.now = at(NOW + 43), true));
        assert_eq!((silent.kind, silent.level), (Kind::Silent, Level::Wrong));
        assert!(
            silent.text.starts_with("nothing was heard for 43s; is it up"),
            "{silent:?}"
        );
        let never = one(judge(None, |_| (), true));
        assert_eq!((never.kind, never.level), (Kind::NotHeard, Level::Wrong));
        assert!(
            never.text.starts_with("not heard since the CA started at 20"),
            "{never:?}"
        );
        let young = one(judge(None, |norm| norm.started = at(NOW - 3), true));
        assert_eq!(young.level, Level::Notice);
        let behind = one(judge(Some(good()), |_| (), false));
        assert_eq!(
            (behind.kind, behind.level),
            (Kind::NotInStep, Level::Notice),
            "it may be on its way"
        );
    }

    #[test]
    fn what_ends_soon_is_told_when_it_is_asked_for() {
        let ends = |within: u64| {
            let found = judge(
                Some(good()),
                |norm| norm.expiring_within = Duration::from_secs(within),
                true,
            );
            assert!(
                found.iter().all(|t| (t.kind, t.level) == (Kind::Ends, Level::Notice)),
                "{found:?}"
            );
            found.len()
        };
        assert_eq!(
            [ends(0), ends(800), ends(1_000), ends(6_000), ends(200_000)],
            [0, 0, 0, 1, 2]
        );
    }

    #[test]
    fn a_policy_on_its_way_is_no_alarm() {
        let mut report = good();
        let policy = report.points[0].policy.as_mut().unwrap();
        (policy.revision, policy.manifest_sha256) = (6, vec![6; 32]);
        let found = judge(
            Some(report),
            |norm| norm.live = Some((7, vec![7; 32], at(NOW - 2))),
            true,
        );
        assert_eq!((found[0].kind, found[0].level), (Kind::PolicyBehind, Level::Notice));
    }

    #[test]
    fn the_usual_build_is_what_most_run_and_of_equals_the_cas() {
        let build = |digest: u8| build("proxy", &program("0.2.0", digest).unwrap());
        let check = |counts: &[(u8, u32)], expected: u8| {
            let builds = counts.iter().map(|(digest, count)| (build(*digest), *count)).collect();
            let usual = usual(&builds, &[2; 32]);
            assert_eq!(usual.values().next().unwrap().sha256, [expected; 32], "{counts:?}");
        };
        check(&[(1, 5), (2, 1)], 1);
        check(&[(1, 1), (2, 1), (3, 1)], 2);
        check(&[(1, 1), (3, 2)], 3);
        assert!(is_older("0.1.9", "0.2.0") && is_older("0.9.0", "0.10.0") && !is_older("0.2.0", "0.2.0-rc1"));
        assert!(!is_older("nonsense", "0.2.0"));
    }
}
