//! Authenticates requests in one of several ways, or in several ways at once.
//!
//! With `any`, the methods are tried in their order, and the first that finds a valid credential decides who the client is. With
//! `all`, every method must find one, and all must belong to one consumer: for example a client certificate and a token. A
//! configuration has exactly one of the two. Each method is configured as the plugin of its name, but without `anonymous`,
//! which this plugin has itself.
//!
//! A request that is not let in is answered with the error of the first credential that was there and was not good, or else with
//! `401` and the challenges of all methods. With `anonymous`, it passes as that consumer.
//!
//! `validate_body` of `hmac-auth` needs a plugin of that type.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use signalbox_config::{Errors, FieldError, ResourceKey};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, hooks};

use crate::authentication::{Guard, Method, Needs, anonymous_reference, check_anonymous};
use crate::basic_auth::{self, BasicAuth, UserPassword};
use crate::hmac_auth::{self, HmacAuth, Signature};
use crate::jwt::{self, Bearer, Jwt};
use crate::key_auth::{self, ApiKey, KeyAuth};
use crate::mtls_auth::{self, Certificate, MtlsAuth};
use crate::provider::Provider;

/// The ways to authenticate.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Authentication", example = serde_json::json!({"any": [{"key-auth": {}}, {"jwt": {}}]}),
    example = serde_json::json!({"all": [{"mtls-auth": {}}, {"basic-auth": {"realm": "the shop"}}]}))]
pub(crate) struct Config {
    /// Methods of which the first that finds a valid credential decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(title = "Any of")]
    any: Vec<MethodSpec>,
    /// Methods of which each must find a credential of the same consumer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(title = "All of")]
    all: Vec<MethodSpec>,
    /// The consumer as which requests without a valid credential pass. Absent: they are answered 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Anonymous consumer")]
    anonymous: Option<String>,
}

/// A way to authenticate: an object with one field, which names the plugin type.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(transform = describe_variants)]
enum MethodSpec {
    /// The API key of a consumer.
    #[schemars(title = "Key authentication")]
    KeyAuth(key_auth::Config),
    /// The password of a consumer.
    #[schemars(title = "Basic authentication")]
    BasicAuth(basic_auth::Config),
    /// A token.
    #[schemars(title = "JWT")]
    Jwt(Box<jwt::Config>),
    /// A signed request.
    #[schemars(title = "HMAC authentication")]
    HmacAuth(hmac_auth::Config),
    /// A client certificate.
    #[schemars(title = "mTLS authentication")]
    MtlsAuth(mtls_auth::Config),
}

/// Gives the only field of each variant the words of the variant, which forms show.
fn describe_variants(schema: &mut Schema) {
    let variants = schema.get_mut("oneOf").and_then(Value::as_array_mut).into_iter().flatten();
    for variant in variants.filter_map(Value::as_object_mut) {
        let words = ["title", "description"].map(|word| (word, variant.get(word).cloned()));
        let fields = variant.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten();
        for field in fields.filter_map(|(_, field)| field.as_object_mut()) {
            for (word, text) in &words {
                if let Some(text) = text {
                    field.insert((*word).to_owned(), text.clone());
                }
            }
        }
    }
}

/// Authenticates requests in one of several ways, or in several ways at once.
pub(crate) struct Auth(Guard);

#[hooks]
impl Plugin for Auth {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        self.0.on_request(request)
    }

    fn uses_consumer_headers(&self) -> bool {
        self.0.uses_consumer_headers()
    }
}

