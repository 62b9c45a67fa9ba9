//! The way to the CA: who we are there, whom we expect, and what can go wrong.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hoplite_host::backoff::{Backoff, jitter};
use hoplite_identity::{
    BundleSet, HostPort, InvalidBundle, InvalidSvid, PeerRejected, PeerVerifier, SpiffeId, TrustBundle, TrustDomain,
    X509Svid, tls,
};
use hoplite_wire::{BadTrustBundle, ca, channel, trust_bundle};
use rustls::{AlertDescription, ClientConfig};
use tokio::sync::{Notify, watch};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::addresses::CaAddresses;
use crate::metrics::Metrics;
use crate::node::key::KeyError;
use crate::troubles::Troubles;

/// How soon what failed at the CA is tried again. A CA that comes back should have its agents back within the longest.
pub(crate) const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));

/// Connecting and the handshake together; a CA that needs longer is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same, while there are other replicas to go to.
const CONNECT_TIMEOUT_AMONG_SEVERAL: Duration = Duration::from_millis(1500);

/// A replica that says nothing for twice this time is left for another.
const SILENCE_AMONG_SEVERAL: Duration = Duration::from_millis(1500);

/// Dials the CA of one trust domain.
#[derive(Debug, Clone)]
pub(crate) struct CaLink {
    /// They may change while the agent runs.
    addresses: Arc<watch::Sender<CaAddresses>>,
    /// Those that the CA has named.
    learned: Arc<RwLock<Vec<HostPort>>>,
    /// Which of the addresses is tried first: the one that answered last, or the one after it once that has failed.
    first: Arc<AtomicUsize>,
    ca_id: SpiffeId,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// Told when the CA no longer takes our SVID.
    refused: Arc<Notify>,
    distrusted: Arc<watch::Sender<Option<String>>>,
    metrics: Arc<Metrics>,
    troubles: Troubles,
    /// The CA's word when it dismissed this node in answer to its key.
    dismissals: Arc<watch::Sender<Option<Arc<str>>>>,
}

/// The node's own SVID and the bundle it verifies the CA with.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) svid: Arc<X509Svid>,
    pub(crate) bundle: Arc<TrustBundle>,
    pub(crate) verifier: Arc<PeerVerifier>,
    /// By the authorities that are not tainted: what it does not vouch for is replaced. None while none is tainted.
    pub(crate) sound: Option<Arc<PeerVerifier>>,
}

/// Why a call to the CA failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("cannot reach the CA at `{address}`: {reason}")]
    Unreachable {
        address: String,
        reason: String,
        /// Somebody answers there, who is not believed to be the CA.
        is_stranger: bool,
    },
    #[error("the CA did not answer in time")]
    Timeout,
    /// The CA does not accept who we are, or our token.
    #[error("the CA refused: {0}")]
    Refused(String),
    /// The CA knows who we are, and wants nothing more of us: no other certificate will help.
    #[error("the CA refused: {0}")]
    Dismissed(String),
    #[error("the CA answered {code:?}: {message}")]
    Failed { code: Code, message: String },
    /// The CA's answer is not what was asked for.
    #[error("the CA's answer cannot be used: {0}")]
    Answer(String),
    #[error("the CA's certificate for us cannot be used yet: {0}")]
    Clock(PeerRejected),
    /// There is nothing to show it.
    #[error("this node has nothing to prove who it is: {0}")]
    NoProof(String),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The verifier of one trust domain's peers.
pub(crate) fn verifier(bundle: &Arc<TrustBundle>) -> Result<Arc<PeerVerifier>, InvalidBundle> {
    let mut bundles = BundleSet::default();
    bundles.insert(Arc::clone(bundle));
    Ok(Arc::new(PeerVerifier::new(bundles)?))
}

/// The verifier by the authorities that are not tainted; none if none is tainted.
pub(crate) fn sound(bundle: &TrustBundle) -> Result<Option<Arc<PeerVerifier>>, InvalidBundle> {
    match bundle.has_tainted() {
        false => Ok(None),
        true => verifier(&Arc::new(bundle.sound())).map(Some),
    }
}

