//! Lets requests with a session in, and sends browsers without one to the provider.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, LOCATION, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, request};
use serde_json::Value;
use signalbox_plugin::{Exchange, Flow as Next, Identity, Logger, PluginRequest, PluginResponse, Reply};

use super::client::{Client, TokenError, printable};
use super::config::{Bearer, Config, Lifetime, Parsed, Unauthenticated};
use super::flow::Flow;
use super::jar::Jar;
use super::refresh::{Refreshed, Refreshes};
use super::seal::Sealer;
use super::session::{Kept, Session};
use super::sessions::{Sessions, Version};
use super::start::{self, Start};
use super::target;
use crate::authorization::after_scheme;
use crate::claims::ClaimHeaders;
use crate::clock::since_1970;
use crate::cookies;
use crate::query::{self, encode};

/// The gate of a plugin whose secrets are there.
pub(super) struct Gate {
    pub(super) client: Arc<Client>,
    pub(super) refreshes: Arc<Refreshes>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) sealer: Sealer,
    pub(super) log: Logger,
    pub(super) settings: Settings,
}

/// The parts of the configuration that decide about requests.
pub(super) struct Settings {
    pub(super) jar: Jar,
    origin: String,
    /// The host of the origin.
    host: String,
    callback_path: String,
    logout_path: String,
    after_logout: Option<String>,
    /// The parameters that all authorization requests have.
    parameters: String,
    lifetime: Lifetime,
    kept: Kept,
    unauthenticated: Unauthenticated,
    bearer: Bearer,
    pub(super) claims_to_headers: ClaimHeaders,
    consumer_claim: Option<Box<str>>,
    forwards_access_token: bool,
}

/// The cookies of a session that a response is to set or to take away, unless the browser has newer ones by then, or is logged out.
struct Pending {
    version: Version,
    cookies: Vec<HeaderValue>,
}

/// The outcomes that are counted.
pub(super) const LOGIN_BEGUN: &str = "login_begun";
pub(super) const LOGGED_IN: &str = "logged_in";
pub(super) const LOGIN_FAILED: &str = "login_failed";
pub(super) const LOGGED_OUT: &str = "logged_out";
pub(super) const REFRESHED: &str = "refreshed";
pub(super) const REFRESH_FAILED: &str = "refresh_failed";
pub(super) const SESSION_ENDED: &str = "session_ended";

const NO_SESSION: &str = "the request has no session";

impl Settings {
    pub(super) fn of(config: &Config, parsed: &Parsed, claims_to_headers: ClaimHeaders) -> Self {
        let mut parameters = format!(
            "response_type=code&client_id={}&redirect_uri={}&scope=openid",
            encode(&config.client_id),
            encode(&config.redirect_uri)
        );
        for scope in config.scopes.iter().filter(|scope| *scope != "openid") {
            let _ = write!(parameters, "%20{}", encode(scope));
        }
        for (name, value) in &config.parameters {
            let _ = write!(parameters, "&{}={}", encode(name), encode(value));
        }
        Self {
            jar: Jar::new(&config.session.cookie, parsed.is_secure),
            origin: parsed.origin.clone(),
            host: parsed.host.clone(),
            callback_path: parsed.callback_path.clone(),
            logout_path: config.logout_path.clone(),
            after_logout: config.after_logout.clone(),
            parameters,
            lifetime: parsed.lifetime,
            kept: Kept { access_token: config.forward_access_token, id_token: true },
            unauthenticated: config.unauthenticated,
            bearer: config.bearer,
            claims_to_headers,
            consumer_claim: config.consumer_claim.as_deref().map(Into::into),
            forwards_access_token: config.forward_access_token,
        }
    }
}

