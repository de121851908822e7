//! Logins that are asked for on another host than that of the redirect URI. Cookies belong to one host, so such a login begins there.

use http::uri::Authority;
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};

use super::seal::{NoRandomness, Sealer};

/// A login that the browser is to begin on the right host. It is sealed, so that no link of others can name the page to return to.
#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    /// The path to return to.
    pub(super) target: String,
    /// The time since 1970 at which the browser was sent there, seconds.
    at: u64,
    /// True if the login begins although the browser has a session: that one has ended, and its cookies cannot be taken away.
    #[serde(default)]
    pub(super) anew: bool,
}

/// The parameter of the redirect URI that has it.
pub(super) const PARAMETER: &str = "begin";

/// The text to which it is bound in the place of the name of a cookie, which no cookie can have.
const NAME: &str = "the start of a login";

/// The time in which the browser must get there, seconds.
const PATIENCE: u64 = 60;

impl Start {
    pub(super) fn seal(
        target: String,
        anew: bool,
        now: u64,
        sealer: &Sealer,
    ) -> Result<String, NoRandomness> {
        let content = serde_json::to_vec(&Self { target, at: now, anew }).map_err(|_| NoRandomness)?;
        sealer.seal(NAME, &content)
    }

    /// `None`: it was not sealed here, or too long ago.
    pub(super) fn open(text: &str, now: u64, sealer: &Sealer) -> Option<Self> {
        let start: Self = serde_json::from_slice(&sealer.open(NAME, text.as_bytes())?).ok()?;
        (now.saturating_sub(start.at) < PATIENCE).then_some(start)
    }
}

/// True if the request names another host than `host`, whatever its port: cookies do not tell ports apart.
pub(super) fn is_on_other_host(headers: &HeaderMap, host: &str) -> bool {
    let named = headers.get(header::HOST).and_then(|value| value.to_str().ok()?.parse::<Authority>().ok());
    named.is_some_and(|named| !named.host().eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_opens_for_a_minute_and_for_the_same_keys() {
        let sealer = |secret: &'static [u8]| Sealer::new([secret], &["scope"]);
        let (ours, others) = (sealer(b"one secret that is long enough"), sealer(b"another secret of others"));
        let sealed = Start::seal("/a?b".to_owned(), false, 1000, &ours).unwrap();
        for (now, sealer, expected) in [
            (1000, &ours, Some("/a?b")),
            (1059, &ours, Some("/a?b")),
            (1060, &ours, None),
            (1000, &others, None),
        ] {
            let opened = Start::open(&sealed, now, sealer).map(|start| start.target);
            assert_eq!(opened.as_deref(), expected, "{now}");
        }
        assert!(Start::open("", 1000, &ours).is_none() && Start::open("x", 1000, &ours).is_none());
    }

    #[test]
    fn another_host_has_another_name_and_not_another_port() {
        for (sent, is_other) in [
            (Some("shop.example"), false),
            (Some("SHOP.example:8443"), false),
            (Some("www.shop.example"), true),
            (Some("shop.example."), true),
            (Some("[::1]:80"), true),
            (Some(""), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(sent.map(|sent| (header::HOST, sent.parse().unwrap())));
            assert_eq!(is_on_other_host(&headers, "shop.example"), is_other, "{sent:?}");
        }
    }
}
