//! The wait for a record to be on the disk, as a plain future.

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::RecorderError;
use crate::recorder::{Shared, Waiting};

/// Waits until a record is on the disk. May be dropped at any time.
pub(super) struct Durable<'a> {
    pub(super) shared: &'a Shared,
    pub(super) seq: u64,
    pub(super) place: Option<u64>,
}

// === impl Durable ===

impl Future for Durable<'_> {
    type Output = Result<(), RecorderError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut state = this.shared.lock();
        if let Some(settled) = this.shared.settled(&mut state, this.seq) {
            return Poll::Ready(settled);
        }
        let place = *this.place.get_or_insert_with(|| {
            state.next_waiting += 1;
            state.next_waiting
        });
        state.waiting.insert(
            place,
            Waiting {
                seq: this.seq,
                waker: context.waker().clone(),
            },
        );
        Poll::Pending
    }
}

impl Drop for Durable<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.shared.lock().waiting.remove(&place);
        }
    }
}
