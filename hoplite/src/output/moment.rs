//! Moments as people write and read them: in one time zone, theirs.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

/// Set once, before anything is read or printed.
static ZONE: OnceLock<TimeZone> = OnceLock::new();

/// What a moment may look like, for errors and help.
pub(crate) const FORMS: &str = "a length of time ago (`10m`), a day (`2026-11-28`, `yesterday`), a time of day (`18:00`), both \
                                (`yesterday 18:00`, `2026-11-28 18:00`), or a moment with its offset (`2026-11-28T18:00:00+01:00`)";

/// Why a text is no moment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoMoment {
    #[error("`{0}` is before time began")]
    TooEarly(String),
    #[error("`{0}` is no moment; write {FORMS}")]
    Unknown(String),
}

/// Why a text is no time zone.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no time zone that this machine knows; write `utc`, `local`, or a name such as `Europe/Berlin`")]
pub(crate) struct NoZone(String);

/// Which zone moments without an offset are in, and all that is printed in tables; that of the machine for none.
pub(crate) fn set_zone(zone: Option<TimeZone>) {
    let _ = ZONE.set(zone.unwrap_or_else(TimeZone::system));
}

fn zone() -> TimeZone {
    ZONE.get_or_init(TimeZone::system).clone()
}

/// A text that is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no length of time that can be meant here; one is a number and a unit: `30s`, `90m`, `12h`, `7d`")]
pub(crate) struct NoSpan(String);

/// `utc`, `local`, or a name of the time zone database.
pub(crate) fn parse_zone(text: &str) -> Result<TimeZone, NoZone> {
    match text.to_ascii_lowercase().as_str() {
        "utc" | "z" => Ok(TimeZone::UTC),
        "local" => Ok(TimeZone::system()),
        _ => TimeZone::get(text).map_err(|_| NoZone(text.to_owned())),
    }
}

/// A length of time: `30s`, `12h`, `7d`.
pub(crate) fn span(text: &str) -> Result<Duration, NoSpan> {
    humantime::parse_duration(text).map_err(|_| NoSpan(text.to_owned()))
}

/// A length of time of at least a second, where what is shorter would be taken for none.
pub(crate) fn seconds(text: &str) -> Result<Duration, NoSpan> {
    span(text)
        .ok()
        .filter(|span| span.as_secs() > 0)
        .ok_or_else(|| NoSpan(text.to_owned()))
}

/// A moment in any of the [`FORMS`].
pub(crate) fn parse(text: &str) -> Result<SystemTime, NoMoment> {
    parse_at(text, clock::now(), &zone())
}

fn parse_at(text: &str, now: SystemTime, zone: &TimeZone) -> Result<SystemTime, NoMoment> {
    let text = text.trim();
    if let Ok(ago) = humantime::parse_duration(text) {
        return now.checked_sub(ago).ok_or_else(|| NoMoment::TooEarly(text.to_owned()));
    }
    if text == "now" {
        return Ok(now);
    }
    let unknown = || NoMoment::Unknown(text.to_owned());
    // Whoever names an offset means it, whatever the zone of the machine.
    if let Ok(moment) = text.parse::<Timestamp>() {
        return SystemTime::try_from(moment).map_err(|_| unknown());
    }
    let today = Timestamp::try_from(now)
        .map_err(|_| unknown())?
        .to_zoned_datetime(zone.clone());
    civil(text, &today)
        .and_then(|moment| moment.to_zoned_datetime(zone.clone()).ok())
        .and_then(|moment| moment.timestamp().try_into().ok())
        .ok_or_else(unknown)
}

/// A day, a time of day, or both. A day alone is its beginning.
fn civil(text: &str, today: &ZonedDateTime) -> Option<DateTime> {
    let (first, rest) = match text.split_once([' ', 'T']) {
        Some((first, rest)) => (first, Some(rest.trim())),
        None => (text, None),
    };
    let day = match first {
        "today" => Some(today.date()),
        "yesterday" => today.date().yesterday().ok(),
        _ => first.parse::<Date>().ok(),
    };
    match (day, rest) {
        (Some(day), None) => Some(day.to_datetime(Time::midnight())),
        (Some(day), Some(time)) => Some(day.to_datetime(time_of_day(time)?)),
        (None, None) => Some(today.date().to_datetime(time_of_day(first)?)),
        (None, Some(_)) => None,
    }
}

/// With a colon: a bare number could be anything.
fn time_of_day(text: &str) -> Option<Time> {
    text.contains(':').then(|| text.parse().ok()).flatten()
}

