//! Connections to peers and from them: who is at the other end, proved by both sides, and for how long that holds.

pub(crate) mod destination;
pub(crate) mod dial;
pub(crate) mod downstream;
pub(crate) mod handshake;
pub(crate) mod identity_feed;
pub(crate) mod session;