/// A trust bundle as the CA sends it; it must be our own trust domain's and trust somebody, at least who sent it.
pub(crate) fn parse_bundle(message: ca::Bundle, trust_domain: &TrustDomain) -> Result<TrustBundle, CaError> {
    trust_bundle(message, trust_domain).map_err(|error| match error {
        BadTrustBundle::Authorities(error) => error.into(),
        error => CaError::Answer(error.to_string()),
    })
}

// === impl CaLink ===

impl CaLink {
    /// To the CA at one of these addresses, with the node's SVID of the moment. Agents begin anywhere in the list, so that
    /// replicas share them.
    pub(crate) fn new(
        addresses: CaAddresses,
        trust_domain: &TrustDomain,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
    ) -> Self {
        Self {
            first: Arc::new(AtomicUsize::new((jitter() * 1024.0) as usize)),
            addresses: Arc::new(watch::Sender::new(addresses)),
            learned: Arc::default(),
            ca_id: trust_domain.ca(),
            credentials,
            refused: Arc::default(),
            distrusted: Arc::default(),
            metrics: Arc::default(),
            troubles: Troubles::default(),
            dismissals: Arc::default(),
        }
    }

    pub(crate) fn credentials(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.credentials.clone()
    }

    /// What has happened on it.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What stands between this agent and the CA.
    pub(crate) fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Says that the CA dismissed this node, though there was no watch on which to hear it.
    pub(crate) fn dismissed(&self, reason: &str) {
        self.dismissals.send_if_modified(|said| {
            let is_news = said.as_deref() != Some(reason);
            *said = Some(reason.into());
            is_news
        });
    }

    /// Changes when somebody said so.
    pub(crate) fn dismissals(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.dismissals.subscribe()
    }

    /// Connects with the node's SVID.
    pub(crate) async fn connect(&self, own: &Credentials) -> Result<Channel, CaError> {
        self.dial(Some(&own.svid), Arc::clone(&own.verifier)).await
    }

