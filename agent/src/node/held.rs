//! What the keeper holds: in memory what is on disk, read with suspicion.

use std::sync::Arc;

use hoplite_host::clock;
use hoplite_identity::{
    CertificateDer, Fingerprint, InvalidSvid, PeerRole, PeerVerifier, PrivatePkcs8KeyDer, TrustBundle, TrustDomain,
    X509Svid, pem,
};
use serde::{Deserialize, Serialize};

use crate::node::epoch::Epoch;
use crate::node::link::{self, CaError};

/// In memory what is on disk.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) disk: OnDisk,
    pub(super) bundle: Arc<TrustBundle>,
    pub(super) verifier: Arc<PeerVerifier>,
    /// As in `Credentials`.
    pub(super) sound: Option<Arc<PeerVerifier>>,
    pub(super) svid: Option<Arc<X509Svid>>,
    /// The disk did not take it.
    pub(super) unsaved: bool,
}

/// The one file, so that a key, its certificate and the bundle change together or not at all.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OnDisk {
    /// Made before the token is tried, so that a try whose answer was lost can be repeated with the same key.
    pub(super) joining_key: Option<String>,
    pub(super) key: Option<String>,
    pub(super) chain: Option<String>,
    pub(super) bundle: Option<String>,
    pub(super) bundle_sequence: u64,
    /// Fingerprints of the authorities in it that are tainted.
    #[serde(default)]
    pub(super) bundle_tainted: Vec<String>,
    /// Digests of the keys of authorities under them that are tainted, and of such as are revoked.
    #[serde(default)]
    pub(super) bundle_tainted_keys: Vec<String>,
    #[serde(default)]
    pub(super) bundle_revoked_keys: Vec<String>,
    /// Where the CA said that it is.
    #[serde(default)]
    pub(super) ca_addresses: Vec<String>,
    /// The keys for JWT-SVIDs in it: a JWK Set.
    #[serde(default)]
    pub(super) bundle_jwks: String,
    /// SHA-256 of the operator's bundle file when `bundle` was accepted. When that file changes, it counts again.
    pub(super) first_bundle: String,
    /// SHA-256 of the token that bought the SVID.
    pub(super) spent_token: Option<String>,
    /// The highest epoch of the CA that was seen.
    #[serde(default)]
    pub(super) epoch: Epoch,
}

/// What is wrong with what is on disk, for the operator.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damaged {
    #[error("its trust bundle is damaged: {0}")]
    Bundle(String),
    #[error("it has a key without a certificate, or the other way round")]
    Half,
    #[error("it belongs to the trust domain `{0}`")]
    Foreign(TrustDomain),
    #[error("its certificate chain is damaged")]
    Chain,
    #[error("its key is damaged")]
    Key,
    #[error("its SVID is damaged: {0}")]
    Svid(#[source] InvalidSvid),
}

// === impl Held ===

