//! Join tokens: secrets that admit an agent once.

pub(crate) mod index;
pub(crate) mod token;
pub(crate) mod writes;
