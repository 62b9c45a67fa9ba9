//! Published policy: which bundle is in force, which came before, and which grants are out.

pub(crate) mod published;
