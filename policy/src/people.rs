//! The people of the tests: a key by name, always the same one.

use hoplite_seal::{SigningKey, TrustedSigners};
use zeroize::Zeroizing;

pub(crate) fn key(name: &str) -> SigningKey {
    let mut seed = [7; 32];
    for (to, from) in seed.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    SigningKey::from_seed(name, Zeroizing::new(seed)).unwrap()
}

pub(crate) fn trusted(names: &[&str]) -> TrustedSigners {
    TrustedSigners::new(names.iter().map(|name| key(name).signer().clone())).unwrap()
}
