//! The headers by which responses tell a client's limit.

use http::{HeaderName, HeaderValue};
use signalbox_plugin::Exchange;

use super::budget::{Budget, Verdict, seconds};

/// Writes the headers about a limit.
#[derive(Debug)]
pub(crate) struct LimitHeaders {
    limit: HeaderValue,
    ietf: Option<IetfHeaders>,
}

/// The headers of the draft "RateLimit header fields for HTTP" (draft-ietf-httpapi-ratelimit-headers).
#[derive(Debug)]
struct IetfHeaders {
    /// The policy's name, quoted.
    name: Box<str>,
    policy: HeaderValue,
}

const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl LimitHeaders {
    /// `name` is the plugin's; with `ietf`, the draft's headers are written too.
    pub(crate) fn new(name: &str, budget: &Budget, ietf: bool) -> Self {
        // A plugin's name has no character that a quoted string would have to escape.
        let name = format!("\"{name}\"");
        let (limit, window) = (budget.limit, seconds(budget.window));
        let policy = HeaderValue::from_str(&format!("{name};q={limit};w={window}")).ok();
        Self {
            limit: decimal(limit),
            ietf: policy.filter(|_| ietf).map(|policy| IetfHeaders { name: name.into_boxed_str(), policy }),
        }
    }

    /// Leaves the headers in `exchange`. Where two limits apply, the headers without a list tell the one of which less is left.
    pub(crate) fn write(&self, verdict: &Verdict, exchange: &mut Exchange) {
        if !tells_less(exchange, verdict.remaining) {
            let remaining = decimal(verdict.remaining);
            let reset = decimal(seconds(verdict.reset_in));
            exchange.set_response_header(RATELIMIT_LIMIT, self.limit.clone());
            exchange.set_response_header(RATELIMIT_REMAINING, remaining.clone());
            exchange.set_response_header(RATELIMIT_RESET, reset.clone());
            exchange.set_response_header(X_RATELIMIT_LIMIT, self.limit.clone());
            exchange.set_response_header(X_RATELIMIT_REMAINING, remaining);
            exchange.set_response_header(X_RATELIMIT_RESET, reset);
        }
        let Some(ietf) = &self.ietf else { return };
        let (name, remaining, more) = (&ietf.name, verdict.remaining, seconds(verdict.more_in));
        if let Ok(value) = HeaderValue::from_str(&format!("{name};r={remaining};t={more}")) {
            exchange.append_response_header(RATELIMIT, value);
        }
        exchange.append_response_header(RATELIMIT_POLICY, ietf.policy.clone());
    }
}

/// True if an earlier limit of this request has less left than `remaining`.
fn tells_less(exchange: &Exchange, remaining: u64) -> bool {
    let mut headers = exchange.response_headers();
    if headers.len() == 0 {
        return false;
    }
    let before = headers.find(|(name, _)| **name == RATELIMIT_REMAINING);
    let before = before.and_then(|(_, value)| value.to_str().ok()?.parse::<u64>().ok());
    before.is_some_and(|before| before < remaining)
}

/// The value of `Retry-After` for a request that would pass in `wait` nanoseconds.
pub(crate) fn retry_after(wait: u64) -> HeaderValue {
    decimal(seconds(wait).max(1))
}

/// `number` as a header's value, without an allocation up to 9,999.
fn decimal(number: u64) -> HeaderValue {
    let width = match number {
        0..10 => 1,
        10..100 => 2,
        100..1000 => 3,
        1000..10_000 => 4,
        _ => return HeaderValue::from(number),
    };
    let end = number as usize * 4 + 4;
    let text = DECIMALS.get(end - width..end).and_then(|digits| std::str::from_utf8(digits).ok());
    text.map_or_else(|| HeaderValue::from(number), HeaderValue::from_static)
}

/// The numbers from 0 to 9,999, four digits each.
static DECIMALS: [u8; 40_000] = {
    let mut digits = [b'0'; 40_000];
    let mut number = 0;
    while number < 10_000 {
        let (mut rest, mut place) = (number, 4);
        while place > 0 {
            place -= 1;
            digits[number * 4 + place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        number += 1;
    }
    digits
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_written_as_numbers(number in prop_oneof![0_u64..20_000, any::<u64>()]) {
            prop_assert_eq!(decimal(number), number.to_string());
        }
    }
}
