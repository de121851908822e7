//! The precedence of plugins: which of those that are attached to a request run, and in which order. Both planes call this
//! module: a proxy for each request, and the control plane when it explains one.
//!
//! Plugins are attached to a consumer, a route, an upstream, a listener, or to every request ([`Source`]). Only the most specific of
//! the plugins of one type runs. The highest order runs first. What has run does not run again, should a more specific one of
//! its type become known later: a consumer is known only once a plugin has found out who it is.

use std::cmp::Ordering;

use signalbox_config::Name;
use smallvec::SmallVec;

/// The kind of resource that a plugin is attached to, from the least specific to the most specific.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Every request.
    Global,
    /// The listener that the request came by.
    Listener,
    /// The upstream that it goes to.
    Upstream,
    /// The route that took it.
    Route,
    /// The consumer that sent it.
    Consumer,
}

/// A plugin as far as its precedence is concerned.
pub trait Attached {
    /// The plugin's name.
    fn name(&self) -> &Name;

    /// The plugin's place in the chain, the highest first.
    fn order(&self) -> i32;

    /// The plugin's place on the way out, the lowest first.
    fn response_order(&self) -> i32;

    /// Its type, as a set of one.
    fn types(&self) -> TypeSet;

    /// The kind of resource that it is attached to.
    fn source(&self) -> Source;

    /// True if it runs in shadow. It changes nothing, so no other plugin gives way to it.
    fn is_shadow(&self) -> bool {
        false
    }
}

/// A set of plugin types, by their place in the registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TypeSet(u128);

impl TypeSet {
    /// The type at `index` of the registry, which has no more than 128.
    #[must_use]
    pub const fn of(index: usize) -> Self {
        Self(1 << (index % 128))
    }

    /// The types of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if one type is in both.
    #[inline]
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The order in which two plugins of a chain run: the higher order first, and of equals the lower name.
pub fn run_order(one: &impl Attached, other: &impl Attached) -> Ordering {
    other.order().cmp(&one.order()).then_with(|| one.name().cmp(other.name()))
}

/// The order in which two plugins see a response: the reverse, unless their types have a place of their own.
pub fn response_order(one: &impl Attached, other: &impl Attached) -> Ordering {
    one.response_order().cmp(&other.response_order()).then_with(|| other.name().cmp(one.name()))
}

/// The one among `others` in whose favour a plugin does not run: it is of the same type, and more specific.
pub fn overridden_by<'s, P: Attached>(plugin: &P, others: impl IntoIterator<Item = &'s P>) -> Option<&'s P> {
    let stronger = |other: &&'s P| {
        !other.is_shadow() && other.source() > plugin.source() && other.types().intersects(plugin.types())
    };
    others.into_iter().filter(stronger).max_by_key(|other| other.source())
}

/// Plugins that are attached together, in the order in which they run.
#[derive(Debug)]
pub struct Lane<'a, S> {
    steps: &'a [S],
    /// The kind of resource that they are attached to; some may be attached less specifically.
    source: Source,
    /// The types of those that are attached to just that, but for those in shadow.
    types: TypeSet,
    /// The next one to run.
    next: usize,
    /// The types of those that have run, but for those in shadow.
    ran: TypeSet,
}

impl<'a, S> Lane<'a, S> {
    /// The lane of `steps`. They are attached to `source` and of these `types`; less specific ones may be among them, which no
    /// other of them overrides.
    pub fn new(steps: &'a [S], source: Source, types: TypeSet) -> Self {
        Self { steps, source, types, next: 0, ran: TypeSet::default() }
    }
}

/// The plugins of a request in the order in which they run. What it is attached to may become known on the way: the lanes are
/// merged step by step, so that nothing has to be built for each combination of them.
#[derive(Debug)]
pub struct Walk<'a, S> {
    lanes: SmallVec<[Lane<'a, S>; 2]>,
}

impl<'a, S: Attached> Walk<'a, S> {
    /// A walk over `lane`.
    pub fn new(lane: Lane<'a, S>) -> Self {
        Self { lanes: SmallVec::from_iter([lane]) }
    }

    /// Adds a lane. Its plugins whose turn has passed run at once.
    pub fn join(&mut self, lane: Lane<'a, S>) {
        self.lanes.push(lane);
    }

