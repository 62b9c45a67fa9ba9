//! What agents see in the handshake, and whom the CA believes there: its own SVID and the trust bundle of now.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_identity::tls::{self, ClientAuth};
use hoplite_identity::{
    BundleSet, InvalidBundle, InvalidSvid, PeerVerifier, PrivatePkcs8KeyDer, SpiffeId, TrustBundle, X509Svid,
};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use crate::acts::{Acts, Unwritten};
use crate::issuance::{MintError, SubjectKey};
use crate::issuer::{Issuer, Signing};

/// Between two renewals of the CA's own certificate, or attempts at it; half of its life is left for trying.
const RENEW_PAUSE: Duration = Duration::from_secs(1);

/// For the handshakes of now. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) config: Arc<ServerConfig>,
    /// The one in `config`.
    pub(crate) verifier: Arc<PeerVerifier>,
    /// Likewise.
    svid: Arc<X509Svid>,
}

/// Makes the door anew at half life of the SVID and with each new trust bundle, without the listener noticing.
pub(crate) struct Doorkeeper {
    issuer: Issuer,
    acts: Acts,
    /// The CA's own.
    id: SpiffeId,
    svid: Arc<X509Svid>,
    bundles: watch::Receiver<Arc<TrustBundle>>,
    /// Who signs.
    signing: watch::Receiver<Arc<Signing>>,
}

/// Why the CA cannot show a certificate of its own, or not verify those of others.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoorError {
    /// A key could not be made.
    #[error("cannot make a key: the system gives no random numbers")]
    Key,
    /// No certificate was made.
    #[error("the CA cannot make its own certificate: {0}")]
    Mint(#[from] MintError),
    /// It was made, and cannot be written down.
    #[error("the CA cannot use its own certificate: {0}")]
    Unwritten(#[from] Unwritten),
    /// What was made is no SVID.
    #[error("the CA cannot make its own certificate: {0}")]
    Svid(#[from] InvalidSvid),
    /// Nobody can be verified.
    #[error("the CA cannot verify agents: {0}")]
    Bundle(#[from] InvalidBundle),
    /// There is no TLS 1.3.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

// === impl Door ===

impl Door {
    /// For a connection that the CA makes itself, as who it is now.
    pub(crate) fn client_of(&self, expect: &SpiffeId) -> io::Result<Arc<ClientConfig>> {
        let config = tls::client_config(Some(&self.svid), Arc::clone(&self.verifier), expect.clone(), &[b"h2"]);
        config.map_err(io::Error::other)
    }
}

impl Door {
    /// For those who are told what is public, and not asked who they are.
    pub(crate) fn public_config(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        tls::public_server_config(&self.svid, &[b"http/1.1"])
    }
}

// === impl Doorkeeper ===

impl Doorkeeper {
    /// With a fresh key and certificate.
    pub(crate) fn new(
        issuer: Issuer,
        acts: Acts,
        mut bundles: watch::Receiver<Arc<TrustBundle>>,
        now: SystemTime,
    ) -> Result<(Self, Door), DoorError> {
        let id = bundles.borrow_and_update().trust_domain().ca();
        let signing = issuer.changes();
        let svid = mint(&issuer, &acts, &id, now)?;
        let keeper = Self {
            signing,
            issuer,
            acts,
            id,
            svid: Arc::new(svid),
            bundles,
        };
        let door = keeper.door()?;
        Ok((keeper, door))
    }

    fn door(&self) -> Result<Door, DoorError> {
        let bundles = BundleSet::from_iter([Arc::clone(&self.bundles.borrow())]);
        let verifier = Arc::new(PeerVerifier::new(bundles)?);
        let config = tls::server_config(&self.svid, Arc::clone(&verifier), ClientAuth::Optional, &[b"h2"])?;
        Ok(Door {
            config,
            verifier,
            svid: Arc::clone(&self.svid),
        })
    }

    /// Keeps the door right, for ever.
    pub(crate) async fn keep(mut self, door: watch::Sender<Door>) {
        let mut renewed = false;
        let mut steps = clock::steps();
        loop {
            let least = if renewed { RENEW_PAUSE } else { Duration::ZERO };
            let due = self.svid.renew_at(0.0).max(clock::now() + least);
            let mut is_others = false;
            let is_new = tokio::select! {
                Ok(()) = self.signing.changed() => {
                    is_others = true;
                    false
                }
                changed = self.bundles.changed() => match changed {
                    Ok(()) => true,
                    // The CA no longer follows its store: another part says so, and ends the CA.
                    Err(_) => std::future::pending().await,
                },
                () = clock::reached(due) => false,
                Ok(()) = steps.changed() => false,
            };
            let now = clock::now();
            // Of a clock that was set back it is not valid yet.
            renewed = is_others || self.svid.renew_at(0.0) <= now || now < self.svid.leaf().not_before();
            if renewed {
                match mint(&self.issuer, &self.acts, &self.id, now) {
                    Ok(svid) => self.svid = Arc::new(svid),
                    Err(error) => tracing::error!(%error, "trying again"),
                }
            }
            if renewed || is_new {
                match self.door() {
                    Ok(next) => drop(door.send_replace(next)),
                    Err(error) => tracing::error!(%error, "agents see what they saw before"),
                }
            }
        }
    }
}

fn mint(issuer: &Issuer, acts: &Acts, id: &SpiffeId, now: SystemTime) -> Result<X509Svid, DoorError> {
    let pair = rcgen::KeyPair::generate().map_err(|_| DoorError::Key)?;
    let (minted, signing) = issuer.own(id, &SubjectKey::of_pair(&pair), now)?;
    let own = acts.release_own(minted)?;
    // What stands above it is among what is shown.
    let chain = (own.into_iter().take(1)).chain(signing.shown.iter().cloned()).collect();
    let key = PrivatePkcs8KeyDer::from(pair.serialize_der());
    Ok(X509Svid::from_parts(chain, key)?)
}
