//! Attestation payloads: tokens of other issuers and their JWK Sets. Nothing is believed that was not signed, a set that is read has
//! keys, each under one name, and no refusal shows the token.

use std::time::{Duration, UNIX_EPOCH};

use hoplite_identity::jwt::{Expected, ForeignKeys, verify_foreign};

use super::signature;

/// A key that signed nothing.
const KNOWN: &[u8] = br#"{"keys":[{"kty":"EC","use":"sig","kid":"k","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

/// A token, or a JWK Set.
pub fn foreign(input: &[u8]) -> String {
    if let Ok(read) = ForeignKeys::from_jwks(input) {
        let ids: Vec<&str> = read.key_ids().collect();
        assert!(!ids.is_empty() && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        assert_eq!(
            ForeignKeys::from_jwks(input).as_ref(),
            Ok(&read),
            "a second reading differs"
        );
        return format!("{} keys", ids.len().min(4));
    }
    let Ok(token) = str::from_utf8(input) else {
        return "no text".to_owned();
    };
    let Ok(known) = ForeignKeys::from_jwks(KNOWN) else {
        panic!("the known key is one");
    };
    let expected = Expected {
        issuer: "https://k8s.example",
        audience: "hoplite",
        longest: Duration::from_secs(3600),
    };
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    match verify_foreign(token, expected, &known, now) {
        Ok(believed) => panic!("`{}` was signed by nobody", believed.subject()),
        Err(refused) => {
            let reason = refused.to_string();
            assert!(!reason.contains('\n'), "{reason}");
            let parts = token.split('.').filter(|part| part.len() >= 16);
            assert!(parts.into_iter().all(|part| !reason.contains(part)), "{reason}");
            signature(&reason)
        }
    }
}
