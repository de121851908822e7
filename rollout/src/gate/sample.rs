//! The counts of requests.

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use crate::reading::Scope;

/// Counts of requests. In a report they count from the start of the proxy, elsewhere over a window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// All requests that have ended.
    pub requests: u64,
    /// Those with a status of 500 and above.
    pub errors: u64,
    /// Those without a route, and those with a status from 400 to 499.
    pub not_found: u64,
    /// CPU time in microseconds.
    pub cpu_us: u64,
    /// Their latencies.
    pub latency: Histogram,
}

/// The counts of one scope, for the requests that began under one generation of the fleet's target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    /// The generation.
    pub generation: u64,
    /// The scope.
    pub scope: Scope,
    /// The counts.
    pub sample: Sample,
}

impl Sample {
    /// Adds the counts of another sample.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        self.not_found = self.not_found.saturating_add(other.not_found);
        self.cpu_us = self.cpu_us.saturating_add(other.cpu_us);
        self.latency.merge(&other.latency);
    }

    /// The counts since an earlier state of the same counters; `None` if one of them went down.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            requests: self.requests.checked_sub(earlier.requests)?,
            errors: self.errors.checked_sub(earlier.errors)?,
            not_found: self.not_found.checked_sub(earlier.not_found)?,
            cpu_us: self.cpu_us.checked_sub(earlier.cpu_us)?,
            latency: self.latency.since(&earlier.latency)?,
        })
    }

    /// True if nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
