//! Signing requests, as the CA gets them of agents: only a key that signed the request is taken, and it is taken as it stands there.

use hoplite_identity::{InvalidSigningRequest, KeyKind, SIGNING_REQUEST_BYTES_MAX, SigningRequest};

/// Requests that somebody signed. Who runs this has none of their keys.
const SIGNED: [&[u8]; 3] = [
    include_bytes!("../../seeds/csr/00"),
    include_bytes!("../../seeds/csr/01"),
    include_bytes!("../../seeds/csr/02"),
];

/// A DER PKCS#10 request.
pub fn csr(input: &[u8]) -> String {
    let read = match SigningRequest::parse(input) {
        Ok(read) => read,
        Err(refused) => {
            let is_long = matches!(refused, InvalidSigningRequest::TooLong(_));
            assert_eq!(is_long, input.len() > SIGNING_REQUEST_BYTES_MAX, "{refused}");
            return format!("{refused:?}");
        }
    };
    let is_known = |signed: &[u8]| SigningRequest::parse(signed).is_ok_and(|known| known.spki() == read.spki());
    assert!(SIGNED.into_iter().any(is_known), "a key is taken that signed nothing");
    let bytes = match read.kind() {
        KeyKind::P256 => 65,
        KeyKind::P384 => 97,
        KeyKind::Ed25519 => 32,
    };
    assert_eq!(read.point().len(), bytes, "{:?}", read.kind());
    assert!(
        read.spki().ends_with(read.point()),
        "the key is not the one of its encoding"
    );
    let Some(at) = input.windows(read.spki().len()).position(|part| part == read.spki()) else {
        panic!("the key stands nowhere in the request");
    };
    // It vouches for all that was signed: the last byte of the key is, wherever it stands first.
    let mut changed = input.to_vec();
    if let Some(byte) = changed.get_mut(at + read.spki().len() - 1) {
        *byte ^= 1;
    }
    let again = SigningRequest::parse(&changed);
    assert!(again.is_err(), "one signature vouches for two requests");
    format!("{:?}", read.kind())
}
