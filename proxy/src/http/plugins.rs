//! The order in which a request's plugins run.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::active::{Chain, Step, TypeSet};

/// Goes through the chain of a route and, once a plugin has found out who the consumer is, that consumer's: merged by
/// order as it goes, so that nothing has to be built for the pair.
///
/// For one type the most specific counts. A consumer's plugin takes the place of the route's of its type; where the route's
/// has run already, it does not run again.
pub(super) struct Walk<'a> {
    route: &'a [Step],
    consumer: &'a [Step],
    /// Types of the consumer's chain, in whose place the route's do not run.
    consumer_types: TypeSet,
    ran: TypeSet,
}

impl<'a> Walk<'a> {
    pub(super) fn new(route: &'a Chain) -> Self {
        Self {
            route: &route.steps,
            consumer: &[],
            consumer_types: TypeSet::default(),
            ran: TypeSet::default(),
        }
    }

    /// The consumer is known now.
    pub(super) fn join(&mut self, consumer: &'a Arc<Chain>) {
        self.consumer = &consumer.steps;
        self.consumer_types = consumer.types;
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = &'a Step;

    fn next(&mut self) -> Option<&'a Step> {
        loop {
            let of_consumer = match (self.route.first(), self.consumer.first()) {
                (None, None) => return None,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(route), Some(consumer)) => consumer.precedes(route),
            };
            let from = if of_consumer { &mut self.consumer } else { &mut self.route };
            let (step, rest) = from.split_first()?;
            *from = rest;
            let instead = if of_consumer { self.ran } else { self.consumer_types };
            if !instead.meets(step.type_set) {
                if !of_consumer {
                    self.ran = self.ran.with(step.type_set);
                }
                return Some(step);
            }
        }
    }
}

/// The plugins that want something later.
pub(super) type Steps<'a> = SmallVec<[&'a Step; 6]>;

#[cfg(test)]
mod tests {
    use signalbox_plugins::Plugin;

    use super::*;
    use crate::active::PluginStats;
    use crate::telemetry::Histograms;

    struct Nothing;
    impl Plugin for Nothing {}

    fn chain(steps: &[(&str, usize, i32)]) -> Arc<Chain> {
        let step = |(name, type_index, order): &(&str, usize, i32)| Step {
            name: name.parse().unwrap(),
            plugin: Arc::new(Nothing),
            type_set: TypeSet::of(*type_index),
            order: *order,
            wants_response: false,
            wants_local_reply: false,
            answers_preflights: false,
            body_cap: None,
            stats: Arc::new(PluginStats { name: name.parse().unwrap(), durations: Histograms::new(1) }),
        };
        Arc::new(Chain::of(steps.iter().map(step).collect()))
    }

    /// The names in the order in which they run, where the plugin named `auth` finds the consumer.
    fn order(route: &Chain, consumer: &Arc<Chain>) -> Vec<String> {
        let mut walk = Walk::new(route);
        let mut names = Vec::new();
        while let Some(step) = walk.next() {
            names.push(step.name.to_string());
            if step.name.as_str() == "auth" {
                walk.join(consumer);
            }
        }
        names
    }

    const CORS: usize = 0;
    const AUTH: usize = 1;
    const LIMIT: usize = 2;
    const TRANSFORM: usize = 3;

    #[test]
    fn the_highest_order_runs_first_and_equals_by_name() {
        let route = chain(&[("b", CORS, 5), ("z", AUTH, 9), ("a", LIMIT, 5)]);
        assert_eq!(order(&route, &chain(&[])), ["z", "a", "b"]);
    }

    #[test]
    fn the_consumers_plugin_takes_the_place_of_the_routes() {
        let route = chain(&[("auth", AUTH, 1000), ("limit", LIMIT, 900), ("transform", TRANSFORM, 800)]);
        let consumer = chain(&[("own-limit", LIMIT, 900)]);
        assert_eq!(order(&route, &consumer), ["auth", "own-limit", "transform"]);
        // Wherever it stands.
        let consumer = chain(&[("own-limit", LIMIT, 1)]);
        assert_eq!(order(&route, &consumer), ["auth", "transform", "own-limit"]);
    }

    #[test]
    fn what_has_run_does_not_run_again() {
        let route = chain(&[("limit", LIMIT, 2000), ("auth", AUTH, 1000)]);
        assert_eq!(order(&route, &chain(&[("own-limit", LIMIT, 900)])), ["limit", "auth"]);
    }

    #[test]
    fn a_consumers_plugin_whose_turn_has_passed_runs_at_once() {
        let route = chain(&[("auth", AUTH, 1000), ("transform", TRANSFORM, 800)]);
        assert_eq!(order(&route, &chain(&[("own-cors", CORS, 2000)])), ["auth", "own-cors", "transform"]);
    }

    #[test]
    fn a_consumer_may_have_two_plugins_of_a_type() {
        let route = chain(&[("auth", AUTH, 1000), ("limit", LIMIT, 900)]);
        let consumer = chain(&[("a", LIMIT, 900), ("b", LIMIT, 900)]);
        assert_eq!(order(&route, &consumer), ["auth", "a", "b"]);
    }
}
