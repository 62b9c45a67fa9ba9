//! The demo services of `hoplite up`: plain HTTP on loopback, and no idea that Hoplite exists.
//!
//! `edge` takes orders and asks `orders`; `orders` asks `ledger`. `edge` also knows a way to ask `ledger` directly,
//! which is what policy refuses.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Plenty for a demo.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What belongs to a trace, by W3C's word.
const TRACE_CONTEXT: [&str; 3] = ["traceparent", "tracestate", "baggage"];

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// edge, orders or ledger
    #[arg(long)]
    name: String,
    #[arg(long)]
    listen: SocketAddr,
    /// Where to reach another service: NAME=http://127.0.0.1:PORT
    #[arg(long = "call", value_name = "NAME=URL")]
    calls: Vec<String>,
    /// Stop when standard input ends
    #[arg(long)]
    supervised: bool,
}

struct Service {
    name: String,
    calls: BTreeMap<String, String>,
    client: Client<HttpConnector, Full<Bytes>>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.supervised {
        hoplite_host::daemon::end_with_stdin()?;
    }
    let mut calls = BTreeMap::new();
    for call in args.calls {
        let (name, url) = call
            .split_once('=')
            .with_context(|| format!("`{call}` is not of the form NAME=URL"))?;
        calls.insert(name.to_owned(), url.to_owned());
    }
    let service = Arc::new(Service {
        name: args.name,
        calls,
        client: Client::builder(TokioExecutor::new()).build_http(),
    });
    super::runtime()?.block_on(async {
        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen on {}", args.listen))?;
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let service = Arc::clone(&service);
            tokio::spawn(async move {
                let handler = service_fn(move |request| {
                    let service = Arc::clone(&service);
                    async move { Ok::<_, Infallible>(service.answer(request).await) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), handler)
                    .await;
            });
        }
    })
}

// === impl Service ===

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, BODY_BYTES_MAX)
            .collect()
            .await
            .map(|body| body.to_bytes())
        else {
            return reply(
                StatusCode::PAYLOAD_TOO_LARGE,
                &json!({"error": "the body is too large"}),
            );
        };
        let path = head.uri.path();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match (self.name.as_str(), &head.method, segments.as_slice()) {
            ("edge", &Method::GET, ["orders", id]) => {
                self.pass(&head.headers, "orders", Method::GET, &format!("/orders/{id}"), body)
                    .await
            }
            ("edge", &Method::POST, ["orders"]) => {
                self.pass(&head.headers, "orders", Method::POST, "/orders", body).await
            }
            ("edge", &Method::GET, ["ledger", id]) => {
                self.pass(&head.headers, "ledger", Method::GET, &format!("/accounts/{id}"), body)
                    .await
            }
            ("orders", &Method::GET, ["orders", id]) => {
                let answer = self
                    .pass(&head.headers, "ledger", Method::GET, &format!("/accounts/{id}"), body)
                    .await;
                self.wrap(answer, |account| json!({"order": id, "account": account}))
                    .await
            }
            ("orders", &Method::POST, ["orders"]) => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let answer = self.pass(&head.headers, "ledger", Method::POST, "/entries", body).await;
                self.wrap(answer, |entry| json!({"ordered": text, "entry": entry}))
                    .await
            }
            ("ledger", &Method::GET, ["accounts", id]) => {
                let caller = head
                    .headers
                    .get("x-forwarded-client-cert")
                    .and_then(|value| value.to_str().ok());
                reply(
                    StatusCode::OK,
                    &json!({"account": id, "balance": 1200, "caller": caller.and_then(caller_id)}),
                )
            }
            ("ledger", &Method::POST, ["entries"]) => {
                reply(StatusCode::OK, &json!({"booked": String::from_utf8_lossy(&body)}))
            }
            _ => reply(
                StatusCode::NOT_FOUND,
                &json!({"error": format!("{} has no {} {path}", self.name, head.method)}),
            ),
        }
    }

    /// Calls another service and passes on what it answers. A service says itself which of its calls belong to which request:
    /// of that much it knows.
    async fn pass(
        &self,
        asked: &HeaderMap,
        to: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Response<Full<Bytes>> {
        let Some(base) = self.calls.get(to) else {
            return reply(
                StatusCode::BAD_GATEWAY,
                &json!({"error": format!("{} does not know {to}", self.name)}),
            );
        };
        let mut request = Request::builder().method(method).uri(format!("{base}{path}"));
        for name in TRACE_CONTEXT {
            for value in asked.get_all(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(body));
        let Ok(request) = request else {
            return reply(
                StatusCode::BAD_REQUEST,
                &json!({"error": "the path cannot be passed on"}),
            );
        };
        match self.client.request(request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let body = Limited::new(body, BODY_BYTES_MAX)
                    .collect()
                    .await
                    .map(|body| body.to_bytes())
                    .unwrap_or_default();
                let mut answer = Response::new(Full::new(body));
                *answer.status_mut() = head.status;
                for name in ["content-type", "x-hoplite-decision"] {
                    if let Some(value) = head.headers.get(name) {
                        answer.headers_mut().insert(name, value.clone());
                    }
                }
                answer
            }
            Err(error) => reply(
                StatusCode::BAD_GATEWAY,
                &json!({"error": format!("{to} cannot be reached: {error}")}),
            ),
        }
    }

    /// Puts a good answer into a larger one; a bad one goes through as it is.
    async fn wrap(&self, answer: Response<Full<Bytes>>, wrap: impl FnOnce(Value) -> Value) -> Response<Full<Bytes>> {
        if answer.status() != StatusCode::OK {
            return answer;
        }
        let Ok(body) = answer.into_body().collect().await;
        reply(
            StatusCode::OK,
            &wrap(serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null)),
        )
    }
}

/// The SPIFFE ID in an `x-forwarded-client-cert` header.
fn caller_id(header: &str) -> Option<&str> {
    header.split(';').find_map(|part| part.strip_prefix("URI="))
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
