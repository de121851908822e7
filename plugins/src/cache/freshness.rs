//! How long a response may be used (RFC 9111, section 4.2; RFC 5861).

use std::time::{Duration, SystemTime};

use http::header::{AGE, DATE, ETAG, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::directives::{LONGEST, RequestDirectives, ResponseDirectives};

/// The times of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetimes {
    /// Its age when it was stored.
    pub(super) initial_age: Duration,
    /// The age up to which it is fresh.
    pub(super) lifetime: Duration,
    /// The time after that in which it may be used while it is validated.
    pub(super) stale_while_revalidate: Duration,
    /// The time after that in which it may take the place of an error.
    pub(super) stale_if_error: Duration,
    /// True if it must not be used stale, whatever the client accepts.
    pub(super) is_strict: bool,
    /// True if each use has to be validated.
    pub(super) needs_validation: bool,
}

/// The settings that apply where a response says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Defaults {
    pub(super) ttl: Option<Duration>,
    /// False if `ttl` applies whatever the response says of its freshness.
    pub(super) respects_response: bool,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
}

/// The moments of a response.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    /// The time between the request and its response.
    pub(super) delay: Duration,
    /// The time of day when it came.
    pub(super) at: SystemTime,
}

/// The use that can be made of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usable {
    /// It answers the request.
    Fresh,
    /// It answers the request, because the client accepts a stale one.
    Stale,
    /// It answers the request, and is validated beside that.
    WhileRevalidating,
    /// It has to be validated first.
    Validated,
}

impl Lifetimes {
    /// Those of a response; `None`: it says nothing of its freshness, and there is nothing by which it could be validated.
    pub(super) fn of(
        status: StatusCode,
        headers: &HeaderMap,
        directives: &ResponseDirectives,
        received: Received,
        defaults: &Defaults,
    ) -> Option<Self> {
        let lifetime = if defaults.respects_response {
            let by_default = || defaults.ttl.filter(|_| is_heuristically_cacheable(status));
            explicit_lifetime(headers, directives, received.at).or_else(by_default)
        } else {
            defaults.ttl
        };
        let can_be_validated = headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED);
        let lifetime = match lifetime {
            None if can_be_validated && is_heuristically_cacheable(status) => Duration::ZERO,
            lifetime => lifetime?,
        };
        let is_strict = directives.must_revalidate || directives.proxy_revalidate;
        let forbids_defaults = is_strict || directives.s_maxage.is_some() || directives.no_cache;
        let window = |said: Option<u64>, default: Duration| match said {
            _ if is_strict => Duration::ZERO,
            Some(seconds) => Duration::from_secs(seconds),
            None if forbids_defaults => Duration::ZERO,
            None => default,
        };
        Some(Self {
            initial_age: initial_age(headers, received),
            lifetime,
            stale_while_revalidate: window(
                directives.stale_while_revalidate,
                defaults.stale_while_revalidate,
            ),
            stale_if_error: window(directives.stale_if_error, defaults.stale_if_error),
            is_strict: is_strict || directives.s_maxage.is_some(),
            needs_validation: directives.no_cache && defaults.respects_response,
        })
    }

    /// True if it may answer no request without being validated.
    pub(super) fn is_never_fresh(&self) -> bool {
        self.needs_validation || self.lifetime.is_zero()
    }

    /// Decides how a response of this age may be used.
    pub(super) fn judge(&self, age: Duration, request: &RequestDirectives) -> Usable {
        let is_young = request.max_age.is_none_or(|most| age <= Duration::from_secs(most));
        let demand = Duration::from_secs(request.min_fresh.unwrap_or(0));
        if self.needs_validation || request.demands_validation() || !is_young {
            return Usable::Validated;
        }
        if age < self.lifetime && age + demand <= self.lifetime {
            return Usable::Fresh;
        }
        let stale_for = age.saturating_sub(self.lifetime);
        let accepts = request.max_stale.is_some_and(|most| stale_for <= Duration::from_secs(most));
        if accepts && !self.is_strict {
            return Usable::Stale;
        }
        if request.min_fresh.is_none() && stale_for < self.stale_while_revalidate {
            return Usable::WhileRevalidating;
        }
        Usable::Validated
    }

    /// True if a response of this age may take the place of an error.
    pub(super) fn stands_in(&self, age: Duration, request: &RequestDirectives) -> bool {
        let window = match request.stale_if_error {
            Some(seconds) if !self.is_strict && !self.needs_validation => {
                self.stale_if_error.max(Duration::from_secs(seconds))
            }
            _ => self.stale_if_error,
        };
        !window.is_zero() && age.saturating_sub(self.lifetime) <= window
    }
}