/// A moment of a JSON document (RFC 3339) as tables show it: `2026-11-28 18:00:05`, in the zone that [`zone_name`] names.
pub(crate) fn shown(rfc3339: &str) -> String {
    shown_in(rfc3339, zone())
}

fn shown_in(rfc3339: &str, zone: TimeZone) -> String {
    let Ok(moment) = rfc3339.parse::<Timestamp>() else {
        return rfc3339.to_owned();
    };
    let moment = moment.to_zoned_datetime(zone);
    let form = if rfc3339.contains('.') {
        "%Y-%m-%d %H:%M:%S%.3f"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    moment.strftime(form).to_string()
}

/// For headings: `UTC`, `Europe/Berlin`.
pub(crate) fn zone_name() -> String {
    let zone = zone();
    match zone.iana_name() {
        Some("Etc/UTC" | "Etc/Unknown") | None if zone.to_offset(Timestamp::UNIX_EPOCH).is_zero() => "UTC".to_owned(),
        Some(name) => name.to_owned(),
        None => Timestamp::try_from(clock::now()).map_or_else(|_| String::new(), |now| zone.to_offset(now).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-28 12:00:00 UTC, which is 13:00 in Berlin.
    fn now() -> SystemTime {
        "2026-11-28T12:00:00Z".parse::<Timestamp>().unwrap().try_into().unwrap()
    }

    fn parsed(text: &str, zone: &str) -> Option<String> {
        let moment = parse_at(text, now(), &parse_zone(zone).unwrap()).ok()?;
        Some(Timestamp::try_from(moment).unwrap().to_string())
    }

    #[test]
    fn moments_are_read_in_the_zone_of_who_asks() {
        for (text, zone, expected) in [
            ("10m", "utc", "2026-11-28T11:50:00Z"),
            ("now", "utc", "2026-11-28T12:00:00Z"),
            ("2026-11-28", "utc", "2026-11-28T00:00:00Z"),
            ("2026-11-28", "Europe/Berlin", "2026-11-27T23:00:00Z"),
            ("today", "Europe/Berlin", "2026-11-27T23:00:00Z"),
            ("yesterday", "utc", "2026-11-27T00:00:00Z"),
            ("yesterday 18:00", "Europe/Berlin", "2026-11-27T17:00:00Z"),
            ("18:00", "utc", "2026-11-28T18:00:00Z"),
            ("2026-11-28 18:00", "utc", "2026-11-28T18:00:00Z"),
            ("2026-11-28T18:00:05.25", "utc", "2026-11-28T18:00:05.25Z"),
            ("2026-07-01 18:00", "Europe/Berlin", "2026-07-01T16:00:00Z"),
            ("2026-11-28T18:00:00+01:00", "utc", "2026-11-28T17:00:00Z"),
            ("2026-11-28 18:00+01:00", "utc", "2026-11-28T17:00:00Z"),
            ("2026-11-28T12:00:00Z", "Europe/Berlin", "2026-11-28T12:00:00Z"),
        ] {
            assert_eq!(parsed(text, zone).as_deref(), Some(expected), "{text} in {zone}");
        }
    }

    #[test]
    fn a_length_of_time_is_said_with_its_unit() {
        assert_eq!(span("90m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(span("0s"), Ok(Duration::ZERO));
        assert_eq!(seconds("1s"), Ok(Duration::from_secs(1)));
        for text in ["tomorrow", "5", "", "-1s"] {
            let said = span(text).unwrap_err().to_string();
            assert!(said.contains(&format!("`{text}`")) && said.contains("`12h`"), "{said}");
        }
        // What would be rounded to none is not taken for the default.
        for text in ["0s", "500ms", "1ns"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_named_with_what_is() {
        for text in [
            "",
            "28.11.2026",
            "tomorrow",
            "2026-13-01",
            "18",
            "yesterday 25:00",
            "noon",
            "2026-11-28 yesterday",
        ] {
            let error = parse_at(text, now(), &TimeZone::UTC).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`{text}`")) && error.contains("yesterday 18:00"),
                "{error}"
            );
        }
        assert!(parse_zone("Europe/Berlim").is_err());
    }

    #[test]
    fn moments_are_shown_in_the_zone_of_who_asks() {
        let berlin = parse_zone("Europe/Berlin").unwrap();
        assert_eq!(shown_in("2026-11-28T12:00:00Z", berlin.clone()), "2026-11-28 13:00:00");
        assert_eq!(shown_in("2026-07-28T12:00:00.114Z", berlin), "2026-07-28 14:00:00.114");
        assert_eq!(shown_in("never", TimeZone::UTC), "never");
    }
}