impl Definition for Auth {
    const NAME: &'static str = "auth";
    const DESCRIPTION: &'static str =
        "Authenticates requests in one of several ways, or in several ways at once.";
    const ORDER: i32 = 1340;
    const CAN_SHADOW: bool = true;
    const OUTCOMES: &'static [&'static str] = &[Provider::FETCHED, Provider::FETCH_FAILED];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        check_anonymous(config.anonymous.as_deref(), errors);
        match (config.any.is_empty(), config.all.is_empty()) {
            (true, true) => errors.push("", "needs one of any and all, with at least one method"),
            (false, false) => errors.push("all", "cannot stand beside any"),
            (true, false) | (false, true) => {}
        }
        for (list, methods) in [("any", &config.any), ("all", &config.all)] {
            for (index, method) in methods.iter().enumerate() {
                let mut own = Errors::default();
                method.check(&mut own);
                let at = format!("{list}[{index}].{}", method.type_name());
                errors.extend_below(&at, own.finish(Some(())).err().unwrap_or_default());
            }
        }
    }

    fn check_written(config: &Config, errors: &mut Errors) {
        for (list, methods) in [("any", &config.any), ("all", &config.all)] {
            for (index, method) in methods.iter().enumerate() {
                if let MethodSpec::MtlsAuth(config) = method {
                    let mut own = Errors::default();
                    MtlsAuth::check_written(config, &mut own);
                    let at = format!("{list}[{index}].{}", MtlsAuth::NAME);
                    errors.extend_below(&at, own.finish(Some(())).err().unwrap_or_default());
                }
            }
        }
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        let methods = [("any", &config.any), ("all", &config.all)];
        let of_methods = methods.into_iter().flat_map(|(list, methods)| {
            methods.iter().enumerate().flat_map(move |(index, method)| {
                let at = format!("{list}[{index}].{}", method.type_name());
                method.references().into_iter().map(move |(key, field)| (key, format!("{at}.{field}")))
            })
        });
        anonymous_reference(config.anonymous.as_deref()).into_iter().chain(of_methods).collect()
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let (methods, needs) =
            if config.any.is_empty() { (&config.all, Needs::All) } else { (&config.any, Needs::Any) };
        let methods = methods.iter().map(|method| method.build(context)).collect();
        errors.finish(Some(Self(Guard { methods, needs, anonymous: config.anonymous.map(Into::into) })))
    }
}

