//! Reaching the other side: the service behind us in plain text on its own address, or a peer by mutual TLS as exactly
//! the identity we expect.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hoplite_audit::Outcome;
use hoplite_decision::Unasked;
use hoplite_host::clock;
use hoplite_identity::tls;
use hoplite_identity::{PeerRole, SpiffeId};
use http::StatusCode;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::warn;

use crate::peer::destination::{Destination, DestinationFeed};
use crate::peer::handshake::{presented, tls_error};
use crate::peer::identity_feed::{IdentityFeed, Layer};
use crate::peer::session::Session;

/// Who does not answer within this time is away.
pub(crate) const DIAL_MAX: Duration = Duration::from_secs(5);

/// The name in the TLS hello. It means nothing: peers are known by SPIFFE ID.
const PLACEHOLDER_NAME: &str = "hoplite.invalid";

/// How rustls begins to say that the peer sent a fatal alert.
const ALERT_RECEIVED: &str = "received fatal alert";

/// A peer that must be who we expect.
#[derive(Clone)]
pub(crate) struct Peer {
    /// Where it is, and who: as of each call.
    pub(crate) destination: Arc<DestinationFeed>,
    /// Who we are.
    pub(crate) identity: Arc<IdentityFeed>,
}

/// A connection to a peer that has proved who it is.
pub(crate) struct Dialled {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) session: Session,
    /// Where it leads.
    pub(crate) address: String,
    pub(crate) made_with: MadeWith,
}

/// As of which identity and destination a connection was made: when either is replaced, new calls take another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MadeWith {
    identity: u64,
    destination: u64,
}

// === impl MadeWith ===

impl MadeWith {
    /// To the service behind us there is no identity, but it may have moved.
    pub(crate) fn of_service(number: u64) -> Self {
        Self {
            identity: 0,
            destination: number,
        }
    }
}

/// Why the other side was not reached, or broke. Callers hear the code, the log has the rest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("cannot connect to `{address}`: {source}")]
    Unreachable { address: String, source: io::Error },
    #[error("`{0}` does not answer within 5 s")]
    Timeout(String),
    #[error("`{address}` is not `{expect}`: {reason}")]
    UnexpectedPeer {
        address: String,
        expect: SpiffeId,
        reason: String,
    },
    #[error("`{address}` cannot prove who it is: {reason}")]
    Untrusted { address: String, reason: String },
    #[error("`{address}` refused our connection: {reason}")]
    Refused { address: String, reason: String },
    #[error("the own SVID has expired and the agent gave no new one")]
    OwnSvidExpired,
    #[error("`{address}` broke off: {reason}")]
    Broken { address: String, reason: String },
    #[error("`{0}` began its answer with a head of more than 64 KiB or 256 fields")]
    HeadTooLarge(String),
    #[error("`{address}` gave no answer: {reason}")]
    Unfit { address: String, reason: String },
}

// === impl UpstreamError ===

impl UpstreamError {
    /// What went wrong with an established connection. A TLS 1.3 server that refuses our certificate says so only after
    /// the handshake has ended on our side.
    pub(crate) fn broken(address: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        let address = address.to_owned();
        let mut cause = Some(error);
        while let Some(error) = cause {
            let alert = error
                .downcast_ref::<rustls::Error>()
                .or_else(|| error.downcast_ref::<io::Error>().and_then(tls_error));
            // An HTTP/2 connection keeps only the text of what ended it.
            let said = error.to_string();
            if matches!(alert, Some(rustls::Error::AlertReceived(_))) || said.contains(ALERT_RECEIVED) {
                return Self::Refused { address, reason: said };
            }
            cause = error.source();
        }
        let reason = error
            .source()
            .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
        Self::Broken { address, reason }
    }

