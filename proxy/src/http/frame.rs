//! A frame of HTTP/2 (RFC 9113, 4.1): its head, its kinds and their flags.

/// A frame's head.
pub(crate) const HEAD_BYTES: usize = 9;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

/// Which end of a connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// A frame without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHead {
    pub(crate) length: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

// === impl FrameHead ===

impl FrameHead {
    /// Takes it off the front of bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let [a, b, c, kind, flags, s, t, u, v, rest @ ..] = bytes else {
            return None;
        };
        let head = Self {
            length: u32::from_be_bytes([0, *a, *b, *c]),
            kind: *kind,
            flags: *flags,
            // The first bit says nothing (RFC 9113, 4.1).
            stream: u32::from_be_bytes([*s & 0x7f, *t, *u, *v]),
        };
        Some((head, rest))
    }

    pub(crate) fn opens_stream(&self) -> bool {
        self.kind == HEADERS
    }

    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// Writes a whole frame.
    pub(crate) fn write(kind: u8, flags: u8, stream: u32, payload: &[u8], to: &mut Vec<u8>) {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        to.extend(length);
        to.extend([kind, flags]);
        to.extend(stream.to_be_bytes());
        to.extend_from_slice(payload);
    }
}
