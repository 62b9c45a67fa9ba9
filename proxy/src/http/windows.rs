//! How much callers may have sent that nobody has read yet: a budget for the whole process, of which each connection of
//! HTTP/2 takes a part as it needs it.
//!
//! A connection's window begins with what RFC 9113 (6.9.2) gives to all. It opens ahead of what is unread, so that no stream
//! waits for what another does not read, for as long as the budget has more for this caller. Beyond that the streams of one
//! connection wait for each other, and those of nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};

use hoplite_identity::SpiffeId;

use crate::http::http2::CONNECTION_WINDOW;
use crate::share::{ByCaller, Place, Places, Share};

/// What is taken of the budget at a time; and what every connection has without it, which nobody can refuse.
const PIECE_BYTES: i64 = 64 << 10;

/// What every connection begins with (RFC 9113, 6.9.2).
pub(crate) const FIRST_WINDOW: u32 = 65_535;

/// How much may always come, while the budget has it.
const AHEAD_BYTES: i64 = 4 * PIECE_BYTES;

/// The budget of a process.
#[derive(Debug)]
pub(crate) struct UnreadBudget {
    places: Places,
    callers: ByCaller<Share>,
}

/// What one connection's bytes say of its window, seen where they are read and written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// What may still come, beyond the first window.
    visible: AtomicI64,
    /// What has come and may not come again, as far as is known.
    unread: AtomicI64,
    /// Bodies that somebody may still read.
    bodies: AtomicUsize,
}

/// One connection's window.
#[derive(Debug)]
pub(crate) struct Window {
    meter: Meter,
    share: Arc<Share>,
    places: Vec<Place>,
    target: i64,
}

// === impl UnreadBudget ===

impl UnreadBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        let pieces = bytes / usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
        Self {
            places: Places::of(pieces),
            callers: ByCaller::default(),
        }
    }

    /// For whoever needs none.
    pub(crate) fn nothing(&self) -> Arc<Share> {
        Arc::new(self.places.share())
    }

    /// A caller's part of it, on all its connections together.
    pub(crate) fn of(&self, caller: &SpiffeId) -> Arc<Share> {
        self.callers.get(caller, || self.places.share())
    }
}

// === impl Meter ===

impl Meter {
    /// So much has come.
    pub(crate) fn received(&self, bytes: u32) {
        self.0.visible.fetch_sub(bytes.into(), Relaxed);
        self.0.unread.fetch_add(bytes.into(), Relaxed);
    }

    /// So much more may come.
    pub(crate) fn granted(&self, bytes: u32) {
        self.0.visible.fetch_add(bytes.into(), Relaxed);
    }

    /// So much of it was read, or will not be.
    pub(crate) fn read(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.0.unread.store(self.unread().saturating_sub(bytes), Relaxed);
    }

    /// A body has begun, for whoever reads it.
    pub(crate) fn begins(&self) {
        self.0.bodies.fetch_add(1, Relaxed);
    }

    /// A body has ended, with so much of it unread.
    pub(crate) fn ends(&self, unread: usize) {
        self.0.bodies.fetch_sub(1, Relaxed);
        self.read(unread);
    }

    /// No stream is left. Of what the library has thrown away nothing is told, and so it is forgotten here.
    pub(crate) fn nothing_open(&self) {
        if self.0.bodies.load(Relaxed) == 0 {
            self.0.unread.store(0, Relaxed);
        }
    }

    fn visible(&self) -> i64 {
        i64::from(FIRST_WINDOW) + self.0.visible.load(Relaxed)
    }

    fn unread(&self) -> i64 {
        self.0.unread.load(Relaxed).max(0)
    }
}

// === impl Window ===

impl Window {
    pub(crate) fn new(meter: Meter, share: Arc<Share>) -> Self {
        Self {
            meter,
            share,
            places: Vec::new(),
            target: FIRST_WINDOW.into(),
        }
    }

    /// Looks at what has come and what was read. Gives the window that the connection is to have from now on, if that is
    /// another: what is unread and what may come.
    pub(crate) fn adjusted(&mut self) -> Option<u32> {
        let (visible, unread) = (self.meter.visible(), self.meter.unread());
        let wanted = (unread + AHEAD_BYTES).min(CONNECTION_WINDOW.into());
        let before = self.target;
        if visible < before.min(AHEAD_BYTES) / 2 && wanted > before {
            while self.size() < wanted
                && let Some(place) = self.share.take()
            {
                self.places.push(place);
            }
            self.target = self.size().min(wanted).max(before);
        } else if wanted + AHEAD_BYTES < before {
            self.target = wanted;
        }
        // What was granted cannot be taken back before it is used.
        let held = self.target.max(visible + unread);
        while self.size() - PIECE_BYTES >= held && self.places.pop().is_some() {}
        (self.target != before).then(|| u32::try_from(self.target).unwrap_or(CONNECTION_WINDOW))
    }

