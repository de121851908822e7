//! Times that repeat, in the five fields of cron.

use std::str::FromStr;

/// The minutes at which something begins, as five fields have it: minute, hour, day of the month, month, day of the week.
///
/// A field is `*` or a list of numbers, names, ranges and steps: `0,30`, `9-17`, `*/15`, `mon-fri`. As in Vixie cron, a day counts when
/// its day of the month or its day of the week is named, if both fields name days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cron {
    /// One bit per value.
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// 0: Sunday.
    weekdays: u64,
    any_day: bool,
    any_weekday: bool,
}

impl Cron {
    /// True if something begins on a day: the month from 1, the day of the month from 1, and the day of the week from 0, Sunday.
    pub fn includes_day(&self, month: u8, day: u8, weekday: u8) -> bool {
        let (in_days, in_weekdays) = (has(self.days, day), has(self.weekdays, weekday));
        let named = match (self.any_day, self.any_weekday) {
            (false, false) => in_days || in_weekdays,
            _ => in_days && in_weekdays,
        };
        has(self.months, month) && named
    }

    /// The hours and minutes at which something begins, on each day that counts; the last one first.
    pub fn times_of_day_backwards(&self) -> impl Iterator<Item = (u8, u8)> {
        let hours = (0..24).rev().filter(|hour| has(self.hours, *hour));
        hours.flat_map(|hour| {
            (0..60).rev().filter(|minute| has(self.minutes, *minute)).map(move |minute| (hour, minute))
        })
    }

    /// True if some day of some year counts: there is no 31 February.
    fn ever_begins(&self) -> bool {
        const LONGEST: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let by_day = (1..)
            .zip(LONGEST)
            .any(|(month, longest)| has(self.months, month) && (1..=longest).any(|day| has(self.days, day)));
        by_day || (!self.any_day && !self.any_weekday)
    }
}

impl FromStr for Cron {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!(
                "{text:?} has {} fields; it needs five: minute, hour, day of the month, month, day of the week",
                fields.len()
            ));
        };
        // Sunday is 0 and 7.
        let weekdays = WEEKDAY.parse(weekday)?;
        let cron = Self {
            minutes: MINUTE.parse(minute)?,
            hours: HOUR.parse(hour)?,
            days: DAY.parse(day)?,
            months: MONTH.parse(month)?,
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            any_day: day.starts_with('*'),
            any_weekday: weekday.starts_with('*'),
        };
        if cron.ever_begins() { Ok(cron) } else { Err(format!("{text:?} names a day that never comes")) }
    }
}

/// One of the fields.
struct Field {
    name: &'static str,
    lowest: u8,
    highest: u8,
    /// Names of values, from `lowest` on.
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", lowest: 0, highest: 59, names: &[] };
const HOUR: Field = Field { name: "hour", lowest: 0, highest: 23, names: &[] };
const DAY: Field = Field { name: "day of the month", lowest: 1, highest: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    lowest: 1,
    highest: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: Field = Field {
    name: "day of the week",
    lowest: 0,
    highest: 7,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

impl Field {
    fn parse(&self, text: &str) -> Result<u64, String> {
        text.split(',').try_fold(0, |set, part| Ok(set | self.parse_part(part)?))
    }

    fn parse_part(&self, part: &str) -> Result<u64, String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (self.value(first)?, self.value(last)?),
            None if range == "*" => (self.lowest, self.highest),
            None if step.is_some() => (self.value(range)?, self.highest),
            None => (self.value(range)?, self.value(range)?),
        };
        if first > last {
            return Err(format!("the {} {part:?} ends before it begins", self.name));
        }
        let step = match step {
            None => 1,
            Some(step) => step
                .parse()
                .ok()
                .filter(|step| (1..=self.highest).contains(step))
                .ok_or_else(|| format!("the {} has the step {step:?}", self.name))?,
        };
        Ok((first..=last).step_by(step.into()).fold(0, |set, value| set | 1 << value))
    }

    fn value(&self, text: &str) -> Result<u8, String> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let number = match named {
            Some(index) => u8::try_from(index).ok().map(|index| self.lowest + index),
            None => text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit())),
        };
        number.filter(|number| (self.lowest..=self.highest).contains(number)).ok_or_else(|| {
            format!("the {} {text:?} is not a number from {} to {}", self.name, self.lowest, self.highest)
        })
    }
}

fn has(set: u64, value: u8) -> bool {
    value < 64 && set & 1 << value != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(text: &str) -> Cron {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn times_of_a_day_come_from_lists_ranges_and_steps() {
        let times = |text: &str| cron(text).times_of_day_backwards().collect::<Vec<_>>();
        assert_eq!(times("0 18 * * 5"), [(18, 0)]);
        assert_eq!(times("*/30 9-10 * * *"), [(10, 30), (10, 0), (9, 30), (9, 0)]);
        assert_eq!(times("5,50/5 0 * * *"), [(0, 55), (0, 50), (0, 5)]);
        assert_eq!(times("* * * * *").len(), 1440);
    }

    #[test]
    fn days_are_those_of_the_month_or_of_the_week() {
        // 5: Friday.
        let friday = cron("0 18 * * 5");
        assert!(friday.includes_day(2, 7, 5) && !friday.includes_day(2, 7, 4));
        let sunday = cron("0 0 * * 7");
        assert_eq!(sunday, cron("0 0 * * sun"));
        assert!(sunday.includes_day(1, 1, 0));
        let both = cron("0 0 13 * fri");
        assert!(both.includes_day(1, 13, 2) && both.includes_day(1, 2, 5) && !both.includes_day(1, 2, 2));
        let workdays = cron("0 0 * dec Mon-Fri");
        assert!(workdays.includes_day(12, 1, 1) && !workdays.includes_day(12, 1, 6));
        assert!(!workdays.includes_day(11, 1, 1));
        let stepped = cron("0 0 */10 * *");
        assert!(stepped.includes_day(1, 11, 3) && !stepped.includes_day(1, 10, 3));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wanted) in [
            ("", "\"\" has 0 fields"),
            ("0 0 * *", "has 4 fields; it needs five"),
            ("@daily", "has 1 fields"),
            ("60 0 * * *", "the minute \"60\" is not a number from 0 to 59"),
            ("0 24 * * *", "the hour \"24\""),
            ("0 0 0 * *", "the day of the month \"0\""),
            ("0 0 * 13 *", "the month \"13\""),
            ("0 0 * * 8", "the day of the week \"8\""),
            ("0 0 * * xyz", "the day of the week \"xyz\""),
            ("5-1 0 * * *", "the minute \"5-1\" ends before it begins"),
            ("*/0 0 * * *", "the minute has the step \"0\""),
            ("*/99 0 * * *", "the minute has the step \"99\""),
            ("1,,2 0 * * *", "the minute \"\""),
            ("+1 0 * * *", "the minute \"+1\""),
            ("0 0 31 2 *", "names a day that never comes"),
            ("0 0 30,31 feb *", "names a day that never comes"),
        ] {
            let error = text.parse::<Cron>().expect_err(text);
            assert!(error.contains(wanted), "{text}: {error}");
        }
        cron("0 0 29 2 *");
    }
}
