//! The authorization request: the one place where what the proxy knows becomes what policy sees.

use crate::calendar::{LAST_SECOND, seconds};
use crate::cedar::{HEADERS, Node, Value, context, entities};
use crate::evaluate::{CallFacts, CallName};
use crate::schema::{VOCABULARY, uid};
use crate::undecidable::Undecidable;
use crate::{CanonicalRequest, Route};
use cedar_policy::{Context, RestrictedExpression};
use hoplite_identity::{ServiceName, SpiffeId, VerifiedPeer};
use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The most segments of a caller's SPIFFE path. Each is a group of its own; a caller with more is not decided on,
/// since a policy about a group left out would not be asked.
pub const PATH_GROUPS_MAX: usize = 64;

/// The days of the week as policies see them, from that of 1 January 1970, a Thursday.
pub(crate) const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// Who calls, and how that is known.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    id: &'a SpiffeId,
}

/// Where calls come from: what is true of every request of a connection. Make it once for each: an address costs more than a decision.
#[derive(Debug, Clone)]
pub struct Transport {
    src: Result<Value, Undecidable>,
}

/// Principal, action, resource and context. Only a [`Caller`] can be the principal.
#[derive(Debug, Clone)]
pub struct AuthzRequest {
    principal: SpiffeId,
    action: &'static str,
    resource: Resource,
    at: SystemTime,
    /// The selected headers of which something is known.
    headers: Vec<Arc<str>>,
    /// What Cedar is asked, or why it cannot be: then the decision is an error, never an allow.
    context: Result<Context, Undecidable>,
}

#[derive(Debug, Clone)]
enum Resource {
    Service(ServiceName),
    Route(Route),
}

// === impl Caller ===

impl<'a> Caller<'a> {
    /// Somebody whose certificate another proxy has verified. The word of whoever names the caller here is as good as a
    /// verified certificate, so that must be a process that we know to verify them, about a connection it ended itself.
    pub fn danger_vouched_for(id: &'a SpiffeId) -> Self {
        Self { id }
    }

    /// The name it has.
    pub fn id(self) -> &'a SpiffeId {
        self.id
    }

    /// A caller supposed, for a question whose answer opens nothing.
    pub(crate) fn supposed(id: &'a SpiffeId) -> Self {
        Self { id }
    }
}

impl<'a> From<&'a VerifiedPeer> for Caller<'a> {
    fn from(peer: &'a VerifiedPeer) -> Self {
        Self { id: peer.spiffe_id() }
    }
}

// === impl Transport ===

impl Transport {
    /// What comes from this address.
    pub fn new(source: IpAddr) -> Self {
        // An IPv4 peer of a dual-stack socket must be in the ranges policies write for IPv4.
        let address = RestrictedExpression::new_ip(source.to_canonical().to_string());
        Self {
            src: Value::evaluate(address),
        }
    }

    fn value(&self, now: SystemTime) -> Result<Value, Undecidable> {
        let (now, day) = instant(now)?;
        Ok(Value::record([("src", self.src.clone()?), ("now", now), ("dow", day)]))
    }
}

// === impl AuthzRequest ===

