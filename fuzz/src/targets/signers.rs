//! Signer sets and kept chains of them: what can be read is consistent in itself, and nobody is believed for what they sent.

use hoplite_seal::{SIGNATURES_MAX, Signer, SignerChain, SignerSet, TrustedSigners};

use super::signature;

/// A signer set as it travels, and a chain as it is kept.
pub fn signers(input: &[u8]) -> String {
    // Somebody whose key nobody has, so that no input is signed by a quorum of theirs.
    let own = "nobody=ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=".parse::<Signer>();
    let own = own.ok().and_then(|signer| TrustedSigners::new([signer]).ok());
    if let Some((own, trust_domain)) = own.zip("prod.acme".parse().ok()) {
        let named = SignerChain::configured(&trust_domain, &own).expect("one signer is a set");
        let mut chain = named.clone();
        assert!(
            !matches!(chain.follow(&[input]), Ok(true)),
            "it follows what nobody signed"
        );
        assert_eq!(chain, named);
    }
    if let Ok(kept) = SignerChain::restore(input) {
        assert_eq!(kept.encode(), input, "a chain has one text");
        return format!("kept, version {}", kept.version());
    }
    match SignerSet::danger_read_unverified(input) {
        Ok((set, signed_by)) => {
            let members = set.members().count();
            assert!(
                set.version() >= 1 && (set.version() == 1) == set.previous().is_none(),
                "{set:?}"
            );
            assert!(
                (1..=members.min(SIGNATURES_MAX)).contains(&(set.quorum() as usize)),
                "{set:?}"
            );
            assert!(
                signed_by.is_sorted_by(|a, b| a < b),
                "one name signs twice: {signed_by:?}"
            );
            format!("{members} members, {} signatures", signed_by.len())
        }
        Err(refused) => signature(&refused.to_string()),
    }
}
