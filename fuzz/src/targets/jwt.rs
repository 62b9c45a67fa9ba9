//! JWT-SVIDs and JWK Sets: nothing is believed that was not signed, no refusal shows the token, and a set that is read is the
//! set that is written again.

use std::time::{Duration, UNIX_EPOCH};

use hoplite_identity::jwt::{self, JwtAuthorities};

use super::signature;

/// A key that signed nothing.
const KNOWN: &[u8] = br#"{"keys":[{"kty":"EC","use":"jwt-svid","kid":"k","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

/// A token, or a JWK Set.
pub fn jwt(input: &[u8]) -> String {
    if let Ok(read) = JwtAuthorities::from_jwks(input) {
        let written = read.to_jwks();
        assert_eq!(JwtAuthorities::from_jwks(written.as_bytes()).as_ref(), Ok(&read));
        return format!("{} keys", read.key_ids().count());
    }
    let Ok(token) = str::from_utf8(input) else {
        return "no text".to_owned();
    };
    let Ok(known) = JwtAuthorities::from_jwks(KNOWN) else {
        panic!("the known key is one");
    };
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    match jwt::verify(token, "ledger", |_| Some(&known), now) {
        Ok(believed) => panic!("{} was signed by nobody", believed.spiffe_id()),
        Err(refused) => {
            let reason = refused.to_string();
            assert!(token.len() < 64 || !reason.contains(token), "{reason}");
            signature(&reason)
        }
    }
}
