//! OpenID AuthZEN 1.0, evaluation: whoever speaks HTTP and JSON asks here, over HTTP/1.1 or HTTP/2.
//!
//! Who may ask, what is decided and what is recorded are those of [`crate::authorize::authorizer`]. A status other than 200 speaks of
//! the request; whatever is wrong with one question of it is the decision `false`, with a word why. The socket takes the
//! place of the standard's TLS: the kernel says who asks.

mod evaluation;

use std::sync::Arc;
use std::time::Duration;

use hoplite_decision::{Granted, Why, trace_id};
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};

use self::evaluation::{Evaluation, Evaluations, Malformed, Semantic};
use crate::attest::LocalProcess;
use crate::authorize::authorizer::Authorizer;
use crate::authorize::call::{Call, Target, Wanted, principal, unauthenticated};
use crate::socket::admission::{admit, caller};
use crate::socket::session::{Entitlement, Sessions};

const EVALUATION: &str = "/access/v1/evaluation";
const EVALUATIONS: &str = "/access/v1/evaluations";
const METADATA: &str = "/.well-known/authzen-configuration";

/// What all paths of the standard begin with, those of its searches too.
const ACCESS: &str = "/access/v1/";

/// The asker's own name for its request, given back in the answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The one type of subject: a SPIFFE ID.
const WORKLOAD: &str = "workload";

/// The one type of resource: a service, by the name that policies call it.
const SERVICE: &str = "service";

/// The action that asks about a connection; every other one is a method.
const CONNECT: &str = "connect";

/// A hundred questions with paths of the longest.
const BODY_BYTES_MAX: usize = 1 << 20;

/// An asker sends its request at once.
const READ_TIME_MAX: Duration = Duration::from_secs(5);

/// A hundred records on a slow disk. Who waited longer than that has given up.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct AuthZen {
    sessions: Sessions,
    authorizer: Arc<Authorizer>,
}

/// Why a request gets no decision.
#[derive(Debug)]
struct Fault {
    status: StatusCode,
    /// A sentence for whoever sent it.
    message: String,
    /// The method by which to ask instead (RFC 9110, 15.5.6).
    allow: Option<HeaderValue>,
}

/// Whether a path is one of this service's.
pub(crate) fn is_authzen(path: &str) -> bool {
    path.starts_with(ACCESS) || path == METADATA
}

/// There is nothing here, and why.
pub(crate) fn not_found(why: &str) -> Response<Body> {
    Fault::new(StatusCode::NOT_FOUND, why).into_response()
}

// === impl AuthZen ===

impl AuthZen {
    pub(crate) fn new(sessions: Sessions, authorizer: Arc<Authorizer>) -> Self {
        Self { sessions, authorizer }
    }

