//! Circles in a graph of files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A shortest circle for every group of files that reach each other.
pub(crate) fn shortest_circles<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let mut circles = Vec::new();
    let mut told = BTreeSet::new();
    for start in graph.keys() {
        if told.contains(start) {
            continue;
        }
        let Some(circle) = shortest_through(graph, start) else { continue };
        // The rest of the group shows when this circle is gone.
        let group = reached(graph, start).into_iter().filter(|file| reached(graph, file).contains(start));
        told.extend(group);
        circles.push(circle);
    }
    circles
}

/// The files that `start` imports, directly or not.
fn reached<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>, start: &'a str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open = vec![start];
    while let Some(file) = open.pop() {
        open.extend(graph.get(file).into_iter().flatten().filter(|next| found.insert(**next)));
    }
    found
}

fn shortest_through<'a>(
    graph: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    start: &'a str,
) -> Option<Vec<&'a str>> {
    let mut before = BTreeMap::<&str, &str>::new();
    let mut open = VecDeque::from([start]);
    while let Some(file) = open.pop_front() {
        for next in graph.get(file).into_iter().flatten() {
            if *next == start {
                let mut circle = vec![file];
                while let Some(previous) = before.get(circle.last()?) {
                    circle.push(previous);
                }
                circle.reverse();
                return Some(circle);
            }
            if !before.contains_key(next) {
                before.insert(next, file);
                open.push_back(next);
            }
        }
    }
    None
}
