//! Refuses clients by their `User-Agent`.
//!
//! `deny` and `allow` are lists of regular expressions, which are looked for anywhere in the value; `(?i)` at the beginning
//! of one ignores case. A value that one of `allow` matches passes. Otherwise one that one of `deny` matches is answered
//! `403`. Without `deny`, everything that `allow` does not match is.
//!
//! If a request has several `User-Agent` headers, each must pass by itself. A request without one counts as if it had an
//! empty one: `^$` in `deny` refuses it, and without `deny` only an expression that matches the empty text lets it pass.
//!
//! `User-Agent` is what the client says of itself: this plugin keeps out the honest and the careless. The time to match is
//! proportional to the length of the header, whatever the expressions are.

use http::StatusCode;
use http::header::USER_AGENT;
use regex::bytes::{RegexBuilder, RegexSet, RegexSetBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, Reply, hooks};

/// The clients that pass, and those that do not.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Bot detection", example = serde_json::json!({"deny": ["(?i)bot|crawler|spider"], "allow": ["Googlebot/"]}),
    example = serde_json::json!({"allow": ["^shop-app/[0-9]+"]}))]
pub(crate) struct Config {
    /// Regular expressions for values that pass, even if `deny` has one that matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(title = "Allowed user agents")]
    allow: Vec<String>,
    /// Regular expressions for values that are refused. Without any, all values are refused that `allow` does not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(title = "Denied user agents")]
    deny: Vec<String>,
}

/// Refuses clients by their `User-Agent`.
pub(crate) struct BotDetection {
    allow: RegexSet,
    deny: RegexSet,
}

#[hooks]
impl Plugin for BotDetection {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let mut values = request.head.headers.get_all(USER_AGENT).iter().peekable();
        let passes = match values.peek() {
            None => self.admits(b""),
            Some(_) => values.all(|value| self.admits(value.as_bytes())),
        };
        if passes {
            return Flow::Continue;
        }
        Reply::problem(StatusCode::FORBIDDEN, "the client's User-Agent is not allowed").into()
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for BotDetection {
    const NAME: &'static str = "bot-detection";
    const DESCRIPTION: &'static str = "Refuses clients by their User-Agent.";
    const ORDER: i32 = 2500;
    const CAN_SHADOW: bool = true;
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

impl BotDetection {
    fn admits(&self, user_agent: &[u8]) -> bool {
        self.allow.is_match(user_agent) || !(self.deny.is_empty() || self.deny.is_match(user_agent))
    }
}

/// The most expressions of a list.
const MAX_EXPRESSIONS: usize = 1000;

/// The most memory of a compiled list, bytes.
const MAX_COMPILED: usize = 4 << 20;

/// Reads a configuration. Lists that are wrong are empty in the result.
fn parse(config: &Config, errors: &mut Errors) -> BotDetection {
    if config.allow.is_empty() && config.deny.is_empty() {
        errors.push("", "needs allow, deny or both");
    }
    let mut set = |field: &str, expressions: &[String]| {
        if expressions.len() > MAX_EXPRESSIONS {
            errors.push(field, format_args!("has {} entries; at most {MAX_EXPRESSIONS}", expressions.len()));
            return RegexSet::empty();
        }
        let mut all_compile = true;
        for (index, expression) in expressions.iter().enumerate() {
            let error = match RegexBuilder::new(expression).size_limit(MAX_COMPILED).build() {
                _ if expression.is_empty() => "must not be empty: it would match everything".to_owned(),
                Ok(_) => continue,
                Err(error) => error.to_string(),
            };
            errors.push(format_args!("{field}[{index}]"), error);
            all_compile = false;
        }
        let compiled = RegexSetBuilder::new(expressions).size_limit(MAX_COMPILED).build();
        compiled.unwrap_or_else(|error| {
            if all_compile {
                errors.push(field, error);
            }
            RegexSet::empty()
        })
    };
    BotDetection { allow: set("allow", &config.allow), deny: set("deny", &config.deny) }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;
    use crate::testing::{Client, build, refused};

    fn status(config: &serde_json::Value, user_agents: &[&[u8]]) -> u16 {
        let mut client = Client::new("GET", "/");
        for value in user_agents {
            client.head.headers.append(USER_AGENT, HeaderValue::from_bytes(value).unwrap());
        }
        client.meets(&*build("bot-detection", config.clone())).map_or(200, |answer| answer.status)
    }

    #[test]
    fn user_agents_decide_who_passes() {
        let both = json!({"deny": ["(?i)bot", "^curl/"], "allow": ["^Googlebot/"]});
        let (deny, allow) = (json!({"deny": ["^$", "Evil"]}), json!({"allow": ["^shop/", "^$"]}));
        let strict = json!({"allow": ["^shop/"]});
        for (config, user_agents, expected) in [
            (&both, &[&b"Mozilla/5.0"[..]][..], 200),
            (&both, &[b"SomeBot/1"], 403),
            (&both, &[b"Googlebot/2.1"], 200),
            (&both, &[b"curl/8"], 403),
            (&both, &[b"not curl/8"], 200),
            (&both, &[], 200),
            (&both, &[b""], 200),
            // Each value counts by itself: neither the first nor both joined.
            (&both, &[b"Mozilla/5.0", b"SomeBot/1"], 403),
            (&both, &[b"Googlebot/2.1", b"curl/8"], 403),
            (&both, &[b"Googlebot/2.1", b"Mozilla/5.0"], 200),
            (&both, &[b"\xff\xfe bot"], 403),
            (&deny, &[], 403),
            (&deny, &[b""], 403),
            (&deny, &[b"x"], 200),
            (&deny, &[b"x", b""], 403),
            (&allow, &[], 200),
            (&allow, &[b"shop/1"], 200),
            (&allow, &[b"Mozilla/5.0"], 403),
            (&strict, &[], 403),
            (&strict, &[b""], 403),
            (&strict, &[b"shop/1", b"curl/8"], 403),
        ] {
            assert_eq!(status(config, user_agents), expected, "{config} {user_agents:?}");
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        assert_eq!(refused("bot-detection", json!({})), "needs allow, deny or both");
        assert!(refused("bot-detection", json!({"deny": ["a", "("]})).starts_with("deny[1]: "));
        assert!(refused("bot-detection", json!({"allow": [""]})).starts_with("allow[0]: must not be empty"));
        // Expressions without a linear time to match are not in the language.
        assert!(refused("bot-detection", json!({"deny": ["(a)\\1"]})).starts_with("deny[0]: "));
        assert!(refused("bot-detection", json!({"deny": ["(?:x{900}){900}"]})).starts_with("deny[0]: "));
    }
}
