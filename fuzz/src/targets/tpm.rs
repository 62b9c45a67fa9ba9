//! What a node shows of its TPM: keys that are what they should be, and quotes that nobody but the chip signs.

use hoplite_tpm::{Answer, AttestationKey, Challenge, Credential, EndorsementKey};

/// An attestation key that a TPM has made. Who runs this has no key of its own.
const ATTESTATION_KEY: &[u8] = include_bytes!("../../seeds/tpm/attestation-key");

/// Its quote for the secret and the request below.
const QUOTE: &[u8] = include_bytes!("../../seeds/tpm/quote");
const SECRET: [u8; 32] = [7; 32];
const REQUEST: &[u8] = b"request";

/// A public area, a challenge or an answer.
pub fn tpm(input: &[u8]) -> String {
    let mut seen = String::new();
    let known = AttestationKey::from_public(ATTESTATION_KEY);
    match AttestationKey::from_public(input) {
        // What is taken is all that names the key: nothing in it is passed over.
        Ok(_) => {
            seen += "attestation key ";
            let mut changed = input.to_vec();
            if let Some(byte) = changed.get_mut(20) {
                *byte ^= 1;
            }
            assert!(
                AttestationKey::from_public(&changed).is_err(),
                "a key for another purpose is taken"
            );
        }
        Err(refused) => {
            seen += &format!("{refused:?} ")
                .chars()
                .filter(|c| !c.is_ascii_digit())
                .collect::<String>()
        }
    }
    if let Ok(key) = EndorsementKey::from_public(input) {
        seen += if key.is_rsa() { "RSA " } else { "P-256 " };
        assert!(
            key.spki().ends_with(&key.key_bits()),
            "the key is not the one of its encoding"
        );
        if let Ok(known) = &known {
            seen += &Credential::make(&key, known)
                .map_or_else(|refused| format!("{refused:?} "), |_| "credential ".to_owned());
        }
    }
    if let Ok(challenge) = Challenge::parse(input) {
        assert_eq!(challenge.encode(), input, "a challenge has two encodings");
        seen += "challenge ";
    }
    match Answer::parse(input) {
        Ok(answer) => {
            let Ok(known) = &known else {
                panic!("the seed is no key")
            };
            let verified = answer.verify(known, &SECRET, REQUEST);
            // Nobody signs anything else; only r and s may be written shorter.
            assert!(
                verified.is_err() || Answer::parse(QUOTE) == Ok(answer),
                "a quote that nobody signed"
            );
            seen += &format!("{verified:?}");
        }
        Err(refused) => seen += &format!("{refused:?}"),
    }
    seen
}
