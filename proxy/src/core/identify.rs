//! Identifiers of requests, traces and spans, and the time of day.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

use signalbox_plugin::hex::hex;
use signalbox_plugin::trace_context::{SpanId, TraceId};

/// Creates identifiers, and computes the time of day without a system call each time.
pub struct Identifier {
    random: fastrand::Rng,
    /// One moment on both clocks.
    known: (Instant, Duration),
    /// The `Date` value of this second since 1970.
    date: (u64, HeaderValue),
}

/// A UUID as text.
pub type RequestId = [u8; 36];

impl Default for Identifier {
    fn default() -> Self {
        Self {
            random: fastrand::Rng::new(),
            known: (Instant::now(), since_epoch()),
            date: (0, HeaderValue::from_static("")),
        }
    }
}

impl Identifier {
    /// The time of day at `now`, since 1970.
    #[inline]
    pub fn time_of_day(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.known.0);
        if passed > Duration::from_secs(1) {
            // The clock may have been set meanwhile.
            self.known = (now, since_epoch());
            return self.known.1;
        }
        self.known.1 + passed
    }

    /// The `Date` value at `now` (RFC 9110, section 6.6.1).
    #[inline]
    pub fn date(&mut self, now: Instant) -> HeaderValue {
        let second = self.time_of_day(now).as_secs();
        if second != self.date.0 {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            // All of its characters are valid in a header value.
            self.date = (second, HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("")));
        }
        self.date.1.clone()
    }

    /// A UUID of version 7 (RFC 9562): 48 bits of milliseconds, the rest random. That is enough to tell requests
    /// apart, but not to protect a secret.
    #[inline]
    pub fn request_id(&mut self, now: Instant) -> RequestId {
        let millis = self.time_of_day(now).as_millis() as u64;
        let high = millis << 16 | 0x7000 | self.random.u64(..) & 0x0fff;
        let low = 1 << 63 | self.random.u64(..) >> 2;
        let digits = hex(high, low);
        let mut text = [b'-'; 36];
        for (to, from) in [(0..8, 0..8), (9..13, 8..12), (14..18, 12..16), (19..23, 16..20), (24..36, 20..32)]
        {
            text[to].copy_from_slice(&digits[from]);
        }
        text
    }

    /// The id of a new trace. Its last 56 bits are random, and it is never all zeros.
    #[inline]
    pub fn trace_id(&mut self) -> TraceId {
        let (high, low) = (self.random.u64(1..), self.random.u64(..));
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }

    /// The id of a new span. It is never all zeros.
    #[inline]
    pub fn span_id(&mut self) -> SpanId {
        self.random.u64(1..).to_be_bytes()
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_version_7_uuids_that_grow_with_time() {
        let mut identifier = Identifier::default();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let id = identifier.request_id(Instant::now());
            let uuid: uuid::Uuid = std::str::from_utf8(&id).unwrap().parse().unwrap();
            assert_eq!(uuid.get_version_num(), 7);
            assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
            let (seconds, _) = uuid.get_timestamp().unwrap().to_unix();
            assert!(since_epoch().as_secs().abs_diff(seconds) <= 1);
            assert!(seen.insert(uuid));
        }
    }

    #[test]
    fn the_time_of_day_follows_the_clock() {
        let mut identifier = Identifier::default();
        let computed = identifier.time_of_day(Instant::now());
        assert!(since_epoch().abs_diff(computed) < Duration::from_secs(1));
        let later = identifier.time_of_day(Instant::now() + Duration::from_millis(500));
        assert!(later > computed);
    }
}
