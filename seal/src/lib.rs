//! What people sign: the envelope, who may sign it, and the digests it is named by.
//!
//! An [`Envelope`] holds one document of one [`Kind`], the signatures over it, and the blobs that the document names by
//! [`Hash`](struct@Hash). What the document says is the business of whoever opens it. Nothing in this crate reads a file, a clock or a
//! socket: a signing key is made from a seed that the caller brings.

pub mod cbor;
mod digest;
mod envelope;
mod signer;

pub use digest::Hash;
pub use envelope::{BLOBS_MAX, Envelope, Kind, NotSigned, SIGNATURES_MAX, SealBroken};
pub use signer::{BadSigner, SIGNERS_MAX, Signer, SigningKey, TrustedSigners};
