use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounds::{between, within};
use crate::error::Errors;
use crate::values::HumanDuration;

/// Health checks of targets, as people write them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheckSpec {
    /// Active checks: the proxy calls each target at intervals. A target counts as healthy until its first check, which is made at
    /// once and decides alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveCheckSpec>,
    /// Passive checks: the proxy watches the results of requests, and ejects targets that fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<PassiveCheckSpec>,
    /// The share of healthy targets, in percent, below which all targets are used; default 50. 0: unhealthy targets are never used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold_percent: Option<u8>,
}

/// Active checks as people write them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActiveCheckSpec {
    /// The type of the check.
    #[serde(default, rename = "type", skip_serializing_if = "crate::values::is_default")]
    pub kind: CheckKind,
    /// For `http`: the path and query of the request; default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// For `http` and `grpc`: the host of the request. Absent: the target's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// For `grpc`: the name of the service. Absent: the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The time from one check to the next, with a jitter of a tenth; default 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<HumanDuration>,
    /// The longest time of a check; default 1s. A check that takes longer has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// The number of successful checks in a row after which an unhealthy target is healthy; default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_after: Option<u32>,
    /// The number of failed checks in a row after which a healthy target is unhealthy; default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_after: Option<u32>,
    /// For `http`: the statuses of a successful check; default `[200]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<Vec<u16>>,
}

/// The type of an active check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// A GET request must be answered with one of `statuses`.
    #[default]
    Http,
    /// A connection must be accepted.
    Tcp,
    /// `grpc.health.v1.Health/Check` must answer `SERVING`.
    Grpc,
}

/// Passive checks as people write them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PassiveCheckSpec {
    /// The number of failed requests in a row after which a target is ejected; default 5. A request fails without a connection, by a
    /// reset or a timeout, or with a status of 500 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// The time without ejection after which one earlier ejection of a target no longer counts; default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<HumanDuration>,
    /// The time of the first ejection; default 30s. Each further ejection takes twice as long, up to 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<HumanDuration>,
    /// The largest share of targets that are ejected at once, in percent; default 50. One target may always be ejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<u8>,
}

/// Health checks of targets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    /// The proxy asks.
    pub active: Option<ActiveCheck>,
    /// The proxy watches.
    pub passive: Option<PassiveCheck>,
    /// With a smaller share of healthy targets all are used.
    pub panic_threshold_percent: u8,
}

/// An active check.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ActiveCheck {
    /// The request or connection that is tried.
    pub probe: Probe,
    /// The host that is asked for; `None`: the target's address.
    pub host: Option<Box<str>>,
    /// From one check to the next.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Successes in a row.
    pub healthy_after: u32,
    /// Failures in a row.
    pub unhealthy_after: u32,
}

/// The request or connection that an active check tries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Probe {
    /// A GET.
    Http {
        /// Path and query.
        path: Box<str>,
        /// The good ones.
        statuses: Box<[u16]>,
    },
    /// A connection.
    Tcp,
    /// The gRPC health service.
    Grpc {
        /// Empty: the server.
        service: Box<str>,
    },
}

/// A passive check.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PassiveCheck {
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// For an ejection to be forgotten.
    pub interval: Duration,
    /// The first time.
    pub ejection: Duration,
    /// From 1 to 100.
    pub max_ejected_percent: u8,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { active: None, passive: None, panic_threshold_percent: 50 }
    }
}

impl HealthCheckSpec {
    pub(crate) fn parse(&self, errors: &mut Errors) -> HealthCheck {
        let field = "health_check.panic_threshold_percent";
        HealthCheck {
            active: self.active.as_ref().map(|active| active.parse(errors)),
            passive: self.passive.as_ref().map(|passive| passive.parse(errors)),
            panic_threshold_percent: within(self.panic_threshold_percent, 50, 0, 100, field, errors),
        }
    }
}

impl ActiveCheckSpec {
    fn parse(&self, errors: &mut Errors) -> ActiveCheck {
        let at = |field: &str| format!("health_check.active.{field}");
        for (given, kinds, field, of) in [
            (self.path.is_some(), &[CheckKind::Http][..], "path", "http"),
            (self.statuses.is_some(), &[CheckKind::Http], "statuses", "http"),
            (self.host.is_some(), &[CheckKind::Http, CheckKind::Grpc], "host", "http and grpc"),
            (self.service.is_some(), &[CheckKind::Grpc], "service", "grpc"),
        ] {
            if given && !kinds.contains(&self.kind) {
                errors.push(at(field), format_args!("is only for checks of the type {of}"));
            }
        }
        let path = self.path.as_deref().unwrap_or("/");
        let visible = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        if !path.starts_with('/') || path.len() > 1024 || !visible(path) {
            let message = "must begin with / and have up to 1024 visible ASCII characters, spaces encoded";
            errors.push(at("path"), message);
        }
        let wrong_host = |host: &String| host.is_empty() || host.len() > 255 || !visible(host);
        if self.host.as_ref().is_some_and(wrong_host) {
            errors.push(at("host"), "is not a host");
        }
        if self.service.as_ref().is_some_and(|service| service.len() > 255 || !visible(service)) {
            errors.push(at("service"), "is not the name of a gRPC service");
        }
        let statuses = self.statuses.as_deref().unwrap_or(&[200]);
        if statuses.is_empty() || statuses.len() > 100 {
            errors.push(at("statuses"), "needs from 1 to 100 entries");
        }
        for (index, status) in statuses.iter().enumerate() {
            if !(200..=599).contains(status) {
                errors.push(at(&format!("statuses[{index}]")), "must be from 200 to 599");
            }
        }
        ActiveCheck {
            probe: match self.kind {
                CheckKind::Http => Probe::Http { path: path.into(), statuses: statuses.into() },
                CheckKind::Tcp => Probe::Tcp,
                CheckKind::Grpc => {
                    Probe::Grpc { service: self.service.as_deref().unwrap_or_default().into() }
                }
            },
            host: self.host.as_deref().map(Box::from),
            interval: between(self.interval, 5_000, 100, 3_600_000, &at("interval"), errors),
            timeout: between(self.timeout, 1_000, 10, 60_000, &at("timeout"), errors),
            healthy_after: within(self.healthy_after, 2, 1, 100, &at("healthy_after"), errors),
            unhealthy_after: within(self.unhealthy_after, 3, 1, 100, &at("unhealthy_after"), errors),
        }
    }
}

impl PassiveCheckSpec {
    fn parse(&self, errors: &mut Errors) -> PassiveCheck {
        let at = |field: &str| format!("health_check.passive.{field}");
        let failures = self.consecutive_failures;
        PassiveCheck {
            consecutive_failures: within(failures, 5, 1, 10_000, &at("consecutive_failures"), errors),
            interval: between(self.interval, 10_000, 100, 3_600_000, &at("interval"), errors),
            ejection: between(self.ejection, 30_000, 100, 3_600_000, &at("ejection"), errors),
            max_ejected_percent: within(
                self.max_ejected_percent,
                50,
                1,
                100,
                &at("max_ejected_percent"),
                errors,
            ),
        }
    }
}
