use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounds::within;
use crate::error::Errors;

/// The gates of a rollout, as people write them: what the canaries may do worse than the other proxies.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GatesSpec {
    /// Responses with a status of 500 and above; by default with a `tolerated_ratio` of 1.25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<RateGateSpec>,
    /// Responses that are slower than those of the other proxies; by default with a `tolerated_ratio` of 1.25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<RateGateSpec>,
    /// Requests without a route, and responses with a status from 400 to 499; by default with a `tolerated_ratio` of 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_found: Option<RateGateSpec>,
    /// The requests of canaries that a step needs before it can pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<CoverageGateSpec>,
    /// The most canaries that may reject the revision or crash on it; default 0.
    #[schemars(range(min = 0, max = 1000), example = 0)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<u32>,
    /// The most canaries that may be lost in a rollout; default 1. It fails if more are lost, and more than twice as often as the other
    /// proxies.
    #[schemars(range(min = 0, max = 1000), example = 1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u32>,
    /// CPU time per request. Each proxy is compared with itself in the hour before the step. The gate fails if more canaries than other
    /// proxies need too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuGateSpec>,
}

/// A gate on the share of some responses, as people write it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateGateSpec {
    /// The tolerated share at the canaries in relation to the share at the other proxies, from 1 to 100.
    #[schemars(range(min = 1, max = 100), example = 1.25)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerated_ratio: Option<f64>,
    /// The share that is tolerated at the canaries in any case, from 0 to 1; default 0.001, for `latency` 0.002 and for `not_found` 0.01.
    #[schemars(range(min = 0, max = 1), example = 0.001)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    /// The probability, from 0.5 to 0.999999, with which a revision that is as good as the one before passes; default 0.999.
    #[schemars(range(min = 0.5, max = 0.999_999), example = 0.999)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// The gate on coverage, as people write it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CoverageGateSpec {
    /// The fewest requests that the canaries must have served in a step before it can pass: in all, and of each changed route or upstream
    /// that has traffic or had some in the last hour; default 50. 0 means one request in all.
    #[schemars(range(min = 0, max = 1_000_000), example = 50)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
}

/// The gate on CPU time, as people write it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuGateSpec {
    /// The CPU time per request that a canary may need in relation to what the same proxy needed in the hour before the step, from 1 to
    /// 100; default 1.5.
    #[schemars(range(min = 1, max = 100), example = 1.5)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerated_ratio: Option<f64>,
}

/// The gates of a rollout.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gates {
    /// Responses with a status of 500 and above.
    pub errors: RateGate,
    /// Responses that are slower than those of the other proxies.
    pub latency: RateGate,
    /// Requests without a route, and responses with a status from 400 to 499.
    pub not_found: RateGate,
    /// The fewest requests that the canaries must have served, in all and of each changed route or upstream with traffic.
    pub min_requests: u32,
    /// The most canaries that may reject the revision or crash on it.
    pub rejected: u32,
    /// The most canaries that may be lost.
    pub lost: u32,
    /// The tolerated CPU time per request in relation to the same proxy's before.
    pub cpu_ratio: f64,
}

/// A gate on the share of some responses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateGate {
    /// The tolerated share in relation to the other proxies' share; at least 1.
    pub tolerated_ratio: f64,
    /// The share that is tolerated in any case, from 0 to 1.
    pub floor: f64,
    /// The probability with which a revision that is as good as the one before passes; less than 1.
    pub confidence: f64,
}

impl GatesSpec {
    pub(crate) fn parse(&self, field: &str, errors: &mut Errors) -> Gates {
        let mut rate = |name: &str, spec: &Option<RateGateSpec>, defaults: (f64, f64)| {
            let none = RateGateSpec::default();
            spec.as_ref().unwrap_or(&none).parse(defaults, &format!("{field}.{name}"), errors)
        };
        let [failed, latency, not_found] = [
            rate("errors", &self.errors, (1.25, 0.001)),
            rate("latency", &self.latency, (1.25, 0.002)),
            rate("not_found", &self.not_found, (2.0, 0.01)),
        ];
        let min_requests = self.coverage.as_ref().and_then(|spec| spec.min_requests);
        let cpu_ratio = self.cpu.as_ref().and_then(|spec| spec.tolerated_ratio);
        let at = |name: &str| format!("{field}.{name}");
        Gates {
            errors: failed,
            latency,
            not_found,
            min_requests: within(min_requests, 50, 0, 1_000_000, &at("coverage.min_requests"), errors),
            rejected: within(self.rejected, 0, 0, 1000, &at("rejected"), errors),
            lost: within(self.lost, 1, 0, 1000, &at("lost"), errors),
            cpu_ratio: within(cpu_ratio, 1.5, 1.0, 100.0, &at("cpu.tolerated_ratio"), errors),
        }
    }
}

impl RateGateSpec {
    fn parse(&self, (ratio, floor): (f64, f64), field: &str, errors: &mut Errors) -> RateGate {
        let at = |name: &str| format!("{field}.{name}");
        RateGate {
            tolerated_ratio: within(self.tolerated_ratio, ratio, 1.0, 100.0, &at("tolerated_ratio"), errors),
            floor: within(self.floor, floor, 0.0, 1.0, &at("floor"), errors),
            confidence: within(self.confidence, 0.999, 0.5, 0.999_999, &at("confidence"), errors),
        }
    }
}
