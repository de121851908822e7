//! The resources that a document would delete, and the check that these are not too many to be meant.

use std::collections::BTreeMap;
use std::fmt;

use signalbox_config::Kind;

/// The resources that a document would delete.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Deletions {
    /// The number of resources that would be deleted.
    pub total: usize,
    /// The number of resources before.
    pub of: usize,
    /// How many of each kind.
    pub by_kind: BTreeMap<Kind, usize>,
    /// True if no listener would be left.
    pub last_listener: bool,
}

impl Deletions {
    pub(super) fn is_mass(&self) -> bool {
        self.last_listener || self.total * 2 > self.of
    }
}

impl fmt::Display for Deletions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self
            .by_kind
            .iter()
            .map(|(kind, count)| match count {
                1 => format!("1 {kind}"),
                count => format!("{count} {}", kind.plural()),
            })
            .collect();
        write!(f, "it would delete {} of {} resources ({})", self.total, self.of, each.join(", "))?;
        if self.last_listener { f.write_str(" and leave no listener") } else { Ok(()) }
    }
}
