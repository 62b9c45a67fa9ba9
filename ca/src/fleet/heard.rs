//! What each agent said last: taken, put together, bounded and forgotten. Pure: `now` is an argument.
//!
//! A report is kept as it came, cleaned: it is a claim, and nothing is decided by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_wire::report::{Cut, Point, Report};
use hoplite_wire::reporting::{self, REPORT_BYTES_MAX};

/// All reports together, as they travel; in memory they take some three times as much. Of an agent that does not fit any more
/// only the node is kept, without those that decide there.
pub(crate) const REPORTS_BYTES_MAX: usize = 256 << 20;

/// Denials are counted by the minute.
const WINDOW: u64 = 60;

/// The newest of each agent, by SPIFFE ID.
#[derive(Debug)]
pub(crate) struct Heard {
    nodes: BTreeMap<String, Node>,
    bytes: usize,
    bytes_max: usize,
}

/// What one agent said last.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) report: Arc<Report>,
    pub(crate) heard: SystemTime,
    /// How far its clock is ahead of ours.
    pub(crate) offset_ms: i64,
    pub(crate) denials: Rate,
    /// Since when it lacks something that is registered under it, as far as somebody looked.
    pub(crate) behind_since: Option<SystemTime>,
    stream: u64,
    bytes: usize,
}

/// How often something happened lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Minutes since 1970.
    minute: u64,
    current: u64,
    previous: u64,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is in what is held.
    Whole,
    /// It says what changed, of something that is not held.
    SendFull,
    /// The same agent reports on a newer stream.
    Superseded,
}

/// Whether an agent can be believed to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Heard,
    /// Nothing came within a period and what it may be late by.
    Silent,
    /// Nothing came since this CA started.
    NotHeard,
}

/// After what time nothing heard is silence.
pub(crate) fn patience(period: Duration) -> Duration {
    period + (period / 4).max(Duration::from_secs(2))
}

// === impl Heard ===

impl Heard {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            nodes: BTreeMap::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// A message of an agent, on a stream: later streams have higher numbers.
    pub(crate) fn take(&mut self, agent: &str, stream: u64, mut news: Report, now: SystemTime) -> Taken {
        let before = self.nodes.get(agent);
        if before.is_some_and(|held| held.stream > stream) {
            return Taken::Superseded;
        }
        let follows = |held: &Node| held.stream == stream && held.report.sequence.checked_add(1) == Some(news.sequence);
        if !news.full && !before.is_some_and(follows) {
            return Taken::SendFull;
        }
        reporting::clean(&mut news);
        let offset_ms = news.sent_at_unix_ms.saturating_sub(unix_ms(now));
        let (mut report, mut denials, behind_since, known) = match self.nodes.remove(agent) {
            Some(held) => {
                self.bytes = self.bytes.saturating_sub(held.bytes);
                (held.report, held.denials, held.behind_since, true)
            }
            None => (Arc::default(), Rate::default(), None, false),
        };
        let denied_before: BTreeMap<String, u64> = match known {
            true => report
                .points
                .iter()
                .map(|point| (point.key.clone(), denied(point)))
                .collect(),
            false => BTreeMap::new(),
        };
        let held = Arc::make_mut(&mut report);
        reporting::apply(held, news);
        held.full = true;
        if reporting::length(held) > REPORT_BYTES_MAX {
            reporting::bound(held);
        }
        let mut bytes = reporting::length(held);
        if self.bytes + bytes > self.bytes_max {
            let left_out = u32::try_from(held.points.len()).unwrap_or(u32::MAX);
            let cut = held.cut.get_or_insert_with(Cut::default);
            cut.points = cut.points.saturating_add(left_out);
            held.points.clear();
            bytes = reporting::length(held);
        }
        // Of an agent that was not known, nobody knows when.
        let grown = held.points.iter().map(|point| {
            let before = denied_before.get(&point.key).copied().unwrap_or(0);
            denied(point).saturating_sub(before)
        });
        denials.add(if known { grown.sum() } else { 0 }, now);
        self.bytes += bytes;
        let node = Node {
            report,
            heard: now,
            offset_ms,
            denials,
            behind_since,
            stream,
            bytes,
        };
        self.nodes.insert(agent.to_owned(), node);
        Taken::Whole
    }

    pub(crate) fn get(&self, agent: &str) -> Option<&Node> {
        self.nodes.get(agent)
    }

    /// Forgets those that may speak no longer.
    pub(crate) fn retain(&mut self, may_speak: impl Fn(&str) -> bool) {
        let bytes = &mut self.bytes;
        self.nodes.retain(|agent, node| {
            let stays = may_speak(agent);
            if !stays {
                *bytes = bytes.saturating_sub(node.bytes);
            }
            stays
        });
    }