    /// Connects, showing an SVID if there is one, to nobody but `spiffe://<trust domain>/hoplite/ca`.
    pub(crate) async fn dial(&self, svid: Option<&X509Svid>, verifier: Arc<PeerVerifier>) -> Result<Channel, CaError> {
        let config = tls::client_config(svid, verifier, self.ca_id.clone(), &[b"h2"])?;
        let known = self.known();
        let addresses: Vec<String> = known.iter().map(ToString::to_string).collect();
        let first = self.first.load(Ordering::Relaxed);
        let (mut failed, mut is_stranger) = (Vec::new(), false);
        let serial = svid.map(|svid| svid.leaf().serial().to_owned());
        let in_turn = (first..).zip(addresses.iter().cycle().skip(first % addresses.len().max(1)));
        for (at, address) in in_turn.take(addresses.len()) {
            let (address, config) = (address.clone(), Arc::clone(&config));
            let (distrusted, serial) = (Arc::clone(&self.distrusted), serial.clone());
            let hear = move |alert| {
                if is_of_certificate(alert) && serial.is_some() {
                    distrusted.send_replace(serial.clone());
                }
            };
            let (silence, patience) = match addresses.len() {
                1 => (None, CONNECT_TIMEOUT),
                _ => (Some(SILENCE_AMONG_SEVERAL), CONNECT_TIMEOUT_AMONG_SEVERAL),
            };
            let connecting = channel::tls_hearing(address.clone(), config, silence, hear);
            let connected = tokio::time::timeout(patience, connecting).await;
            let reason = match connected {
                Ok(Ok(channel)) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(channel);
                }
                Ok(Err(error)) => {
                    let (reason, rejected) = innermost(&error);
                    is_stranger |= rejected;
                    reason
                }
                Err(_) => "no connection in time".to_owned(),
            };
            failed.push((address, reason));
        }
        let (address, reason) = match failed.len() {
            0 | 1 => failed.pop().unwrap_or_default(),
            _ => (
                failed
                    .iter()
                    .map(|(address, _)| address.as_str())
                    .collect::<Vec<_>>()
                    .join("`, `"),
                failed
                    .iter()
                    .map(|(_, reason)| reason.as_str())
                    .collect::<Vec<_>>()
                    .join("; "),
            ),
        };
        Err(CaError::Unreachable {
            address,
            reason,
            is_stranger,
        })
    }

    /// Changes when another address comes first: what was connected to before may be a CA that was left.
    pub(crate) fn place(&self) -> usize {
        self.first.load(Ordering::Relaxed)
    }

    /// How many addresses of the CA there are.
    pub(crate) fn addresses(&self) -> usize {
        self.known().iter().count()
    }

    /// The CA is at these addresses too, as it says itself.
    pub(crate) fn learn(&self, addresses: Vec<HostPort>) {
        *self.learned.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Those of the configuration first.
    fn known(&self) -> CaAddresses {
        let learned = self.learned.read().unwrap_or_else(PoisonError::into_inner);
        self.addresses.borrow().with(&learned)
    }

    /// The one that is connected to has failed: another is tried first from now on, if there is one.
    pub(crate) fn pass_over(&self) {
        self.first.fetch_add(1, Ordering::Relaxed);
    }

    /// For a connection to somebody else than the CA, as who this node is now.
    pub(crate) fn client_of(&self, expect: &SpiffeId) -> io::Result<Arc<ClientConfig>> {
        let own = self.credentials.borrow().clone();
        let own = own.ok_or_else(|| io::Error::other("this node has not joined yet: it has no SVID"))?;
        let config = tls::client_config(Some(&own.svid), Arc::clone(&own.verifier), expect.clone(), &[b"h2"]);
        config.map_err(io::Error::other)
    }

    /// The CA is at these addresses from now on: whoever is connected connects anew.
    pub(crate) fn move_to(&self, addresses: &CaAddresses) {
        self.addresses.send_if_modified(|held| {
            let moves = held != addresses;
            if moves {
                held.clone_from(addresses);
            }
            moves
        });
    }

    /// Changes when the CA's addresses do.
    pub(crate) fn moves(&self) -> watch::Receiver<CaAddresses> {
        self.addresses.subscribe()
    }

    /// Says that the CA no longer takes our SVID.
    pub(crate) fn refused(&self) {
        self.refused.notify_one();
    }

    /// Returns when somebody said so.
    pub(crate) async fn when_refused(&self) {
        self.refused.notified().await;
    }

    /// The serial number of the SVID that the CA's TLS did not take last.
    pub(crate) fn distrusted(&self) -> watch::Receiver<Option<String>> {
        self.distrusted.subscribe()
    }
}

/// The transport wraps errors in errors; the innermost says what happened. And whether it is that this node rejects the peer.
fn innermost(error: &(dyn Error + 'static)) -> (String, bool) {
    let mut error = error;
    loop {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls: Option<&rustls::Error> = error.downcast_ref().or_else(|| inner?.downcast_ref());
        match tls.and_then(tls::rejection) {
            Some(reason @ PeerRejected::UnknownAuthority(_)) => {
                let reason = format!(
                    "{reason}; if the CA's authority was changed or lost while this node was away, join anew: `hoplite join --again` with an invitation"
                );
                return (reason, true);
            }
            Some(reason) => return (reason.to_string(), true),
            None => {}
        }
        match error.source() {
            Some(source) => error = source,
            None => return (error.to_string(), false),
        }
    }
}

/// Whether an alert is about the certificate that was shown: it has ended by the CA's clock, or its authority was revoked.
fn is_of_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

// === impl CaError ===

impl CaError {
    /// What people are to be told of it: that the CA said no, or something that cannot be used, or is not believed. That it is away, or
    /// slow, is none of it.
    pub(crate) fn trouble(&self) -> Option<String> {
        match self {
            Self::Unreachable { is_stranger: false, .. } | Self::Timeout => None,
            Self::Failed { code, .. } if *code != Code::FailedPrecondition => None,
            Self::Failed { message, .. } => Some(format!("the CA refused: {message}")),
            error => Some(error.to_string()),
        }
    }
}

impl From<Status> for CaError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unauthenticated => Self::Refused(status.message().to_owned()),
            Code::PermissionDenied => Self::Dismissed(status.message().to_owned()),
            Code::DeadlineExceeded | Code::Cancelled => Self::Timeout,
            code => Self::Failed {
                code,
                message: status.message().to_owned(),
            },
        }
    }
}

