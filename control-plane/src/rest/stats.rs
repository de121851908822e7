//! The endpoint that reads traffic as time series.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::response::Response;
use futures_util::FutureExt as _;
use http::Method;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use signalbox_config::{HumanDuration, Name};

use super::call::{Call, ok};
use super::endpoint::{Endpoint, FLEET, Parameter, Place};
use super::problem::Problem;
use crate::clock::{now_us, rfc3339};
use crate::stats::{AnsweredSeries, Dimension, Point, Query, Select};

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::new(Method::GET, "/stats", "getStats", |call| async move { stats(&call) }.boxed())
            .text(
                "proxies",
                "Read traffic as time series. At most one of route, upstream, consumer, proxy and revision may be given; `*` asks for one series for each",
            )
            .parameters(&[FLEET, ROUTE, UPSTREAM, CONSUMER, PROXY, REVISION, FROM, TO, STEP, SERIES])
            .answer::<StatsAnswer>(200, "The series, those with the most requests first"),
    ]
}

const fn of_kind(name: &'static str, text: &'static str) -> Parameter {
    Parameter { name, place: Place::Query, schema: || json!({"type": "string"}), text }
}

const ROUTE: Parameter = of_kind("route", "The requests that took this route; `*`: a series for each route");
const UPSTREAM: Parameter =
    of_kind("upstream", "The requests for this upstream; `*`: a series for each upstream");
const CONSUMER: Parameter =
    of_kind("consumer", "The requests of this consumer; `*`: a series for each consumer");
const PROXY: Parameter = of_kind("proxy", "The requests of this proxy; `*`: a series for each proxy");
const REVISION: Parameter = of_kind(
    "revision",
    "The requests that ended while their proxy served this revision; `*`: a series for each revision",
);

const FROM: Parameter = Parameter {
    name: "from",
    place: Place::Query,
    schema: || json!({"type": "string", "format": "date-time"}),
    text: "The begin, at most seven days ago. Absent: 15 minutes before the end",
};

const TO: Parameter = Parameter {
    name: "to",
    place: Place::Query,
    schema: || json!({"type": "string", "format": "date-time"}),
    text: "The end. Absent: now",
};

const STEP: Parameter = Parameter {
    name: "step",
    place: Place::Query,
    schema: || json!({"type": "string"}),
    text: "The time between two points: 10s or more for the last hour, 1m for the last day, 10m before. Absent: the range has some 90 points",
};