impl AuthzRequest {
    /// An L4 connection to a service.
    pub fn connect<'a>(
        caller: impl Into<Caller<'a>>,
        service: &ServiceName,
        transport: &Transport,
        now: SystemTime,
    ) -> Self {
        Self {
            principal: caller.into().id.clone(),
            action: "connect",
            resource: Resource::Service(service.clone()),
            at: now,
            headers: Vec::new(),
            context: transport.value(now).map(|conn| context([("conn", conn)])),
        }
    }

    /// One HTTP request to a route of a service. The route must be the service's own.
    pub fn http<'a>(
        caller: impl Into<Caller<'a>>,
        service: &ServiceName,
        route: &Route,
        request: &CanonicalRequest,
        transport: &Transport,
        now: SystemTime,
    ) -> Self {
        let context = if route.service() == service {
            transport.value(now).map(|conn| {
                let known = [
                    ("conn", conn),
                    ("host", Value::string(request.host())),
                    ("seg", seg(request)),
                ];
                context(known.into_iter().chain(hdr(request)))
            })
        } else {
            Err(Undecidable::ForeignRoute {
                route: route.to_string(),
                service: service.clone(),
            })
        };
        Self {
            principal: caller.into().id.clone(),
            action: action_of(request.method()),
            resource: Resource::Route(route.clone()),
            at: now,
            headers: request.known_headers().collect(),
            context,
        }
    }

    /// A call of which nothing but its name is known: to a route of a service, or to a service.
    fn without_context(
        principal: &SpiffeId,
        method: Option<&str>,
        service: &ServiceName,
        route: Option<&Route>,
    ) -> Self {
        Self {
            principal: principal.clone(),
            action: method.map_or("connect", action_of),
            resource: match route {
                Some(route) => Resource::Route(route.clone()),
                None => Resource::Service(service.clone()),
            },
            at: SystemTime::UNIX_EPOCH,
            headers: Vec::new(),
            context: Err(Undecidable::NoContext),
        }
    }

    /// The caller's SPIFFE ID.
    pub fn principal(&self) -> &str {
        self.principal.as_str()
    }

    /// The action's name: `connect`, a method, or `other`.
    pub fn action(&self) -> &'static str {
        self.action
    }

    /// The service (L4) or the route (HTTP).
    pub fn resource(&self) -> &str {
        match &self.resource {
            Resource::Service(service) => service.as_str(),
            Resource::Route(route) => route.as_str(),
        }
    }

    pub(crate) fn at(&self) -> SystemTime {
        self.at
    }

    /// Whether it is known of this header what it is, or that it is absent.
    pub(crate) fn knows(&self, header: &str) -> bool {
        self.headers.iter().any(|known| **known == *header)
    }

    pub(crate) fn name(&self) -> CallName<'_> {
        CallName {
            principal: self.principal(),
            action: self.action,
            resource: self.resource(),
        }
    }

    pub(crate) fn context(&self) -> Result<Context, Undecidable> {
        self.context.clone()
    }

    /// The call with every entity it speaks of: the three of its name and all their ancestors. The context of our schema
    /// names no entities.
    pub(crate) fn call(&self) -> Result<CallFacts, Undecidable> {
        let principal = workload(&self.principal)?;
        let action = VOCABULARY
            .action(self.action)
            .ok_or(Undecidable::NoAction(self.action))?;
        let (resource, owner) = match &self.resource {
            Resource::Service(service) => (Node::new(uid(&VOCABULARY.service, service.as_str()), []), None),
            Resource::Route(route) => {
                let service = uid(&VOCABULARY.service, route.service().as_str());
                let route = Node::new(uid(&VOCABULARY.route, route.as_str()), [service.clone()]);
                (route, Some(Node::new(service, [])))
            }
        };
        let uids = (principal.uid(), action.uid(), resource.uid());
        // INVARIANT: all that policies can ask about is among the entities, with its groups. An action without its
        // entity is silently in no group.
        let nodes = [principal, resource, action.clone()].into_iter().chain(owner);
        Ok(CallFacts {
            principal: uids.0,
            action: uids.1,
            resource: uids.2,
            entities: entities(nodes)?,
        })
    }
}

// === impl CallFacts ===

impl CallFacts {
    /// What is known of a call by its name alone: who would do it, by which method to which route of a service, or, without
    /// a route, that it is a connection to the service. Nothing can be forwarded for it.
    ///
    /// # Errors
    /// Why no policy can be asked about such a call.
    pub fn supposed(
        principal: &SpiffeId,
        method: Option<&str>,
        service: &ServiceName,
        route: Option<&Route>,
    ) -> Result<Self, Undecidable> {
        AuthzRequest::without_context(principal, method, service, route).call()
    }
}

/// The caller with every group it is in. The groups need no entities of their own.
fn workload(id: &SpiffeId) -> Result<Node, Undecidable> {
    // An agent's or an operator's certificate is not for calling services, whatever a policy says of all of the trust domain.
    if id.is_reserved() {
        return Err(Undecidable::Reserved(id.clone()));
    }
    if id.segments().count() > PATH_GROUPS_MAX {
        return Err(Undecidable::TooManyGroups(PATH_GROUPS_MAX));
    }
    let mut groups = vec![uid(&VOCABULARY.trust_domain, id.trust_domain().as_str())];
    let mut prefix = id.trust_domain().as_str().to_owned();
    for segment in id.segments() {
        prefix.push('/');
        prefix.push_str(segment);
        groups.push(uid(&VOCABULARY.path, &prefix));
    }
    Ok(Node::new(uid(&VOCABULARY.workload, id.as_str()), groups))
}

