use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Errors;
use crate::values::HumanDuration;

/// How it is found out which targets work, as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheckSpec {
    /// The proxy asks each target again and again. A target counts as healthy until its first check, which is made at
    /// once and decides alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveCheckSpec>,
    /// The proxy watches what becomes of requests, and ejects targets that fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<PassiveCheckSpec>,
    /// When fewer than this many percent of the targets are healthy, all are used; 0: never; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold_percent: Option<u8>,
}

/// Active checks as people write them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActiveCheckSpec {
    /// What is asked.
    #[serde(default, rename = "type", skip_serializing_if = "crate::upstream::is_default")]
    pub kind: CheckKind,
    /// Of http: path and query; default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of http and grpc: the host that is asked for; default: the target's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Of grpc: the service that is asked for; default: the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// From one check to the next, give or take a tenth; default 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<HumanDuration>,
    /// A check that takes longer has failed; default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// So many checks in a row must succeed before an unhealthy target is healthy; default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy_after: Option<u32>,
    /// So many checks in a row must fail before a healthy target is unhealthy; default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_after: Option<u32>,
    /// Of http: the statuses that are good; default `[200]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<Vec<u16>>,
}

/// What an active check asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// A GET must be answered with a good status.
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
    /// A target is ejected when so many requests in a row fail: no connection, a reset, a timeout, or a status of 500
    /// and above; default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// How long a target must be back for one of its ejections to be forgotten; default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<HumanDuration>,
    /// How long a target is out the first time; the second time twice as long and so on, up to 5m; default 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection: Option<HumanDuration>,
    /// No more than this share of the targets is out at a time, but always one may be; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<u8>,
}

/// How it is found out which targets work.
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
    /// What is asked.
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

/// What an active check asks.
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

/// The number, if it lies within the bounds.
fn within<N: Copy + PartialOrd + std::fmt::Display>(
    given: Option<N>,
    default: N,
    lowest: N,
    highest: N,
    field: &str,
    errors: &mut Errors,
) -> N {
    let value = given.unwrap_or(default);
    if value < lowest || value > highest {
        errors.push(field, format_args!("must be from {lowest} to {highest}"));
    }
    value
}

/// The length of time, if it lies within the bounds; all in milliseconds.
pub(crate) fn between(
    given: Option<HumanDuration>,
    default: u64,
    lowest: u64,
    highest: u64,
    field: &str,
    errors: &mut Errors,
) -> Duration {
    let [default, lowest, highest] = [default, lowest, highest].map(Duration::from_millis);
    let value = given.map_or(default, |value| value.0);
    if value < lowest || value > highest {
        let (lowest, highest) = (HumanDuration(lowest), HumanDuration(highest));
        errors.push(field, format_args!("must be from {lowest} to {highest}"));
    }
    value
}
