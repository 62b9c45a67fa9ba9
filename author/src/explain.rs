//! Why a request is decided as it is: which policies were candidates, which of their conditions did not hold, and which
//! permits were near.

use crate::conjunct::{Conjunct, conjuncts, stretch_of};
use crate::view::{Effect, Place, Places, PolicyView};
use cedar_policy::{
    ActionConstraint, Context, EntityTypeName, EntityUid, EvalResult, EvaluationError, Policy, PrincipalConstraint,
    Request, ResourceConstraint, eval_expression,
};
use hoplite_policy::{Ask, CallFacts, Snapshot, Verdict, WhatIf};

/// The most near misses listed; what is further away explains nothing.
pub const NEAR_MISSES_MAX: usize = 10;

/// Why a request would be decided as it would.
#[derive(Debug)]
pub struct Explanation {
    /// What would be decided.
    pub what_if: WhatIf,
    /// Every policy whose scope covers the request: forbids first, then by id.
    pub candidates: Vec<Candidate>,
    /// Permits whose scope covers all but one of principal, action and resource, nearest first.
    pub near_misses: Vec<NearMiss>,
    /// How many more there are.
    pub further_misses: usize,
}

/// A policy whose scope covers the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// What it does where its conditions hold.
    pub effect: Effect,
    /// Where it stands, if that is known.
    pub place: Option<Place>,
    /// Whether they hold.
    pub finding: Finding,
}

/// Whether a policy's conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// All of them, or there are none.
    Satisfied,
    /// These do not.
    Unsatisfied(Vec<Unmet>),
    /// This one cannot be evaluated.
    Failed {
        /// The condition.
        condition: Unmet,
        /// Why, in Cedar's words.
        error: String,
    },
}

/// A condition that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// As it is written, in one line.
    pub text: String,
    /// Where it stands, if that is known.
    pub place: Option<Place>,
    /// What it looked at: `conn.src` and its value.
    pub values: Vec<(String, String)>,
}

/// A permit that covers two of principal, action and resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// The policy.
    pub policy: PolicyView,
    /// The one it does not cover.
    pub miss: Miss,
    /// What the request has there: a uid.
    pub asked: String,
}

/// Which part of a request a scope does not cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Miss {
    /// Another caller.
    Principal,
    /// Another action.
    Action,
    /// Another resource.
    Resource,
}

// === impl Miss ===

impl Miss {
    /// `principal`, `action` or `resource`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Principal => "principal",
            Self::Action => "action",
            Self::Resource => "resource",
        }
    }
}

// === impl NearMiss ===

impl NearMiss {
    /// The part of the policy's scope that does not cover the request.
    pub fn scope(&self) -> &str {
        match self.miss {
            Miss::Principal => &self.policy.principal,
            Miss::Action => &self.policy.action,
            Miss::Resource => &self.policy.resource,
        }
    }
}

// === impl Explanation ===

impl Explanation {
    /// What nearly decided, a line for each condition that does not hold and each near miss. Near misses explain why nothing
    /// permits a request, and nothing else.
    pub fn nearly(&self) -> Vec<String> {
        let at = |place: &Option<Place>| place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
        let mut lines = Vec::new();
        for candidate in &self.candidates {
            // Errors stand in the decision itself.
            let Finding::Unsatisfied(conditions) = &candidate.finding else {
                continue;
            };
            lines.extend(conditions.iter().map(|unmet| {
                let values = unmet.values.iter();
                let values: String = values
                    .map(|(name, value)| format!(", context.{name} is {value}"))
                    .collect();
                let (effect, id) = (candidate.effect, &candidate.id);
                format!(
                    "{effect} `{id}` does not apply{}: {}{values}",
                    at(&unmet.place),
                    unmet.text
                )
            }));
        }
        if self.what_if.decision().verdict() == Verdict::NoPermit {
            lines.extend(self.near_misses.iter().map(|near| {
                let (id, place, part) = (&near.policy.id, at(&near.policy.place), near.miss.as_str());
                let (scope, asked) = (near.scope(), &near.asked);
                format!("permit `{id}` is about another {part}{place}: {scope}; the request has {asked}")
            }));
        }
        lines
    }
}