const SERIES: Parameter = Parameter {
    name: "limit",
    place: Place::Query,
    schema: || json!({"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
    text: "The most series",
};

/// Time series of traffic.
#[derive(Debug, Serialize, JsonSchema)]
struct StatsAnswer {
    /// RFC 3339.
    from: String,
    /// RFC 3339.
    to: String,
    /// The time between two points.
    step: HumanDuration,
    /// The series, those with the most requests first.
    series: Vec<Series>,
}

/// A time series.
#[derive(Debug, Serialize, JsonSchema)]
struct Series {
    /// The fleet, and the name of the route, upstream, consumer, proxy or revision, if the request names them. `_other` has those that are not
    /// counted apart.
    labels: BTreeMap<&'static str, String>,
    /// A point for each step in which requests have ended.
    points: Vec<SeriesPoint>,
}

/// The requests that ended within a step.
#[derive(Debug, Serialize, JsonSchema)]
struct SeriesPoint {
    /// The begin of the step, RFC 3339.
    at: String,
    /// The number of requests.
    requests: u64,
    /// The requests by the class of their status.
    classes: Classes,
    /// The median of the latencies in milliseconds, at most 9 % too high.
    p50_ms: f64,
    /// The 90th percentile of the latencies in milliseconds, at most 9 % too high.
    p90_ms: f64,
    /// The 99th percentile of the latencies in milliseconds, at most 9 % too high.
    p99_ms: f64,
    /// The requests that went wrong, by the reason: the flags of the access log, without `URX`. A request that a target refused has none.
    flags: BTreeMap<String, u64>,
    /// Bytes of the bodies of requests.
    bytes_in: u64,
    /// Bytes of the bodies of responses.
    bytes_out: u64,
}

/// Requests by the class of their status.
#[derive(Debug, Serialize, JsonSchema)]
struct Classes {
    /// Below 400.
    #[serde(rename = "2xx")]
    succeeded: u64,
    /// From 400 to 499, but for those without a route.
    #[serde(rename = "4xx")]
    client_errors: u64,
    /// Without a route.
    no_route: u64,
    /// 500 and above.
    #[serde(rename = "5xx")]
    server_errors: u64,
}

const WEEK: u64 = 7 * 24 * 3600;

/// The range if `from` is absent, in seconds.
const USUAL_RANGE: u64 = 900;

/// The most points of a series.
const MAX_POINTS: u64 = 1500;

fn stats(call: &Call) -> Result<Response, Problem> {
    let now = u64::try_from(now_us() / 1_000_000).unwrap_or(0);
    let to = time(call, "to")?.unwrap_or(now + 1);
    let from = time(call, "from")?.unwrap_or(to.saturating_sub(USUAL_RANGE));
    if from >= to {
        return Err(Problem::parameter("from", "must be before to"));
    }
    if from + WEEK < now {
        return Err(Problem::parameter("from", "must be within the last seven days"));
    }
    let step = step(call, to - from)?;
    let limit = match call.parsed::<usize>("limit")? {
        None => 20,
        Some(limit @ 1..=100) => limit,
        Some(_) => return Err(Problem::parameter("limit", "must be from 1 to 100")),
    };
    let fleet = call.text("fleet")?;
    if fleet == Some("") {
        return Err(Problem::parameter("fleet", "must not be empty"));
    }
    let query = Query { fleet: fleet.map(Into::into), select: select(call)?, from, to, step, limit };
    let answer = call.app.stats.answer(&query);
    ok(&StatsAnswer {
        from: seconds(from),
        to: seconds(to),
        step: HumanDuration(Duration::from_secs(answer.step)),
        series: answer.series.iter().map(|series| view(series, fleet)).collect(),
    })
}

/// The second, since 1970, that a parameter has.
fn time(call: &Call, name: &str) -> Result<Option<u64>, Problem> {
    let Some(text) = call.text(name)? else { return Ok(None) };
    let time: Timestamp = text
        .parse()
        .map_err(|_| Problem::parameter(name, "must be a time as in RFC 3339, like 2026-12-01T08:00:00Z"))?;
    u64::try_from(time.as_second()).map(Some).map_err(|_| Problem::parameter(name, "must be after 1970"))
}

/// The step in seconds.
fn step(call: &Call, range: u64) -> Result<Option<u64>, Problem> {
    let Some(HumanDuration(step)) = call.parsed("step")? else { return Ok(None) };
    if step.subsec_nanos() > 0 || step.as_secs() < 10 {
        return Err(Problem::parameter("step", "must be at least 10s, in whole seconds"));
    }
    if range / step.as_secs() > MAX_POINTS {
        return Err(Problem::parameter("step", format!("would make more than {MAX_POINTS} points")));
    }
    Ok(Some(step.as_secs()))
}

fn select(call: &Call) -> Result<Select, Problem> {
    let mut selected = None;
    for kind in ["route", "upstream", "consumer", "proxy", "revision"] {
        let Some(name) = call.text(kind)? else { continue };
        if let Some((before, _)) = selected.replace((kind, name)) {
            return Err(Problem::parameter(kind, format!("must not be given together with {before}")));
        }
    }
    match selected {
        None => Ok(Select::One(Dimension::All)),
        Some((kind, "*")) => Ok(Select::Each(kind)),
        Some((kind, name)) => {
            let is_name = match kind {
                // Node ids have a syntax of their own, and revisions are numbers.
                "proxy" | "revision" => !name.is_empty(),
                _ => name == Dimension::OTHER || name.parse::<Name>().is_ok(),
            };
            let dimension = Dimension::from_label(kind, name).filter(|_| is_name);
            let wrong = || Problem::parameter(kind, format!("{name:?} is not the name of a {kind}"));
            Ok(Select::One(dimension.ok_or_else(wrong)?))
        }
    }
}

fn view(series: &AnsweredSeries, fleet: Option<&str>) -> Series {
    let mut labels: BTreeMap<_, _> = series.dimension.label().into_iter().collect();
    labels.extend(fleet.map(|fleet| ("fleet", fleet.to_owned())));
    Series { labels, points: series.points.iter().map(|(at, point)| point_view(*at, point)).collect() }
}

fn point_view(at: u64, point: &Point) -> SeriesPoint {
    let quantile = |q| (point.latency.quantile(q).unwrap_or(0.0)).round() / 1000.0;
    SeriesPoint {
        at: seconds(at),
        requests: point.requests(),
        classes: Classes {
            succeeded: point.succeeded,
            client_errors: point.client_errors,
            no_route: point.no_route,
            server_errors: point.server_errors,
        },
        p50_ms: quantile(0.5),
        p90_ms: quantile(0.9),
        p99_ms: quantile(0.99),
        flags: point.flags.iter().map(|(flag, count)| (flag.to_owned(), count)).collect(),
        bytes_in: point.bytes_in,
        bytes_out: point.bytes_out,
    }
}

fn seconds(at: u64) -> String {
    rfc3339(i64::try_from(at).unwrap_or(0).saturating_mul(1_000_000))
}
