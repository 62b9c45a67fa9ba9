//! Services that know nothing of Hoplite: plain HTTP that tells what reached it or calls the next service, and plain TCP.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::client::{CallError, exchange};

/// A plain HTTP service on loopback; HTTP/1.1, or HTTP/2 with prior knowledge. Stops when dropped.
///
/// It answers 200 with `{"method", "target", "headers": {name: [values]}, "body"}`, or what the next service answered.
#[derive(Debug)]
pub struct HttpApp {
    address: SocketAddr,
    next: Arc<OnceLock<SocketAddr>>,
    task: JoinHandle<()>,
}

/// A plain TCP service on loopback that sends back what it receives; after the client's end it says `bye` and closes.
/// Stops when dropped.
#[derive(Debug)]
pub struct TcpApp {
    address: SocketAddr,
    task: JoinHandle<()>,
}

// === impl HttpApp ===

impl HttpApp {
    /// Starts one that tells what reached it, until [`HttpApp::call`].
    pub async fn start() -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let next = Arc::new(OnceLock::new());
        let target = Arc::clone(&next);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let next = Arc::clone(&target);
                let service = service_fn(move |request| answer(request, next.get().copied()));
                tokio::spawn(async move {
                    let io = TokioIo::new(stream);
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await;
                });
            }
        });
        Self { address, next, task }
    }

    /// From now on it passes each request on to this address, with all its headers, as a careless service does.
    pub fn call(&self, next: SocketAddr) {
        self.next.set(next).expect("the next service is set once");
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpApp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(request: Request<Incoming>, next: Option<SocketAddr>) -> Result<Response<Full<Bytes>>, CallError> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let Some(next) = next else {
        let mut headers = Map::new();
        for (name, value) in &parts.headers {
            let values = headers.entry(name.as_str()).or_insert_with(|| json!([]));
            values
                .as_array_mut()
                .unwrap()
                .push(Value::from(String::from_utf8_lossy(value.as_bytes())));
        }
        let told = json!({
            "method": parts.method.as_str(),
            "target": parts.uri.to_string(),
            "headers": headers,
            "body": String::from_utf8_lossy(&body),
        });
        return Ok(Response::new(Full::from(told.to_string())));
    };
    for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    parts
        .headers
        .entry(HOST)
        .or_insert_with(|| "next.test".parse().unwrap());
    parts.uri = parts.uri.path_and_query().unwrap().as_str().parse()?;
    let called = async {
        let stream = TcpStream::connect(next).await?;
        exchange(stream, false, Request::from_parts(parts, Full::from(body))).await
    };
    Ok(match called.await {
        Ok(answer) => {
            let mut response = Response::new(Full::from(answer.body));
            *response.status_mut() = answer.status;
            response
        }
        Err(error) => {
            let mut response = Response::new(Full::from(format!("the next service did not answer: {error}")));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    })
}

// === impl TcpApp ===

impl TcpApp {
    /// Starts one.
    pub async fn start() -> Self {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = vec![0; 16 << 10];
                    loop {
                        match stream.read(&mut buffer).await {
                            Ok(0) => {
                                let _ = stream.write_all(b"bye").await;
                                return;
                            }
                            Ok(read) => {
                                if stream.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
                                    return;
                                }
                            }
                            Err(_) => return,
                        }
                    }
                });
            }
        });
        Self { address, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TcpApp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port on loopback")
}
