//! What a peer may send over HTTP/2 that is no part of any request: a budget for each connection, which work refills.
//!
//! A PING, a SETTINGS, a PRIORITY, an empty DATA, a stream opened and reset at once: each costs its sender less than it
//! costs us, and the library bounds few of them (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2025-8671). None is wrong by itself, so none is
//! refused: they are counted, as HAProxy counts "glitches". Who keeps a connection alive, grants us window for what we sent, or
//! cancels what takes too long stays far below; see `docs/reference/answers.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::http::frame::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHead, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE,
};

/// What comes back with each request that is answered to its end: clients grant window and set priorities for each.
const PER_ANSWER: u32 = 10;

/// What comes back with each second.
const PER_SECOND: u32 = 10;

/// Frames that answer a DATA frame of ours, and are no waste: window for stream and connection, and the PINGs by which a
/// receiver measures how fast it comes. As Envoy has it; and one for each so many bytes of it.
const PER_DATA: u64 = 10;
const DATA_BYTES: u64 = 256;

/// A stream that is reset before it is this old, and before any answer, was opened for nothing.
const PREMATURE: Duration = Duration::from_secs(1);

/// A useless frame counts once more for each so many bytes.
const FRAME_BYTES: u32 = 1 << 10;

/// A CONTINUATION shorter than this needed not to be one.
const CONTINUATION_BYTES: u32 = 1 << 10;

/// Streams whose age we know: more than there may be at a time.
const OPENED_MAX: usize = 512;

const KINDS: [&str; 9] = [
    "PING",
    "SETTINGS",
    "PRIORITY",
    "WINDOW_UPDATE",
    "empty DATA",
    "short CONTINUATION",
    "RST_STREAM at once",
    "streams to be refused",
    "other",
];

/// A connection's budget.
#[derive(Debug)]
pub(crate) struct Budget {
    max: u32,
    left: u32,
    refilled: Instant,
    /// Frames that answer what we sent and have not come yet.
    due: u64,
    /// Streams without an answer, and when they began.
    opened: BTreeMap<u32, Instant>,
    /// What was useless, by kind.
    spent: [u64; KINDS.len()],
    warned: bool,
}

/// How a budget stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    /// Three quarters of it are gone: said once. Whoever means well makes another connection.
    Low,
    /// Nothing is left.
    Spent,
}

// === impl Budget ===

impl Budget {
    pub(crate) fn new(max: u32, now: Instant) -> Self {
        Self {
            max,
            left: max,
            refilled: now,
            due: 0,
            opened: BTreeMap::new(),
            spent: [0; KINDS.len()],
            warned: false,
        }
    }

    /// A frame of the peer's. Only an answering server's peer opens streams.
    pub(crate) fn received(&mut self, frame: &FrameHead, now: impl FnOnce() -> Instant) {
        let kind = match frame.kind {
            DATA if frame.length == 0 && frame.flags & END_STREAM == 0 => 4,
            DATA | HEADERS => return,
            // Either answers what we sent, while there is something to answer.
            PING | WINDOW_UPDATE if self.due > 0 => {
                self.due -= 1;
                return;
            }
            PING => 0,
            SETTINGS => 1,
            PRIORITY => 2,
            WINDOW_UPDATE => 3,
            CONTINUATION if frame.length < CONTINUATION_BYTES && frame.flags & END_HEADERS == 0 => 5,
            CONTINUATION => return,
            RST_STREAM => {
                let Some(opened) = self.opened.remove(&frame.stream) else {
                    return;
                };
                let now = now();
                if now.saturating_duration_since(opened) < PREMATURE {
                    self.spend(6, frame.length, now);
                }
                return;
            }
            _ => 8,
        };
        self.spend(kind, frame.length, now());
    }

    /// The peer has begun a stream.
    pub(crate) fn opened(&mut self, stream: u32, now: Instant) {
        self.opened.insert(stream, now);
        if self.opened.len() > OPENED_MAX {
            self.opened.pop_first();
        }
    }

    /// A frame of ours, with the error it names.
    pub(crate) fn sent(&mut self, frame: &FrameHead, error: Option<u32>, now: impl FnOnce() -> Instant) {
        if frame.kind == RST_STREAM && error.is_some_and(is_made_by_peer) {
            self.spend(7, 0, now());
        }
        match frame.kind {
            DATA if frame.length > 0 => {
                let more = PER_DATA + u64::from(frame.length) / DATA_BYTES;
                self.due = self.due.saturating_add(more);
            }
            HEADERS | RST_STREAM => {
                self.opened.remove(&frame.stream);
            }
            _ => {}
        }
    }

    /// A request was answered to its end.
    pub(crate) fn answered(&mut self) {
        self.left = self.left.saturating_add(PER_ANSWER).min(self.max);
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.left == 0
    }

    pub(crate) fn standing(&mut self) -> Standing {
        if self.is_spent() {
            Standing::Spent
        } else if self.left <= self.max / 4 && !self.warned {
            self.warned = true;
            Standing::Low
        } else {
            Standing::Good
        }
    }

    fn spend(&mut self, kind: usize, bytes: u32, now: Instant) {
        let seconds = now.saturating_duration_since(self.refilled).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND);
            self.left = self.left.saturating_add(more).min(self.max);
            self.refilled = now;
        }
        self.left = self.left.saturating_sub(1 + bytes / FRAME_BYTES);
        if let Some(spent) = self.spent.get_mut(kind) {
            *spent += 1;
        }
    }
}

