//! What a record in the log is evidence of. Only [`Acts`](crate::acts::Acts) makes it.

use hoplite_audit::Recorder;

/// A record that is written: what the disk is waited for with, and what later ones name.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// Who wrote it.
    pub(super) recorder: Recorder,
    pub(super) seq: u64,
}

/// Evidence that the records that were waited for are on the disk.
#[derive(Debug)]
pub(crate) struct Settled(());

// === impl Settled ===

impl Settled {
    pub(super) fn new() -> Self {
        Self(())
    }
}