/// The action of a method; a method without an action of its own is `other`.
fn action_of(method: &str) -> &'static str {
    const METHODS: [&str; 7] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];
    METHODS.into_iter().find(|&known| known == method).unwrap_or("other")
}

fn seg(request: &CanonicalRequest) -> Value {
    let count = i64::try_from(request.segments().len()).unwrap_or(i64::MAX);
    let first = ["s0", "s1", "s2", "s3"]
        .into_iter()
        .zip(request.segments())
        .map(|(name, segment)| (name, Value::string(segment)));
    Value::record(first.chain([("n", Value::long(count))]))
}

/// The selected headers that are there; nothing where none is selected.
fn hdr(request: &CanonicalRequest) -> Option<(&'static str, Value)> {
    let headers = request.headers();
    let there = headers.len() > 0;
    let present = headers.filter_map(|(name, value)| Some((name, Value::string(value?))));
    there.then(|| (HEADERS, Value::record(present)))
}

/// The whole second of the instant, and its day of the week. Requests come many to a second, so the last one is kept.
fn instant(now: SystemTime) -> Result<(Value, Value), Undecidable> {
    thread_local! {
        static LAST: RefCell<Option<(u64, Value, Value)>> = const { RefCell::new(None) };
    }
    let (second, day) = second(now);
    LAST.with_borrow_mut(|last| {
        if let Some((kept, now, day)) = last
            && *kept == second
        {
            return Ok((now.clone(), day.clone()));
        }
        let text = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).to_string();
        let now = Value::evaluate(RestrictedExpression::new_datetime(text))?;
        let day = Value::string(day);
        *last = Some((second, now.clone(), day.clone()));
        Ok((now, day))
    })
}