impl From<InvalidBundle> for CaError {
    fn from(error: InvalidBundle) -> Self {
        Self::Answer(format!("a bad trust bundle: {error}"))
    }
}

impl From<InvalidSvid> for CaError {
    fn from(error: InvalidSvid) -> Self {
        Self::Answer(format!("a bad SVID: {error}"))
    }
}

impl From<PeerRejected> for CaError {
    fn from(rejected: PeerRejected) -> Self {
        if rejected.code() == "not_yet_valid" {
            Self::Clock(rejected)
        } else {
            Self::Answer(format!("an SVID that the trust bundle does not vouch for: {rejected}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_identity::testing::TestAuthority;

    #[test]
    fn bundles_that_are_not_believed() {
        let authority = TestAuthority::new("prod.example");
        let domain = authority.trust_domain();
        let good: Vec<_> = authority.bundle().authorities().iter().map(|a| a.to_vec()).collect();
        let check = |trust_domain: &str, authorities: Vec<Vec<u8>>, expected: &str| {
            let message = ca::Bundle {
                trust_domain: trust_domain.into(),
                authorities,
                sequence: 7,
                ..ca::Bundle::default()
            };
            match parse_bundle(message, &domain) {
                Ok(bundle) => assert_eq!((expected, bundle.sequence()), ("", 7)),
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
            }
        };
        check("prod.example", good.clone(), "");
        check("other.example", good, "`other.example`");
        check("prod.example", vec![], "without authorities");
        check("prod.example", vec![vec![1, 2, 3]], "bad trust bundle");
        let leaf = authority.svid("/a", Duration::from_secs(60)).chain()[0].to_vec();
        check("prod.example", vec![leaf], "bad trust bundle");
    }

    #[tokio::test]
    async fn a_ca_that_is_away_is_named() {
        let authority = TestAuthority::new("prod.example");
        let nobody = HostPort::parse("127.0.0.1:1").unwrap();
        let link = CaLink::new(nobody.into(), &authority.trust_domain(), watch::channel(None).1);
        let verifier = verifier(&Arc::new(authority.bundle())).unwrap();
        let error = link.dial(None, verifier).await.unwrap_err();
        assert_eq!(error.trouble(), None);
        let error = error.to_string();
        assert!(
            error.starts_with("cannot reach the CA at `127.0.0.1:1`: ") && error.contains("refused"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn somebody_who_is_not_believed_to_be_the_ca_is_a_trouble() {
        let (ours, other) = (TestAuthority::new("prod.example"), TestAuthority::new("prod.example"));
        let svid = other.svid("/hoplite/ca", Duration::from_secs(60));
        let config = tls::public_server_config(&svid, &[b"h2"]).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = HostPort::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        std::thread::spawn(move || {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut tls = rustls::ServerConnection::new(config).unwrap();
            let _ = tls.complete_io(&mut tcp);
        });
        let link = CaLink::new(address.into(), &ours.trust_domain(), watch::channel(None).1);
        let verifier = verifier(&Arc::new(ours.bundle())).unwrap();
        let error = link.dial(None, verifier).await.unwrap_err();
        let trouble = error.trouble().unwrap();
        assert!(trouble.contains("no authority in the trust bundle"), "{trouble}");
    }
}