    /// Answers any request to a path of this service.
    pub(crate) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let id = request.headers().get(REQUEST_ID).cloned();
        let caller = caller(request.extensions());
        let answered = match timeout(ANSWER_TIME_MAX, self.dispatch(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, "deciding took too long")),
        };
        let mut response = match answered {
            Ok(value) => respond(StatusCode::OK, "application/json", value.to_string() + "\n"),
            Err(fault) => {
                if let Some(caller) = caller {
                    self.tell(&caller, fault.status, &fault.message);
                }
                fault.into_response()
            }
        };
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    /// In the log, and not as often as somebody can ask.
    fn tell(&self, caller: &LocalProcess, status: StatusCode, reason: &str) {
        self.sessions
            .refused
            .question(caller, "AuthZEN", status.as_u16(), reason);
    }

    async fn dispatch(&self, request: Request<Body>) -> Result<Value, Fault> {
        let allowed = match request.uri().path() {
            METADATA => Method::GET,
            EVALUATION | EVALUATIONS => Method::POST,
            _ => {
                return Err(Fault::new(
                    StatusCode::NOT_FOUND,
                    "there are evaluations here, and no searches",
                ));
            }
        };
        if *request.method() != allowed {
            let message = format!("ask by {allowed}");
            return Err(Fault {
                allow: HeaderValue::from_str(allowed.as_str()).ok(),
                ..Fault::new(StatusCode::METHOD_NOT_ALLOWED, message)
            });
        }
        if allowed == Method::GET {
            return metadata(&request);
        }
        self.evaluations(request).await
    }

    async fn evaluations(&self, request: Request<Body>) -> Result<Value, Fault> {
        // Who asks.
        let (caller, _held) = admit(request.extensions())?;
        let who = self.sessions.session(&caller).entitlement().await?;

        // What.
        let (parts, body) = request.into_parts();
        if !is_json(&parts.headers) {
            let message = "the content type is not `application/json`";
            return Err(Fault::new(StatusCode::BAD_REQUEST, message));
        }
        let body = read(body).await?;
        let trace = parts
            .headers
            .get("traceparent")
            .and_then(|text| trace_id(text.to_str().ok()?));
        let asked = match parts.uri.path() {
            EVALUATION => Evaluations::One(Evaluation::parse(&body)?),
            _ => Evaluations::parse(&body)?,
        };

        // Decide.
        let (semantic, items) = match asked {
            Evaluations::One(one) => return self.evaluate((&caller, &who), one, trace).await,
            Evaluations::Many { semantic, items } => (semantic, items),
        };
        let mut decisions = Vec::with_capacity(items.len());
        for item in items {
            let decision = match item {
                Ok(asked) => self.evaluate((&caller, &who), asked, trace.clone()).await?,
                Err(malformed) => {
                    let reason = malformed.to_string();
                    self.tell(&caller, StatusCode::BAD_REQUEST, &reason);
                    unanswerable(StatusCode::BAD_REQUEST, &reason)
                }
            };
            let allowed = decision.get("decision") == Some(&Value::Bool(true));
            decisions.push(decision);
            let last = match semantic {
                Semantic::ExecuteAll => false,
                Semantic::DenyOnFirstDeny => !allowed,
                Semantic::PermitOnFirstPermit => allowed,
            };
            if last {
                break;
            }
        }
        Ok(json!({ "evaluations": decisions }))
    }

    /// One question. The error is that nothing can be recorded: then nothing else of the request may be told either.
    async fn evaluate(
        &self,
        (caller, who): (&LocalProcess, &Entitlement),
        asked: Evaluation,
        trace_id: Option<String>,
    ) -> Result<Value, Fault> {
        let (kind, service) = asked.resource;
        if kind != SERVICE {
            let message = format!("only a resource of the type `{SERVICE}` is known");
            self.tell(caller, StatusCode::NOT_FOUND, &message);
            return Ok(unanswerable(StatusCode::NOT_FOUND, &message));
        }
        let asker = match self.authorizer.asker(who, Some(&service)) {
            Ok(asker) => asker,
            Err(error) => {
                let reason = error.to_string();
                self.tell(caller, StatusCode::FORBIDDEN, &reason);
                return Ok(unanswerable(StatusCode::FORBIDDEN, &reason));
            }
        };
        let (kind, subject) = asked.subject;
        let call = Call {
            principal: if kind == WORKLOAD {
                principal(&subject, who)
            } else {
                let reason = format!("the subject is not of the type `{WORKLOAD}`");
                Err(unauthenticated(reason))
            },
            source: asked.source.and_then(|source| source.parse().ok()),
            trace_id,
            target: if asked.action == CONNECT {
                Target::Connection
            } else {
                let host = asked.host.unwrap_or_default();
                Target::http(
                    asked.action,
                    &host,
                    &asked.path.unwrap_or_default(),
                    asked.headers.into(),
                )
            },
        };
        let why = match self.authorizer.judge(&asker, call).await {
            Ok(granted) => return Ok(allowed(granted)),
            Err(why) if *why.why() == Why::Unrecorded => return Err(Fault::new(why.status(), why.code())),
            Err(why) => why,
        };
        let status = why.status().as_u16().to_string();
        let mut context = json!({
            "reason_user": { &status: why.code() },
            "reason_admin": { &status: why.outcome().as_str() },
        });
        if let (Some(decision), Some(context)) = (why.decision(), context.as_object_mut()) {
            context.insert("id".to_owned(), decision.to_string().into());
        }
        Ok(json!({ "decision": false, "context": context }))
    }
}

/// Lets through what is asked about. The grant is spent here.
fn allowed(granted: Granted<Wanted>) -> Value {
    let (_, decision) = granted.spend();
    json!({ "decision": true, "context": { "id": decision.to_string() } })
}

/// A question to which no policy was asked, and nothing recorded: the asker, and not the caller, is at fault.
fn unanswerable(status: StatusCode, message: &str) -> Value {
    json!({ "decision": false, "context": { "error": { "status": status.as_u16(), "message": message } } })
}

/// Where things are, under the name by which the asker called us: the standard wants that very name back.
fn metadata(request: &Request<Body>) -> Result<Value, Fault> {
    let named = request.headers().get(HOST).map(HeaderValue::as_bytes);
    let named = request
        .uri()
        .authority()
        .cloned()
        .or_else(|| Authority::try_from(named?).ok());
    let Some(host) = named.filter(|authority| !authority.as_str().contains('@')) else {
        return Err(Fault::new(StatusCode::BAD_REQUEST, "the request names no host"));
    };
    Ok(json!({
        "policy_decision_point": format!("https://{host}"),
        "access_evaluation_endpoint": format!("https://{host}{EVALUATION}"),
        "access_evaluations_endpoint": format!("https://{host}{EVALUATIONS}"),
    }))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

async fn read(body: Body) -> Result<Vec<u8>, Fault> {
    match timeout(READ_TIME_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Fault::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {BODY_BYTES_MAX} bytes; ask about less at once"),
        )),
        Ok(Err(error)) => Err(Fault::new(
            StatusCode::BAD_REQUEST,
            format!("the body breaks off: {error}"),
        )),
        Err(_) => Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

// === impl Fault ===

impl Fault {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            allow: None,
        }
    }

    /// The standard's errors are a status and a sentence.
    fn into_response(self) -> Response<Body> {
        let mut response = respond(self.status, "text/plain; charset=utf-8", self.message + "\n");
        if let Some(method) = self.allow {
            response.headers_mut().insert(ALLOW, method);
        }
        response
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::new(StatusCode::BAD_REQUEST, malformed.to_string())
    }
}

/// What keeps a process from being served at all.
impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable | Code::Aborted => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(code, status.message())
    }
}

#[cfg(test)]
mod tests;
