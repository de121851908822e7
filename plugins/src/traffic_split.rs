//! Splits the requests of a route over upstreams, by conditions and by weights.
//!
//! The first of the `splits` whose condition (`when`) the request meets decides; one without a condition takes all requests. Within it,
//! the upstream is drawn by weight; a weight of 0 gets no request. If no split takes a request, it goes to the upstream that the route has
//! drawn from its own list, so a route needs this plugin only for what its `forward.upstreams` lack: conditions, and stickiness. A
//! condition that has no value, for example for a header that is not there, is not met.
//!
//! With `sticky`, the same client goes to the same upstream as long as the weights stay: the place in the split is a hash of a header, a
//! cookie, a query parameter, the client's address or the consumer, together with the name of this plugin. When a weight grows, the
//! clients that are there already stay. A request without the property is drawn at random; a cookie that is missing is set.
//!
//! The plugins that are attached to the chosen upstream run in the place of those of the upstream that the route had drawn, as far as
//! these have not run. Those whose turn has passed run at once. The conditions are written as described in
//! [Conditions](CONDITIONS.md), and see the request with the changes of the plugins before. A consumer is known behind authentication.

use http::{HeaderName, HeaderValue, header};
use ring::digest::{Context as Digest, SHA256};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError, HumanDuration, Kind, Name, ResourceKey, parse_condition};
use signalbox_plugin::{
    Condition, Context, Definition, Flow, OnConditionError, Plugin, PluginRequest, hooks,
};

use crate::headers::only;
use crate::template::{cookie, parameter};

/// The splits.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Traffic split", example = serde_json::json!({
    "splits": [
        {"when": "request.headers[\"x-beta\"] == \"1\"", "upstreams": [{"name": "beta"}]},
        {"upstreams": [{"name": "stable", "weight": 95}, {"name": "beta", "weight": 5}]},
    ],
    "sticky": {"by": "cookie", "name": "split"},
}))]
pub(crate) struct Config {
    /// The splits, of which the first that takes a request decides; at least one.
    #[schemars(title = "Splits", length(min = 1))]
    splits: Vec<SplitConfig>,
    /// The property that keeps a client at one upstream. Absent: each request is drawn anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Sticky")]
    sticky: Option<StickyConfig>,
}

/// A split.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SplitConfig {
    /// The condition of the requests that it takes. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "When")]
    when: Option<String>,
    /// The upstreams, at least one with a weight.
    #[schemars(title = "Upstreams", length(min = 1))]
    upstreams: Vec<WeightedConfig>,
}

/// An upstream and its weight.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WeightedConfig {
    /// The name of the upstream.
    #[schemars(title = "Name")]
    name: String,
    /// Its share in relation to the other weights, at most 1000000. 0: no requests.
    #[serde(default = "one")]
    #[schemars(title = "Weight", range(min = 0, max = 1_000_000))]
    weight: u32,
}

/// The property that keeps a client at one upstream.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StickyConfig {
    /// The kind of property.
    #[schemars(title = "By")]
    by: By,
    /// The name of the header, cookie or query parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Name")]
    name: Option<String>,
    /// The lifetime of a cookie that is set. Absent: the browser's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "TTL")]
    ttl: Option<HumanDuration>,
}

/// A kind of property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum By {
    /// A header.
    Header,
    /// A cookie, which is set if it is missing.
    Cookie,
    /// A query parameter.
    Query,
    /// The client's address.
    Ip,
    /// The consumer.
    Consumer,
}

/// Splits requests over upstreams.
pub(crate) struct TrafficSplit {
    splits: Box<[Split]>,
    sticky: Option<Sticky>,
    /// Two plugins split independently of each other.
    name: Name,
}

struct Split {
    when: Option<Condition>,
    /// Never empty; each upstream with the sum of the weights up to it, which grows.
    upstreams: Box<[(Name, u64)]>,
}

enum Sticky {
    Header(HeaderName),
    /// The name, and what follows the value when it is set.
    Cookie(Box<str>, Box<str>),
    Query(Box<str>),
    Ip,
    Consumer,
}

