//! The one place that looks at the clock: whoever decides by time is given `now`.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the place that the ban on other places names"
)]

use std::time::{Instant, SystemTime};

/// The time of day, for certificates, records and whatever else people read. It may be set back.
#[must_use]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// A moment to measure from: it never goes back, and means nothing outside this process.
#[must_use]
pub fn moment() -> Instant {
    Instant::now()
}
