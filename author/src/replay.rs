//! Requests of the past, decided again by other policies: which answers would flip, and for whom.

use hoplite_audit::{DecisionId, Outcome, Phase, Record};
use hoplite_identity::{ServiceName, SpiffeId, TrustDomain};
use hoplite_policy::grant::GRANT_IDS;
use hoplite_policy::{Ask, Asked, CanonicalRequest, SelectedHeaders, Snapshot, Transport, Verdict, WhatIf};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

/// The most groups of flips kept apart; flips beyond them are only counted. More than anybody reads, and bounds what a
/// policy that flips everything costs.
const GROUPS_MAX: usize = 50_000;
/// The most policies named of one group.
const POLICIES_MAX: usize = 16;
/// The most addresses whose transports are kept: making one costs more than a decision.
const TRANSPORTS_MAX: usize = 65_536;
/// The most services whose names are kept: more than one publication has routes for.
const SERVICES_MAX: usize = 65_536;

/// What the new answers are compared with.
#[derive(Debug, Clone, Copy)]
pub enum Baseline<'a> {
    /// What was answered then, as the records have it.
    Recorded,
    /// What these policies answer to the same question, whatever was answered then: a flip that somebody accepted since is none.
    Set(&'a Snapshot),
}

/// What is compared in a replay.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// With what.
    pub before: Baseline<'a>,
    /// The policies whose answers are compared.
    pub after: &'a Snapshot,
    /// Whose requests count, if that is known: those of another trust domain were asked in another mesh.
    pub trust_domain: Option<&'a TrustDomain>,
    /// So many decisions are named of each group.
    pub examples: usize,
}

/// What came of a replay.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Records read, all of the following together.
    pub records: u64,
    /// It is answered as before, for the same kind of reason.
    pub same: u64,
    /// Denied before and after, but for another kind of reason: `forbid` and not `no_permit`.
    pub other_denial: u64,
    /// Allowed before and not now, or the other way round.
    pub flips: Flips,
    /// What policy was never asked about, or had been asked about before: strangers, malformed requests, rechecks.
    pub unasked: u64,
    /// Questions that cannot be asked again: the record does not have all of it.
    pub not_replayable: u64,
    /// Asked in another trust domain.
    pub elsewhere: u64,
    /// Allowed by a break-glass grant, which is no part of any policy set.
    pub by_grant: u64,
    /// Records that cannot be read, and the first reason.
    pub damaged: u64,
    /// Records of a kind or version that this program does not know; whether they are decisions is not known either.
    pub unknown: u64,
    /// Why the first of those that cannot be read cannot be.
    pub damage: Option<String>,
    /// Logs that could not be read to their end, each with the reason.
    pub unread: Vec<String>,
    /// Flips that are in no group, because there were too many.
    pub ungrouped: Flips,
    groups: HashMap<Who, Group>,
    /// The services of the decisions that were made again.
    services: HashSet<String>,
}

/// Which way an answer flips. What is newly allowed comes first: nobody complains of it afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Flip {
    /// It was denied, and would be allowed.
    DeniedToAllowed,
    /// It was allowed, and would be denied.
    AllowedToDenied,
}

/// How many answers flip each way.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Flips {
    /// What would be allowed now.
    pub denied_to_allowed: u64,
    /// What would be denied now.
    pub allowed_to_denied: u64,
}

/// What a group of flips has in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Who {
    /// Which way.
    pub flip: Flip,
    /// Whose calls.
    pub principal: String,
    /// The route by the new route table, or `connect SERVICE`.
    pub route: String,
}

/// Flips of one principal on one route.
#[derive(Debug, Default, Serialize)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// The new outcomes, and how often each.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// The policies that decided before.
    pub before: BTreeSet<String>,
    /// The policies that decide now.
    pub now: BTreeSet<String>,
    /// The earliest of them.
    #[serde(serialize_with = "ids")]
    pub examples: Vec<(SystemTime, DecisionId)>,
}

/// A record's question, as far as it can be asked again, for policies that select these headers. Of a header that was not
/// selected then nothing is known.
pub fn ask_of(record: &Record, headers: &SelectedHeaders) -> Option<Ask> {
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
        service: ServiceName::parse(&record.service).ok()?,
        what,
        source: source
            .parse::<SocketAddr>()
            .map(|socket| socket.ip())
            .or_else(|_| source.parse())
            .ok()?,
        now: record.at,
    })
}