#[hooks]
impl Plugin for TrafficSplit {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        if request.upstream.is_none() {
            // The route answers by itself.
            return Flow::Continue;
        }
        let takes = |split: &&Split| match &split.when {
            None => true,
            Some(when) => request.meets(when).unwrap_or(false),
        };
        let Some(split) = self.splits.iter().find(takes) else { return Flow::Continue };
        let place = self.place(request);
        if let Some(upstream) = split.upstream(place) {
            request.exchange.choose_upstream(upstream.clone());
        }
        Flow::Continue
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for TrafficSplit {
    const NAME: &'static str = "traffic-split";
    const DESCRIPTION: &'static str =
        "Splits the requests of a route over upstreams, by conditions and by weights.";
    const ORDER: i32 = 966;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        parse(config, errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        let splits = config.splits.iter().enumerate();
        let all = splits.flat_map(|(at, split)| {
            split.upstreams.iter().enumerate().map(move |(index, upstream)| (at, index, upstream))
        });
        all.filter_map(|(at, index, upstream)| {
            let key = ResourceKey::new(Kind::Upstream, upstream.name.parse().ok()?);
            Some((key, format!("splits[{at}].upstreams[{index}].name")))
        })
        .collect()
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let (splits, sticky) = parse(&config, &mut errors);
        errors.finish(Some(Self { splits, sticky, name: context.name.clone() }))
    }
}

impl TrafficSplit {
    /// The place of a request in the split, from 0 to the greatest number.
    fn place(&self, request: &mut PluginRequest<'_>) -> u64 {
        let Some(sticky) = &self.sticky else { return fastrand::u64(..) };
        let head = &*request.head;
        let known = match sticky {
            Sticky::Header(name) => only(&head.headers, name).map(|value| self.hash(value.as_bytes())),
            Sticky::Cookie(name, _) => cookie(&head.headers, name).map(|value| self.hash(value)),
            Sticky::Query(name) => parameter(head, name).map(|value| self.hash(&value)),
            Sticky::Ip => Some(match request.client {
                std::net::IpAddr::V4(address) => self.hash(&address.octets()),
                std::net::IpAddr::V6(address) => self.hash(&address.octets()),
            }),
            Sticky::Consumer => {
                let identity = request.exchange.identity.as_ref();
                identity.map(|identity| self.hash(identity.consumer.name.as_str().as_bytes()))
            }
        };
        match (known, sticky) {
            (Some(place), _) => place,
            (None, Sticky::Cookie(name, attributes)) => {
                let value = format!("{:016x}", fastrand::u64(..));
                if let Ok(cookie) = HeaderValue::try_from(format!("{name}={value}{attributes}")) {
                    request.exchange.append_response_header(header::SET_COOKIE, cookie);
                }
                self.hash(value.as_bytes())
            }
            (None, _) => fastrand::u64(..),
        }
    }

    /// The same on every proxy and in every version. No client can choose a place without trying.
    fn hash(&self, value: &[u8]) -> u64 {
        let mut digest = Digest::new(&SHA256);
        digest.update(self.name.as_str().as_bytes());
        digest.update(&[0]);
        digest.update(value);
        let digest = digest.finish();
        digest.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
    }
}

impl Split {
    /// The upstream at a place. When the weight of an upstream grows, its places stay and others are added.
    fn upstream(&self, place: u64) -> Option<&Name> {
        let total = self.upstreams.last().map_or(0, |(_, total)| *total);
        let point = (u128::from(place) * u128::from(total)) >> 64;
        self.upstreams.iter().find(|(_, end)| point < u128::from(*end)).map(|(name, _)| name)
    }
}

const MAX_SPLITS: usize = 32;
const MAX_UPSTREAMS: usize = 100;
const MAX_WEIGHT: u32 = 1_000_000;

/// Reads a configuration. Parts that are wrong are missing from the result.
fn parse(config: &Config, errors: &mut Errors) -> (Box<[Split]>, Option<Sticky>) {
    if config.splits.is_empty() || config.splits.len() > MAX_SPLITS {
        errors.push("splits", format_args!("must have from 1 to {MAX_SPLITS} entries"));
    }
    let mut splits = Vec::new();
    for (at, split) in config.splits.iter().enumerate() {
        let field = format!("splits[{at}]");
        if split.when.is_none() && at + 1 < config.splits.len() {
            errors.push(
                format_args!("{field}.when"),
                "is needed: this split would take all requests from those behind it",
            );
        }
        let when = split.when.as_deref();
        let when = when.and_then(|text| parse_condition(text, &format!("{field}.when"), errors));
        splits.push(Split { when, upstreams: parse_upstreams(&split.upstreams, &field, errors) });
    }
    let sticky = config.sticky.as_ref().and_then(|sticky| parse_sticky(sticky, errors));
    (splits.into(), sticky)
}

fn parse_upstreams(list: &[WeightedConfig], field: &str, errors: &mut Errors) -> Box<[(Name, u64)]> {
    if list.len() > MAX_UPSTREAMS {
        errors.push(
            format_args!("{field}.upstreams"),
            format_args!("must have at most {MAX_UPSTREAMS} entries"),
        );
    }
    let mut upstreams: Vec<(Name, u64)> = Vec::new();
    let mut total = 0;
    for (index, WeightedConfig { name, weight }) in list.iter().enumerate() {
        let field = format!("{field}.upstreams[{index}]");
        if *weight > MAX_WEIGHT {
            errors.push(format_args!("{field}.weight"), format_args!("must be at most {MAX_WEIGHT}"));
        }
        if list.iter().take(index).any(|before| before.name == *name) {
            errors.push(format_args!("{field}.name"), format_args!("{name:?} is listed twice"));
        }
        match name.parse() {
            Ok(name) if *weight > 0 => {
                total += u64::from(*weight);
                upstreams.push((name, total));
            }
            Ok(_) => {}
            Err(message) => errors.push(format_args!("{field}.name"), message),
        }
    }
    if total == 0 {
        errors.push(format_args!("{field}.upstreams"), "must have an upstream with a weight");
    }
    upstreams.into()
}

fn parse_sticky(StickyConfig { by, name, ttl }: &StickyConfig, errors: &mut Errors) -> Option<Sticky> {
    let is_named = matches!(by, By::Header | By::Cookie | By::Query);
    if ttl.is_some() && *by != By::Cookie {
        errors.push("sticky.ttl", "is only for a cookie");
    }
    let name = match name {
        Some(name) if is_named && !name.is_empty() && name.len() <= 256 => name.as_str(),
        Some(_) if is_named => {
            errors.push("sticky.name", "must have from 1 to 256 characters");
            return None;
        }
        Some(_) => {
            errors.push("sticky.name", "is only for a header, a cookie or a query parameter");
            return None;
        }
        None if is_named => {
            errors.push("sticky.name", "is needed for a header, a cookie and a query parameter");
            return None;
        }
        None => "",
    };
    // The name of a cookie has the characters of a header's.
    let header: Option<HeaderName> = name.parse().ok();
    if header.is_none() && matches!(by, By::Header | By::Cookie) {
        errors.push("sticky.name", "is not the name of a header or cookie");
    }
    match by {
        By::Header => header.map(Sticky::Header),
        By::Cookie => {
            let age = ttl.map(|ttl| format!("; Max-Age={}", ttl.0.as_secs())).unwrap_or_default();
            Some(Sticky::Cookie(name.into(), format!("; Path=/{age}; HttpOnly; SameSite=Lax").into()))
        }
        By::Query => Some(Sticky::Query(name.into())),
        By::Ip => Some(Sticky::Ip),
        By::Consumer => Some(Sticky::Consumer),
    }
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};
    use signalbox_plugin::{Plugin, States};

