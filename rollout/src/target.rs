//! The revision that each proxy of a fleet is to serve: a pure function of the fleet's row, the same on every replica.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The decision that is in force for a fleet. A fleet has one row, which each decision replaces by one with the next generation. It
/// is never deleted, because a proxy takes no decision of a lower generation than it has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetTarget {
    /// The fleet.
    pub fleet: Arc<str>,
    /// Counts the decisions about this fleet, from 1.
    pub generation: u64,
    /// The term of the leader that made the decision; 0 for one that was made by a write.
    pub term: u64,
    /// The decision.
    pub plan: Plan,
}

/// The revisions that a fleet's proxies are to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Plan {
    /// Every proxy serves the last revision as soon as it is committed.
    Head,
    /// Every proxy serves this revision.
    Stable {
        /// Its number.
        revision: u64,
    },
    /// Some proxies serve a revision that is being tried.
    Split {
        /// The number of the revision that the others serve.
        stable: u64,
        /// The revision that is being tried.
        candidate: Candidate,
    },
}

/// A revision that is being tried by a part of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its number.
    pub revision: u64,
    /// The id of the rollout.
    pub rollout: Arc<str>,
    /// The node ids of the proxies that serve it.
    pub members: BTreeSet<Arc<str>>,
    /// The members got it past the rollout's steps, with a person's reason.
    #[serde(default)]
    pub emergency: bool,
}

/// The revision that one proxy is to serve, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The revision; `None`: the last one.
    pub revision: Option<u64>,
    /// Why.
    pub because: Because,
}

/// The reason why a proxy is to serve a revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// Every proxy of the fleet serves it that is not a canary.
    #[default]
    Stable,
    /// The proxy is a canary of a rollout.
    Canary,
    /// The proxy got it past the rollout's steps.
    Emergency,
    /// The proxy is new since the rollout began, and takes no part in it.
    Newcomer,
}

impl FleetTarget {
    /// The revision that the proxy with this node id is to serve.
    pub fn of(&self, node: &str) -> Target {
        match &self.plan {
            Plan::Head => Target { revision: None, because: Because::Stable },
            Plan::Stable { revision } => Target { revision: Some(*revision), because: Because::Stable },
            Plan::Split { candidate, .. } if candidate.members.contains(node) => Target {
                revision: Some(candidate.revision),
                because: if candidate.emergency { Because::Emergency } else { Because::Canary },
            },
            Plan::Split { stable, .. } => Target { revision: Some(*stable), because: Because::Stable },
        }
    }

    /// The revisions that proxies of the fleet are to serve, but for the last one.
    pub fn revisions(&self) -> impl Iterator<Item = u64> + use<> {
        let (stable, candidate) = match &self.plan {
            Plan::Head => (None, None),
            Plan::Stable { revision } => (Some(*revision), None),
            Plan::Split { stable, candidate } => (Some(*stable), Some(candidate.revision)),
        };
        stable.into_iter().chain(candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split() -> FleetTarget {
        let members = ["b".into(), "c".into()].into();
        let candidate = Candidate { revision: 9, rollout: "9-edge".into(), members, emergency: false };
        let plan = Plan::Split { stable: 7, candidate };
        FleetTarget { fleet: "edge".into(), generation: 3, term: 1, plan }
    }

    #[test]
    fn only_members_get_the_candidate() {
        let target = split();
        for (node, revision, because) in [
            ("a", 7, Because::Stable),
            ("b", 9, Because::Canary),
            ("c", 9, Because::Canary),
            ("", 7, Because::Stable),
        ] {
            assert_eq!(target.of(node), Target { revision: Some(revision), because }, "{node}");
        }
        assert_eq!(target.revisions().collect::<Vec<_>>(), [7, 9]);
    }

    #[test]
    fn a_fleet_that_follows_the_head_pins_nothing() {
        let target = FleetTarget { plan: Plan::Head, ..split() };
        assert_eq!(target.of("b").revision, None);
        assert_eq!(target.revisions().count(), 0);
    }

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let text = serde_json::to_string(&split()).unwrap();
        assert_eq!(serde_json::from_str::<FleetTarget>(&text).unwrap(), split());
        assert!(text.contains("\"mode\":\"split\""), "{text}");
    }
}
