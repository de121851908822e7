//! Decides whether rollouts of a fleet are frozen at a time.

use jiff::civil::{Date, time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use signalbox_config::FreezeWindow;

/// The end of the window that is open at a time; of several, the one that ends last. `None`: no window is open.
///
/// The time comes from the caller: from the database, whose clock all control planes share.
pub fn frozen_until(windows: &[FreezeWindow], at: Timestamp) -> Option<Timestamp> {
    windows.iter().filter_map(|window| end_of(window, at)).max()
}

/// The end of a window that is open at `at`.
fn end_of(window: &FreezeWindow, at: Timestamp) -> Option<Timestamp> {
    let zone = TimeZone::tzif(window.zone.as_str(), window.zone.rules()).ok()?;
    let length = SignedDuration::try_from(window.length).ok()?;
    let last = zone.to_datetime(at).date();
    let first = zone.to_datetime(at.checked_sub(length).ok()?).date();
    let mut day = last;
    while day >= first {
        if let Some(begin) = last_begin(window, day, &zone, at) {
            return Some(begin.checked_add(length).ok()?).filter(|end| at < *end);
        }
        day = day.checked_sub(1.day()).ok()?;
    }
    None
}

/// The last time of a day, up to `at`, at which a window begins. A time that the clocks skip is taken as they would have gone on; of a
/// time that comes twice, the first counts.
fn last_begin(window: &FreezeWindow, day: Date, zone: &TimeZone, at: Timestamp) -> Option<Timestamp> {
    let [month, of_month, weekday] = [day.month(), day.day(), day.weekday().to_sunday_zero_offset()];
    let [month, of_month, weekday] = [month, of_month, weekday].map(|value| u8::try_from(value).unwrap_or(0));
    if !window.cron.includes_day(month, of_month, weekday) {
        return None;
    }
    window.cron.times_of_day_backwards().find_map(|(hour, minute)| {
        let begin = day.to_datetime(time(hour.cast_signed(), minute.cast_signed(), 0, 0));
        zone.to_timestamp(begin).ok().filter(|begin| *begin <= at)
    })
}
