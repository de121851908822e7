//! Authenticates requests by the API keys of consumers.
//!
//! The key is looked for under each of `names`, as a header and as a query parameter (`in` says which). A key that
//! belongs to a consumer lets the request pass, and the upstream gets the consumer's identity in headers: `X-Consumer-ID`,
//! `X-Consumer-Username`, `X-Consumer-Custom-ID`, `X-Consumer-Groups` and `X-Credential-Identifier`. The proxy removes
//! these headers from what clients send.
//!
//! All other requests are answered `401` with `WWW-Authenticate: Key realm="…"`: those without a key, with a key that no
//! consumer has, or with more than one key, because the upstream might act on another key than the proxy checked.
//!
//! With `anonymous`, the name of a consumer, such requests pass as that consumer instead, and carry
//! `X-Anonymous-Consumer: true`. A request that another plugin has authenticated already then passes as it is, so that
//! several ways to authenticate can stand side by side.
//!
//! With `hide_credentials`, the upstream does not see the key: headers and query parameters of those names are removed,
//! whether the key was valid or not.
//!
//! Keys are stored and looked up by their SHA-256, so neither the configuration nor the time of a response reveals one.

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError, ResourceKey, sha256};
use signalbox_plugin::{Consumers, Context, Definition, Flow, Plugin, PluginRequest, hooks};

use crate::authentication::{
    Attempt, Guard, Method, NotRewritable, Refusal, Verdict, anonymous_reference, challenge, check_anonymous,
    check_realm, default_realm, remove_parameters,
};
use crate::query::{self, Decoded};

/// The place of the key, and the treatment of requests without one.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Key authentication", example = serde_json::json!({}), example = serde_json::json!({
    "names": ["x-api-key"], "in": ["header"], "hide_credentials": true,
}))]
pub(crate) struct Config {
    /// The names of headers or query parameters that may hold the key. Upper and lower case matter only in parameter names.
    #[serde(default = "default_names")]
    #[schemars(title = "Names", length(min = 1))]
    names: Vec<String>,
    /// The places where the key may stand.
    #[serde(default = "default_places")]
    #[schemars(title = "Places", length(min = 1))]
    r#in: Vec<Place>,
    /// Removes the key from the request before it is forwarded.
    #[serde(default)]
    #[schemars(title = "Hide credentials")]
    hide_credentials: bool,
    /// The consumer as which requests without a valid key pass. Absent: they are answered 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Anonymous consumer")]
    pub(crate) anonymous: Option<String>,
    /// The realm in the header `WWW-Authenticate`.
    #[serde(default = "default_realm")]
    #[schemars(title = "Realm")]
    realm: String,
}

/// A place where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Place {
    /// In a header.
    Header,
    /// In a query parameter.
    Query,
}

/// Authenticates requests by the API keys of consumers.
pub(crate) struct KeyAuth(Guard);

#[hooks]
impl Plugin for KeyAuth {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        self.0.on_request(request)
    }

    fn uses_consumer_headers(&self) -> bool {
        self.0.uses_consumer_headers()
    }
}

impl Definition for KeyAuth {
    const NAME: &'static str = "key-auth";
    const DESCRIPTION: &'static str = "Lets in who presents the API key of a consumer.";
    const ORDER: i32 = 1350;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        if config.names.is_empty() {
            errors.push("names", "must name at least one header or parameter");
        }
        for (index, name) in config.names.iter().enumerate() {
            if let Err(message) = header_name(name) {
                errors.push(format_args!("names[{index}]"), message);
            }
        }
        if config.r#in.is_empty() {
            errors.push("in", "must have at least one of header, query");
        }
        check_anonymous(config.anonymous.as_deref(), errors);
        check_realm(&config.realm, errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        anonymous_reference(config.anonymous.as_deref())
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let built = Self(Guard::of(ApiKey::of(&config), config.anonymous));
        errors.finish(Some(built))
    }
}

/// The authentication by API keys.
pub(crate) struct ApiKey {
    headers: Box<[HeaderName]>,
    parameters: Box<[Box<str>]>,
    hide_credentials: bool,
    challenge: HeaderValue,
}

impl Method for ApiKey {
    fn authenticate(&self, request: &mut PluginRequest<'_>) -> Attempt {
        let verdict = match self.key_hash(&request.head.headers, &request.head.uri) {
            Ok(Some(hash)) => match request.consumers.by_key(&hash) {
                Some(identity) => Verdict::Passed(Some(identity.clone())),
                None => Refusal::unauthorized("the API key is not known").into(),
            },
            Ok(None) => Verdict::Absent("no API key was found in the request"),
            Err(refusal) => refusal.into(),
        };
        verdict.into()
    }

