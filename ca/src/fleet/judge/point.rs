//! What is wrong with one who decides on a node: a proxy, or the agent for other people's proxies.

use std::time::SystemTime;

use hoplite_wire::report::{Point, PointPolicy};

use super::moments::{moment, rfc3339, unix};
use super::norm::{Norm, ON_ITS_WAY};
use super::program::{about_program, about_svid, short};
use super::trouble::{Kind, Level, Trouble};

pub(super) fn about_point(norm: &Norm<'_>, point: &Point, found: &mut Vec<Trouble>) {
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
    let state = point.state.clone().unwrap_or_default();
    if state.ended_unix > 0 {
        let at = moment(state.ended_unix);
        let text = match state.failure.as_str() {
            "" => format!("its process ended at {at} without a word"),
            failure => format!("it ended at {at} with an error, and is not back: {failure}"),
        };
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
    } else if policy.expires_unix > 0 && norm.is_near(policy.expires_unix) {
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
