//! Decides whether a verified peer may do what it asks.

use crate::evaluate::{Answer, CallFacts, Evaluator, Prepared};
use crate::request::AuthzRequest;
use crate::snapshot::Snapshot;
use crate::undecidable::Undecidable;
use cedar_policy::{Context, PolicyId};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What came out. Never just "denied".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// At least one permit and no forbid applies.
    Allow,
    /// A forbid applies, and every forbid could be evaluated.
    Forbid,
    /// The policies were all evaluated and none says anything about this request.
    NoPermit,
    /// It could not be decided: a forbid failed to evaluate, a permit failed and no other permits, there is no valid
    /// policy, or the evaluation broke down. [`Decision::reason`] says which.
    Error,
}

/// The whole answer. There is no second one: it cannot be cloned.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    verdict: Verdict,
    cedar_allows: bool,
    determining: Vec<String>,
    errors: Vec<String>,
    reason: Option<String>,
    panicked: bool,
    revision: Arc<str>,
}

/// Evidence that a decision allowed. Made only by [`Decision::permit`], used up by what it lets through.
///
/// ```compile_fail
/// fn forge(decision: hoplite_policy::Decision) -> hoplite_policy::Permit {
///     hoplite_policy::Permit { decision }
/// }
/// ```
///
/// ```compile_fail
/// fn twice(permit: hoplite_policy::Permit) -> [hoplite_policy::Permit; 2] {
///     [permit.clone(), permit]
/// }
/// ```
#[derive(Debug)]
pub struct Permit {
    decision: Decision,
}

/// A decision that did not allow.
#[derive(Debug, thiserror::Error)]
#[error("denied: {}", .0.verdict)]
pub struct Denied(pub Decision);

/// Asks Cedar about the policies whose scope covers the request, then applies what Cedar leaves open: an error in a
/// forbid denies. Cedar skips a policy that fails to evaluate, and a skipped forbid would let through what it was
/// written to stop. Counts what the policies did.
pub fn decide(snapshot: &Snapshot, request: &AuthzRequest) -> Decision {
    decide_by(snapshot, |evaluator| {
        let prepared = evaluator.prepared(request.name(), || request.call())?;
        let answer = prepared.answer(context(snapshot, evaluator, request)?)?;
        count(snapshot, evaluator, &prepared, &answer, request);
        Ok(answer)
    })
}

/// A decision the slow way: the unmodified authorizer over every policy, as it is written. Counts nothing.
///
/// It takes some 2 µs for each policy there is, relevant or not. It is what [`decide`] is compared with, and where the
/// two differ ([`Decision::differs`]) this one is right.
pub fn decide_by_reference(snapshot: &Snapshot, request: &AuthzRequest) -> Decision {
    decide_by(snapshot, |evaluator| {
        evaluator.reference(&request.call()?, context(snapshot, evaluator, request)?)
    })
}

/// As [`decide`], but counts nothing.
pub(crate) fn decide_uncounted(snapshot: &Snapshot, request: &AuthzRequest) -> Decision {
    decide_by(snapshot, |evaluator| {
        evaluator
            .prepared(request.name(), || request.call())?
            .answer(context(snapshot, evaluator, request)?)
    })
}

/// A header that a policy on this call may look at, and of which the request does not say what it is, or that it is absent.
pub(crate) fn unknown_header<'a>(
    snapshot: &'a Snapshot,
    evaluator: &Evaluator,
    request: &AuthzRequest,
) -> Result<Option<&'a str>, Undecidable> {
    let mut headers = snapshot.headers().iter();
    let Some(unknown) = headers.find(|header| !request.knows(header)) else {
        return Ok(None);
    };
    let prepared = evaluator.prepared(request.name(), || request.call())?;
    Ok(prepared.reads_headers().then_some(unknown))
}

/// What Cedar is asked, unless the answer could depend on a header of which nothing is known: to take it for absent could
/// open a door that a forbid holds shut.
fn context(snapshot: &Snapshot, evaluator: &Evaluator, request: &AuthzRequest) -> Result<Context, Undecidable> {
    match unknown_header(snapshot, evaluator, request)? {
        None => request.context(),
        Some(header) => Err(Undecidable::HeaderNotTold(header.to_owned())),
    }
}

