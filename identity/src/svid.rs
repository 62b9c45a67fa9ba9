//! X.509-SVIDs: a certificate chain and its key, checked against the X509-SVID profile when parsed.

use crate::profile::{self, CHAIN_MAX, InvalidSvid, Leaf};
use crate::{SpiffeId, pem};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;
use zeroize::{Zeroize, Zeroizing};

/// A workload's own X.509-SVID: chain leaf first, and the PKCS#8 key of the leaf.
///
/// The leaf obeys the profile, the key is the leaf's, every later certificate is an authority. The key's bytes
/// are wiped when this is dropped, and never printed.
pub struct X509Svid {
    leaf: Leaf,
    key: PrivatePkcs8KeyDer<'static>,
    /// The chain and the key as TLS uses them, loaded once.
    certified: Arc<CertifiedKey>,
}

// === impl X509Svid ===

impl X509Svid {
    /// Chain leaf first; the key must be the leaf's; every later certificate must be a CA.
    ///
    /// # Errors
    /// What is wrong with the leaf, the chain or the key.
    pub fn from_parts(
        chain: Vec<CertificateDer<'static>>,
        mut key: PrivatePkcs8KeyDer<'static>,
    ) -> Result<Self, InvalidSvid> {
        match check_parts(&chain, &key) {
            Ok((leaf, signer)) => {
                let certified = Arc::new(CertifiedKey::new(chain, signer));
                Ok(Self { leaf, key, certified })
            }
            Err(error) => {
                key.zeroize();
                Err(error)
            }
        }
    }

    /// From the Workload API's concatenated DER chain and PKCS#8 key (W-8).
    ///
    /// # Errors
    /// As [`X509Svid::from_parts`].
    pub fn from_der(chain: &[u8], key: &[u8]) -> Result<Self, InvalidSvid> {
        let chain = profile::split_der(chain).map_err(|why| InvalidSvid::Malformed(why.to_string()))?;
        Self::from_parts(chain, key.to_vec().into())
    }

    /// Whose SVID this is.
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.leaf.spiffe_id()
    }

    /// What the leaf says.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// The certificates, leaf first; never empty.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The chain as concatenated DER (W-8).
    pub fn chain_der(&self) -> Vec<u8> {
        self.chain()
            .iter()
            .flat_map(|certificate| certificate.as_ref())
            .copied()
            .collect()
    }

    /// The chain as PEM, leaf first.
    pub fn chain_pem(&self) -> String {
        pem::write_certificates(self.chain())
    }

    /// The key, PKCS#8. A secret: do not keep a copy that is not wiped.
    pub fn key(&self) -> &PrivatePkcs8KeyDer<'static> {
        &self.key
    }

    /// The key as PEM, wiped when dropped.
    pub fn key_pem(&self) -> Zeroizing<String> {
        pem::write_private_key(self.key.secret_pkcs8_der())
    }

    /// `now`, or the moment of the leaf's life that is nearest to it: when to ask who vouches for it, whatever its time.
    ///
    /// Not the first moment of it: a certificate above may be younger, since leaves are back-dated.
    pub fn moment_of_life(&self, now: SystemTime) -> SystemTime {
        now.max(self.leaf.not_before).min(self.leaf.not_after)
    }

    /// When to fetch the next one: half life, earlier by up to a tenth of the life.
    ///
    /// `jitter` is in 0..=1; anything else counts as 0. Always strictly between notBefore and notAfter.
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        renew_at(self.leaf.not_before, self.leaf.not_after, jitter)
    }

    /// Chain and key as rustls takes them.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

impl Drop for X509Svid {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

fn check_parts(
    chain: &[CertificateDer<'_>],
    key: &PrivatePkcs8KeyDer<'_>,
) -> Result<(Leaf, Arc<dyn rustls::sign::SigningKey>), InvalidSvid> {
    let (leaf, authorities) = chain.split_first().ok_or(InvalidSvid::NoCertificate)?;
    if chain.len() > CHAIN_MAX {
        return Err(InvalidSvid::ChainTooLong(chain.len()));
    }
    let checked = profile::leaf(leaf)?;
    for (position, authority) in (1..).zip(authorities) {
        profile::authority(authority).map_err(|source| InvalidSvid::Chain { position, source })?;
    }
    // Borrowed: a copy made here would not be wiped.
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.secret_pkcs8_der()));
    let signer = any_supported_type(&key).map_err(|_| InvalidSvid::Key)?;
    if signer
        .public_key()
        .is_none_or(|public_key| public_key.as_ref() != checked.public_key)
    {
        return Err(InvalidSvid::KeyMismatch(checked.leaf.spiffe_id));
    }
    Ok((checked.leaf, signer))
}