// === impl Replayed ===

impl Replayed {
    /// How many decisions were made again.
    pub fn replayed(&self) -> u64 {
        self.same + self.other_denial + self.flips.total()
    }

    /// The groups of flips: what is newly allowed first, then by how many.
    pub fn groups(&self) -> Vec<(&Who, &Group)> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by(|(a, left), (b, right)| (a.flip, right.count, a).cmp(&(b.flip, left.count, b)));
        groups
    }

    /// Whether a decision about this service was made again.
    pub fn saw(&self, service: &str) -> bool {
        self.services.contains(service)
    }

    /// Decides one record again. `transports` is what was made for the records before: for many records the same map.
    pub fn decide_again(
        &mut self,
        record: &Record,
        comparison: &Comparison<'_>,
        transports: &mut HashMap<IpAddr, Transport>,
    ) {
        self.records += 1;
        if is_unasked(record, comparison.before) {
            self.unasked += 1;
            return;
        }
        if let (Some(own), Some(caller)) = (comparison.trust_domain, record.principal.as_deref())
            && SpiffeId::parse(caller).is_ok_and(|caller| caller.trust_domain() != own)
        {
            self.elsewhere += 1;
            return;
        }
        if matches!(comparison.before, Baseline::Recorded) && is_by_grant(record) {
            self.by_grant += 1;
            return;
        }
        if transports.len() >= TRANSPORTS_MAX {
            transports.clear();
        }
        let before = match comparison.before {
            Baseline::Recorded => None,
            Baseline::Set(set) => Answer::of(record, set, transports),
        };
        let after = Answer::of(record, comparison.after, transports);
        let (was, after) = match (comparison.before, &before, after) {
            (Baseline::Recorded, _, Some(after)) => (record.outcome.as_str(), after),
            (Baseline::Set(_), Some(before), Some(after)) => (before.verdict().as_str(), after),
            _ => {
                self.not_replayable += 1;
                return;
            }
        };
        if self.services.len() < SERVICES_MAX && !self.services.contains(&record.service) {
            self.services.insert(record.service.clone());
        }
        let (allow, now) = (Verdict::Allow.as_str(), after.verdict().as_str());
        let flip = match (was == allow, now == allow) {
            (true, false) => Flip::AllowedToDenied,
            (false, true) => Flip::DeniedToAllowed,
            _ if was == now => {
                self.same += 1;
                return;
            }
            _ => {
                self.other_denial += 1;
                return;
            }
        };
        let before = before.map_or_else(
            || record.determining.iter().cloned().collect(),
            |before| before.determining(),
        );
        self.flipped(record, flip, before, &after, comparison.examples);
    }

    /// Counts a flip, in its group if there is room.
    fn flipped(&mut self, record: &Record, flip: Flip, before: BTreeSet<String>, after: &Answer, examples: usize) {
        self.flips.add(flip, 1);
        let who = Who {
            flip,
            route: route_of(&after.what_if, &after.ask),
            principal: after.ask.principal.to_string(),
        };
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&who) {
            self.ungrouped.add(flip, 1);
            return;
        }
        let group = self.groups.entry(who).or_default();
        let mut flipped = Group {
            count: 1,
            outcomes: BTreeMap::from([(after.verdict().as_str(), 1)]),
            before,
            now: after.determining(),
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

    /// Adds what another replay of other records found.
    pub fn add(&mut self, other: Self, examples: usize) {
        self.records += other.records + other.damaged;
        self.same += other.same;
        self.other_denial += other.other_denial;
        self.flips += other.flips;
        self.unasked += other.unasked;
        self.not_replayable += other.not_replayable;
        self.elsewhere += other.elsewhere;
        self.unread.extend(other.unread);
        self.services.extend(other.services);
        self.by_grant += other.by_grant;
        self.damaged += other.damaged;
        self.unknown += other.unknown;
        self.ungrouped += other.ungrouped;
        if self.damage.is_none() {
            self.damage = other.damage;
        }
        for (who, group) in other.groups {
            self.groups.entry(who).or_default().add(group, examples);
        }
    }
}

