//! The parts that plugins which limit clients share: who a client is, how its requests are counted, where the counts are,
//! and which headers tell of them.

mod bucket;
mod budget;
mod by;
mod headers;
mod in_flight;
mod lease;
mod leased;
mod local;
#[cfg(test)]
mod model;
mod on_store_error;
mod shared;
#[cfg(test)]
mod simulation;
mod usage;
mod window;

pub(crate) use budget::{Budget, Verdict, nanoseconds};
pub(crate) use by::{By, Client, ClientId, ClientKey};
pub(crate) use headers::{LimitHeaders, retry_after};
pub(crate) use in_flight::InFlight;
pub(crate) use leased::LeasedCounts;
pub(crate) use local::Counters;
pub(crate) use on_store_error::OnStoreError;
pub(crate) use shared::{MAX_SPAN, SharedCounts, SharedId};