    fn hide(&self, request: &mut PluginRequest<'_>) -> Result<(), NotRewritable> {
        if !self.hide_credentials {
            return Ok(());
        }
        for name in &self.headers {
            request.head.headers.remove(name);
        }
        remove_parameters(&mut request.head.uri, &self.parameters)
    }

    fn challenge(&self) -> Option<&HeaderValue> {
        Some(&self.challenge)
    }

    fn uses_consumer_headers(&self) -> bool {
        self.headers.iter().any(|name| Consumers::HEADERS.contains(name))
    }
}

impl ApiKey {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            headers: match config.r#in.contains(&Place::Header) {
                true => config.names.iter().filter_map(|name| header_name(name).ok()).collect(),
                false => Box::default(),
            },
            parameters: match config.r#in.contains(&Place::Query) {
                true => config.names.iter().map(|name| name.as_str().into()).collect(),
                false => Box::default(),
            },
            hide_credentials: config.hide_credentials,
            challenge: challenge("Key", &config.realm, ""),
        }
    }

    /// The SHA-256 of the only key.
    fn key_hash(&self, headers: &HeaderMap, uri: &Uri) -> Result<Option<[u8; 32]>, Refusal> {
        let in_headers =
            self.headers.iter().flat_map(|name| headers.get_all(name)).map(HeaderValue::as_bytes);
        let mut in_headers = in_headers.filter(|key| !key.is_empty());
        let mut in_query = self.keys_in_query(uri);
        let several = || Refusal::unauthorized("more than one API key was found in the request");
        match (in_headers.next(), in_headers.next()) {
            (Some(key), None) if in_query.next().is_none() => Ok(Some(sha256(key))),
            (Some(_), _) => Err(several()),
            (None, _) => match (in_query.next(), in_query.next()) {
                (Some(key), None) => Ok(Some(sha256(&key))),
                (Some(_), Some(_)) => Err(several()),
                (None, _) => Ok(None),
            },
        }
    }

    fn keys_in_query<'a>(&'a self, uri: &'a Uri) -> impl Iterator<Item = Decoded> + 'a {
        let query = uri.query().filter(|_| !self.parameters.is_empty());
        query
            .into_iter()
            .flat_map(query::parameters)
            .filter(|parameter| self.parameters.iter().any(|name| parameter.is_named(name)))
            .map(query::Parameter::value)
            .filter(|key| !key.is_empty())
    }
}

fn default_names() -> Vec<String> {
    vec!["apikey".to_owned()]
}

