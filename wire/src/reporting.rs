//! What of a report has changed, how that is put together again, and how long a report may be.
//!
//! Pure: agent and CA do the same with the same values. A part of a report is sent whole or not at all, so neither needs to know
//! the fields of a part: one that is newer than the other loses nothing but what the other would not understand.

use prost::Message;

use crate::report::{Count, Cut, Fired, Listeners, NodeCounters, Point, Program, Report};

/// One agent's whole report: some two hundred decision points with all they have to say.
pub const REPORT_BYTES_MAX: usize = 256 << 10;

/// What one decision point says.
pub const POINT_BYTES_MAX: usize = 64 << 10;

/// Decision points of one node.
pub const POINTS_MAX: usize = 1_024;

/// Listeners of one decision point that are listed.
pub const LISTENERS_MAX: usize = 64;

/// Ids of policies that decided, of one decision point, that are listed.
pub const FIRED_MAX: usize = 512;

/// Alarms, faults, outcomes, causes, names of signers: lists that are short by their nature.
pub const SHORT_LIST_MAX: usize = 16;

/// No counter of a process reaches this: a billion a second for ten days do not. What a node says beyond it spoils no sum.
const COUNT_MAX: u64 = 1 << 50;

/// A text of a report.
pub const TEXT_CHARS_MAX: usize = 256;

/// The part of `after` that `before` lacks. Points of both are in the order of their keys.
#[must_use]
pub fn difference(before: &Report, after: &Report) -> Report {
    let mut points = Vec::new();
    let held = |key: &str| find(&before.points, key).and_then(|at| before.points.get(at));
    for point in &after.points {
        match held(&point.key) {
            None => points.push(point.clone()),
            Some(same) if same == point => {}
            Some(held) => points.push(Point {
                key: point.key.clone(),
                about: changed(&held.about, &point.about),
                listeners: changed(&held.listeners, &point.listeners),
                policy: changed(&held.policy, &point.policy),
                counters: changed(&held.counters, &point.counters),
                fired: changed(&held.fired, &point.fired),
                state: changed(&held.state, &point.state),
            }),
        }
    }
    let is_gone = |point: &&Point| find(&after.points, &point.key).is_none();
    Report {
        full: false,
        about: changed(&before.about, &after.about),
        state: changed(&before.state, &after.state),
        counters: changed(&before.counters, &after.counters),
        points,
        gone: before
            .points
            .iter()
            .filter(is_gone)
            .map(|point| point.key.clone())
            .collect(),
        cut: changed(&before.cut, &after.cut),
        sequence: after.sequence,
        sent_at_unix_ms: after.sent_at_unix_ms,
    }
}

/// Puts what changed into what is held, or all that is new in its place.
pub fn apply(held: &mut Report, news: Report) {
    if news.full {
        *held = news;
        held.points.sort_by(|a, b| a.key.cmp(&b.key));
        held.points.dedup_by(|a, b| a.key == b.key);
        held.gone.clear();
        return;
    }
    held.sequence = news.sequence;
    held.sent_at_unix_ms = news.sent_at_unix_ms;
    replace(&mut held.about, news.about);
    replace(&mut held.state, news.state);
    replace(&mut held.counters, news.counters);
    replace(&mut held.cut, news.cut);
    for key in &news.gone {
        if let Some(at) = find(&held.points, key) {
            held.points.remove(at);
        }
    }
    for point in news.points {
        match held.points.binary_search_by(|held| held.key.cmp(&point.key)) {
            Ok(at) => {
                if let Some(held) = held.points.get_mut(at) {
                    replace(&mut held.about, point.about);
                    replace(&mut held.listeners, point.listeners);
                    replace(&mut held.policy, point.policy);
                    replace(&mut held.counters, point.counters);
                    replace(&mut held.fired, point.fired);
                    replace(&mut held.state, point.state);
                }
            }
            Err(at) => held.points.insert(at, point),
        }
    }
}

/// How many bytes it takes on the wire, which is also what its holder counts.
#[must_use]
pub fn length(report: &Report) -> usize {
    report.encoded_len()
}

/// The same of one decision point.
#[must_use]
pub fn point_length(point: &Point) -> usize {
    point.encoded_len()
}

