//! The authorization request: the one place where what the proxy knows becomes what policy sees.

use crate::schema::{VOCABULARY, uid};
use crate::{CanonicalRequest, Route};
use cedar_policy::{Context, Entities, Entity, EntityUid, Request, RestrictedExpression};
use hoplite_identity::{SpiffeId, VerifiedPeer};
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// The most segments of a caller's SPIFFE path. Each is a group of its own; a caller with more is not decided on,
/// since a policy about a group left out would not be asked.
pub const MAX_PATH_GROUPS: usize = 64;

/// What is true of the whole connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The peer's address.
    pub source: IpAddr,
    /// When the decision is made.
    pub now: SystemTime,
}

/// Principal, action, resource and context. A verified peer is the only way to a principal.
#[derive(Debug, Clone)]
pub struct AuthzRequest {
    principal: SpiffeId,
    action: &'static str,
    resource: String,
    /// What Cedar is asked, or why it cannot be: then the decision is an error, never an allow.
    question: Result<Question, String>,
}

/// A request and the entities it speaks of, in Cedar's types.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) request: Request,
    pub(crate) entities: Entities,
}

// === impl AuthzRequest ===

impl AuthzRequest {
    /// An L4 connection to a service.
    pub fn connect(peer: &VerifiedPeer, service: &str, connection: &Connection) -> Self {
        Self::connect_as(peer.spiffe_id(), service, connection)
    }

    /// One HTTP request to a route of a service. The route must be the service's own.
    pub fn http(
        peer: &VerifiedPeer,
        service: &str,
        route: &Route,
        request: &CanonicalRequest,
        connection: &Connection,
    ) -> Self {
        Self::http_as(peer.spiffe_id(), service, route, request, connection)
    }

    /// The caller's SPIFFE ID.
    pub fn principal(&self) -> &str {
        self.principal.as_str()
    }

    /// The action's name: `connect`, a method, or `other`.
    pub fn action(&self) -> &str {
        self.action
    }

    /// The service (L4) or the route (HTTP).
    pub fn resource(&self) -> &str {
        &self.resource
    }

    pub(crate) fn question(&self) -> Result<&Question, &str> {
        self.question.as_ref().map_err(String::as_str)
    }

    pub(crate) fn connect_as(principal: &SpiffeId, service: &str, connection: &Connection) -> Self {
        let context = vec![("conn".to_owned(), conn(connection))];
        let resource = Entity::new_no_attrs(uid(&VOCABULARY.service, service), HashSet::new());
        Self::new(principal, "connect", service, [resource], context)
    }

    pub(crate) fn http_as(
        principal: &SpiffeId,
        service: &str,
        route: &Route,
        request: &CanonicalRequest,
        connection: &Connection,
    ) -> Self {
        let context = vec![
            ("conn".to_owned(), conn(connection)),
            (
                "host".to_owned(),
                RestrictedExpression::new_string(request.host().to_owned()),
            ),
            ("seg".to_owned(), seg(request)),
        ];
        let owner = uid(&VOCABULARY.service, service);
        let resources = [
            Entity::new_no_attrs(uid(&VOCABULARY.route, route.as_str()), HashSet::from([owner.clone()])),
            Entity::new_no_attrs(owner, HashSet::new()),
        ];
        let action = action_of(request.method());
        let mut this = Self::new(principal, action, route.as_str(), resources, context);
        if route.service() != service {
            this.question = Err(format!(
                "the route `{route}` does not belong to the service `{service}`"
            ));
        }
        this
    }

    /// `resources` starts with the resource itself, its ancestors follow.
    fn new<const N: usize>(
        principal: &SpiffeId,
        action: &'static str,
        resource: &str,
        resources: [Entity; N],
        context: Vec<(String, RestrictedExpression)>,
    ) -> Self {
        Self {
            principal: principal.clone(),
            action,
            resource: resource.to_owned(),
            question: Question::new(principal, action, resources, context),
        }
    }
}

// === impl Question ===