impl Held {
    /// Parses what is on disk; the error is for the operator.
    pub(super) fn read(mut disk: OnDisk, first: TrustBundle, trust_domain: &TrustDomain) -> Result<Self, Damaged> {
        let bundle = match &disk.bundle {
            Some(pem) => TrustBundle::from_pem(trust_domain.clone(), pem, disk.bundle_sequence)
                .map_err(|e| Damaged::Bundle(e.to_string()))?
                .with_tainted(disk.bundle_tainted.iter().filter_map(|text| text.parse().ok()))
                .with_keys(
                    disk.bundle_tainted_keys.iter().filter_map(|text| text.parse().ok()),
                    disk.bundle_revoked_keys.iter().filter_map(|text| text.parse().ok()),
                )
                .with_jwt(
                    hoplite_wire::jwt_authorities(&disk.bundle_jwks).map_err(|e| Damaged::Bundle(e.to_string()))?,
                ),
            None => first,
        };
        let svid = match (&disk.key, &disk.chain) {
            (Some(key), Some(chain)) => Some(parse_svid(key, chain)?),
            (None, None) => None,
            _ => return Err(Damaged::Half),
        };
        if let Some(svid) = svid
            .as_ref()
            .filter(|svid| svid.spiffe_id().trust_domain() != trust_domain)
        {
            return Err(Damaged::Foreign(svid.spiffe_id().trust_domain().clone()));
        }
        let bundle = Arc::new(bundle);
        let verifier = link::verifier(&bundle).map_err(|e| Damaged::Bundle(e.to_string()))?;
        let sound = link::sound(&bundle).map_err(|e| Damaged::Bundle(e.to_string()))?;
        // After the operator's file named a CA that was founded anew: that one lets the old SVID into no connection, and
        // so never says that it refuses it. Without it the agent joins at once. Its time is another matter.
        let is_ours = |svid: &X509Svid| {
            let when = svid.moment_of_life(clock::now());
            verifier.verify(svid.chain(), PeerRole::Client, when).is_ok()
        };
        // What the CA itself said later is another matter: then the key still counts there, see `Step::Reattest`.
        let svid = svid.filter(|svid| disk.bundle.is_some() || is_ours(svid));
        if svid.is_none() && disk.chain.is_some() {
            tracing::warn!("the trust bundle does not vouch for this node's SVID; it is not used any more");
            (disk.key, disk.chain) = (None, None);
        }
        Ok(Self {
            disk,
            bundle,
            verifier,
            sound,
            svid: svid.map(Arc::new),
            unsaved: false,
        })
    }

    /// Whether it is news.
    pub(super) fn adopt(&mut self, bundle: TrustBundle) -> Result<bool, CaError> {
        if bundle.sequence() < self.bundle.sequence() {
            let (got, held) = (bundle.sequence(), self.bundle.sequence());
            return Err(CaError::Answer(format!(
                "trust bundle {got}, which is older than {held}, the one held; if the CA was restored by a right clock after one that was ahead, \
                 make it again with `hoplite ca restore --after {held}`"
            )));
        }
        if *self.bundle == bundle {
            return Ok(false);
        }
        let bundle = Arc::new(bundle);
        (self.verifier, self.sound) = (link::verifier(&bundle)?, link::sound(&bundle)?);
        let gone = (self.bundle.authorities().iter()).filter(|authority| !bundle.authorities().contains(authority));
        for authority in gone {
            tracing::warn!(authority = %Fingerprint::of(authority), "this authority of the trust domain counts no more");
        }
        tracing::info!(
            sequence = bundle.sequence(),
            authorities = bundle.authorities().len(),
            tainted = bundle.tainted().len() + bundle.tainted_keys().len(),
            "new trust bundle"
        );
        self.disk.bundle = Some(bundle.to_pem());
        self.disk.bundle_sequence = bundle.sequence();
        self.disk.bundle_jwks = bundle.jwt().to_jwks();
        self.disk.bundle_tainted = bundle.tainted().iter().map(ToString::to_string).collect();
        self.disk.bundle_tainted_keys = bundle.tainted_keys().iter().map(ToString::to_string).collect();
        self.disk.bundle_revoked_keys = bundle.revoked_keys().iter().map(ToString::to_string).collect();
        self.bundle = bundle;
        Ok(true)
    }
}

pub(super) fn svid(
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
) -> Result<X509Svid, InvalidSvid> {
    X509Svid::from_parts(chain, key)
}

fn parse_svid(key: &str, chain: &str) -> Result<X509Svid, Damaged> {
    let chain = pem::certificates(chain).map_err(|_| Damaged::Chain)?;
    let key = pem::private_key(key).map_err(|_| Damaged::Key)?;
    svid(chain, key.to_vec().into()).map_err(Damaged::Svid)
}

// === impl OnDisk ===

impl std::fmt::Debug for OnDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnDisk").finish_non_exhaustive()
    }
}
