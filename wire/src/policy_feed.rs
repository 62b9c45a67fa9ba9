//! A client of the agent's policy feed: what is in force, at once and then each time it changes.
//!
//! It carries signed documents and believes none of them: whoever enforces them opens them.

use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use crate::channel;
use crate::policy::policies_client::PoliciesClient;
use crate::policy::{PolicyUpdate, WatchRequest};
use crate::workload_api::{FetchError, socket_path};

/// The longest message with a policy bundle in it. Bundles have a bound of their own, which is settable; this one is
/// above what anybody should set.
pub const POLICY_MESSAGE_BYTES_MAX: usize = 256 << 20;

/// A stream of policy from an agent's socket that opens itself, and opens itself again after it broke.
pub struct PolicyFeed {
    address: String,
    stream: Option<Streaming<PolicyUpdate>>,
}

// === impl PolicyFeed ===

impl PolicyFeed {
    /// The feed of the agent at an address as in `SPIFFE_ENDPOINT_SOCKET`. Nothing is dialled yet.
    #[must_use]
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            stream: None,
        }
    }

    /// The next news. The revisions are those of the bundles the caller holds (0 for none); they are told when the
    /// stream is opened, so that what is held is not sent again. May be dropped half-way and called again.
    ///
    /// # Errors
    /// The stream could not be opened or broke. The next call opens it anew: wait a little before that.
    pub async fn next(&mut self, live_revision: u64, shadow_revision: u64) -> Result<PolicyUpdate, FetchError> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open(live_revision, shadow_revision).await?,
        };
        let stream = self.stream.insert(stream);
        let next = stream.message().await.map_err(FetchError::from);
        match next.and_then(|update| update.ok_or(FetchError::Closed)) {
            Ok(update) => Ok(update),
            Err(error) => {
                self.stream = None;
                Err(error)
            }
        }
    }

    async fn open(&self, live_revision: u64, shadow_revision: u64) -> Result<Streaming<PolicyUpdate>, FetchError> {
        let path = socket_path(&self.address)?;
        let channel = channel::unix(path).await.map_err(|source| FetchError::Unreachable {
            path: path.to_owned(),
            source,
        })?;
        let mut request = Request::new(WatchRequest {
            live_revision,
            shadow_revision,
        });
        request
            .metadata_mut()
            .insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let response = PoliciesClient::new(channel)
            .max_decoding_message_size(POLICY_MESSAGE_BYTES_MAX)
            .watch(request)
            .await?;
        Ok(response.into_inner())
    }
}
