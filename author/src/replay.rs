//! Decisions of the past, decided again by other policies: which answers would flip, and for whom.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::SystemTime;

use hoplite_audit::{DecisionId, Outcome, Phase, Query, ReadError, Record, read_log};
use hoplite_identity::SpiffeId;
use hoplite_policy::{Ask, Asked, CanonicalRequest, GRANT_IDS, SelectedHeaders, Snapshot, Transport, WhatIf};
use serde::Serialize;

/// Threads that decide; one more reads.
const DECIDERS: usize = 2;
/// Records handed over at once, and how many such piles may wait: enough that nobody waits for the other.
const PILE: usize = 512;
const PILES: usize = 16;
/// The most groups of flips kept apart; flips beyond them are only counted. More than anybody reads, and bounds what a
/// policy that flips everything costs.
const GROUPS_MAX: usize = 50_000;
/// The most policies named of one group.
const POLICIES_MAX: usize = 16;
/// The most addresses whose connections are kept: one costs more than a decision.
const CONNECTIONS_MAX: usize = 65_536;

/// What came of a replay.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// Records read, all of the following together.
    pub(crate) records: u64,
    /// The same answer, for the same kind of reason.
    pub(crate) same: u64,
    /// Denied before and after, but for another kind of reason: `forbid` and not `no_permit`.
    pub(crate) other_denial: u64,
    /// Allowed before and not now, or the other way round.
    pub(crate) flips: Flips,
    /// What policy was never asked about, or what is not recorded whole.
    pub(crate) not_replayable: u64,
    /// Allowed by a break-glass grant, which is no part of any policy set.
    pub(crate) by_grant: u64,
    /// Records that cannot be read, and the first reason.
    pub(crate) damaged: u64,
    pub(crate) damage: Option<String>,
    /// Flips that are in no group, because there were too many.
    pub(crate) ungrouped: Flips,
    groups: HashMap<Who, Group>,
}

/// Which way an answer flips. What is newly allowed comes first: nobody complains of it afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Flip {
    DeniedToAllowed,
    AllowedToDenied,
}

/// How many answers flip each way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flips {
    pub(crate) denied_to_allowed: u64,
    pub(crate) allowed_to_denied: u64,
}

/// What a group of flips has in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) struct Who {
    pub(crate) flip: Flip,
    pub(crate) principal: String,
    /// The route by the new route table, or `connect SERVICE`.
    pub(crate) route: String,
}

/// Flips of one principal on one route.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Group {
    pub(crate) count: u64,
    /// The new outcomes, and how often each.
    pub(crate) outcomes: BTreeMap<&'static str, u64>,
    /// The policies that decided before, and those that decide now.
    pub(crate) before: BTreeSet<String>,
    pub(crate) now: BTreeSet<String>,
    /// The earliest of them.
    #[serde(serialize_with = "ids")]
    pub(crate) examples: Vec<(SystemTime, DecisionId)>,
}

/// A record's question, as far as it can be asked again, for policies that select these headers. Of a header that was not
/// selected then nothing is known.
pub(crate) fn ask_of(record: &Record, headers: &SelectedHeaders) -> Option<Ask> {
    let what = match record.phase {
        Phase::Connect => Asked::Connect,
        Phase::Recheck if record.host.is_none() => Asked::Connect,
        Phase::Request | Phase::Recheck => {
            let (host, path) = (record.host.as_deref()?, record.path.as_deref()?);
            let request = CanonicalRequest::parse(&record.action, &[host.as_bytes()], path.as_bytes()).ok()?;
            let known = headers.known(|name| record.headers.contains_key(name));
            let fields = record.headers.iter();
            let fields = fields.filter_map(|(name, value)| Some((name.as_str(), value.as_ref()?.as_bytes())));
            Asked::Http(request.with_headers(&known, fields).ok()?)
        }
        Phase::Handshake => return None,
    };
    match record.outcome {
        Outcome::Allow | Outcome::Forbid | Outcome::NoPermit | Outcome::Error => {}
        Outcome::Unauthenticated | Outcome::Malformed => return None,
    }
    let source = record.source.as_deref()?;
    Some(Ask {
        principal: SpiffeId::parse(record.principal.as_deref()?).ok()?,
        service: record.service.clone(),
        what,
        source: source
            .parse::<SocketAddr>()
            .map(|socket| socket.ip())
            .or_else(|_| source.parse())
            .ok()?,
        now: record.at,
    })
}

