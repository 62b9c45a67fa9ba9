//! What is signed to prove that one has the key of a certificate of another authority: the challenge, and the signing request that it
//! is for. So whoever stands between can have no certificate for a key of its own, and no signature serves twice.

use ring::digest::{SHA256, digest};

/// The length of a challenge, in bytes.
pub const CHALLENGE_BYTES: usize = 32;

/// What the message begins with, so that it is taken for nothing else that the key signs.
const CONTEXT: &[u8] = b"hoplite proof of possession v1\0";

/// The message that is signed in answer to a challenge, for this signing request (DER).
pub fn proof_of_possession(challenge: &[u8; CHALLENGE_BYTES], csr: &[u8]) -> Vec<u8> {
    let csr = digest(&SHA256, csr);
    [CONTEXT, challenge, csr.as_ref()].concat()
}
