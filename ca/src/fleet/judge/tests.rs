//! Each trouble alone, from a report in which all is well.

use std::time::{SystemTime, UNIX_EPOCH};

use hoplite_wire::report::{
    Cut, NodeAbout, Point, PointAbout, PointCounters, PointPolicy, PointState, Program, Report,
};

use super::program::is_older;
use super::*;
use crate::fleet::heard::{Heard, REPORTS_BYTES_MAX};

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
    let failed = |r: &mut _| {
        state(r).ended_unix = 1;
        state(r).failure = "the disk is full".to_owned();
    };
    check(
        &failed,
        Kind::PointEnded,
        Wrong,
        "with an error, and is not back: the disk is full",
    );
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