/// Whether policy was not asked here, or had been asked the same before.
fn is_unasked(record: &Record, before: Baseline<'_>) -> bool {
    let policy_answered = match record.outcome {
        Outcome::Allow | Outcome::Forbid | Outcome::NoPermit => true,
        // An error that nothing failed for is no answer of policy: there was none to ask, or it had expired. The question is
        // whole all the same, and two sets can be asked.
        Outcome::Error => matches!(before, Baseline::Set(_)) || !record.errors.is_empty(),
        Outcome::Unauthenticated | Outcome::Malformed => false,
    };
    // A recheck repeats the question of its connection or request.
    !policy_answered || matches!(record.phase, Phase::Recheck | Phase::Handshake)
}

/// Whether nothing but grants let it through. Where another policy permitted it too, it does not hang on the grant.
fn is_by_grant(record: &Record) -> bool {
    let mut by = record.determining.iter();
    record.outcome == Outcome::Allow && by.len() > 0 && by.all(|id| id.starts_with(GRANT_IDS))
}

/// What a set of policies answers to the question of a record.
struct Answer {
    ask: Ask,
    what_if: WhatIf,
}

// === impl Answer ===

impl Answer {
    /// Nothing where the record does not say enough for these policies.
    fn of(record: &Record, set: &Snapshot, transports: &mut HashMap<IpAddr, Transport>) -> Option<Self> {
        let ask = ask_of(record, set.headers())?;
        let transport = transports
            .entry(ask.source)
            .or_insert_with(|| Transport::new(ask.source));
        let what_if = set.what_if_on(&ask, transport);
        (!what_if.lacks_a_header()).then_some(Self { ask, what_if })
    }

    fn verdict(&self) -> Verdict {
        self.what_if.decision().verdict()
    }

    fn determining(&self) -> BTreeSet<String> {
        self.what_if.decision().determining().iter().cloned().collect()
    }
}

/// What was done, as people name it.
pub fn route_of(what_if: &WhatIf, ask: &Ask) -> String {
    match what_if.route() {
        Some(route) => route.as_str().to_owned(),
        None => format!("connect {}", ask.service),
    }
}

// === impl Flips ===

impl Flips {
    /// How many this way.
    pub fn of(&self, flip: Flip) -> u64 {
        match flip {
            Flip::DeniedToAllowed => self.denied_to_allowed,
            Flip::AllowedToDenied => self.allowed_to_denied,
        }
    }

    /// How many, both ways.
    pub fn total(&self) -> u64 {
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
    /// Both ways, what is newly allowed first.
    pub const ALL: [Self; 2] = [Self::DeniedToAllowed, Self::AllowedToDenied];

    /// What is said to accept it: the answer from now on.
    fn word(self) -> &'static str {
        match self {
            Self::DeniedToAllowed => "allow",
            Self::AllowedToDenied => "deny",
        }
    }

    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowedToDenied => "allowed → denied",
            Self::DeniedToAllowed => "denied → allowed",
        }
    }
}

// === impl Who ===

impl Who {
    /// What means this and nothing else.
    pub fn pattern(&self) -> String {
        format!("{} {self}", self.flip.word())
    }

    /// Whether somebody who wrote `allow PRINCIPAL × ROUTE` or `deny …`, with `*` for any text, means this.
    pub fn is_meant_by(&self, pattern: &str) -> bool {
        let Some((flip, principal, route)) = parts(pattern) else {
            return false;
        };
        flip == self.flip && covers(principal, &self.principal) && covers(route, &self.route)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.principal, self.route)
    }
}

/// Direction, principal and route of a pattern; `x` may stand for `×`. SPIFFE IDs have no spaces, routes have.
pub fn parts(pattern: &str) -> Option<(Flip, &str, &str)> {
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
pub(crate) fn covers(pattern: &str, text: &str) -> bool {
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
    use hoplite_policy::Source;

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
            let comparison = Comparison {
                before: Baseline::Recorded,
                after: &snapshot,
                trust_domain: None,
                examples: 0,
            };
            let mut replayed = Replayed::default();
            replayed.decide_again(&record, &comparison, &mut HashMap::new());
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
}
