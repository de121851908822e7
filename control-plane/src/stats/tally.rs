//! Counts by name.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// Counts by name, of at most [`MOST`] names: beyond, the smallest counts are left out. Most series have none, and take no memory for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(Vec<(Arc<str>, u64)>);

/// The most names.
const MOST: usize = 16;

/// The longest name, in bytes.
const LONGEST: usize = 64;

impl Tally {
    /// Adds the counts of another.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            self.count(name, *count);
        }
    }

    /// The counts by name, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (&**name, *count))
    }

    /// The sum of all counts.
    pub fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The same names with other counts; those of 0 are left out.
    #[must_use]
    pub fn map(&self, count: impl Fn(u64) -> u64) -> Self {
        let counts = self.0.iter().map(|(name, old)| (Arc::clone(name), count(*old)));
        Self(counts.filter(|(_, count)| *count > 0).collect())
    }

    fn count(&mut self, name: &Arc<str>, count: u64) {
        match self.0.binary_search_by(|(known, _)| known.cmp(name)) {
            Ok(place) => {
                self.0.get_mut(place).into_iter().for_each(|(_, sum)| *sum = sum.saturating_add(count));
            }
            Err(_) if count == 0 => {}
            Err(place) if self.0.len() < MOST => self.0.insert(place, (Arc::clone(name), count)),
            Err(_) => self.replace_smallest(name, count),
        }
    }
}

impl Tally {
    /// Takes the place of the smallest count, if this one is greater.
    fn replace_smallest(&mut self, name: &Arc<str>, count: u64) {
        let smallest = self.0.iter_mut().min_by_key(|(_, known)| *known);
        if let Some(smallest) = smallest.filter(|(_, known)| *known < count) {
            *smallest = (Arc::clone(name), count);
            self.0.sort_unstable();
        }
    }

    /// True if nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The flags among these counts; what is no flag is left out. Names are shared, as many series have them.
    pub fn of_flags(counts: &HashMap<String, u64>) -> Self {
        let mut tally = Self::default();
        for flag in FLAGS.iter() {
            if let Some(count) = counts.get(&**flag) {
                tally.count(flag, *count);
            }
        }
        tally
    }
}

/// The flags that proxies tell.
static FLAGS: LazyLock<Vec<Arc<str>>> = LazyLock::new(|| {
    let flags = ["NR", "UH", "UF", "UO", "UT", "UC", "UPE", "DC", "DPE", "SI", "OM", "URX", "PP", "PA"];
    flags.map(Arc::from).into()
});

impl From<&HashMap<String, u64>> for Tally {
    fn from(counts: &HashMap<String, u64>) -> Self {
        let mut tally = Self::default();
        for (name, count) in counts.iter().filter(|(name, _)| name.len() <= LONGEST) {
            tally.count(&name.as_str().into(), *count);
        }
        tally
    }
}

impl From<&Tally> for HashMap<String, u64> {
    fn from(tally: &Tally) -> Self {
        tally.iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_added_by_name_and_names_are_few() {
        let tally = |counts: &[(&str, u64)]| {
            Tally::from(&counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect())
        };
        let mut sum = tally(&[("UT", 2), ("UH", 1), ("none", 0)]);
        sum.add(&tally(&[("UT", 3), ("NR", u64::MAX), ("long".repeat(20).as_str(), 1)]));
        assert_eq!(sum.iter().collect::<Vec<_>>(), [("NR", u64::MAX), ("UH", 1), ("UT", 5)]);
        assert_eq!(sum.sum(), u64::MAX);
        assert_eq!(sum.map(|count| count / 2).iter().count(), 2);
        for number in 0..100 {
            sum.add(&tally(&[(&format!("name{number}"), 1)]));
        }
        sum.add(&tally(&[("late", 2)]));
        assert_eq!(sum.iter().count(), MOST);
        assert!(sum.iter().any(|(name, _)| name == "late"), "greater counts stay");
        assert!(sum.iter().map(|(name, _)| name).is_sorted());
        let flags = Tally::of_flags(&[("UT".to_owned(), 3), ("made up".to_owned(), 9)].into());
        assert_eq!(flags.iter().collect::<Vec<_>>(), [("UT", 3)]);
    }
}
