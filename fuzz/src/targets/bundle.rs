//! Policy bundles: what can be read has one form, and no signer at all is never enough.

use std::time::SystemTime;

use hoplite_policy::bundle::{
    Acceptance, BUNDLE_BYTES_MAX, Bundle, BundleContents, EngineVersion, KNOWN_CRITICAL, Manifest,
};
use hoplite_seal::{Hash, TrustedSigners};

use super::signature;

/// A bundle as it travels, or a manifest by itself.
pub fn bundle(input: &[u8]) -> String {
    if let Ok(manifest) = Manifest::danger_read_unverified(input) {
        assert_eq!(manifest.encode(), input, "one manifest has two forms");
    }
    let contents = match BundleContents::danger_read_unverified(input, BUNDLE_BYTES_MAX) {
        Ok(contents) => contents,
        Err(refused) => return signature(&refused.to_string()),
    };
    let manifest = contents.manifest();
    assert_eq!(
        contents.manifest_hash(),
        Hash::of(&manifest.encode()),
        "one manifest has two forms"
    );
    let files = manifest.files.iter().map(|file| (file.name.as_str(), file.sha256));
    let sources = contents
        .sources()
        .iter()
        .map(|source| (source.name.as_str(), Hash::of(source.text.as_bytes())));
    assert!(files.eq(sources), "the files are not those that are signed");
    assert!(contents.sources().is_sorted_by(|a, b| a.name < b.name));

    if let (Ok(signers), Ok(trust_domain)) = (TrustedSigners::new([]), manifest.trust_domain.parse()) {
        let acceptance = Acceptance {
            signers: &signers,
            trust_domain: &trust_domain,
            highest_seen: None,
            now: SystemTime::UNIX_EPOCH,
            engine_version: EngineVersion::THIS,
            known_critical: KNOWN_CRITICAL,
            max_bytes: BUNDLE_BYTES_MAX,
        };
        assert!(
            Bundle::open(input, &acceptance).is_err(),
            "nobody's signature is enough"
        );
    }
    format!("{} files, {} signers", manifest.files.len(), contents.signed_by().len())
}
