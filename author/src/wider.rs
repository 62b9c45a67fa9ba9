//! Whether a forbid surely stops all that another did. Where that cannot be shown, it is not so: a person decides.

use crate::conjunct::{Condition, conditions};
use cedar_policy::{ActionConstraint, EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};
use hoplite_policy::text::VOCABULARY;
use hoplite_policy::{RoutePattern, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// The forbids of a set of policies, as far as they are compared.
pub(crate) struct Forbids<'a> {
    by_id: BTreeMap<String, Forbid<'a>>,
}

/// One of them.
pub(crate) struct Forbid<'a> {
    policy: &'a Policy,
    conditions: Vec<Condition>,
}

/// The routes that a set has and another had not, by service: what a route stood for before may be theirs now.
pub(crate) struct NewRoutes<'a> {
    by_service: BTreeMap<&'a str, Vec<NewRoute<'a>>>,
    after: &'a Snapshot,
}

/// One of them, after the service's name.
struct NewRoute<'a> {
    written: &'a str,
    pattern: RoutePattern,
}

// === impl Forbids ===

impl<'a> Forbids<'a> {
    pub(crate) fn of(set: &'a Snapshot) -> Self {
        let forbids = set
            .policies()
            .filter(|policy| policy.effect() == cedar_policy::Effect::Forbid);
        let by_id = forbids.map(|policy| {
            let conditions = conditions(policy);
            (policy.id().to_string(), Forbid { policy, conditions })
        });
        Self { by_id: by_id.collect() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Forbid<'a>)> {
        self.by_id.iter().map(|(id, forbid)| (id.as_str(), forbid))
    }

    /// Whether one of these stops all that another forbid did: the one of its id, or any other.
    pub(crate) fn keep(&self, id: &str, before: &Forbid<'_>, routes: &NewRoutes<'_>) -> bool {
        let keeps = |after: &Forbid<'_>| after.covers(before) && !routes.may_take_from(after);
        self.by_id.get(id).is_some_and(keeps) || self.by_id.values().any(keeps)
    }
}

// === impl Forbid ===

impl Forbid<'_> {
    /// Whether it stops whatever the other stops: its scope is as wide, and each of its conditions is one of the other's.
    fn covers(&self, other: &Forbid<'_>) -> bool {
        principals_cover(
            &self.policy.principal_constraint(),
            &other.policy.principal_constraint(),
        ) && actions_cover(&self.policy.action_constraint(), &other.policy.action_constraint())
            && resources_cover(&self.policy.resource_constraint(), &other.policy.resource_constraint())
            && fewer(&self.conditions, &other.conditions)
    }

    /// The routes that its scope names, and whether a condition of it names one.
    fn routes(&self) -> (Option<String>, bool) {
        let scope = match self.policy.resource_constraint() {
            ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => {
                (*uid.type_name() == VOCABULARY.route).then(|| uid.id().unescaped().to_owned())
            }
            ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        };
        let route = VOCABULARY.route.to_string();
        let in_conditions = self
            .conditions
            .iter()
            .any(|condition| condition.meaning.contains(&route));
        (scope, in_conditions)
    }
}

/// Whether the first are some of the second, in their order. One that is left out must not be able to fail: a forbid that
/// fails denies, and what comes after it might not.
fn fewer(these: &[Condition], those: &[Condition]) -> bool {
    let mut these = these.iter().peekable();
    for condition in those {
        if these.next_if(|next| next.meaning == condition.meaning).is_none() && condition.may_fail {
            return false;
        }
    }
    these.peek().is_none()
}

fn is_a(name: &EntityTypeName, uid: &EntityUid) -> bool {
    uid.type_name() == name
}

fn principals_cover(wide: &PrincipalConstraint, narrow: &PrincipalConstraint) -> bool {
    use PrincipalConstraint::{Any, Eq, In, Is, IsIn};
    match (wide, narrow) {
        (Any, _) => true,
        (Is(a), Is(b) | IsIn(b, _)) => a == b,
        (Is(a), Eq(b)) => is_a(a, b),
        // What is something is also in it.
        (Eq(a), Eq(b)) | (In(a), Eq(b) | In(b) | IsIn(_, b)) => a == b,
        (IsIn(a, x), IsIn(b, y)) => (a, x) == (b, y),
        (IsIn(a, x), Eq(y)) => x == y && is_a(a, y),
        _ => false,
    }
}

fn resources_cover(wide: &ResourceConstraint, narrow: &ResourceConstraint) -> bool {
    use ResourceConstraint::{Any, Eq, In, Is, IsIn};
    match (wide, narrow) {
        (Any, _) => true,
        (Is(a), Is(b) | IsIn(b, _)) => a == b,
        (Is(a), Eq(b)) => is_a(a, b),
        (Eq(a), Eq(b)) => a == b,
        (In(a), Eq(b) | In(b) | IsIn(_, b)) => a == b || is_route_of(b, a),
        (IsIn(a, x), IsIn(b, y)) => (a, x) == (b, y),
        (IsIn(a, x), Eq(y)) => x == y && is_a(a, y),
        _ => false,
    }
}

