//! Logins that have begun: each browser tab has one of its own.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use http::{HeaderMap, HeaderValue};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::jar::Jar;
use super::seal::{NoRandomness, Sealer};
use crate::query::encode;

/// A login that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flow {
    state: String,
    pub(super) nonce: String,
    /// The secret of PKCE (RFC 7636).
    pub(super) verifier: String,
    /// The path to return to.
    pub(super) target: String,
    /// Seconds since 1970.
    begun: u64,
}

/// The time for a login, seconds.
pub(super) const PATIENCE: u64 = 600;
/// The most logins of a browser at a time. The oldest is given up for another.
const MAX_FLOWS: usize = 5;

impl Flow {
    pub(super) fn begin(target: String, now: u64, sealer: &Sealer) -> Result<Self, NoRandomness> {
        let [state, nonce, verifier] = [sealer.random_text()?, sealer.random_text()?, sealer.random_text()?];
        Ok(Self { state, nonce, verifier, target, begun: now })
    }

    /// The `Set-Cookie` headers that remember it, and give up the oldest ones where there are too many.
    pub(super) fn remember(
        &self,
        jar: &Jar,
        sealer: &Sealer,
        sent: &HeaderMap,
    ) -> Result<Vec<HeaderValue>, NoRandomness> {
        let name = jar.flow_name(&id_of(&self.state));
        let content = serde_json::to_vec(self).map_err(|_| NoRandomness)?;
        let sealed = sealer.seal(&name, &content)?;
        // One that does not open counts as the oldest.
        let mut others: Vec<(u64, &str)> = jar
            .flows(sent)
            .map(|(name, value)| (open(sealer, name, value).map_or(0, |flow| flow.begun), name))
            .collect();
        others.sort_unstable();
        let too_many = (others.len() + 1).saturating_sub(MAX_FLOWS);
        let given_up = others.iter().take(too_many).filter_map(|(_, name)| jar.removed(name.as_bytes()));
        Ok(jar.set_flow(&name, &sealed, PATIENCE).into_iter().chain(given_up).collect())
    }

    /// The login of this browser with this state, if its time is not over, and the name of its cookie.
    pub(super) fn find(
        state: &str,
        jar: &Jar,
        sealer: &Sealer,
        sent: &HeaderMap,
        now: u64,
    ) -> Option<(Self, String)> {
        let name = jar.flow_name(&id_of(state));
        let mut candidates = jar.flows(sent).filter(|(found, _)| *found == name);
        let flow = candidates.find_map(|(name, value)| open(sealer, name, value))?;
        let is_current = now.saturating_sub(flow.begun) < PATIENCE;
        (flow.state == state && is_current).then_some((flow, name))
    }

    /// The parameters of the authorization request, besides those that are the same for all.
    pub(super) fn parameters(&self) -> String {
        let challenge = BASE64.encode(digest(&SHA256, self.verifier.as_bytes()));
        let mut text = String::new();
        for (name, value) in [("state", &self.state), ("nonce", &self.nonce), ("code_challenge", &challenge)]
        {
            let _ = write!(text, "&{name}={}", encode(value));
        }
        text.push_str("&code_challenge_method=S256");
        text
    }
}

fn open(sealer: &Sealer, name: &str, value: &[u8]) -> Option<Flow> {
    serde_json::from_slice(&sealer.open(name, value)?).ok()
}

/// The part of the name of a cookie that tells logins apart. It says nothing of the state.
fn id_of(state: &str) -> String {
    let hash = digest(&SHA256, state.as_bytes());
    BASE64.encode(hash.as_ref().get(..9).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    #[test]
    fn each_login_is_found_by_its_state_and_the_oldest_is_given_up_for_another() {
        let sealer = Sealer::new([&b"a secret that is long enough for it"[..]], &["scope"]);
        let jar = Jar::new("session", false);
        let mut cookies: Vec<(String, String)> = Vec::new();
        let mut flows = Vec::new();
        let headers = |cookies: &[(String, String)]| {
            let pairs: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, pairs.join("; ").parse().unwrap());
            headers
        };
        for number in 0..7 {
            let flow = Flow::begin(format!("/{number}"), 1000 + number, &sealer).unwrap();
            for set in flow.remember(&jar, &sealer, &headers(&cookies)).unwrap() {
                let text = set.to_str().unwrap();
                let (name, value) = text.split_once(';').unwrap().0.split_once('=').unwrap();
                cookies.retain(|(known, _)| known != name);
                if !text.ends_with("Max-Age=0") {
                    cookies.push((name.to_owned(), value.to_owned()));
                }
            }
            flows.push(flow);
        }
        assert_eq!(cookies.len(), MAX_FLOWS);
        let sent = headers(&cookies);
        let found =
            |flow: &Flow, now| Flow::find(&flow.state, &jar, &sealer, &sent, now).map(|(flow, _)| flow);
        for (number, flow) in flows.iter().enumerate() {
            assert_eq!(found(flow, 1100).as_ref(), (number >= 2).then_some(flow), "{number}");
        }
        assert_eq!(found(&flows[6], 1005 + PATIENCE).as_ref(), Some(&flows[6]));
        assert_eq!(found(&flows[6], 1006 + PATIENCE), None);
        // The cookie of one login does not serve for another.
        let moved = cookies[0].1.clone();
        let (name, _) = &cookies[1];
        let sent = headers(&[(name.clone(), moved)]);
        assert!(flows.iter().all(|flow| Flow::find(&flow.state, &jar, &sealer, &sent, 1100).is_none()));
    }
}