/// As [`decide_by_reference`], of a call whose entities somebody else gives. Not public: a decision gives permits.
pub(crate) fn decide_as_given(snapshot: &Snapshot, call: &CallFacts, context: &Context) -> Decision {
    decide_by(snapshot, |evaluator| evaluator.reference(call, context.clone()))
}

fn decide_by(snapshot: &Snapshot, ask: impl FnOnce(&Evaluator) -> Result<Answer, Undecidable>) -> Decision {
    let evaluator = match snapshot.evaluator() {
        Ok(evaluator) => evaluator,
        Err(reason) => return Decision::broken(snapshot, reason),
    };
    // Everything shared is only read, or is a cache that takes whole entries; nothing is left half-changed by a panic.
    match catch_unwind(AssertUnwindSafe(|| ask(evaluator))) {
        Ok(Ok(answer)) => Decision::weigh(snapshot, answer),
        Ok(Err(reason)) => Decision::broken(snapshot, &reason.to_string()),
        Err(_) => Decision {
            panicked: true,
            ..Decision::broken(snapshot, "the evaluation of the policies panicked")
        },
    }
}

fn count(snapshot: &Snapshot, evaluator: &Evaluator, prepared: &Prepared, answer: &Answer, request: &AuthzRequest) {
    let counters = |ids: &[PolicyId]| -> Vec<_> {
        let numbers = ids.iter().filter_map(|id| evaluator.number(id));
        numbers.filter_map(|number| snapshot.counter(number)).collect()
    };
    for counter in prepared
        .candidates()
        .iter()
        .filter_map(|&number| snapshot.counter(number))
    {
        counter.candidate();
    }
    for (id, _) in &answer.errors {
        if let Some(counter) = evaluator.number(id).and_then(|number| snapshot.counter(number)) {
            counter.errored();
        }
    }
    let determining = if answer.forbids.is_empty() {
        &answer.permits
    } else {
        &answer.forbids
    };
    // Where a forbid could not be evaluated, that is what decided, whatever else was satisfied.
    let decided = !answer.errors.iter().any(|(id, _)| snapshot.is_forbid(id));
    for counter in counters(determining) {
        counter.satisfied();
        if decided {
            counter.determined(request.at());
        }
    }
    if !answer.forbids.is_empty() {
        // Permits that a forbid overruled; Cedar does not say which. Denials are rare enough to ask again.
        let overruled = request.context().and_then(|context| prepared.permits(context));
        for counter in counters(&overruled.unwrap_or_default()) {
            counter.satisfied();
        }
    }
}

// === impl Verdict ===

impl Verdict {
    /// The stable word for records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Forbid => "forbid",
            Self::NoPermit => "no_permit",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Decision ===

impl Decision {
    /// The evidence that forwarding needs.
    ///
    /// # Errors
    /// [`Denied`], with the decision, unless the verdict is [`Verdict::Allow`].
    pub fn permit(self) -> Result<Permit, Denied> {
        match self.verdict {
            Verdict::Allow => Ok(Permit { decision: self }),
            Verdict::Forbid | Verdict::NoPermit | Verdict::Error => Err(Denied(self)),
        }
    }

    /// What came out.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Cedar's own answer, before the rule about errors. False where Cedar was not asked.
    pub fn cedar_allows(&self) -> bool {
        self.cedar_allows
    }

    /// The ids of the policies that settled it, sorted: the permits of an allow, the forbids of a denial.
    pub fn determining(&self) -> &[String] {
        &self.determining
    }

    /// The policies that could not be evaluated, each as `id: message`, sorted.
    pub fn errors(&self) -> &[String] {
        &self.errors
    }

    /// Why it could not be decided: present exactly when the verdict is [`Verdict::Error`].
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The snapshot's revision.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the evaluation panicked: a fault of ours, that somebody should hear of.
    pub fn panicked(&self) -> bool {
        self.panicked
    }

