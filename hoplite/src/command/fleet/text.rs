//! How the mesh is put on a terminal: lines that fit, ages, digests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use hoplite_host::clock;

use crate::output::{self, COLUMNS_MIN};

/// How many columns there are; where nobody says it, lines are not broken.
pub(crate) fn columns() -> usize {
    output::width().map_or(usize::MAX, |columns| columns.max(COLUMNS_MIN))
}

/// `5s`, `12m`, `3h`, `40d`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long ago; nothing for a time that nobody said.
pub(crate) fn ago(unix: i64) -> String {
    if unix == 0 {
        return "-".to_owned();
    }
    let since = clock::now().duration_since(at(unix)).unwrap_or_default();
    span(since.as_secs())
}

/// How long ago a moment of JSON is.
pub(crate) fn since(rfc3339: &str) -> String {
    let at = humantime::parse_rfc3339_weak(rfc3339).ok();
    let since = at
        .and_then(|at| clock::now().duration_since(at).ok())
        .unwrap_or_default();
    span(since.as_secs())
}

/// `2027-11-28T12:00:00Z`, or null.
pub(crate) fn moment(unix: i64) -> Option<String> {
    (unix > 0).then(|| humantime::format_rfc3339_seconds(at(unix)).to_string())
}

/// As people see it, in their own time zone; `-` for none.
pub(crate) fn shown(unix: i64) -> String {
    moment(unix).map_or_else(|| "-".to_owned(), |at| output::moment::shown(&at))
}

/// As a script compares it.
pub(crate) fn hex(digest: &[u8]) -> String {
    HEXLOWER.encode(digest)
}

/// As people compare it.
pub(crate) fn short(digest: &[u8]) -> String {
    let hex = hex(digest);
    match hex.get(..12) {
        Some(short) => short.to_owned(),
        None => "-".to_owned(),
    }
}

/// `1 proxy`, `3 proxies`.
pub(crate) fn many(count: impl Into<u64>, one: &str, more: &str) -> String {
    match count.into() {
        1 => format!("1 {one}"),
        count => format!("{count} {more}"),
    }
}

fn at(unix: i64) -> SystemTime {
    // What no calendar has is shown as its last day.
    const LAST: u64 = 253_402_300_799;
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or_default().min(LAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_counts_are_short() {
        assert_eq!(
            [span(59), span(60), span(7_200), span(200_000)],
            ["59s", "1m", "2h", "2d"]
        );
        assert_eq!(many(1_u32, "proxy", "proxies"), "1 proxy");
        assert_eq!(many(0_u32, "proxy", "proxies"), "0 proxies");
    }
}