/// Whether a stream that we reset so was one that its peer should not have begun, or has broken (RFC 9113, 7).
fn is_made_by_peer(error: u32) -> bool {
    // Not NO_ERROR, INTERNAL_ERROR, CANCEL; and not STREAM_CLOSED, which meets what was on its way when we had answered.
    !matches!(error, 0 | 2 | 5 | 8)
}

/// What was useless, for the log: `1000 PING, 3 SETTINGS`.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (kind, count) in KINDS.iter().zip(self.spent).filter(|(_, count)| *count > 0) {
            let comma = if first { "" } else { ", " };
            write!(f, "{comma}{count} {kind}")?;
            first = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hoplite_host::clock;

    use super::*;

    const MAX: u32 = 1_000;

    fn head(kind: u8, flags: u8, stream: u32, length: u32) -> FrameHead {
        FrameHead {
            kind,
            flags,
            stream,
            length,
        }
    }

    /// How many of these at once spend a budget.
    #[track_caller]
    fn spent_by(frame: FrameHead, expected: Option<u32>) {
        let now = clock::moment();
        let mut budget = Budget::new(MAX, now);
        let mut count = 0;
        let found = (0..10 * MAX).find_map(|_| {
            budget.received(&frame, || now);
            count += 1;
            (budget.standing() == Standing::Spent).then_some(count)
        });
        assert_eq!(found, expected, "{frame:?}: {budget}");
    }

    #[test]
    fn useless_frames_spend_it_and_useful_ones_do_not() {
        for frame in [
            head(PING, 0, 0, 8),
            head(PING, 1, 0, 8),
            head(SETTINGS, 0, 0, 0),
            head(SETTINGS, 1, 0, 0),
            head(PRIORITY, 0, 1, 5),
            head(WINDOW_UPDATE, 0, 0, 4),
            head(DATA, 0, 1, 0),
            head(CONTINUATION, 0, 1, 0),
            head(0x77, 0, 0, 0),
        ] {
            spent_by(frame, Some(MAX));
        }
        spent_by(head(0x77, 0, 0, 16_384), Some(59));
        for frame in [
            head(DATA, 0, 1, 1),
            head(DATA, END_STREAM, 1, 0),
            head(HEADERS, 4, 1, 10),
            head(CONTINUATION, END_HEADERS, 1, 0),
            head(CONTINUATION, 0, 1, 4_096),
            head(RST_STREAM, 0, 1, 4),
        ] {
            spent_by(frame, None);
        }
    }

    #[test]
    fn a_stream_reset_at_once_costs_and_one_given_up_does_not() {
        let now = clock::moment();
        let mut budget = Budget::new(MAX, now);
        let mut cancel = |after: Duration, answer: bool| {
            for stream in (0..10 * MAX).map(|n| 2 * n + 1) {
                budget.opened(stream, now);
                if answer {
                    budget.sent(&head(HEADERS, 4, stream, 9), None, || now);
                }
                budget.received(&head(RST_STREAM, 0, stream, 4), || now + after);
            }
            budget.standing()
        };
        assert_eq!(cancel(PREMATURE, false), Standing::Good);
        assert_eq!(cancel(Duration::ZERO, true), Standing::Good);
        assert_eq!(cancel(Duration::ZERO, false), Standing::Spent);
        assert_eq!(budget.to_string(), "10000 RST_STREAM at once");
    }

    /// CVE-2025-8671.
    #[test]
    fn streams_that_we_are_made_to_reset_cost() {
        let now = clock::moment();
        let mut budget = Budget::new(MAX, now);
        for error in [0, 2, 8, 1, 3, 5, 6, 7] {
            budget.sent(&head(RST_STREAM, 0, 1, 4), Some(error), || now);
        }
        assert_eq!(
            (budget.left, budget.to_string()),
            (MAX - 4, "4 streams to be refused".to_owned())
        );
    }

    #[test]
    fn work_and_time_refill_it() {
        let now = clock::moment();
        let mut budget = Budget::new(MAX, now);
        let ping = head(PING, 0, 0, 8);
        // A client that keeps its connection alive every ten seconds for a day, and asks nothing.
        for second in (0..86_400).step_by(10) {
            budget.received(&ping, || now + Duration::from_secs(second));
            assert_eq!((budget.standing(), budget.left), (Standing::Good, MAX - 1));
        }
        // Each request with its priority and its windows.
        for _ in 0..100_000 {
            for kind in [PRIORITY, WINDOW_UPDATE, WINDOW_UPDATE, PING] {
                budget.received(&head(kind, 0, 1, 4), || now);
            }
            budget.answered();
            assert_eq!(budget.standing(), Standing::Good);
        }
        // A download, with window given back in small pieces and the speed measured all the while.
        for _ in 0..100_000 {
            budget.sent(&head(DATA, 0, 1, 16_384), None, || now);
            for _ in 0..40 {
                budget.received(&head(WINDOW_UPDATE, 0, 1, 4), || now);
            }
            budget.received(&ping, || now);
            assert_eq!(budget.standing(), Standing::Good);
        }
    }

    #[test]
    fn it_says_once_that_it_is_low() {
        let now = clock::moment();
        let mut budget = Budget::new(MAX, now);
        let mut low = Vec::new();
        for count in 1..=MAX {
            budget.received(&head(SETTINGS, 0, 0, 0), || now);
            if budget.standing() == Standing::Low {
                low.push(count);
            }
        }
        assert_eq!(low, [750]);
    }
}