/// Whether people should hear of it before the next period: of anything but numbers that only grow.
#[must_use]
pub fn is_urgent(news: &Report) -> bool {
    let is_urgent = |point: &Point| {
        point.about.is_some() || point.listeners.is_some() || point.policy.is_some() || point.state.is_some()
    };
    news.about.is_some()
        || news.state.is_some()
        || news.cut.is_some()
        || !news.gone.is_empty()
        || news.points.iter().any(is_urgent)
}

/// Makes a report as short as it has to be, and says in it what was left out. What is shown to people is first cut of what is
/// listed, last of whom there is.
pub fn bound(report: &mut Report) {
    clean(report);
    let mut cut = Cut::default();
    if report.points.len() > POINTS_MAX {
        cut.points = count(report.points.len() - POINTS_MAX);
        report.points.truncate(POINTS_MAX);
    }
    report.cut = Some(cut);
    if report.encoded_len() <= REPORT_BYTES_MAX {
        return;
    }
    for point in &mut report.points {
        if let Some(fired) = point.fired.as_mut().filter(|fired| !fired.ids.is_empty()) {
            fired.left_out = fired.left_out.saturating_add(count(fired.ids.len()));
            fired.ids.clear();
            cut.fired += 1;
        }
    }
    if report.encoded_len() > REPORT_BYTES_MAX {
        for point in &mut report.points {
            if let Some(listeners) = point.listeners.as_mut().filter(|all| !all.listeners.is_empty()) {
                listeners.left_out = listeners.left_out.saturating_add(count(listeners.listeners.len()));
                listeners.listeners.clear();
                cut.listeners += 1;
            }
        }
    }
    // Room for what is said of it.
    let room = REPORT_BYTES_MAX - 64;
    let mut length = report.encoded_len();
    while length > room {
        let Some(point) = report.points.pop() else { break };
        length = length.saturating_sub(point.encoded_len() + 4);
        cut.points = cut.points.saturating_add(1);
    }
    report.cut = Some(cut);
}

/// Leaves nothing in a report that may not stand on a terminal, and bounds each list, text and number.
pub fn clean(report: &mut Report) {
    if let Some(about) = &mut report.about {
        text(&mut about.kernel);
        text(&mut about.os);
        program(&mut about.program);
    }
    if let Some(state) = &mut report.state {
        digest(&mut state.live_manifest_sha256);
        digest(&mut state.entries_digest);
    }
    if let Some(NodeCounters { refusals }) = &mut report.counters {
        counts(refusals);
    }
    report.gone.truncate(POINTS_MAX);
    for point in &mut report.points {
        clean_point(point);
    }
}

/// The same of one decision point.
pub fn clean_point(point: &mut Point) {
    text(&mut point.key);
    if let Some(state) = &mut point.state {
        text(&mut state.failure);
    }
    if let Some(about) = &mut point.about {
        text(&mut about.kind);
        text(&mut about.name);
        text(&mut about.spiffe_id);
        program(&mut about.program);
    }
    if let Some(Listeners { listeners, left_out }) = &mut point.listeners {
        *left_out = left_out.saturating_add(shorten(listeners, LISTENERS_MAX));
        for listener in listeners {
            for part in [
                &mut listener.kind,
                &mut listener.name,
                &mut listener.address,
                &mut listener.to,
                &mut listener.expect,
            ] {
                text(part);
            }
        }
    }
    if let Some(policy) = &mut point.policy {
        for part in [
            &mut policy.source,
            &mut policy.snapshot,
            &mut policy.denies_all,
            &mut policy.shadow,
        ] {
            text(part);
        }
        digest(&mut policy.manifest_sha256);
        for list in [&mut policy.alarms, &mut policy.faults, &mut policy.signed_by] {
            list.truncate(SHORT_LIST_MAX);
            list.iter_mut().for_each(text);
        }
    }
    if let Some(counters) = &mut point.counters {
        counts(&mut counters.decisions);
        for number in [
            &mut counters.records,
            &mut counters.record_failures,
            &mut counters.rolled_up,
            &mut counters.records_lost,
            &mut counters.connections,
        ] {
            *number = (*number).min(COUNT_MAX);
        }
    }
    if let Some(state) = &mut point.state {
        state.pid = state.pid.max(0);
    }
    if let Some(Fired { ids, left_out }) = &mut point.fired {
        *left_out = left_out.saturating_add(shorten(ids, FIRED_MAX));
        ids.iter_mut().for_each(text);
    }
}

