//! Forwards a request to an upstream.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::time::Duration;

use http::HeaderValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rewrite::{Rewrite, RewriteSpec};
use crate::error::{Errors, FieldError};
use crate::key::{Name, ResourceKey};
use crate::kind::Kind;
use crate::matchable::{self, Subject};
use crate::retry::{Retry, RetrySpec};
use crate::values::{HumanDuration, millionths};

/// Forwards the request to an upstream.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// The upstreams. Each request goes to one of them, drawn by weight.
    pub upstreams: Vec<WeightedSpec>,
    /// Changes to the request before it is forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<RewriteSpec>,
    /// The longest time for the whole request, from its head to the last byte of the response; default 30s. `0s`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// The longest time without a byte in either direction, counted from the head of the request; default 5m. `0s`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<HumanDuration>,
    /// The failures after which the request is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// Mirrors requests: sends copies to another upstream, whose responses are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorSpec>,
    /// The protocols that clients may switch to, named as in the header `Upgrade`. `connect` stands for CONNECT requests, which are
    /// tunneled to a target of the upstream, whatever address they ask for. Default `[websocket]`. Empty: no protocol.
    #[schemars(example = ["websocket"])]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrades: Option<Vec<String>>,
}

/// Sends copies of requests to another upstream, whose responses are dropped. A copy has the header `x-mirrored-by`. A request
/// whose body is larger than 1 MiB is not copied.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorSpec {
    /// The name of the upstream that gets the copies.
    pub upstream: String,
    /// The share of requests that is copied, in percent from 0 to 100; default 100.
    #[schemars(range(min = 0, max = 100), example = 100)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// An upstream and its weight.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedSpec {
    /// The name of the upstream.
    pub name: String,
    /// The share of requests in relation to the other upstreams' weights; default 1, at most 1000000. 0: no requests.
    #[schemars(example = 1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// Forwards the request to an upstream.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Never empty.
    pub upstreams: Box<[WeightedUpstream]>,
    /// Those of weight 0, which get no requests but must exist, each with its place in the list as written.
    pub idle: Box<[(usize, Name)]>,
    /// Changes to the request. Boxed like the other fields that few routes have, because there may be 100,000 routes.
    pub rewrite: Option<Box<Rewrite>>,
    /// The longest time for the whole request; `None`: no limit.
    pub timeout: Option<Duration>,
    /// The longest time without a byte in either direction; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// The failures after which the request is tried again.
    pub retry: Option<Box<Retry>>,
    /// The upstream that gets copies.
    pub mirror: Option<Box<Mirror>>,
    /// The protocols that clients may switch to; `None`: WebSocket only.
    upgrades: Option<Box<Upgrades>>,
}

/// The protocols that clients may switch to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Upgrades {
    /// In lower case.
    protocols: Box<[HeaderValue]>,
    connect: bool,
}

/// The upstream that gets copies of requests.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// The name of the upstream.
    pub upstream: Name,
    /// The share of requests that is copied, in millionths.
    pub millionths: u32,
}

/// An upstream and its weight.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightedUpstream {
    /// The name of the upstream.
    pub name: Name,
    /// Its weight.
    pub weight: NonZeroU32,
}

/// The most upstreams that a route may name.
const MAX_UPSTREAMS: usize = 100;
const MAX_UPGRADES: usize = 16;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Envoy's.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

impl ForwardSpec {
    /// Finds a pattern that matches nothing.
    pub(super) fn check_written(&self) -> Option<FieldError> {
        let pattern = &self.rewrite.as_ref()?.path_regex.as_ref()?.pattern;
        let message = matchable::check(pattern, Subject::WithinPath).err()?;
        Some(FieldError::new("forward.rewrite.path_regex.pattern", message))
    }