    /// What it said is no answer.
    pub(crate) fn unfit(address: &str, reason: &(dyn std::error::Error + 'static)) -> Self {
        Self::Unfit {
            address: address.to_owned(),
            reason: reason.to_string(),
        }
    }

    fn handshake(address: &str, expect: &SpiffeId, error: &io::Error) -> Self {
        match tls_error(error).and_then(tls::rejection) {
            Some(rejected) if rejected.code() == "unexpected_peer" => Self::UnexpectedPeer {
                address: address.to_owned(),
                expect: expect.clone(),
                reason: rejected.to_string(),
            },
            Some(rejected) => Self::Untrusted {
                address: address.to_owned(),
                reason: format!("{}: {rejected}", rejected.code()),
            },
            None => Self::broken(address, error),
        }
    }

    /// From a fixed set: for callers and metrics.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "upstream_unreachable",
            Self::Timeout(_) => "upstream_timeout",
            Self::UnexpectedPeer { .. } => "upstream_unexpected_peer",
            Self::Untrusted { .. } => "upstream_untrusted",
            Self::Refused { .. } => "upstream_refused",
            Self::OwnSvidExpired => "own_svid_expired",
            Self::Broken { .. } => "upstream_broken",
            Self::HeadTooLarge(_) => "upstream_head_too_large",
            Self::Unfit { .. } => "upstream_unfit",
        }
    }

    /// For callers.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::OwnSvidExpired => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// That a call comes to nothing, for the record and the caller.
    pub(crate) fn unasked(&self) -> Unasked {
        Unasked {
            status: self.status(),
            outcome: Outcome::Error,
            code: self.code(),
            reason: self.to_string(),
        }
    }

    /// Says in full what callers hear only the code of.
    pub(crate) fn log(&self, upstream: &str) {
        // A peer that is not who it should be is somebody's mistake or somebody's attack.
        let notice = matches!(
            self,
            Self::UnexpectedPeer { .. } | Self::Untrusted { .. } | Self::Refused { .. }
        );
        warn!(notice, upstream, code = self.code(), "{self}");
    }
}

// === impl Peer ===

impl Peer {
    /// Connects, and proves the peer's identity before anything is sent.
    pub(crate) async fn dial(&self, layer: Layer) -> Result<Dialled, UpstreamError> {
        let destination = self.destination.current();
        timeout(DIAL_MAX, self.connect(&destination, layer))
            .await
            .unwrap_or_else(|_| Err(UpstreamError::Timeout(destination.address.clone())))
    }

    /// What a connection that is made now is made with.
    pub(crate) fn made_with(&self) -> MadeWith {
        MadeWith {
            identity: self.identity.number(),
            destination: self.destination.number(),
        }
    }

    async fn connect(&self, destination: &Destination, layer: Layer) -> Result<Dialled, UpstreamError> {
        let Destination {
            address,
            expect,
            number,
        } = destination;
        let generation = self.identity.current();
        if !generation.is_valid(clock::now()) {
            return Err(UpstreamError::OwnSvidExpired);
        }
        let untrusted = |reason: &str| UpstreamError::Untrusted {
            address: address.clone(),
            reason: reason.to_owned(),
        };
        let config = generation
            .client(expect, layer)
            .map_err(|error| untrusted(&error.to_string()))?;
        let name = ServerName::try_from(PLACEHOLDER_NAME).map_err(|error| untrusted(&error.to_string()))?;
        let tcp = open(address).await?;
        let stream = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(|error| UpstreamError::handshake(address, expect, &error))?;
        let (_, connection) = stream.get_ref();
        let peer = tls::verified_peer(&generation.verifier, connection, PeerRole::Server, clock::now())
            .map_err(|rejected| untrusted(&rejected.to_string()))?;
        if peer.spiffe_id() != expect {
            return Err(UpstreamError::UnexpectedPeer {
                address: address.clone(),
                expect: expect.clone(),
                reason: format!("it is `{}`", peer.spiffe_id()),
            });
        }
        let session = Session::new(
            &peer,
            PeerRole::Server,
            presented(connection),
            self.identity.clone(),
            &generation,
        );
        Ok(Dialled {
            stream,
            session,
            address: address.clone(),
            made_with: MadeWith {
                identity: generation.number,
                destination: *number,
            },
        })
    }
}

/// Connects in plain text: to the service behind us.
pub(crate) async fn service(address: &str) -> Result<TcpStream, UpstreamError> {
    timeout(DIAL_MAX, open(address))
        .await
        .unwrap_or_else(|_| Err(UpstreamError::Timeout(address.to_owned())))
}

async fn open(address: &str) -> Result<TcpStream, UpstreamError> {
    let opened = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    };
    opened.await.map_err(|source| UpstreamError::Unreachable {
        address: address.to_owned(),
        source,
    })
}
