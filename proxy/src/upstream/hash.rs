//! Consistent hashing: hashes that are the same on every proxy and in every version, and the tables that map them to
//! targets.

/// A table that maps a hash to a target's index. It is built when the targets or their weights change, and not when
/// their health does: [`Table::find`] probes past targets that are not usable.
#[derive(Debug)]
pub struct Table(Box<[u32]>);

/// The number of places in a table: a prime, which the paper and Envoy use too. With [`Table::maglev`], shares are
/// within 1 % of the exact value for up to about 650 targets; with [`Table::ring`], which draws lots, a share of a
/// tenth is within 4 %, a share of a hundredth within 12 %.
const PLACES: usize = 65_537;

/// The number of places that [`Table::find`] probes before it takes any usable target.
const PROBES: u64 = 64;

/// FNV-1a, followed by MurmurHash3's finaliser, because FNV alone spreads short texts badly. Whoever can choose keys
/// can choose targets by them; it is no hash for secrets.
#[inline]
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(hash)
}

#[inline]
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// The hash for the next probe.
#[inline]
fn rehash(hash: u64, round: u64) -> u64 {
    mix(hash.wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

impl Table {
    /// Builds a table by rendezvous hashing (Thaler and Ravishankar, 1998): for each place, every target draws a value
    /// that depends only on its name and weight. So a target that joins, leaves or changes its weight moves no keys
    /// between the others. A ring of points lacks that property when weights differ, because the number of points per
    /// weight depends on all targets. `targets` are names, which identify a target on all proxies, and weights.
    pub fn ring(targets: &[(&str, u32)]) -> Self {
        // Among equal weights the highest hash wins; further computation is needed only between weights. The names are
        // sorted so that ties have the same winner on all proxies.
        let mut classes = std::collections::BTreeMap::<u32, Vec<(&str, u64, u32)>>::new();
        for (target, (name, weight)) in (0..).zip(targets) {
            classes.entry(*weight).or_default().push((name, stable_hash(name.as_bytes()), target));
        }
        for class in classes.values_mut() {
            class.sort_unstable();
        }
        let winner = |place: u64| {
            let of_classes = classes.iter().filter_map(|(weight, class)| {
                let drawn = class.iter().map(|(_, own, target)| (rehash(*own, place + 1), *target));
                let (highest, target) = drawn.max_by_key(|(hash, _)| *hash)?;
                // Strictly between 0 and 1.
                let part = ((highest >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
                Some((part.ln() / f64::from(*weight), target))
            });
            of_classes.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, target)| target)
        };
        Self((0..PLACES as u64).filter_map(winner).collect())
    }

    /// Builds a Maglev table: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", section
    /// 3.4. Weights work as in Envoy: the heaviest target takes a turn in each round, others less often.
    pub fn maglev(targets: &[(&str, u32)]) -> Self {
        struct Candidate {
            target: u32,
            weight: f64,
            next: u64,
            skip: u64,
            due: f64,
        }
        let size = PLACES as u64;
        let heaviest = targets.iter().map(|(_, weight)| *weight).max().unwrap_or(1).max(1);
        // The order is the same on all proxies.
        let mut order: Vec<u32> = (0..targets.len() as u32).collect();
        order.sort_by_key(|target| targets.get(*target as usize).map(|(name, _)| *name));
        let mut candidates: Vec<Candidate> = order
            .into_iter()
            .filter_map(|target| {
                let (name, weight) = targets.get(target as usize)?;
                let own = stable_hash(name.as_bytes());
                let (next, skip) = (rehash(own, 1) % size, rehash(own, 2) % (size - 1) + 1);
                Some(Candidate {
                    target,
                    weight: f64::from(*weight) / f64::from(heaviest),
                    next,
                    skip,
                    due: 0.0,
                })
            })
            .collect();
        let mut places = vec![u32::MAX; PLACES];
        let mut left = if candidates.is_empty() { 0 } else { PLACES };
        let mut round = 0.0;
        while left > 0 {
            round += 1.0;
            for candidate in &mut candidates {
                if left == 0 || round * candidate.weight < candidate.due {
                    continue;
                }
                candidate.due += 1.0;
                while places[candidate.next as usize] != u32::MAX {
                    candidate.next = (candidate.next + candidate.skip) % size;
                }
                places[candidate.next as usize] = candidate.target;
                left -= 1;
            }
        }
        if candidates.is_empty() {
            places.clear();
        }
        Self(places.into())
    }

    /// Finds the first target for `hash` that is `usable`. Returns `None` if none of the probed ones is.
    #[inline]
    pub fn find(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let place = |hash: u64| self.0.get((hash % PLACES as u64) as usize).map(|it| *it as usize);
        let first = place(hash)?;
        if usable(first) {
            return Some(first);
        }
        (1..=PROBES).filter_map(|round| place(rehash(hash, round))).find(|it| usable(*it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u32 = 100_000;

    fn names(count: u32) -> Vec<String> {
        (1..=count).map(|number| format!("10.0.{}.{}:8080", number / 256, number % 256)).collect()
    }

    fn weighted(names: &[String], weight: impl Fn(usize) -> u32) -> Vec<(&str, u32)> {
        names.iter().enumerate().map(|(index, name)| (name.as_str(), weight(index))).collect()
    }

    /// The target's name for each key.
    fn targets<'a>(table: &Table, of: &[(&'a str, u32)], usable: impl Fn(usize) -> bool) -> Vec<&'a str> {
        let keys = (0..KEYS).map(|key| stable_hash(format!("user-{key}").as_bytes()));
        keys.map(|key| of[table.find(key, &usable).unwrap()].0).collect()
    }

    type Maker = fn(&[(&str, u32)]) -> Table;
    const MAKERS: [(&str, Maker); 2] = [("ring", Table::ring), ("maglev", Table::maglev)];

    #[test]
    fn a_target_that_leaves_moves_hardly_more_keys_than_its_own() {
        for count in [3, 10, 50] {
            let names = names(count);
            let all = weighted(&names, |_| 100);
            let gone = all[1].0;
            let rest: Vec<_> = all.iter().copied().filter(|(name, _)| *name != gone).collect();
            for (kind, make) in MAKERS {
                let before = targets(&make(&all), &all, |_| true);
                let after = targets(&make(&rest), &rest, |_| true);
                let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
                let own = before.iter().filter(|name| **name == gone).count();
                let (moved, own) = (moved as f64 / f64::from(KEYS), own as f64 / f64::from(KEYS));
                let ideal = 1.0 / f64::from(count);
                println!(
                    "{kind}: of {count} targets one leaves: {:.2} % of the keys move, ideal {:.2} %, its own {:.2} %",
                    moved * 100.0,
                    ideal * 100.0,
                    own * 100.0
                );
                match kind {
                    "ring" => {
                        assert_eq!(moved, own, "of the ring only its own keys move");
                        assert!((own / ideal - 1.0).abs() < 0.25, "{own} is far from {ideal}");
                    }
                    _ => {
                        assert!((own / ideal - 1.0).abs() < 0.05, "{own} is far from {ideal}");
                        assert!(moved < own + 0.05, "{moved} for {own}");
                    }
                }
            }
        }
    }

    #[test]
    fn of_a_ring_only_a_targets_own_keys_move_whatever_the_weights() {
        let names = names(4);
        for weights in
            [[90, 90, 90, 95], [10, 20, 30, 40], [50, 100, 100, 1], [1, 1, 1, 5], [1, 10, 100, 10_000]]
        {
            let all = weighted(&names, |index| weights[index]);
            let before = targets(&Table::ring(&all), &all, |_| true);
            for changed in 0..4 {
                let name = all[changed].0;
                let rest: Vec<_> = all.iter().copied().filter(|(other, _)| *other != name).collect();
                let doubled = weighted(&names, |index| weights[index] * if index == changed { 2 } else { 1 });
                for (now, gains) in [(rest, false), (doubled, true)] {
                    let after = targets(&Table::ring(&now), &now, |_| true);
                    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
                    let others = moved.filter(|(from, to)| **(if gains { to } else { from }) != name).count();
                    assert_eq!(others, 0, "{weights:?} without {name}, or with twice its weight");
                }
            }
        }
    }

    #[test]
    fn the_keys_of_an_unhealthy_target_are_spread_and_no_others_move() {
        let names = names(10);
        let all = weighted(&names, |_| 100);
        for (kind, make) in MAKERS {
            let table = make(&all);
            let (before, after) = (targets(&table, &all, |_| true), targets(&table, &all, |it| it != 4));
            let mut heirs = std::collections::BTreeMap::<&str, usize>::new();
            for (before, after) in before.iter().zip(&after) {
                if *before == all[4].0 {
                    *heirs.entry(after).or_default() += 1;
                } else {
                    assert_eq!(before, after, "{kind}");
                }
            }
            assert_eq!(heirs.len(), 9, "{kind}: {heirs:?}");
            assert!(heirs.values().all(|share| *share < 3_500), "{kind}: {heirs:?}");
        }
    }

    #[test]
    fn keys_are_shared_by_weight() {
        let names = names(4);
        let all = weighted(&names, |index| [10, 20, 30, 40][index]);
        for (kind, make) in MAKERS {
            let picked = targets(&make(&all), &all, |_| true);
            for (name, weight) in &all {
                let share = picked.iter().filter(|it| *it == name).count() as f64 / f64::from(KEYS) * 100.0;
                let off = (share - f64::from(*weight)).abs();
                assert!(off < if kind == "ring" { 1.0 } else { 0.5 }, "{kind}: {share} for {weight}");
            }
        }
    }

    #[test]
    fn the_order_in_which_targets_are_listed_does_not_matter() {
        let names = names(7);
        let all = weighted(&names, |index| index as u32 + 1);
        let turned: Vec<_> = all.iter().copied().rev().collect();
        for (kind, make) in MAKERS {
            let (one, other) = (make(&all), make(&turned));
            assert_eq!(targets(&one, &all, |_| true), targets(&other, &turned, |_| true), "{kind}");
        }
    }

    #[test]
    fn hashes_are_for_ever() {
        assert_eq!(stable_hash(b""), mix(0xcbf2_9ce4_8422_2325));
        // FNV-1a of "foobar", from its authors' test vectors.
        assert_eq!(stable_hash(b"foobar"), mix(0x8594_4171_f739_67e8));
    }

    #[test]
    fn without_targets_nothing_is_found() {
        for (kind, make) in MAKERS {
            assert_eq!(make(&[]).find(7, |_| true), None, "{kind}");
            assert_eq!(make(&[("a", 1)]).find(7, |_| false), None, "{kind}");
            assert_eq!(make(&[("a", 1)]).find(7, |_| true), Some(0), "{kind}");
        }
    }
}