    /// What there is a place for.
    fn size(&self) -> i64 {
        let pieces = i64::try_from(self.places.len()).unwrap_or(i64::MAX);
        i64::from(FIRST_WINDOW) + pieces.saturating_mul(PIECE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection whose library grants what the target allows, at once.
    struct Connection {
        window: Window,
        meter: Meter,
    }

    impl Connection {
        fn of(unread: &UnreadBudget, name: &str) -> Self {
            let caller = SpiffeId::parse(&format!("spiffe://demo.hoplite/{name}")).unwrap();
            let meter = Meter::default();
            Self {
                window: Window::new(meter.clone(), unread.of(&caller)),
                meter,
            }
        }

        fn turn(&mut self) {
            self.window.adjusted();
            let room = self.window.target - self.meter.unread() - self.meter.visible();
            if room > 0 {
                self.meter.granted(u32::try_from(room).unwrap());
            }
        }

        /// As much as it may send, in frames.
        fn send(&mut self, bytes: i64) -> i64 {
            let mut sent = 0;
            while sent < bytes && self.meter.visible() > 0 {
                let frame = self.meter.visible().min(16 << 10).min(bytes - sent);
                self.meter.received(u32::try_from(frame).unwrap());
                sent += frame;
                self.turn();
            }
            sent
        }

        fn places(&self) -> usize {
            self.window.places.len()
        }
    }

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_read_is_given_back() {
        let unread = UnreadBudget::new(64 * MIB);
        let mut one = Connection::of(&unread, "one");
        assert_eq!(one.places(), 0, "who sends nothing takes nothing");
        assert_eq!(one.send(8 << 20), 8 << 20);
        assert!((128..140).contains(&one.places()), "{}", one.places());
        one.meter.read(8 << 20);
        one.turn();
        // Some of it may come, and did not yet.
        assert!(one.places() < 16, "{}", one.places());
        for _ in 0..1_000 {
            assert_eq!(one.send(1 << 20), 1 << 20);
            one.meter.read(1 << 20);
            one.turn();
        }
        assert!(one.places() < 32, "{}", one.places());
    }

    #[test]
    fn no_connection_has_more_than_all_its_streams_may() {
        let unread = UnreadBudget::new(1_000 * MIB);
        let mut one = Connection::of(&unread, "one");
        assert_eq!(one.send(1 << 30), i64::from(CONNECTION_WINDOW));
    }

    #[test]
    fn callers_share_the_budget_and_everybody_has_the_first_window() {
        let unread = UnreadBudget::new(8 * MIB);
        let mut all = 0;
        let mut held = Vec::new();
        for name in ["a", "a", "a", "b", "c", "d"] {
            let mut connection = Connection::of(&unread, name);
            let sent = connection.send(64 << 20);
            assert!(sent >= FIRST_WINDOW.into(), "{name}: {sent}");
            all += sent - i64::from(FIRST_WINDOW);
            held.push((name, sent, connection));
        }
        let of = |wanted: &str| -> i64 {
            held.iter()
                .filter(|(name, ..)| *name == wanted)
                .map(|(_, sent, _)| sent)
                .sum()
        };
        assert!(all <= 8 << 20, "{all}");
        assert!(of("a") <= (4 << 20) + 3 * i64::from(FIRST_WINDOW), "{}", of("a"));
        assert!(of("b") > 1 << 20 && of("c") > 512 << 10, "{} {}", of("b"), of("c"));
        drop(held);
        let mut next = Connection::of(&unread, "e");
        assert!(next.send(64 << 20) >= 4 << 20, "what has ended has given back");
    }

    #[test]
    fn what_was_granted_is_held_until_it_is_used() {
        let unread = UnreadBudget::new(64 * MIB);
        let mut one = Connection::of(&unread, "one");
        one.send(8 << 20);
        // The library grants anew what a stream that ends has not read.
        one.meter.read(8 << 20);
        one.meter.granted(8 << 20);
        one.turn();
        assert!(one.places() >= 128, "{}", one.places());
        one.send(8 << 20);
        one.meter.nothing_open();
        one.turn();
        assert!(one.places() < 16, "{}", one.places());
    }
}
