//! Places for connections and streams: so many in total, so many for one source, so many for one user.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who takes a place, as far as the kernel says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A process, by its pid.
    Process(i32),
    /// A user, by its uid: all its processes together.
    User(u32),
    /// An address. Of IPv6 a prefix of 64 bits, because one host may take any address below it.
    Address(IpAddr),
}

/// How many places there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// For all together.
    pub total: usize,
    /// For one process, so that one cannot take them all.
    pub per_process: usize,
    /// For all processes of one user, so that a user with many of them cannot take them all either.
    pub per_user: usize,
    /// For one address.
    pub per_address: usize,
}

/// Places; clones share them.
#[derive(Debug, Clone)]
pub struct Slots {
    places: Arc<Semaphore>,
    taken: Arc<Mutex<HashMap<Source, usize>>>,
    bounds: Bounds,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct Slot {
    _place: OwnedSemaphorePermit,
    taken: Arc<Mutex<HashMap<Source, usize>>>,
    sources: Vec<Source>,
}

/// A place whose source is not known yet.
#[derive(Debug)]
pub struct Reserved {
    place: OwnedSemaphorePermit,
    slots: Slots,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All are taken.
    #[error("all {0} places are taken")]
    Total(usize),
    /// The source has as many as one may have.
    #[error("{0} holds {1} places, as many as one may")]
    Source(Source, usize),
}

// === impl Source ===

impl Source {
    /// The source of a connection from this address.
    pub fn address(ip: IpAddr) -> Self {
        Self::Address(match ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64))),
            ip @ IpAddr::V4(_) => ip,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "process {pid}"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Address(ip) => write!(f, "address {ip}"),
        }
    }
}

// === impl Bounds ===

impl Bounds {
    /// Of a Unix socket.
    pub const fn local(total: usize, per_process: usize, per_user: usize) -> Self {
        Self {
            total,
            per_process,
            per_user,
            per_address: total,
        }
    }

    /// Of a TCP port.
    pub const fn network(total: usize, per_address: usize) -> Self {
        Self {
            total,
            per_process: total,
            per_user: total,
            per_address,
        }
    }

    const fn of(&self, source: Source) -> usize {
        match source {
            Source::Process(_) => self.per_process,
            Source::User(_) => self.per_user,
            Source::Address(_) => self.per_address,
        }
    }
}

// === impl Slots ===

impl Slots {
    /// As many free places as the bounds say.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            places: Arc::new(Semaphore::new(bounds.total)),
            taken: Arc::default(),
            bounds,
        }
    }

    /// A place for these sources, if there is one for each of them.
    ///
    /// # Errors
    /// [`Full`], and which bound it is.
    pub fn take(&self, sources: &[Source]) -> Result<Slot, Full> {
        self.try_reserve()?.claim(sources)
    }

    /// A place for a source that is not known yet.
    ///
    /// # Errors
    /// [`Full::Total`].
    pub fn try_reserve(&self) -> Result<Reserved, Full> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Ok(Reserved {
                place,
                slots: self.clone(),
            }),
            Err(_) => Err(Full::Total(self.bounds.total)),
        }
    }

    /// Waits for a place for a source that is not known yet.
    pub async fn reserve(&self) -> Reserved {
        match Arc::clone(&self.places).acquire_owned().await {
            Ok(place) => Reserved {
                place,
                slots: self.clone(),
            },
            Err(_never_closed) => std::future::pending().await,
        }
    }

    /// Returns once every place is free. None can be reserved meanwhile, so it is for those who accept nothing any more.
    pub async fn drained(&self) {
        let all = u32::try_from(self.bounds.total).unwrap_or(u32::MAX);
        let _all = self.places.acquire_many(all).await;
    }
}

// === impl Reserved ===

impl Reserved {
    /// Makes it the place of these sources.
    ///
    /// # Errors
    /// [`Full::Source`]; the place is free again.
    pub fn claim(self, sources: &[Source]) -> Result<Slot, Full> {
        let Self { place, slots } = self;
        let mut taken = slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for source in sources {
            let held = taken.get(source).copied().unwrap_or(0);
            if held >= slots.bounds.of(*source) {
                return Err(Full::Source(*source, held));
            }
        }
        for source in sources {
            *taken.entry(*source).or_default() += 1;
        }
        drop(taken);
        Ok(Slot {
            _place: place,
            taken: slots.taken,
            sources: sources.to_vec(),
        })
    }
}

// === impl Slot ===

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for source in &self.sources {
            match taken.get_mut(source) {
                Some(held) if *held > 1 => *held -= 1,
                _ => {
                    taken.remove(source);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, uid: u32) -> [Source; 2] {
        [Source::Process(pid), Source::User(uid)]
    }

    #[tokio::test]
    async fn places_are_bounded_and_given_back() {
        let slots = Slots::new(Bounds::local(4, 2, 3));
        let (a, b) = (slots.take(&process(1, 7)).unwrap(), slots.take(&process(1, 7)).unwrap());
        assert_eq!(
            slots.take(&process(1, 7)).unwrap_err(),
            Full::Source(Source::Process(1), 2)
        );
        let c = slots.take(&process(2, 7)).unwrap();
        assert_eq!(
            slots.take(&process(3, 7)).unwrap_err(),
            Full::Source(Source::User(7), 3),
            "many processes of one user do not get around it"
        );
        let d = slots.take(&process(4, 8)).unwrap();
        assert_eq!(slots.take(&process(5, 9)).unwrap_err(), Full::Total(4));
        drop((a, b, c, d));
        slots.drained().await;
        assert!(slots.taken.lock().unwrap().is_empty());
        assert_eq!(slots.places.available_permits(), 4, "what was refused holds nothing");
    }

    #[test]
    fn a_source_is_an_address_or_a_prefix() {
        let check = |a: &str, b: &str, same: bool| {
            let source = |text: &str| Source::address(text.parse().unwrap());
            assert_eq!(source(a) == source(b), same, "{a} {b}");
        };
        check("10.0.0.1", "10.0.0.1", true);
        check("10.0.0.1", "10.0.0.2", false);
        check("10.0.0.1", "::ffff:10.0.0.1", true);
        check("2001:db8::1", "2001:db8::ffff:0:0:1", true);
        check("2001:db8::1", "2001:db8:0:1::1", false);
    }
}