impl Question {
    fn new<const N: usize>(
        principal: &SpiffeId,
        action: &str,
        resources: [Entity; N],
        context: Vec<(String, RestrictedExpression)>,
    ) -> Result<Self, String> {
        let principal = workload(principal)?;
        let action = VOCABULARY
            .action(action)
            .ok_or_else(|| format!("the schema has no action `{action}`"))?;
        let resource = resources
            .first()
            .map(Entity::uid)
            .ok_or("the request has no resource")?;
        let context = Context::from_pairs(context).map_err(said("the context could not be built"))?;
        // Not checked against the schema again: everything here is made in this file, and its tests do check.
        let request = Request::new(principal.uid(), action.uid(), resource, context, None)
            .map_err(said("the request could not be built"))?;
        let entities = resources.into_iter().chain([principal, action.clone()]);
        let entities = Entities::from_entities(entities, None).map_err(said("the entities could not be built"))?;
        Ok(Self { request, entities })
    }
}

fn said<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// The caller with every group it is in. They are all given as parents, so the groups need no entities of their own.
fn workload(id: &SpiffeId) -> Result<Entity, String> {
    if id.segments().count() > MAX_PATH_GROUPS {
        return Err(format!(
            "the caller's SPIFFE ID has more than {MAX_PATH_GROUPS} path segments"
        ));
    }
    let mut groups: HashSet<EntityUid> = HashSet::from([uid(&VOCABULARY.trust_domain, id.trust_domain().as_str())]);
    let mut prefix = id.trust_domain().as_str().to_owned();
    for segment in id.segments() {
        prefix.push('/');
        prefix.push_str(segment);
        groups.insert(uid(&VOCABULARY.path, &prefix));
    }
    Ok(Entity::new_no_attrs(uid(&VOCABULARY.workload, id.as_str()), groups))
}

/// The action of a method; a method without an action of its own is `other`.
fn action_of(method: &str) -> &'static str {
    const METHODS: [&str; 7] = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"];
    METHODS.into_iter().find(|&known| known == method).unwrap_or("other")
}

fn record<const N: usize>(fields: [(&str, RestrictedExpression); N]) -> RestrictedExpression {
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    #[expect(
        clippy::expect_used,
        reason = "fails on duplicate names only, and every caller writes its few names out"
    )]
    RestrictedExpression::new_record(fields).expect("the names differ")
}

fn conn(connection: &Connection) -> RestrictedExpression {
    let (now, day) = utc(connection.now);
    record([
        // An IPv4 peer of a dual-stack socket must be in the ranges policies write for IPv4.
        (
            "src",
            RestrictedExpression::new_ip(connection.source.to_canonical().to_string()),
        ),
        ("now", RestrictedExpression::new_datetime(now)),
        ("dow", RestrictedExpression::new_string(day.to_owned())),
    ])
}

fn seg(request: &CanonicalRequest) -> RestrictedExpression {
    let count = i64::try_from(request.segments().len()).unwrap_or(i64::MAX);
    let count = ("n".to_owned(), RestrictedExpression::new_long(count));
    let first = ["s0", "s1", "s2", "s3"]
        .into_iter()
        .zip(request.segments())
        .map(|(name, segment)| (name.to_owned(), RestrictedExpression::new_string(segment.to_owned())));
    #[expect(
        clippy::expect_used,
        reason = "fails on duplicate names only: `n` and at most one of each of four more"
    )]
    RestrictedExpression::new_record(first.chain([count])).expect("the names differ")
}