/// Why this would be decided as it would. Nothing is counted.
pub fn explain(snapshot: &Snapshot, ask: &Ask, places: &Places<'_>) -> Explanation {
    let what_if = snapshot.what_if(ask);
    let (mut candidates, mut near_misses, mut further_misses) = (Vec::new(), Vec::new(), 0);
    // Where any of these fails, the decision is an error that says so, and there is nothing to add.
    if let Ok(call) = what_if.facts() {
        if let Ok(context) = what_if.context() {
            candidates = found(snapshot, &call, context, places);
        }
        (near_misses, further_misses) = misses(snapshot, &call, places);
    }
    candidates.sort_by(|a, b| (b.effect, &a.id).cmp(&(a.effect, &b.id)));
    Explanation {
        what_if,
        candidates,
        near_misses,
        further_misses,
    }
}

fn found(snapshot: &Snapshot, call: &CallFacts, context: Context, places: &Places<'_>) -> Vec<Candidate> {
    let policies = snapshot.covering(call).into_iter();
    let question = Question::new(call, context);
    policies
        .map(|policy| Candidate {
            id: policy.id().to_string(),
            effect: policy.effect().into(),
            place: places.place(stretch_of(policy)),
            finding: question.finding(policy, places),
        })
        .collect()
}

/// The nearest misses, and how many more there are.
fn misses(snapshot: &Snapshot, call: &CallFacts, places: &Places<'_>) -> (Vec<NearMiss>, usize) {
    let permits = snapshot
        .policies()
        .filter(|policy| policy.effect() == cedar_policy::Effect::Permit);
    let mut found: Vec<_> = permits
        .filter_map(|policy| {
            let misses = [
                (!principal_covers(policy, call)).then_some(Miss::Principal),
                (!action_covers(policy, call)).then_some(Miss::Action),
                (!resource_covers(policy, call)).then_some(Miss::Resource),
            ];
            let mut misses = misses.into_iter().flatten();
            match (misses.next(), misses.next()) {
                (Some(miss), None) => Some((nearness(policy, miss, call), miss, policy)),
                _ => None,
            }
        })
        .collect();
    found.sort_by(|a, b| (a.0, a.2.id()).cmp(&(b.0, b.2.id())));
    let further = found.len().saturating_sub(NEAR_MISSES_MAX);
    let asked = |miss: Miss| match miss {
        Miss::Principal => &call.principal,
        Miss::Action => &call.action,
        Miss::Resource => &call.resource,
    };
    let nearest = found.into_iter().take(NEAR_MISSES_MAX);
    let nearest = nearest.map(|(_, miss, policy)| NearMiss {
        policy: PolicyView::of(policy, places),
        miss,
        asked: asked(miss).to_string(),
    });
    (nearest.collect(), further)
}

/// Smaller is nearer: the same service's other route, then another action, then a caller of the same trust domain, then
/// what is far away.
fn nearness(policy: &Policy, miss: Miss, call: &CallFacts) -> u8 {
    match miss {
        Miss::Resource => {
            let near = match policy.resource_constraint() {
                ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => {
                    service_of(&uid) == service_of(&call.resource)
                }
                ResourceConstraint::Is(_) | ResourceConstraint::Any => true,
            };
            if near { 0 } else { 4 }
        }
        Miss::Action => 1,
        Miss::Principal => {
            let text = |uid: &EntityUid| uid.id().unescaped().trim_start_matches("spiffe://").to_owned();
            let asked = text(&call.principal);
            let near = match policy.principal_constraint() {
                PrincipalConstraint::Eq(uid) | PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) => {
                    text(&uid).split('/').next() == asked.split('/').next()
                }
                PrincipalConstraint::Is(_) | PrincipalConstraint::Any => true,
            };
            if near { 2 } else { 3 }
        }
    }
}

/// The service that a uid of a service or a route is about.
fn service_of(uid: &EntityUid) -> String {
    let id = uid.id().unescaped();
    id.split(':').next().unwrap_or_default().to_owned()
}

fn principal_covers(policy: &Policy, call: &CallFacts) -> bool {
    match policy.principal_constraint() {
        PrincipalConstraint::Any => true,
        PrincipalConstraint::Is(name) => is(&call.principal, &name),
        PrincipalConstraint::Eq(uid) => uid == call.principal,
        PrincipalConstraint::In(uid) => is_in(&call.principal, &uid, call),
        PrincipalConstraint::IsIn(name, uid) => is(&call.principal, &name) && is_in(&call.principal, &uid, call),
    }
}

fn action_covers(policy: &Policy, call: &CallFacts) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(uid) => uid == call.action,
        ActionConstraint::In(uids) => uids.iter().any(|uid| is_in(&call.action, uid, call)),
    }
}

