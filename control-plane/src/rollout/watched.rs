//! Says what each proxy is to count, and how often it reports that.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use signalbox_proto::signalbox::report::v1::CountsRequest;
use signalbox_rollout::{FleetTarget, Plan, Scope};

/// The interval of reports while a rollout goes on, for canaries and a sample of the others.
pub(super) const BUSY: Duration = Duration::from_secs(1);

/// The interval of other reports.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// The number of other proxies whose reports come at the short interval, if there are not more canaries.
const SAMPLE: usize = 200;

/// The counts that are wanted of the proxies of all fleets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CountsWanted {
    /// By fleet; none of a fleet that is not here.
    pub(super) fleets: BTreeMap<Arc<str>, Arc<Wanted>>,
}

/// The counts that are wanted of a fleet's proxies.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// True while a rollout goes on.
    pub(super) is_busy: bool,
    pub(super) routes: Vec<String>,
    pub(super) upstreams: Vec<String>,
    /// The decision in force, which says who the canaries are.
    target: Option<Arc<FleetTarget>>,
}

impl Wanted {
    pub(super) fn of<'a>(
        is_busy: bool,
        scopes: impl IntoIterator<Item = &'a Scope>,
        target: Option<Arc<FleetTarget>>,
    ) -> Self {
        let mut wanted = Self { is_busy, target: target.filter(|_| is_busy), ..Self::default() };
        for scope in scopes {
            match scope {
                Scope::Route(name) => wanted.routes.push(name.to_string()),
                Scope::Upstream(name) => wanted.upstreams.push(name.to_string()),
                Scope::Fleet => {}
            }
        }
        wanted
    }
}

impl CountsWanted {
    /// The request for a proxy of a fleet with so many proxies.
    pub fn request(&self, fleet: &str, proxies: u32, node: &str) -> CountsRequest {
        let Some(wanted) = self.fleets.get(fleet) else { return CountsRequest::default() };
        let interval =
            if wanted.is_busy && is_sampled(proxies, node, wanted.target.as_deref()) { BUSY } else { IDLE };
        CountsRequest {
            interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
            routes: wanted.routes.clone(),
            upstreams: wanted.upstreams.clone(),
        }
    }
}

/// True for canaries, and for an equal sample of the others.
fn is_sampled(proxies: u32, node: &str, target: Option<&FleetTarget>) -> bool {
    let canaries = match target.map(|target| &target.plan) {
        Some(Plan::Split { candidate, .. }) if candidate.members.contains(node) => return true,
        Some(Plan::Split { candidate, .. }) => candidate.members.len(),
        _ => 0,
    };
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    let wanted = SAMPLE.max(canaries) as u64;
    hasher.finish() % u64::from(proxies.max(1)) < wanted
}