    /// Puts a lane in the place of those that are attached to `source`, of which only what has run stays.
    pub fn replace(&mut self, source: Source, lane: Option<Lane<'a, S>>) {
        for old in self.lanes.iter_mut().filter(|old| old.source == source) {
            old.steps = old.steps.get(..old.next).unwrap_or_default();
            old.types = old.ran;
        }
        self.lanes.extend(lane);
    }

    /// True if more than one lane was joined.
    pub fn is_merged(&self) -> bool {
        self.lanes.len() > 1
    }

    /// All plugins of the request, lane by lane: those that have run, and those that would if the walk went on. The flag says
    /// which.
    pub fn plugins(&self) -> impl Iterator<Item = (&'a S, bool)> {
        self.lanes.iter().enumerate().flat_map(move |(at, lane)| {
            lane.steps.iter().enumerate().filter_map(move |(index, step)| {
                let ran = index < lane.next && lane.ran.intersects(step.types());
                (ran || index >= lane.next && !self.is_barred(at, step)).then_some((step, ran))
            })
        })
    }

    /// True if a plugin of the lane `at` does not run because of those of another.
    fn is_barred(&self, at: usize, step: &S) -> bool {
        let mut others = self.lanes.iter().enumerate().filter(|(other, _)| *other != at);
        others.any(|(_, other)| {
            other.ran.intersects(step.types())
                || other.source > step.source() && other.types.intersects(step.types())
        })
    }

