//! A Workload API on a Unix socket, right in everything but what a test makes wrong. It writes gRPC by hand, so that it can be wrong.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use prost_types::value::Kind;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;

use super::maker::{Authority, TokenKey};
use crate::findings::{Findings, Outcome};
use crate::messages::{
    File, Files, JwtBundlesResponse, JwtSvid, JwtSvidRequest, JwtSvidResponse, Method, ReflectionRequest,
    ReflectionResponse, Service, Services, ValidateJwtSvidRequest, ValidateJwtSvidResponse, X509BundlesResponse,
    X509Svid, X509SvidResponse,
};
use crate::{spiffe_id, token};

pub(super) const INVALID: u8 = 3;
pub(super) const DENIED: u8 = 7;
pub(super) const UNIMPLEMENTED: u8 = 12;

/// Messages, or a code and why.
pub(super) type Reply = Result<Vec<Vec<u8>>, (u8, &'static str)>;

/// What the server gives and how it answers.
pub(super) struct Served {
    pub(super) x509: X509SvidResponse,
    /// From the second call on.
    pub(super) again: Option<X509SvidResponse>,
    pub(super) bundles: X509BundlesResponse,
    pub(super) jwt_bundles: BTreeMap<String, Vec<u8>>,
    pub(super) jwt_ids: Vec<String>,
    pub(super) jwt_hints: Vec<String>,
    pub(super) token_key: TokenKey,
    pub(super) token: fn(&mut Map<String, Value>, &mut Map<String, Value>),
    pub(super) token_text: fn(String) -> String,
    /// Whether the values of the security header will do.
    pub(super) header: fn(&[&[u8]]) -> bool,
    pub(super) header_code: u8,
    pub(super) delay: Duration,
    pub(super) methods: Vec<&'static str>,
    /// Asked before all else.
    pub(super) otherwise: fn(&Self, &str, &[u8]) -> Option<Reply>,
    pub(super) authority: Authority,
    pub(super) foreign: Authority,
    calls: AtomicUsize,
}

/// A running server: it ends with the runtime of its test.
pub(super) struct Running {
    dir: TempDir,
}

// === impl Served ===

impl Served {
    /// A good one. Its default identity, `/one`, is this SVID.
    pub(super) fn new(authority: Authority, one: (Vec<u8>, Vec<u8>)) -> Self {
        let foreign = Authority::new("foreign.test", |_| ());
        let token_key = TokenKey::new();
        let own = spiffe(&authority.name);
        let svid = |path: &str, (chain, key): (Vec<u8>, Vec<u8>), hint: &str| X509Svid {
            spiffe_id: format!("{own}{path}"),
            x509_svid: chain,
            x509_svid_key: key,
            bundle: authority.der.clone(),
            hint: hint.to_owned(),
        };
        let two = authority.leaf("/two", |_| ());
        let x509 = X509SvidResponse {
            svids: vec![svid("/one", one, "main"), svid("/two", two, "")],
            crl: vec![vec![0x30, 0]],
            federated_bundles: [(spiffe(&foreign.name), foreign.der.clone())].into(),
        };
        let bundles = [
            (own.clone(), authority.der.clone()),
            (spiffe(&foreign.name), foreign.der.clone()),
        ];
        let jwks = json!({"keys": [token_key.jwk()]}).to_string().into_bytes();
        Self {
            jwt_ids: x509.svids.iter().map(|svid| svid.spiffe_id.clone()).collect(),
            jwt_hints: vec!["main".to_owned(), String::new()],
            x509,
            again: None,
            bundles: X509BundlesResponse {
                crl: Vec::new(),
                bundles: bundles.into(),
            },
            jwt_bundles: [(own, jwks)].into(),
            token_key,
            token: |_, _| (),
            token_text: |text| text,
            header: |values| values == [b"true"],
            header_code: INVALID,
            delay: Duration::ZERO,
            methods: vec![
                "FetchX509SVID",
                "FetchX509Bundles",
                "FetchJWTSVID",
                "FetchJWTBundles",
                "ValidateJWTSVID",
            ],
            otherwise: |_, _, _| None,
            authority,
            foreign,
            calls: AtomicUsize::new(0),
        }
    }

    fn answer(&self, path: &str, headers: &HeaderMap, message: &[u8]) -> Reply {
        let values: Vec<_> = headers
            .get_all("workload.spiffe.io")
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        if !(self.header)(&values) {
            return Err((self.header_code, "security header missing from request"));
        }
        let method = path.rsplit('/').next().unwrap();
        if let Some(reply) = (self.otherwise)(self, method, message) {
            return reply;
        }
        let one = |message: &dyn Fn() -> Vec<u8>| Ok(vec![message()]);
        match method {
            "ServerReflectionInfo" => Ok(vec![self.reflect(message)]),
            _ if !self.methods.contains(&method) => Err((UNIMPLEMENTED, "there is no such method")),
            "FetchX509SVID" => {
                let is_first = self.calls.fetch_add(1, Ordering::Relaxed) < 2;
                let shown = self.again.as_ref().filter(|_| !is_first).unwrap_or(&self.x509);
                one(&|| shown.encode_to_vec())
            }
            "FetchX509Bundles" => one(&|| self.bundles.encode_to_vec()),
            "FetchJWTBundles" => one(&|| {
                let bundles = self.jwt_bundles.clone();
                JwtBundlesResponse { bundles }.encode_to_vec()
            }),
            "FetchJWTSVID" => self.tokens(&JwtSvidRequest::decode(message).unwrap()),
            _ => self.validate(&ValidateJwtSvidRequest::decode(message).unwrap()),
        }
    }

    fn reflect(&self, message: &[u8]) -> Vec<u8> {
        let request = ReflectionRequest::decode(message).unwrap();
        let method = |name: &&str| Method {
            name: (*name).to_owned(),
        };
        let service = Service {
            name: "SpiffeWorkloadAPI".to_owned(),
            method: self.methods.iter().map(method).collect(),
        };
        let service = vec![service];
        let response = match request.list_services {
            Some(_) => ReflectionResponse {
                files: None,
                services: Some(Services { service }),
            },
            None => ReflectionResponse {
                files: Some(Files {
                    file: vec![File { service }],
                }),
                services: None,
            },
        };
        response.encode_to_vec()
    }

    pub(super) fn tokens(&self, request: &JwtSvidRequest) -> Reply {
        if request.audience.is_empty() {
            return Err((INVALID, "an audience is mandatory"));
        }
        let mut findings = Findings::default();
        if !request.spiffe_id.is_empty() {
            spiffe_id::judge(&mut findings, &request.spiffe_id);
        }
        if findings
            .verdicts()
            .iter()
            .any(|verdict| verdict.outcome == Outcome::Fail)
        {
            return Err((INVALID, "that is no SPIFFE ID"));
        }
        let asked = |id: &&String| request.spiffe_id.is_empty() || **id == request.spiffe_id;
        let svids: Vec<_> = self
            .jwt_ids
            .iter()
            .filter(asked)
            .zip(&self.jwt_hints)
            .map(|(id, hint)| self.svid(id, hint, &request.audience))
            .collect();
        match svids.is_empty() {
            true => Err((DENIED, "no identity issued")),
            false => Ok(vec![JwtSvidResponse { svids }.encode_to_vec()]),
        }
    }

    pub(super) fn svid(&self, id: &str, hint: &str, audience: &[String]) -> JwtSvid {
        JwtSvid {
            spiffe_id: id.to_owned(),
            svid: (self.token_text)(self.token_key.token(id, audience, self.token)),
            hint: hint.to_owned(),
        }
    }

    pub(super) fn validate(&self, request: &ValidateJwtSvidRequest) -> Reply {
        if request.audience.is_empty() {
            return Err((INVALID, "an audience is mandatory"));
        }
        let token = token::read(&request.svid).map_err(|_| (INVALID, "that is no token"))?;
        let algorithm = token.header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let is_signed = token::verify(&self.token_key.key().kind, algorithm, &token) == Some(true);
        let audience = token
            .claims
            .get("aud")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let is_alive = token
            .claims
            .get("exp")
            .and_then(Value::as_u64)
            .is_some_and(|end| end > now);
        if !is_signed || !is_alive || !audience.contains(&json!(request.audience)) {
            return Err((INVALID, "it is not believed"));
        }
        Ok(vec![Self::validated(&token.claims)])
    }

    /// What is said of a token that is believed.
    pub(super) fn validated(claims: &Map<String, Value>) -> Vec<u8> {
        let kind = |value: &Value| match value {
            Value::String(text) => Kind::StringValue(text.clone()),
            Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
            Value::Array(list) => Kind::ListValue(prost_types::ListValue {
                values: list.iter().map(|_| prost_types::Value::default()).collect(),
            }),
            _ => Kind::NullValue(0),
        };
        let fields = claims.iter().map(|(name, value)| {
            let kind = Some(kind(value));
            (name.clone(), prost_types::Value { kind })
        });
        ValidateJwtSvidResponse {
            spiffe_id: claims["sub"].as_str().unwrap().to_owned(),
            claims: Some(prost_types::Struct {
                fields: fields.collect(),
            }),
        }
        .encode_to_vec()
    }

    /// Serves on a socket of its own.
    pub(super) async fn start(self) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let served = Arc::new(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = Arc::clone(&served);
                let service = service_fn(move |request| respond(Arc::clone(&served), request));
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
            }
        });
        Running { dir }
    }
}

impl Running {
    pub(super) fn address(&self) -> String {
        format!("unix://{}/s", self.dir.path().display())
    }
}

/// The SPIFFE ID of a trust domain.
pub(super) fn spiffe(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}")
}

type Body = StreamBody<tokio_stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// gRPC over HTTP/2: each message behind a zero and its length, the code in the trailers.
async fn respond(served: Arc<Served>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if head.uri.path().ends_with("FetchX509Bundles") {
        tokio::time::sleep(served.delay).await;
    }
    let reply = served.answer(head.uri.path(), &head.headers, body.get(5..).unwrap_or_default());
    let (messages, code, why) = match reply {
        Ok(messages) => (messages, 0, ""),
        Err((code, why)) => (Vec::new(), code, why),
    };
    let mut frames = Vec::new();
    for message in messages {
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap());
        framed.put_slice(&message);
        frames.push(Ok(Frame::data(framed.freeze())));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    trailers.insert("grpc-message", HeaderValue::from_static(why));
    frames.push(Ok(Frame::trailers(trailers)));
    let answer = Response::builder().header("content-type", "application/grpc");
    Ok(answer.body(StreamBody::new(tokio_stream::iter(frames))).unwrap())
}
