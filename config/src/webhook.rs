use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use http::{HeaderName, Uri};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bounds::{between, within};
use crate::credential::MIN_HMAC_SECRET;
use crate::error::{Errors, FieldError};
use crate::header_text::{HeaderTextSpec, PlaceSpec, parse_headers};
use crate::key::Name;
use crate::names::parse_names;
use crate::narrowing::Narrowing;
use crate::secret::{REDACTED, text_reference_schema};
use crate::shared_secret::{SharedSecret, SharedSecretReference, SharedSecretSpec};
use crate::specification::{Audience, Common, Context, Specification};
use crate::values::{HumanDuration, enabled, is_default};

/// A webhook as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookSpec {
    /// The name of the webhook, unique among webhooks.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Enables the webhook. One that is not enabled is sent nothing but tests.
    #[schemars(extend("default" = true))]
    #[serde(default = "enabled", skip_serializing_if = "Clone::clone")]
    pub enabled: bool,
    /// The address that events are sent to: `https://…` with a certificate that the control plane's host trusts, or `http://…`. What follows
    /// the host may be a secret, so the API returns `<redacted>` in its place. Or a reference to the control plane's host: `{env: NAME}`, a
    /// name that begins with `SIGNALBOX_WEBHOOK_`, or `{file: PATH}`, a file below the directory `--webhook-secrets-dir`.
    pub url: WebhookUrlSpec,
    /// The format of what is sent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: WebhookFormat,
    /// The events that are sent; at least one.
    pub events: Vec<WebhookTopic>,
    /// The fleets whose rollouts and incidents are sent. Revisions, and incidents that concern no fleet, are sent in any case. Absent: all
    /// fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// The events of rollouts that are sent. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout_events: Option<Vec<WebhookRolloutEvent>>,
    /// Only incidents are sent that take at least so much from the score of the health report, from 0 to 100; default 0.
    #[schemars(range(max = 100), example = 20)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_penalty: Option<u32>,
    /// The secret by which requests are signed as Standard Webhooks says: `whsec_` and the key in base64, or at least 16 bytes that are the
    /// key themselves. Or a reference, as of `url`. Absent: requests are not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SharedSecretSpec>,
    /// Further headers of requests, at most 32: a text, which everybody who may read the webhook sees, or a reference, as of `url`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, HeaderTextSpec>,
    /// The time to wait for an answer, from 100ms to 1m; default 5s.
    #[schemars(example = &"5s")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
}

/// The address of a webhook as people write it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WebhookUrlSpec {
    /// The URL itself, or what the API returned in its place.
    Text(String),
    /// A reference.
    Reference(SharedSecretReference),
}

/// The format of what a webhook is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WebhookFormat {
    /// JSON with `type`, `id`, `timestamp` and `data`.
    #[default]
    Json,
    /// A message for an incoming webhook of Slack, or of what takes the same: `text` with a sentence.
    Slack,
}

/// A topic of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WebhookTopic {
    /// A revision was published.
    Revision,
    /// Something happened to a rollout.
    Rollout,
    /// An incident of the health report was opened or closed.
    Incident,
}

/// Something that happens to a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookRolloutEvent {
    /// It waits: for approval, a freeze window, a proxy, or another rollout.
    Waiting,
    /// Its first step began.
    Started,
    /// Its next step began.
    Step,
    /// The whole fleet has the revision, and it is not proven yet.
    Baking,
    /// A person gave a command, such as to resume.
    Command,
    /// A person halted it.
    Paused,
    /// It needs a decision of a person.
    Held,
    /// The fleet keeps the revision.
    Succeeded,
    /// A proxy rejected the revision, or a gate failed. A progressive rollout is taken back.
    Failed,
    /// A person, or the policy, ended it. It is taken back.
    Aborted,
    /// A later revision took its place.
    Superseded,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Webhook {
    /// Its name.
    pub name: Name,
    /// False: it is sent nothing but tests.
    pub enabled: bool,
    /// The address that events are sent to.
    pub url: WebhookUrl,
    /// The format of what is sent.
    pub format: WebhookFormat,
    /// The topics of which events are sent; at least one.
    pub topics: BTreeSet<WebhookTopic>,
    /// The fleets whose rollouts and incidents are sent; `None`: all.
    pub fleets: Option<Box<[Name]>>,
    /// The events of rollouts that are sent; `None`: all.
    pub rollout_events: Option<BTreeSet<WebhookRolloutEvent>>,
    /// The least penalty of an incident that is sent, from 0 to 100.
    pub min_penalty: u32,
    /// The secret by which requests are signed.
    pub secret: Option<SharedSecret>,
    /// Further headers of requests.
    pub headers: Box<[(HeaderName, HeaderTextSpec)]>,
    /// The time to wait for an answer.
    pub timeout: Duration,
}

/// The address of a webhook.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum WebhookUrl {
    /// The URL: with a scheme and a host.
    Text(Uri),
    /// An environment variable of the control plane that holds it.
    Env(String),
    /// A file on the control plane's host that holds it.
    File(String),
}

