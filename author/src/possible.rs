//! What could be decided when not everything about a request is known: who can do something, what can somebody do.

use crate::conjunct::{Conjunct, conjuncts};
use crate::explain::{Question, covers_deed};
use crate::view::{Effect, Places, PolicyView};
use cedar_policy::{Context, EntityUid, ResourceConstraint};
use hoplite_identity::{ServiceName, SpiffeId};
use hoplite_policy::{Ask, Asked, CallFacts, CanonicalRequest, Route, Snapshot, Undecidable};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::SystemTime;

/// Something that can be done to a service.
#[derive(Debug, Clone)]
pub enum Deed {
    /// Opening a connection to the service.
    Connect(ServiceName),
    /// A request of this method to the route, with some path, from anywhere, at any time.
    Route(String, Route),
    /// This request to the service, whatever its host, from anywhere, at any time.
    Request(ServiceName, CanonicalRequest),
}

/// What could be decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Possible {
    /// Allowed in any case, by these permits.
    Always(Vec<String>),
    /// Never allowed; by these forbids, or, if there are none, because nothing permits it.
    Never(Vec<String>),
    /// It depends on the conditions of these policies.
    Depends(Vec<Depends>),
}

/// A policy on whose conditions it depends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depends {
    /// The policy.
    pub id: String,
    /// What it does.
    pub effect: Effect,
    /// Those of its conditions that cannot be answered yet; none for a permit that holds in any case, which a forbid
    /// may overrule.
    pub conditions: Vec<String>,
}

/// What is known of a policy's conditions.
enum Known {
    Holds,
    HoldsNot,
    Open(Vec<String>),
}

// === impl Deed ===

impl Deed {
    /// The service it is done to.
    pub fn service(&self) -> &ServiceName {
        match self {
            Self::Connect(service) | Self::Request(service, _) => service,
            Self::Route(_, route) => route.service(),
        }
    }

    /// What Cedar would be asked, as far as it is known.
    fn facts(&self, snapshot: &Snapshot, principal: &SpiffeId) -> Result<(CallFacts, Context), Undecidable> {
        let named = |method, service, route| {
            let facts = CallFacts::supposed(principal, method, service, route)?;
            Ok((facts, Context::empty()))
        };
        match self {
            Self::Connect(service) => named(None, service, None),
            Self::Route(method, route) => named(Some(method.as_str()), route.service(), Some(route)),
            Self::Request(service, http) => {
                let ask = Ask {
                    principal: principal.clone(),
                    service: service.clone(),
                    what: Asked::Http(http.clone()),
                    // Only of the path is anything asked, see `knows`.
                    source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    now: SystemTime::UNIX_EPOCH,
                };
                ask.facts(snapshot)
            }
        }
    }

    /// Whether all that the condition looks at is known.
    fn knows(&self, conjunct: &Conjunct) -> bool {
        let known = |name: &str| matches!(self, Self::Request(..)) && (name == "seg" || name.starts_with("seg."));
        !conjunct.looks_at_all && conjunct.looks_at.iter().all(|(name, _)| known(name))
    }
}

