//! What people sign: the envelope, who may sign it and who says so next, and the digests it is named by.
//!
//! An [`Envelope`] holds one document of one [`Kind`], the signatures over it, and the blobs that the document names by
//! [`Hash`](struct@Hash). What the document says is the business of whoever opens it. Nothing in this crate reads a file, a clock or a
//! socket: a signing key is made from a seed that the caller brings. [`scrypt()`] makes a key of a passphrase.

pub mod cbor;
mod digest;
mod envelope;
mod scrypt;
mod signer;
mod signer_chain;
mod signer_set;

pub use digest::Hash;
pub use envelope::{BLOBS_MAX, Envelope, Kind, NotSigned, SIGNATURES_MAX, SealBroken};
pub use scrypt::scrypt;
pub use signer::{BadSigner, SIGNERS_MAX, Signer, SigningKey, TrustedSigners};
pub use signer_chain::{NotFollowed, SIGNER_CHAIN_BYTES_MAX, SIGNER_SETS_MAX, SignerChain};
pub use signer_set::{BadSet, SIGNER_SET_BYTES_MAX, SignerSet, TrustedSet};
