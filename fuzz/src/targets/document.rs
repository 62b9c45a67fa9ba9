//! Trust bundles as a foreign endpoint serves them: what is believed is written again with nothing added and nothing lost, whose bundle it
//! is the document cannot say, and what is refused is named on one line, within bounds.

use std::collections::BTreeSet;
use std::time::Duration;

use hoplite_identity::{BundleDocument, TrustDomain};

use super::signature;

/// A refusal is for an operator's screen: it names the place, and quotes an excerpt.
const REASON_BYTES_MAX: usize = 2_048;

/// More keys than this are in no bundle that is believed.
const KEYS_MAX: usize = 256;

/// A SPIFFE bundle, JSON.
pub fn document(input: &[u8]) -> String {
    let domain = |name: &str| match TrustDomain::parse(name) {
        Ok(domain) => domain,
        Err(refused) => panic!("`{name}` is the name of a trust domain: {refused}"),
    };
    let (ours, theirs) = (domain("example.org"), domain("other.example"));
    let read = match BundleDocument::parse(ours.clone(), input) {
        Ok(read) => read,
        Err(refused) => {
            let reason = refused.to_string();
            assert!(!reason.contains('\n') && reason.len() <= REASON_BYTES_MAX, "{reason}");
            let of_another = BundleDocument::parse(theirs, input);
            assert!(of_another.is_err(), "whose bundle it is decides whether it is one");
            return signature(&reason);
        }
    };
    let bundle = &read.bundle;
    assert_eq!(bundle.trust_domain(), &ours, "the document says whose bundle it is");
    let (x509, jwt) = (bundle.authorities().len(), bundle.jwt().key_ids().count());
    assert!(x509 + jwt <= KEYS_MAX, "{x509} and {jwt} keys");
    let distinct: BTreeSet<&[u8]> = bundle.authorities().iter().map(AsRef::as_ref).collect();
    assert_eq!(distinct.len(), x509, "an authority stands there twice");
    // Written and read again it is the same.
    let hint = read.refresh_hint.unwrap_or(Duration::ZERO);
    let written = bundle.to_spiffe_json(hint);
    match BundleDocument::parse(ours, written.as_bytes()) {
        Ok(again) => {
            assert_eq!(&again.bundle, bundle, "{written}");
            assert_eq!(again.refresh_hint, Some(hint), "{written}");
        }
        Err(refused) => panic!("what we write of it nobody reads: {refused}: {written}"),
    }
    // Under the name of another trust domain it is found out: each key vouches for one only.
    if let Ok(other) = BundleDocument::parse(theirs, input) {
        let is_shared = bundle.shared_key(&other.bundle).is_some();
        assert_eq!(
            is_shared,
            x509 + jwt > 0,
            "one key vouches for two trust domains, unseen"
        );
    }
    format!(
        "{} X.509, {} JWT, hint {}",
        x509.min(3),
        jwt.min(3),
        read.refresh_hint.is_some()
    )
}
