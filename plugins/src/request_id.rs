//! Gives each request an id of a chosen form, in a header of your choice.
//!
//! Without this plugin every request has an id, too: a UUID of version 7, which the upstream gets as `X-Request-Id`, and which is in the
//! access log and in the proxy's own errors. An `X-Request-Id` of a peer that the listener trusts (`trusted_proxies`) is kept. This plugin
//! changes the header, the form of the id, who may choose it, and tells it to the client. The id that it chooses is the one of the
//! access log and of errors, too.
//!
//! An id that comes with a request is kept if `accept` says so, if it is there exactly once, and if it has 1 to 128 characters, all of
//! them letters, digits or one of `-_.:/+=@`. In its place the upstream otherwise gets a new one. What the client sends under a name that a
//! server may take for the same header (`X_Request_Id`) is removed.
//!
//! With `echo` the id is on every response, also on errors of the proxy, in the place of a header that the upstream sent under that
//! name. A global plugin, or one of a listener, also puts it on the 404 of a request that no route takes. A request that is refused
//! before its route is sought (a malformed head, overload) has none, and neither has a redirect to the other form of a path's slash.
//!
//! A `uuid7` is ordered by time and unique, but its random part is not meant to keep a secret. Take `uuid4` if nobody may guess an id.

use http::{HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::arrival::{X_REQUEST_ID, remove_every_spelling};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{
    Context, Definition, Flow, OnConditionError, Plugin, PluginRequest, Reply, UnroutedRequest, hooks,
};
use uuid::Uuid;

use crate::headers::{header_name, only};

/// The ids, and who may choose them.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Request id", example = serde_json::json!({}), example = serde_json::json!({
    "header": "x-correlation-id", "generator": "uuid4", "accept": "any",
}))]
pub(crate) struct Config {
    /// The header that carries the id.
    #[serde(default = "default_header")]
    #[schemars(title = "Header")]
    header: String,
    /// The form of a new id.
    #[serde(default)]
    #[schemars(title = "Generator")]
    generator: Generator,
    /// The peers whose ids are kept.
    #[serde(default)]
    #[schemars(title = "Accept")]
    accept: Accept,
    /// Puts the id on the response, too.
    #[serde(default = "yes")]
    #[schemars(title = "Echo")]
    echo: bool,
}

/// The form of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Generator {
    /// A UUID of version 7, which is ordered by time.
    #[default]
    Uuid7,
    /// A UUID of version 4, which is random.
    Uuid4,
}

/// The peers whose ids are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Accept {
    /// Nobody.
    Never,
    /// The proxies that the listener trusts (`trusted_proxies`).
    #[default]
    Trusted,
    /// All.
    Any,
}

/// Gives each request an id.
pub(crate) struct RequestId {
    header: HeaderName,
    generator: Generator,
    accept: Accept,
    echo: bool,
}

#[hooks]
impl Plugin for RequestId {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let id = self.choose(&Given {
            headers: &request.head.headers,
            own_id: request.own_id,
            claimed_id: request.claimed_id,
            is_peer_trusted: request.is_peer_trusted,
        });
        remove_every_spelling(&mut request.head.headers, &self.header);
        // An id has no character that a header cannot have.
        let Some(id) = id else { return Flow::Continue };
        if self.echo {
            request.exchange.set_response_header(self.header.clone(), id.clone());
        }
        if id.as_bytes() != request.id() {
            request.exchange.set_request_id(id.clone());
        }
        request.head.headers.insert(self.header.clone(), id);
        Flow::Continue
    }

    fn on_no_route(&self, request: &mut UnroutedRequest<'_>) -> Option<Reply> {
        let id = self.choose(&Given {
            headers: &request.head.headers,
            own_id: request.own_id,
            claimed_id: request.claimed_id,
            is_peer_trusted: request.is_peer_trusted,
        })?;
        if self.echo {
            request.exchange.set_response_header(self.header.clone(), id.clone());
        }
        if id.as_bytes() != request.id() {
            request.exchange.set_request_id(id);
        }
        None
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for RequestId {
    const NAME: &'static str = "request-id";
    const DESCRIPTION: &'static str =
        "Gives each request an id of a chosen form, in a header of your choice.";
    const ORDER: i32 = 100_000;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        if let Err(message) = parse_header(&config.header) {
            errors.push("header", message);
        }
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let Config { header, generator, accept, echo } = config;
        let header = parse_header(&header).map_err(|message| vec![FieldError::new("header", message)])?;
        Ok(Self { header, generator, accept, echo })
    }
}

/// The ids that a request has when the plugin sees it.
struct Given<'r> {
    headers: &'r HeaderMap,
    own_id: &'r [u8],
    claimed_id: Option<&'r HeaderValue>,
    is_peer_trusted: bool,
}

impl RequestId {
    /// The id of a request: the one that comes with it, if it is kept, or a new one.
    fn choose(&self, given: &Given<'_>) -> Option<HeaderValue> {
        if let Some(id) = self.incoming(given) {
            return Some(id);
        }
        let mut text = Uuid::encode_buffer();
        let new = match self.generator {
            // The proxy has made one for this request, unless it kept that of a trusted peer.
            Generator::Uuid7 if !given.is_peer_trusted => return HeaderValue::from_bytes(given.own_id).ok(),
            Generator::Uuid7 => Uuid::now_v7(),
            Generator::Uuid4 => Uuid::new_v4(),
        };
        HeaderValue::from_str(new.hyphenated().encode_lower(&mut text)).ok()
    }

