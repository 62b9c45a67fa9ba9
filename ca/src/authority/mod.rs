//! The keys that sign for the trust domain, and their certificates.

pub(crate) mod signer;
pub(crate) mod x509;
