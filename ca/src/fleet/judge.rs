//! What is wrong with a node, by what it said last. Pure: [`troubles`] compares one [`Subject`] with the [`Norm`].

mod moments;
mod norm;
mod point;
mod program;
#[cfg(test)]
mod tests;
mod trouble;

use std::time::Duration;

use hoplite_wire::report::NodeState;

pub(crate) use self::norm::{Build, Norm, Subject, build, usual};
pub(crate) use self::trouble::{Kind, Level, Trouble};

use self::moments::{moment, rfc3339};
use self::norm::ON_ITS_WAY;
use self::point::about_point;
use self::program::{about_program, about_svid};
use crate::agents::agent::{Readmission, Readmitted};
use crate::fleet::heard::Standing;
use crate::record;

/// The way of a report takes some of it.
const CLOCK_NOTICED: Duration = Duration::from_secs(5);

/// Certificates begin a minute before they are made.
const CLOCK_WRONG: Duration = Duration::from_secs(30);

/// For so long it is told that an agent was let in without a token.
const READMISSION_TOLD: Duration = Duration::from_secs(24 * 3600);

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
    if state.authority_not_after_unix > 0 && norm.is_near(state.authority_not_after_unix) {
        let text = format!(
            "an authority that it trusts ends at {}",
            moment(state.authority_not_after_unix)
        );
        node(Kind::Ends, Level::Notice, text);
    }
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
