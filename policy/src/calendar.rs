//! Instants as signed documents write them: whole seconds since 1970, up to the year 9999.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 9999-12-31T23:59:59Z, the last second RFC 3339 can write.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

/// Whole seconds since 1970; a clock before that is taken to it.
pub(crate) fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The instant, if it can be written down; the last that can, if not.
pub(crate) fn instant(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND))
}

pub(crate) fn rfc3339(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(instant(seconds)).to_string()
}
