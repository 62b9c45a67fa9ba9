//! Certificates and bundles of them: what is read is written again, and nobody vouches for whom they did not sign.

use std::time::{Duration, UNIX_EPOCH};

use hoplite_identity::{BundleSet, CertificateDer, Leaf, PeerRole, PeerVerifier, TrustBundle, TrustDomain};

use super::signature;

/// DER certificates one after the other, as the Workload API has them, or PEM.
pub fn certificate(input: &[u8]) -> String {
    let Ok(trust_domain) = TrustDomain::parse("example.org") else {
        panic!("it is the name of a trust domain");
    };
    let leaf = match Leaf::parse(input) {
        Ok(leaf) => {
            assert!(leaf.serial().bytes().all(|b| b.is_ascii_hexdigit()), "{leaf:?}");
            let id = leaf.spiffe_id().as_str();
            let names = input.windows(id.len()).filter(|part| *part == id.as_bytes()).count();
            assert!(names > 0, "`{id}` stands nowhere in the certificate");
            "leaf".to_owned()
        }
        Err(refused) => signature(&refused.to_string()),
    };
    // Nobody is in this set: whatever is shown, nobody vouches for it.
    let nobody = PeerVerifier::new(BundleSet::default());
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    if let Ok(nobody) = nobody {
        for role in [PeerRole::Client, PeerRole::Server] {
            let shown = nobody.verify(&[CertificateDer::from(input)], role, now);
            assert!(shown.is_err(), "somebody vouches who is not there");
        }
    }
    let bundle = match TrustBundle::from_der(trust_domain.clone(), input, 1) {
        Ok(bundle) => {
            assert_eq!(bundle.to_der(), input, "a bundle has two forms");
            let again = TrustBundle::from_pem(trust_domain, &bundle.to_pem(), 1);
            assert_eq!(again.as_ref().ok(), Some(&bundle), "PEM says something else");
            format!("{} authorities", bundle.authorities().len().min(4))
        }
        Err(refused) => {
            let text = str::from_utf8(input).ok();
            let pem = text.and_then(|text| TrustBundle::from_pem(trust_domain.clone(), text, 1).ok());
            if let Some(read) = pem {
                let again = TrustBundle::from_der(trust_domain, &read.to_der(), 1);
                assert_eq!(again.as_ref().ok(), Some(&read), "DER says something else");
                return format!("{leaf}, PEM of {}", read.authorities().len().min(4));
            }
            signature(&refused.to_string())
        }
    };
    format!("{leaf}, {bundle}")
}
