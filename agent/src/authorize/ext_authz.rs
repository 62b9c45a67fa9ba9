//! Envoy's external authorization, v3: an Envoy that ends mutual TLS itself asks here about each request or connection.
//!
//! Who calls is what Envoy took from the certificate that it verified. No header of the request is read for that, so a
//! client can write what it likes there. Whatever is wrong is answered as a denial and not as an error of the call: an
//! Envoy that is told to let requests through at errors must not do so because of us.

use std::net::SocketAddr;
use std::sync::Arc;

use hoplite_audit::DecisionId;
use hoplite_decision::{DECISION_HEADER as DECISION, Granted, refusal, trace_id};
use hoplite_policy::header_nature::{HeaderNature, KNOWN_HEADERS, KnownHeader, Spelling};
use hoplite_wire::ext_authz::address::Address;
use hoplite_wire::ext_authz::attribute_context::Peer;
use hoplite_wire::ext_authz::authorization_server::Authorization;
use hoplite_wire::ext_authz::check_response::HttpResponse;
use hoplite_wire::ext_authz::header_value_option::HeaderAppendAction;
use hoplite_wire::ext_authz::socket_address::PortSpecifier;
use hoplite_wire::ext_authz::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, Status as Word,
};
use http::StatusCode;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::{Code, Request, Response, Status};

use crate::authorize::authorizer::Authorizer;
use crate::authorize::call::{Call, Target, ToldFields, Wanted, principal};
use crate::socket::admission::{admit, caller};
use crate::socket::session::Sessions;

/// Where Envoy's configuration says about which service it asks.
const SERVICE: &str = "hoplite.service";

/// What Envoy's access log finds the decision under.
const METADATA: &str = "decision";

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct ExtAuthz {
    sessions: Sessions,
    authorizer: Arc<Authorizer>,
}

// === impl ExtAuthz ===

impl ExtAuthz {
    pub(crate) fn new(sessions: Sessions, authorizer: Arc<Authorizer>) -> Self {
        Self { sessions, authorizer }
    }

    /// The error is why this process gets no decision at all.
    async fn answer(&self, request: Request<CheckRequest>) -> Result<CheckResponse, Status> {
        let (caller, _held) = admit(request.extensions())?;
        let who = self.sessions.session(&caller).entitlement().await?;
        let asked = request.into_inner().attributes.unwrap_or_default();
        let named = asked.context_extensions.get(SERVICE).map(String::as_str);
        let asker = self
            .authorizer
            .asker(&who, named)
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        let AttributeContext { source, request, .. } = asked;
        let source = source.unwrap_or_default();
        let http = request.and_then(|request| request.http);
        let call = Call {
            principal: principal(&source.principal, &who),
            source: address(source).map(Into::into),
            trace_id: http
                .as_ref()
                .and_then(|http| trace_id(http.headers.get("traceparent")?)),
            target: match http {
                Some(http) => {
                    // Envoy's own fields are among them, unless it was told to send a choice of its own, or none.
                    let headers = ToldFields {
                        all: http.headers.contains_key(":path"),
                        told: http.headers.into_iter().collect(),
                    };
                    Target::http(http.method, &http.host, &http.path, headers)
                }
                None => Target::Connection,
            },
        };
        Ok(match self.authorizer.judge(&asker, call).await {
            Ok(granted) => allowed(granted),
            Err(why) => refused(why.status(), why.code(), why.body(), why.decision()),
        })
    }
}

#[tonic::async_trait]
impl Authorization for ExtAuthz {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let caller = caller(request.extensions());
        let answer = self.answer(request).await.unwrap_or_else(|status| {
            if let Some(caller) = caller {
                let refused = StatusCode::SERVICE_UNAVAILABLE.as_u16();
                let reason = status.message();
                self.sessions.refused.question(&caller, "ext_authz", refused, reason);
            }
            let mut answer = {
                let code = "not_served";
                refused(StatusCode::SERVICE_UNAVAILABLE, code, refusal(code, None, None), None)
            };
            if let Some(word) = &mut answer.status {
                status.message().clone_into(&mut word.message);
            }
            answer
        });
        Ok(Response::new(answer))
    }
}

/// Only an IP address is one that policies can speak about.
fn address(peer: Peer) -> Option<SocketAddr> {
    let Address::SocketAddress(socket) = peer.address?.address?;
    let PortSpecifier::PortValue(port) = socket.port_specifier?;
    Some(SocketAddr::new(socket.address.parse().ok()?, u16::try_from(port).ok()?))
}