/// The headers that a request has by itself.
const OWN_HEADERS: [&str; 8] = [
    "content-length",
    "content-type",
    "connection",
    "transfer-encoding",
    "te",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// The longest URL, bytes.
const MAX_URL: usize = 4096;

/// A webhook may refer to the environment variables of the control plane whose names begin so. Whoever writes webhooks could read every
/// other one by sending it to a receiver of his own: the URL of the database, the key of its secrets.
const VARIABLES: &str = "SIGNALBOX_WEBHOOK_";

impl Specification for WebhookSpec {
    type Parsed = Webhook;

    const TITLE: &'static str = "Webhook";
    const TITLES: &'static str = "Webhooks";
    const ABOUT: &'static str =
        "A webhook is an address to which the control plane sends revisions, rollouts and incidents.";
    const AUDIENCE: Audience = Audience::ControlPlane;
    const CLEAR_SECRETS: &'static [&'static str] = &["url", "secret"];
    const FOR_ADMINISTRATORS: bool = true;

    fn common(&self) -> Common<'_> {
        Common {
            name: &self.name,
            description: self.description.as_deref(),
            labels: &self.labels,
            // Its `fleets` are those that it tells of.
            fleets: None,
        }
    }

    fn schema() -> &'static Schema {
        static SCHEMA: std::sync::LazyLock<Schema> =
            std::sync::LazyLock::new(|| schemars::schema_for!(WebhookSpec));
        &SCHEMA
    }

    fn narrowing(_: &Value) -> &'static [Narrowing] {
        const { &[Narrowing::not_empty(&["rollout_events"], "for all that happens to a rollout")] }
    }

    fn parse(&self, context: &Context<'_>) -> Result<Webhook, Vec<FieldError>> {
        let mut errors = Errors::default();
        let url = self.url.parse().and_then(|url| match &url {
            WebhookUrl::Text(_) => Ok(url),
            WebhookUrl::Env(name) => check_variable(name).map(|()| url),
            WebhookUrl::File(path) => check_path(path).map(|()| url),
        });
        let url = url.map_err(|message| errors.push("url", message)).ok();
        if self.events.is_empty() {
            errors.push("events", "must not be empty: name at least one of revision, rollout and incident");
        }
        let topics = set(&self.events, "events", &mut errors);
        let fleets = self.fleets.as_ref().map(|fleets| {
            if fleets.is_empty() {
                errors.push("fleets", "must not be empty; leave it out for all fleets");
            }
            parse_names(fleets, "fleets", &mut errors)
        });
        let rollout_events = self.rollout_events.as_ref().map(|events| {
            if !topics.contains(&WebhookTopic::Rollout) {
                errors.push("rollout_events", "has a meaning only with rollout in events");
            }
            set(events, "rollout_events", &mut errors)
        });
        if self.min_penalty.is_some() && !topics.contains(&WebhookTopic::Incident) {
            errors.push("min_penalty", "has a meaning only with incident in events");
        }
        let min_penalty = within(self.min_penalty, 0, 0, 100, "min_penalty", &mut errors);
        let secret = self.secret.as_ref().and_then(|secret| {
            let parsed = secret.parse(MIN_HMAC_SECRET).and_then(|secret| match &secret {
                SharedSecret::Text(text) => WebhookKey::read(text.as_bytes()).map(|_| secret),
                SharedSecret::Env(name) => check_variable(name).map(|()| secret),
                SharedSecret::File(path) => check_path(path).map(|()| secret),
            });
            parsed.map_err(|message| errors.push("secret", message)).ok()
        });
        let headers = parse_headers(&self.headers, "headers", "control plane", &OWN_HEADERS, &mut errors);
        for (name, value) in &self.headers {
            let checked = match value {
                HeaderTextSpec::Place(PlaceSpec::Env(name)) if !name.is_empty() => check_variable(name),
                HeaderTextSpec::Place(PlaceSpec::File(path)) if !path.is_empty() => check_path(path),
                HeaderTextSpec::Text(_) | HeaderTextSpec::Place(_) => Ok(()),
            };
            if let Err(message) = checked {
                errors.push(format_args!("headers.{name}"), message);
            }
        }
        let timeout = between(self.timeout, 5_000, 100, 60_000, "timeout", &mut errors);
        let webhook = url.map(|url| Webhook {
            name: context.name.clone(),
            enabled: self.enabled,
            url,
            format: self.format,
            topics,
            fleets,
            rollout_events,
            min_penalty,
            secret,
            headers,
            timeout,
        });
        errors.finish(webhook)
    }

    fn redact(&mut self) {
        if let WebhookUrlSpec::Text(text) = &mut self.url {
            *text = redacted_url(text);
        }
        if let Some(secret) = &mut self.secret {
            secret.redact();
        }
    }

    fn restore(&self, new: &mut Value) {
        if let (WebhookUrlSpec::Text(stored), Some(Value::String(url))) = (&self.url, new.get_mut("url"))
            && (url == REDACTED || *url == redacted_url(stored))
        {
            url.clone_from(stored);
        }
        if let (Some(stored), Some(secret)) = (&self.secret, new.get_mut("secret"))
            && secret.as_str() == Some(REDACTED)
        {
            *secret = serde_json::to_value(stored).unwrap_or(Value::Null);
        }
    }
}

