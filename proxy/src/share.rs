//! Places that callers share, so that none of them can take all: each may have as many as are still free.
//!
//! A caller alone may have half of them, of two that want all each has a third, and there is always a place for who comes
//! next. Nobody sets a number for anybody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hoplite_host::process::descriptors_max;
use hoplite_identity::SpiffeId;

/// Requests, or connections, under way to one service on one worker …
const PLACES_MAX: usize = 8_192;

/// … of which each needs so many descriptors at most, with what else there is.
const DESCRIPTORS_EACH: usize = 4;

/// All places.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    all: usize,
    taken: Arc<AtomicUsize>,
}

/// One caller's part of them.
#[derive(Debug)]
pub(crate) struct Share {
    places: Places,
    own: AtomicUsize,
}

/// A place, for as long as this is held.
#[derive(Debug)]
pub(crate) struct Place(Arc<Share>);

/// Something that each caller has one of, however many connections it has, and only while it has any.
#[derive(Debug)]
pub(crate) struct ByCaller<T>(Mutex<HashMap<SpiffeId, Weak<T>>>);

// === impl Places ===

impl Places {
    pub(crate) fn new() -> Self {
        Self::of(PLACES_MAX.min(descriptors_max() / DESCRIPTORS_EACH))
    }

    /// So many.
    pub(crate) fn of(all: usize) -> Self {
        Self {
            all,
            taken: Arc::default(),
        }
    }

    pub(crate) fn share(&self) -> Share {
        Share {
            places: self.clone(),
            own: AtomicUsize::new(0),
        }
    }
}

// === impl Share ===

impl Share {
    /// A place, unless this caller has as many as are free.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Place> {
        let own = self.own.fetch_add(1, Relaxed);
        let taken = self.places.taken.fetch_add(1, Relaxed);
        let place = Place(self.clone());
        let free = self.places.all.saturating_sub(taken);
        (own < free).then_some(place)
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        self.0.own.fetch_sub(1, Relaxed);
        self.0.places.taken.fetch_sub(1, Relaxed);
    }
}

// === impl ByCaller ===

impl<T> ByCaller<T> {
    /// This caller's.
    pub(crate) fn get(&self, caller: &SpiffeId, make: impl FnOnce() -> T) -> Arc<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(caller).and_then(Weak::upgrade) {
            return known;
        }
        if all.len() == all.capacity() {
            all.retain(|_, held| held.strong_count() > 0);
        }
        let made = Arc::new(make());
        all.insert(caller.clone(), Arc::downgrade(&made));
        made
    }
}

impl<T> Default for ByCaller<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(share: &Arc<Share>) -> Vec<Place> {
        std::iter::from_fn(|| share.take()).collect()
    }

    #[test]
    fn none_takes_what_the_next_one_needs() {
        let places = Places::of(100);
        let [a, b, c] = [(); 3].map(|()| Arc::new(places.share()));
        let (held, others) = (fill(&a), fill(&b));
        assert_eq!((held.len(), others.len()), (50, 25));
        assert!(!fill(&c).is_empty());
        drop((held, others));
        assert_eq!(fill(&c).len(), 50, "what is given back is free");
        assert_eq!(places.taken.load(Relaxed), 0);
    }

    #[test]
    fn each_caller_has_one_while_it_has_any() {
        let by_caller = ByCaller::default();
        let id = |name: &str| SpiffeId::parse(&format!("spiffe://demo.hoplite/{name}")).unwrap();
        let first = by_caller.get(&id("a"), || 1);
        assert!(Arc::ptr_eq(&first, &by_caller.get(&id("a"), || 2)));
        drop(first);
        assert_eq!(*by_caller.get(&id("a"), || 3), 3);
        for number in 0..10_000 {
            by_caller.get(&id(&number.to_string()), || number);
        }
        assert!(by_caller.0.lock().unwrap().capacity() < 100);
    }
}