/// What Envoy takes off a permitted request that has these fields: what overrides the request line and what is ours,
/// whether it was told of it or not, and every disguise that it told of. Other names that only a proxy may say are
/// Envoy's own to write.
fn unfit<'f>(fields: impl Iterator<Item = &'f str>) -> Vec<String> {
    let overriding = KNOWN_HEADERS
        .iter()
        .filter(|known| known.nature == HeaderNature::Override)
        .map(|known| known.name);
    let told = fields.filter(|name| {
        KnownHeader::of(name).is_some_and(|(known, spelling)| match (known.nature, spelling) {
            (_, Spelling::Disguised) => true,
            // What we answer takes the place of what the client wrote under our name.
            (HeaderNature::Ours, Spelling::Own) => *name != DECISION,
            (_, Spelling::Own) => false,
        })
    });
    overriding.chain(told).map(str::to_owned).collect()
}

/// Lets through a request without those fields, or a connection. The grant is spent here.
fn allowed(granted: Granted<Wanted>) -> CheckResponse {
    let (wanted, decision) = granted.spend();
    let named = vec![header(DECISION, decision.to_string())];
    CheckResponse {
        status: Some(Word::default()),
        dynamic_metadata: Some(metadata(&decision)),
        http_response: wanted.map(|request| {
            let headers_to_remove = unfit(request.rest.told.iter().map(|(name, _)| name.as_str()));
            HttpResponse::OkResponse(OkHttpResponse {
                headers: named.clone(),
                headers_to_remove,
                response_headers_to_add: named,
            })
        }),
    }
}

/// Refuses in the words of our proxy's answers: what a caller may know, and the id under which the log knows more.
fn refused(status: StatusCode, code: &str, body: String, decision: Option<&DecisionId>) -> CheckResponse {
    let mut headers = vec![header("content-type", "application/json".to_owned())];
    if let Some(decision) = decision {
        headers.push(header(DECISION, decision.to_string()));
    }
    let word = match status.as_u16() {
        400 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        503 => Code::Unavailable,
        _ => Code::PermissionDenied,
    };
    CheckResponse {
        status: Some(Word {
            code: word.into(),
            message: code.to_owned(),
        }),
        dynamic_metadata: decision.map(metadata),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus {
                code: status.as_u16().into(),
            }),
            headers,
            body,
        })),
    }
}

/// A header in the place of any there is: a client or a service may have written one too.
fn header(key: &str, value: String) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value,
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
    }
}