    use super::*;
    use crate::testing::{Client, build, build_as, consumers, refused};

    /// The upstream that a request goes to; empty: the one of the route.
    fn chosen(plugin: &dyn Plugin, client: &mut Client) -> String {
        assert!(client.meets(plugin).is_none());
        client.exchange.chosen_upstream().map(Name::to_string).unwrap_or_default()
    }

    #[test]
    fn the_first_split_that_takes_a_request_decides() {
        let plugin = build(
            "traffic-split",
            json!({"splits": [
                {"when": "request.headers[\"x-beta\"] == \"1\"", "upstreams": [{"name": "beta"}]},
                {"when": "request.path.startsWith(\"/v2/\")", "upstreams": [{"name": "off", "weight": 0}, {"name": "v2"}]},
                {"when": "consumer.name == \"alice\"", "upstreams": [{"name": "vip"}]},
            ]}),
        );
        for (uri, headers, expected) in [
            ("/", &[("x-beta", "1")][..], "beta"),
            ("/v2/a", &[("x-beta", "1")], "beta"),
            ("/v2/a", &[("x-beta", "0")], "v2"),
            // A condition without a value is not met.
            ("/v2/a", &[], "v2"),
            ("/", &[("x-beta", "1"), ("x-beta", "1")], ""),
            ("/", &[], ""),
        ] {
            let mut client = Client::new("GET", uri);
            for (name, value) in headers {
                client = client.header(name, value);
            }
            assert_eq!(chosen(&*plugin, &mut client), expected, "{uri} {headers:?}");
        }
        let all = consumers(&[("alice", &["k"])]);
        let mut client = Client::new("GET", "/").knowing(&all).header("apikey", "k");
        assert!(client.meets(&*build("key-auth", json!({}))).is_none());
        assert_eq!(chosen(&*plugin, &mut client), "vip");
    }

