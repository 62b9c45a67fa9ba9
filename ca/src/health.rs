//! gRPC's health protocol at the CA: whether it can do its work now, for load balancers and for people's tools.

use std::sync::Arc;

use hoplite_host::shutdown::Shutdown;
use hoplite_telemetry::Site;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// How often it is looked whether that has changed, for those who watch.
const LOOK: std::time::Duration = std::time::Duration::from_secs(1);

/// The service, beside one other.
#[derive(Debug, Clone)]
pub(crate) struct HealthService {
    site: Arc<Site>,
    /// The other one's name.
    beside: &'static str,
    shutdown: Shutdown,
}

// === impl HealthService ===

impl HealthService {
    /// Beside the service of this name.
    pub(crate) fn server(site: Arc<Site>, beside: &'static str, shutdown: Shutdown) -> HealthServer<Self> {
        HealthServer::new(Self { site, beside, shutdown })
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || service == self.beside
    }

    fn status(&self) -> ServingStatus {
        match !self.shutdown.is_stopping() && self.site.unready().is_empty() {
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
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
                () = self.shutdown.wait() => {
                    // Whoever does not read it sees the end of the stream.
                    let _ = sender.try_send(Ok(answer(ServingStatus::NotServing)));
                    return;
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.knows(&request.get_ref().service) {
            return Err(Status::not_found(format!(
                "this CA has no such service here; ask about the empty name, or `{}`",
                self.beside
            )));
        }
        Ok(Response::new(answer(self.status())))
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