impl MethodSpec {
    fn type_name(&self) -> &'static str {
        match self {
            Self::KeyAuth(_) => KeyAuth::NAME,
            Self::BasicAuth(_) => BasicAuth::NAME,
            Self::Jwt(_) => Jwt::NAME,
            Self::HmacAuth(_) => HmacAuth::NAME,
            Self::MtlsAuth(_) => MtlsAuth::NAME,
        }
    }

    fn check(&self, errors: &mut Errors) {
        let anonymous = match self {
            Self::KeyAuth(config) => {
                KeyAuth::check(config, errors);
                &config.anonymous
            }
            Self::BasicAuth(config) => {
                BasicAuth::check(config, errors);
                &config.anonymous
            }
            Self::Jwt(config) => {
                Jwt::check(config, errors);
                &config.anonymous
            }
            Self::HmacAuth(config) => {
                HmacAuth::check(config, errors);
                if config.validate_body {
                    errors.push("validate_body", "needs a plugin of the type hmac-auth");
                }
                &config.anonymous
            }
            Self::MtlsAuth(config) => {
                MtlsAuth::check(config, errors);
                &config.anonymous
            }
        };
        if anonymous.is_some() {
            errors.push("anonymous", "belongs beside the list of methods");
        }
    }

    fn references(&self) -> Vec<(ResourceKey, String)> {
        match self {
            Self::Jwt(config) => config.references(),
            Self::KeyAuth(_) | Self::BasicAuth(_) | Self::HmacAuth(_) | Self::MtlsAuth(_) => Vec::new(),
        }
    }

    fn build(&self, context: &Context<'_>) -> Box<dyn Method> {
        // The configuration was checked.
        let mut errors = Errors::default();
        match self {
            Self::KeyAuth(config) => Box::new(ApiKey::of(config)),
            Self::BasicAuth(config) => Box::new(UserPassword::of(config, context)),
            Self::Jwt(config) => Box::new(Bearer::of(config, context, &mut errors)),
            Self::HmacAuth(config) => Box::new(Signature::of(config, &mut errors)),
            Self::MtlsAuth(config) => {
                let method = Certificate::of(config, &mut errors);
                method.warn(context);
                Box::new(method)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde_json::json;

    use super::*;
    use crate::testing::{Client, build, consumers_of, refused};
    use signalbox_plugin::Consumers;

    fn known() -> Consumers {
        let one = |name: &str, credentials: Value| json!({"name": name, "credentials": credentials});
        consumers_of(&[
            one(
                "alice",
                json!([
                    {"key_auth": {"key": "alice-key"}},
                    {"basic_auth": {"username": "alice", "password": "alice-password"}},
                ]),
            ),
            one("bob", json!([{"key_auth": {"key": "bob-key"}}])),
            one("guest", json!([])),
        ])
    }

    fn client(key: Option<&str>, password: Option<&str>) -> Client {
        let mut client = Client::new("GET", "/").knowing(&known());
        if let Some(key) = key {
            client = client.header("apikey", key);
        }
        if let Some(password) = password {
            let text = BASE64_STANDARD.encode(format!("alice:{password}"));
            client = client.header("authorization", &format!("Basic {text}"));
        }
        client
    }

    #[test]
    fn any_lets_in_by_the_first_valid_credential_and_all_by_those_of_one_consumer() {
        let methods = json!([{"basic-auth": {}}, {"key-auth": {}}]);
        let any = build("auth", json!({"any": methods}));
        let all = build("auth", json!({"all": methods}));
        let good = Some("alice-password");
        for (plugin, key, password, expected) in [
            (&any, Some("alice-key"), None, Ok("alice")),
            (&any, None, good, Ok("alice")),
            (&any, Some("bob-key"), good, Ok("alice")),
            (&any, Some("bob-key"), Some("wrong"), Ok("bob")),
            (&any, None, None, Err("no password was found")),
            // The error of what was there counts more than that the other was not.
            (&any, Some("wrong"), None, Err("API key is not known")),
            (&any, None, Some("wrong"), Err("password is wrong")),
            (&any, Some("wrong"), Some("wrong"), Err("password is wrong")),
            (&all, Some("alice-key"), good, Ok("alice")),
            (&all, Some("alice-key"), None, Err("no password was found")),
            (&all, None, good, Err("no API key was found")),
            (&all, Some("bob-key"), good, Err("different consumers")),
            (&all, Some("alice-key"), Some("wrong"), Err("password is wrong")),
            (&all, Some("wrong"), good, Err("API key is not known")),
        ] {
            let mut client = client(key, password);
            match (client.meets(&**plugin), expected) {
                (None, Ok(name)) => {
                    assert_eq!(client.head.headers["x-consumer-username"], name, "{key:?} {password:?}");
                }
                (Some(answer), Err(detail)) => {
                    assert_eq!(answer.status, 401);
                    assert!(answer.detail.contains(detail), "{key:?} {password:?}: {}", answer.detail);
                    assert!(client.exchange.identity.is_none());
                }
                (answer, expected) => panic!("{answer:?}, expected {expected:?} for {key:?} {password:?}"),
            }
        }
    }

    #[test]
    fn who_presents_nothing_gets_the_challenges_of_all_methods() {
        let plugin = build("auth", json!({"any": [{"basic-auth": {}}, {"mtls-auth": {}}, {"jwt": {}}]}));
        let answer = client(None, None).meets(&*plugin).unwrap();
        let challenges: Vec<_> = answer.headers.get_all("www-authenticate").iter().collect();
        assert_eq!(
            challenges,
            ["Basic realm=\"signalbox\", charset=\"UTF-8\"", "Bearer realm=\"signalbox\""]
        );
    }

    #[test]
    fn the_anonymous_consumer_stands_in_for_all_methods() {
        let plugin =
            build("auth", json!({"any": [{"basic-auth": {}}, {"key-auth": {}}], "anonymous": "guest"}));
        for (key, password) in [(None, None), (Some("wrong"), None), (None, Some("wrong"))] {
            let mut client = client(key, password);
            assert!(client.meets(&*plugin).is_none());
            assert_eq!(client.head.headers["x-anonymous-consumer"], "true");
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        for config in [json!({}), json!({"any": []})] {
            assert!(refused("auth", config).starts_with("needs one of any and all"));
        }
        let method = json!([{"key-auth": {}}]);
        assert!(refused("auth", json!({"any": method, "all": method})).starts_with("all: "));
        for (method, field) in [
            (json!({"key-auth": {"names": []}}), "any[0].key-auth.names: "),
            (json!({"key-auth": {"anonymous": "guest"}}), "any[0].key-auth.anonymous: "),
            (json!({"hmac-auth": {"validate_body": true}}), "any[0].hmac-auth.validate_body: "),
            (json!({"cors": {}}), "any[0]: "),
            (json!({"key-auth": {}, "jwt": {}}), "any[0]: "),
        ] {
            let errors = refused("auth", json!({"any": [method]}));
            assert!(errors.starts_with(field), "{method}: {errors}");
        }
    }
}