    #[test]
    fn weights_are_the_shares_and_clients_stay_when_one_grows() {
        let plugin = |beta: u32, name: &str| {
            let config = json!({
                "splits": [{"upstreams": [{"name": "beta", "weight": beta}, {"name": "stable", "weight": 100 - beta}]}],
                "sticky": {"by": "header", "name": "x-user"},
            });
            build_as(&States::default(), name, "traffic-split", &config)
        };
        let of = |plugin: &dyn Plugin, user: usize| {
            chosen(plugin, &mut Client::new("GET", "/").header("x-user", &user.to_string()))
        };
        let (small, large, other) = (plugin(10, "p"), plugin(30, "p"), plugin(10, "q"));
        let mut shares = BTreeMap::<(String, String), u32>::new();
        let mut differing = 0;
        for user in 0..2000 {
            let before = of(&*small, user);
            assert_eq!(of(&*small, user), before);
            differing += u32::from(of(&*other, user) != before);
            *shares.entry((before, of(&*large, user))).or_default() += 1;
        }
        let share =
            |from: &str, to: &str| shares.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or(0);
        assert_eq!(share("beta", "stable"), 0);
        assert!((150..250).contains(&share("beta", "beta")), "{shares:?}");
        assert!((330..470).contains(&share("stable", "beta")), "{shares:?}");
        assert!(differing > 200, "two plugins split independently: {differing}");
    }

    #[test]
    fn a_client_sticks_by_each_property() {
        let plugin = |sticky: Value| {
            let upstreams = json!([{"name": "a"}, {"name": "b"}]);
            build("traffic-split", json!({"splits": [{"upstreams": upstreams}], "sticky": sticky}))
        };
        let spread = |plugin: &dyn Plugin, client: &dyn Fn(usize) -> Client| {
            (0..64).filter(|index| chosen(plugin, &mut client(*index)) == "a").count()
        };
        for (sticky, client) in [
            (
                json!({"by": "query", "name": "u"}),
                &(|n| Client::new("GET", &format!("/?u={n}"))) as &dyn Fn(usize) -> Client,
            ),
            (json!({"by": "cookie", "name": "u"}), &|n| {
                Client::new("GET", "/").header("cookie", &format!("a=b; u={n}"))
            }),
            (json!({"by": "ip"}), &|n| Client::new("GET", "/").from(&format!("192.0.2.{n}"))),
        ] {
            let plugin = plugin(sticky.clone());
            assert!((10..54).contains(&spread(&*plugin, client)), "{sticky}");
            let same = |_: usize| client(7);
            assert!(matches!(spread(&*plugin, &same), 0 | 64), "{sticky}");
        }
        // A cookie that is missing is set, and leads to where the request went.
        let plugin = plugin(json!({"by": "cookie", "name": "u", "ttl": "1h"}));
        for _ in 0..32 {
            let mut client = Client::new("GET", "/");
            let first = chosen(&*plugin, &mut client);
            let cookie = client.answer_headers(&[])["set-cookie"].to_str().unwrap().to_owned();
            let (pair, attributes) = cookie.split_once(';').unwrap();
            assert_eq!(attributes, " Path=/; Max-Age=3600; HttpOnly; SameSite=Lax");
            let mut client = Client::new("GET", "/").header("cookie", pair);
            assert_eq!(chosen(&*plugin, &mut client), first);
            assert!(client.answer_headers(&[]).is_empty());
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        let a = json!([{"name": "a"}]);
        for (config, field) in [
            (json!({"splits": []}), "splits: "),
            (json!({"splits": [{"upstreams": []}]}), "splits[0].upstreams: "),
            (json!({"splits": [{"upstreams": [{"name": "a", "weight": 0}]}]}), "splits[0].upstreams: "),
            (json!({"splits": [{"upstreams": [{"name": "A"}]}]}), "splits[0].upstreams[0].name: "),
            (
                json!({"splits": [{"upstreams": [{"name": "a"}, {"name": "a"}]}]}),
                "splits[0].upstreams[1].name: ",
            ),
            (
                json!({"splits": [{"upstreams": [{"name": "a", "weight": 1_000_001}]}]}),
                "splits[0].upstreams[0].weight: ",
            ),
            (json!({"splits": [{"when": "request.path", "upstreams": a}]}), "splits[0].when: "),
            (json!({"splits": [{"upstreams": a}, {"when": "true", "upstreams": a}]}), "splits[0].when: "),
            (json!({"splits": [{"upstreams": a}], "sticky": {"by": "header"}}), "sticky.name: "),
            (
                json!({"splits": [{"upstreams": a}], "sticky": {"by": "cookie", "name": "a b"}}),
                "sticky.name: ",
            ),
            (json!({"splits": [{"upstreams": a}], "sticky": {"by": "ip", "name": "a"}}), "sticky.name: "),
            (json!({"splits": [{"upstreams": a}], "sticky": {"by": "ip", "ttl": "1s"}}), "sticky.ttl: "),
        ] {
            let errors = refused("traffic-split", config.clone());
            assert!(errors.starts_with(field), "{config}: {errors}");
        }
    }
}