fn actions_cover(wide: &ActionConstraint, narrow: &ActionConstraint) -> bool {
    use ActionConstraint::{Any, Eq, In};
    match (wide, narrow) {
        (Any, _) => true,
        (Eq(a), Eq(b)) => a == b,
        (In(all), Eq(one)) => all.contains(one),
        (In(all), In(some)) => some.iter().all(|one| all.contains(one)),
        (Eq(_), Any | In(_)) | (In(_), Any) => false,
    }
}

/// Whether the first is a route of the service that the second is.
fn is_route_of(route: &EntityUid, service: &EntityUid) -> bool {
    let route_id = route.id().unescaped();
    *route.type_name() == VOCABULARY.route
        && *service.type_name() == VOCABULARY.service
        && route_id
            .split_once(':')
            .is_some_and(|(of, _)| of == service.id().unescaped())
}

// === impl NewRoutes ===

impl<'a> NewRoutes<'a> {
    pub(crate) fn between(before: &Snapshot, after: &'a Snapshot) -> Self {
        let mut by_service: BTreeMap<&str, Vec<NewRoute<'_>>> = BTreeMap::new();
        for service in after.routes().services() {
            let old: BTreeSet<&str> = before.routes().of(service).map(|(route, _)| route.as_str()).collect();
            let routes = after.routes().of(service).map(|(route, _)| route.as_str());
            let new: Vec<_> = routes
                .filter(|route| !old.contains(route))
                .filter_map(|route| {
                    let (_, written) = route.split_once(':')?;
                    let pattern = RoutePattern::parse(written).ok()?;
                    Some(NewRoute { written, pattern })
                })
                .collect();
            if !new.is_empty() {
                by_service.insert(service.as_str(), new);
            }
        }
        Self { by_service, after }
    }

