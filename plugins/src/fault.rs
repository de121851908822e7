//! Delays requests and fails them, to test how clients bear it.
//!
//! `delay` and `abort` each concern a share of the requests, and are drawn independently: a request may be delayed, failed, or delayed
//! and then failed. A `percent` of 0 concerns no request, one of 100 every request. The upstream gets nothing of a failed request.
//!
//! A delay takes `duration`, and up to `jitter` more, evenly distributed. It ends when the client goes away, and at the latest with the
//! `timeout` of the route, whose response is `504`. A failure is answered with the `status` as a problem; a gRPC call gets the gRPC
//! status that belongs to it.
//!
//! Clients cannot ask for a fault by headers of their own, unless `when` says so: `when: request.headers["x-fault"] == "on"`.

use std::time::Duration;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError, HumanDuration};
use signalbox_plugin::{Context, Definition, Flow, OnConditionError, Plugin, PluginRequest, Reply, hooks};

/// The faults.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Fault injection", example = serde_json::json!({
    "delay": {"duration": "200ms", "jitter": "300ms", "percent": 10}, "abort": {"status": 503, "percent": 0.5},
}), example = serde_json::json!({"abort": {"status": 500}}))]
pub(crate) struct Config {
    /// Delays requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Delay")]
    delay: Option<DelayConfig>,
    /// Fails requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Abort")]
    abort: Option<AbortConfig>,
}

/// A delay.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DelayConfig {
    /// The shortest delay; with `jitter` at most 10m.
    #[schemars(title = "Duration")]
    duration: HumanDuration,
    /// The longest time that is added at random. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Jitter")]
    jitter: Option<HumanDuration>,
    /// The share of requests, from 0 to 100.
    #[serde(default = "all")]
    #[schemars(title = "Percent", range(min = 0, max = 100))]
    percent: f64,
}

/// A failure.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AbortConfig {
    /// The status, from 400 to 599.
    #[schemars(title = "Status", range(min = 400, max = 599))]
    status: u16,
    /// The share of requests, from 0 to 100.
    #[serde(default = "all")]
    #[schemars(title = "Percent", range(min = 0, max = 100))]
    percent: f64,
}

/// Delays requests and fails them.
pub(crate) struct Fault {
    delay: Option<Delay>,
    abort: Option<Failing>,
    draw: Draw,
}

struct Delay {
    shortest: Duration,
    jitter: Duration,
    share: Share,
}

struct Failing {
    status: StatusCode,
    share: Share,
}

/// A share of requests, in millionths.
#[derive(Clone, Copy)]
struct Share(u32);

/// Draws a number below another, which is not zero.
type Draw = fn(u64) -> u64;

const MILLION: u64 = 1_000_000;

/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(600);

#[hooks]
impl Plugin for Fault {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let (delay, failure) = self.decide();
        if delay.is_some() {
            request.count("delayed");
        }
        if failure.is_some() {
            request.count("aborted");
        }
        let next = move || match failure {
            Some(status) => Reply::problem(status, "a fault was injected").into(),
            None => Flow::Continue,
        };
        match delay {
            None => next(),
            Some(delay) => Flow::Wait(Box::pin(async move {
                request.clock.sleep(delay).await;
                next()
            })),
        }
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for Fault {
    const NAME: &'static str = "fault";
    const DESCRIPTION: &'static str = "Delays requests and fails them, to test how clients bear it.";
    const ORDER: i32 = 995;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    const OUTCOMES: &'static [&'static str] = &["delayed", "aborted"];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        parse(config, errors);
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let built = parse(&config, &mut errors);
        errors.finish(Some(built))
    }
}

impl Fault {
    /// The delay of a request, and the status with which it fails.
    fn decide(&self) -> (Option<Duration>, Option<StatusCode>) {
        let delay = self.delay.as_ref().filter(|delay| delay.share.has(self.draw));
        let delay = delay.map(|delay| delay.shortest + self.jitter(delay.jitter));
        let failure = self.abort.as_ref().filter(|abort| abort.share.has(self.draw));
        (delay, failure.map(|abort| abort.status))
    }

    fn jitter(&self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX - 1);
        if micros == 0 { Duration::ZERO } else { Duration::from_micros((self.draw)(micros + 1)) }
    }
}

impl Share {
    fn has(self, draw: Draw) -> bool {
        self.0 > 0 && draw(MILLION) < u64::from(self.0)
    }
}