/// The set of the entries of a list.
fn set<T: Copy + Ord>(list: &[T], field: &str, errors: &mut Errors) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    for (index, entry) in list.iter().enumerate() {
        if !set.insert(*entry) {
            errors.push(format_args!("{field}[{index}]"), "is listed twice");
        }
    }
    set
}

/// Says why a webhook may not refer to an environment variable.
fn check_variable(name: &str) -> Result<(), String> {
    match name.strip_prefix(VARIABLES) {
        Some(rest) if !rest.is_empty() => Ok(()),
        Some(_) | None => Err(format!(
            "env is {name:?}; a webhook may only name environment variables that begin with {VARIABLES}"
        )),
    }
}

/// Says why a webhook may not refer to a file. The control plane that reads it decides if it lies below its `--webhook-secrets-dir`.
fn check_path(path: &str) -> Result<(), String> {
    if path.starts_with('/') && path.split('/').all(|part| part != "..") {
        return Ok(());
    }
    Err(format!(
        "file is {path:?}; it must be an absolute path without \"..\", below the directory --webhook-secrets-dir of the control plane"
    ))
}

impl WebhookUrlSpec {
    fn parse(&self) -> Result<WebhookUrl, String> {
        match self {
            Self::Text(text) => parse_webhook_url(text).map(WebhookUrl::Text),
            Self::Reference(SharedSecretReference::Env(name)) if !name.is_empty() => {
                Ok(WebhookUrl::Env(name.clone()))
            }
            Self::Reference(SharedSecretReference::File(path)) if !path.is_empty() => {
                Ok(WebhookUrl::File(path.clone()))
            }
            Self::Reference(_) => Err("env and file must not be empty".to_owned()),
        }
    }
}

/// The URL of a webhook, or why it is none. The error does not quote it.
pub fn parse_webhook_url(text: &str) -> Result<Uri, String> {
    if text.contains(REDACTED) {
        return Err(
            "has \"<redacted>\" in it, which stands for what is stored: write the whole URL to change it"
                .to_owned(),
        );
    }
    if text.len() > MAX_URL {
        return Err(format!("has {} bytes; at most {MAX_URL}", text.len()));
    }
    if text.contains('#') {
        return Err("must have no fragment (#)".to_owned());
    }
    let url: Uri = text.parse().map_err(|_| "is not a URL like https://example.com/hook".to_owned())?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err("must begin with http:// or https://".to_owned());
    }
    let authority = url.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.ok_or_else(|| "must have a host".to_owned())?;
    if authority.as_str().contains('@') {
        return Err("must have no user or password; use headers".to_owned());
    }
    // `host:` and `host:65536` have none either.
    if authority.as_str() != authority.host() && authority.port_u16().is_none_or(|port| port == 0) {
        return Err("has a port that is not from 1 to 65535".to_owned());
    }
    Ok(url)
}

/// A URL without what follows its host, which may be a secret.
fn redacted_url(text: &str) -> String {
    match parse_webhook_url(text) {
        Ok(url) if matches!(url.path(), "" | "/") && url.query().is_none() => text.to_owned(),
        Ok(url) => format!("{}/{REDACTED}", origin(&url)),
        Err(_) => REDACTED.to_owned(),
    }
}

fn origin(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", url.scheme_str().unwrap_or_default())
}

/// The key by which requests are signed.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookKey(Box<[u8]>);

impl WebhookKey {
    /// Reads a secret: `whsec_` and the key in base64, as Standard Webhooks writes it, or the key itself.
    pub fn read(secret: &[u8]) -> Result<Self, String> {
        use base64::Engine as _;
        let key = match secret.strip_prefix(b"whsec_") {
            None => secret.to_vec(),
            Some(text) => base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_err(|_| "begins with whsec_, and what follows is not base64".to_owned())?,
        };
        crate::check_shared_secret(&key, MIN_HMAC_SECRET)?;
        Ok(Self(key.into()))
    }

    /// The bytes of the key.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for WebhookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Debug for WebhookUrlSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&redacted_url(text)),
            Self::Reference(reference) => reference.fmt(f),
        }
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(url) => f.write_str(&origin(url)),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl JsonSchema for WebhookUrlSpec {
    fn schema_name() -> Cow<'static, str> {
        "WebhookUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The URL, or a reference: {env: NAME} or {file: PATH} on the control plane's host. The API returns \"<redacted>\" in the place of what follows the host",
            "anyOf": [
                {"type": "string", "title": "URL", "examples": ["https://hooks.example.com/services/T0/B0/x"]},
                text_reference_schema("env", "Environment variable", "The name of an environment variable of the control plane; it begins with SIGNALBOX_WEBHOOK_.", "SIGNALBOX_WEBHOOK_URL"),
                text_reference_schema("file", "File", "The path of a file on the control plane's host, below its --webhook-secrets-dir.", "/run/secrets/webhooks/url"),
            ],
        })
    }
}
