//! The answering side of one connection, in whichever version of HTTP it speaks.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response, Version};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::http::answer::Answer;
use crate::http::body::{Body, Incoming};
use crate::http::http2::server;
use crate::http::interim::Ahead;
use crate::http::lane::Lane;
use crate::http::reading::{bounded_http1, bounded_http2};
use crate::http::unparsed::Tapped;
use crate::share::Share;

/// How a connection ended, as the HTTP library says it.
pub(crate) type Ended = Result<(), Box<dyn Error + Send + Sync>>;

type OneConnection<S, H> = http1::Connection<TokioIo<Tapped<S>>, OneByOne<H>>;

/// Answers what comes on a connection, until that ends. Each request comes with the way for what goes ahead of its answer.
pub(crate) enum Conversation<S, H, F>
where
    H: Fn(Request<Incoming>, Ahead) -> F,
    F: Future<Output = Answer>,
{
    Http1(Pin<Box<OneConnection<S, H>>>),
    Http2(Box<server::Connection<S, H>>),
}

/// The requests of HTTP/1.1, for the library.
pub(crate) struct OneByOne<H> {
    answer: H,
    lane: Lane,
}

/// An answer is never an error.
pub(crate) struct Always<F>(Pin<Box<F>>);

// === impl Conversation ===

impl<S, H, F> Conversation<S, H, F>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, Ahead) -> F,
    F: Future<Output = Answer> + Send + 'static,
{
    /// `share` is the caller's part of what may be unread.
    pub(crate) fn new(stream: Tapped<S>, http2: bool, share: Arc<Share>, answer: H) -> Self {
        if http2 {
            return Self::Http2(Box::new(server::Connection::new(
                stream,
                share,
                &bounded_http2(),
                answer,
            )));
        }
        let lane = stream.lane();
        let service = OneByOne { answer, lane };
        Self::Http1(Box::pin(
            bounded_http1().serve_connection(TokioIo::new(stream), service),
        ))
    }

    /// Takes nothing new, and ends when what is under way has ended.
    pub(crate) fn graceful_shutdown(&mut self) {
        match self {
            Self::Http1(connection) => connection.as_mut().graceful_shutdown(),
            Self::Http2(connection) => connection.graceful_shutdown(),
        }
    }
}

impl<S, H, F> Future for Conversation<S, H, F>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, Ahead) -> F + Unpin,
    F: Future<Output = Answer> + Send + 'static,
{
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        match self.get_mut() {
            Self::Http1(connection) => connection.as_mut().poll(context).map_err(Into::into),
            Self::Http2(connection) => connection.poll_end(context).map_err(Into::into),
        }
    }
}

// === impl OneByOne ===

impl<H, F> Service<Request<hyper::body::Incoming>> for OneByOne<H>
where
    H: Fn(Request<Incoming>, Ahead) -> F,
    F: Future<Output = Answer>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Always<F>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Always<F> {
        let ahead = match request.version() {
            Version::HTTP_11 => Ahead::Http1(self.lane.clone()),
            _ => Ahead::Nowhere,
        };
        Always(Box::pin((self.answer)(request.map(Incoming::Http1), ahead)))
    }
}

// === impl Always ===

impl<F: Future<Output = Answer>> Future for Always<F> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context).map(|answer| Ok(answer.into_response()))
    }
}
