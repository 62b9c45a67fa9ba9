//! Operators: people who sign in with a token, and what the CA keeps of each. The certificate says only the name.

pub(crate) mod index;
pub(crate) mod operator;
pub(crate) mod writes;
