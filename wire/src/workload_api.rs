//! A Workload API client: the caller's X.509-SVIDs and the bundles to verify peers with, parsed and checked.
//!
//! It speaks the SPIFFE standard and nothing more, so it works with any agent that does.

use std::error::Error;
use std::path::{Path, PathBuf};

use hoplite_identity::{BundleSet, InvalidBundle, InvalidSpiffeId, InvalidSvid, SpiffeId, TrustBundle, X509Svid};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use crate::channel;
use crate::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::workload::{X509svidRequest, X509svidResponse};

/// A stream of identities from an agent's socket.
pub struct WorkloadApi {
    /// The socket, for what is said of it.
    path: PathBuf,
    stream: Streaming<X509svidResponse>,
}

/// All that a workload is entitled to at one moment. The first SVID is the default identity (W-10).
#[derive(Debug)]
pub struct Identity {
    /// Never empty.
    pub svids: Vec<X509Svid>,
    /// The hint of each SVID, in the same order; empty where there is none.
    pub hints: Vec<String>,
    /// The own trust domain's bundle, and those of federated ones.
    pub bundles: BundleSet,
}

/// Why no identity came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The socket's address is not of the form `unix:///absolute/path`, or a bare absolute path.
    #[error("`{0}` is not a Workload API address; write `unix:///absolute/path/to/agent.sock`")]
    Address(String),
    /// Nobody answers there.
    #[error("cannot reach the Workload API at `{path}`; is the agent running?")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the transport said.
        #[source]
        source: tonic::transport::Error,
    },
    /// The agent took the connection, and then said nothing or broke it off.
    #[error(
        "the agent at `{path}` does not answer ({why}): it is stopped or hangs, has just ended, or has too many connections; its log says \
         which, and `ps` whether it runs (state T is stopped)"
    )]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What the transport said.
        why: String,
    },
    /// The agent answered: this process has no identity (W-6).
    #[error("the agent refused an identity: {0}")]
    Denied(String),
    /// The agent cannot answer just now, or the stream broke; worth trying again.
    #[error("the Workload API is unavailable: {0}")]
    Unavailable(String),
    /// What was asked for cannot be.
    #[error("the agent cannot give what was asked for: {0}")]
    Asked(String),
    /// The agent closed the stream.
    #[error("the Workload API closed the stream")]
    Closed,
    /// A policy bundle of more bytes than any may have.
    #[error("the agent sent a policy bundle that is too long")]
    TooLong,
    /// The response carried no SVID, which the standard forbids.
    #[error("the Workload API sent a response without an SVID")]
    Empty,
    /// An SVID that does not obey the standard.
    #[error("the Workload API sent a bad SVID")]
    Svid(#[from] InvalidSvid),
    /// A bundle that does not obey the standard.
    #[error("the Workload API sent a bad trust bundle")]
    Bundle(#[from] InvalidBundle),
    /// A bundle keyed by something that is not a trust domain's SPIFFE ID.
    #[error("the Workload API named a trust bundle badly")]
    Id(#[from] InvalidSpiffeId),
}

// === impl WorkloadApi ===

impl WorkloadApi {
    /// Opens `FetchX509SVID` at an address as in `SPIFFE_ENDPOINT_SOCKET` (W-5).
    pub async fn open(address: &str) -> Result<Self, FetchError> {
        let path = socket_path(address)?;
        let channel = channel::unix(path).await.map_err(|source| FetchError::Unreachable {
            path: path.to_owned(),
            source,
        })?;
        let mut request = Request::new(X509svidRequest {});
        // W-4: without this header an agent must refuse.
        request
            .metadata_mut()
            .insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let response = SpiffeWorkloadApiClient::new(channel)
            .max_decoding_message_size(RESPONSE_BYTES_MAX)
            .fetch_x509svid(request)
            .await
            .map_err(|status| FetchError::of(path, &status))?;
        Ok(Self {
            path: path.to_owned(),
            stream: response.into_inner(),
        })
    }

    /// The next full state: at once after opening, then after each change.
    pub async fn next(&mut self) -> Result<Identity, FetchError> {
        let response = self.stream.message().await;
        let response = response.map_err(|status| FetchError::of(&self.path, &status))?;
        let response = response.ok_or(FetchError::Closed)?;
        Identity::try_from(response)
    }
}

/// Room for some 8 000 identities; a workload with more is a mistake worth hearing about.
const RESPONSE_BYTES_MAX: usize = 32 << 20;

/// The path in `unix:///path`, `unix:/path` or a bare absolute path.
///
/// # Errors
/// [`FetchError::Address`] when it is none of these.
pub fn socket_path(address: &str) -> Result<&Path, FetchError> {
    let path = address
        .strip_prefix("unix://")
        .or_else(|| address.strip_prefix("unix:"))
        .unwrap_or(address);
    if path.starts_with('/') {
        Ok(Path::new(path))
    } else {
        Err(FetchError::Address(address.to_owned()))
    }
}

// === impl Identity ===

impl TryFrom<X509svidResponse> for Identity {
    type Error = FetchError;

    fn try_from(response: X509svidResponse) -> Result<Self, FetchError> {
        let mut bundles = BundleSet::default();
        for (domain, der) in response.federated_bundles {
            let id = SpiffeId::parse(&domain)?;
            bundles.insert(TrustBundle::from_der(id.trust_domain().clone(), &der, 0)?.into());
        }
        let mut svids = Vec::with_capacity(response.svids.len());
        let mut hints = Vec::with_capacity(response.svids.len());
        for message in response.svids {
            let svid = X509Svid::from_der(&message.x509_svid, &message.x509_svid_key)?;
            bundles.insert(TrustBundle::from_der(svid.spiffe_id().trust_domain().clone(), &message.bundle, 0)?.into());
            svids.push(svid);
            hints.push(message.hint);
        }
        if svids.is_empty() {
            Err(FetchError::Empty)
        } else {
            Ok(Self { svids, hints, bundles })
        }
    }
}

// === impl FetchError ===

impl FetchError {
    /// What the agent at this socket said, or that it said nothing.
    pub(crate) fn of(path: &Path, status: &Status) -> Self {
        match (Self::no_answer(path, status), status.code()) {
            (Some(error), _) => error,
            (None, Code::PermissionDenied) => Self::Denied(status.message().to_owned()),
            (None, code) => Self::Unavailable(format!("{code:?}: {}", status.message())),
        }
    }

    /// When it was made here, of an error of the connection to the agent at this socket: the agent said nothing.
    #[must_use]
    pub fn no_answer(path: &Path, status: &Status) -> Option<Self> {
        // What comes over the wire has no source.
        let first = status.source()?;
        let last = std::iter::successors(Some(first), |error| (*error).source()).last();
        Some(Self::NoAnswer {
            path: path.to_owned(),
            why: last.unwrap_or(first).to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn an_agent_that_breaks_off_is_named_with_what_to_look_at() {
        let path = std::env::temp_dir().join(format!("hoplite-no-answer-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        // Long enough that the call is on its way, and never answered.
        let agent = async {
            let (held, _) = listener.accept().await.unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(held);
        };
        let address = path.display().to_string();
        let (opened, ()) = tokio::join!(WorkloadApi::open(&address), agent);
        std::fs::remove_file(&path).unwrap();
        let error = opened.err().unwrap();
        assert!(
            matches!(&error, FetchError::NoAnswer { path: of, .. } if *of == path),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(&format!("the agent at `{address}` does not answer")),
            "{text}"
        );
        assert!(text.contains("its log says which"), "{text}");
    }

    #[test]
    fn what_the_agent_says_is_its_own_word() {
        let path = Path::new("/run/agent.sock");
        let check = |status: Status, expected: &str| {
            assert_eq!(FetchError::of(path, &status).to_string(), expected);
            assert!(FetchError::no_answer(path, &status).is_none());
        };
        check(
            Status::permission_denied("no entry"),
            "the agent refused an identity: no entry",
        );
        check(
            Status::unavailable("try again soon"),
            "the Workload API is unavailable: Unavailable: try again soon",
        );
    }

    #[test]
    fn w_5_socket_addresses() {
        let check = |address: &str, expected: Option<&str>| {
            assert_eq!(socket_path(address).ok(), expected.map(Path::new), "{address}");
        };
        check("unix:///run/agent.sock", Some("/run/agent.sock"));
        check("unix:/run/agent.sock", Some("/run/agent.sock"));
        check("/run/agent.sock", Some("/run/agent.sock"));
        check("unix://authority/run/agent.sock", None);
        check("unix:agent.sock", None);
        check("tcp://127.0.0.1:8080", None);
        check("", None);
    }
}
