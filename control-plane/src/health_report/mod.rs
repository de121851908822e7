//! Rules over the state of the proxies, the database and the traffic, which say in plain words what is wrong.
//!
//! [`facts`] is what the rules look at, [`rules`] has the rules, in their order, and [`incidents`] joins what they find over time.
//! [`service`] looks every ten seconds.

mod facts;
mod incidents;
mod rules;
mod service;
mod significance;

pub use incidents::{Incident, Report};
pub use rules::{Resource, Rule};
pub use service::HealthReports;
