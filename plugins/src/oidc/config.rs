//! The configuration of the plugin.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderValue, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, HumanDuration, SecretSpec};

use crate::claims::ClaimHeaders;
use crate::provider::{Source, TIMEOUT, check_upstream, endpoint_of, is_issuer};
use crate::reference::check_reference;

/// The provider, the client that the gateway is there, and the sessions of browsers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "OpenID Connect", example = serde_json::json!({
    "issuer": "https://login.example.com", "upstream": "login", "client_id": "shop",
    "client_secret": {"file": "/run/secrets/oidc-client"}, "redirect_uri": "https://shop.example.com/callback",
    "session": {"keys": [{"file": "/run/secrets/session-key"}]}, "claims_to_headers": {"x-user": "sub"},
}), example = serde_json::json!({
    "issuer": "https://login.example.com/tenant", "upstream": "login", "client_id": "shop", "scopes": ["email", "offline_access"],
    "redirect_uri": "https://shop.example.com/callback", "after_logout": "https://shop.example.com/goodbye",
    "session": {"keys": [{"env": "NEW_SESSION_KEY"}, {"env": "OLD_SESSION_KEY"}], "idle": "30m"},
    "consumer_claim": "email", "forward_access_token": true,
}))]
pub(crate) struct Config {
    /// The issuer: the URL of the provider, below which its discovery document lies. It must be the document's `issuer`.
    #[schemars(title = "Issuer")]
    pub(super) issuer: String,
    /// The upstream whose targets are the provider.
    #[schemars(title = "Upstream")]
    pub(super) upstream: String,
    /// The identifier of the client that is registered for the gateway at the provider.
    #[schemars(title = "Client id")]
    pub(super) client_id: String,
    /// The secret of that client, as a reference: `{"env": "NAME"}` or `{"file": "PATH"}` of the proxy. Absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Client secret")]
    pub(super) client_secret: Option<SecretSpec>,
    /// The way in which the secret is sent to the provider.
    #[serde(default)]
    #[schemars(title = "Client authentication")]
    pub(super) client_auth: ClientAuth,
    /// The URL to which the provider sends browsers back, as it is registered there. The plugin's routes must take its path. Sessions
    /// are those of its host, because cookies belong to one host: a browser that opens a page on another host is sent there to log in.
    #[schemars(title = "Redirect URI")]
    pub(super) redirect_uri: String,
    /// The scopes that are asked for besides `openid`. Many providers send a refresh token only for `offline_access`.
    #[serde(default)]
    #[schemars(title = "Scopes")]
    pub(super) scopes: Vec<String>,
    /// Further parameters of the authorization request, such as `prompt` or `audience`.
    #[serde(default)]
    #[schemars(title = "Parameters")]
    pub(super) parameters: BTreeMap<String, String>,
    /// The sessions of browsers.
    #[schemars(title = "Session")]
    pub(super) session: SessionSpec,
    /// The answer to a page that is opened without a session. Other requests are always answered 401.
    #[serde(default)]
    #[schemars(title = "Unauthenticated")]
    pub(super) unauthenticated: Unauthenticated,
    /// The treatment of requests that have a bearer token and no session.
    #[serde(default)]
    #[schemars(title = "Bearer tokens")]
    pub(super) bearer: Bearer,
    /// The headers by which the upstream learns claims of the ID token: header to claim.
    #[serde(default)]
    #[schemars(title = "Claims to headers")]
    pub(super) claims_to_headers: BTreeMap<String, String>,
    /// The claim of the ID token that names the consumer. Absent: requests belong to no consumer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Consumer claim")]
    pub(super) consumer_claim: Option<String>,
    /// Sends the user's access token to the upstream, as `Authorization: Bearer`.
    #[serde(default)]
    #[schemars(title = "Forward the access token")]
    pub(super) forward_access_token: bool,
    /// The path that ends the session of the browser that opens it.
    #[serde(default = "default_logout_path")]
    #[schemars(title = "Logout path")]
    pub(super) logout_path: String,
    /// The URL to which a browser goes after it has logged out, as it is registered at the provider. Absent: a page that says so, the
    /// provider's own if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "After logout")]
    pub(super) after_logout: Option<String>,
    /// The time for a call of the provider, from 1ms to 1m.
    #[serde(default = "default_timeout")]
    #[schemars(title = "Timeout")]
    pub(super) timeout: HumanDuration,
    /// The difference between the clocks of provider and proxy that is allowed for, at most 1h.
    #[serde(default = "default_leeway")]
    #[schemars(title = "Leeway")]
    pub(super) leeway: HumanDuration,
}

/// The sessions of browsers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Session")]
pub(super) struct SessionSpec {
    /// The secrets, of at least 32 bytes, from which the keys of cookies are made, as references: `{"env": "NAME"}` or
    /// `{"file": "PATH"}` of the proxy. New cookies are sealed with the first; a second one still opens those that it has sealed.
    #[schemars(title = "Keys", length(min = 1, max = 2))]
    pub(super) keys: Vec<SecretSpec>,
    /// The name of the cookie. Over https, `__Host-` stands before it.
    #[serde(default = "default_cookie")]
    #[schemars(title = "Cookie")]
    pub(super) cookie: String,
    /// The longest time without a request, from 1m to 30 days.
    #[serde(default = "default_idle")]
    #[schemars(title = "Idle time")]
    idle: HumanDuration,
    /// The longest time after the login, from 1m to 30 days.
    #[serde(default = "default_absolute")]
    #[schemars(title = "Absolute time")]
    absolute: HumanDuration,
}

/// The way in which a client's secret is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ClientAuth {
    /// In the header `Authorization` (`client_secret_basic`).
    #[default]
    Basic,
    /// In the body (`client_secret_post`).
    Post,
}

