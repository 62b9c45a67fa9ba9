//! A Workload API client for JWT-SVIDs: the caller's own, and whether another's is believed.

use std::path::PathBuf;

use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::channel;
use crate::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::workload::{Jwtsvid, JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse};
use crate::workload_api::{FetchError, socket_path};

/// Why an agent does not believe a token, in its words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotBelieved(String);

/// A connection to an agent's socket.
pub struct WorkloadJwt {
    client: SpiffeWorkloadApiClient<Channel>,
    /// The socket, for what is said of it.
    path: PathBuf,
}

// === impl WorkloadJwt ===

impl WorkloadJwt {
    /// At an address as in `SPIFFE_ENDPOINT_SOCKET` (W-5).
    ///
    /// # Errors
    /// Nobody answers there.
    pub async fn connect(address: &str) -> Result<Self, FetchError> {
        let path = socket_path(address)?;
        let channel = channel::unix(path).await.map_err(|source| FetchError::Unreachable {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            client: SpiffeWorkloadApiClient::new(channel),
            path: path.to_owned(),
        })
    }

    /// The caller's tokens for this audience: of one identity, or of all that it has.
    ///
    /// # Errors
    /// It has none, or none can be had now.
    pub async fn fetch(&mut self, audience: Vec<String>, spiffe_id: Option<&str>) -> Result<Vec<Jwtsvid>, FetchError> {
        let asked = JwtsvidRequest {
            audience,
            spiffe_id: spiffe_id.unwrap_or_default().to_owned(),
        };
        let answer = self.client.fetch_jwtsvid(with_header(asked)).await;
        let answer = answer.map_err(|status| match status.code() {
            Code::InvalidArgument => FetchError::Asked(status.message().to_owned()),
            _ => FetchError::of(&self.path, &status),
        })?;
        let svids = answer.into_inner().svids;
        match svids.is_empty() {
            true => Err(FetchError::Empty),
            false => Ok(svids),
        }
    }

    /// Whether the agent believes this token, meant for this audience; if not, why.
    ///
    /// # Errors
    /// The agent cannot be asked.
    pub async fn validate(
        &mut self,
        audience: String,
        svid: String,
    ) -> Result<Result<ValidateJwtsvidResponse, NotBelieved>, FetchError> {
        let asked = ValidateJwtsvidRequest { audience, svid };
        match self.client.validate_jwtsvid(with_header(asked)).await {
            Ok(response) => Ok(Ok(response.into_inner())),
            Err(status) if status.code() == Code::InvalidArgument => Ok(Err(NotBelieved(status.message().to_owned()))),
            Err(status) => Err(FetchError::of(&self.path, &status)),
        }
    }
}

/// W-4: without this header an agent must refuse.
fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
    request
}
