//! A connection that a gRPC server accepted, what each request on it can learn of its peer, and for how long it lasts.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::server::Connected;
use tonic::{Code, Status};

/// A stream for `tonic`'s server. Each request has `info` in its extensions.
#[derive(Debug)]
pub struct Served<S, I, H = ()> {
    stream: S,
    info: I,
    _held: H,
}

/// Instead of the name of what is called, where there is nothing of that name: callers choose names.
pub const NO_RPC: &str = "other";

/// What is known of a connection, and can be told that a request on it begins.
pub trait Begins: Clone + Send + Sync + 'static {
    /// Lives as long as the request and its answer.
    type UnderWay: Send + Unpin + 'static;

    /// A request begins.
    ///
    /// # Errors
    /// What the caller is told instead of an answer.
    fn begin(&self) -> Result<Self::UnderWay, Status>;

    /// A request was answered: which RPC it was, or [`NO_RPC`] where there is none, and with which code of gRPC, or of HTTP
    /// for what is no gRPC. Of a stream it is how that began.
    fn answered(&self, _rpc: &str, _code: &str) {}

    /// A request was refused because of a bound: too long, too many, too slow. Whoever reads the log must learn of it.
    fn refused(&self, path: &str, reason: &str);
}

/// A service whose requests are known to their connection from their first byte to their answer's last.
#[derive(Debug, Clone)]
pub struct Counted<S, I> {
    service: S,
    _info: std::marker::PhantomData<fn() -> I>,
}

/// A service of gRPC with another beside it, told apart by the path.
#[derive(Debug, Clone)]
pub struct Beside<A, B> {
    first: A,
    second: B,
}

/// An answer's body, and what lives as long as it does.
struct CountedBody<U> {
    body: Body,
    _under_way: U,
}

// === impl Served ===

impl<S, I> Served<S, I> {
    /// Serves a stream whose peer is `info`.
    pub fn new(stream: S, info: I) -> Self {
        Self {
            stream,
            info,
            _held: (),
        }
    }

    /// Drops `held` when the connection ends.
    pub fn holding<H>(self, held: H) -> Served<S, I, H> {
        Served {
            stream: self.stream,
            info: self.info,
            _held: held,
        }
    }
}

impl<S, I: Clone + Send + Sync + 'static, H> Connected for Served<S, I, H> {
    type ConnectInfo = I;

    fn connect_info(&self) -> I {
        self.info.clone()
    }
}

impl<S: AsyncRead + Unpin, I: Unpin, H: Unpin> AsyncRead for Served<S, I, H> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin, I: Unpin, H: Unpin> AsyncWrite for Served<S, I, H> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

// === impl Counted ===

impl<S, I> Counted<S, I> {
    /// `I` is the connections' [`Connected::connect_info`].
    pub fn new(service: S) -> Self {
        Self {
            service,
            _info: std::marker::PhantomData,
        }
    }
}

impl<S: NamedService, I> NamedService for Counted<S, I> {
    const NAME: &'static str = S::NAME;
}

impl<S, I> Service<http::Request<Body>> for Counted<S, I>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>,
    I: Begins,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(info) = request.extensions().get::<I>().cloned() else {
            let status = Status::internal("nothing is known of this connection");
            return Box::pin(std::future::ready(Ok(status.into_http())));
        };
        let uri = request.uri().clone();
        match info.begin() {
            Ok(under_way) => {
                let answering = self.service.call(request);
                Box::pin(async move {
                    let response = answering.await?;
                    let (rpc, code) = (rpc_of(&uri, &response), code_of(&response));
                    info.answered(rpc, &code);
                    if let Some(reason) = bound_of(&response) {
                        info.refused(uri.path(), &reason);
                    }
                    let counted = |body| CountedBody {
                        body,
                        _under_way: under_way,
                    };
                    Ok(response.map(|body| Body::new(counted(body))))
                })
            }
            Err(status) => {
                info.refused(uri.path(), status.message());
                info.answered(NO_RPC, &format!("{:?}", status.code()));
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}

/// What was called: `hoplite.ca.v1.Node/Join`.
fn rpc_of<'a>(uri: &'a http::Uri, response: &http::Response<Body>) -> &'a str {
    const NAME_BYTES_MAX: usize = 128;
    let named = uri.path().trim_start_matches('/');
    let unknown = match Status::from_header_map(response.headers()) {
        Some(status) => status.code() == Code::Unimplemented,
        None => response.status() == http::StatusCode::NOT_FOUND,
    };
    if unknown || named.len() > NAME_BYTES_MAX {
        NO_RPC
    } else {
        named
    }
}

/// As gRPC calls it, `PermissionDenied`; of what is no gRPC, the status.
fn code_of(response: &http::Response<Body>) -> String {
    let is_grpc = |value: &http::HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    let kind = response.headers().get(http::header::CONTENT_TYPE);
    match Status::from_header_map(response.headers()) {
        Some(status) => format!("{:?}", status.code()),
        None if kind.is_some_and(is_grpc) => format!("{:?}", Code::Ok),
        None => response.status().as_str().to_owned(),
    }
}

/// Why an answer refuses because of a bound, in the codes of gRPC and of HTTP; none when it does not.
fn bound_of(response: &http::Response<Body>) -> Option<String> {
    const HTTP: [http::StatusCode; 3] = [
        http::StatusCode::PAYLOAD_TOO_LARGE,
        http::StatusCode::REQUEST_TIMEOUT,
        http::StatusCode::TOO_MANY_REQUESTS,
    ];
    if HTTP.contains(&response.status()) {
        return Some(response.status().to_string());
    }
    let status = Status::from_header_map(response.headers())?;
    let is_bound = matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange);
    is_bound.then(|| status.message().to_owned())
}

// === impl Beside ===

impl<A, B> Beside<A, B> {
    /// What is not the second's is the first's.
    pub fn new(first: A, second: B) -> Self {
        Self { first, second }
    }
}

impl<A: NamedService, B> NamedService for Beside<A, B> {
    const NAME: &'static str = A::NAME;
}

impl<A, B> Service<http::Request<Body>> for Beside<A, B>
where
    A: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>,
    B: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>
        + NamedService,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    /// What is generated is always ready.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.first.poll_ready(cx) {
            Poll::Ready(Ok(())) => self.second.poll_ready(cx),
            first => first,
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path().split('/').nth(1) {
            Some(name) if name == B::NAME => Box::pin(self.second.call(request)),
            _ => Box::pin(self.first.call(request)),
        }
    }
}

// === impl CountedBody ===

impl<U: Send + Unpin> HttpBody for CountedBody<U> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