impl Gate {
    pub(super) fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Next<'a> {
        let path = request.head.uri.path();
        if path == self.settings.callback_path {
            return Next::Wait(Box::pin(self.callback(request)));
        }
        if path == self.settings.logout_path {
            return Next::Wait(Box::pin(self.logout(request)));
        }
        match self.session(request) {
            None => self.without_session(request),
            Some(session) if session.needs_refresh(since_1970(request.clock)) => {
                Next::Wait(Box::pin(self.refresh(session, request)))
            }
            Some(session) => self.admit(session, request),
        }
    }

    /// Gives the browser the cookies that were sealed when its request came, if they are still the newest.
    pub(super) fn on_response(&self, response: &mut PluginResponse<'_>) {
        let Some(Pending { version, cookies }) = response.exchange.take() else { return };
        if self.sessions.may_set(version, since_1970(response.clock)) {
            set_cookies(response.exchange, cookies);
        }
    }

    /// The session of the request, if it is not over.
    fn session(&self, request: &PluginRequest<'_>) -> Option<Session> {
        let Settings { jar, lifetime, .. } = &self.settings;
        let now = since_1970(request.clock);
        let opened = self.sealer.open(jar.name(), &jar.session(&request.head.headers)?)?;
        let session: Session = serde_json::from_slice(&opened).ok()?;
        let is_over =
            session.is_over(*lifetime, now) || self.sessions.is_logged_out(self.version(&session), now);
        (!is_over).then_some(session)
    }

    fn version(&self, session: &Session) -> Version {
        Version::of(session, self.settings.lifetime)
    }

    /// Has the response to the request set the cookies of its session.
    fn keep(&self, session: &mut Session, request: &mut PluginRequest<'_>) {
        if let Some(cookies) = self.sealed(session, &request.head.headers) {
            request.exchange.insert(Pending { version: self.version(session), cookies });
        }
    }

    fn admit(&self, mut session: Session, request: &mut PluginRequest<'_>) -> Next<'static> {
        let now = since_1970(request.clock);
        let Settings { jar, lifetime, forwards_access_token, .. } = &self.settings;
        if *forwards_access_token && session.has_ended(now) {
            request.count(SESSION_ENDED);
            return self.end_session(&session, request);
        }
        let identity = match self.identity(&session, request) {
            Ok(identity) => identity,
            Err(refused) => return refused,
        };
        if session.touch(*lifetime, now) {
            self.keep(&mut session, request);
        }
        let headers = &mut request.head.headers;
        for (name, value) in self.settings.claims_to_headers.values(|claim| session.claims.get(claim)) {
            headers.insert(name, value);
        }
        if *forwards_access_token {
            headers.remove(AUTHORIZATION);
            let value = session.access_token.map(|token| HeaderValue::try_from(format!("Bearer {token}")));
            if let Some(Ok(mut value)) = value {
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
            }
        }
        cookies::remove(headers, |name| jar.is_ours(name));
        // Several users may be one consumer.
        request.exchange.is_personal = true;
        if let Some(identity) = identity {
            request.authenticate(identity);
        }
        Next::Continue
    }

    fn identity(
        &self,
        session: &Session,
        request: &PluginRequest<'_>,
    ) -> Result<Option<Identity>, Next<'static>> {
        let Some(claim) = &self.settings.consumer_claim else { return Ok(None) };
        let name = session.claims.get(&**claim).and_then(Value::as_str);
        let named = name.and_then(|name| Some((name, request.consumers.named(name)?)));
        match named {
            Some((name, consumer)) => {
                Ok(Some(Identity { consumer, credential: HeaderValue::from_str(name).ok() }))
            }
            None => {
                Err(Reply::problem(StatusCode::FORBIDDEN, "the user of the session is not known here").into())
            }
        }
    }

    /// The `Set-Cookie` headers of a session. One that is too large for cookies goes without its ID token.
    fn sealed(&self, session: &mut Session, sent: &HeaderMap) -> Option<Vec<HeaderValue>> {
        let jar = &self.settings.jar;
        loop {
            let content = serde_json::to_vec(session).ok()?;
            let sealed = self.sealer.seal(jar.name(), &content).ok()?;
            match jar.set_session(&sealed, sent) {
                Ok(cookies) => return Some(cookies),
                Err(_) if session.id_token.take().is_some() => {}
                Err(_) => {
                    self.log.warn("a session is too large for cookies");
                    return None;
                }
            }
        }
    }

    async fn refresh(&self, session: Session, request: &mut PluginRequest<'_>) -> Next<'static> {
        let (Some(token), Some(subject)) = (&session.refresh_token, session.subject()) else {
            return self.end_session(&session, request);
        };
        let refreshed = self.refreshes.result(token, subject, request.clock).await;
        let (now, before) = (since_1970(request.clock), self.version(&session));
        if self.sessions.is_logged_out(before, now) {
            return self.refuse_ended(request, true);
        }
        let session = match refreshed {
            Refreshed::Tokens(tokens) => {
                request.count(REFRESHED);
                self.sessions.outdate(before);
                let mut session = session.refreshed(&tokens, self.settings.kept, now);
                self.keep(&mut session, request);
                return self.admit(session, request);
            }
            Refreshed::Ended => {
                request.count(SESSION_ENDED);
                return self.end_session(&session, request);
            }
            Refreshed::Rotated(token) => {
                self.sessions.outdate(before);
                let mut session = session.rotated(&token, now);
                self.keep(&mut session, request);
                session
            }
            Refreshed::Unavailable => session,
        };
        request.count(REFRESH_FAILED);
        match session.has_ended(now) {
            true => unavailable("the session could not be renewed"),
            false => self.admit(session, request),
        }
    }

    /// The session is over: its cookies go, and the request is treated as one without.
    fn end_session(&self, session: &Session, request: &mut PluginRequest<'_>) -> Next<'static> {
        let version = self.version(session);
        self.sessions.outdate(version);
        let cookies = self.settings.jar.clear_session(&request.head.headers);
        request.exchange.insert(Pending { version: version.next(), cookies });
        let may_clear = self.sessions.may_set(version.next(), since_1970(request.clock));
        self.refuse_ended(request, may_clear)
    }

    /// `may_clear`: the browser does not present the session again.
    fn refuse_ended(&self, request: &mut PluginRequest<'_>, may_clear: bool) -> Next<'static> {
        match self.settings.unauthenticated {
            Unauthenticated::Pass => self.pass(request),
            Unauthenticated::Redirect
                if !may_clear && is_navigation(request.head) && request.head.method == Method::GET =>
            {
                // A redirect to the page would come back with the same session.
                self.send_to_start(target::of(&request.head.uri), true, request)
            }
            // A redirect needs the provider, which may have to be waited for: the next request begins the login.
            Unauthenticated::Redirect if is_navigation(request.head) => {
                let location = format!("{}{}", self.settings.origin, target::of(&request.head.uri));
                redirect(&location, Vec::new())
            }
            Unauthenticated::Redirect | Unauthenticated::Deny => unauthorized("the session has ended"),
        }
    }

    fn without_session<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Next<'a> {
        let mut bearers = request.head.headers.get_all(AUTHORIZATION).iter();
        if bearers.any(|value| after_scheme(value.as_bytes(), "Bearer").is_some()) {
            let identity = request.exchange.identity.as_ref();
            let is_known = identity.is_some_and(|identity| identity.credential.is_some());
            return match self.settings.bearer {
                Bearer::Pass if is_known => self.pass(request),
                Bearer::Pass | Bearer::Deny if self.settings.unauthenticated == Unauthenticated::Pass => {
                    self.pass(request)
                }
                Bearer::Pass | Bearer::Deny => unauthorized(NO_SESSION),
            };
        }
        match self.settings.unauthenticated {
            Unauthenticated::Pass => self.pass(request),
            Unauthenticated::Redirect if is_navigation(request.head) => {
                let target = target::of(&request.head.uri);
                let is_elsewhere = start::is_on_other_host(&request.head.headers, &self.settings.host);
                if is_elsewhere && request.head.method == Method::GET {
                    return self.send_to_start(target, false, request);
                }
                Next::Wait(Box::pin(self.begin_login(target, request)))
            }
            Unauthenticated::Redirect | Unauthenticated::Deny => unauthorized(NO_SESSION),
        }
    }

    fn pass(&self, request: &mut PluginRequest<'_>) -> Next<'static> {
        cookies::remove(&mut request.head.headers, |name| self.settings.jar.is_ours(name));
        Next::Continue
    }

    /// Has the browser begin the login on the host of the redirect URI. That URI itself begins it, so this happens once. `anew`: also
    /// with a session.
    fn send_to_start(&self, target: String, anew: bool, request: &PluginRequest<'_>) -> Next<'static> {
        let Settings { origin, callback_path, .. } = &self.settings;
        match Start::seal(target, anew, since_1970(request.clock).as_secs(), &self.sealer) {
            Ok(sealed) => {
                redirect(&format!("{origin}{callback_path}?{}={sealed}", start::PARAMETER), Vec::new())
            }
            Err(_) => unavailable("no login can be begun"),
        }
    }

    async fn begin_login(&self, target: String, request: &PluginRequest<'_>) -> Next<'static> {
        let metadata = self.client.metadata(request.clock).await;
        let endpoint = match metadata.map(|metadata| metadata.authorization) {
            Ok(Some(endpoint)) => endpoint,
            Ok(None) => {
                self.log.warn("the provider's discovery document has no authorization endpoint");
                return unavailable("the provider of logins cannot be used");
            }
            Err(_) => return unavailable("the provider of logins cannot be reached"),
        };
        let now = since_1970(request.clock).as_secs();
        let flow = Flow::begin(target, now, &self.sealer);
        let begun = flow.and_then(|flow| {
            let cookies = flow.remember(&self.settings.jar, &self.sealer, &request.head.headers)?;
            Ok((flow.parameters(), cookies))
        });
        let Ok((own, cookies)) = begun else { return unavailable("no login can be begun") };
        request.count(LOGIN_BEGUN);
        redirect(&with_parameters(&endpoint, &format!("{}{own}", self.settings.parameters)), cookies)
    }

    /// The browser comes back from the provider.
    async fn callback(&self, request: &mut PluginRequest<'_>) -> Next<'static> {
        if request.head.method != Method::GET {
            return bad_request("the callback takes GET only");
        }
        let text = request.head.uri.query().unwrap_or_default().to_owned();
        let parameters = Callback::read(&text);
        let (jar, sealer, now) = (&self.settings.jar, &self.sealer, since_1970(request.clock));
        // A page of others must begin no logins by an image.
        if let Some(begin) = parameters.begin.filter(|_| is_navigation(request.head)) {
            let origin = &self.settings.origin;
            let Some(Start { target, anew, .. }) = Start::open(&begin, now.as_secs(), sealer) else {
                // It came too late, and nothing says where the browser wanted to go.
                return redirect(&format!("{origin}/"), Vec::new());
            };
            return match self.session(request) {
                Some(_) if !anew => redirect(&format!("{origin}{target}"), Vec::new()),
                _ => self.begin_login(target, request).await,
            };
        }
        let Some(state) = parameters.state else {
            return bad_request("the request is not one of the provider: it has no state, or several");
        };
        let found = Flow::find(&state, jar, sealer, &request.head.headers, now.as_secs());
        let Some((flow, cookie)) = found else {
            // Another tab was faster, or the page was opened again: who has a session does not need this login.
            return match self.session(request) {
                Some(_) => redirect(&format!("{}/", self.settings.origin), Vec::new()),
                None => bad_request("no such login was begun in this browser, or it took too long"),
            };
        };
        let ended = jar.removed(cookie.as_bytes());
        let failed = |answer: Next<'static>| with_cookies(answer, ended.clone().into_iter().collect());
        if let Some(error) = parameters.error {
            request.count(LOGIN_FAILED);
            let detail = format!("the provider refused the login: {}", printable(&error));
            return failed(Reply::problem(StatusCode::FORBIDDEN, detail).into());
        }
        if parameters.issuer.is_some_and(|issuer| issuer != *self.client.registration.issuer) {
            request.count(LOGIN_FAILED);
            return failed(bad_request("the request is one of another provider"));
        }
        let Some(code) = parameters.code else {
            request.count(LOGIN_FAILED);
            return failed(bad_request("the request is not one of the provider: it has no code, or several"));
        };
        let redeemed =
            self.client.redeem(&code, &flow.verifier, &flow.nonce, request.outbound, request.clock).await;
        let tokens = match redeemed {
            Ok(tokens) => tokens,
            Err(error) => {
                request.count(LOGIN_FAILED);
                self.log.warn(format_args!("a login failed: {error}"));
                return failed(match error {
                    TokenError::Refused(_) => bad_request("the provider does not accept the login's code"),
                    TokenError::Unavailable(_) | TokenError::Unproven { .. } => {
                        unavailable("the provider of logins cannot be reached")
                    }
                    TokenError::Untrusted(_) => {
                        Reply::problem(StatusCode::BAD_GATEWAY, "the provider's answer cannot be trusted")
                            .into()
                    }
                });
            }
        };
        let id = sealer.random_text().unwrap_or_default();
        let session = Session::begin(id, &tokens, self.settings.kept, since_1970(request.clock));
        let cookies = session.and_then(|mut session| self.sealed(&mut session, &request.head.headers));
        let Some(cookies) = cookies else {
            request.count(LOGIN_FAILED);
            return failed(unavailable("the session could not be begun"));
        };
        request.count(LOGGED_IN);
        if let Some(before) = self.session(request) {
            self.sessions.replace(self.version(&before));
        }
        let location = format!("{}{}", self.settings.origin, flow.target);
        redirect(&location, cookies.into_iter().chain(ended).collect())
    }

    async fn logout(&self, request: &mut PluginRequest<'_>) -> Next<'static> {
        // A page of another site must not be able to log users out.
        let site = request.head.headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        if site == Some(b"cross-site") {
            return Reply::problem(StatusCode::FORBIDDEN, "pages of other sites cannot log users out").into();
        }
        if ![Method::GET, Method::POST].contains(&request.head.method) {
            return bad_request("the logout takes GET and POST only");
        }
        let session = self.session(request);
        let cleared = self.settings.jar.clear_all(&request.head.headers);
        if let Some(session) = &session {
            request.count(LOGGED_OUT);
            self.sessions.log_out(self.version(session));
        }
        let end = self.client.provider.known().and_then(|known| known.metadata.as_ref()?.end_session.clone());
        let after = self.settings.after_logout.as_deref();
        match (session, end, after) {
            (Some(session), Some(end), _) => {
                let mut own = format!("client_id={}", encode(&self.client.registration.client_id));
                if let Some(token) = &session.id_token {
                    let _ = write!(own, "&id_token_hint={}", encode(token));
                }
                if let Some(after) = after {
                    let _ = write!(own, "&post_logout_redirect_uri={}", encode(after));
                }
                redirect(&with_parameters(&end, &own), cleared)
            }
            (_, _, Some(after)) => redirect(after, cleared),
            (_, _, None) => {
                let mut response = Response::new(Bytes::from_static(b"You are logged out.\n"));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                with_cookies(Reply::Response(response).into(), cleared)
            }
        }
    }
}

/// The parameters of a request for the redirect URI. One that is there twice is missing.
#[derive(Default)]
struct Callback {
    state: Option<String>,
    code: Option<String>,
    error: Option<String>,
    issuer: Option<String>,
    /// A [`Start`], which the gateway itself has sent.
    begin: Option<String>,
}

impl Callback {
    fn read(text: &str) -> Self {
        let only = |name: &str| {
            let mut values = query::parameters(text).filter(|parameter| parameter.is_named(name));
            let value = values.next().filter(|_| values.next().is_none())?.value();
            String::from_utf8(value.to_vec()).ok().filter(|value| !value.is_empty() && value.len() <= 4096)
        };
        Self {
            state: only("state"),
            code: only("code"),
            error: only("error"),
            issuer: only("iss"),
            begin: only(start::PARAMETER),
        }
    }
}

/// True if a browser opens a page by the request: it shows what it gets, and can be sent elsewhere. Scripts cannot.
fn is_navigation(head: &request::Parts) -> bool {
    let value = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
    if ![Method::GET, Method::HEAD].contains(&head.method) || value("x-requested-with").is_some() {
        return false;
    }
    match value("sec-fetch-mode") {
        Some(mode) => mode == b"navigate",
        None => value("accept").is_some_and(|accept| accept.windows(9).any(|window| window == b"text/html")),
    }
}

/// A URL with more parameters.
fn with_parameters(url: &Uri, parameters: &str) -> String {
    let separator = if url.query().is_some() { '&' } else { '?' };
    format!("{url}{separator}{parameters}")
}

/// Adds cookies to the response of the upstream, which no shared cache may then give to others.
fn set_cookies(exchange: &mut Exchange, cookies: Vec<HeaderValue>) {
    exchange.append_response_header(CACHE_CONTROL, HeaderValue::from_static("private"));
    for cookie in cookies {
        exchange.append_response_header(SET_COOKIE, cookie);
    }
}

fn redirect(location: &str, cookies: Vec<HeaderValue>) -> Next<'static> {
    let Ok(location) = HeaderValue::from_str(location) else {
        return Reply::problem(StatusCode::BAD_GATEWAY, "the provider's address cannot be sent").into();
    };
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::FOUND;
    response.headers_mut().insert(LOCATION, location);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    with_cookies(Reply::Response(response).into(), cookies)
}

fn with_cookies(answer: Next<'static>, cookies: Vec<HeaderValue>) -> Next<'static> {
    let Next::Respond(mut reply) = answer else { return answer };
    let headers = match &mut *reply {
        Reply::Problem { headers, .. } => headers,
        Reply::Response(response) => response.headers_mut(),
    };
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
    Next::Respond(reply)
}

fn unauthorized(detail: &'static str) -> Next<'static> {
    Reply::problem(StatusCode::UNAUTHORIZED, detail).into()
}

fn bad_request(detail: &'static str) -> Next<'static> {
    Reply::problem(StatusCode::BAD_REQUEST, detail).into()
}

fn unavailable(detail: &'static str) -> Next<'static> {
    const RETRY_AFTER: (HeaderName, HeaderValue) = (http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    let headers = HeaderMap::from_iter([RETRY_AFTER]);
    Reply::Problem { status: StatusCode::SERVICE_UNAVAILABLE, detail: detail.into(), headers }.into()
}
