//! Says what each proxy is to count, and how often it reports that.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use signalbox_config::{Kind, Snapshot};
use signalbox_proto::signalbox::report::v1::CountsRequest;
use signalbox_rollout::{FleetTarget, Plan, Scope};

/// The interval of reports while a rollout goes on, for canaries and a sample of the others.
pub(super) const BUSY: Duration = Duration::from_secs(1);

/// The interval of other reports.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// The routes of a fleet of which it is known what is usual, the first ones by name. A report of all of them has some 16 KiB, so the sample of a
/// large fleet sends 320 KiB a second.
const USUAL_ROUTES: usize = 200;

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
    /// The routes that a sample of the proxies counts apart while no rollout goes on, so that it is known what is usual.
    usual: Arc<[String]>,
    /// The decision in force, which says who the canaries are.
    target: Option<Arc<FleetTarget>>,
}

impl Wanted {
    pub(super) fn of<'a>(
        is_busy: bool,
        scopes: impl IntoIterator<Item = &'a Scope>,
        usual: Arc<[String]>,
        target: Option<Arc<FleetTarget>>,
    ) -> Self {
        let mut wanted = Self { is_busy, usual, target: target.filter(|_| is_busy), ..Self::default() };
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
        let is_sampled = is_sampled(proxies, node, wanted.target.as_deref());
        let interval = if wanted.is_busy && is_sampled { BUSY } else { IDLE };
        let routes = match (wanted.is_busy, is_sampled) {
            (true, _) => wanted.routes.clone(),
            (false, true) => wanted.usual.to_vec(),
            (false, false) => Vec::new(),
        };
        CountsRequest {
            interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
            routes,
            upstreams: wanted.upstreams.clone(),
        }
    }
}

/// The routes of a fleet that its sample counts apart while no rollout goes on. The control plane asks in order.
pub(super) fn usual_routes(snapshot: &Snapshot, fleet: &str) -> Arc<[String]> {
    let routes = snapshot.of_kind(Kind::Route, None).filter(|route| route.visible_to(fleet));
    let mut names: Vec<String> =
        routes.take(USUAL_ROUTES).map(|route| route.key().name.as_str().to_owned()).collect();
    names.sort_unstable();
    names.into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sample_counts_routes_apart_while_no_rollout_goes_on() {
        let usual: Arc<[String]> = ["a".to_owned(), "b".to_owned()].into();
        let wanted = |is_busy, scopes: &[Scope]| {
            let one = Wanted::of(is_busy, scopes, Arc::clone(&usual), None);
            CountsWanted { fleets: [("edge".into(), Arc::new(one))].into() }
        };
        let asked = |wanted: &CountsWanted, proxies: u32| -> usize {
            let all = (0..proxies).map(|number| wanted.request("edge", proxies, &format!("p{number}")));
            all.filter(|request| request.routes == *usual && request.interval_ms == 10_000).count()
        };
        let idle = wanted(false, &[]);
        assert_eq!(asked(&idle, 100), 100);
        let many = asked(&idle, 10_000);
        assert!((100..300).contains(&many), "{many} of 10000");
        let busy = wanted(true, &[Scope::Route("c".into())]);
        assert_eq!(busy.request("edge", 1, "p").routes, ["c"]);
        assert_eq!(idle.request("core", 1, "p"), CountsRequest::default());
    }
}