/// Decides every record of these logs since a moment once more. `progress` is told of each pile: how many records, in
/// which log, and the time of the last one.
///
/// # Errors
/// [`ReadError::Io`] when a log cannot be read.
pub(crate) fn replay(
    logs: &[PathBuf],
    since: Option<SystemTime>,
    snapshot: &Snapshot,
    examples: usize,
    mut progress: impl FnMut(usize, usize, SystemTime),
) -> Result<Replayed, ReadError> {
    let query = Query {
        since,
        ..Query::default()
    };
    let (send, receive) = sync_channel::<Vec<Record>>(PILES);
    let receive = Mutex::new(receive);
    let (mut total, read) = thread::scope(|scope| {
        let deciders: Vec<_> = (0..DECIDERS)
            .map(|_| scope.spawn(|| decide_all(&receive, snapshot, examples)))
            .collect();
        let read = (|| {
            let mut damage = Replayed::default();
            for (number, log) in logs.iter().enumerate() {
                let mut pile = Vec::with_capacity(PILE);
                for record in read_log(log, &query)? {
                    match record {
                        Ok(record) => pile.push(record),
                        Err(error @ ReadError::Damaged { .. }) => {
                            damage.damaged += 1;
                            damage.damage.get_or_insert_with(|| error.to_string());
                        }
                        Err(error @ ReadError::Io { .. }) => return Err(error),
                    }
                    if pile.len() == PILE {
                        hand_over(&mut pile, number, &send, &mut progress);
                    }
                }
                hand_over(&mut pile, number, &send, &mut progress);
            }
            Ok(damage)
        })();
        drop(send);
        let mut total = Replayed::default();
        for decider in deciders {
            match decider.join() {
                Ok(part) => total.add(part, examples),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (total, read)
    });
    total.add(read?, examples);
    Ok(total)
}

fn hand_over(
    pile: &mut Vec<Record>,
    log: usize,
    send: &std::sync::mpsc::SyncSender<Vec<Record>>,
    progress: &mut impl FnMut(usize, usize, SystemTime),
) {
    let Some(last) = pile.last() else { return };
    progress(pile.len(), log, last.at);
    // The deciders leave only when this end is gone.
    let _ = send.send(std::mem::replace(pile, Vec::with_capacity(PILE)));
}

fn decide_all(piles: &Mutex<Receiver<Vec<Record>>>, snapshot: &Snapshot, examples: usize) -> Replayed {
    let mut replayed = Replayed::default();
    let mut connections = HashMap::new();
    loop {
        // The lock is held while waiting: the others have nothing to take either.
        let pile = piles.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(pile) = pile else { return replayed };
        for record in &pile {
            replayed.decide_again(record, snapshot, &mut connections, examples);
        }
    }
}

// === impl Replayed ===

impl Replayed {
    /// How many decisions were made again.
    pub(crate) fn replayed(&self) -> u64 {
        self.same + self.other_denial + self.flips.total()
    }

    /// The groups of flips: what is newly allowed first, then by how many.
    pub(crate) fn groups(&self) -> Vec<(&Who, &Group)> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by(|(a, left), (b, right)| (a.flip, right.count, a).cmp(&(b.flip, left.count, b)));
        groups
    }

    fn decide_again(
        &mut self,
        record: &Record,
        snapshot: &Snapshot,
        connections: &mut HashMap<IpAddr, Transport>,
        examples: usize,
    ) {
        self.records += 1;
        // A recheck repeats the question of its connection or request. An error that nothing failed for is no answer of
        // policy: there was none to ask, or it had expired.
        let unasked = record.outcome == Outcome::Error && record.errors.is_empty();
        let again = record.phase != Phase::Recheck && !unasked;
        let Some(ask) = ask_of(record, snapshot.headers()).filter(|_| again) else {
            self.not_replayable += 1;
            return;
        };
        // Where another policy permitted it too, it does not hang on the grant.
        let mut by = record.determining.iter();
        if record.outcome == Outcome::Allow && by.len() > 0 && by.all(|id| id.starts_with(GRANT_IDS)) {
            self.by_grant += 1;
            return;
        }
        if connections.len() >= CONNECTIONS_MAX {
            connections.clear();
        }
        let connection = connections
            .entry(ask.source)
            .or_insert_with(|| Transport::new(ask.source));
        let what_if = snapshot.what_if_on(&ask, connection);
        if what_if.lacks_a_header() {
            self.not_replayable += 1;
            return;
        }
        let now = what_if.decision().verdict();
        let flip = match (record.outcome == Outcome::Allow, now == hoplite_policy::Verdict::Allow) {
            (true, false) => Flip::AllowedToDenied,
            (false, true) => Flip::DeniedToAllowed,
            _ if record.outcome.as_str() == now.as_str() => {
                self.same += 1;
                return;
            }
            _ => {
                self.other_denial += 1;
                return;
            }
        };
        self.flips.add(flip, 1);
        let who = Who {
            flip,
            route: route_of(&what_if, &ask),
            principal: ask.principal.to_string(),
        };
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&who) {
            self.ungrouped.add(flip, 1);
            return;
        }
        let group = self.groups.entry(who).or_default();
        let mut flipped = Group {
            count: 1,
            outcomes: BTreeMap::from([(now.as_str(), 1)]),
            before: record.determining.iter().cloned().collect(),
            now: what_if.decision().determining().iter().cloned().collect(),
            examples: Vec::new(),
        };
        let worth_keeping = group.examples.len() < examples
            || group
                .examples
                .last()
                .is_some_and(|(at, id)| (record.at, &record.id) < (*at, id));
        if worth_keeping && examples > 0 {
            flipped.examples.push((record.at, record.id.clone()));
        }
        group.add(flipped, examples);
    }

    fn add(&mut self, other: Self, examples: usize) {
        self.records += other.records + other.damaged;
        self.same += other.same;
        self.other_denial += other.other_denial;
        self.flips += other.flips;
        self.not_replayable += other.not_replayable;
        self.by_grant += other.by_grant;
        self.damaged += other.damaged;
        self.ungrouped += other.ungrouped;
        if self.damage.is_none() {
            self.damage = other.damage;
        }
        for (who, group) in other.groups {
            self.groups.entry(who).or_default().add(group, examples);
        }
    }
}

