//! Tokens that are presented in vain.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts what is presented in vain, per address. It keeps noise from the log and load from the process; what makes
/// guessing hopeless is that tokens are 256 random bits. A token that is right passes in any case, so that one
/// misconfigured client behind a shared address shuts nobody out.
#[derive(Debug, Default)]
pub(super) struct BadTokens(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl BadTokens {
    const WINDOW: Duration = Duration::from_secs(60);
    const ALLOWED: u32 = 60;
    const MAX_ADDRESSES: usize = 10_000;

    /// Notes one, and says after how many seconds to try again when there were too many.
    pub(super) fn record(&self, from: IpAddr, now: Instant) -> Option<u32> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= Self::MAX_ADDRESSES {
            seen.retain(|_, (_, since)| now.duration_since(*since) < Self::WINDOW);
            if seen.len() >= Self::MAX_ADDRESSES {
                seen.clear();
            }
        }
        let (count, since) = seen.entry(from).or_insert((0, now));
        if now.duration_since(*since) >= Self::WINDOW {
            (*count, *since) = (0, now);
        }
        *count = count.saturating_add(1);
        let left = Self::WINDOW.saturating_sub(now.duration_since(*since)).as_secs() as u32 + 1;
        (*count > Self::ALLOWED).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_bad_tokens_are_told_when_to_try_again() {
        let (guard, from, now) = (BadTokens::default(), IpAddr::from([127, 0, 0, 1]), Instant::now());
        for _ in 0..BadTokens::ALLOWED {
            assert_eq!(guard.record(from, now), None);
        }
        assert_eq!(guard.record(from, now), Some(61));
        assert_eq!(guard.record(IpAddr::from([127, 0, 0, 2]), now), None);
        assert_eq!(guard.record(from, now + BadTokens::WINDOW), None);
    }
}
