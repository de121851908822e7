//! Logs browsers in at an OpenID Connect provider, and keeps their sessions in cookies.
//!
//! A page that is opened without a session is answered with a redirect to the provider, where the user logs in. The provider sends
//! the browser back to `redirect_uri`, whose path the plugin's routes must take, too. The gateway redeems the code that the browser
//! brings, verifies the ID token, puts the session into cookies, and sends the browser to the page that it wanted. The flow is the
//! authorization code flow with PKCE (S256), `state` and `nonce`.
//!
//! Every call of the provider goes to a target of `upstream`: the discovery document of the `issuer`, its keys (see [jwt](jwt.md)),
//! and tokens. The URLs of the document say the path and the `Host` of a call. Browsers get the provider's URLs as they are. While the
//! provider cannot be reached, sessions go on, and logins are answered `503`.
//!
//! ## Requests
//!
//! - A request with a session passes. The upstream gets the claims of `claims_to_headers` and, with `consumer_claim`, the consumer
//!   that the claim names (`403` if there is none). A header of `claims_to_headers` that a client sends is always removed, in every
//!   spelling. The plugin's cookies never reach the upstream. With `forward_access_token`, it gets the access token.
//! - A request without a session is redirected if a browser opens a page by it: `GET` or `HEAD` with `Sec-Fetch-Mode: navigate` or,
//!   from older browsers, with `text/html` in `Accept`. Requests of scripts and forms are answered `401`: they could not show a login.
//! - A request with a bearer token and without a session is answered `401`, unless `bearer: pass` is set and a plugin before this one
//!   has found its consumer. This plugin checks no bearer tokens itself.
//!
//! ## Sessions
//!
//! A session lives in the cookies alone, so every proxy with the same keys serves it. The cookies are encrypted and authenticated
//! (AES-256-GCM, with a key of its own for each cookie) and bound to the cookie's name, the issuer, the client and the redirect URI.
//! They are `HttpOnly` and `SameSite=Lax`; over https also `Secure`, with `__Host-` before the name. A session of more than 3,800 bytes
//! takes several cookies, at most five. It ends after `idle` without a request, and `absolute` after the login.
//!
//! To change the key, put the new one first and the old one second in `session.keys`, and take the old one out after `absolute`.
//!
//! If the provider sends a refresh token, the tokens are renewed 20 seconds before the access token ends: once in a proxy for all
//! requests of a session, on all workers. A request that still has the old cookie gets the renewed session for five more minutes. If
//! the provider refuses the refresh token, the session ends. If the provider fails, the session goes on until the access token has
//! ended, and is answered `503` then. Proxies do not share their results: where requests of one browser reach several proxies, a
//! provider that accepts each refresh token once can end a session early.
//!
//! A refresh need not bring an ID token (OpenID Connect Core, section 12.2). One that is wrong, for example about another user, ends
//! the session, and the log says why. If only its key is not known, and the keys cannot be fetched, the session takes over the new
//! refresh token alone: it is not extended, and the next refresh comes two seconds later.
//!
//! A response sets the cookies of a session only if the browser has not got newer ones since its request came, so a slow response
//! puts no old session in the place of a newer one. A proxy knows that of the last 8,000 refreshes or so, and of its own only.
//!
//! ## Logins
//!
//! Each tab has a login of its own, in a cookie of its own, for ten minutes; of more than five, the oldest is given up. A browser that
//! comes back late, and has a session, is sent to `/`. A login without one is answered `400`, and one that the provider refused `403`.
//! The page to return to is a path of the gateway, sealed in the cookie, so no link can lead elsewhere.
//!
//! Cookies belong to one host. A browser that opens a page (`GET`) on another host than that of `redirect_uri` is sent to
//! `redirect_uri` with the sealed path, logs in from there, and gets the page on that host. It is sent there once, whatever host the
//! proxy sees in the next request.
//!
//! ## Logout
//!
//! `logout_path` takes the cookies away and sends the browser to the provider's `end_session_endpoint`, if it has one, with
//! `after_logout` for the way back. Otherwise the browser goes to `after_logout`, or gets a page that says that it is logged out. Other
//! sites cannot log users out: their requests are answered `403`, as browsers tell (`Sec-Fetch-Site`).
//!
//! The proxy that carries out a logout remembers the session until its `absolute` time is over: its cookies count no more, copies
//! of them neither, and a request that was under way meanwhile does not set them again. It remembers the last 8,000 logouts or so,
//! and none after it was started anew. Other proxies do not know of it: a copy of the cookies is good there until the session ends by
//! itself or the provider refuses its refresh, and a request that is under way there can set them again. If that matters, send all
//! requests of a browser to one proxy, or keep `absolute` and the lifetime of access tokens short, at a provider whose logout revokes
//! refresh tokens.

