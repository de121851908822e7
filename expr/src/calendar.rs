//! Timestamps and durations: how they are written, and the parts of a timestamp.

/// A part of a timestamp or of a duration, as CEL numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Year,
    /// From 0.
    Month,
    /// From 1.
    Date,
    /// From 0.
    DayOfMonth,
    /// From 0, Sunday.
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
}

const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

impl Part {
    /// The part that a method of CEL returns.
    pub(crate) fn of_method(name: &str) -> Option<Self> {
        Some(match name {
            "getFullYear" => Self::Year,
            "getMonth" => Self::Month,
            "getDate" => Self::Date,
            "getDayOfMonth" => Self::DayOfMonth,
            "getDayOfWeek" => Self::DayOfWeek,
            "getHours" => Self::Hours,
            "getMinutes" => Self::Minutes,
            "getSeconds" => Self::Seconds,
            _ => return None,
        })
    }

    /// The part of a timestamp in nanoseconds since 1970, `offset` seconds east of UTC.
    pub(crate) fn of(self, timestamp: i64, offset: i64) -> i64 {
        let seconds = timestamp.div_euclid(NANOS) + offset;
        let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        match self {
            Self::Hours => second / 3600,
            Self::Minutes => second / 60 % 60,
            Self::Seconds => second % 60,
            // 1 January 1970 was a Thursday.
            Self::DayOfWeek => (days + 4).rem_euclid(7),
            Self::Year => date_of(days).0,
            Self::Month => date_of(days).1 - 1,
            Self::Date => date_of(days).2,
            Self::DayOfMonth => date_of(days).2 - 1,
        }
    }
}

/// The days of 400 years, after which the calendar repeats.
const ERA: i64 = 146_097;

/// From 1 March 0000, where years of this reckoning begin, to 1 January 1970.
const MARCH_TO_1970: i64 = 719_468;

/// Year, month and day of a day since 1970. Years are taken to begin in March, so that the leap day is their last.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + MARCH_TO_1970;
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, date)
}

/// The day since 1970 of a date.
fn day_of(year: i64, month: i64, date: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + date - 1;
    era * ERA + year * 365 + year / 4 - year / 100 + day_of_year - MARCH_TO_1970
}

/// Reads `2026-01-31T12:00:00.5+02:00` (RFC 3339): nanoseconds since 1970. `None`: it is none, or out of range.
pub(crate) fn timestamp(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't'])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let zone_at = time.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = time.split_at_checked(zone_at)?;
    let offset = if zone.eq_ignore_ascii_case("z") { 0 } else { offset(zone)? };
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hours, minutes, seconds] = numbers(time, ':', [2, 2, 2])?;
    let days = day_of(year, month, day);
    let is_real = date_of(days) == (year, month, day) && hours < 24 && minutes < 60 && seconds < 60;
    let seconds = days * DAY + hours * 3600 + minutes * 60 + seconds - offset;
    let nanos = fraction_of(fraction, NANOS)?;
    seconds.checked_mul(NANOS)?.checked_add(nanos).filter(|_| is_real)
}

/// Reads an offset from UTC: `UTC`, or `+02:00`, or `02:00`; in seconds.
pub(crate) fn offset(text: &str) -> Option<i64> {
    if matches!(text, "UTC" | "Z") {
        return Some(0);
    }
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let [hours, minutes] = numbers(text, ':', [2, 2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Reads `1h30m`, `-1.5s`, `100ms`: nanoseconds.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0_i64;
    let mut is_empty = true;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at_checked(end)?;
        let (unit, skip) = match behind {
            _ if behind.starts_with("ns") => (1, 2),
            _ if behind.starts_with("us") => (1000, 2),
            _ if behind.starts_with("ms") => (1_000_000, 2),
            _ if behind.starts_with('s') => (NANOS, 1),
            _ if behind.starts_with('m') => (60 * NANOS, 1),
            _ if behind.starts_with('h') => (3600 * NANOS, 1),
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let whole: i64 = whole.parse().ok()?;
        total = total.checked_add(whole.checked_mul(unit)?.checked_add(fraction_of(fraction, unit)?)?)?;
        rest = behind.get(skip..)?;
        is_empty = false;
    }
    (!is_empty).then_some(sign * total)
}

/// The digits behind a point, as a part of `unit`. Digits beyond the ninth are left out.
fn fraction_of(digits: &str, unit: i64) -> Option<i64> {
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let digits = digits.get(..9).unwrap_or(digits);
    let scale = 10_i128.pow(digits.len() as u32);
    let value: i64 = digits.parse().ok()?;
    i64::try_from(i128::from(value) * i128::from(unit) / scale).ok()
}

/// Numbers of exactly these lengths with `separator` between them.
fn numbers<const N: usize>(text: &str, separator: char, lengths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next()?;
        let is_number = part.len() == length && part.bytes().all(|digit| digit.is_ascii_digit());
        *number = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use jiff::tz::{Offset, TimeZone};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, nanos) in [
            ("0", Some(0)),
            ("1s", Some(NANOS)),
            ("1.5s", Some(1_500_000_000)),
            ("1h30m", Some(5400 * NANOS)),
            ("-2ms", Some(-2_000_000)),
            ("3us4ns", Some(3004)),
            ("0.1h", Some(360 * NANOS)),
            ("", None),
            ("-", None),
            ("1", None),
            ("1d", None),
            ("s", None),
            (".s", None),
            ("1.2.3s", None),
            ("9999999999h", None),
        ] {
            assert_eq!(duration(text), nanos, "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_timestamps_are_refused() {
        for text in [
            "",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-1-01T00:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+2:00",
            "9999-01-01T00:00:00Z",
        ] {
            assert_eq!(timestamp(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn timestamps_and_their_parts_are_those_of_a_calendar(
            seconds in -9_000_000_000_i64..9_000_000_000,
            nanos in 0_i64..NANOS,
            minutes in -1439_i32..1440,
        ) {
            let nanos = seconds * NANOS + nanos;
            let timestamp_of_it = jiff::Timestamp::from_nanosecond(i128::from(nanos)).unwrap();
            prop_assert_eq!(timestamp(&timestamp_of_it.to_string()), Some(nanos));
            let zone = TimeZone::fixed(Offset::from_seconds(minutes * 60).unwrap());
            let zoned = timestamp_of_it.to_zoned_datetime(zone);
            let sign = if minutes < 0 { '-' } else { '+' };
            let text = format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60);
            let offset = offset(&text).unwrap();
            for (part, expected) in [
                (Part::Year, i64::from(zoned.year())),
                (Part::Month, i64::from(zoned.month()) - 1),
                (Part::Date, i64::from(zoned.day())),
                (Part::DayOfMonth, i64::from(zoned.day()) - 1),
                (Part::DayOfWeek, i64::from(zoned.weekday().to_sunday_zero_offset())),
                (Part::Hours, i64::from(zoned.hour())),
                (Part::Minutes, i64::from(zoned.minute())),
                (Part::Seconds, i64::from(zoned.second())),
            ] {
                prop_assert_eq!(part.of(nanos, offset), expected, "{:?} of {}", part, zoned);
            }
            let in_zone = zoned.strftime("%Y-%m-%dT%H:%M:%S%.9f%:z").to_string();
            prop_assert_eq!(timestamp(&in_zone), Some(nanos), "{}", in_zone);
        }

        #[test]
        fn no_text_makes_a_reader_panic(text in ".{0,40}") {
            timestamp(&text);
            duration(&text);
            offset(&text);
        }
    }
}