fn renew_at(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let jitter = if (0.0..=1.0).contains(&jitter) { jitter } else { 0.0 };
    not_before + life.mul_f64(0.5 - 0.1 * jitter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InvalidAuthority;
    use crate::testing::TestAuthority;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    const HOUR: Duration = Duration::from_secs(3600);

    fn key_of(svid: &X509Svid) -> PrivatePkcs8KeyDer<'static> {
        svid.key().clone_key()
    }

    #[test]
    fn parts_der_and_pem_say_the_same() {
        let ca = TestAuthority::new("example.org");
        let svid = ca.intermediate().svid("/web", HOUR);
        assert_eq!(svid.spiffe_id().as_str(), "spiffe://example.org/web");
        assert_eq!(svid.chain().len(), 2);
        let again = X509Svid::from_der(&svid.chain_der(), svid.key().secret_pkcs8_der()).unwrap();
        assert_eq!((again.leaf(), again.chain()), (svid.leaf(), svid.chain()));
        assert_eq!(pem::certificates(&svid.chain_pem()).unwrap(), svid.chain());
        assert!(svid.key_pem().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let leaf = svid.leaf();
        assert_eq!(
            leaf.not_after().duration_since(leaf.not_before()).unwrap(),
            HOUR + Duration::from_secs(60)
        );
        assert!(
            leaf.serial()
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        );
        assert_eq!(
            leaf.fingerprint().as_bytes(),
            ring::digest::digest(&ring::digest::SHA256, &svid.chain()[0]).as_ref()
        );
    }

    #[test]
    fn wrong_parts_are_refused() {
        let ca = TestAuthority::new("example.org");
        let (svid, other) = (ca.svid("/web", HOUR), ca.svid("/db", HOUR));
        let check = |chain: &[&CertificateDer<'static>], key, expected: InvalidSvid| {
            let chain = chain.iter().map(|&certificate| certificate.clone()).collect();
            assert_eq!(X509Svid::from_parts(chain, key).unwrap_err(), expected);
        };
        let (leaf, root) = (&svid.chain()[0], &ca.bundle().authorities()[0].clone());
        check(&[], key_of(&svid), InvalidSvid::NoCertificate);
        check(
            &[leaf],
            key_of(&other),
            InvalidSvid::KeyMismatch(svid.spiffe_id().clone()),
        );
        check(&[leaf], b"no key".to_vec().into(), InvalidSvid::Key);
        check(&[root], key_of(&svid), InvalidSvid::CertificateAuthority);
        let not_ca = InvalidSvid::Chain {
            position: 2,
            source: InvalidAuthority::NotCa,
        };
        check(&[leaf, root, &other.chain()[0]], key_of(&svid), not_ca);
        check(&[leaf; 9], key_of(&svid), InvalidSvid::ChainTooLong(9));
        let mut der = svid.chain_der();
        der.push(0);
        assert!(matches!(
            X509Svid::from_der(&der, svid.key().secret_pkcs8_der()),
            Err(InvalidSvid::Malformed(_))
        ));
    }

    #[test]
    fn debugging_prints_no_key() {
        let svid = TestAuthority::new("example.org").svid("/web", HOUR);
        let text = format!("{svid:?}");
        assert!(text.contains("spiffe://example.org/web"), "{text}");
        let without = text.replace("authority_key", ""); // the name of a key, which is in the certificate
        assert!(!without.contains("key") && !without.contains("certified"), "{text}");
    }

    proptest! {
        #[test]
        fn leaves_never_panic_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Leaf::parse(&bytes).is_err());
        }

        #[test]
        fn renewal_is_strictly_within_the_life(
            start in 0_u64..4_000_000_000,
            life in 1_u64..4_000_000_000,
            jitter in prop_oneof![0.0..=1.0, any::<f64>()],
        ) {
            let not_before = UNIX_EPOCH + Duration::from_secs(start);
            let not_after = not_before + Duration::from_secs(life);
            let at = renew_at(not_before, not_after, jitter);
            prop_assert!(not_before < at && at < not_after);
            let (earliest, latest) = (renew_at(not_before, not_after, 1.0), renew_at(not_before, not_after, 0.0));
            prop_assert!(earliest <= at && at <= latest);
            let tenth = Duration::from_secs(life).mul_f64(0.1);
            prop_assert!(latest.duration_since(earliest).unwrap() <= tenth + Duration::from_micros(1));
        }
    }
}
