//! gRPC's health protocol: whether a server can do its work now, for load balancers and for people's tools.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// What the health of a server is read from.
pub trait Readiness: Clone + Send + Sync + 'static {
    /// Whether the server can do its work now. No longer once it stops.
    fn is_ready(&mut self) -> bool;

    /// Returns `true` when that may have changed, and `false` when the server stops.
    fn changed(&mut self) -> impl Future<Output = bool> + Send;
}

/// The service.
#[derive(Debug, Clone)]
pub struct HealthService<R> {
    readiness: R,
    /// The services that may be asked about, besides the empty name for the whole.
    services: Arc<BTreeSet<String>>,
}

// === impl HealthService ===

impl<R: Readiness> HealthService<R> {
    /// Tells of these services, all of which are as ready as `readiness` is.
    pub fn server<N: Into<String>>(readiness: R, services: impl IntoIterator<Item = N>) -> HealthServer<Self> {
        let services = Arc::new(services.into_iter().map(Into::into).collect());
        HealthServer::new(Self { readiness, services })
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(service)
    }

    fn status(&mut self) -> ServingStatus {
        match self.readiness.is_ready() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        }
    }

    /// Tells of each change until the stop, of which it tells too.
    async fn tell(mut self, service: String, sender: mpsc::Sender<Result<HealthCheckResponse, Status>>) {
        let mut told = None;
        loop {
            let status = match self.knows(&service) {
                true => self.status(),
                // The protocol: it may come later, so the stream stays open.
                false => ServingStatus::ServiceUnknown,
            };
            if told != Some(status) {
                told = Some(status);
                if sender.send(Ok(answer(status))).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                goes_on = self.readiness.changed() => if !goes_on {
                    // Whoever does not read it sees the end of the stream.
                    let _ = sender.try_send(Ok(answer(ServingStatus::NotServing)));
                    return;
                },
                () = sender.closed() => return,
            }
        }
    }
}

#[tonic::async_trait]
impl<R: Readiness> Health for HealthService<R> {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.knows(&request.get_ref().service) {
            let known: Vec<_> = self.services.iter().map(|name| format!("`{name}`")).collect();
            return Err(Status::not_found(format!(
                "there is no such service here; ask about the empty name, or {}",
                known.join(", ")
            )));
        }
        Ok(Response::new(answer(self.clone().status())))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().tell(request.into_inner().service, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
