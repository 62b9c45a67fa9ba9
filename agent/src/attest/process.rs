//! One live process, known by its pidfd: it cannot be mistaken for another that takes over its pid.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that was alive once, and whether it still is.
#[derive(Debug)]
pub(crate) struct Process(AsyncFd<Arc<OwnedFd>>);

// === impl Process ===

impl Process {
    pub(crate) fn new(pidfd: Arc<OwnedFd>) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is `unsafe` for types whose descriptor could change; an `OwnedFd` that is shared, and so never lent out mutably, cannot"
        )]
        AsyncFd::with_interest(pidfd, Interest::READABLE).map(Self)
    }

    /// Whether the process has not exited yet. In doubt it has.
    pub(crate) fn is_alive(&self) -> bool {
        let mut descriptors = [PollFd::new(self.0.get_ref(), PollFlags::IN)];
        matches!(poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
    }

    /// Returns when the process has exited.
    pub(crate) async fn exited(&self) {
        let _ = self.0.readable().await;
    }
}