    /// What is different in another decision on the same request, for people; `None` when nothing is.
    pub fn differs(&self, other: &Self) -> Option<String> {
        let parts = |d: &Self| {
            format!(
                "{} (cedar {}) by {:?}, errors {:?}",
                d.verdict,
                if d.cedar_allows { "allow" } else { "deny" },
                d.determining,
                d.errors
            )
        };
        let same = (self.verdict, self.cedar_allows, &self.determining, &self.errors)
            == (other.verdict, other.cedar_allows, &other.determining, &other.errors);
        (!same).then(|| format!("{} and not {}", parts(self), parts(other)))
    }

    /// Nothing could be asked.
    fn broken(snapshot: &Snapshot, reason: &str) -> Self {
        Self {
            verdict: Verdict::Error,
            cedar_allows: false,
            determining: Vec::new(),
            errors: Vec::new(),
            reason: Some(reason.to_owned()),
            panicked: false,
            revision: snapshot.shared_revision(),
        }
    }

    /// Turns what Cedar says into one of four verdicts.
    fn weigh(snapshot: &Snapshot, answer: Answer) -> Self {
        let cedar_allows = answer.allows();
        let settled_by = if answer.forbids.is_empty() {
            answer.permits
        } else {
            answer.forbids
        };
        let mut determining: Vec<String> = settled_by.iter().map(ToString::to_string).collect();
        determining.sort();

        let mut errors = Vec::new();
        let mut failed_forbids = Vec::new();
        for (id, error) in answer.errors {
            if snapshot.is_forbid(&id) {
                failed_forbids.push(id.to_string());
            }
            errors.push(format!("{id}: {error}"));
        }
        errors.sort();
        failed_forbids.sort();

        let (verdict, reason) = if !failed_forbids.is_empty() {
            (
                Verdict::Error,
                Some(format!(
                    "a forbid could not be evaluated: `{}`",
                    failed_forbids.join("`, `")
                )),
            )
        } else if cedar_allows {
            (Verdict::Allow, None)
        } else if !determining.is_empty() {
            (Verdict::Forbid, None)
        } else if !errors.is_empty() {
            (
                Verdict::Error,
                Some("no permit applies, and not all could be evaluated".to_owned()),
            )
        } else {
            (Verdict::NoPermit, None)
        };
        if verdict == Verdict::Error && cedar_allows {
            // Permits did not settle a denial.
            determining.clear();
        }
        Self {
            verdict,
            cedar_allows,
            determining,
            errors,
            reason,
            panicked: false,
            revision: snapshot.shared_revision(),
        }
    }
}

// === impl Permit ===

impl Permit {
    /// The decision that allowed.
    pub fn decision(&self) -> &Decision {
        &self.decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CanonicalRequest;
    use crate::request::{Caller, Transport};
    use crate::snapshot::tests::sources;
    use hoplite_identity::SpiffeId;
    use std::time::{Duration, SystemTime};

    const ROUTES: &str = "[ledger]\nroutes = [\"GET /accounts/{id}\", \"POST /entries\"]";
    /// Passes strict validation and overflows for a request of two segments.
    const OVERFLOW: &str = "context.seg.n * 9223372036854775807 > 0";

    fn snapshot(policies: &str) -> Snapshot {
        Snapshot::compile(&sources(&[("a.cedar", policies), ("routes.toml", ROUTES)])).unwrap()
    }

    fn connection() -> Transport {
        Transport::new([10, 20, 0, 1].into())
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_455_585) // Mon 23 Nov 2026, 17:39:45
    }

    /// `who` is the path of a caller in `prod.acme`.
    fn http(snapshot: &Snapshot, who: &str, method: &str, target: &str) -> AuthzRequest {
        let caller = SpiffeId::parse(&format!("spiffe://prod.acme{who}")).unwrap();
        let request = CanonicalRequest::parse(method, &[b"ledger"], target.as_bytes()).unwrap();
        let route = snapshot.routes().route(&"ledger".parse().unwrap(), &request);
        AuthzRequest::http(
            Caller::supposed(&caller),
            &"ledger".parse().unwrap(),
            &route,
            &request,
            &connection(),
            now(),
        )
    }

