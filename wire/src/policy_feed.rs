//! A client of the agent's policy feed: what is in force, at once and then each time it changes.
//!
//! It carries signed documents and believes none of them: whoever enforces them opens them.

use std::mem;

use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use crate::channel;
use crate::policy::policies_client::PoliciesClient;
use crate::policy::{PolicyUpdate, WatchRequest};
use crate::workload_api::{FetchError, socket_path};

/// The longest bundle, and what a message may add to it, that a client takes. Whoever opens it has a bound of their own,
/// which is lower.
pub const POLICY_BYTES_MAX: usize = 64 << 20;

/// A stream of policy from an agent's socket that opens itself, and opens itself again after it broke.
pub struct PolicyFeed {
    address: String,
    stream: Option<Streaming<PolicyUpdate>>,
    pieces: Pieces,
}

/// What has come of bundles of which the rest is still to come.
#[derive(Default)]
struct Pieces {
    live: Vec<u8>,
    shadow: Vec<u8>,
}

// === impl PolicyFeed ===

impl PolicyFeed {
    /// The feed of the agent at an address as in `SPIFFE_ENDPOINT_SOCKET`. Nothing is dialled yet.
    #[must_use]
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            stream: None,
            pieces: Pieces::default(),
        }
    }

    /// The next news. What the caller holds is told when the stream is opened, so that it is not sent again. May be dropped half-way and called again.
    ///
    /// # Errors
    /// The stream could not be opened or broke. The next call opens it anew: wait a little before that.
    pub async fn next(&mut self, held: WatchRequest) -> Result<PolicyUpdate, FetchError> {
        if self.stream.is_none() {
            self.stream = Some(self.open(held).await?);
            self.pieces = Pieces::default();
        }
        let whole = self.whole().await;
        if whole.is_err() {
            self.stream = None;
        }
        whole
    }

    async fn whole(&mut self) -> Result<PolicyUpdate, FetchError> {
        loop {
            let stream = self.stream.as_mut().ok_or(FetchError::Closed)?;
            let path = socket_path(&self.address)?;
            let update = stream.message().await.map_err(|status| FetchError::of(path, &status))?;
            let update = update.ok_or(FetchError::Closed)?;
            if let Some(whole) = self.pieces.put(update)? {
                return Ok(whole);
            }
        }
    }

    async fn open(&self, held: WatchRequest) -> Result<Streaming<PolicyUpdate>, FetchError> {
        let path = socket_path(&self.address)?;
        let channel = channel::unix(path).await.map_err(|source| FetchError::Unreachable {
            path: path.to_owned(),
            source,
        })?;
        let mut request = Request::new(held);
        request
            .metadata_mut()
            .insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let response = PoliciesClient::new(channel).watch(request).await;
        let response = response.map_err(|status| FetchError::of(path, &status))?;
        Ok(response.into_inner())
    }
}

// === impl Pieces ===

impl Pieces {
    /// The update, with its bundle whole; none while there is more of it to come.
    fn put(&mut self, mut update: PolicyUpdate) -> Result<Option<PolicyUpdate>, FetchError> {
        for (before, piece) in [
            (&mut self.live, &mut update.live),
            (&mut self.shadow, &mut update.shadow),
        ] {
            let Some(bytes) = piece.take_if(|_| update.more || !before.is_empty()) else {
                continue;
            };
            if before.len() + bytes.len() > POLICY_BYTES_MAX {
                return Err(FetchError::TooLong);
            }
            before.extend_from_slice(&bytes);
            if !update.more {
                *piece = Some(mem::take(before).into());
            }
        }
        Ok((!update.more).then_some(update))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(live: &[u8], more: bool) -> PolicyUpdate {
        PolicyUpdate {
            live: Some(live.to_vec().into()),
            more,
            ..PolicyUpdate::default()
        }
    }

    #[test]
    fn pieces_make_a_whole_within_bounds() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.put(piece(b"ab", false)).unwrap(), Some(piece(b"ab", false)));
        assert_eq!(pieces.put(piece(b"a", true)).unwrap(), None);
        assert_eq!(pieces.put(piece(b"b", true)).unwrap(), None);
        assert_eq!(pieces.put(piece(b"c", false)).unwrap(), Some(piece(b"abc", false)));
        assert_eq!(
            pieces.put(PolicyUpdate::default()).unwrap(),
            Some(PolicyUpdate::default())
        );
        let long = vec![0; POLICY_BYTES_MAX / 2];
        pieces.put(piece(&long, true)).unwrap();
        pieces.put(piece(&long, true)).unwrap();
        assert!(matches!(pieces.put(piece(b"c", false)), Err(FetchError::TooLong)));
    }
}