/// Reads a configuration. Parts that are wrong are missing from the result.
fn parse(config: &Config, errors: &mut Errors) -> Fault {
    if config.delay.is_none() && config.abort.is_none() {
        errors.push("", "needs delay, abort or both");
    }
    let delay = config.delay.as_ref().map(|delay| {
        let (shortest, jitter) = (delay.duration.0, delay.jitter.map_or(Duration::ZERO, |jitter| jitter.0));
        if shortest + jitter > MAX_DELAY {
            errors.push("delay.duration", "must be at most 10m together with jitter");
        }
        if (shortest + jitter).is_zero() {
            errors.push("delay.duration", "must be more than zero");
        }
        Delay { shortest, jitter, share: share(delay.percent, "delay.percent", errors) }
    });
    let abort = config.abort.as_ref().and_then(|abort| {
        let status = StatusCode::from_u16(abort.status).ok().filter(|_| (400..600).contains(&abort.status));
        if status.is_none() {
            errors.push("abort.status", "must be from 400 to 599");
        }
        let share = share(abort.percent, "abort.percent", errors);
        Some(Failing { status: status?, share })
    });
    Fault { delay, abort, draw: |below| fastrand::u64(..below) }
}

fn share(percent: f64, field: &str, errors: &mut Errors) -> Share {
    if !(0.0..=100.0).contains(&percent) {
        errors.push(field, "must be from 0 to 100");
        return Share(0);
    }
    let millionths = (percent * 1e4).round() as u32;
    if millionths == 0 && percent > 0.0 {
        errors.push(field, "must be 0, or at least 0.0001");
    }
    Share(millionths)
}

fn all() -> f64 {
    100.0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Client, refused};

    fn fault(config: Value, draw: Draw) -> Fault {
        let config: Config = serde_json::from_value(config).unwrap();
        let mut errors = Errors::default();
        let fault = Fault { draw, ..parse(&config, &mut errors) };
        errors.finish(Some(fault)).unwrap()
    }

    #[test]
    fn the_drawn_number_decides() {
        let millis = |millis| Some(Duration::from_millis(millis));
        let (least, greatest): (Draw, Draw) = (|_| 0, |below| below - 1);
        let both = json!({"delay": {"duration": "1s", "jitter": "500ms", "percent": 50}, "abort": {"status": 503, "percent": 1}});
        for (config, draw, delay, status) in [
            (both.clone(), least, millis(1000), Some(503)),
            (both.clone(), greatest, None, None),
            (both, |below| below / 2 - 1, Some(Duration::from_micros(1_249_999)), None),
            (json!({"delay": {"duration": "1s", "jitter": "500ms"}}), greatest, millis(1500), None),
            (json!({"delay": {"duration": "1s", "percent": 0}}), least, None, None),
            (json!({"abort": {"status": 500}}), greatest, None, Some(500)),
            (json!({"abort": {"status": 500, "percent": 0}}), least, None, None),
            (json!({"abort": {"status": 500, "percent": 0.0001}}), least, None, Some(500)),
            (json!({"abort": {"status": 500, "percent": 0.0001}}), |_| 1, None, None),
        ] {
            let decided = fault(config.clone(), draw).decide();
            assert_eq!(decided, (delay, status.map(|it| StatusCode::from_u16(it).unwrap())), "{config}");
        }
    }

    #[test]
    fn a_request_waits_and_then_fails() {
        let plugin = fault(json!({"delay": {"duration": "3s"}, "abort": {"status": 504}}), |_| 0);
        let mut client = Client::new("GET", "/").counting::<Fault>();
        let before = client.clock.monotonic();
        assert_eq!(client.meets(&plugin).unwrap().status, 504);
        assert_eq!(client.clock.monotonic() - before, Duration::from_secs(3));
        assert_eq!((client.counted("delayed"), client.counted("aborted")), (1, 1));
    }

    #[test]
    fn the_share_of_requests_is_the_configured_one() {
        let config = serde_json::from_value(json!({"abort": {"status": 500, "percent": 25}})).unwrap();
        let plugin = parse(&config, &mut Errors::default());
        fastrand::seed(7);
        let failed = (0..10_000).filter(|_| plugin.decide().1.is_some()).count();
        assert!((2300..2700).contains(&failed), "{failed}");
    }

    #[test]
    fn bad_configurations_are_refused() {
        for (config, field) in [
            (json!({}), "needs delay"),
            (json!({"delay": {}}), "delay.duration: "),
            (json!({"delay": {"duration": "11m"}}), "delay.duration: "),
            (json!({"delay": {"duration": "6m", "jitter": "5m"}}), "delay.duration: "),
            (json!({"delay": {"duration": "0s"}}), "delay.duration: "),
            (json!({"delay": {"duration": "1s", "percent": 101}}), "delay.percent: "),
            (json!({"abort": {"status": 302}}), "abort.status: "),
            (json!({"abort": {"status": 500, "percent": -1}}), "abort.percent: "),
            (json!({"abort": {"status": 500, "percent": 0.00001}}), "abort.percent: "),
        ] {
            let errors = refused("fault", config.clone());
            assert!(errors.starts_with(field), "{config}: {errors}");
        }
    }
}
