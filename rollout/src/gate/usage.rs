//! CPU time and volume of single proxies, compared with their own past.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::history::ProxyPast;
use super::policy::Policy;

/// A proxy is looked at after this time, and only if it has or should have served that many requests.
const LOOK_MS: u64 = 10_000;
const MIN_REQUESTS: f64 = 20.0;

/// A proxy with fewer requests before is not looked at: too few say nothing about its usual load.
const MIN_PAST: f64 = 100.0;

/// Proxies whose usage is kept; further ones are not looked at.
const MAX_PROXIES: usize = 20_000;

/// The CPU time that each proxy has used since it was last looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Usage {
    proxies: BTreeMap<Arc<str>, Block>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Block {
    ms: u64,
    requests: u64,
    cpu_us: u64,
}

/// A look at a proxy: `None` for what cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// It needs more CPU time per request than is tolerated.
    pub(super) expensive: Option<bool>,
    /// It serves fewer requests than is tolerated.
    pub(super) idle: Option<bool>,
}

impl Usage {
    /// Adds what a proxy has served in a window, and looks at it if it is time.
    #[expect(clippy::cast_precision_loss, reason = "the quotients need no more digits")]
    pub(super) fn observe(
        &mut self,
        node: &Arc<str>,
        (ms, requests, cpu_us): (u64, u64, u64),
        past: ProxyPast,
        policy: &Policy,
    ) -> Option<Look> {
        if self.proxies.len() >= MAX_PROXIES && !self.proxies.contains_key(node) {
            return None;
        }
        let block = self.proxies.entry(node.clone()).or_default();
        block.ms = block.ms.saturating_add(ms);
        block.requests = block.requests.saturating_add(requests);
        block.cpu_us = block.cpu_us.saturating_add(cpu_us);
        let past_requests = past.requests as f64;
        if block.ms < LOOK_MS || past_requests < MIN_PAST || past.reported_ms == 0 {
            return None;
        }
        let requests = block.requests as f64;
        let expected = past_requests / past.reported_ms as f64 * block.ms as f64;
        if requests.max(expected) < MIN_REQUESTS {
            return None;
        }
        let tolerated = |ratio: f64| ratio.max(1.0);
        let look = Look {
            expensive: (requests >= MIN_REQUESTS && past.cpu_us > 0).then(|| {
                let usual = past.cpu_us as f64 / past_requests;
                block.cpu_us as f64 / requests > usual * tolerated(policy.cpu.ratio)
            }),
            idle: (expected >= MIN_REQUESTS).then(|| requests * tolerated(policy.volume.ratio) < expected),
        };
        *block = Block::default();
        Some(look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy that had 10 requests a second at 100 µs.
    const PAST: ProxyPast = ProxyPast { reported_ms: 100_000, requests: 1000, cpu_us: 100_000 };

    fn look(ms: u64, requests: u64, cpu_us: u64, past: ProxyPast) -> Option<(Option<bool>, Option<bool>)> {
        let look = Usage::default().observe(&"a".into(), (ms, requests, cpu_us), past, &Policy::default());
        look.map(|look| (look.expensive, look.idle))
    }

    #[test]
    fn a_proxy_is_compared_with_its_own_past() {
        for (ms, requests, cpu_us, expected) in [
            (10_000, 100, 10_000, Some((Some(false), Some(false)))),
            (10_000, 100, 16_000, Some((Some(true), Some(false)))),
            (10_000, 49, 4_900, Some((Some(false), Some(true)))),
            (10_000, 51, 5_100, Some((Some(false), Some(false)))),
            (10_000, 0, 5_100, Some((None, Some(true)))),
            (9_999, 100, 99_000, None),
        ] {
            assert_eq!(look(ms, requests, cpu_us, PAST), expected, "{ms} {requests} {cpu_us}");
        }
    }

    #[test]
    fn without_a_past_or_traffic_there_is_no_look() {
        assert_eq!(look(60_000, 1000, 99_000, ProxyPast::default()), None);
        assert_eq!(look(60_000, 1000, 99_000, ProxyPast { reported_ms: 0, ..PAST }), None);
        let rare = ProxyPast { reported_ms: 1_000_000, ..PAST };
        assert_eq!(look(10_000, 0, 0, rare), None, "10 requests were expected");
        assert_eq!(look(20_000, 0, 0, rare), Some((None, Some(true))));
        assert_eq!(look(10_000, 100, 99_000, ProxyPast { cpu_us: 0, ..PAST }), Some((None, Some(false))));
    }

    #[test]
    fn short_windows_add_up() {
        let mut usage = Usage::default();
        let node = "a".into();
        let looks = (0..20).filter_map(|_| usage.observe(&node, (1000, 0, 0), PAST, &Policy::default()));
        assert_eq!(looks.count(), 2);
    }
}