    /// Looks who has all that is registered under it, by the revision that it holds.
    pub(crate) fn look(&mut self, is_in_step: impl Fn(&str, u64) -> bool, now: SystemTime) {
        for (agent, node) in &mut self.nodes {
            let held = node.report.state.as_ref().map_or(0, |state| state.entries_revision);
            node.behind_since = match is_in_step(agent, held) {
                true => None,
                false => node.behind_since.or(Some(now)),
            };
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The newest trust bundle that all who are heard know, by its sequence number.
    pub(crate) fn known_bundle(&self, period: Duration, now: SystemTime) -> u64 {
        let heard = self
            .nodes
            .values()
            .filter(|node| Standing::of(Some(node), period, now) == Standing::Heard);
        let known = heard.map(|node| node.report.state.as_ref().map_or(0, |state| state.bundle_sequence));
        known.min().unwrap_or(u64::MAX)
    }

    /// How many SVIDs of workloads are under a tainted authority still, as agents say.
    pub(crate) fn svids_tainted(&self) -> u64 {
        let states = self.nodes.values().filter_map(|node| node.report.state.as_ref());
        states.map(|state| u64::from(state.svids_tainted)).sum()
    }
}

/// What a point refused, for whatever reason.
fn denied(point: &Point) -> u64 {
    let decided = point.counters.iter().flat_map(|counters| &counters.decisions);
    let denied = decided
        .filter(|decided| decided.name != "allow")
        .map(|decided| decided.count);
    denied.fold(0, u64::saturating_add)
}

/// What a point decided, and of that what it refused.
pub(crate) fn decided(point: &Point) -> (u64, u64) {
    let all = point.counters.iter().flat_map(|counters| &counters.decisions);
    let all = all.map(|decided| decided.count).fold(0, u64::saturating_add);
    (all, denied(point))
}

fn unix_ms(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

// === impl Standing ===

impl Standing {
    pub(crate) fn of(node: Option<&Node>, period: Duration, now: SystemTime) -> Self {
        match node {
            None => Self::NotHeard,
            // A clock that was set back makes nobody silent.
            Some(node) if now.duration_since(node.heard).unwrap_or_default() > patience(period) => Self::Silent,
            Some(_) => Self::Heard,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Heard => "heard",
            Self::Silent => "silent",
            Self::NotHeard => "not heard",
        }
    }
}

// === impl Rate ===

impl Rate {
    fn add(&mut self, count: u64, now: SystemTime) {
        self.turn(now);
        self.current = self.current.saturating_add(count);
    }

    /// Those of the last sixty seconds, as if those of the minute before had come evenly.
    pub(crate) fn per_minute(mut self, now: SystemTime) -> u64 {
        self.turn(now);
        let left = WINDOW - seconds(now) % WINDOW;
        let before = u128::from(self.previous) * u128::from(left) / u128::from(WINDOW);
        self.current.saturating_add(u64::try_from(before).unwrap_or(u64::MAX))
    }

    fn turn(&mut self, now: SystemTime) {
        let minute = seconds(now) / WINDOW;
        self.previous = match minute.checked_sub(self.minute) {
            Some(0) | None => return, // a clock that was set back
            Some(1) => self.current,
            Some(_) => 0,
        };
        (self.minute, self.current) = (minute, 0);
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_wire::report::{Count, NodeState, PointCounters};
    use proptest::prelude::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn point(key: &str, denied: u64) -> Point {
        Point {
            key: key.to_owned(),
            counters: Some(PointCounters {
                decisions: vec![
                    Count {
                        name: "allow".into(),
                        count: 1_000,
                    },
                    Count {
                        name: "forbid".into(),
                        count: denied,
                    },
                ],
                ..PointCounters::default()
            }),
            ..Point::default()
        }
    }

    fn report(sequence: u64, full: bool, points: Vec<Point>) -> Report {
        Report {
            sequence,
            full,
            sent_at_unix_ms: unix_ms(at(0)),
            points,
            ..Report::default()
        }
    }

    #[test]
    fn what_changed_needs_what_it_changes() {
        let mut heard = Heard::new(REPORTS_BYTES_MAX);
        let mut take = |stream, sequence, full, expected| {
            let taken = heard.take("a", stream, report(sequence, full, vec![]), at(0));
            assert_eq!(taken, expected, "{sequence} on {stream}");
        };
        take(1, 1, false, Taken::SendFull);
        take(1, 1, true, Taken::Whole);
        take(1, 2, false, Taken::Whole);
        take(1, 4, false, Taken::SendFull);
        take(1, 2, false, Taken::SendFull);
        take(1, 9, true, Taken::Whole);
        take(2, 10, false, Taken::SendFull);
        take(2, 1, true, Taken::Whole);
        take(1, 10, false, Taken::Superseded);
        take(1, 10, true, Taken::Superseded);
        take(2, 2, false, Taken::Whole);
    }

    #[test]
    fn who_says_nothing_falls_silent_and_speaks_again() {
        let mut heard = Heard::new(REPORTS_BYTES_MAX);
        let period = Duration::from_secs(30);
        let check = |heard: &Heard, now, expected| {
            assert_eq!(Standing::of(heard.get("a"), period, at(now)), expected, "{now}");
        };
        check(&heard, 0, Standing::NotHeard);
        heard.take("a", 1, report(1, true, vec![]), at(0));
        check(&heard, 0, Standing::Heard);
        check(&heard, 37, Standing::Heard);
        check(&heard, 38, Standing::Silent);
        heard.take("a", 1, report(2, false, vec![]), at(40));
        check(&heard, 40, Standing::Heard);
        check(&heard, 20, Standing::Heard);
        heard.retain(|agent| agent != "a");
        check(&heard, 41, Standing::NotHeard);
        assert_eq!(heard.bytes(), 0);
    }

    #[test]
    fn who_lacks_something_is_known_since_it_was_looked() {
        let mut heard = Heard::new(REPORTS_BYTES_MAX);
        heard.take("a", 1, report(1, true, vec![]), at(0));
        let since = |heard: &Heard| heard.get("a").unwrap().behind_since;
        heard.look(|_, _| false, at(1));
        heard.take("a", 1, report(2, false, vec![]), at(2));
        heard.look(|_, _| false, at(3));
        assert_eq!(since(&heard), Some(at(1)));
        heard.look(|_, _| true, at(4));
        assert_eq!(since(&heard), None);
    }

    #[test]
    fn how_far_a_clock_is_off() {
        let mut heard = Heard::new(REPORTS_BYTES_MAX);
        heard.take("a", 1, report(1, true, vec![]), at(90));
        assert_eq!(heard.get("a").unwrap().offset_ms, -90_000);
    }

    #[test]
    fn denials_are_of_the_last_minute_and_of_no_restart() {
        let mut heard = Heard::new(REPORTS_BYTES_MAX);
        let mut take = |sequence, now, points| {
            heard.take("a", 1, report(sequence, true, points), at(now));
            heard.get("a").unwrap().denials.per_minute(at(now))
        };
        assert_eq!(take(1, 0, vec![point("p", 500)]), 0, "nobody knows of when they are");
        assert_eq!(take(2, 20, vec![point("p", 530)]), 30);
        assert_eq!(take(3, 30, vec![point("p", 530), point("q", 4)]), 34);
        assert_eq!(
            take(4, 40, vec![point("q", 1)]),
            34,
            "a smaller number is a new process"
        );
        assert_eq!(take(5, 90, vec![point("q", 1)]), 17, "half of the minute before");
        assert_eq!(take(6, 300, vec![point("q", 1)]), 0);
    }

    #[test]
    fn the_whole_is_bounded_and_what_does_not_fit_is_said() {
        let points = |n: u64| (0..n).map(|n| point(&format!("p{n:04}"), n)).collect::<Vec<_>>();
        let one = reporting::length(&report(1, true, points(100)));
        let mut heard = Heard::new(one * 3 + 100);
        for agent in ["a", "b", "c", "d"] {
            assert_eq!(heard.take(agent, 1, report(1, true, points(100)), at(0)), Taken::Whole);
            assert!(heard.bytes() <= one * 3 + 100);
        }
        let d = &heard.get("d").unwrap().report;
        assert_eq!((d.points.len(), d.cut.unwrap().points), (0, 100));
        // One that is longer than any may be is shortened.
        let mut heard = Heard::new(REPORTS_BYTES_MAX);
        let mut long = points(1_000);
        for point in &mut long {
            point.policy = Some(hoplite_wire::report::PointPolicy {
                alarms: vec!["x".repeat(250); 16],
                ..Default::default()
            });
        }
        heard.take("a", 1, report(1, true, long), at(0));
        assert!(heard.bytes() <= REPORT_BYTES_MAX && heard.get("a").unwrap().report.cut.unwrap().points > 0);
    }

    proptest! {
        /// Whatever is lost, said twice or said in the wrong order: what is held is what the agent said last, or the agent is
        /// asked for all of it.
        #[test]
        fn what_is_held_is_what_was_said(steps in proptest::collection::vec((0_u32..5, 0_u8..4), 1..40)) {
            let mut heard = Heard::new(REPORTS_BYTES_MAX);
            let whole = |entries: u32| Report {
                state: Some(NodeState { entries, ..NodeState::default() }),
                ..report(0, true, vec![])
            };
            let (mut last, mut sequence) = (whole(0), 0_u64);
            let mut full = true;
            for (entries, fate) in steps {
                let next = whole(entries);
                let mut news = if full { next.clone() } else { reporting::difference(&last, &next) };
                sequence += 1;
                news.sequence = sequence;
                last = next;
                match fate {
                    // The CA is started again.
                    3 => heard = Heard::new(REPORTS_BYTES_MAX),
                    // The message is lost.
                    2 => { full = false; continue; }
                    _ => {}
                }
                full = heard.take("a", 1, news, at(0)) == Taken::SendFull;
                if !full {
                    let held = &heard.get("a").unwrap().report;
                    prop_assert_eq!(held.state.as_ref().map(|state| state.entries), Some(entries));
                }
            }
        }
    }
}