/// What was done, as people name it.
pub(crate) fn route_of(what_if: &WhatIf, ask: &Ask) -> String {
    match what_if.route() {
        Some(route) => route.as_str().to_owned(),
        None => format!("connect {}", ask.service),
    }
}

// === impl Flips ===

impl Flips {
    pub(crate) fn of(&self, flip: Flip) -> u64 {
        match flip {
            Flip::DeniedToAllowed => self.denied_to_allowed,
            Flip::AllowedToDenied => self.allowed_to_denied,
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.denied_to_allowed + self.allowed_to_denied
    }

    fn add(&mut self, flip: Flip, more: u64) {
        match flip {
            Flip::DeniedToAllowed => self.denied_to_allowed += more,
            Flip::AllowedToDenied => self.allowed_to_denied += more,
        }
    }
}

impl std::ops::AddAssign for Flips {
    fn add_assign(&mut self, other: Self) {
        for flip in Flip::ALL {
            self.add(flip, other.of(flip));
        }
    }
}

// === impl Flip ===

impl Flip {
    pub(crate) const ALL: [Self; 2] = [Self::DeniedToAllowed, Self::AllowedToDenied];

    /// What is said to accept it: the answer from now on.
    fn word(self) -> &'static str {
        match self {
            Self::DeniedToAllowed => "allow",
            Self::AllowedToDenied => "deny",
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::AllowedToDenied => "allowed → denied",
            Self::DeniedToAllowed => "denied → allowed",
        }
    }
}

// === impl Who ===