/// The answer to a page that is opened without a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unauthenticated {
    /// The browser is sent to the provider to log in.
    #[default]
    Redirect,
    /// 401.
    Deny,
    /// None: requests without a session pass, pages and others, without claims and without a consumer.
    Pass,
}

/// The treatment of requests that have a bearer token and no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Bearer {
    /// The token counts for nothing, and such a request is answered 401.
    #[default]
    Deny,
    /// They pass if a plugin before this one, such as `jwt`, has found their consumer by a credential. Others are answered 401.
    Pass,
}

/// The parts of a configuration that are more than their text.
pub(super) struct Parsed {
    pub(super) source: Source,
    /// The origin of the redirect URI, `https://shop.example.com`.
    pub(super) origin: String,
    /// Its host, `shop.example.com`.
    pub(super) host: String,
    pub(super) callback_path: String,
    pub(super) is_secure: bool,
    pub(super) lifetime: Lifetime,
}

/// The bounds of sessions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetime {
    /// The longest time without a request.
    pub(super) idle: Duration,
    /// The longest time from login to login.
    pub(super) absolute: Duration,
}

/// The parameters of authorization requests that the plugin sets itself.
const RESERVED: [&str; 11] = [
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "nonce",
    "redirect_uri",
    "request",
    "request_uri",
    "response_mode",
    "response_type",
    "scope",
    "state",
];

const LIFETIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(30 * 24 * 3600);

impl Config {
    /// Reads the configuration, and adds what is wrong with it to `errors`.
    pub(super) fn parse(&self, errors: &mut Errors) -> Option<Parsed> {
        let upstream = check_upstream(&self.upstream, errors);
        if !is_issuer(&self.issuer) {
            errors.push("issuer", "must be a URL without a query, https://login.example.com");
        }
        if self.client_id.is_empty() {
            errors.push("client_id", "must not be empty");
        }
        check_reference("client_secret", self.client_secret.as_ref(), errors);
        self.check_requests(errors);
        let lifetime = self.session.parse(errors);
        if !TIMEOUT.contains(&self.timeout.0) {
            errors.push("timeout", "must be from 1ms to 1m");
        }
        if self.leeway.0 > Duration::from_secs(3600) {
            errors.push("leeway", "must be at most 1h");
        }
        ClaimHeaders::of(&self.claims_to_headers, errors);
        if self.after_logout.as_deref().is_some_and(|url| endpoint_of(url).is_none()) {
            errors.push("after_logout", "must be a URL, https://shop.example.com/goodbye");
        }
        let redirect = self.redirect(errors)?;
        if !is_path(&self.logout_path) || self.logout_path == redirect.path() {
            errors.push("logout_path", "must be a path that begins with /, and not the one of redirect_uri");
        }
        let scheme = redirect.scheme_str()?;
        Some(Parsed {
            source: Source::discovered(upstream?, &self.issuer, self.timeout.0)?,
            origin: format!("{scheme}://{}", redirect.authority()?),
            host: redirect.host()?.to_owned(),
            callback_path: redirect.path().to_owned(),
            is_secure: scheme == "https",
            lifetime,
        })
    }

    fn redirect(&self, errors: &mut Errors) -> Option<Uri> {
        let url = endpoint_of(&self.redirect_uri).map(|endpoint| endpoint.url);
        let url = url.filter(|url| url.query().is_none() && is_path(url.path()) && url.path() != "/");
        if url.is_none() {
            errors.push(
                "redirect_uri",
                "must be a URL with a path of its own and without a query, https://shop.example.com/callback",
            );
        }
        url
    }

    fn check_requests(&self, errors: &mut Errors) {
        for (index, scope) in self.scopes.iter().enumerate() {
            // RFC 6749, section 3.3.
            let is_token = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
            if scope.is_empty() || !scope.bytes().all(is_token) {
                errors.push(
                    format_args!("scopes[{index}]"),
                    "must be printable ASCII without spaces, quotation marks and backslashes",
                );
            }
        }
        for name in self.parameters.keys() {
            if RESERVED.contains(&name.as_str()) {
                errors.push(format_args!("parameters.{name}"), "is set by the plugin itself");
            }
        }
    }
}

impl SessionSpec {
    fn parse(&self, errors: &mut Errors) -> Lifetime {
        if !(1..=2).contains(&self.keys.len()) {
            errors.push("session.keys", "must be one secret, or two while they are rotated");
        }
        for (index, key) in self.keys.iter().enumerate() {
            check_reference(&format!("session.keys[{index}]"), Some(key), errors);
        }
        // RFC 6265, section 4.1.1; the plugin's own names have dots and dashes.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if self.cookie.is_empty() || self.cookie.len() > 64 || !self.cookie.bytes().all(is_plain) {
            errors.push("session.cookie", "must be 1 to 64 letters, digits, - and _");
        }
        for (field, time) in [("idle", self.idle.0), ("absolute", self.absolute.0)] {
            if !LIFETIMES.contains(&time) {
                errors.push(format_args!("session.{field}"), "must be from 1m to 30 days");
            }
        }
        Lifetime { idle: self.idle.0, absolute: self.absolute.0 }
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains(['?', '#']) && HeaderValue::from_str(path).is_ok()
}

fn default_logout_path() -> String {
    "/logout".to_owned()
}

fn default_cookie() -> String {
    "session".to_owned()
}

fn default_idle() -> HumanDuration {
    HumanDuration(Duration::from_secs(3600))
}

fn default_absolute() -> HumanDuration {
    HumanDuration(Duration::from_secs(12 * 3600))
}

fn default_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(5))
}

fn default_leeway() -> HumanDuration {
    HumanDuration(Duration::from_secs(60))
}
