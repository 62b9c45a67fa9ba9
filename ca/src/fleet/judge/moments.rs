//! Times as reports have them, and as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn unix(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Whatever a node says, this can be shown: times beyond the year 9999 cannot.
pub(super) fn moment(unix: i64) -> String {
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(unix).unwrap_or_default().min(LAST);
    rfc3339(UNIX_EPOCH + Duration::from_secs(seconds))
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
