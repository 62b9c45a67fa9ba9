//! Who connects and is not of this CA's trust: agents of a CA that was before it, mostly. Kept in memory, for `hoplite status`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// Told for so long.
const TOLD: Duration = Duration::from_secs(600);

/// Addresses that are kept; anybody may connect.
const ADDRESSES_MAX: usize = 64;

/// By address.
#[derive(Debug, Default)]
pub(crate) struct Strangers(BTreeMap<IpAddr, Stranger>);

/// What came from one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stranger {
    pub(crate) why: String,
    pub(crate) times: u64,
    pub(crate) last: SystemTime,
}

// === impl Strangers ===

impl Strangers {
    /// A connection that was refused, by either end, for a certificate.
    pub(crate) fn came(&mut self, from: IpAddr, why: String, now: SystemTime) {
        self.forget(now);
        let times = self.0.get(&from).map_or(0, |before| before.times);
        if times == 0 && self.0.len() >= ADDRESSES_MAX {
            return; // that there are so many is said already
        }
        let times = times.saturating_add(1);
        self.0.insert(from, Stranger { why, times, last: now });
    }

    /// Those of the last minutes.
    pub(crate) fn told(&mut self, now: SystemTime) -> Vec<(IpAddr, Stranger)> {
        self.forget(now);
        self.0
            .iter()
            .map(|(from, stranger)| (*from, stranger.clone()))
            .collect()
    }

    fn forget(&mut self, now: SystemTime) {
        self.0
            .retain(|_, stranger| now.duration_since(stranger.last).unwrap_or_default() <= TOLD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::UNIX_EPOCH;

    #[test]
    fn they_are_counted_by_address_forgotten_in_time_and_bounded() {
        let mut strangers = Strangers::default();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let ip = |n: u8| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
        strangers.came(ip(1), "a".to_owned(), at(1));
        strangers.came(ip(1), "b".to_owned(), at(2));
        let told = strangers.told(at(3));
        assert_eq!((told.len(), told[0].1.times, told[0].1.why.as_str()), (1, 2, "b"));
        assert!(strangers.told(at(700)).is_empty());
        for n in 0..=255 {
            strangers.came(ip(n), "a".to_owned(), at(1000));
        }
        assert_eq!(strangers.told(at(1000)).len(), ADDRESSES_MAX);
    }
}