/// The instant as Cedar writes one, in UTC, and its day of the week. A clock outside 1970…9999 is taken to its end.
fn utc(now: SystemTime) -> (String, &'static str) {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]; // 1 January 1970 was a Thursday
    const LAST_SECOND: u64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let since = since.min(Duration::from_secs(LAST_SECOND));
    let text = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string();
    let day = DAYS
        .into_iter()
        .cycle()
        .nth((since.as_secs() / 86_400 % 7) as usize)
        .unwrap_or_default();
    (text, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_written_as_cedar_reads_them() {
        for (seconds, expected, day) in [
            (0, "1970-01-01T00:00:00.000Z", "Thu"),
            (951_782_400, "2000-02-29T00:00:00.000Z", "Tue"),
            (1_795_455_585, "2026-11-23T17:39:45.000Z", "Mon"),
            (1_795_391_999, "2026-11-22T23:59:59.000Z", "Sun"),
            (u64::MAX >> 2, "9999-12-31T23:59:59.000Z", "Fri"),
        ] {
            let now = SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(seconds))
                .unwrap();
            assert_eq!(utc(now), (expected.to_owned(), day));
        }
        assert_eq!(
            utc(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).0,
            "1970-01-01T00:00:00.000Z"
        );
    }

    fn caller() -> SpiffeId {
        SpiffeId::parse("spiffe://prod.acme/ns/pay/sa/x").unwrap()
    }

    fn connection(source: &str) -> Connection {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_455_585_123);
        Connection {
            source: source.parse().unwrap(),
            now,
        }
    }

    fn http(method: &str, target: &str) -> AuthzRequest {
        let request = CanonicalRequest::parse(method, &[b"ledger.acme"], target.as_bytes()).unwrap();
        AuthzRequest::http_as(
            &caller(),
            "ledger",
            &Route::unmatched("ledger"),
            &request,
            &connection("10.0.0.1"),
        )
    }

    #[test]
    fn every_request_conforms_to_the_schema() {
        let methods = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"];
        let requests = methods
            .iter()
            .flat_map(|m| ["/", "/a", "/a/b/c/d/e"].map(|target| http(m, target)));
        let connect = AuthzRequest::connect_as(&caller(), "ledger", &connection("::1"));
        for request in requests.chain([connect]) {
            // Stands in for the check against the schema that deciding leaves out.
            let Question {
                request: cedar,
                entities,
            } = request.question().unwrap();
            let schema = Some(VOCABULARY.validator.schema());
            let (principal, action, resource) = (cedar.principal(), cedar.action(), cedar.resource());
            let [principal, action, resource] = [principal, action, resource].map(|uid| uid.unwrap().clone());
            Request::new(principal, action, resource, cedar.context().unwrap().clone(), schema).unwrap();
            Entities::from_entities(entities.iter().cloned(), schema).unwrap();
        }
    }

    #[test]
    fn a_verified_peer_is_the_principal() {
        let peer = hoplite_identity::testing::TestAuthority::new("prod.acme").peer("/ns/pay/sa/x");
        let request = CanonicalRequest::parse("GET", &[b"ledger"], b"/").unwrap();
        let route = Route::unmatched("ledger");
        let from = connection("10.0.0.1");
        for request in [
            AuthzRequest::connect(&peer, "ledger", &from),
            AuthzRequest::http(&peer, "ledger", &route, &request, &from),
        ] {
            assert_eq!(request.principal(), "spiffe://prod.acme/ns/pay/sa/x");
            let principal = request.question().unwrap().request.principal().unwrap();
            assert_eq!(principal, &uid(&VOCABULARY.workload, "spiffe://prod.acme/ns/pay/sa/x"));
        }
    }

    #[test]
    fn a_record_can_name_what_was_asked() {
        let request = http("PURGE", "/");
        assert_eq!(request.principal(), "spiffe://prod.acme/ns/pay/sa/x");
        assert_eq!((request.action(), request.resource()), ("other", "ledger:unmatched"));
        let request = AuthzRequest::connect_as(&caller(), "ledger", &connection("::1"));
        assert_eq!((request.action(), request.resource()), ("connect", "ledger"));
    }

    #[test]
    fn the_context_holds_what_is_known() {
        let context = |request: &AuthzRequest| request.question().unwrap().request.context().unwrap().to_string();
        let text = context(&http("GET", "/tenants/%C3%A9//x/"));
        for part in [
            r#"ip("10.0.0.1")"#,
            r#"dow: "Mon""#,
            "2026-11-23T17:39:45.123Z",
            r#"host: "ledger.acme""#,
            r#"n: 3"#,
            r#"s0: "tenants""#,
            r#"s1: "é""#,
            r#"s2: "x""#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("s3"), "{text}");
        let mapped = AuthzRequest::connect_as(&caller(), "ledger", &connection("::ffff:10.0.0.1"));
        assert!(context(&mapped).contains(r#"ip("10.0.0.1")"#), "{}", context(&mapped));
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        let request = CanonicalRequest::parse("GET", &[b"ledger"], b"/").unwrap();
        let foreign = AuthzRequest::http_as(
            &caller(),
            "ledger",
            &Route::unmatched("ledgers"),
            &request,
            &connection("10.0.0.1"),
        );
        assert!(foreign.question().unwrap_err().contains("does not belong"));
        let deep = format!("spiffe://prod.acme{}", "/a".repeat(MAX_PATH_GROUPS + 1));
        let deep = AuthzRequest::connect_as(&SpiffeId::parse(&deep).unwrap(), "ledger", &connection("10.0.0.1"));
        assert!(deep.question().unwrap_err().contains("64 path segments"));
    }
}