/// The statuses whose responses may be stored although they say nothing of their freshness (RFC 9110, section 15.1).
pub(super) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// The freshness that a response states.
fn explicit_lifetime(
    headers: &HeaderMap,
    directives: &ResponseDirectives,
    now: SystemTime,
) -> Option<Duration> {
    if let Some(seconds) = directives.s_maxage.or(directives.max_age) {
        return Some(Duration::from_secs(seconds));
    }
    let mut all = headers.get_all(EXPIRES).iter();
    let expires = all.next()?;
    let date = headers.get(DATE).and_then(parse_date).unwrap_or(now);
    // One that cannot be read, such as `0`, or that contradicts another, has expired.
    let expires = parse_date(expires).filter(|_| all.all(|other| other == expires)).unwrap_or(date);
    let lifetime = expires.duration_since(date).unwrap_or_default();
    Some(lifetime.min(Duration::from_secs(LONGEST)))
}

/// The age of a response when it arrives (RFC 9111, section 4.2.3).
fn initial_age(headers: &HeaderMap, received: Received) -> Duration {
    // The first counts if there are several.
    let said = headers.get(AGE).and_then(|value| {
        let text = value.to_str().ok()?.split(',').next()?.trim();
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(LONGEST).min(LONGEST))
    });
    let said = Duration::from_secs(said.unwrap_or(0));
    let date = headers.get(DATE).and_then(parse_date);
    // A date has whole seconds.
    let apparent = date
        .and_then(|date| received.at.duration_since(date).ok())
        .map_or(Duration::ZERO, |apparent| Duration::from_secs(apparent.as_secs()));
    apparent.max(said + received.delay)
}

