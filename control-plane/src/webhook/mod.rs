//! Webhooks: one control plane, the one that holds the lease of the leader, sends revisions, rollouts and incidents to addresses.
//!
//! - [`event`] makes events of what other parts tell, [`slack`] writes them for Slack, and [`signature`] signs what is sent;
//! - [`queue`] keeps the events that a webhook is still to get, and [`retry`] decides what follows from an attempt;
//! - [`call`] sends one request, with the secrets that [`host_secret`] reads;
//! - [`endpoint`] is one webhook with its queue and its last attempts;
//! - [`service`] brings each event to the webhooks that want it, or keeps it in [`held`] while another control plane sends.
//!
//! Sending never delays what it tells of: events come over bounded channels, and each webhook has a task and a bounded queue of its own.

mod call;
mod endpoint;
mod event;
mod held;
mod host_secret;
mod queue;
mod retry;
mod service;
mod signature;
mod slack;

pub use endpoint::{Attempt, AttemptResult};
pub use service::{Deliveries, Webhooks};