/// What could be decided if this caller did this. A condition on what is not known can go either way; that two
/// conditions may exclude each other is not noticed.
///
/// # Errors
/// Why nothing can be decided at all: there is no policy, or the caller cannot be one.
pub fn possible(snapshot: &Snapshot, principal: &SpiffeId, deed: &Deed) -> Result<Possible, Undecidable> {
    anything(snapshot)?;
    let (call, context) = deed.facts(snapshot, principal)?;
    let (mut permits, mut forbids, mut sure, mut stopped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for policy in snapshot.covering(&call) {
        let (id, effect) = (policy.id().to_string(), Effect::from(policy.effect()));
        let known = known(deed, &call, &context, &conjuncts(policy), effect);
        let depends = |conditions| Depends {
            id: id.clone(),
            effect,
            conditions,
        };
        match (effect, known) {
            (_, Known::HoldsNot) => {}
            (Effect::Forbid, Known::Holds) => stopped.push(id),
            (Effect::Forbid, Known::Open(conditions)) => forbids.push(depends(conditions)),
            (Effect::Permit, Known::Holds) => {
                permits.push(depends(Vec::new()));
                sure.push(id);
            }
            (Effect::Permit, Known::Open(conditions)) => permits.push(depends(conditions)),
        }
    }
    stopped.sort();
    sure.sort();
    Ok(if !stopped.is_empty() || permits.is_empty() {
        Possible::Never(stopped)
    } else if !sure.is_empty() && forbids.is_empty() {
        Possible::Always(sure)
    } else {
        let mut all: Vec<_> = permits.into_iter().chain(forbids).collect();
        all.sort_by(|a, b| (a.effect, &a.id).cmp(&(b.effect, &b.id)));
        Possible::Depends(all)
    })
}

/// The policies whose action and resource cover the deed, whoever does it; sorted by id.
///
/// # Errors
/// Why nothing can be decided at all.
pub fn about(snapshot: &Snapshot, deed: &Deed, places: &Places<'_>) -> Result<Vec<PolicyView>, Undecidable> {
    anything(snapshot)?;
    let anybody = SpiffeId::parse("spiffe://anybody")?;
    let (call, _) = deed.facts(snapshot, &anybody)?;
    let mut views: Vec<_> = snapshot
        .policies()
        .filter(|policy| covers_deed(policy, &call))
        .map(|policy| PolicyView::of(policy, places))
        .collect();
    views.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(views)
}

/// Every service that has routes or that a policy names, sorted.
pub fn services(snapshot: &Snapshot) -> BTreeSet<ServiceName> {
    let named = snapshot
        .policies()
        .filter_map(|policy| match policy.resource_constraint() {
            ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => Some(uid),
            ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        });
    // A name that no service can have is a fault of the policy set, which its check tells.
    let service = |uid: &EntityUid| {
        let id = uid.id().unescaped();
        ServiceName::parse(id.split(':').next().unwrap_or_default()).ok()
    };
    named
        .filter_map(|uid| service(&uid))
        .chain(snapshot.routes().services().cloned())
        .collect()
}

/// Whether anything can be decided at all.
fn anything(snapshot: &Snapshot) -> Result<(), Undecidable> {
    snapshot
        .deny_all_reason()
        .map_or(Ok(()), |reason| Err(Undecidable::NoPolicy(reason.to_owned())))
}

/// What can be said of conditions without knowing everything. A permit with one that surely fails never permits, whatever
/// the others do. A forbid must be sure not to stumble over one before: a forbid that fails denies.
fn known(deed: &Deed, call: &CallFacts, context: &Context, conditions: &[Conjunct], effect: Effect) -> Known {
    let question = Question::new(call, context.clone());
    let mut open = Vec::new();
    for conjunct in conditions {
        if !deed.knows(conjunct) {
            open.push(conjunct.text.clone());
            continue;
        }
        match (question.holds(conjunct), effect) {
            (Ok(true), _) => {}
            (_, Effect::Permit) => return Known::HoldsNot,
            (Ok(false), Effect::Forbid) if open.is_empty() => return Known::HoldsNot,
            (Err(_), Effect::Forbid) if open.is_empty() => return Known::Holds,
            (_, Effect::Forbid) => open.push(conjunct.text.clone()),
        }
    }
    if open.is_empty() {
        Known::Holds
    } else {
        Known::Open(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_policy::Source;

    const POLICIES: &str = r#"
@id("read") permit(principal in Hoplite::Path::"x/web", action in Hoplite::Action::"read", resource in Hoplite::Service::"ledger");
@id("mon") permit(principal in Hoplite::Path::"x/web", action == Hoplite::Action::"POST", resource in Hoplite::Service::"ledger")
  when { context.seg has s1 && context.seg.s1 == "7" && context.conn.dow == "Mon" };
@id("db") permit(principal == Hoplite::Workload::"spiffe://x/web/a", action == Hoplite::Action::"connect", resource == Hoplite::Service::"db");
@id("no") forbid(principal in Hoplite::Path::"x/bad", action, resource);
@id("dos") forbid(principal, action == Hoplite::Action::"HEAD", resource) when { context.seg.n > 2 };
@id("host") forbid(principal, action == Hoplite::Action::"OPTIONS", resource) when { context.host == "x" && context.seg.n > 2 };
@id("whole") permit(principal in Hoplite::Path::"x/all", action, resource is Hoplite::Route) when { {a: context.conn.dow} == {a: "Mon"} };
"#;

    fn possible(principal: &str, deed: &Deed) -> String {
        let source = |name: &str, text: &str| Source {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        let routes = "[ledger]\nroutes = [\"* /a/{b}\"]";
        let snapshot = Snapshot::compile(&[source("a.cedar", POLICIES), source("routes.toml", routes)]).unwrap();
        match super::possible(&snapshot, &SpiffeId::parse(principal).unwrap(), deed).unwrap() {
            Possible::Always(by) => format!("always {}", by.join(" ")),
            Possible::Never(by) => format!("never {}", by.join(" ")),
            Possible::Depends(on) => on
                .iter()
                .map(|on| format!("{} {} [{}]", on.effect, on.id, on.conditions.join("; ")))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    #[test]
    fn only_what_is_sure_is_said_surely() {
        let route = Deed::Route("GET".into(), Route::unmatched(&"ledger".parse().unwrap()));
        assert_eq!(possible("spiffe://x/web/a", &route), "always read");
        assert_eq!(possible("spiffe://x/bad/a", &route), "never no");
        assert_eq!(possible("spiffe://x/other", &route), "never ");
        assert_eq!(
            possible("spiffe://x/all", &route),
            "permit whole [{a: context.conn.dow} == {a: \"Mon\"}]"
        );
        assert_eq!(
            possible("spiffe://x/web/a", &Deed::Connect("db".parse().unwrap())),
            "always db"
        );
        assert_eq!(
            possible("spiffe://x/web/b", &Deed::Connect("db".parse().unwrap())),
            "never "
        );

        let request = |method: &str, path: &str| {
            let http = CanonicalRequest::parse(method, &[b"h"], path.as_bytes()).unwrap();
            Deed::Request("ledger".parse().unwrap(), http)
        };
        let check = |method: &str, path: &str, expected: &str| {
            assert_eq!(
                possible("spiffe://x/web/a", &request(method, path)),
                expected,
                "{method} {path}"
            );
        };
        check("POST", "/a/7", "permit mon [context.conn.dow == \"Mon\"]");
        check("POST", "/a/8", "never ");
        check("POST", "/a", "never ");
        check("HEAD", "/a/7", "always read");
        check("HEAD", "/a/7/x", "never dos");
        // What is asked before is not known, and might fail.
        check(
            "OPTIONS",
            "/a",
            "permit read [], forbid host [context.host == \"x\"; context.seg.n > 2]",
        );
        let head = Deed::Route("HEAD".into(), Route::unmatched(&"ledger".parse().unwrap()));
        assert_eq!(
            possible("spiffe://x/web/a", &head),
            "permit read [], forbid dos [context.seg.n > 2]"
        );
    }
}
