//! Large values: what they are called, and how large they may be.

use std::fmt;

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

use crate::StoreError;

/// Largest large value, in bytes: twice the longest policy bundle. One is held in memory while it is put or read.
pub const LARGE_BYTES_MAX: usize = 64 << 20;

/// How many large values one key may name.
pub const LARGE_PER_KEY_MAX: usize = 16;

/// The name of a large value: the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeId(pub [u8; 32]);

/// Why a large value is not kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LargeError {
    /// It is longer than [`LARGE_BYTES_MAX`].
    #[error("a value of {0} bytes is too large: at most {LARGE_BYTES_MAX}")]
    TooLarge(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl LargeId ===

impl LargeId {
    /// The name of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut id = [0; 32];
        id.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(id)
    }

    /// The name that [`Display`](fmt::Display) wrote, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()?))
    }

    /// For a backend, before anything else: the name of bytes that are to be put, if they are within bounds.
    ///
    /// # Errors
    /// [`LargeError::TooLarge`].
    pub fn of_bounded(bytes: &[u8]) -> Result<Self, LargeError> {
        if bytes.len() > LARGE_BYTES_MAX {
            return Err(LargeError::TooLarge(bytes.len()));
        }
        Ok(Self::of(bytes))
    }
}

impl fmt::Display for LargeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

impl fmt::Debug for LargeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LargeId({self})")
    }
}