fn resource_covers(policy: &Policy, call: &CallFacts) -> bool {
    match policy.resource_constraint() {
        ResourceConstraint::Any => true,
        ResourceConstraint::Is(name) => is(&call.resource, &name),
        ResourceConstraint::Eq(uid) => uid == call.resource,
        ResourceConstraint::In(uid) => is_in(&call.resource, &uid, call),
        ResourceConstraint::IsIn(name, uid) => is(&call.resource, &name) && is_in(&call.resource, &uid, call),
    }
}

/// Whether the scope covers what is done, whoever does it.
pub(crate) fn covers_deed(policy: &Policy, call: &CallFacts) -> bool {
    action_covers(policy, call) && resource_covers(policy, call)
}

fn is(uid: &EntityUid, name: &EntityTypeName) -> bool {
    uid.type_name() == name
}

/// Cedar's `in`: everything is in itself.
fn is_in(uid: &EntityUid, of: &EntityUid, call: &CallFacts) -> bool {
    uid == of || call.entities.is_ancestor_of(of, uid)
}

/// One request, of which conditions are asked one by one.
pub(crate) struct Question<'a> {
    call: &'a CallFacts,
    request: Option<Request>,
}

/// Why it is not known whether a condition holds.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotEvaluated {
    #[error("there is no such request")]
    NoRequest,
    #[error("`{0}` is neither true nor false")]
    NoBool(String),
    #[error(transparent)]
    Cedar(Box<EvaluationError>),
}

// === impl Question ===

impl<'a> Question<'a> {
    pub(crate) fn new(call: &'a CallFacts, context: Context) -> Self {
        let (principal, action, resource) = (call.principal.clone(), call.action.clone(), call.resource.clone());
        Self {
            call,
            request: Request::new(principal, action, resource, context, None).ok(),
        }
    }

    /// Whether a condition holds.
    ///
    /// # Errors
    /// Cedar's, if it cannot be evaluated.
    pub(crate) fn holds(&self, conjunct: &Conjunct) -> Result<bool, NotEvaluated> {
        let request = self.request.as_ref().ok_or(NotEvaluated::NoRequest)?;
        match eval_expression(request, &self.call.entities, &conjunct.expression) {
            Ok(EvalResult::Bool(holds)) => Ok(holds),
            Ok(other) => Err(NotEvaluated::NoBool(other.to_string())),
            Err(error) => Err(NotEvaluated::Cedar(Box::new(error))),
        }
    }

    /// As Cedar does it: one after the other, until one does not hold. Those after it are only added to the answer if
    /// they are plainly false.
    fn finding(&self, policy: &Policy, places: &Places<'_>) -> Finding {
        let mut unmet = Vec::new();
        for conjunct in conjuncts(policy) {
            match self.holds(&conjunct) {
                Ok(true) => {}
                Ok(false) => unmet.push(self.unmet(&conjunct, places)),
                Err(error) if unmet.is_empty() => {
                    let condition = self.unmet(&conjunct, places);
                    let error = error.to_string();
                    return Finding::Failed { condition, error };
                }
                // Cedar does not come this far.
                Err(_) => {}
            }
        }
        if unmet.is_empty() {
            Finding::Satisfied
        } else {
            Finding::Unsatisfied(unmet)
        }
    }