impl Who {
    /// What means this and nothing else.
    pub(crate) fn pattern(&self) -> String {
        format!("{} {self}", self.flip.word())
    }

    /// Whether somebody who wrote `allow PRINCIPAL × ROUTE` or `deny …`, with `*` for any text, means this.
    pub(crate) fn is_meant_by(&self, pattern: &str) -> bool {
        let Some((flip, principal, route)) = parts(pattern) else {
            return false;
        };
        flip == self.flip && covers(principal, &self.principal) && covers(route, &self.route)
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {}", self.principal, self.route)
    }
}

/// Direction, principal and route of a pattern; `x` may stand for `×`. SPIFFE IDs have no spaces, routes have.
pub(crate) fn parts(pattern: &str) -> Option<(Flip, &str, &str)> {
    let (word, rest) = pattern.trim().split_once(' ')?;
    let flip = Flip::ALL.into_iter().find(|flip| flip.word() == word)?;
    let (principal, rest) = rest.trim_start().split_once(' ')?;
    let rest = rest.trim_start();
    let route = rest
        .strip_prefix("× ")
        .or_else(|| rest.strip_prefix("x "))?
        .trim_start();
    (!route.is_empty()).then_some((flip, principal, route))
}

/// Whether the text is the pattern, in which `*` stands for any text.
fn covers(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<_> = pieces.collect();
    let Some(last) = pieces.pop() else {
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

// === impl Group ===

impl Group {
    fn add(&mut self, other: Self, examples: usize) {
        self.count += other.count;
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        for (to, from) in [(&mut self.before, other.before), (&mut self.now, other.now)] {
            for id in from {
                if to.len() < POLICIES_MAX {
                    to.insert(id);
                }
            }
        }
        if !other.examples.is_empty() {
            self.examples.extend(other.examples);
            self.examples.sort();
            self.examples.truncate(examples);
        }
    }
}

fn ids<S: serde::Serializer>(examples: &[(SystemTime, DecisionId)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(examples.iter().map(|(_, id)| id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_audit::{Class, Options, Recorder};
    use hoplite_policy::Source;
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
        let mut record = Record::new(phase, outcome, service);
        record.principal = Some(format!("spiffe://x/{who}"));
        record.source = Some("10.0.0.1:4711".to_owned());
        record.action = action.to_owned();
        if phase == Phase::Request {
            record.host = Some("ledger".to_owned());
            record.path = Some(path.to_owned());
        }
        record
    }

    /// Writes the records into a log and replays it.
    fn replayed(mut records: Vec<Record>, examples: usize) -> Replayed {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = Recorder::open(directory.path(), "ledger", Options::default()).unwrap();
        for (second, record) in records.iter_mut().enumerate() {
            record.at = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second as u64);
            recorder.append(record, Class::Full).unwrap();
        }
        drop(recorder);
        let mut told = 0;
        let logs = [directory.path().to_owned()];
        let replayed = replay(&logs, None, &snapshot(), examples, |records, _, _| told += records).unwrap();
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
            2,
        );
        let lines: Vec<String> = replayed
            .groups()
            .into_iter()
            .map(|(who, group)| {
                let examples: Vec<_> = group.examples.iter().map(|(_, id)| id.to_string()).collect();
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
                r#"denied → allowed spiffe://x/web/a × ledger:GET /accounts/{id}: 2 {"allow": 2} {} {"read"} ["ledger-1-3", "ledger-1-4"]"#,
                r#"denied → allowed spiffe://x/web/b × ledger:unmatched: 1 {"allow": 1} {} {"read"} ["ledger-1-5"]"#,
                r#"allowed → denied spiffe://x/web/a × ledger:POST /entries: 2 {"no_permit": 2} {"write"} {} ["ledger-1-1", "ledger-1-2"]"#,
                r#"allowed → denied spiffe://x/pay × ledger:GET /accounts/{id}: 1 {"no_permit": 1} {"break-glass/inc-1", "pay"} {} ["ledger-1-15"]"#,
                r#"allowed → denied spiffe://x/web/a × ledger:GET /accounts/{id}: 1 {"no_permit": 1} {} {} ["ledger-1-9"]"#,
                r#"allowed → denied spiffe://x/web/old × connect db: 1 {"forbid": 1} {} {"stop"} ["ledger-1-6"]"#,
            ]
        );
        assert_eq!((replayed.records, replayed.flips.total(), replayed.same), (17, 8, 2));
        assert_eq!(
            (replayed.other_denial, replayed.by_grant, replayed.not_replayable),
            (1, 1, 5)
        );
        assert_eq!((replayed.flips.allowed_to_denied, replayed.replayed()), (5, 11));
    }

    #[test]
    fn headers_are_replayed_as_far_as_they_are_recorded() {
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let policies = r#"
@id("read") permit(principal, action in Hoplite::Action::"read", resource);
@id("no-debug") forbid(principal, action == Hoplite::Action::"GET", resource) when { context.hdr has "x-debug" };"#;
        let snapshot = Snapshot::compile(&[
            source("a.cedar", policies),
            source("headers.toml", "headers = ['x-debug', 'x-tenant']"),
        ])
        .unwrap();
        let known = |debug: Option<&str>| {
            let debug = ("x-debug".to_owned(), debug.map(str::to_owned));
            BTreeMap::from([debug, ("x-tenant".to_owned(), None)])
        };
        for (what, headers, expected) in [
            ("GET ledger /", known(None), "same"),
            ("GET ledger /", known(Some("1")), "flips"),
            // Not selected then: nobody knows whether it was there, and that decides.
            ("GET ledger /", BTreeMap::new(), "not replayable"),
            (
                "GET ledger /",
                BTreeMap::from([("x-tenant".to_owned(), None)]),
                "not replayable",
            ),
            // It does not decide.
            ("HEAD ledger /", BTreeMap::new(), "same"),
            // As no proxy would have recorded it.
            ("GET ledger /", known(Some("a,b")), "not replayable"),
        ] {
            let mut record = record(Phase::Request, Outcome::Allow, "web", what);
            record.headers = headers;
            let mut replayed = Replayed::default();
            replayed.decide_again(&record, &snapshot, &mut HashMap::new(), 0);
            let found = match (replayed.same, replayed.flips.total(), replayed.not_replayable) {
                (1, 0, 0) => "same",
                (0, 1, 0) => "flips",
                (0, 0, 1) => "not replayable",
                _ => "confused",
            };
            assert_eq!(found, expected, "{record:?}");
        }
    }

    #[test]
    fn patterns_name_groups() {
        let who = Who {
            flip: Flip::AllowedToDenied,
            principal: "spiffe://x/web/a".to_owned(),
            route: "ledger:GET /accounts/{id}".to_owned(),
        };
        for (pattern, expected) in [
            ("deny spiffe://x/web/a × ledger:GET /accounts/{id}", true),
            ("deny spiffe://x/web/a x ledger:GET /accounts/{id}", true),
            ("deny * × *", true),
            ("deny spiffe://x/* × ledger:*", true),
            ("deny spiffe://x/*/a × ledger:* /acc*{id}", true),
            ("deny spiffe://x/web × ledger:*", false),
            ("deny spiffe://x/web/a × ledger:GET", false),
            ("deny spiffe://x/web/a × GET /accounts/{id}", false),
            ("deny spiffe://x/*aa × *", false),
            ("deny *", false),
            ("deny * ×", false),
            ("", false),
            ("deny", false),
            ("* × *", false),
            ("allow * × *", false),
            ("denied * × *", false),
        ] {
            assert_eq!(who.is_meant_by(pattern), expected, "{pattern}");
        }
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
        let replayed = replay(&logs, None, &snapshot, 3, |_, _, _| {}).unwrap();
        let took = start.elapsed();
        eprintln!(
            "{} records, {} flips in {took:?}: {:.0} a second",
            replayed.records,
            replayed.flips.total(),
            RECORDS as f64 / took.as_secs_f64()
        );
        assert_eq!(replayed.records, RECORDS);
        assert!(cfg!(debug_assertions) || took < Duration::from_secs(60), "{took:?}");
    }
}
