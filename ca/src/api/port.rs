//! What answers on the CA's port: the node API for agents, and the admin API for operators, each with its own time.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};

use crate::rights::action::SERVICE;

/// Both services. A call of one has none of the other's bounds.
#[derive(Clone)]
pub(crate) struct Port<N, A> {
    node: (N, Duration),
    admin: (A, Duration),
}

type Answering = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

// === impl Port ===

impl<N, A> Port<N, A> {
    /// Each with how long a call of it may take until the answer begins.
    pub(crate) fn new(node: (N, Duration), admin: (A, Duration)) -> Self {
        Self { node, admin }
    }
}

impl<N, A> Service<http::Request<Body>> for Port<N, A>
where
    N: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>,
    A: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        match self.node.0.poll_ready(cx) {
            Poll::Ready(_) => self.admin.0.poll_ready(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        if request.uri().path().starts_with(SERVICE) {
            within(self.admin.1, self.admin.0.call(request))
        } else {
            within(self.node.1, self.node.0.call(request))
        }
    }
}

fn within(
    longest: Duration,
    answering: impl Future<Output = Result<http::Response<Body>, Infallible>> + Send + 'static,
) -> Answering {
    Box::pin(async move {
        match timeout(longest, answering).await {
            Ok(answered) => answered,
            Err(_) => Ok(Status::deadline_exceeded("the CA did not answer in time; try again").into_http()),
        }
    })
}