fn metadata(decision: &DecisionId) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(decision.to_string())),
    };
    Struct {
        fields: [(METADATA.to_owned(), value)].into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{World, own};
    use hoplite_audit::{Outcome, Phase, Record};
    use hoplite_wire::ext_authz::attribute_context::{HttpRequest, Request as Asked};
    use hoplite_wire::ext_authz::authorization_client::AuthorizationClient;
    use hoplite_wire::ext_authz::{Address as WireAddress, SocketAddress};
    use std::collections::HashMap;

    const POLICY: &str = r#"
        @id("ledger/web-reads") permit (principal == Hoplite::Workload::"spiffe://prod.example/web",
            action in [Hoplite::Action::"read", Hoplite::Action::"connect"], resource in Hoplite::Service::"ledger")
            when { context.conn.src.isInRange(ip("10.0.0.0/8")) };
        @id("ledger/no-admin") forbid (principal, action, resource == Hoplite::Route::"ledger:GET /admin");
    "#;
    const ROUTES: &str = "[ledger]\nroutes = [\"GET /admin\", \"GET /accounts/{id}\"]\n";
    const WEB: &str = "spiffe://prod.example/web";

    /// An answer in short: status (200 for an OK), the body's error, the record.
    struct Told {
        status: i32,
        body: String,
        record: Option<Record>,
        response: CheckResponse,
    }

    struct Envoy {
        world: World,
    }

    impl Envoy {
        fn start() -> Self {
            let world = World::start_authorizing(
                &[
                    ("ledger", "spiffe://prod.example/ledger"),
                    ("refunds", "spiffe://prod.example/refunds"),
                    ("audit", "spiffe://prod.example/ledger"),
                ],
                POLICY,
                ROUTES,
            );
            world.publish([world.entry("/ledger", &[own()])]);
            Self { world }
        }

        async fn ask(&self, change: impl FnOnce(&mut AttributeContext)) -> Told {
            let mut asked = AttributeContext {
                source: Some(Peer {
                    address: Some(socket_address("10.1.2.3", 4711)),
                    principal: WEB.to_owned(),
                }),
                request: Some(Asked {
                    http: Some(HttpRequest {
                        method: "GET".to_owned(),
                        path: "/accounts/7?all".to_owned(),
                        host: "ledger.test".to_owned(),
                        headers: HashMap::new(),
                    }),
                }),
                context_extensions: [(SERVICE.to_owned(), "ledger".to_owned())].into(),
            };
            change(&mut asked);
            let request = CheckRequest {
                attributes: Some(asked),
            };
            let before = self.world.records().len();
            let response = AuthorizationClient::new(self.world.dial().await)
                .check(request)
                .await
                .unwrap()
                .into_inner();
            let (status, body, headers) = match response.http_response.clone() {
                Some(HttpResponse::DeniedResponse(denied)) => {
                    (denied.status.unwrap().code, denied.body, denied.headers)
                }
                Some(HttpResponse::OkResponse(ok)) => {
                    assert_eq!(ok.headers, ok.response_headers_to_add);
                    (200, String::new(), ok.headers)
                }
                None => (0, String::new(), Vec::new()),
            };
            assert_eq!(
                response.status.as_ref().unwrap().code == 0,
                matches!(status, 0 | 200),
                "{response:?}"
            );
            let mut new = self.world.records().split_off(before);
            assert!(new.len() <= 1, "{new:?}");
            let record = new.pop();
            let id = record.as_ref().map(|record| record.id.to_string());
            if response.http_response.is_some() {
                let named = headers.iter().find_map(|option| {
                    let header = option.header.as_ref()?;
                    assert_eq!(option.append_action, 2, "no header of a client stays");
                    (header.key == DECISION).then(|| header.value.clone())
                });
                assert_eq!(named, id, "the answer names its record");
            }
            Told {
                status,
                body,
                record,
                response,
            }
        }
    }

    fn socket_address(address: &str, port: u32) -> WireAddress {
        WireAddress {
            address: Some(Address::SocketAddress(SocketAddress {
                address: address.to_owned(),
                port_specifier: Some(PortSpecifier::PortValue(port)),
            })),
        }
    }

    fn http(asked: &mut AttributeContext) -> &mut HttpRequest {
        asked.request.as_mut().unwrap().http.as_mut().unwrap()
    }

    #[tokio::test]
    async fn a_decision_is_that_of_our_proxy_and_is_recorded_like_it() {
        let envoy = Envoy::start();
        let told = envoy
            .ask(|asked| {
                http(asked).headers = HashMap::from([(
                    "traceparent".to_owned(),
                    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
                )]);
            })
            .await;
        let record = told.record.unwrap();
        assert_eq!((told.status, record.outcome), (200, Outcome::Allow));
        assert_eq!((record.phase, record.action.as_str()), (Phase::Request, "GET"));
        assert_eq!(record.principal.as_deref(), Some(WEB));
        assert_eq!(record.vouched_by.as_deref(), Some("spiffe://prod.example/ledger"));
        assert_eq!(record.source.as_deref(), Some("10.1.2.3:4711"));
        assert_eq!(record.route.as_deref(), Some("ledger:GET /accounts/{id}"));
        assert_eq!(
            (record.host.as_deref(), record.path.as_deref()),
            (Some("ledger.test"), Some("/accounts/7"))
        );
        assert_eq!(record.determining, ["ledger/web-reads"]);
        assert_eq!(record.trace_id.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        let Some(HttpResponse::OkResponse(ok)) = told.response.http_response else {
            panic!("no OK")
        };
        let overriding: Vec<_> = KNOWN_HEADERS
            .iter()
            .filter(|known| known.nature == HeaderNature::Override)
            .map(|known| known.name)
            .collect();
        assert_eq!(ok.headers_to_remove, overriding);

        let told = envoy.ask(|asked| "/admin".clone_into(&mut http(asked).path)).await;
        let record = told.record.unwrap();
        assert_eq!((told.status, record.outcome), (403, Outcome::Forbid));
        let decided: serde_json::Value = serde_json::from_str(&told.body).unwrap();
        let expected = serde_json::json!({"error": "denied", "outcome": "forbid", "decision": record.id.to_string()});
        assert_eq!(decided, expected, "no policy id, no reason");
    }

    #[tokio::test]
    async fn who_calls_is_what_envoy_verified_and_nothing_else() {
        let envoy = Envoy::start();
        // No header says who it is.
        for name in [
            "x-forwarded-client-cert",
            "x-hoplite-principal",
            "l5d-client-id",
            "authorization",
        ] {
            for (principal, status) in [("spiffe://prod.example/mallory", 403), ("", 401), (WEB, 200)] {
                let lie = if principal == WEB {
                    "spiffe://prod.example/mallory"
                } else {
                    WEB
                };
                let told = envoy
                    .ask(|asked| {
                        principal.clone_into(&mut asked.source.as_mut().unwrap().principal);
                        let value = format!("By=spiffe://prod.example/ledger;URI={lie}");
                        http(asked).headers.insert(name.to_owned(), value);
                        http(asked)
                            .headers
                            .insert("x-forwarded-for".to_owned(), "10.9.9.9".to_owned());
                    })
                    .await;
                let record = told.record.unwrap();
                assert_eq!(told.status, status, "{name} with `{principal}`: {record:?}");
                assert_eq!(
                    record.principal.as_deref(),
                    (!principal.is_empty()).then_some(principal)
                );
                assert_eq!(record.source.as_deref(), Some("10.1.2.3:4711"));
            }
        }
        for principal in [
            "",
            "CN=web",
            "web",
            "https://prod.example/web",
            "spiffe://prod.example",
            "spiffe://prod.example/web,spiffe://prod.example/web",
            "SPIFFE://prod.example/web",
            "spiffe://unknown.example/web",
        ] {
            let told = envoy
                .ask(|asked| principal.clone_into(&mut asked.source.as_mut().unwrap().principal))
                .await;
            let record = told.record.unwrap();
            assert_eq!(told.status, 401, "{principal}");
            assert_eq!(
                (record.outcome, record.phase, record.principal.as_deref()),
                (Outcome::Unauthenticated, Phase::Handshake, None),
                "{principal}"
            );
        }
        let told = envoy.ask(|asked| asked.source = None).await;
        assert_eq!(
            (told.status, told.record.unwrap().outcome),
            (401, Outcome::Unauthenticated)
        );
    }

    #[tokio::test]
    async fn what_is_decided_is_what_envoy_forwards() {
        let envoy = Envoy::start();
        for (method, host, path, status, code) in [
            ("GET", "ledger.test", "/accounts/%3a", 200, ""),
            ("GET", "ledger.test", "/accounts/%3A?a=//b/../%2f", 200, ""),
            ("GET", "ledger.test:443", "/accounts/7", 200, ""),
            ("GET", "ledger.test", "//accounts/7", 400, "not_canonical"),
            ("GET", "ledger.test", "/x/../accounts/7", 400, "not_canonical"),
            ("GET", "ledger.test", "/%61ccounts/7", 400, "not_canonical"),
            (
                "GET",
                "ledger.test",
                "https://ledger.test/accounts/7",
                400,
                "not_canonical",
            ),
            ("GET", "ledger.test", "/accounts%2f7", 400, "encoded_separator"),
            ("GET", "ledger.test", "/accounts/%2e%2e/admin", 400, "encoded_dots"),
            ("GET", "ledger.test", "/accounts/7;a", 400, "path_parameter"),
            ("GET", "ledger.test", "/accounts/7#a", 400, "fragment"),
            ("GET", "", "/accounts/7", 400, "no_host"),
            ("GET", "a b", "/accounts/7", 400, "host"),
            ("get", "ledger.test", "/accounts/7", 400, "method"),
            ("GET", "ledger.test", "", 400, "target"),
            ("CONNECT", "ledger.test", "/accounts/7", 405, "method_refused"),
        ] {
            let told = envoy
                .ask(|asked| {
                    let http = http(asked);
                    (http.method, http.host, http.path) = (method.to_owned(), host.to_owned(), path.to_owned());
                })
                .await;
            let record = told.record.unwrap();
            assert_eq!(told.status, status, "{method} {host} {path}: {record:?}");
            if status != 200 {
                assert_eq!(record.outcome, Outcome::Malformed, "{path}");
                assert!(
                    told.body.contains(&format!("\"error\":\"{code}\"")),
                    "{path}: {}",
                    told.body
                );
                assert!(record.reason.unwrap().starts_with(code));
                assert_eq!(record.principal.as_deref(), Some(WEB));
            }
        }
    }

    #[tokio::test]
    async fn connect_and_trace_are_refused_whatever_else_is_wrong() {
        let envoy = Envoy::start();
        for method in ["CONNECT", "TRACE"] {
            for (host, path) in [("ledger.test", "/accounts/7"), ("", "//a%2f"), ("ledger.test:443", "")] {
                let told = envoy
                    .ask(|asked| {
                        let http = http(asked);
                        (http.method, http.host, http.path) = (method.to_owned(), host.to_owned(), path.to_owned());
                    })
                    .await;
                assert_eq!(told.status, 405, "{method} {host} {path}");
                assert!(told.body.contains("\"error\":\"method_refused\""), "{}", told.body);
            }
        }
    }

    /// Whatever sign stands for `-`, Envoy takes off what a service might read as another's word.
    #[tokio::test]
    async fn what_is_in_disguise_is_taken_off() {
        let envoy = Envoy::start();
        let kept = [
            "x-forwarded-client-cert",
            "x-envoy-peer-metadata",
            "x-mine",
            "x_mine",
            "content-type",
        ];
        let unfit = [
            "x.original.url",
            "x_http_method_override",
            "x_forwarded_client_cert",
            "x.forwarded.host",
            "x-hoplite-caller",
            "x_hoplite_decision",
            "content_type",
        ];
        for all in [true, false] {
            let told = envoy
                .ask(|asked| {
                    let names = kept.iter().chain(&unfit).chain(all.then_some(&":path"));
                    http(asked).headers = names.map(|name| ((*name).to_owned(), "a".to_owned())).collect();
                })
                .await;
            assert_eq!(told.status, 200);
            let Some(HttpResponse::OkResponse(ok)) = told.response.http_response else {
                panic!("no OK")
            };
            let removed = |name: &&str| ok.headers_to_remove.iter().any(|removed| removed == name);
            assert!(unfit.iter().all(&removed), "{:?}", ok.headers_to_remove);
            assert!(!kept.iter().any(removed), "{:?}", ok.headers_to_remove);
        }
    }

    #[tokio::test]
    async fn headers_are_those_that_envoy_forwards_or_unknown() {
        let envoy = Envoy::start();
        let policies = envoy.world.directory.path().join("policies");
        let policy = r#"@id("tenant") permit (principal, action == Hoplite::Action::"GET", resource in Hoplite::Service::"ledger")
            when { context.hdr has "x-tenant" && context.hdr["x-tenant"] == "acme" };"#;
        for (file, text) in [("headers.toml", "headers = ['x-tenant']"), ("test.cedar", policy)] {
            std::fs::write(policies.join(file), text).unwrap();
        }
        let ask = async |fields: &[(&str, &str)]| {
            let told = envoy
                .ask(|asked| {
                    let fields = fields
                        .iter()
                        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
                    http(asked).headers = fields.collect();
                })
                .await;
            (told.status, told.record.unwrap())
        };
        let path = (":path", "/accounts/7");
        while ask(&[path]).await.0 == 200 {
            // What was there before is in force until the files have settled.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        for (fields, status, outcome, said) in [
            (&[path, ("x-tenant", "acme")][..], 200, Outcome::Allow, ""),
            (&[path, ("x-tenant", "other")], 403, Outcome::NoPermit, ""),
            (&[path], 403, Outcome::NoPermit, ""),
            // Envoy joins two of one name, and nobody can tell that from a comma within one.
            (
                &[path, ("x-tenant", "acme,acme")],
                400,
                Outcome::Malformed,
                "header_twice: ",
            ),
            (&[path, ("x_tenant", "acme")], 400, Outcome::Malformed, "header_twice: "),
            (&[path, ("x-tenant", "")], 400, Outcome::Malformed, "header_value: "),
            // An Envoy that sends a choice of headers, or none, does not say that the others are absent.
            (
                &[("x-tenant", "acme")],
                403,
                Outcome::Error,
                "a policy on this looks at headers",
            ),
            (&[], 403, Outcome::Error, "a policy on this looks at headers"),
        ] {
            let (got, record) = ask(fields).await;
            assert_eq!((got, record.outcome), (status, outcome), "{fields:?}: {record:?}");
            assert!(record.reason.clone().unwrap_or_default().contains(said), "{record:?}");
            let tenant = record.headers.get("x-tenant").cloned();
            let told = fields
                .iter()
                .find(|(name, _)| *name == "x-tenant")
                .map(|(_, value)| (*value).to_owned());
            let known = matches!(outcome, Outcome::Allow | Outcome::NoPermit);
            assert_eq!(tenant, known.then_some(told), "{fields:?}");
        }
    }

    #[tokio::test]
    async fn where_it_comes_from_is_an_address_or_the_answer_is_no() {
        let envoy = Envoy::start();
        for (address, status, outcome) in [
            (Some(socket_address("10.0.0.1", 1)), 200, Outcome::Allow),
            (Some(socket_address("::ffff:10.0.0.1", 1)), 200, Outcome::Allow),
            (Some(socket_address("192.0.2.1", 1)), 403, Outcome::NoPermit),
            (Some(socket_address("localhost", 1)), 403, Outcome::Malformed),
            (Some(socket_address("10.0.0.1", 1 << 16)), 403, Outcome::Malformed),
            (Some(WireAddress::default()), 403, Outcome::Malformed),
            (None, 403, Outcome::Malformed),
        ] {
            let case = format!("{address:?}");
            let told = envoy
                .ask(|asked| asked.source.as_mut().unwrap().address = address)
                .await;
            assert_eq!((told.status, told.record.unwrap().outcome), (status, outcome), "{case}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_decided_as_one() {
        let envoy = Envoy::start();
        let told = envoy.ask(|asked| asked.request = None).await;
        let record = told.record.unwrap();
        assert!(told.response.http_response.is_none());
        assert_eq!(told.response.status.unwrap().code, 0);
        assert_eq!(
            (record.phase, record.action.as_str(), record.outcome),
            (Phase::Connect, "connect", Outcome::Allow)
        );
        let metadata = &told.response.dynamic_metadata.unwrap().fields[METADATA];
        assert_eq!(metadata.kind, Some(Kind::StringValue(record.id.to_string())));
        let mallory = |asked: &mut AttributeContext| {
            asked.request = None;
            asked.source.as_mut().unwrap().principal.push('x');
        };
        let told = envoy.ask(mallory).await;
        assert_eq!((told.status, told.record.unwrap().phase), (403, Phase::Connect));
    }

    #[tokio::test]
    async fn who_does_not_serve_a_service_gets_no_decision_about_it() {
        let envoy = Envoy::start();
        let name = |service: Option<&'static str>| {
            move |asked: &mut AttributeContext| {
                asked.context_extensions = service
                    .map(|service| (SERVICE.to_owned(), service.to_owned()))
                    .into_iter()
                    .collect();
            }
        };
        let not_served = async |service, expected: &str| {
            let told = envoy.ask(name(service)).await;
            assert_eq!(told.status, 503, "{service:?}");
            assert!(
                told.record.is_none() && told.body.contains("not_served"),
                "{}",
                told.body
            );
            let message = told.response.status.unwrap().message;
            assert!(message.contains(expected), "{service:?}: {message}");
        };
        assert_eq!(
            envoy.ask(name(Some("audit"))).await.status,
            403,
            "its own, and not permitted"
        );
        not_served(
            Some("refunds"),
            "only `spiffe://prod.example/refunds` may ask about `refunds`",
        )
        .await;
        not_served(Some("elsewhere"), "`elsewhere` is not in").await;
        not_served(None, "several services").await;

        let world = &envoy.world;
        world.publish([world.entry("/refunds", &[own()])]);
        let told = envoy.ask(name(None)).await;
        assert_eq!((told.status, told.record.unwrap().service.as_str()), (403, "refunds"));
        not_served(Some("ledger"), "only `spiffe://prod.example/ledger`").await;
        world.publish([world.entry("/other", &[own()])]);
        not_served(None, "no service in").await;
        world.publish([world.entry("/ledger", &["unix:uid:4294967294".to_owned()])]);
        not_served(Some("ledger"), "no identity issued").await;
    }

    #[tokio::test]
    async fn without_the_table_there_is_no_such_service() {
        let world = World::start();
        world.publish([world.entry("/ledger", &[own()])]);
        let refused = AuthorizationClient::new(world.dial().await)
            .check(CheckRequest::default())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains("[authorization]"), "{refused}");
    }
}