use std::sync::Arc;

use signalbox_config::{Errors, FieldError, Name, ResourceKey, SecretSpec};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, PluginResponse, Reply, hooks};

use self::client::{Client, Registration};
use self::config::{Config, Parsed};
use self::gate::{Gate, Settings};
use self::refresh::Refreshes;
use self::seal::Sealer;
use self::sessions::Sessions;
use crate::claims::ClaimHeaders;
use crate::provider::{Provider, upstream_reference};
use crate::reference::resolve;

mod client;
mod config;
mod flow;
mod gate;
mod jar;
mod refresh;
mod seal;
mod session;
mod sessions;
mod start;
mod target;
#[cfg(test)]
mod tests;

/// Logs browsers in at an OpenID Connect provider.
pub(crate) struct Oidc {
    claims_to_headers: ClaimHeaders,
    /// `None`: the secrets are not where the configuration says. The log has the reason.
    gate: Option<Gate>,
}

/// The shortest secret for the keys of cookies, bytes.
const MIN_SECRET: usize = 32;

#[hooks]
impl Plugin for Oidc {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        self.claims_to_headers.strip(&mut request.head.headers);
        match &self.gate {
            Some(gate) => gate.on_request(request),
            None => Reply::problem(
                http::StatusCode::SERVICE_UNAVAILABLE,
                "the gateway lacks its keys for sessions",
            )
            .into(),
        }
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        if let Some(gate) = &self.gate {
            gate.on_response(response);
        }
        Flow::Continue
    }

    fn uses_consumer_headers(&self) -> bool {
        self.claims_to_headers.names().any(|name| signalbox_plugin::Consumers::HEADERS.contains(name))
    }
}

impl Definition for Oidc {
    const NAME: &'static str = "oidc";
    const DESCRIPTION: &'static str =
        "Logs browsers in at an OpenID Connect provider, and keeps their sessions in cookies.";
    const ORDER: i32 = 1430;
    const OUTCOMES: &'static [&'static str] = &[
        gate::LOGIN_BEGUN,
        gate::LOGGED_IN,
        gate::LOGIN_FAILED,
        gate::LOGGED_OUT,
        gate::REFRESHED,
        gate::REFRESH_FAILED,
        gate::SESSION_ENDED,
        Provider::FETCHED,
        Provider::FETCH_FAILED,
    ];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.parse(errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        upstream_reference(&config.upstream, "upstream").into_iter().collect()
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let parsed = config.parse(&mut errors);
        let claims_to_headers = || ClaimHeaders::of(&config.claims_to_headers, &mut Errors::default());
        let built = parsed.map(|parsed| {
            let gate = gate_of(&config, &parsed, claims_to_headers(), context);
            let gate = gate.map_err(|reason| context.log.warn(format_args!("no request can pass: {reason}")));
            Self { claims_to_headers: claims_to_headers(), gate: gate.ok() }
        });
        errors.finish(built)
    }
}

fn gate_of(
    config: &Config,
    parsed: &Parsed,
    claims_to_headers: ClaimHeaders,
    context: &Context<'_>,
) -> Result<Gate, String> {
    let secret = |reference: Option<&SecretSpec>| resolve(reference).map_err(|error| error.to_string());
    let keys: Result<Vec<_>, _> = config.session.keys.iter().map(|key| secret(Some(key))).collect();
    let keys: Vec<String> = keys?.into_iter().flatten().collect();
    if keys.is_empty() || keys.iter().any(|key| key.len() < MIN_SECRET) {
        return Err(format!("a secret of session.keys has fewer than {MIN_SECRET} bytes"));
    }
    let wanted = claims_to_headers.claims().chain(config.consumer_claim.as_deref());
    let registration = Registration {
        issuer: config.issuer.as_str().into(),
        client_id: config.client_id.as_str().into(),
        secret: secret(config.client_secret.as_ref())?.map(Into::into),
        auth: config.client_auth,
        redirect_uri: config.redirect_uri.as_str().into(),
        timeout: config.timeout.0,
        leeway: config.leeway.0,
        claims: wanted.map(Into::into).collect(),
    };
    let scope = [&*config.issuer, &config.client_id, &config.redirect_uri];
    let memory: Name = Oidc::NAME.parse()?;
    let sealer = Sealer::new(keys.iter().map(String::as_bytes), &scope);
    let client = Arc::new(Client { provider: Provider::of(&parsed.source, context), registration });
    Ok(Gate {
        refreshes: Refreshes::of(&client, context),
        // All plugins with these cookies have one memory, whatever their names are.
        sessions: Sessions::of(&(scope, &config.session.cookie), &context.named(&memory)),
        client,
        sealer,
        log: context.log.clone(),
        settings: Settings::of(config, parsed, claims_to_headers),
    })
}