/// A text that can stand on a terminal: no control character, nothing that turns the direction of reading.
pub fn text(text: &mut String) {
    let is_bad = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.len() > TEXT_CHARS_MAX || text.chars().any(is_bad) {
        *text = text.chars().filter(|c| !is_bad(*c)).take(TEXT_CHARS_MAX).collect();
    }
}

fn program(program: &mut Option<Program>) {
    if let Some(program) = program {
        text(&mut program.version);
        text(&mut program.target);
        digest(&mut program.sha256);
    }
}

fn digest(bytes: &mut Vec<u8>) {
    bytes.truncate(32);
}

fn counts(counts: &mut Vec<Count>) {
    counts.truncate(SHORT_LIST_MAX);
    for count in counts {
        text(&mut count.name);
        count.count = count.count.min(COUNT_MAX);
    }
}

/// How many were too many.
fn shorten<T>(list: &mut Vec<T>, max: usize) -> u32 {
    let beyond = list.len().saturating_sub(max);
    list.truncate(max);
    count(beyond)
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

fn find(points: &[Point], key: &str) -> Option<usize> {
    points.binary_search_by(|point| point.key.as_str().cmp(key)).ok()
}

fn changed<T: Clone + PartialEq>(before: &Option<T>, after: &Option<T>) -> Option<T> {
    after.as_ref().filter(|after| before.as_ref() != Some(after)).cloned()
}

fn replace<T>(held: &mut Option<T>, news: Option<T>) {
    if news.is_some() {
        *held = news;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Listener, NodeAbout, NodeState, PointAbout, PointCounters, PointPolicy, PointState};
    use proptest::prelude::*;

    #[test]
    fn no_number_of_a_node_spoils_a_sum() {
        let mut report = Report {
            points: vec![Point {
                counters: Some(PointCounters {
                    decisions: vec![Count {
                        name: "allow".into(),
                        count: u64::MAX,
                    }],
                    records: u64::MAX,
                    ..PointCounters::default()
                }),
                state: Some(PointState {
                    pid: -1,
                    ..PointState::default()
                }),
                ..Point::default()
            }],
            ..Report::default()
        };
        clean(&mut report);
        let point = &report.points[0];
        let counters = point.counters.as_ref().unwrap();
        assert_eq!((counters.decisions[0].count, counters.records), (COUNT_MAX, COUNT_MAX));
        assert_eq!(point.state.as_ref().unwrap().pid, 0);
    }

    fn point(key: u8, parts: [u8; 6]) -> Point {
        let [about, listeners, policy, counters, fired, state] = parts;
        let name = |n: u8| format!("n{n}");
        Point {
            key: format!("p{key}"),
            about: Some(PointAbout {
                name: name(about),
                ..PointAbout::default()
            }),
            listeners: Some(Listeners {
                left_out: listeners.into(),
                ..Listeners::default()
            }),
            policy: Some(PointPolicy {
                revision: policy.into(),
                ..PointPolicy::default()
            }),
            counters: Some(PointCounters {
                records: counters.into(),
                ..PointCounters::default()
            }),
            fired: Some(Fired {
                ids: vec![name(fired)],
                left_out: 0,
            }),
            state: Some(PointState {
                pid: state.into(),
                ..PointState::default()
            }),
        }
    }

    fn report(about: u8, state: u8, counters: u8, points: std::collections::BTreeMap<u8, [u8; 6]>) -> Report {
        Report {
            full: true,
            about: Some(NodeAbout {
                os: about.to_string(),
                ..NodeAbout::default()
            }),
            state: Some(NodeState {
                entries: state.into(),
                ..NodeState::default()
            }),
            counters: Some(NodeCounters {
                refusals: vec![Count {
                    name: "a".into(),
                    count: counters.into(),
                }],
            }),
            points: points.into_iter().map(|(key, parts)| point(key, parts)).collect(),
            cut: Some(Cut::default()),
            ..Report::default()
        }
    }

    fn reports() -> impl Strategy<Value = Report> {
        let points = proptest::collection::btree_map(0_u8..6, proptest::array::uniform6(0_u8..3), 0..5);
        (0_u8..3, 0_u8..3, 0_u8..3, points)
            .prop_map(|(about, state, counters, points)| report(about, state, counters, points))
    }

    proptest! {
        /// However a report changes: what is put together of its differences is the whole of it, and nothing is sent twice.
        #[test]
        fn differences_add_up_to_the_whole(steps in proptest::collection::vec(reports(), 1..12)) {
            let (mut held, mut last) = (Report::default(), Report::default());
            for (n, next) in steps.into_iter().enumerate() {
                let news = if n == 0 { next.clone() } else { difference(&last, &next) };
                let same = difference(&next, &next);
                prop_assert_eq!(same.encoded_len(), 0, "nothing has changed: {:?}", same);
                // Over the wire.
                apply(&mut held, Report::decode(news.encode_to_vec().as_slice()).unwrap());
                prop_assert_eq!(&held, &next);
                last = next;
            }
        }
    }

    #[test]
    fn what_only_grows_can_wait() {
        let before = report(0, 0, 0, [(1, [0; 6])].into());
        let check = |after: Report, urgent: bool| {
            let news = difference(&before, &after);
            assert!(news.encoded_len() > 0);
            assert_eq!(is_urgent(&news), urgent, "{news:?}");
        };
        check(report(0, 0, 1, [(1, [0; 6])].into()), false);
        check(report(0, 0, 0, [(1, [0, 0, 0, 1, 1, 0])].into()), false);
        check(report(0, 1, 0, [(1, [0; 6])].into()), true);
        check(report(0, 0, 0, [(1, [0, 0, 1, 0, 0, 0])].into()), true);
        check(report(0, 0, 0, [(1, [0, 0, 0, 0, 0, 1])].into()), true);
        check(report(0, 0, 0, [].into()), true);
        check(report(0, 0, 0, [(1, [0; 6]), (2, [0; 6])].into()), true);
    }

    #[test]
    fn whatever_is_said_is_short_and_what_was_cut_is_said() {
        let mut hostile = report(0, 0, 0, [].into());
        let long = "\u{1b}[31m\u{202e}evil\n".repeat(200);
        for n in 0..3_000_u32 {
            hostile.points.push(Point {
                key: format!("p{n:05}"),
                about: Some(PointAbout {
                    name: long.clone(),
                    ..PointAbout::default()
                }),
                listeners: Some(Listeners {
                    listeners: vec![
                        Listener {
                            name: long.clone(),
                            ..Listener::default()
                        };
                        80
                    ],
                    left_out: 0,
                }),
                fired: Some(Fired {
                    ids: vec![long.clone(); 10],
                    left_out: u32::MAX,
                }),
                ..Point::default()
            });
        }
        bound(&mut hostile);
        assert!(hostile.encoded_len() <= REPORT_BYTES_MAX, "{}", hostile.encoded_len());
        let cut = hostile.cut.unwrap();
        assert_eq!(cut.points as usize + hostile.points.len(), 3_000);
        assert!(cut.listeners > 0 && cut.fired > 0, "{cut:?}");
        let name = &hostile.points[0].about.as_ref().unwrap().name;
        assert!(
            name.chars().count() <= TEXT_CHARS_MAX && name.starts_with("[31mevil[31m"),
            "{name}"
        );
        let listeners = hostile.points[0].listeners.as_ref().unwrap();
        assert_eq!((listeners.listeners.len(), listeners.left_out), (0, 80));

        // What fits is left as it is.
        let mut honest = report(1, 1, 1, [(1, [1; 6])].into());
        let before = honest.clone();
        bound(&mut honest);
        assert_eq!(honest, before);
    }

    /// An older part reads what a newer one sends, and the other way round.
    #[test]
    fn fields_that_nobody_knows_are_skipped() {
        let known = report(1, 1, 1, [(1, [1; 6])].into());
        let mut bytes = known.encode_to_vec();
        // Field 99, a text; field 100, a number.
        bytes.extend([0x9a, 0x06, 3, b'n', b'e', b'w', 0xa0, 0x06, 7]);
        assert_eq!(Report::decode(bytes.as_slice()).unwrap(), known);
        let old = Report::decode([0x08, 1, 0x10, 1].as_slice()).unwrap();
        let mut held = Report::default();
        apply(&mut held, old);
        assert!(held.about.is_none() && held.points.is_empty());
    }
}
