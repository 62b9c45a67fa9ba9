//! The authorities of the trust domain: their course, the one that signs here, and all that its members are verified with.

pub(crate) mod above;
pub(crate) mod course;
pub(crate) mod index;
pub(crate) mod jwt;
pub(crate) mod keyring;
pub(crate) mod link;
pub(crate) mod opened;
pub(crate) mod sealing;
pub(crate) mod signer;
pub(crate) mod taking;
pub(crate) mod trust;
pub(crate) mod upstream;
pub(crate) mod writes;
pub(crate) mod x509;