/// A date of HTTP.
pub(super) fn parse_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use http::header::HeaderName;

    use super::*;

    const NOW: u64 = 1 << 30;
    const NOTHING: Defaults = Defaults {
        ttl: None,
        respects_response: true,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
    };

    fn date(offset: i64) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.saturating_add_signed(offset));
        httpdate::fmt_http_date(at)
    }

    fn lifetimes(status: u16, fields: &[(&str, &str)], defaults: &Defaults) -> Option<Lifetimes> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let received =
            Received { delay: Duration::from_secs(1), at: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW) };
        let directives = ResponseDirectives::of(&headers);
        Lifetimes::of(StatusCode::from_u16(status).unwrap(), &headers, &directives, received, defaults)
    }

    #[test]
    fn the_most_specific_statement_of_freshness_counts() {
        let (past, soon, later) = (date(-10), date(20), date(100));
        let seconds = |fields: &[(&str, &str)]| {
            lifetimes(200, fields, &NOTHING).map(|lifetimes| lifetimes.lifetime.as_secs())
        };
        let control = "cache-control";
        for (fields, expected) in [
            (&[][..], None),
            (&[(control, "max-age=5")], Some(5)),
            (&[(control, "max-age=5, s-maxage=7")], Some(7)),
            (&[(control, "max-age=5"), ("expires", &later)], Some(5)),
            (&[("expires", &later)], Some(100)),
            (&[("expires", &later), ("date", &past)], Some(110)),
            (&[("expires", &later), ("date", &soon)], Some(80)),
            (&[("expires", &past)], Some(0)),
            (&[("expires", "0")], Some(0)),
            (&[("expires", &later), ("expires", &soon)], Some(0)),
            (&[("etag", "\"x\"")], Some(0)),
            (&[("last-modified", &past)], Some(0)),
        ] {
            assert_eq!(seconds(fields), expected, "{fields:?}");
        }
        let default = Defaults { ttl: Some(Duration::from_secs(30)), ..NOTHING };
        let lifetime = |status, fields: &[(&str, &str)], defaults| {
            lifetimes(status, fields, defaults).map(|lifetimes| lifetimes.lifetime.as_secs())
        };
        assert_eq!(lifetime(200, &[], &default), Some(30));
        assert_eq!(lifetime(302, &[], &default), None);
        assert_eq!(lifetime(200, &[(control, "max-age=5")], &default), Some(5));
        let forced = Defaults { respects_response: false, ..default };
        assert_eq!(lifetime(302, &[(control, "max-age=5, no-cache")], &forced), Some(30));
    }

    #[test]
    fn age_is_the_greater_of_what_the_response_says_and_what_its_date_says() {
        let age = |fields: &[(&str, &str)]| {
            let fields = [&[("cache-control", "max-age=60")], fields].concat();
            lifetimes(200, &fields, &NOTHING).unwrap().initial_age.as_secs()
        };
        assert_eq!(age(&[]), 1);
        assert_eq!(age(&[("age", "10")]), 11);
        assert_eq!(age(&[("age", "10, 90")]), 11);
        assert_eq!(age(&[("age", "-4")]), 1);
        assert_eq!(age(&[("age", "99999999999999999999")]), LONGEST + 1);
        assert_eq!(age(&[("date", &date(-30))]), 30);
        assert_eq!(age(&[("date", &date(30))]), 1);
        assert_eq!(age(&[("date", &date(-30)), ("age", "40")]), 41);
    }

    #[test]
    fn stale_responses_are_used_only_within_their_windows() {
        let of = |control: &str| {
            let defaults = Defaults {
                stale_while_revalidate: Duration::from_secs(5),
                stale_if_error: Duration::from_secs(50),
                ..NOTHING
            };
            lifetimes(200, &[("cache-control", control)], &defaults).unwrap()
        };
        let plain = RequestDirectives::default();
        let at = |lifetimes: &Lifetimes, age, request: &RequestDirectives| {
            lifetimes.judge(Duration::from_secs(age), request)
        };
        let normal = of("max-age=10");
        assert_eq!(at(&normal, 9, &plain), Usable::Fresh);
        assert_eq!(at(&normal, 10, &plain), Usable::WhileRevalidating);
        assert_eq!(at(&normal, 14, &plain), Usable::WhileRevalidating);
        assert_eq!(at(&normal, 15, &plain), Usable::Validated);
        let request = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("cache-control", HeaderValue::from_static(text));
            RequestDirectives::of(&headers)
        };
        assert_eq!(at(&normal, 9, &request("no-cache")), Usable::Validated);
        assert_eq!(at(&normal, 9, &request("max-age=8")), Usable::Validated);
        assert_eq!(at(&normal, 8, &request("max-age=8")), Usable::Fresh);
        assert_eq!(at(&normal, 9, &request("min-fresh=1")), Usable::Fresh);
        assert_eq!(at(&normal, 9, &request("min-fresh=2")), Usable::Validated);
        assert_eq!(at(&normal, 900, &request("max-stale")), Usable::Stale);
        assert_eq!(at(&normal, 19, &request("max-stale=9")), Usable::Stale);
        assert_eq!(at(&normal, 20, &request("max-stale=9")), Usable::Validated);
        assert_eq!(at(&of("max-age=10, stale-while-revalidate=90"), 99, &plain), Usable::WhileRevalidating);
        for strict in ["max-age=10, must-revalidate", "max-age=10, proxy-revalidate", "s-maxage=10"] {
            assert_eq!(at(&of(strict), 10, &plain), Usable::Validated, "{strict}");
            assert_eq!(at(&of(strict), 10, &request("max-stale")), Usable::Validated, "{strict}");
            assert!(
                !of(strict).stands_in(Duration::from_secs(10), &request("stale-if-error=60")),
                "{strict}"
            );
        }
        assert_eq!(at(&of("no-cache, max-age=10"), 0, &plain), Usable::Validated);
        assert!(normal.stands_in(Duration::from_secs(60), &plain));
        assert!(!normal.stands_in(Duration::from_secs(61), &plain));
        assert!(normal.stands_in(Duration::from_secs(70), &request("stale-if-error=60")));
        assert!(!of("max-age=10, stale-if-error=1").stands_in(Duration::from_secs(12), &plain));
    }
}
