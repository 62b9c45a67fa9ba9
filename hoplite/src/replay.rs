//! Replays decision logs from the disk: one thread reads, others decide again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::SystemTime;

use hoplite_audit::{Query, ReadError, Record, read_log};
use hoplite_author::replay::{Comparison, Replayed};

/// Threads that decide; one more reads.
const DECIDERS: usize = 2;
/// Records handed over at once, and how many such piles may wait: enough that nobody waits for the other.
const PILE: usize = 512;
const PILES: usize = 16;

/// Decides every record of these logs since a moment once more. `progress` is told of each pile: how many records, in
/// which log, and the time of the last one. A log that cannot be read is named in what comes of it.
pub(crate) fn replay(
    logs: &[PathBuf],
    since: Option<SystemTime>,
    comparison: &Comparison<'_>,
    mut progress: impl FnMut(usize, usize, SystemTime),
) -> Replayed {
    let query = Query {
        since,
        ..Query::default()
    };
    let (send, receive) = sync_channel::<Vec<Record>>(PILES);
    let receive = Mutex::new(receive);
    let (mut total, found) = thread::scope(|scope| {
        let deciders: Vec<_> = (0..DECIDERS)
            .map(|_| scope.spawn(|| decide_all(&receive, comparison)))
            .collect();
        let mut found = Replayed::default();
        for (number, log) in logs.iter().enumerate() {
            let handed_over = |pile: &mut Vec<Record>| hand_over(pile, number, &send, &mut progress);
            if let Err(error) = read(log, &query, &mut found, handed_over) {
                found.unread.push(error.to_string());
            }
        }
        drop(send);
        let mut total = Replayed::default();
        for decider in deciders {
            match decider.join() {
                Ok(part) => total.add(part, comparison.examples),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (total, found)
    });
    total.add(found, comparison.examples);
    total
}

/// Hands over the records of one log, pile by pile, and notes what it cannot read of it.
fn read(
    log: &Path,
    query: &Query,
    found: &mut Replayed,
    mut hand_over: impl FnMut(&mut Vec<Record>),
) -> Result<(), ReadError> {
    let mut pile = Vec::with_capacity(PILE);
    let mut decisions = read_log(log, query)?;
    let mut failed = None;
    for record in decisions.by_ref() {
        match record {
            Ok(record) => pile.push(record),
            Err(error @ (ReadError::Damaged { .. } | ReadError::OtherFormat { .. })) => {
                found.damaged += 1;
                found.damage.get_or_insert_with(|| error.to_string());
            }
            Err(error @ ReadError::Io { .. }) => {
                failed = Some(error);
                break;
            }
        }
        if pile.len() == PILE {
            hand_over(&mut pile);
        }
    }
    hand_over(&mut pile);
    found.unknown += decisions.unknown();
    failed.map_or(Ok(()), Err)
}

/// When the oldest decision was made that these logs still have, as far as they can be read.
pub(crate) fn oldest(logs: &[PathBuf]) -> Option<SystemTime> {
    let first = |log: &PathBuf| {
        let mut decisions = read_log(log, &Query::default()).ok()?;
        decisions.find_map(Result::ok).map(|record| record.at)
    };
    logs.iter().filter_map(first).min()
}

fn hand_over(
    pile: &mut Vec<Record>,
    log: usize,
    send: &SyncSender<Vec<Record>>,
    progress: &mut impl FnMut(usize, usize, SystemTime),
) {
    let Some(last) = pile.last() else { return };
    progress(pile.len(), log, last.at);
    // The deciders leave only when this end is gone.
    let _ = send.send(std::mem::replace(pile, Vec::with_capacity(PILE)));
}

fn decide_all(piles: &Mutex<Receiver<Vec<Record>>>, comparison: &Comparison<'_>) -> Replayed {
    let mut replayed = Replayed::default();
    let mut transports = HashMap::new();
    loop {
        // The lock is held while waiting: the others have nothing to take either.
        let pile = piles.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(pile) = pile else { return replayed };
        for record in &pile {
            replayed.decide_again(record, comparison, &mut transports);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_audit::{Class, Options, Outcome, Phase, Recorder};
    use hoplite_author::replay::Baseline;
    use hoplite_identity::TrustDomain;
    use hoplite_policy::{Snapshot, Source};
    use std::time::{Duration, Instant, UNIX_EPOCH};

    const ROUTES: &str = "[ledger]\nroutes = [\"GET /accounts/{id}\", \"POST /entries\"]";
    const NEW: &str = r#"
@id("read") permit(principal in Hoplite::Path::"x/web", action in Hoplite::Action::"read", resource in Hoplite::Service::"ledger")
  unless { context.conn.src == ip("10.0.0.9") };
@id("db") permit(principal in Hoplite::Path::"x/web", action == Hoplite::Action::"connect", resource == Hoplite::Service::"db");
@id("stop") forbid(principal == Hoplite::Workload::"spiffe://x/web/old", action, resource);
"#;

    fn snapshot() -> Snapshot {
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        Snapshot::compile(&[source("a.cedar", NEW), source("routes.toml", ROUTES)]).unwrap()
    }

    fn record(phase: Phase, outcome: Outcome, who: &str, what: &str) -> Record {
        let (action, rest) = what.split_once(' ').unwrap();
        let (service, path) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut record = Record::new(phase, outcome, service, SystemTime::now());
        record.principal = Some(format!("spiffe://x/{who}"));
        record.source = Some("10.0.0.1:4711".to_owned());
        record.action = action.to_owned();
        if phase == Phase::Request {
            record.host = Some("ledger".to_owned());
            record.path = Some(path.to_owned());
        }
        record
    }

    fn compared<'a>(before: Baseline<'a>, after: &'a Snapshot) -> Comparison<'a> {
        Comparison {
            before,
            after,
            trust_domain: None,
            examples: 2,
        }
    }

    /// Writes the records into a log and replays it.
    fn replayed(mut records: Vec<Record>, comparison: &Comparison<'_>) -> Replayed {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = Recorder::open(directory.path(), "ledger", Options::default()).unwrap();
        for (second, record) in records.iter_mut().enumerate() {
            record.at = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second as u64);
            recorder.append(record, Class::Full).unwrap();
        }
        drop(recorder);
        let mut told = 0;
        let logs = [directory.path().to_owned()];
        let replayed = replay(&logs, None, comparison, |records, _, _| told += records);
        assert_eq!(told as u64, replayed.records);
        replayed
    }

    #[test]
    fn flips_are_grouped_by_principal_and_route() {
        use Outcome::{Allow, Error, Forbid, Malformed, NoPermit, Unauthenticated};
        let mut by_grant = record(Phase::Request, Allow, "ops", "GET ledger /accounts/7");
        by_grant.determining = vec!["break-glass/inc-1".to_owned()];
        let mut denied = record(Phase::Request, Allow, "web/a", "POST ledger /entries");
        denied.determining = vec!["write".to_owned()];
        let mut far = record(Phase::Request, Allow, "web/a", "GET ledger /accounts/7");
        far.source = Some("[::ffff:10.0.0.9]:1".to_owned());
        // Another policy permitted it as well.
        let mut also_by_grant = record(Phase::Request, Allow, "pay", "GET ledger /accounts/7");
        also_by_grant.determining = vec!["break-glass/inc-1".to_owned(), "pay".to_owned()];
        let mut failed = record(Phase::Request, Error, "web/a", "GET ledger /accounts/9");
        failed.errors = vec!["stop: overflow".to_owned()];
        let mut unsaid = record(Phase::Request, NoPermit, "web/a", "GET ledger /accounts/7");
        unsaid.path = None;
        let replayed = replayed(
            vec![
                record(Phase::Request, Allow, "web/a", "GET ledger /accounts/7"),
                denied.clone(),
                denied,
                record(Phase::Request, NoPermit, "web/a", "GET ledger /accounts/8"),
                failed,
                record(Phase::Request, Forbid, "web/b", "GET ledger /nowhere"),
                record(Phase::Connect, Allow, "web/old", "connect db"),
                record(Phase::Connect, NoPermit, "web/old", "connect db"),
                record(Phase::Connect, NoPermit, "pay", "connect db"),
                far,
                by_grant,
                unsaid,
                record(Phase::Recheck, Forbid, "web/a", "connect db"),
                record(Phase::Handshake, Unauthenticated, "web/a", "connect db"),
                record(Phase::Request, Malformed, "web/a", "GET ledger /accounts/9"),
                also_by_grant,
                // There was no policy, or it had expired.
                record(Phase::Request, Error, "web/a", "GET ledger /accounts/9"),
            ],
            &compared(Baseline::Recorded, &snapshot()),
        );
        let lines: Vec<String> = replayed
            .groups()
            .into_iter()
            .map(|(who, group)| {
                let examples: Vec<_> = group
                    .examples
                    .iter()
                    .map(|(_, id)| format!("{}-{}", id.recorder, id.seq))
                    .collect();
                format!(
                    "{} {who}: {} {:?} {:?} {:?} {examples:?}",
                    who.flip.as_str(),
                    group.count,
                    group.outcomes,
                    group.before,
                    group.now
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                r#"denied → allowed spiffe://x/web/a × ledger:GET /accounts/{id}: 2 {"allow": 2} {} {"read"} ["ledger-3", "ledger-4"]"#,
                r#"denied → allowed spiffe://x/web/b × ledger:unmatched: 1 {"allow": 1} {} {"read"} ["ledger-5"]"#,
                r#"allowed → denied spiffe://x/web/a × ledger:POST /entries: 2 {"no_permit": 2} {"write"} {} ["ledger-1", "ledger-2"]"#,
                r#"allowed → denied spiffe://x/pay × ledger:GET /accounts/{id}: 1 {"no_permit": 1} {"break-glass/inc-1", "pay"} {} ["ledger-15"]"#,
                r#"allowed → denied spiffe://x/web/a × ledger:GET /accounts/{id}: 1 {"no_permit": 1} {} {} ["ledger-9"]"#,
                r#"allowed → denied spiffe://x/web/old × connect db: 1 {"forbid": 1} {} {"stop"} ["ledger-6"]"#,
            ]
        );
        assert_eq!((replayed.records, replayed.flips.total(), replayed.same), (17, 8, 2));
        assert_eq!(
            (
                replayed.other_denial,
                replayed.by_grant,
                replayed.unasked,
                replayed.not_replayable
            ),
            (1, 1, 4, 1)
        );
        assert_eq!((replayed.flips.allowed_to_denied, replayed.replayed()), (5, 11));
        assert!(replayed.saw("db") && replayed.saw("ledger") && !replayed.saw("orders"));
    }

    #[test]
    fn what_was_answered_then_says_nothing_about_what_a_change_does_now() {
        use Outcome::{Allow, Error, NoPermit};
        let mut by_grant = record(Phase::Request, Allow, "ops", "GET ledger /accounts/7");
        by_grant.determining = vec!["break-glass/inc-1".to_owned()];
        let records = || {
            vec![
                // Accepted on Monday: it was allowed before, and is denied in force.
                record(Phase::Request, Allow, "pay", "GET ledger /accounts/7"),
                record(Phase::Request, NoPermit, "web/a", "GET ledger /accounts/7"),
                record(Phase::Request, Allow, "web/a", "GET ledger /accounts/7"),
                // Then there was no policy.
                record(Phase::Request, Error, "web/a", "GET ledger /accounts/9"),
                by_grant.clone(),
                record(Phase::Connect, Allow, "web/old", "connect db"),
            ]
        };
        let in_force = snapshot();
        let same = replayed(records(), &compared(Baseline::Set(&in_force), &in_force));
        assert_eq!((same.same, same.flips.total(), same.records), (6, 0, 6));
        let opened = Source {
            name: "a.cedar".to_owned(),
            text: NEW.replace("forbid", "permit").replace("x/web\"", "x/ops\""),
        };
        let candidate = Snapshot::compile(&[opened]).unwrap();
        let replayed = replayed(records(), &compared(Baseline::Set(&in_force), &candidate));
        let lines: Vec<String> = replayed
            .groups()
            .into_iter()
            .map(|(who, group)| format!("{}: {:?} {:?}", who.pattern(), group.before, group.now))
            .collect();
        assert_eq!(
            lines,
            [
                // Only a grant let it through: it is news that policy does.
                r#"allow spiffe://x/ops × ledger:unmatched: {} {"read"}"#,
                r#"allow spiffe://x/web/old × connect db: {"stop"} {"stop"}"#,
                r#"deny spiffe://x/web/a × ledger:unmatched: {"read"} {}"#,
            ]
        );
        assert_eq!((replayed.flips.allowed_to_denied, replayed.same), (3, 1));
    }

    #[test]
    fn requests_of_another_mesh_and_logs_nobody_can_read_are_counted_apart() {
        let own = TrustDomain::parse("prod.acme").unwrap();
        let set = snapshot();
        let comparison = Comparison {
            trust_domain: Some(&own),
            ..compared(Baseline::Recorded, &set)
        };
        let records = vec![record(
            Phase::Request,
            Outcome::Allow,
            "web/a",
            "GET ledger /accounts/7",
        )];
        let elsewhere = replayed(records, &comparison);
        assert_eq!(
            (elsewhere.elsewhere, elsewhere.replayed(), elsewhere.records),
            (1, 0, 1)
        );
        let unread = replay(&[PathBuf::from("/nonexistent")], None, &comparison, |_, _, _| {}).unread;
        assert!(
            unread.len() == 1 && unread[0].contains("cannot read `/nonexistent`"),
            "{unread:?}"
        );
    }

    /// Ten thousand policies, of which some twenty look at each request.
    fn large() -> Snapshot {
        let mut text = NEW.to_owned();
        for n in 0..10_000 {
            let scope = if n < 20 {
                "x/web".to_owned()
            } else {
                format!("x/team-{n}")
            };
            text.push_str(&format!(
                "@id(\"p{n}\") permit(principal in Hoplite::Path::\"{scope}\", action in Hoplite::Action::\"anyHttp\", resource in Hoplite::Service::\"ledger\") \
                 when {{ context.seg has s1 && context.seg.s1 == \"{n}\" }};\n"
            ));
        }
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        Snapshot::compile(&[source("a.cedar", &text), source("routes.toml", ROUTES)]).unwrap()
    }

    /// A million decisions of 200 callers on 2 routes, by ten thousand policies. `cargo test --release -p hoplite replay::tests::a_million -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement: writes a log of some 300 MB"]
    fn a_million_decisions_take_less_than_a_minute() {
        const RECORDS: u64 = 1_000_000;
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = Recorder::open(directory.path(), "ledger", Options::default()).unwrap();
        for n in 0..RECORDS {
            let method = if n % 7 == 0 { "POST" } else { "GET" };
            let what = match n % 20 {
                0 => "POST ledger /entries".to_owned(),
                route => format!("{method} ledger /accounts/{}", n * 31 % (route * 1_000)),
            };
            let mut record = record(Phase::Request, Outcome::Allow, &format!("web/{}", n * 17 % 200), &what);
            record.source = Some(format!("10.0.{}.{}:40000", n % 3, n * 13 % 250));
            record.route = Some("ledger:GET /accounts/{id}".to_owned());
            record.tls = Some("1.3 X25519MLKEM768".to_owned());
            record.peer_serial = Some("3f2a9c0d3f2a9c0d3f2a9c0d".to_owned());
            record.determining = vec!["read".to_owned()];
            record.policy_revision = Some("0123456789ab".to_owned());
            record.at = UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + n * 20);
            recorder.append(&mut record, Class::Full).unwrap();
        }
        drop(recorder);
        let snapshot = large();
        let start = Instant::now();
        let logs = [directory.path().to_owned()];
        let replayed = replay(
            &logs,
            None,
            &compared(Baseline::Set(&snapshot), &snapshot),
            |_, _, _| {},
        );
        let took = start.elapsed();
        hoplite_host::tell!(
            "{} records, {} flips in {took:?}: {:.0} a second",
            replayed.records,
            replayed.flips.total(),
            RECORDS as f64 / took.as_secs_f64()
        );
        assert_eq!(replayed.records, RECORDS);
        assert!(cfg!(debug_assertions) || took < Duration::from_secs(60), "{took:?}");
    }
}
