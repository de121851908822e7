//! `Cache-Control` of responses and of requests.

use http::header::{CACHE_CONTROL, HeaderName, PRAGMA};
use http::{HeaderMap, HeaderValue};

/// The directives of a response that matter to a shared cache. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ResponseDirectives {
    pub(super) no_store: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) no_cache: bool,
    pub(super) must_revalidate: bool,
    pub(super) proxy_revalidate: bool,
    pub(super) max_age: Option<u64>,
    pub(super) s_maxage: Option<u64>,
    pub(super) stale_while_revalidate: Option<u64>,
    pub(super) stale_if_error: Option<u64>,
}

/// The directives of a request. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RequestDirectives {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) only_if_cached: bool,
    pub(super) max_age: Option<u64>,
    pub(super) min_fresh: Option<u64>,
    /// [`LONGEST`] if it is given without a time.
    pub(super) max_stale: Option<u64>,
    pub(super) stale_if_error: Option<u64>,
}

/// The longest time that is told apart, in seconds; longer ones count as this (RFC 9111, section 1.2.2).
pub(super) const LONGEST: u64 = 1 << 31;

impl ResponseDirectives {
    /// Those of a response with these headers. Of one that is repeated, the strictest counts, and a time that cannot be read is zero.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut all = Self::default();
        each(headers, &CACHE_CONTROL, |name, value| {
            let seconds = || value.and_then(seconds).unwrap_or(0);
            match name {
                // With names of fields, they could be applied to these fields alone; they are taken for the stricter form.
                "no-store" => all.no_store = true,
                "private" => all.private = true,
                "no-cache" => all.no_cache = true,
                "public" => all.public = true,
                "must-revalidate" => all.must_revalidate = true,
                "proxy-revalidate" => all.proxy_revalidate = true,
                "max-age" => shorten(&mut all.max_age, seconds()),
                "s-maxage" => shorten(&mut all.s_maxage, seconds()),
                "stale-while-revalidate" => shorten(&mut all.stale_while_revalidate, seconds()),
                "stale-if-error" => shorten(&mut all.stale_if_error, seconds()),
                _ => {}
            }
        });
        all
    }

    /// True if a response may be stored although its request has credentials (RFC 9111, section 3.5).
    pub(super) fn allows_sharing(&self) -> bool {
        self.public || self.must_revalidate || self.s_maxage.is_some()
    }
}

impl RequestDirectives {
    /// Those of a request with these headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut all = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            all.no_cache = headers.get_all(PRAGMA).iter().any(|value| {
                value
                    .as_bytes()
                    .split(|byte| *byte == b',')
                    .any(|it| it.trim_ascii().eq_ignore_ascii_case(b"no-cache"))
            });
            return all;
        }
        each(headers, &CACHE_CONTROL, |name, value| {
            let seconds = value.and_then(seconds);
            match name {
                "no-store" => all.no_store = true,
                "no-cache" => all.no_cache = true,
                "only-if-cached" => all.only_if_cached = true,
                "max-age" => shorten(&mut all.max_age, seconds.unwrap_or(0)),
                "min-fresh" => all.min_fresh = all.min_fresh.max(seconds),
                "max-stale" if value.is_none() => shorten(&mut all.max_stale, LONGEST),
                "max-stale" => shorten(&mut all.max_stale, seconds.unwrap_or(0)),
                "stale-if-error" => shorten(&mut all.stale_if_error, seconds.unwrap_or(0)),
                _ => {}
            }
        });
        all
    }

    /// True if the client wants an answer of the upstream, whatever is stored.
    pub(super) fn demands_validation(&self) -> bool {
        self.no_cache || self.max_age == Some(0)
    }
}

fn shorten(slot: &mut Option<u64>, seconds: u64) {
    *slot = Some(slot.map_or(seconds, |before| before.min(seconds)));
}

/// A number of seconds; `None`: it is none.
fn seconds(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(LONGEST).min(LONGEST))
}