    /// The next plugin that runs. `meets` decides whether a plugin whose turn has come runs for this request; one that does not has
    /// not run.
    #[inline]
    pub fn next_that(&mut self, mut meets: impl FnMut(&'a S) -> bool) -> Option<&'a S> {
        loop {
            let (at, step) = match self.lanes.as_slice() {
                [lane] => (0, lane.steps.get(lane.next)?),
                _ => self.first_lane()?,
            };
            let runs = !(self.is_merged() && self.is_barred(at, step)) && meets(step);
            let lane = self.lanes.get_mut(at)?;
            lane.next += 1;
            if runs {
                if !step.is_shadow() {
                    lane.ran = lane.ran.with(step.types());
                }
                return Some(step);
            }
        }
    }

    /// The lane whose next plugin comes first.
    fn first_lane(&self) -> Option<(usize, &'a S)> {
        let nexts =
            self.lanes.iter().enumerate().filter_map(|(at, lane)| Some((at, lane.steps.get(lane.next)?)));
        // Only one plugin that is attached twice can be equal to itself; then the most specific attachment runs.
        nexts.min_by(|(_, one), (_, other)| {
            run_order(*one, *other).then_with(|| other.source().cmp(&one.source()))
        })
    }
}

impl<'a, S: Attached> Iterator for Walk<'a, S> {
    type Item = &'a S;

    #[inline]
    fn next(&mut self) -> Option<&'a S> {
        self.next_that(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Plugin {
        name: Name,
        type_index: usize,
        order: i32,
        response_order: Option<i32>,
        source: Source,
    }

    impl Attached for Plugin {
        fn name(&self) -> &Name {
            &self.name
        }

        fn order(&self) -> i32 {
            self.order
        }

        fn response_order(&self) -> i32 {
            self.response_order.unwrap_or(self.order)
        }

        fn types(&self) -> TypeSet {
            TypeSet::of(self.type_index)
        }

        fn source(&self) -> Source {
            self.source
        }

        fn is_shadow(&self) -> bool {
            self.name.as_str().starts_with("shadow")
        }
    }

    const CORS: usize = 0;
    const AUTH: usize = 1;
    const LIMIT: usize = 2;
    const TRANSFORM: usize = 3;

    /// Plugins in their order, all attached to `source`.
    fn attached(source: Source, steps: &[(&str, usize, i32)]) -> Vec<Plugin> {
        let plugin = |(name, type_index, order): &(&str, usize, i32)| Plugin {
            name: name.parse().unwrap(),
            type_index: *type_index,
            order: *order,
            response_order: None,
            source,
        };
        let mut plugins: Vec<_> = steps.iter().map(plugin).collect();
        plugins.sort_by(run_order);
        plugins
    }

    fn lane(steps: &[Plugin]) -> Lane<'_, Plugin> {
        let real = steps.iter().filter(|step| !step.is_shadow());
        let types = real.fold(TypeSet::default(), |types, step| types.with(step.types()));
        Lane::new(steps, steps.first().map_or(Source::Global, |step| step.source), types)
    }

    /// The names in the order in which they run; `later` is joined behind the plugin named `auth`. Those named `unmet` do not run for
    /// this request.
    fn order(lanes: &[&[Plugin]], later: &[Plugin]) -> Vec<String> {
        let mut walk = Walk::new(lane(lanes[0]));
        lanes[1..].iter().for_each(|steps| walk.join(lane(steps)));
        let mut names = Vec::new();
        while let Some(step) = walk.next_that(|step| !step.name.as_str().starts_with("unmet")) {
            names.push(step.name.to_string());
            if step.name.as_str() == "auth" {
                walk.join(lane(later));
            }
        }
        let ran: Vec<_> = walk.plugins().collect();
        assert!(ran.iter().all(|(_, ran)| *ran), "{ran:?}");
        assert_eq!(ran.len(), names.iter().filter(|name| !name.starts_with("shadow")).count());
        names
    }

    #[test]
    fn the_highest_order_runs_first_and_of_equals_the_lowest_name() {
        let route = attached(Source::Route, &[("b", CORS, 5), ("z", AUTH, 9), ("a", LIMIT, 5)]);
        assert_eq!(order(&[&route], &[]), ["z", "a", "b"]);
    }

    #[test]
    fn a_response_goes_the_other_way_but_for_types_with_a_place_of_their_own() {
        let mut plugins = attached(Source::Route, &[("b", CORS, 5), ("z", AUTH, 9), ("a", LIMIT, 5)]);
        plugins[1].response_order = Some(i32::MAX);
        plugins.sort_by(response_order);
        assert_eq!(plugins.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["b", "z", "a"]);
    }

    #[test]
    fn the_most_specific_of_a_type_runs() {
        let every = [Source::Global, Source::Listener, Source::Upstream, Source::Route];
        for (at, source) in every.into_iter().enumerate() {
            let lanes: Vec<_> = every[..=at]
                .iter()
                .map(|source| attached(*source, &[(&format!("{source:?}").to_lowercase(), LIMIT, 1)]))
                .collect();
            let expected = format!("{source:?}").to_lowercase();
            let forwards: Vec<_> = lanes.iter().map(Vec::as_slice).collect();
            assert_eq!(order(&forwards, &[]), [expected.as_str()]);
            let backwards: Vec<_> = lanes.iter().rev().map(Vec::as_slice).collect();
            assert_eq!(order(&backwards, &[]), [expected.as_str()]);
            let all: Vec<&Plugin> = lanes.iter().flatten().collect();
            let stronger = overridden_by(&lanes[0][0], all.iter().copied());
            assert_eq!(stronger.map(|it| it.name.to_string()), (at > 0).then_some(expected));
        }
    }

    #[test]
    fn a_global_plugin_in_the_routes_lane_gives_way_to_the_upstreams() {
        let mut route = attached(Source::Route, &[("own", TRANSFORM, 2), ("global", LIMIT, 1)]);
        route[1].source = Source::Global;
        let lane_of_route = Lane::new(&route, Source::Route, TypeSet::of(TRANSFORM));
        let upstream = attached(Source::Upstream, &[("upstream", LIMIT, 1), ("not", TRANSFORM, 9)]);
        let mut walk = Walk::new(lane_of_route);
        walk.join(lane(&upstream));
        assert_eq!(walk.map(|step| step.name.to_string()).collect::<Vec<_>>(), ["own", "upstream"]);
    }

    #[test]
    fn the_consumers_plugin_takes_the_place_of_the_routes() {
        let steps = [("auth", AUTH, 1000), ("limit", LIMIT, 900), ("transform", TRANSFORM, 800)];
        let route = attached(Source::Route, &steps);
        let consumer = attached(Source::Consumer, &[("own-limit", LIMIT, 900)]);
        assert_eq!(order(&[&route], &consumer), ["auth", "own-limit", "transform"]);
        // The result does not depend on its position.
        let consumer = attached(Source::Consumer, &[("own-limit", LIMIT, 1)]);
        assert_eq!(order(&[&route], &consumer), ["auth", "transform", "own-limit"]);
    }

    #[test]
    fn what_has_run_does_not_run_again() {
        let route = attached(Source::Route, &[("limit", LIMIT, 2000), ("auth", AUTH, 1000)]);
        let consumer = attached(Source::Consumer, &[("own-limit", LIMIT, 900)]);
        assert_eq!(order(&[&route], &consumer), ["limit", "auth"]);
    }

    #[test]
    fn a_plugin_whose_condition_is_not_met_has_not_run() {
        let steps = [("unmet", LIMIT, 2000), ("auth", AUTH, 1000), ("transform", TRANSFORM, 800)];
        let route = attached(Source::Route, &steps);
        let consumer = attached(Source::Consumer, &[("own-limit", LIMIT, 900)]);
        assert_eq!(order(&[&route], &consumer), ["auth", "own-limit", "transform"]);
        // The most specific plugin stays the one that decides.
        let route = attached(Source::Route, &[("auth", AUTH, 1000), ("limit", LIMIT, 900)]);
        let consumer = attached(Source::Consumer, &[("unmet-limit", LIMIT, 900)]);
        assert_eq!(order(&[&route], &consumer), ["auth"]);
    }

    #[test]
    fn no_plugin_gives_way_to_one_in_shadow() {
        let real = attached(Source::Route, &[("auth", AUTH, 1000), ("limit", LIMIT, 900)]);
        let shadow = attached(Source::Consumer, &[("shadow-own", LIMIT, 950)]);
        assert_eq!(order(&[&real], &shadow), ["auth", "shadow-own", "limit"]);
        let route = attached(Source::Route, &[("shadow-limit", LIMIT, 2000), ("auth", AUTH, 1000)]);
        let consumer = attached(Source::Consumer, &[("own", LIMIT, 900)]);
        assert_eq!(order(&[&route], &consumer), ["shadow-limit", "auth", "own"]);
        // But one in shadow gives way, as it would if it were in force.
        let route = attached(Source::Route, &[("auth", AUTH, 1000), ("shadow-limit", LIMIT, 900)]);
        assert_eq!(order(&[&route], &consumer), ["auth", "own"]);
        let both = [&real[1], &shadow[0]];
        assert!(overridden_by(&real[1], both).is_none());
    }

    #[test]
    fn a_consumers_plugin_whose_turn_has_passed_runs_at_once() {
        let route = attached(Source::Route, &[("auth", AUTH, 1000), ("transform", TRANSFORM, 800)]);
        let consumer = attached(Source::Consumer, &[("own-cors", CORS, 2000)]);
        assert_eq!(order(&[&route], &consumer), ["auth", "own-cors", "transform"]);
    }

    #[test]
    fn the_plugins_of_another_upstream_take_the_place_of_those_that_have_not_run() {
        let route = attached(Source::Route, &[("split", AUTH, 1000), ("own", TRANSFORM, 800)]);
        let before = [("ran", CORS, 2000), ("left-out", LIMIT, 900)];
        let before = attached(Source::Upstream, &before);
        let after = [("passed", CORS, 2000), ("limit", LIMIT, 900), ("not", TRANSFORM, 700)];
        let after = attached(Source::Upstream, &after);
        for (lane_after, expected) in
            [(Some(lane(&after)), &["ran", "split", "limit", "own"][..]), (None, &["ran", "split", "own"])]
        {
            let mut walk = Walk::new(lane(&route));
            walk.join(lane(&before));
            let mut names: Vec<&str> = walk.by_ref().take(2).map(|step| step.name.as_str()).collect();
            walk.replace(Source::Upstream, lane_after);
            names.extend(walk.by_ref().map(|step| step.name.as_str()));
            assert_eq!(names, expected);
            assert_eq!(walk.plugins().count(), expected.len());
        }
    }

    #[test]
    fn two_plugins_of_a_type_may_be_attached_to_one_thing() {
        let route = attached(Source::Route, &[("auth", AUTH, 1000), ("limit", LIMIT, 900)]);
        let consumer = attached(Source::Consumer, &[("a", LIMIT, 900), ("b", LIMIT, 900)]);
        assert_eq!(order(&[&route], &consumer), ["auth", "a", "b"]);
    }

    #[test]
    fn a_walk_that_stops_knows_those_whose_turn_has_not_come() {
        let route = attached(Source::Route, &[("a", AUTH, 3), ("b", CORS, 2), ("c", LIMIT, 1)]);
        let upstream = attached(Source::Upstream, &[("d", LIMIT, 9), ("e", TRANSFORM, 0)]);
        let mut walk = Walk::new(lane(&route));
        walk.join(lane(&upstream));
        assert_eq!(walk.next().map(|step| step.name.as_str()), Some("a"));
        let all: Vec<_> = walk.plugins().map(|(step, ran)| (step.name.as_str(), ran)).collect();
        assert_eq!(all, [("a", true), ("b", false), ("c", false), ("e", false)]);
    }
}