fn default_places() -> Vec<Place> {
    vec![Place::Header, Place::Query]
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    name.parse().map_err(|_| format!("{name:?} is not the name of a header"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use signalbox_config::PluginCatalog as _;

    use crate::testing::{Client, build, consumers, refused};

    const KEY_OF_ALICE: &str = "s3cret key+1";

    fn known() -> signalbox_plugin::Consumers {
        consumers(&[("alice", &[KEY_OF_ALICE, "second"]), ("guest", &[])])
    }

    #[test]
    fn a_key_in_a_header_or_in_the_query_is_the_consumers() {
        let plugin = build("key-auth", json!({"names": ["apikey", "X-Key"]}));
        for mut client in [
            Client::new("GET", "/").header("apikey", KEY_OF_ALICE),
            Client::new("GET", "/?x=1").header("x-key", KEY_OF_ALICE),
            Client::new("GET", "/?a&apikey=s3cret+key%2B1&b"),
            Client::new("GET", "/?X-Key=s3cret%20key%2b1"),
            // An empty one is none.
            Client::new("GET", "/?apikey=").header("apikey", KEY_OF_ALICE),
        ] {
            client = client.knowing(&known());
            assert!(client.meets(&*plugin).is_none(), "{:?}", client.head);
            let headers = &client.head.headers;
            assert_eq!(headers["x-consumer-id"], "alice");
            assert_eq!(headers["x-consumer-username"], "alice");
            assert_eq!(headers["x-consumer-custom-id"], "4711");
            assert_eq!(headers["x-consumer-groups"], "staff");
            assert_eq!(headers["x-credential-identifier"], "alice-s3cret key+1");
            assert!(!headers.contains_key("x-anonymous-consumer"));
            assert_eq!(client.exchange.identity.unwrap().consumer.name.as_str(), "alice");
        }
    }

    #[test]
    fn without_one_good_key_the_answer_is_401_with_a_challenge() {
        let plugin = build("key-auth", json!({"realm": "the shop"}));
        for (mut client, detail) in [
            (Client::new("GET", "/"), "no API key was found"),
            (Client::new("GET", "/").header("apikey", ""), "no API key was found"),
            (Client::new("GET", "/?APIKEY=second"), "no API key was found"),
            (Client::new("GET", "/").header("apikey", "wrong"), "is not known"),
            (Client::new("GET", "/?apikey=secon"), "is not known"),
            (Client::new("GET", "/?apikey=second&apikey=second"), "more than one"),
            (Client::new("GET", "/?apikey=second").header("apikey", "second"), "more than one"),
            (Client::new("GET", "/").header("apikey", "wrong").header("apikey", "second"), "more than one"),
        ] {
            client = client.knowing(&known());
            let answer = client.meets(&*plugin).expect(detail);
            assert_eq!(answer.status, 401);
            assert_eq!(answer.headers["www-authenticate"], "Key realm=\"the shop\"");
            assert!(answer.detail.contains(detail), "{}", answer.detail);
            assert!(client.exchange.identity.is_none());
        }
    }

    #[test]
    fn a_key_is_only_looked_for_where_the_configuration_says() {
        let plugin = build("key-auth", json!({"in": ["header"]}));
        let mut client = Client::new("GET", "/?apikey=second").knowing(&known());
        assert_eq!(client.meets(&*plugin).unwrap().status, 401);
        let plugin = build("key-auth", json!({"in": ["query"]}));
        let mut client = Client::new("GET", "/").header("apikey", "second").knowing(&known());
        assert_eq!(client.meets(&*plugin).unwrap().status, 401);
    }

    #[test]
    fn hidden_keys_do_not_reach_the_upstream() {
        let plugin = build("key-auth", json!({"hide_credentials": true, "anonymous": "guest"}));
        for (uri, after) in [
            ("/p?apikey=second", "/p"),
            ("/p?a=%20&apikey=second&&b", "/p?a=%20&&b"),
            ("/p?%61pikey=wrong&a", "/p?a"),
            ("/p?a=1+2", "/p?a=1+2"),
            ("http://host/p?apikey=second&a=1", "http://host/p?a=1"),
        ] {
            let mut client = Client::new("GET", uri).header("x-other", "1").knowing(&known());
            assert!(client.meets(&*plugin).is_none());
            assert_eq!(client.head.uri, after, "{uri}");
        }
        let mut client =
            Client::new("GET", "/").header("apikey", "a").header("apikey", "b").knowing(&known());
        assert!(client.meets(&*plugin).is_none());
        assert!(!client.head.headers.contains_key("apikey"));
    }

    #[test]
    fn keys_that_are_not_hidden_stay() {
        let mut client = Client::new("GET", "/?apikey=second&a").knowing(&known());
        assert!(client.meets(&*build("key-auth", json!({}))).is_none());
        assert_eq!(client.head.uri, "/?apikey=second&a");
    }

    #[test]
    fn an_anonymous_consumer_stands_in_for_no_or_a_wrong_key() {
        let plugin = build("key-auth", json!({"anonymous": "guest"}));
        for client in [Client::new("GET", "/"), Client::new("GET", "/").header("apikey", "wrong")] {
            let mut client = client.knowing(&known());
            assert!(client.meets(&*plugin).is_none());
            assert_eq!(client.head.headers["x-consumer-username"], "guest");
            assert_eq!(client.head.headers["x-anonymous-consumer"], "true");
            assert!(!client.head.headers.contains_key("x-credential-identifier"));
        }
        // A later plugin that finds a credential replaces the stand-in, and says so no more.
        let mut client = Client::new("GET", "/").header("apikey", "second").knowing(&known());
        let first = build("key-auth", json!({"anonymous": "guest", "names": ["other"]}));
        assert!(client.meets(&*first).is_none());
        assert!(client.meets(&*plugin).is_none());
        assert_eq!(client.head.headers["x-consumer-username"], "alice");
        assert!(!client.head.headers.contains_key("x-anonymous-consumer"));
        // And who is known already is not asked again.
        assert!(client.meets(&*first).is_none());
        assert_eq!(client.head.headers["x-consumer-username"], "alice");
        // Should the consumer be missing after all, nobody gets in.
        assert_eq!(Client::new("GET", "/").meets(&*plugin).unwrap().status, 401);
    }

    #[test]
    fn the_anonymous_consumer_is_a_reference() {
        let references = crate::builtin().references("key-auth", &json!({"anonymous": "guest"}));
        assert_eq!(references, [("consumer/guest".parse().unwrap(), "anonymous".to_owned())]);
        assert!(crate::builtin().references("key-auth", &json!({})).is_empty());
    }

    #[test]
    fn bad_configurations_are_refused_with_all_that_is_wrong() {
        let all = refused(
            "key-auth",
            json!({"names": ["a b"], "in": [], "anonymous": "Not A Name", "realm": "a\"b", "extra": 1}),
        );
        for expected in ["names[0]: ", "in: must have", "anonymous: ", "realm: ", "extra: unknown field"] {
            assert!(all.contains(expected), "{expected} in {all}");
        }
        assert!(refused("key-auth", json!({"names": []})).starts_with("names: "));
        assert!(refused("key-auth", json!({"in": ["body"]})).contains("one of header, query"));
    }
}
