//! Published policy: which bundle is in force, which came before, and which grants are out.

pub(crate) mod bundles;
pub(crate) mod error;
pub(crate) mod grant;
pub(crate) mod index;
pub(crate) mod published;
pub(crate) mod signers;
pub(crate) mod writes;
