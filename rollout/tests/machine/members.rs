//! Tests of the choice of canaries.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use signalbox_config::StepSize;
use signalbox_rollout::members::{Members, Proxy, choose};

use crate::world::{Node, node, proxies};

fn share(percent: u32) -> StepSize {
    StepSize::Share { millionths: percent * 10_000, min: 1 }
}

fn nodes(count: usize) -> Vec<Node> {
    (0..count).map(|index| node(index, "", "r")).collect()
}

/// The members of a first step.
fn first(rollout: &str, size: &StepSize, nodes: &[Node]) -> Members {
    choose(rollout, size, &proxies(nodes, &Members::new()), &Members::new())
}

#[test]
fn sizes_are_rounded_up_and_leave_one_to_compare_with() {
    for (size, count, wanted) in [
        (share(1), 3, 1),
        (share(50), 1, 1),
        (share(50), 2, 1),
        (share(50), 3, 2),
        (share(99), 3, 2),
        (share(10), 100, 10),
        (share(10), 101, 11),
        (StepSize::Share { millionths: 1, min: 1 }, 1000, 1),
        (StepSize::Share { millionths: 10_000, min: 5 }, 100, 5),
        (StepSize::Share { millionths: 10_000, min: 5 }, 4, 3),
        (StepSize::Count(3), 10, 3),
        (StepSize::Count(10), 10, 9),
        (StepSize::Count(1), 1, 1),
        (StepSize::Count(1), 0, 0),
        (StepSize::All, 10, 10),
    ] {
        assert_eq!(first("1-edge", &size, &nodes(count)).len(), wanted, "{size:?} of {count}");
    }
}

#[test]
fn a_rollout_has_its_own_order() {
    let nodes = nodes(20);
    let firsts: Members =
        (0..100).flat_map(|number| first(&format!("{number}-edge"), &StepSize::Count(1), &nodes)).collect();
    // 100 draws from 20 leave out 0.1 on average.
    assert!(firsts.len() >= 15, "{firsts:?}");
}

/// These are stored, and other versions of the program read them: a change of the order would move canaries in the middle of a rollout.
#[test]
fn the_order_is_that_of_all_versions() {
    let members = |id: &str| first(id, &StepSize::Count(3), &nodes(10)).into_iter().collect::<Vec<_>>();
    assert_eq!(members("41-edge").join(" "), "p6 p7 p8");
    assert_eq!(members("42-edge").join(" "), "p2 p6 p7");
}

#[test]
fn labels_select() {
    let nodes: Vec<Node> =
        (0..9).map(|index| node(index, if index < 3 { "lab" } else { "field" }, "r")).collect();
    let size = StepSize::Labels(BTreeMap::from([("zone".into(), "lab".into())]));
    let members = first("1-edge", &size, &nodes);
    assert_eq!(members, ["p0", "p1", "p2"].map(Arc::from).into());
    // All of the fleet has the label: one stays to compare with.
    assert_eq!(first("1-edge", &size, &nodes[..3]).len(), 2);
    let nobody = StepSize::Labels(BTreeMap::from([("zone".into(), "moon".into())]));
    assert_eq!(first("1-edge", &nobody, &nodes).len(), 0);
}

#[test]
fn only_eligible_proxies_are_chosen_and_silent_members_are_replaced() {
    let mut nodes = nodes(10);
    let before = first("1-edge", &share(30), &nodes);
    let lost = before.first().unwrap().clone();
    for node in &mut nodes {
        node.silent = node.id == lost;
        // Two of the proxies that are not members were there before.
        node.newcomer = !before.contains(&node.id);
    }
    nodes.iter_mut().filter(|node| node.newcomer).take(2).for_each(|node| node.newcomer = false);
    let after = choose("1-edge", &StepSize::Count(3), &proxies(&nodes, &before), &before);
    // The lost one has its place still, and does not count.
    assert!(after.is_superset(&before));
    let added: Vec<&Arc<str>> = after.difference(&before).collect();
    assert_eq!(added.len(), 1);
    assert!(nodes.iter().any(|node| node.id == *added[0] && !node.newcomer));
}

/// Fleets: the zone of each proxy.
fn fleets() -> impl Strategy<Value = Vec<Node>> {
    prop::collection::vec(0_u8..4, 0..60).prop_map(|zones| {
        let each = zones.into_iter().enumerate();
        each.map(|(index, zone)| node(index, &format!("z{zone}"), "r")).collect()
    })
}

proptest! {
    #[test]
    fn steps_are_nested_and_no_larger_than_they_say(
        nodes in fleets(),
        mut percents in prop::collection::btree_set(1_u32..100, 1..5),
        id in "[a-z0-9-]{1,12}",
        losses in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut nodes = nodes;
        let mut before = Members::new();
        let last = percents.pop_last().unwrap();
        for percent in percents.into_iter().chain([last]) {
            let view = proxies(&nodes, &before);
            let members = choose(&id, &share(percent), &view, &before);
            prop_assert!(members.is_superset(&before));
            let is_present = |id: &Arc<str>| nodes.iter().any(|node| node.id == *id && !node.silent);
            let (there, all) = (
                members.iter().filter(|id| is_present(id)).count(),
                nodes.iter().filter(|node| !node.silent).count(),
            );
            let wanted = (all * percent as usize).div_ceil(100).max(1).min(if all > 1 { all - 1 } else { all });
            let kept = before.iter().filter(|id| is_present(id)).count();
            prop_assert_eq!(there, wanted.max(kept));
            prop_assert_eq!(&choose(&id, &share(percent), &view, &before), &members, "it is deterministic");
            let mut shuffled: Vec<Proxy<'_>> = view.clone();
            shuffled.reverse();
            prop_assert_eq!(&choose(&id, &share(percent), &shuffled, &before), &members, "in any order");
            before = members;
            if let Some(loss) = losses.get(percent as usize % 5) && !nodes.is_empty() {
                let index = loss.index(nodes.len());
                nodes[index].silent = true;
            }
        }
    }

    #[test]
    fn zones_have_their_share(nodes in fleets(), percent in 1_u32..100, id in "[a-z]{1,8}") {
        let members = first(&id, &share(percent), &nodes);
        for zone in ["z0", "z1", "z2", "z3"] {
            let size = nodes.iter().filter(|node| node.labels["zone"] == zone).count();
            let chosen =
                nodes.iter().filter(|node| node.labels["zone"] == zone && members.contains(&node.id)).count();
            // The quota, rounded down or up.
            let quota = members.len() as f64 * size as f64 / nodes.len().max(1) as f64;
            prop_assert!((chosen as f64 - quota).abs() < 1.0, "{zone}: {chosen} of {quota}");
        }
    }
}
