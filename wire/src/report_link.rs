//! A client of the agent that takes reports: what a decision point says of itself.

use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::channel;
use crate::report::reports_client::ReportsClient;
use crate::report::{Point, PutRequest};
use crate::workload_api::{FetchError, socket_path};

/// An agent that needs longer to take note is stuck.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// The way to the agent's socket, opened when it is needed and again after it broke.
pub struct ReportLink {
    address: String,
    client: Option<ReportsClient<Channel>>,
}

// === impl ReportLink ===

impl ReportLink {
    /// To the agent at an address as in `SPIFFE_ENDPOINT_SOCKET`. Nothing is dialled yet.
    #[must_use]
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            client: None,
        }
    }

    /// Says how it is. Gives how soon to say it again.
    ///
    /// # Errors
    /// [`FetchError::Closed`] when this agent takes no reports. Else it was not told: wait a little before the next try.
    pub async fn put(&mut self, point: Point) -> Result<Duration, FetchError> {
        self.send(point, None).await
    }

    /// Says that it stops: in good order, or with an error that is not empty.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn leave(&mut self, point: Point, failure: &str) -> Result<(), FetchError> {
        self.send(point, Some(failure)).await.map(drop)
    }

    async fn send(&mut self, point: Point, leaving: Option<&str>) -> Result<Duration, FetchError> {
        let sent = tokio::time::timeout(ANSWERS_WITHIN, self.try_send(point, leaving)).await;
        let sent = sent.unwrap_or_else(|_| Err(FetchError::Unavailable("no answer in time".to_owned())));
        if sent.is_err() {
            self.client = None;
        }
        sent
    }

    async fn try_send(&mut self, point: Point, leaving: Option<&str>) -> Result<Duration, FetchError> {
        let path = socket_path(&self.address)?;
        let client = match &mut self.client {
            Some(client) => client,
            none => {
                let channel = channel::unix(path).await.map_err(|source| FetchError::Unreachable {
                    path: path.to_owned(),
                    source,
                })?;
                none.insert(ReportsClient::new(channel))
            }
        };
        let mut request = Request::new(PutRequest {
            point: Some(point),
            leaving: leaving.is_some(),
            failure: leaving.unwrap_or_default().to_owned(),
        });
        request
            .metadata_mut()
            .insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let answered = client
            .put(request)
            .await
            .map_err(|status: Status| match status.code() {
                Code::Unimplemented => FetchError::Closed,
                _ => FetchError::of(path, &status),
            })?;
        Ok(Duration::from_millis(answered.into_inner().period_ms.into()))
    }
}
