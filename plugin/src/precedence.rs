//! The precedence of plugins: which of those that are attached to a request run, and in which order. Both planes call this
//! module: a proxy when it compiles a chain, and the control plane when it explains a request.
//!
//! Only the most specific of the plugins of one type runs: a consumer's replaces a route's, and a route's replaces a global one.

use std::cmp::Ordering;

use signalbox_config::Name;

/// A plugin as far as its precedence is concerned.
pub trait Attached {
    /// The plugin's name.
    fn name(&self) -> &Name;

    /// The plugin's place in the chain, the highest first.
    fn order(&self) -> i32;

    /// True if both have one type.
    fn has_type_of(&self, other: &Self) -> bool;
}

/// The order in which two plugins of a chain run: the higher order first, and of equals the lower name.
pub fn run_order(one: &impl Attached, other: &impl Attached) -> Ordering {
    other.order().cmp(&one.order()).then_with(|| one.name().cmp(other.name()))
}

/// The one of the `specific` plugins in whose favour the less specific plugin `general` does not run.
pub fn overridden_by<'s, P: Attached>(general: &P, specific: &'s [P]) -> Option<&'s P> {
    specific.iter().find(|specific| specific.has_type_of(general))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plugin(Name, &'static str, i32);

    impl Attached for Plugin {
        fn name(&self) -> &Name {
            &self.0
        }

        fn order(&self) -> i32 {
            self.2
        }

        fn has_type_of(&self, other: &Self) -> bool {
            self.1 == other.1
        }
    }

    fn plugin(name: &str, type_name: &'static str, order: i32) -> Plugin {
        Plugin(name.parse().unwrap(), type_name, order)
    }

    #[test]
    fn the_highest_order_runs_first_and_of_equals_the_lowest_name() {
        let mut chain = [plugin("b", "x", 1), plugin("a", "y", 1), plugin("c", "z", 2), plugin("d", "w", -1)];
        chain.sort_by(run_order);
        assert_eq!(chain.map(|plugin| plugin.0.to_string()), ["c", "a", "b", "d"]);
    }

    #[test]
    fn a_plugin_gives_way_to_a_more_specific_one_of_its_type_only() {
        let own = [plugin("own", "cors", 1)];
        let overriding = overridden_by(&plugin("global", "cors", 9), &own).map(|plugin| plugin.0.as_str());
        assert_eq!(overriding, Some("own"));
        assert!(overridden_by(&plugin("global", "key-auth", 9), &own).is_none());
    }
}