    /// Whether requests that a forbid stopped by their route may have another now.
    fn may_take_from(&self, forbid: &Forbid<'_>) -> bool {
        let (scope, in_conditions) = forbid.routes();
        if in_conditions && !self.by_service.is_empty() {
            return true;
        }
        let Some(route) = scope else { return false };
        let Some((service, what)) = route.split_once(':') else {
            return true;
        };
        let new = self.by_service.get(service).map_or(&[] as &[_], Vec::as_slice);
        // What is no pattern is the route of everything else, or of a set that does not load.
        let pattern = RoutePattern::parse(what).ok();
        let overlapping = new.iter().any(|new| {
            let overlaps = pattern.as_ref().is_none_or(|pattern| pattern.overlaps(&new.pattern));
            new.written != what && overlaps
        });
        overlapping || !self.after.routes().has(&route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::sources;

    fn set(policies: &str, routes: &str) -> Snapshot {
        Snapshot::compile(&sources(&[("a.cedar", policies), ("routes.toml", routes)])).unwrap()
    }

    /// Whether the second forbids keep the first one, `f`.
    #[track_caller]
    fn check(before: &str, after: &str, expected: bool) {
        let (before, after) = (set(before, ""), set(after, ""));
        let (old, new) = (Forbids::of(&before), Forbids::of(&after));
        let kept = new.keep("f", &old.by_id["f"], &NewRoutes::between(&before, &after));
        assert_eq!(kept, expected);
    }

    fn forbid(scope: &str, conditions: &str) -> String {
        format!("@id(\"f\") forbid ({scope}) {conditions};")
    }

    #[test]
    fn a_scope_that_is_as_wide_keeps_a_forbid() {
        let any = "principal, action, resource";
        let path = |path: &str| format!("principal in Hoplite::Path::\"{path}\", action, resource");
        let resource = |resource: &str| format!("principal, action, {resource}");
        let action = |action: &str| format!("principal, {action}, resource");
        let (service, route) = (
            resource("resource in Hoplite::Service::\"s\""),
            resource("resource == Hoplite::Route::\"s:unmatched\""),
        );
        let (get, some) = (
            action("action == Hoplite::Action::\"GET\""),
            action("action in [Hoplite::Action::\"GET\", Hoplite::Action::\"PUT\"]"),
        );
        for (before, after, expected) in [
            (any, any, true),
            (&path("x/a"), any, true),
            (any, &path("x/a"), false),
            (&path("x/a"), &path("x/b"), false),
            (&service, &service, true),
            (&route, &service, true),
            (&service, &route, false),
            (&get, &some, true),
            (&some, &get, false),
            (&some, &some, true),
        ] {
            check(&forbid(before, ""), &forbid(after, ""), expected);
        }
        let is_in = "principal is Hoplite::Workload in Hoplite::Path::\"x/a\", action, resource";
        check(&forbid(is_in, ""), &forbid(&path("x/a"), ""), true);
        check(&forbid(&path("x/a"), ""), &forbid(is_in, ""), false);
        let one = "principal == Hoplite::Workload::\"spiffe://x/a\", action, resource";
        check(
            &forbid(one, ""),
            &forbid("principal is Hoplite::Workload, action, resource", ""),
            true,
        );
    }

    #[test]
    fn fewer_conditions_keep_a_forbid() {
        let any = "principal, action, resource";
        let (mon, night) = (
            "context.conn.dow == \"Mon\"",
            "context.conn.src.isInRange(ip(\"10.0.0.0/8\"))",
        );
        for (before, after, expected) in [
            (
                format!("when {{ {mon} }}"),
                "when {context.conn.dow  ==\n\"Mon\"}".to_owned(),
                true,
            ),
            (
                format!("when {{ {mon} && {night} }}"),
                format!("when {{ {mon} }}"),
                true,
            ),
            (
                format!("when {{ {mon} && {night} }}"),
                format!("when {{ {night} }}"),
                true,
            ),
            (
                format!("when {{ {mon} }} unless {{ {night} }}"),
                format!("when {{ {mon} }}"),
                true,
            ),
            (format!("when {{ {mon} }}"), String::new(), true),
            (String::new(), format!("when {{ {mon} }}"), false),
            (
                format!("when {{ {mon} }}"),
                format!("when {{ {mon} }} unless {{ {night} }}"),
                false,
            ),
            (format!("when {{ {mon} }}"), format!("unless {{ {mon} }}"), false),
            (
                format!("unless {{ {mon} }}"),
                format!("unless {{ {mon} || {night} }}"),
                false,
            ),
            // Another order may fail elsewhere.
            (
                format!("when {{ {mon} && {night} }}"),
                format!("when {{ {night} && {mon} }}"),
                false,
            ),
            // What may overflow denies when it does.
            (
                format!("when {{ 1 + 2 == 3 && {mon} }}"),
                format!("when {{ {mon} }}"),
                false,
            ),
        ] {
            check(&forbid(any, &before), &forbid(any, &after), expected);
        }
    }

    #[test]
    fn another_forbid_may_keep_it() {
        let narrow = forbid("principal in Hoplite::Path::\"x/a\", action, resource", "");
        check(
            &narrow,
            "@id(\"renamed\") forbid (principal in Hoplite::Path::\"x/a\", action, resource);",
            true,
        );
        check(
            &narrow,
            "@id(\"f\") permit (principal in Hoplite::Path::\"x/a\", action, resource);",
            false,
        );
        check(&narrow, "@id(\"all\") forbid (principal, action, resource);", true);
        check(&narrow, "// gone", false);
    }

    #[test]
    fn a_new_route_may_take_requests_from_a_forbid() {
        let on = |route: &str| {
            forbid(
                &format!("principal, action, resource == Hoplite::Route::\"{route}\""),
                "",
            )
        };
        let table = |routes: &str| format!("[s]\nroutes = [{routes}]\n");
        for (route, before, after, expected) in [
            (
                "s:GET /a/{id}",
                "\"GET /a/{id}\"",
                "\"GET /a/{id}\", \"GET /b/{id}\", \"POST /a/x\"",
                true,
            ),
            (
                "s:GET /a/{id}",
                "\"GET /a/{id}\"",
                "\"GET /a/{id}\", \"GET /a/self\"",
                false,
            ),
            ("s:* /a/{id}", "\"* /a/{id}\"", "\"* /a/{id}\", \"GET /a/{id}\"", false),
            (
                "s:GET /a/{id}",
                "\"GET /a/{id}\", \"GET /a/self\"",
                "\"GET /a/{id}\"",
                true,
            ),
            (
                "s:GET /a/{id}",
                "\"GET /a/{id}\"",
                "\"GET /a/{id}\", \"GET /a/{id}.json\"",
                false,
            ),
            (
                "s:GET /a/{id}.json",
                "\"GET /a/{id}.json\"",
                "\"GET /a/{id}.json\", \"GET /a/{id}.xml\"",
                true,
            ),
            (
                "s:GET /a/x-{id}",
                "\"GET /a/x-{id}\"",
                "\"GET /a/x-{id}\", \"GET /a/{id}.json\"",
                false,
            ),
            ("s:unmatched", "\"GET /a\"", "\"GET /a\", \"GET /b\"", false),
            ("s:unmatched", "\"GET /a\", \"GET /b\"", "\"GET /a\"", true),
        ] {
            let policy = on(route);
            let (before, after) = (set(&policy, &table(before)), set(&policy, &table(after)));
            let (old, new) = (Forbids::of(&before), Forbids::of(&after));
            let kept = new.keep("f", &old.by_id["f"], &NewRoutes::between(&before, &after));
            assert_eq!(kept, expected, "{route}");
        }
        // A set whose forbid names a route that is gone is no set at all.
        let files = [
            ("a.cedar", &*on("s:GET /a/{id}")),
            ("routes.toml", &*table("\"GET /a/{other}\"")),
        ];
        let faults = Snapshot::compile(&sources(&files)).unwrap_err();
        assert!(
            faults[0].to_string().contains("has no route `s:GET /a/{id}`"),
            "{faults:?}"
        );
    }
}
