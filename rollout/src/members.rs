//! Decides which proxies of a fleet get a revision first.
//!
//! All proxies of a fleet stand in an order that each rollout has for itself: by the first eight bytes, as a little-endian number, of the
//! BLAKE3 hash over the length of the rollout's id in bytes (eight bytes, little-endian), the rollout's id and the node id. So other proxies go
//! first each time, and every version of the program chooses the same. A step takes the first proxies of that order, spread over the zones
//! in proportion to their sizes. Nobody leaves as the steps grow.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use signalbox_config::StepSize;

/// A proxy of a fleet, as the leader sees it at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Proxy<'a> {
    /// The node id.
    pub id: &'a Arc<str>,
    /// The labels; `zone` is the zone.
    pub labels: &'a BTreeMap<String, String>,
    /// The control plane that the proxy is or was connected to.
    pub replica: &'a str,
    /// True if it may become a canary: it is connected and serves the stable revision, can run the candidate, has traffic, and was there
    /// before the rollout began.
    pub eligible: bool,
    /// True if it has no stream, and no report of it came for three intervals.
    pub silent: bool,
    /// The number of the revision that the proxy serves; 0: none is known.
    pub serves: u64,
}

/// The node ids of proxies.
pub type Members = BTreeSet<Arc<str>>;

/// The members of a step: those before it, and as many more as the step's size needs while there are eligible proxies. Silent members stay
/// members, so that they have their place when they return, but do not count in the size: others take their part.
///
/// The size is at most one less than the number of proxies, so that there is one to compare with, unless there is only one.
pub fn choose(rollout: &str, size: &StepSize, proxies: &[Proxy<'_>], before: &Members) -> Members {
    let (mut present, mut others) = (Vec::new(), Vec::new());
    for proxy in proxies.iter().filter(|proxy| !proxy.silent) {
        if before.contains(proxy.id) {
            present.push(proxy);
        } else if proxy.eligible {
            others.push(proxy);
        }
    }
    let all = present.len() + others.len();
    if let StepSize::Labels(labels) = size {
        others.retain(|proxy| {
            labels.iter().all(|(key, value)| proxy.labels.get(&**key).is_some_and(|own| **own == **value))
        });
    }
    let wanted = wanted(size, all, present.len() + others.len());
    let chosen = spread(rollout, &present, others, wanted.saturating_sub(present.len()));
    before.iter().cloned().chain(chosen).collect()
}

/// True if there is a proxy that could be a canary.
pub fn any_eligible(proxies: &[Proxy<'_>]) -> bool {
    proxies.iter().any(|proxy| proxy.eligible && !proxy.silent)
}

/// The number of present members of a step in a fleet of `all` proxies, of which `selected` have the step's labels or are members.
fn wanted(size: &StepSize, all: usize, selected: usize) -> usize {
    let most = if all > 1 { all - 1 } else { all };
    let wanted = match size {
        StepSize::Share { millionths, min } => {
            let share = (all as u128 * u128::from(*millionths)).div_ceil(1_000_000);
            usize::try_from(share).unwrap_or(usize::MAX).max(*min as usize)
        }
        StepSize::Count(count) => *count as usize,
        StepSize::Labels(_) => selected,
        StepSize::All => return all,
    };
    wanted.min(most)
}

/// The next `count` of the proxies in their order, spread over the zones by largest remainder, together with those that are `present`.
fn spread<'a>(
    rollout: &str,
    present: &[&Proxy<'a>],
    mut others: Vec<&Proxy<'a>>,
    count: usize,
) -> Vec<Arc<str>> {
    struct Zone<'a> {
        size: usize,
        present: usize,
        /// The last one comes first.
        others: Vec<&'a Arc<str>>,
    }
    others.sort_by_cached_key(|proxy| Reverse((position(rollout, proxy.id), Arc::clone(proxy.id))));
    let mut zones: BTreeMap<&str, Zone<'a>> = BTreeMap::new();
    let mut zone = |proxy: &Proxy<'a>, is_present: bool| {
        let name = proxy.labels.get("zone").map_or("", String::as_str);
        let zone = zones.entry(name).or_insert(Zone { size: 0, present: 0, others: Vec::new() });
        zone.size += 1;
        if is_present {
            zone.present += 1;
        } else {
            zone.others.push(proxy.id);
        }
    };
    present.iter().for_each(|proxy| zone(proxy, true));
    others.iter().for_each(|proxy| zone(proxy, false));

    let (seats, all) = ((present.len() + count) as i128, (present.len() + others.len()) as i128);
    // The zone that is furthest below its share of the seats gets the next one: all get their whole seats, and then the largest remainders.
    let mut next: BinaryHeap<(i128, u64, &str)> = zones
        .iter()
        .map(|(name, zone)| {
            let below = seats * zone.size as i128 - zone.present as i128 * all;
            (below, position(rollout, name), *name)
        })
        .collect();
    let mut chosen = Vec::with_capacity(count.min(others.len()));
    while chosen.len() < count
        && let Some((below, tie, name)) = next.pop()
    {
        if let Some(id) = zones.get_mut(name).and_then(|zone| zone.others.pop()) {
            chosen.push(Arc::clone(id));
            next.push((below - all, tie, name));
        }
    }
    chosen
}

/// The place of a proxy in the order of a rollout.
fn position(rollout: &str, node: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(rollout.len() as u64).to_le_bytes()).update(rollout.as_bytes()).update(node.as_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    u64::from_le_bytes(first)
}