    pub(super) fn parse(&self, has_prefix: bool, errors: &mut Errors) -> Forward {
        let mut upstreams: Vec<WeightedUpstream> = Vec::with_capacity(self.upstreams.len());
        let mut idle: Vec<(usize, Name)> = Vec::new();
        let mut names: HashSet<&str> = HashSet::new();
        for (index, spec) in self.upstreams.iter().enumerate() {
            let field = format!("forward.upstreams[{index}]");
            let weight = spec.weight.unwrap_or(1);
            if weight > 1_000_000 {
                errors.push(format_args!("{field}.weight"), "must be at most 1000000");
            }
            if !names.insert(&spec.name) {
                errors.push(format_args!("{field}.name"), format_args!("{:?} is listed twice", spec.name));
            }
            match spec.name.parse() {
                Ok(name) => match NonZeroU32::new(weight) {
                    Some(weight) => upstreams.push(WeightedUpstream { name, weight }),
                    None => idle.push((index, name)),
                },
                Err(message) => errors.push(format_args!("{field}.name"), message),
            }
        }
        if self.upstreams.is_empty() {
            errors.push("forward.upstreams", "needs at least one");
        } else if self.upstreams.iter().all(|spec| spec.weight == Some(0)) {
            errors.push("forward.upstreams", "needs at least one with a weight above 0");
        } else if self.upstreams.len() > MAX_UPSTREAMS {
            let len = self.upstreams.len();
            errors.push("forward.upstreams", format_args!("has {len} entries; at most {MAX_UPSTREAMS}"));
        }
        let timeout = self.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0);
        let idle_timeout = self.idle_timeout.map_or(DEFAULT_IDLE_TIMEOUT, |timeout| timeout.0);
        Forward {
            upstreams: upstreams.into(),
            idle: idle.into(),
            rewrite: self.rewrite.as_ref().map(|rewrite| Box::new(rewrite.parse(has_prefix, errors))),
            timeout: (!timeout.is_zero()).then_some(timeout),
            idle_timeout: (!idle_timeout.is_zero()).then_some(idle_timeout),
            retry: self.retry.as_ref().map(|retry| Box::new(retry.parse("forward.retry", errors))),
            mirror: self
                .mirror
                .as_ref()
                .and_then(|mirror| mirror.parse("forward.mirror", errors))
                .map(Box::new),
            upgrades: self.upgrades.as_ref().map(|list| Box::new(parse_upgrades(list, errors))),
        }
    }
}

impl Forward {
    /// The name of `protocol`, if clients may switch to it.
    pub fn upgrades_to(&self, protocol: &[u8]) -> Option<HeaderValue> {
        static USUAL: HeaderValue = HeaderValue::from_static("websocket");
        let allowed = self.upgrades.as_ref().map_or(std::slice::from_ref(&USUAL), |it| &it.protocols);
        allowed.iter().find(|it| it.as_bytes().eq_ignore_ascii_case(protocol)).cloned()
    }

    /// True if a CONNECT request is connected to a target.
    pub fn connects(&self) -> bool {
        self.upgrades.as_ref().is_some_and(|upgrades| upgrades.connect)
    }

    /// The upstreams that it names, each with the field.
    pub(super) fn references(&self) -> Vec<(ResourceKey, String)> {
        let listed = self.listed().enumerate().map(|(index, name)| {
            let field = format!("forward.upstreams[{index}].name");
            (ResourceKey::new(Kind::Upstream, name.clone()), field)
        });
        let mirror = self.mirror.iter().map(|mirror| {
            let key = ResourceKey::new(Kind::Upstream, mirror.upstream.clone());
            (key, "forward.mirror.upstream".to_owned())
        });
        listed.chain(mirror).collect()
    }

    /// Every upstream as written, in that order.
    fn listed(&self) -> impl Iterator<Item = &Name> {
        let mut idle = self.idle.iter().peekable();
        let mut active = self.upstreams.iter();
        (0..self.upstreams.len() + self.idle.len()).filter_map(move |place| {
            match idle.next_if(|(index, _)| *index == place) {
                Some((_, name)) => Some(name),
                None => active.next().map(|upstream| &upstream.name),
            }
        })
    }
}

fn parse_upgrades(list: &[String], errors: &mut Errors) -> Upgrades {
    let mut upgrades = Upgrades { protocols: Box::default(), connect: false };
    let mut protocols: Vec<HeaderValue> = Vec::new();
    if list.len() > MAX_UPGRADES {
        errors.push("forward.upgrades", format_args!("has {} entries; at most {MAX_UPGRADES}", list.len()));
    }
    for (index, name) in list.iter().enumerate() {
        let field = format!("forward.upgrades[{index}]");
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._~+!/".contains(&b);
        match (name.as_str(), HeaderValue::from_str(name)) {
            ("connect", _) if !upgrades.connect => upgrades.connect = true,
            // After the switch the proxy would neither see nor check the requests.
            ("h2c" | "h2" | "http/2.0" | "http/2", _) => {
                errors.push(field, "is HTTP itself, which is not passed through unseen");
            }
            (_, Ok(value)) if !name.is_empty() && name.len() <= 64 && name.bytes().all(is_name) => {
                if upgrades.connect && name == "connect" || protocols.contains(&value) {
                    errors.push(field, format_args!("{name:?} is listed twice"));
                }
                protocols.push(value);
            }
            _ => errors.push(field, format_args!("{name:?} is not the name of a protocol, in lower case")),
        }
    }
    upgrades.protocols = protocols.into();
    upgrades
}

impl MirrorSpec {
    fn parse(&self, field: &str, errors: &mut Errors) -> Option<Mirror> {
        let millionths = millionths(self.percent.unwrap_or(100.0) / 100.0);
        if millionths.is_none() {
            errors.push(format_args!("{field}.percent"), "must be from 0 to 100");
        }
        match self.upstream.parse() {
            Ok(upstream) => Some(Mirror { upstream, millionths: millionths? }),
            Err(message) => {
                errors.push(format_args!("{field}.upstream"), message);
                None
            }
        }
    }
}