    fn ask(policies: &str, who: &str, method: &str, target: &str) -> Decision {
        let snapshot = snapshot(policies);
        decide(&snapshot, &http(&snapshot, who, method, target))
    }

    /// Asks `GET /accounts/7` as `/web`. The expectation is verdict, Cedar's own answer, determining, ids of errors.
    #[track_caller]
    fn check(policies: &str, expected: (Verdict, bool, &[&str], &[&str])) -> Decision {
        let decision = ask(policies, "/web", "GET", "/accounts/7");
        let errors: Vec<_> = decision
            .errors()
            .iter()
            .map(|e| e.split_once(": ").unwrap().0)
            .collect();
        let determining: Vec<_> = decision.determining().iter().map(String::as_str).collect();
        let found = (
            decision.verdict(),
            decision.cedar_allows(),
            determining.as_slice(),
            errors.as_slice(),
        );
        assert_eq!(found, expected, "{policies}\n{decision:?}");
        assert_eq!(decision.reason().is_some(), decision.verdict() == Verdict::Error);
        assert_eq!(
            ask(policies, "/web", "GET", "/accounts/7").permit().is_ok(),
            decision.verdict() == Verdict::Allow
        );
        decision
    }

    fn policy(id: &str, effect: &str, condition: &str) -> String {
        format!(
            "@id(\"{id}\") {effect} (principal, action in Hoplite::Action::\"anyHttp\", resource) when {{ {condition} }};\n"
        )
    }

    #[test]
    fn the_four_verdicts() {
        let permit = &policy("p", "permit", "true");
        let other = &policy("a", "permit", "context.seg.n == 2");
        let forbid = &policy("f", "forbid", "context.host == \"ledger\"");
        check("", (Verdict::NoPermit, false, &[], &[]));
        check(
            &policy("p", "permit", "context.seg.n == 3"),
            (Verdict::NoPermit, false, &[], &[]),
        );
        check(permit, (Verdict::Allow, true, &["p"], &[]));
        check(
            &[permit, other].map(String::as_str).concat(),
            (Verdict::Allow, true, &["a", "p"], &[]),
        );
        check(forbid, (Verdict::Forbid, false, &["f"], &[]));
        check(
            &[permit, forbid].map(String::as_str).concat(),
            (Verdict::Forbid, false, &["f"], &[]),
        );
    }

    #[test]
    fn a_header_of_which_nothing_is_known_is_not_taken_for_absent() {
        let text = "@id(\"in\") permit (principal, action, resource);\n@id(\"out\") forbid (principal, action == \
                    Hoplite::Action::\"POST\", resource) when { context.hdr has \"x-debug\" };";
        let sources = sources(&[("a.cedar", text), ("headers.toml", "headers = ['x-debug']")]);
        let snapshot = Snapshot::compile(&sources).unwrap();
        let caller = SpiffeId::parse("spiffe://prod.acme/web").unwrap();
        let decided = |method: &str, fields: Option<&[(&str, &[u8])]>| {
            let mut request = CanonicalRequest::parse(method, &[b"ledger"], b"/").unwrap();
            if let Some(fields) = fields {
                request = request
                    .with_headers(snapshot.headers(), fields.iter().copied())
                    .unwrap();
            }
            let route = snapshot.routes().route(&"ledger".parse().unwrap(), &request);
            let request = AuthzRequest::http(
                Caller::supposed(&caller),
                &"ledger".parse().unwrap(),
                &route,
                &request,
                &connection(),
                now(),
            );
            let decision = decide(&snapshot, &request);
            assert_eq!(decision.differs(&decide_by_reference(&snapshot, &request)), None);
            assert_eq!(decision.differs(&decide_uncounted(&snapshot, &request)), None);
            decision
        };
        assert_eq!(decided("POST", Some(&[])).verdict(), Verdict::Allow);
        assert_eq!(decided("POST", Some(&[("x-debug", b"1")])).verdict(), Verdict::Forbid);
        let unknown = decided("POST", None);
        assert_eq!((unknown.verdict(), unknown.cedar_allows()), (Verdict::Error, false));
        assert!(unknown.reason().unwrap().contains("`x-debug`"), "{unknown:?}");
        // Where no policy looks at a header there is nothing to know.
        assert_eq!(decided("GET", None).verdict(), Verdict::Allow);
    }