    /// The id that comes with a request, if it is kept.
    fn incoming(&self, given: &Given<'_>) -> Option<HeaderValue> {
        let is_accepted = match self.accept {
            Accept::Never => false,
            Accept::Trusted => given.is_peer_trusted,
            Accept::Any => true,
        };
        // The proxy has taken that of other peers out of the head.
        let given = match given.claimed_id {
            Some(claimed) if self.header == X_REQUEST_ID => Some(claimed),
            _ => only(given.headers, &self.header),
        };
        given.filter(|id| is_accepted && is_id(id.as_bytes())).cloned()
    }
}

/// The longest id that is kept, in bytes.
const MAX_ID: usize = 128;

/// True for an id that is kept.
fn is_id(id: &[u8]) -> bool {
    (1..=MAX_ID).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
}

fn parse_header(name: &str) -> Result<HeaderName, String> {
    let name = header_name(name)?;
    if signalbox_plugin::Consumers::HEADERS.contains(&name) {
        return Err(format!("{name} is a header that only the proxy sets"));
    }
    Ok(name)
}

fn default_header() -> String {
    "X-Request-Id".to_owned()
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::{Uuid, Version};

    use crate::testing::{Client, build, refused};

    /// The id of a request, the same wherever it is told.
    fn id(client: &mut Client, config: Value, header: &str) -> String {
        assert!(client.meets(&*build("request-id", config)).is_none());
        let mut values = client.head.headers.get_all(header).iter();
        let id = values.next().unwrap().to_str().unwrap().to_owned();
        assert!(values.next().is_none());
        assert_eq!(client.answer_headers(&[])[header], *id);
        assert_eq!(client.request().id(), id.as_bytes());
        id
    }

    #[test]
    fn new_ids_have_the_configured_form() {
        let version = |config| {
            let header = "x-request-id";
            id(&mut Client::new("GET", "/"), config, header).parse::<Uuid>().unwrap().get_version()
        };
        assert_eq!(version(json!({})), Some(Version::SortRand));
        assert_eq!(version(json!({"generator": "uuid4"})), Some(Version::Random));
        let ids: std::collections::HashSet<_> = (0..100)
            .map(|_| id(&mut Client::new("GET", "/"), json!({"generator": "uuid4"}), "x-request-id"))
            .collect();
        assert_eq!(ids.len(), 100);
    }

    #[test]
    fn an_id_is_kept_of_those_who_may_choose_it() {
        for (accept, is_trusted, kept) in [
            ("never", false, false),
            ("never", true, false),
            ("trusted", false, false),
            ("trusted", true, true),
            ("any", false, true),
            ("any", true, true),
        ] {
            let mut client = Client::new("GET", "/").header("x-trace", "abc-1");
            client.is_peer_trusted = is_trusted;
            let found = id(&mut client, json!({"accept": accept, "header": "X-Trace"}), "x-trace");
            assert_eq!(found == "abc-1", kept, "{accept} {is_trusted}");
            // The proxy keeps the usual header out of the head, unless it trusts the peer.
            let mut client = Client::new("GET", "/");
            client.is_peer_trusted = is_trusted;
            client.claimed_id = (!is_trusted).then(|| "abc-2".parse().unwrap());
            if is_trusted {
                client = client.header("x-request-id", "abc-2");
            }
            let found = id(&mut client, json!({"accept": accept}), "x-request-id");
            assert_eq!(found == "abc-2", kept, "{accept} {is_trusted}");
        }
    }

    #[test]
    fn an_id_that_is_unfit_is_replaced() {
        let long = "x".repeat(129);
        for bad in [&[""][..], &["a b"], &["a\"b"], &["\u{e4}"], &[&long], &["a", "a"], &["a,b"], &["<a>"]] {
            let mut client = Client::new("GET", "/");
            for value in bad {
                client = client.header("x-trace", value);
            }
            let found = id(&mut client, json!({"accept": "any", "header": "x-trace"}), "x-trace");
            assert!(found.parse::<Uuid>().is_ok(), "{bad:?} {found}");
        }
        let fit = "x".repeat(128);
        let mut client = Client::new("GET", "/").header("x-trace", &fit);
        assert_eq!(id(&mut client, json!({"accept": "any", "header": "x-trace"}), "x-trace"), fit);
    }

    #[test]
    fn other_spellings_are_removed_and_the_echo_can_be_left_out() {
        let mut client = Client::new("GET", "/").header("x_trace", "a").header("x.trace", "b");
        assert!(client.meets(&*build("request-id", json!({"header": "x-trace", "echo": false}))).is_none());
        assert_eq!(client.head.headers.len(), 1);
        assert!(client.answer_headers(&[]).is_empty());
    }

    #[test]
    fn a_request_that_no_route_takes_has_an_id_too() {
        for (config, kept) in [
            (json!({"accept": "any", "header": "x-trace"}), true),
            (json!({"header": "x-trace"}), false),
            (json!({"accept": "any", "header": "x-trace", "echo": false}), true),
        ] {
            let mut client = Client::new("GET", "/").header("x-trace", "abc-1");
            assert!(client.finds_no_route(&*build("request-id", config.clone())).is_none());
            assert_eq!(client.request().id() == b"abc-1", kept, "{config}");
            let id = client.request().id().to_vec();
            let echo = client.answer_headers(&[]).remove("x-trace");
            assert_eq!(echo.is_some(), config["echo"] != false, "{config}");
            assert!(echo.is_none_or(|echo| echo.as_bytes() == id), "{config}");
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        for header in ["", "a b", "host", "content-length", "x-consumer-id"] {
            let errors = refused("request-id", json!({"header": header}));
            assert!(errors.starts_with("header: "), "{header}: {errors}");
        }
        assert!(refused("request-id", json!({"generator": "counter"})).starts_with("generator: "));
    }
}
