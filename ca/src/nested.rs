//! CAs under this one: what was signed for each, what they publish, and what is left of them when nobody vouches for them any more.
//!
//! A nested CA is known by the entry `/hoplite/nested/<name>`, which somebody with a right of its own has registered. Whatever it signs counts in
//! all of the trust domain. So its authorities are bound to that entry: when the entry goes, their keys are revoked, and its keys for
//! JWT-SVIDs leave the trust bundle.

pub(crate) mod record;
pub(crate) mod writes;
