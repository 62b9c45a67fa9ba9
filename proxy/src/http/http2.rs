//! HTTP/2 over one connection, on either side of it: streams that neither hold up nor end each other.
//!
//! A connection's window opens ahead of what waits for a reader, up to the windows of all its streams together, so that what
//! one of them does not read is not room that another lacks. How much waits in all is `windows.rs`' to say.

pub(crate) mod client;
mod heard;
mod keepalive;
pub(crate) mod pipe;
pub(crate) mod received;
pub(crate) mod server;

/// Requests at a time on one connection: what RFC 9113 (6.5.2) asks every server to allow at least.
pub(crate) const STREAMS_MAX: u32 = 100;

/// What one stream may have under way and unread.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;

/// What one connection may at most: no stream waits for the window of another.
pub(crate) const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX;

/// A head, decompressed, in either direction.
pub(crate) const HEAD_BYTES_MAX: u32 = 64 << 10;
