//! Rules over the state of the proxies, the database and the traffic, which say in plain words what is wrong.
//!
//! [`facts`] is what the rules look at, [`rules`] has the order of the rules, which are in [`proxy_rules`] and [`request_rules`], and
//! [`incidents`] joins what they find over time. [`service`] looks every ten seconds.

mod blame;
mod facts;
mod finding;
mod incidents;
mod parts;
mod proxy_rules;
mod request_rules;
mod rules;
mod service;
mod significance;
mod view;

pub use finding::{Resource, Rule};
pub use incidents::{Incident, IncidentChange, Report};
pub use service::HealthReports;
pub use view::{IncidentEvent, IncidentView};