/// Calls `directive` with the name, in lower case, and the value of each directive. Commas within quotes part nothing.
fn each(headers: &HeaderMap, name: &HeaderName, mut directive: impl FnMut(&str, Option<&str>)) {
    for text in headers.get_all(name).iter().filter_map(readable) {
        for part in split_unquoted(text) {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(unquoted(value.trim()))),
                None => (part, None),
            };
            let name = name.trim();
            // The names of all directives are shorter.
            if name.len() <= 32 {
                directive(&name.to_ascii_lowercase(), value);
            }
        }
    }
}

/// A value with bytes beyond ASCII cannot be trusted to say nothing about storing; `no-store` is what it then counts as.
fn readable(value: &HeaderValue) -> Option<&str> {
    Some(value.to_str().unwrap_or("no-store"))
}

fn split_unquoted(text: &str) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |character: char| {
        if is_escaped {
            is_escaped = false;
            return false;
        }
        match character {
            '"' => is_quoted = !is_quoted,
            '\\' if is_quoted => is_escaped = true,
            ',' => return !is_quoted,
            _ => {}
        }
        false
    })
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (CACHE_CONTROL, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn directives_of_responses_are_read_in_all_their_spellings() {
        let of = |values: &[&'static str]| ResponseDirectives::of(&headers(values));
        let none = ResponseDirectives::default();
        assert_eq!(of(&[]), none);
        let aged = |seconds| ResponseDirectives { max_age: Some(seconds), ..none };
        for text in
            ["max-age=5", "MAX-AGE=5", "x, max-age=5", "max-age=\"5\"", "a=\"b, no-store\", max-age=5"]
        {
            assert_eq!(of(&[text]), aged(5), "{text}");
        }
        for text in ["max-age", "max-age=", "max-age=x", "max-age=-5", "max-age=1.5", "max-age='5'"] {
            assert_eq!(of(&[text]), aged(0), "{text}");
        }
        assert_eq!(of(&["max-age=99999999999999999999999"]), aged(LONGEST));
        assert_eq!(of(&["max-age=9, max-age=3"]), aged(3));
        assert_eq!(of(&["max-age=9", "max-age=3"]), aged(3));
        assert!(of(&["private=\"set-cookie\""]).private && of(&["no-cache=\"x\""]).no_cache);
        let all = of(&["public, must-revalidate, s-maxage=7, stale-while-revalidate=8, stale-if-error=9"]);
        assert!(all.public && all.must_revalidate && all.allows_sharing());
        assert_eq!(
            (all.s_maxage, all.stale_while_revalidate, all.stale_if_error),
            (Some(7), Some(8), Some(9))
        );
        let mut broken = HeaderMap::new();
        broken.insert(CACHE_CONTROL, HeaderValue::from_bytes(b"no-\xffstore").unwrap());
        assert!(ResponseDirectives::of(&broken).no_store);
    }

    #[test]
    fn directives_of_requests_are_read() {
        let of = |text| RequestDirectives::of(&headers(&[text]));
        let none = RequestDirectives::default();
        assert_eq!(of("max-stale"), RequestDirectives { max_stale: Some(LONGEST), ..none });
        assert_eq!(of("max-stale=4"), RequestDirectives { max_stale: Some(4), ..none });
        assert_eq!(of("min-fresh=4"), RequestDirectives { min_fresh: Some(4), ..none });
        assert!(of("only-if-cached").only_if_cached && of("no-store").no_store);
        assert!(of("no-cache").demands_validation() && of("max-age=0").demands_validation());
        assert!(!of("max-age=1").demands_validation());
        let mut pragma = HeaderMap::new();
        pragma.insert(PRAGMA, HeaderValue::from_static("x, No-Cache"));
        assert!(RequestDirectives::of(&pragma).no_cache);
        pragma.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        assert!(!RequestDirectives::of(&pragma).no_cache);
    }
}
