//! Times as text, without a division for each.

use std::time::Duration;

use signalbox_config::TimePart;

use super::digits::push_digits;

/// The text of the last millisecond.
#[derive(Debug)]
pub(super) struct Clock {
    millis: u64,
    text: [u8; 24],
}

impl Default for Clock {
    fn default() -> Self {
        Self { millis: u64::MAX, text: *b"1970-01-01T00:00:00.000Z" }
    }
}

impl Clock {
    /// Formats a time by RFC 3339, to the millisecond.
    pub(super) fn text(&mut self, time: Duration) -> &[u8; 24] {
        let millis = time.as_millis() as u64;
        if millis != self.millis {
            if millis / 1000 != self.millis / 1000 {
                let (year, month, day) = civil(millis / 86_400_000);
                let second = millis / 1000 % 86_400;
                digits(&mut self.text, 0, 4, year);
                digits(&mut self.text, 5, 2, month);
                digits(&mut self.text, 8, 2, day);
                digits(&mut self.text, 11, 2, second / 3600);
                digits(&mut self.text, 14, 2, second / 60 % 60);
                digits(&mut self.text, 17, 2, second % 60);
            }
            digits(&mut self.text, 20, 3, millis % 1000);
            self.millis = millis;
        }
        &self.text
    }
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn digits(text: &mut [u8; 24], at: usize, len: usize, mut value: u64) {
    for place in text.iter_mut().skip(at).take(len).rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

pub(super) const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Writes a time since 1970 in the format of a template.
pub(super) fn write_time(out: &mut Vec<u8>, parts: &[TimePart], time: Duration) {
    let seconds = time.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let second = seconds % 86_400;
    for part in parts {
        match part {
            TimePart::Text(text) => out.extend_from_slice(text.as_bytes()),
            TimePart::Year => padded(out, 4, year),
            TimePart::Month => padded(out, 2, month),
            TimePart::MonthName => out.extend_from_slice(month_name(month).as_bytes()),
            TimePart::Day => padded(out, 2, day),
            TimePart::Hour => padded(out, 2, second / 3600),
            TimePart::Minute => padded(out, 2, second / 60 % 60),
            TimePart::Second => padded(out, 2, second % 60),
            TimePart::Fraction(digits) => {
                let length = usize::from(*digits).min(9);
                let divisor = 10_u32.pow(9 - length as u32);
                padded(out, length, (time.subsec_nanos() / divisor).into());
            }
            TimePart::Epoch => push_digits(out, seconds),
        }
    }
}

/// Writes a time since 1970 as `Jan  2 03:04:05` (RFC 3164, section 4.1.2), in UTC.
pub(super) fn write_short_time(out: &mut Vec<u8>, time: Duration) {
    let (_, month, day) = civil(time.as_secs() / 86_400);
    let second = time.as_secs() % 86_400;
    out.extend_from_slice(month_name(month).as_bytes());
    out.extend_from_slice(if day < 10 { b"  " } else { b" " });
    push_digits(out, day);
    for (separator, value) in [(b' ', second / 3600), (b':', second / 60 % 60), (b':', second % 60)] {
        out.push(separator);
        padded(out, 2, value);
    }
}

fn month_name(month: u64) -> &'static str {
    MONTHS.get((month as usize).wrapping_sub(1)).copied().unwrap_or_default()
}

fn padded(out: &mut Vec<u8>, length: usize, mut value: u64) {
    let begin = out.len();
    out.resize(begin + length, b'0');
    for place in out.iter_mut().skip(begin).rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_agree_with_a_calendar() {
        let mut clock = Clock::default();
        for millis in [0, 951_782_399_999, 951_782_400_000, 1_709_164_800_001, 4_102_444_799_999] {
            let expected = jiff::Timestamp::from_millisecond(millis).unwrap();
            let time = Duration::from_millis(millis as u64);
            let text = std::str::from_utf8(clock.text(time)).unwrap();
            assert_eq!(text.parse::<jiff::Timestamp>().unwrap(), expected, "{text}");
            let parts = [
                TimePart::Year,
                TimePart::Text("-".into()),
                TimePart::Month,
                TimePart::Text("-".into()),
                TimePart::Day,
                TimePart::Text("T".into()),
                TimePart::Hour,
                TimePart::Text(":".into()),
                TimePart::Minute,
                TimePart::Text(":".into()),
                TimePart::Second,
                TimePart::Text(".".into()),
                TimePart::Fraction(3),
                TimePart::Text("Z".into()),
            ];
            let mut out = Vec::new();
            write_time(&mut out, &parts, time);
            assert_eq!(std::str::from_utf8(&out).unwrap(), text);
        }
        let mut out = Vec::new();
        let parts = [TimePart::MonthName, TimePart::Epoch, TimePart::Text(".".into()), TimePart::Fraction(9)];
        write_time(&mut out, &parts, Duration::new(951_782_400, 42));
        assert_eq!(out, b"Feb951782400.000000042");
    }
    #[test]
    fn short_times_are_those_of_syslog() {
        for (time, expected) in [
            ("2026-01-02T03:04:05Z", "Jan  2 03:04:05"),
            ("2024-02-29T23:59:59Z", "Feb 29 23:59:59"),
            ("2025-12-10T00:00:00Z", "Dec 10 00:00:00"),
        ] {
            let time: jiff::Timestamp = time.parse().unwrap();
            let mut out = Vec::new();
            write_short_time(&mut out, Duration::from_secs(time.as_second() as u64));
            assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
        }
    }
}