    #[test]
    fn an_error_in_a_forbid_denies() {
        let permit = &policy("p", "permit", "true");
        let forbid = &policy("f", "forbid", "true");
        let broken = &policy("broken", "forbid", OVERFLOW);
        let all = |parts: &[&String]| parts.iter().map(|p| p.as_str()).collect::<String>();
        // Cedar alone would let this one through.
        let decision = check(&all(&[permit, broken]), (Verdict::Error, true, &[], &["broken"]));
        assert!(decision.reason().unwrap().contains("`broken`"), "{decision:?}");
        assert!(decision.errors()[0].contains("overflow"), "{decision:?}");
        check(broken, (Verdict::Error, false, &[], &["broken"]));
        check(
            &all(&[permit, forbid, broken]),
            (Verdict::Error, false, &["f"], &["broken"]),
        );
    }

    #[test]
    fn an_error_in_a_permit_counts_only_where_no_other_permits() {
        let permit = &policy("p", "permit", "true");
        let forbid = &policy("f", "forbid", "true");
        let broken = &policy("broken", "permit", OVERFLOW);
        let all = |parts: &[&String]| parts.iter().map(|p| p.as_str()).collect::<String>();
        check(broken, (Verdict::Error, false, &[], &["broken"]));
        check(&all(&[permit, broken]), (Verdict::Allow, true, &["p"], &["broken"]));
        check(&all(&[forbid, broken]), (Verdict::Forbid, false, &["f"], &["broken"]));
    }

    #[test]
    fn a_snapshot_that_denies_all_says_why() {
        let snapshot = Snapshot::deny_all("`a.cedar` is broken");
        let decision = decide(&snapshot, &http(&snapshot, "/web", "GET", "/"));
        assert_eq!(
            (decision.verdict(), decision.reason()),
            (Verdict::Error, Some("`a.cedar` is broken"))
        );
        assert_eq!((decision.revision(), decision.cedar_allows()), ("none", false));
        assert!(decision.permit().is_err());
    }

    #[test]
    fn a_question_that_cannot_be_asked_is_an_error() {
        let snapshot = snapshot(&policy("p", "permit", "true"));
        let decision = decide(&snapshot, &http(&snapshot, &"/a".repeat(65), "GET", "/"));
        assert_eq!(decision.verdict(), Verdict::Error);
        assert!(decision.reason().unwrap().contains("path segments"));
    }

    #[test]
    fn a_panic_while_evaluating_is_an_error() {
        let snapshot = snapshot(&policy("p", "permit", "true"));
        let request = http(&snapshot, "/web", "GET", "/");
        let decision = decide_by(&snapshot, |_| panic!("on purpose"));
        assert_eq!(decision.verdict(), Verdict::Error);
        assert!(decision.reason().unwrap().contains("panicked") && decision.panicked());
        assert_eq!(decision.revision(), snapshot.revision());
        assert!(decision.permit().is_err());
        assert_eq!(decide(&snapshot, &request).verdict(), Verdict::Allow);
    }

    #[test]
    fn the_permit_keeps_its_decision() {
        let decide = || ask(&policy("p", "permit", "true"), "/web", "GET", "/");
        assert_eq!(*decide().permit().unwrap().decision(), decide());
    }

    /// Whether one permit with this scope allows the request.
    fn allows(scope: &str, who: &str, method: &str, target: &str) -> bool {
        let decision = ask(&format!("@id(\"p\") permit ({scope});"), who, method, target);
        assert!(
            matches!(decision.verdict(), Verdict::Allow | Verdict::NoPermit),
            "{decision:?}"
        );
        decision.verdict() == Verdict::Allow
    }

