//! Progressive rollouts: one control plane, the leader, decides which proxies of a fleet get a revision, and takes it back when it hurts.
//!
//! The decisions themselves are pure functions of `signalbox-rollout`. This module brings them what they need, and stores what they decide:
//!
//! - [`counts`] takes in what proxies count, and passes it on to the leader;
//! - [`driver`] folds writes, commands and looks at one fleet into its state;
//! - [`lease`] makes one control plane the leader, and [`leader`] drives every fleet, each by a [`turn`]. Each decision is one transaction that
//!   fails if another control plane has the lease, so a leader that was paused changes nothing, whatever its clock says;
//! - [`service`] shows the rollouts to the API, takes the commands of people, and says what proxies are to count.

mod broken;
mod counts;
mod decide;
mod driver;
mod history;
mod leader;
mod lease;
mod propagation;
mod revisions;
mod run;
mod service;
mod turn;
mod view;
mod watched;

pub use service::{Answer, OpenRollouts, RolloutWait, Rollouts};
pub use watched::CountsWanted;
