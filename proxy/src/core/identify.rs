//! Identifiers of requests: `X-Request-Id` and `traceparent`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

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

/// The value of a `traceparent` header.
pub type Traceparent = [u8; 55];

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

    /// A `traceparent` (W3C Trace Context) that starts a trace. It has the "sampled" flag, because upstreams should
    /// decide by their own rules.
    #[inline]
    pub fn traceparent(&mut self) -> Traceparent {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        // An identifier of zeros is not valid.
        text[3..35].copy_from_slice(&hex(self.random.u64(1..), self.random.u64(..)));
        text[36..52].copy_from_slice(&hex(self.random.u64(1..), 0)[..16]);
        text
    }
}

/// True if it is a `traceparent` to pass on: of version 00, or of a later one that begins in the same way.
pub fn is_traceparent(value: &[u8]) -> bool {
    let Some((head, rest)) = value.split_at_checked(55) else { return false };
    let digits = |range: std::ops::Range<usize>| {
        head.get(range).is_some_and(|part| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    };
    let zero =
        |range: std::ops::Range<usize>| head.get(range).is_some_and(|part| part.iter().all(|b| *b == b'0'));
    let dashes = [2, 35, 52].iter().all(|at| head.get(*at) == Some(&b'-'));
    let shape = dashes && digits(0..2) && digits(3..35) && digits(36..52) && digits(53..55);
    let version = head.get(..2).unwrap_or_default();
    let end = if version == b"00" { rest.is_empty() } else { rest.first().is_none_or(|b| *b == b'-') };
    shape && end && version != b"ff" && !zero(3..35) && !zero(36..52)
}

#[inline]
fn hex(high: u64, low: u64) -> [u8; 32] {
    let mut digits = [0; 32];
    let parts = [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32];
    for (eight, part) in digits.chunks_exact_mut(8).zip(parts) {
        eight.copy_from_slice(&eight_digits(part));
    }
    digits
}

/// The eight hexadecimal digits of a number, computed in parallel.
#[inline]
fn eight_digits(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // One digit per byte.
    let mut digits = u64::from(number);
    digits = (digits << 16 | digits) & 0x0000_ffff_0000_ffff;
    digits = (digits << 8 | digits) & 0x00ff_00ff_00ff_00ff;
    digits = (digits << 4 | digits) & 0x0f0f_0f0f_0f0f_0f0f;
    // One in each byte above 9; letters are 39 places after the colon that follows 9.
    let letters = (digits + 6 * ONES) >> 4 & ONES;
    (digits + u64::from(b'0') * ONES + 39 * letters).to_be_bytes()
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_number() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..10_000 {
            let (high, low) = (random.u64(..), random.u64(..));
            assert_eq!(hex(high, low), format!("{high:016x}{low:016x}").as_bytes());
        }
    }

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
    fn what_is_made_is_a_traceparent() {
        let mut identifier = Identifier::default();
        assert!((0..100).all(|_| is_traceparent(&identifier.traceparent())));
    }

    #[test]
    fn traceparents_are_told_from_other_text() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good.as_bytes()));
        assert!(is_traceparent(good.replacen("00", "01", 1).as_bytes()));
        assert!(is_traceparent(format!("{}-more", good.replacen("00", "cc", 1)).as_bytes()));
        for bad in [
            "",
            &good[..54],
            &format!("{good}-more"),
            &good.replacen("00", "ff", 1),
            &good.to_uppercase(),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            &good.replace("00f067aa0ba902b7", "0000000000000000"),
            &good.replace('-', "_"),
            &format!("{}.more", good.replacen("00", "cc", 1)),
        ] {
            assert!(!is_traceparent(bad.as_bytes()), "{bad}");
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
