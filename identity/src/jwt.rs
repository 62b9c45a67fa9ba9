//! JWT-SVIDs (J-1 to J-11): the keys that vouch for them, the tokens, and the one way to believe one.

mod authority;
mod claims;
mod foreign;
mod jwk;
mod token;

pub use authority::{InvalidJwtAuthorities, JwtAuthorities};
pub use claims::{AUDIENCE_BYTES_MAX, AUDIENCES_MAX, InvalidAudience, JwtClaims};
pub use foreign::{Expected, ForeignKeys, ForeignRejected, ForeignToken, InvalidForeignKeys, verify_foreign};
pub use jwk::{InvalidJwk, JwtAlgorithm, JwtKey};
pub(crate) use jwk::{Jwk, X509_SVID};
pub use token::{JwtRejected, JwtSvid, TOKEN_BYTES_MAX, key_id, verify};