    fn unmet(&self, conjunct: &Conjunct, places: &Places<'_>) -> Unmet {
        let value = |expression| {
            let value = eval_expression(self.request.as_ref()?, &self.call.entities, expression);
            Some(value.map_or_else(|_| "not there".to_owned(), |value| value.to_string()))
        };
        let values = conjunct.looks_at.iter();
        Unmet {
            text: conjunct.text.clone(),
            place: places.place(conjunct.place.clone()),
            values: values
                .filter_map(|(name, expression)| Some((name.clone(), value(expression)?)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::possible::{Deed, about};
    use crate::samples::sources as files;
    use hoplite_identity::SpiffeId;
    use hoplite_policy::{Asked, CanonicalRequest, Source};
    use std::time::{Duration, SystemTime};

    const ROUTES: &str = "[ledger]\nroutes = [\"GET /accounts/{id}\", \"POST /entries\"]";
    const POLICIES: &str = "@id(\"read\")
permit(principal in Hoplite::Path::\"x/ns/web\", action == Hoplite::Action::\"GET\", resource in Hoplite::Service::\"ledger\")
when { context.seg.n == 2 &&
       context.seg has s1 && context.seg.s1 == \"7\" && context.conn.src.isInRange(ip(\"10.0.0.0/8\")) }
unless { context.conn.dow == \"Sun\" };
@id(\"write\")
permit(principal in Hoplite::Path::\"x/ns/web\", action in Hoplite::Action::\"write\", resource == Hoplite::Route::\"ledger:POST /entries\");
@id(\"other\")
permit(principal == Hoplite::Workload::\"spiffe://x/ns/pay/a\", action, resource in Hoplite::Service::\"ledger\");
@id(\"far\")
permit(principal in Hoplite::Path::\"x/ns/web\", action, resource in Hoplite::Service::\"orders\");
@id(\"nothing\")
permit(principal in Hoplite::Path::\"y/z\", action == Hoplite::Action::\"connect\", resource);
@id(\"stop\")
forbid(principal, action in Hoplite::Action::\"anyHttp\", resource) when { context.seg.n * 9223372036854775807 > 9 && context.host == \"x\" };
";

    fn sources() -> Vec<Source> {
        files(&[("a.cedar", POLICIES), ("routes.toml", ROUTES)])
    }

    fn ask(principal: &str, method: &str, path: &str, source: [u8; 4], seconds: u64) -> Ask {
        Ask {
            principal: SpiffeId::parse(principal).unwrap(),
            service: "ledger".parse().unwrap(),
            what: Asked::Http(CanonicalRequest::parse(method, &[b"ledger"], path.as_bytes()).unwrap()),
            source: source.into(),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        }
    }

    /// What the explanation says, one line each.
    fn lines(explanation: &Explanation) -> Vec<String> {
        let place = |place: &Option<Place>| place.as_ref().map_or("?".to_owned(), ToString::to_string);
        let unmet = |unmet: &Unmet| format!("{} {} {:?}", place(&unmet.place), unmet.text, unmet.values);
        let mut lines = Vec::new();
        for candidate in &explanation.candidates {
            let head = format!("{} {} {}", place(&candidate.place), candidate.effect, candidate.id);
            match &candidate.finding {
                Finding::Satisfied => lines.push(format!("{head}: satisfied")),
                Finding::Unsatisfied(conditions) => {
                    lines.extend(conditions.iter().map(|c| format!("{head}: not {}", unmet(c))));
                }
                Finding::Failed { condition, error } => {
                    lines.push(format!("{head}: failed {}: {error}", unmet(condition)));
                }
            }
        }
        for near in &explanation.near_misses {
            lines.push(format!("near {} {:?} {}", near.policy.id, near.miss, near.asked));
        }
        lines
    }

    #[test]
    fn every_condition_that_does_not_hold_is_named_with_its_place_and_values() {
        let sources = sources();
        let snapshot = Snapshot::compile(&sources).unwrap();
        let places = Places::of(&sources);
        let check = |ask: &Ask, verdict: Verdict, expected: &[&str]| {
            let explanation = explain(&snapshot, ask, &places);
            assert_eq!(explanation.what_if.decision().verdict(), verdict, "{ask:?}");
            let lines = lines(&explanation);
            assert_eq!(lines.len(), expected.len(), "{lines:#?}");
            for (line, expected) in lines.iter().zip(expected) {
                for part in expected.split(" … ") {
                    assert!(line.contains(part), "`{line}` lacks `{part}`");
                }
            }
        };
        // 4 January 1970 was a Sunday.
        check(
            &ask(
                "spiffe://x/ns/web/shop",
                "GET",
                "/accounts/8",
                [192, 168, 0, 1],
                3 * 86_400,
            ),
            Verdict::Error,
            &[
                "a.cedar:14:1 forbid stop: failed … context.seg.n * 9223372036854775807 > 9 … (\"seg.n\", \"2\") … integer overflow",
                "a.cedar:1:1 permit read: not a.cedar:4:30 context.seg.s1 == \"7\" [(\"seg.s1\", \"\\\"8\\\"\")]",
                "permit read: not a.cedar:4:55 context.conn.src.isInRange(ip(\"10.0.0.0/8\")) … 192.168.0.1",
                "permit read: not a.cedar:5:1 unless { context.conn.dow == \"Sun\" } [(\"conn.dow\", \"\\\"Sun\\\"\")]",
                "near other Principal Hoplite::Workload::\"spiffe://x/ns/web/shop\"",
                "near far Resource Hoplite::Route::\"ledger:GET /accounts/{id}\"",
            ],
        );
        // What comes after a failed test is not reached: no `s1` to speak of.
        check(
            &ask("spiffe://x/ns/web/shop", "GET", "/x", [10, 0, 0, 1], 0),
            Verdict::NoPermit,
            &[
                "stop: not … context.host == \"x\"",
                "read: not a.cedar:3:8 context.seg.n == 2",
                "read: not a.cedar:4:8 context.seg has s1",
                "near other Principal",
                "near far Resource",
            ],
        );
        check(
            &ask("spiffe://x/ns/web/shop", "DELETE", "/x", [10, 0, 0, 1], 0),
            Verdict::NoPermit,
            &[
                "stop: not",
                "near write Resource",
                "near read Action",
                "near other Principal",
                "near far Resource",
            ],
        );
        check(
            &ask("spiffe://x/ns/pay/a", "GET", "/x", [10, 0, 0, 1], 0),
            Verdict::Allow,
            &["stop: not", "permit other: satisfied", "near read Principal"],
        );
    }

    /// `in` holds of the entity itself, so whoever asks who can do something must hear of such a policy as well.
    #[test]
    fn a_scope_in_an_entity_covers_the_entity() {
        let text = "@id(\"db\") permit(principal in Hoplite::Workload::\"spiffe://x/ns/pay/a\", \
                    action in [Hoplite::Action::\"connect\"], resource in Hoplite::Service::\"ledger\");
@id(\"entries\") permit(principal in Hoplite::Workload::\"spiffe://x/ns/pay/a\", action in Hoplite::Action::\"POST\", \
                    resource in Hoplite::Route::\"ledger:POST /entries\");";
        let snapshot = Snapshot::compile(&files(&[("a.cedar", text), ("routes.toml", ROUTES)])).unwrap();
        let entries = CanonicalRequest::parse("POST", &[b"ledger"], b"/entries").unwrap();
        for (deed, expected) in [
            (Deed::Connect("ledger".parse().unwrap()), "db"),
            (Deed::Request("ledger".parse().unwrap(), entries), "entries"),
        ] {
            let about = about(&snapshot, &deed, &Places::default()).unwrap();
            let ids: Vec<_> = about.iter().map(|view| view.id.as_str()).collect();
            assert_eq!(ids, [expected], "{deed:?}");
        }
        // All of a scope but the resource, or but the action.
        let other = ask("spiffe://x/ns/pay/a", "POST", "/other", [10, 0, 0, 1], 0);
        assert_eq!(
            lines(&explain(&snapshot, &other, &Places::default())),
            [
                "near entries Resource Hoplite::Route::\"ledger:unmatched\"",
                "near db Action Hoplite::Action::\"POST\"",
            ]
        );
    }

    #[test]
    fn without_sources_there_are_no_places() {
        let snapshot = Snapshot::compile(&sources()).unwrap();
        let ask = ask("spiffe://x/ns/pay/a", "GET", "/x", [10, 0, 0, 1], 0);
        let explanation = explain(&snapshot, &ask, &Places::default());
        assert!(explanation.candidates.iter().all(|candidate| candidate.place.is_none()));
        let explanation = explain(&Snapshot::deny_all("none"), &ask, &Places::default());
        assert_eq!(explanation.what_if.decision().reason(), Some("none"));
        assert!(explanation.candidates.is_empty() && explanation.near_misses.is_empty());
    }

    /// The explanation asks condition by condition, the decision all at once: they must not contradict each other.
    #[test]
    fn findings_agree_with_the_decision() {
        let snapshot = Snapshot::compile(&sources()).unwrap();
        for principal in ["spiffe://x/ns/web/shop", "spiffe://x/ns/pay/a", "spiffe://y/z"] {
            for (method, path) in [
                ("GET", "/accounts/7"),
                ("GET", "/accounts/8"),
                ("GET", "/"),
                ("POST", "/entries"),
                ("PURGE", "/a/b/c/d/e"),
            ] {
                for source in [[10, 0, 0, 1], [11, 0, 0, 1]] {
                    for day in 0..7 {
                        let explanation = explain(
                            &snapshot,
                            &ask(principal, method, path, source, day * 86_400),
                            &Places::default(),
                        );
                        let decision = explanation.what_if.decision();
                        let satisfied = |effect| -> Vec<&str> {
                            let candidates = explanation.candidates.iter();
                            candidates
                                .filter(|c| c.effect == effect && c.finding == Finding::Satisfied)
                                .map(|c| c.id.as_str())
                                .collect()
                        };
                        let failed = explanation
                            .candidates
                            .iter()
                            .filter(|c| matches!(c.finding, Finding::Failed { .. }))
                            .count();
                        assert_eq!(failed, decision.errors().len());
                        let forbids = satisfied(Effect::Forbid);
                        let expected = if forbids.is_empty() {
                            satisfied(Effect::Permit)
                        } else {
                            forbids
                        };
                        if failed == 0 {
                            assert_eq!(decision.determining(), expected, "{decision:?}");
                        }
                    }
                }
            }
        }
    }
}