/// Seconds since 1970, in UTC, and the day of the week. A clock outside 1970…9999 is taken to its end.
fn second(now: SystemTime) -> (u64, &'static str) {
    let seconds = seconds(now).min(LAST_SECOND);
    let day = DAYS.into_iter().cycle().nth((seconds / 86_400 % 7) as usize);
    (seconds, day.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SelectedHeaders;
    use crate::schema::validator;
    use cedar_policy::Entities;
    use std::collections::{BTreeSet, HashSet};

    #[test]
    fn instants_are_whole_seconds_within_cedars_years() {
        let at = |seconds: u64, millis| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis)
        };
        for (now, expected) in [
            (at(0, 0), (0, "Thu")),
            (at(951_782_400, 999), (951_782_400, "Tue")),
            (at(1_795_455_585, 0), (1_795_455_585, "Mon")),
            (at(1_795_391_999, 0), (1_795_391_999, "Sun")),
            (at(u64::MAX >> 2, 0), (253_402_300_799, "Fri")),
            (SystemTime::UNIX_EPOCH - Duration::from_secs(1), (0, "Thu")),
        ] {
            assert_eq!(second(now), expected);
            instant(now).unwrap();
        }
    }

    fn caller() -> SpiffeId {
        SpiffeId::parse("spiffe://prod.acme/ns/pay/sa/x").unwrap()
    }

    fn connection(source: &str) -> Transport {
        Transport::new(source.parse().unwrap())
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_455_585_123)
    }

    fn connect(source: &str) -> AuthzRequest {
        AuthzRequest::connect(
            Caller::supposed(&caller()),
            &"ledger".parse().unwrap(),
            &connection(source),
            now(),
        )
    }

    fn http(method: &str, target: &str) -> AuthzRequest {
        let request = CanonicalRequest::parse(method, &[b"ledger.acme"], target.as_bytes()).unwrap();
        let route = Route::unmatched(&"ledger".parse().unwrap());
        let caller = caller();
        AuthzRequest::http(
            Caller::supposed(&caller),
            &"ledger".parse().unwrap(),
            &route,
            &request,
            &connection("10.0.0.1"),
            now(),
        )
    }

    #[test]
    fn every_request_conforms_to_the_schema() {
        let methods = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"];
        let requests = methods
            .iter()
            .flat_map(|m| ["/", "/a", "/a/b/c/d/e"].map(|target| http(m, target)));
        for request in requests.chain([connect("::1")]) {
            // Stands in for the check against the schema that deciding leaves out.
            let call = request.call().unwrap();
            let schema = Some(VOCABULARY.validator.schema());
            let context = request.context().unwrap();
            cedar_policy::Request::new(call.principal, call.action, call.resource, context, schema).unwrap();
            let computed = Entities::from_entities(call.entities.iter().cloned(), schema).unwrap();
            // Nobody is in more than it was said to be in.
            for entity in call.entities.iter() {
                let sorted = |entities: &Entities| {
                    let ancestors = entities.ancestors(&entity.uid()).into_iter().flatten();
                    ancestors.map(ToString::to_string).collect::<BTreeSet<_>>()
                };
                assert_eq!(sorted(&call.entities), sorted(&computed), "{}", entity.uid());
            }
        }
    }

    #[test]
    fn a_part_of_hoplite_is_no_caller() {
        let service: ServiceName = "ledger".parse().unwrap();
        for (path, is_caller) in [
            ("/web", true),
            ("/hoplites", true),
            ("/hoplite/operator/ann", false),
            ("/hoplite/agent/n1", false),
            ("/hoplite/ca", false),
        ] {
            let id = SpiffeId::parse(&format!("spiffe://prod.acme{path}")).unwrap();
            let call = CallFacts::supposed(&id, None, &service, None);
            assert_eq!(call.is_ok(), is_caller, "{path}");
        }
    }

    #[test]
    fn a_verified_peer_is_the_principal() {
        let peer = hoplite_identity::testing::TestAuthority::new("prod.acme").peer("/ns/pay/sa/x");
        let request = CanonicalRequest::parse("GET", &[b"ledger"], b"/").unwrap();
        let route = Route::unmatched(&"ledger".parse().unwrap());
        let from = connection("10.0.0.1");
        for request in [
            AuthzRequest::connect(&peer, &"ledger".parse().unwrap(), &from, now()),
            AuthzRequest::http(&peer, &"ledger".parse().unwrap(), &route, &request, &from, now()),
        ] {
            assert_eq!(request.principal(), "spiffe://prod.acme/ns/pay/sa/x");
            let principal = request.call().unwrap().principal;
            assert_eq!(principal, uid(&VOCABULARY.workload, "spiffe://prod.acme/ns/pay/sa/x"));
        }
    }

    #[test]
    fn a_record_can_name_what_was_asked() {
        let request = http("PURGE", "/");
        assert_eq!(request.principal(), "spiffe://prod.acme/ns/pay/sa/x");
        assert_eq!((request.action(), request.resource()), ("other", "ledger:unmatched"));
        let request = connect("::1");
        assert_eq!((request.action(), request.resource()), ("connect", "ledger"));
    }

    #[test]
    fn the_context_holds_what_is_known() {
        let context = |request: &AuthzRequest| request.context().unwrap().to_string();
        let text = context(&http("GET", "/tenants/%C3%A9//x/"));
        for part in [
            r#"ip("10.0.0.1")"#,
            r#"dow: "Mon""#,
            "2026-11-23T17:39:45",
            r#"host: "ledger.acme""#,
            r#"n: 3"#,
            r#"s0: "tenants""#,
            r#"s1: "é""#,
            r#"s2: "x""#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("s3"), "{text}");
        let mapped = connect("::ffff:10.0.0.1");
        assert!(context(&mapped).contains(r#"ip("10.0.0.1")"#), "{}", context(&mapped));
    }

    fn with_headers(headers: &str, fields: &[(&str, &str)]) -> AuthzRequest {
        let selected = SelectedHeaders::parse(headers).unwrap();
        let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
        let request = CanonicalRequest::parse("GET", &[b"ledger"], b"/").unwrap();
        let request = request.with_headers(&selected, fields).unwrap();
        let (caller, from, route) = (
            caller(),
            connection("10.0.0.1"),
            Route::unmatched(&"ledger".parse().unwrap()),
        );
        AuthzRequest::http(
            Caller::supposed(&caller),
            &"ledger".parse().unwrap(),
            &route,
            &request,
            &from,
            now(),
        )
    }

    #[test]
    fn selected_headers_are_in_the_context_of_their_schema() {
        const SELECTED: &str = "headers = ['accept', 'x-tenant']";
        let selected = SelectedHeaders::parse(SELECTED).unwrap();
        let validator = validator(&selected).unwrap();
        for (fields, expected) in [
            (&[][..], "hdr: {}"),
            (
                &[("x-tenant", "acme"), ("x-other", "b")],
                "hdr: {\"x-tenant\": \"acme\"}",
            ),
            (
                &[("x-tenant", "a\"b"), ("accept", "a/b")],
                "hdr: {accept: \"a/b\", \"x-tenant\": \"a\\\"b\"}",
            ),
        ] {
            let request = with_headers(SELECTED, fields);
            assert!(request.knows("accept") && request.knows("x-tenant") && !request.knows("x-other"));
            let (call, context) = (request.call().unwrap(), request.context().unwrap());
            let text = context.to_string();
            let plain = |text: &str| text.replace(['"', ' ', '\\'], "");
            assert!(plain(&text).contains(&plain(expected)), "{expected} in {text}");
            let schema = Some(validator.schema());
            cedar_policy::Request::new(call.principal, call.action, call.resource, context, schema).unwrap();
        }
        let none = http("GET", "/");
        assert!(!none.knows("accept") && !none.context().unwrap().to_string().contains("hdr"));
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        let request = CanonicalRequest::parse("GET", &[b"ledger"], b"/").unwrap();
        let (caller, from, route) = (
            caller(),
            connection("10.0.0.1"),
            Route::unmatched(&"ledgers".parse().unwrap()),
        );
        let foreign = AuthzRequest::http(
            Caller::supposed(&caller),
            &"ledger".parse().unwrap(),
            &route,
            &request,
            &from,
            now(),
        );
        assert!(foreign.context().unwrap_err().to_string().contains("does not belong"));
        let deep = SpiffeId::parse(&format!("spiffe://prod.acme{}", "/a".repeat(PATH_GROUPS_MAX + 1))).unwrap();
        let deep = AuthzRequest::connect(Caller::supposed(&deep), &"ledger".parse().unwrap(), &from, now());
        assert!(deep.call().unwrap_err().to_string().contains("64 path segments"));
    }

    proptest::proptest! {
        /// Whatever a policy may name about the call is there: the three, and every ancestor of theirs as a parent.
        #[test]
        fn the_entities_of_a_call_are_closed(path in "(/[a-z0-9]{1,3}){1,12}", method in "[A-Z]{1,7}", target in "(/[a-z]{0,3}){1,6}") {
            let Ok(request) = CanonicalRequest::parse(&method, &[b"ledger"], target.as_bytes()) else { return Ok(()) };
            let caller = SpiffeId::parse(&format!("spiffe://prod.acme{path}")).unwrap();
            let route = Route::unmatched(&"ledger".parse().unwrap());
            let from = connection("10.0.0.1");
            let request = AuthzRequest::http(Caller::supposed(&caller), &"ledger".parse().unwrap(), &route, &request, &from, now());
            let call = request.call().unwrap();
            for uid in [&call.principal, &call.action, &call.resource] {
                proptest::prop_assert!(call.entities.get(uid).is_some(), "{uid}");
            }
            let ancestors: HashSet<_> = call.entities.ancestors(&call.principal).unwrap().cloned().collect();
            let mut prefix = "prod.acme".to_owned();
            let mut expected = HashSet::from([uid(&VOCABULARY.trust_domain, &prefix)]);
            for segment in path.split('/').skip(1) {
                prefix = format!("{prefix}/{segment}");
                expected.insert(uid(&VOCABULARY.path, &prefix));
            }
            proptest::prop_assert_eq!(ancestors, expected);
            let service = uid(&VOCABULARY.service, "ledger");
            proptest::prop_assert!(call.entities.is_ancestor_of(&service, &call.resource));
            // Nothing in the context is an entity, so there is nothing else to be closed under.
            proptest::prop_assert!(!request.context().unwrap().to_string().contains("Hoplite::"));
        }
    }
}