    #[test]
    fn action_groups() {
        let groups = |method: &str| {
            ["read", "write", "anyHttp"].map(|group| {
                allows(
                    &format!("principal, action in Hoplite::Action::\"{group}\", resource"),
                    "/web",
                    method,
                    "/",
                )
            })
        };
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert_eq!(groups(method), [true, false, true], "{method}");
        }
        for method in ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"] {
            assert_eq!(groups(method), [false, true, true], "{method}");
        }
        assert!(allows(
            "principal, action == Hoplite::Action::\"POST\", resource",
            "/web",
            "POST",
            "/"
        ));
        assert!(!allows(
            "principal, action == Hoplite::Action::\"POST\", resource",
            "/web",
            "PUT",
            "/"
        ));
    }

    #[test]
    fn path_groups() {
        for (who, group, expected) in [
            ("/ns/pay/sa/x", "Path::\"prod.acme/ns/pay/sa/x\"", true),
            ("/ns/pay/sa/x", "Path::\"prod.acme/ns/pay/sa\"", true),
            ("/ns/pay/sa/x", "Path::\"prod.acme/ns/pay\"", true),
            ("/ns/pay/sa/x", "Path::\"prod.acme/ns\"", true),
            ("/ns/pay/sa/x", "TrustDomain::\"prod.acme\"", true),
            ("/ns/pay/sa/x", "TrustDomain::\"acme\"", false),
            ("/ns/pay/sa/x", "Path::\"prod.acme/ns/pay/sa/x/y\"", false),
            ("/ns/pay/sa/x", "Path::\"prod.acme/ns/pa\"", false),
            ("/ns/pay2/sa/x", "Path::\"prod.acme/ns/pay\"", false),
            ("/web2", "Path::\"prod.acme/web\"", false),
            ("/web", "Path::\"prod.acme/web\"", true),
            ("/web", "Path::\"prod.acme/web2\"", false),
            ("/web", "Path::\"prod.acme/Web\"", false),
            ("/web", "Workload::\"spiffe://prod.acme/web\"", true),
            ("/web2", "Workload::\"spiffe://prod.acme/web\"", false),
            ("/web/x", "Workload::\"spiffe://prod.acme/web\"", false),
        ] {
            let scope = format!("principal in Hoplite::{group}, action in Hoplite::Action::\"read\", resource");
            assert_eq!(allows(&scope, who, "GET", "/"), expected, "{who} in {group}");
        }
    }

    #[test]
    fn routes_and_services() {
        for (method, target, resource, expected) in [
            (
                "GET",
                "/accounts/7",
                "== Hoplite::Route::\"ledger:GET /accounts/{id}\"",
                true,
            ),
            (
                "GET",
                "/accounts/7/",
                "== Hoplite::Route::\"ledger:GET /accounts/{id}\"",
                true,
            ),
            (
                "GET",
                "/accounts",
                "== Hoplite::Route::\"ledger:GET /accounts/{id}\"",
                false,
            ),
            ("GET", "/accounts", "== Hoplite::Route::\"ledger:unmatched\"", true),
            ("GET", "/accounts/7", "in Hoplite::Service::\"ledger\"", true),
            ("GET", "/nothing", "in Hoplite::Service::\"ledger\"", true),
            ("GET", "/accounts/7", "in Hoplite::Service::\"ledger2\"", false),
        ] {
            let scope = format!("principal, action in Hoplite::Action::\"anyHttp\", resource {resource}");
            assert_eq!(
                allows(&scope, "/web", method, target),
                expected,
                "{method} {target} {resource}"
            );
        }
    }

    #[test]
    fn connections_are_decided_by_service() {
        let policies = "@id(\"p\") permit (principal, action == Hoplite::Action::\"connect\", resource == Hoplite::Service::\"ledger\");";
        let snapshot = snapshot(policies);
        let caller = SpiffeId::parse("spiffe://prod.acme/web").unwrap();
        for (service, expected) in [("ledger", Verdict::Allow), ("orders", Verdict::NoPermit)] {
            let request = AuthzRequest::connect(
                Caller::supposed(&caller),
                &service.parse().unwrap(),
                &connection(),
                now(),
            );
            assert_eq!(decide(&snapshot, &request).verdict(), expected, "{service}");
        }
    }

    #[test]
    fn conditions_see_the_connection() {
        for (condition, expected) in [
            ("context.conn.src.isInRange(ip(\"10.20.0.0/16\"))", true),
            ("context.conn.src.isInRange(ip(\"10.21.0.0/16\"))", false),
            ("context.conn.dow == \"Mon\"", true),
            (
                "context.conn.now.toTime() >= duration(\"17h39m\") && context.conn.now.toTime() < duration(\"18h\")",
                true,
            ),
            ("context.conn.now < datetime(\"2026-11-23\")", false),
            ("context.seg has s1 && context.seg.s1 == \"7\"", true),
            ("context.seg has s2", false),
        ] {
            let decision = ask(&policy("p", "permit", condition), "/web", "GET", "/accounts/7");
            let expected = if expected { Verdict::Allow } else { Verdict::NoPermit };
            assert_eq!(decision.verdict(), expected, "{condition}\n{decision:?}");
        }
    }

    #[test]
    fn a_difference_from_the_reference_is_told() {
        let snapshot = snapshot(&policy("p", "permit", "true"));
        let request = http(&snapshot, "/web", "GET", "/");
        let (fast, slow) = (decide(&snapshot, &request), decide_by_reference(&snapshot, &request));
        assert_eq!(fast.differs(&slow), None);
        let other = Decision {
            verdict: Verdict::NoPermit,
            ..decide(&snapshot, &request)
        };
        assert!(
            other
                .differs(&slow)
                .unwrap()
                .contains("no_permit (cedar allow) by [\"p\"]")
        );
    }

    #[test]
    fn what_a_policy_did_is_counted() {
        let forbid = policy("f", "forbid", "context.seg.n == 2");
        let permit = policy("p", "permit", "context.seg.n > 0");
        let broken = policy("broken", "permit", OVERFLOW);
        let idle = "@id(\"idle\") permit (principal, action == Hoplite::Action::\"connect\", resource);";
        let old = snapshot(&[&*forbid, &permit, &broken, idle].concat());
        for target in ["/a/b", "/a", "/"] {
            decide(&old, &http(&old, "/web", "GET", target));
            decide_by_reference(&old, &http(&old, "/web", "GET", target));
        }
        let counts = |snapshot: &Snapshot, id: &str| {
            let counts = snapshot.counts().find(|(name, _)| *name == id).unwrap().1;
            let fired = counts.last_fired.map(|at| at == now());
            (
                counts.candidate,
                counts.satisfied,
                counts.determining,
                counts.errored,
                fired,
            )
        };
        assert_eq!(counts(&old, "f"), (3, 1, 1, 0, Some(true)));
        // Overruled once: satisfied, and yet not what decided.
        assert_eq!(counts(&old, "p"), (3, 2, 1, 0, Some(true)));
        // Satisfied for one segment, not for none; for two it overflows.
        assert_eq!(counts(&old, "broken"), (3, 1, 1, 1, Some(true)));
        assert_eq!(counts(&old, "idle"), (0, 0, 0, 0, None));

        let mut new = snapshot(&[&*policy("g", "forbid", "true"), &permit].concat());
        new.count_on(&old);
        assert_eq!(counts(&new, "p").0, 3);
        assert_eq!(counts(&new, "g").0, 0);

        // What decides is that a forbid cannot be evaluated, and nothing else.
        for effect in ["permit", "forbid"] {
            let stuck = snapshot(&[policy("x", effect, "true"), policy("broken", "forbid", OVERFLOW)].concat());
            decide(&stuck, &http(&stuck, "/web", "GET", "/a/b"));
            assert_eq!(counts(&stuck, "x"), (1, 1, 0, 0, None), "{effect}");
            assert_eq!(counts(&stuck, "broken"), (1, 0, 0, 1, None));
        }
    }
}
