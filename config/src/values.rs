use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, written as `"800ms"`, `"1.5s"`, `"2m"`, `"1h"` or `"1d"`; up to 365 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

const MAX_DURATION: Duration = Duration::from_secs(365 * 86_400);

/// Suffix and microseconds, longest unit first.
const UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("{s:?} is not a duration; write \"800ms\", \"30s\", \"5m\" or \"1h\"");
        let split = s.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let (number, suffix) = s.split_at(split);
        let unit = UNITS.iter().find(|(name, _)| *name == suffix).ok_or_else(wrong)?.1;
        if number.starts_with('.') || number.ends_with('.') {
            return Err(wrong());
        }
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let micros = number * unit as f64;
        if micros > MAX_DURATION.as_micros() as f64 {
            return Err(format!("{s:?} is longer than 365d"));
        }
        let rounded = micros.round();
        // Nothing may become zero that was not written so, for zero often means "no limit".
        if rounded == 0.0 && number != 0.0 {
            return Err(format!("{s:?} is shorter than 1us"));
        }
        Ok(Self(Duration::from_micros(rounded as u64)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros() as u64;
        if micros == 0 {
            return f.write_str("0s");
        }
        let (suffix, unit) =
            UNITS.iter().find(|(_, unit)| micros.is_multiple_of(*unit)).copied().unwrap_or(("us", 1));
        write!(f, "{}{suffix}", micros / unit)
    }
}

/// A number of bytes, written as a number or as `"64KiB"`, `"1MiB"`, `"10MB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("{s:?} is not a size; write a number of bytes, \"64KiB\" or \"1MiB\"");
        let split = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, suffix) = s.split_at(split);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = match suffix {
            "" => 1,
            _ => SIZES.iter().find(|(name, _)| *name == suffix).ok_or_else(wrong)?.1,
        };
        number.checked_mul(unit).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SIZES.iter().take(3).find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        match binary {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;

        impl de::Visitor<'_> for Visit {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text like \"64KiB\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("must be at least 0"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visit)
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "duration-text",
            "description": "A length of time: \"800ms\", \"30s\", \"5m\", \"1h\"",
            "pattern": r"^[0-9]+(\.[0-9]+)?(us|ms|s|m|h|d)$",
            "examples": ["800ms", "30s", "5m"],
        })
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "format": "byte-size",
            "minimum": 0,
            "description": "A number of bytes, or a text like \"64KiB\"",
            "pattern": r"^[0-9]+(B|KiB|MiB|GiB|KB|MB|GB)?$",
            "examples": ["64KiB", "1MiB"],
        })
    }
}

/// A share from 0 to 1 in millionths, so that it can be compared and hashed; `None`: it is not one.
pub(crate) fn millionths(share: f64) -> Option<u32> {
    (0.0..=1.0).contains(&share).then(|| (share * 1e6).round() as u32)
}

/// The default of `enabled` fields.
pub(crate) fn enabled() -> bool {
    true
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for (text, micros, back) in [
            ("800ms", 800_000, "800ms"),
            ("1.5s", 1_500_000, "1500ms"),
            ("60s", 60_000_000, "1m"),
            ("0s", 0, "0s"),
            ("24h", 86_400_000_000, "1d"),
        ] {
            let parsed: HumanDuration = text.parse().unwrap();
            assert_eq!(parsed.0.as_micros(), micros, "{text}");
            assert_eq!(parsed.to_string(), back);
        }
        for bad in ["", "5", "s", "-1s", "5 s", "1w", "1..2s", "400d", ".5s", "5.s", "0.1us", "1e3s", "infs"]
        {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_round_trip() {
        for (text, bytes, back) in
            [("64KiB", 65_536, "64KiB"), ("10MB", 10_000_000, "10000000B"), ("7", 7, "7B")]
        {
            let parsed: ByteSize = text.parse().unwrap();
            assert_eq!(parsed.0, bytes);
            assert_eq!(parsed.to_string(), back);
        }
        for bad in ["", "KiB", "1kib", "-1", "99999999999999999999", "18446744073709551615KiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }
}
