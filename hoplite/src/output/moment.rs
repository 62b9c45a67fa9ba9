//! Moments as people write and read them: in one time zone, theirs.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
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
    #[error(
        "`{text}` never was in {zone}: the clocks went from {before} to {after} and left it out; write a time before or after that"
    )]
    LeftOut {
        text: String,
        zone: String,
        before: DateTime,
        after: DateTime,
    },
    #[error("`{text}` was twice in {zone}, as the clocks were set back; write which is meant: `{first}` or `{second}`")]
    Twice {
        text: String,
        zone: String,
        first: String,
        second: String,
    },
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
    let (moment, is_day) = civil(text, &today).ok_or_else(unknown)?;
    let moment = match zone.to_ambiguous_timestamp(moment).offset() {
        // Whether the clocks are set at midnight or not: the day begins with its first moment.
        _ if is_day => moment.to_zoned_datetime(zone.clone()).map(|moment| moment.timestamp()),
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(moment),
        AmbiguousOffset::Gap { before, after } => {
            let set = transition(zone, moment, before).ok_or_else(unknown)?;
            return Err(NoMoment::LeftOut {
                text: text.to_owned(),
                zone: name_of(zone),
                before: before.to_datetime(set),
                after: after.to_datetime(set),
            });
        }
        AmbiguousOffset::Fold { before, after } => {
            let with = |offset: Offset| {
                let moment = offset.to_timestamp(moment).map_err(|_| unknown())?;
                Ok(moment.display_with_offset(offset).to_string())
            };
            return Err(NoMoment::Twice {
                text: text.to_owned(),
                zone: name_of(zone),
                first: with(before)?,
                second: with(after)?,
            });
        }
    };
    moment
        .ok()
        .and_then(|moment| moment.try_into().ok())
        .ok_or_else(unknown)
}

/// When the clocks were set forward over this time: it is read as if they had not been, which is after that.
fn transition(zone: &TimeZone, left_out: DateTime, before: Offset) -> Option<Timestamp> {
    let after = before
        .to_timestamp(left_out)
        .ok()?
        .checked_add(Duration::from_secs(1))
        .ok()?;
    zone.preceding(after).next().map(|transition| transition.timestamp())
}

/// A day, a time of day, or both, and whether it is a day alone, which is its beginning.
fn civil(text: &str, today: &ZonedDateTime) -> Option<(DateTime, bool)> {
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
        (Some(day), None) => Some((day.to_datetime(Time::midnight()), true)),
        (Some(day), Some(time)) => Some((day.to_datetime(time_of_day(time)?), false)),
        (None, None) => Some((today.date().to_datetime(time_of_day(first)?), false)),
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
    name_of(&zone())
}

fn name_of(zone: &TimeZone) -> String {
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

    /// An hour that the clocks leave out or repeat is nobody's guess.
    #[test]
    fn an_hour_that_never_was_or_was_twice_is_refused_with_what_to_write() {
        let check = |text: &str, zone: &str, parts: &[&str]| {
            let error = parse_at(text, now(), &parse_zone(zone).unwrap()).unwrap_err();
            let said = error.to_string();
            for part in parts {
                assert!(said.contains(part), "`{part}` is missing from `{said}`");
            }
        };
        let left_out = [
            "`2026-03-29 02:30`",
            "never was in Europe/Berlin",
            "from 2026-03-29T02:00:00 to 2026-03-29T03:00:00",
        ];
        check("2026-03-29 02:30", "Europe/Berlin", &left_out);
        let twice = [
            "was twice",
            "`2026-10-25T02:30:00+02:00` or `2026-10-25T02:30:00+01:00`",
        ];
        check(
            "2026-10-25 02:30",
            "Europe/Berlin",
            &[&["Europe/Berlin"], &twice[..]].concat(),
        );
        // What is asked for is taken, and so are the moments beside, and the same hour where no clock was set.
        for (text, zone, expected) in [
            ("2026-10-25T02:30:00+02:00", "Europe/Berlin", "2026-10-25T00:30:00Z"),
            ("2026-10-25T02:30:00+01:00", "Europe/Berlin", "2026-10-25T01:30:00Z"),
            ("2026-03-29 03:00", "Europe/Berlin", "2026-03-29T01:00:00Z"),
            ("2026-03-29 01:59", "Europe/Berlin", "2026-03-29T00:59:00Z"),
            ("2026-10-25 03:00", "Europe/Berlin", "2026-10-25T02:00:00Z"),
            ("2026-03-29 02:30", "utc", "2026-03-29T02:30:00Z"),
            // A day whose midnight is left out begins at one o'clock.
            ("2018-11-04", "America/Sao_Paulo", "2018-11-04T03:00:00Z"),
        ] {
            assert_eq!(parsed(text, zone).as_deref(), Some(expected), "{text} in {zone}");
        }
        check(
            "2018-11-04 00:30",
            "America/Sao_Paulo",
            &["never was", "from 2018-11-04T00:00:00 to 2018-11-04T01:00:00"],
        );
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
