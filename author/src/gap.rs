//! What a replay has not seen: where it says less than it seems to, and why.

use crate::possible::services;
use crate::replay::Replayed;
use hoplite_identity::ServiceName;
use hoplite_policy::Snapshot;
use std::fmt;
use std::time::SystemTime;

/// The most names in one sentence.
const NAMED_MAX: usize = 10;

/// One reason why a replay says less than it seems to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gap {
    /// Nothing could be read at all: where somebody looked, each with why there was nothing.
    NoLog(Vec<String>),
    /// Places that hold logs, or should, and could not be read, each with the reason.
    Unread(Vec<String>),
    /// No decision was recorded in the time that counts.
    NoDecision {
        /// From when on.
        since: SystemTime,
        /// The logs that were looked at.
        logs: Vec<String>,
    },
    /// There are records, and no decision could be made again.
    NothingReplayed,
    /// The log is damaged; the first finding.
    Damaged(String),
    /// So many records are of a kind or a version that this program does not know.
    Unknown(u64),
    /// So many questions cannot be asked again: their records do not have all of them.
    NotWhole(u64),
    /// Earlier decisions were left out.
    Window {
        /// From when on decisions were replayed.
        since: SystemTime,
        /// The oldest that the logs have.
        begins: SystemTime,
    },
    /// Services that the policies speak of, and of which there is neither a decision nor a log.
    Services(Vec<ServiceName>),
    /// What is in force cannot be asked.
    NotComparable(String),
}

/// What is missing in what was replayed, of what can be seen in it alone.
pub fn gaps_of(replayed: &Replayed) -> Vec<Gap> {
    let mut gaps = Vec::new();
    if !replayed.unread.is_empty() {
        gaps.push(Gap::Unread(replayed.unread.clone()));
    }
    if let Some(damage) = &replayed.damage {
        gaps.push(Gap::Damaged(damage.clone()));
    }
    if replayed.unknown > 0 {
        gaps.push(Gap::Unknown(replayed.unknown));
    }
    if replayed.not_replayable > 0 {
        gaps.push(Gap::NotWhole(replayed.not_replayable));
    }
    if replayed.records > 0 && replayed.replayed() == 0 {
        gaps.push(Gap::NothingReplayed);
    }
    gaps
}

/// The services that these sets of policies speak of and of which nothing was seen: no decision, and, as far as `has_log` knows,
/// no log that only had nothing to say.
pub fn unseen_services(sets: &[&Snapshot], replayed: &Replayed, has_log: impl Fn(&str) -> bool) -> Option<Gap> {
    let mut unseen: Vec<ServiceName> = sets.iter().flat_map(|set| services(set)).collect();
    unseen.retain(|service| !replayed.saw(service.as_str()) && !has_log(service.as_str()));
    unseen.sort();
    unseen.dedup();
    (!unseen.is_empty()).then_some(Gap::Services(unseen))
}

// === impl Gap ===

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_seconds;
        match self {
            Self::NoLog(looked) => {
                write!(
                    f,
                    "there is no decision log to replay ({}); --audit says where they are",
                    listed(looked, "; ")
                )
            }
            Self::Unread(unread) => write!(f, "logs cannot be read ({})", listed(unread, "; ")),
            Self::NoDecision { since, logs } => write!(
                f,
                "the logs have no decision since {} ({})",
                time(*since),
                listed(logs, ", ")
            ),
            Self::NothingReplayed => f.write_str("nothing is known of what would flip"),
            Self::Damaged(damage) => write!(f, "the log is damaged ({damage}), see `hoplite audit verify`"),
            Self::Unknown(count) => write!(
                f,
                "{count} records are of a kind that this version does not know, and may be decisions; a newer `hoplite` reads them"
            ),
            Self::NotWhole(count) => write!(
                f,
                "{count} decisions cannot be made again, since their records do not have all that these policies ask"
            ),
            Self::Window { since, begins } => write!(
                f,
                "only decisions since {} were replayed, and the logs go back to {}",
                time(*since),
                time(*begins)
            ),
            Self::Services(services) => write!(
                f,
                "no log of {} was among those replayed; --audit names more",
                listed(
                    &services
                        .iter()
                        .map(|service| format!("`{service}`"))
                        .collect::<Vec<_>>(),
                    ", "
                )
            ),
            Self::NotComparable(why) => write!(f, "what is in force cannot be compared: {why}"),
        }
    }
}

fn listed(names: &[String], between: &str) -> String {
    let shown = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(between);
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown}{between}and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::sources;

    #[test]
    fn what_was_not_seen_is_said() {
        let policy = "@id(\"a\") permit (principal, action, resource in Hoplite::Service::\"ledger\");";
        let set = Snapshot::compile(&sources(&[
            ("a.cedar", policy),
            ("routes.toml", "[orders]\nroutes = [\"GET /\"]"),
        ]))
        .unwrap();
        let replayed = Replayed::default();
        assert_eq!(gaps_of(&replayed), []);
        let unseen = unseen_services(&[&set], &replayed, |service| service == "orders").unwrap();
        assert_eq!(
            unseen.to_string(),
            "no log of `ledger` was among those replayed; --audit names more"
        );
        assert_eq!(unseen_services(&[&set], &replayed, |_| true), None);
        let mut holes = Replayed::default();
        holes.records = 4;
        (holes.unasked, holes.not_replayable, holes.elsewhere, holes.damaged) = (1, 1, 1, 1);
        holes.unknown = 2;
        holes.damage = Some("cut off".to_owned());
        holes.unread = vec!["`x`: denied".to_owned()];
        let said: Vec<_> = gaps_of(&holes).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "logs cannot be read (`x`: denied)",
                "the log is damaged (cut off), see `hoplite audit verify`",
                "2 records are of a kind that this version does not know, and may be decisions; a newer `hoplite` reads them",
                "1 decisions cannot be made again, since their records do not have all that these policies ask",
                "nothing is known of what would flip",
            ]
        );
    }
}
