//! An SVID at hand: one that was minted, or one from the disk, which is opened and verified when it is first asked for.
//!
//! So a start costs nothing for each SVID that nobody asks for.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_identity::{CertificateDer, PeerRole, PeerVerifier, X509Svid};

use crate::kept::record::{SvidRecord, unix};

/// One SVID.
#[derive(Debug)]
pub(crate) struct HeldSvid {
    not_before: SystemTime,
    not_after: SystemTime,
    /// None for one that cannot be used.
    opened: OnceLock<Option<Arc<X509Svid>>>,
    kept: Mutex<Option<Unopened>>,
    /// Whether anybody was given it.
    is_used: AtomicBool,
}

#[derive(Debug)]
struct Unopened {
    record: SvidRecord,
    verifier: Arc<PeerVerifier>,
}

// === impl HeldSvid ===

impl HeldSvid {
    /// One that was checked.
    pub(crate) fn new(svid: Arc<X509Svid>) -> Self {
        Self {
            not_before: svid.leaf().not_before(),
            not_after: svid.leaf().not_after(),
            opened: OnceLock::from(Some(svid)),
            kept: Mutex::default(),
            is_used: AtomicBool::default(),
        }
    }

    /// One from the disk.
    pub(crate) fn kept(record: SvidRecord, verifier: &Arc<PeerVerifier>) -> Self {
        let at = |unix| UNIX_EPOCH + Duration::from_secs(unix);
        Self {
            not_before: at(record.not_before),
            not_after: at(record.not_after),
            opened: OnceLock::new(),
            kept: Mutex::new(Some(Unopened {
                record,
                verifier: Arc::clone(verifier),
            })),
            is_used: AtomicBool::default(),
        }
    }

    /// One that was checked, and that nobody has asked for: kept as one from the disk is, in half the memory.
    pub(crate) fn closed(svid: &X509Svid, verifier: &Arc<PeerVerifier>) -> Self {
        let leaf = svid.leaf();
        let record = SvidRecord {
            spiffe_id: leaf.spiffe_id().to_string(),
            chain: svid.chain().iter().map(|certificate| certificate.to_vec()).collect(),
            key: svid.key().secret_pkcs8_der().to_vec(),
            not_before: unix(leaf.not_before()),
            not_after: unix(leaf.not_after()),
            ..SvidRecord::default()
        };
        Self::kept(record, verifier)
    }

    pub(crate) fn not_before(&self) -> SystemTime {
        self.not_before
    }

    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The SVID, unless it is past its end or turned out to be none.
    pub(crate) fn get(&self, now: SystemTime) -> Option<&Arc<X509Svid>> {
        let opened = self.opened.get_or_init(|| {
            let unopened = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            unopened.open(now)
        });
        let valid = opened.as_ref().filter(|_| now < self.not_after);
        if valid.is_some() {
            self.is_used.store(true, Relaxed);
        }
        valid
    }

    /// Whether anybody was given it.
    pub(crate) fn is_used(&self) -> bool {
        self.is_used.load(Relaxed)
    }

    /// Whether nobody found yet that it cannot be used.
    pub(crate) fn may_be_used(&self) -> bool {
        !matches!(self.opened.get(), Some(None))
    }

    /// Whether somebody asked for it.
    pub(crate) fn is_opened(&self) -> bool {
        self.opened.get().is_some()
    }

    /// Whether authorities that are not tainted vouch for it.
    pub(crate) fn is_sound(&self, sound: &PeerVerifier, now: SystemTime) -> bool {
        if let Some(unopened) = &*self.kept.lock().unwrap_or_else(PoisonError::into_inner) {
            return unopened.is_verified_by(sound, now);
        }
        let opened = self.opened.get().and_then(Option::as_ref);
        opened.is_none_or(|svid| sound.verify(svid.chain(), PeerRole::Client, now).is_ok())
    }

    /// Whether the trust bundle of now vouches for it. One that was never asked for is judged when it is, unless `looks`.
    pub(crate) fn is_vouched_for(&self, verifier: &Arc<PeerVerifier>, now: SystemTime, looks: bool) -> bool {
        if let Some(unopened) = &mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner) {
            unopened.verifier = Arc::clone(verifier);
            return !looks || unopened.is_verified_by(verifier, now);
        }
        let opened = self.opened.get().and_then(Option::as_ref);
        opened.is_some_and(|svid| verifier.verify(svid.chain(), PeerRole::Client, now).is_ok())
    }
}

// === impl Unopened ===

impl Unopened {
    fn is_verified_by(&self, verifier: &PeerVerifier, now: SystemTime) -> bool {
        let chain = self.record.chain.iter();
        let chain: Vec<_> = chain.map(|der| CertificateDer::from(der.as_slice())).collect();
        verifier.verify(&chain, PeerRole::Client, now).is_ok()
    }

    fn open(mut self, now: SystemTime) -> Option<Arc<X509Svid>> {
        let record = &mut self.record;
        let chain = std::mem::take(&mut record.chain).into_iter().map(Into::into).collect();
        let opened = X509Svid::from_parts(chain, std::mem::take(&mut record.key).into())
            .map_err(|error| error.to_string())
            .and_then(|svid| {
                // Its time is looked at whenever it is asked for.
                let when = svid.moment_of_life(now);
                let verified = self.verifier.verify(svid.chain(), PeerRole::Client, when);
                verified.map(|_| svid).map_err(|error| error.to_string())
            });
        match opened {
            Ok(svid) if svid.spiffe_id().as_str() == self.record.spiffe_id => Some(Arc::new(svid)),
            Ok(svid) => {
                tracing::error!(spiffe_id = %svid.spiffe_id(), "a kept SVID is another's, and is not served");
                None
            }
            Err(error) => {
                tracing::warn!(error, spiffe_id = self.record.spiffe_id, "a kept SVID is not served");
                None
            }
        }
    }
}

impl Drop for Unopened {
    fn drop(&mut self) {
        self.record.wipe();
    }
}
