//! Who calls: tokens, the session of the UI, and the audit trail.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use signalbox_config::{FieldError, Name};

use super::call::{Call, Caller, json_response, no_content, ok, rfc3339};
use super::endpoint::{Access, CURSOR, Endpoint, LIMIT, Media, RESOURCE_LIMIT};
use super::problem::Problem;
use crate::auth::{Credentials, GivenToken, LIFETIME, Principal, Session, TokenText, Use};
use crate::publish::chain;
use crate::store::{AuditRow, Role, StoredRole, TokenSource};

pub(super) fn endpoints() -> Vec<Endpoint> {
    let admin = Access::Role(Role::Admin);
    vec![
        Endpoint::new(Method::POST, "/session", "logIn", |call| log_in(call).boxed())
            .text("access", "Log in: opens a session that stands for the token, and sets its cookie")
            .access(Access::Public)
            .body(Media::Json, |generator| generator.subschema_for::<LogIn>(), RESOURCE_LIMIT)
            .answer::<CallerView>(200, "Who you are")
            .problems(&[401, 422, 429, 503]),
        Endpoint::new(Method::GET, "/session", "getSession", |call| async move { session(&call) }.boxed())
            .text("access", "Who you are")
            .answer::<CallerView>(200, "You"),
        Endpoint::new(Method::DELETE, "/session", "logOut", |call| log_out(call).boxed())
            .text("access", "Log out: ends the session and its event streams on every replica, and clears the cookie")
            .access(Access::Public)
            .empty(204, "You are logged out")
            .problems(&[503]),
        Endpoint::new(Method::GET, "/sessions", "listSessions", |call| async move { list_sessions(&call) }.boxed())
            .text("access", "The open sessions of the UI, oldest first")
            .access(admin)
            .answer::<SessionList>(200, "They, without their cookies"),
        Endpoint::new(Method::DELETE, "/sessions", "endSessions", |call| end_sessions(call).boxed())
            .text("access", "End all sessions, yours among them")
            .access(admin)
            .empty(204, "They have ended")
            .problems(&[503]),
        Endpoint::new(Method::DELETE, "/sessions/{id}", "endSession", |call| end_session(call).boxed())
            .text("access", "End a session")
            .access(admin)
            .empty(204, "It has ended")
            .problems(&[404, 503]),
        Endpoint::new(Method::GET, "/tokens", "listTokens", |call| list_tokens(call).boxed())
            .text("access", "The stored tokens, by name, and those that are given to this replica by hand")
            .access(admin)
            .answer::<TokenList>(200, "They, without their texts")
            .problems(&[503]),
        Endpoint::new(Method::POST, "/tokens", "createToken", |call| create_token(call).boxed())
            .text("access", "Create a token")
            .access(admin)
            .body(Media::Json, |generator| generator.subschema_for::<NewToken>(), RESOURCE_LIMIT)
            .answer::<CreatedToken>(201, "It; its text is never shown again")
            .problems(&[409, 422, 503]),
        Endpoint::new(Method::DELETE, "/tokens/{name}", "revokeToken", |call| revoke_token(call).boxed())
            .text("access", "Revoke a stored token: its sessions, event streams and proxies' streams end on every replica")
            .access(admin)
            .empty(204, "It is revoked")
            .problems(&[404, 409, 503]),
        Endpoint::new(Method::GET, "/audit", "listAudit", |call| audit(call).boxed())
            .text("access", "Who did what, newest first")
            .access(admin)
            .parameters(&[LIMIT, CURSOR])
            .answer::<AuditPage>(200, "A page of it")
            .problems(&[503]),
    ]
}

/// A token to log in with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LogIn {
    token: String,
}

/// Who calls.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Caller")]
struct CallerView {
    /// The name of its token.
    name: String,
    /// What it may do.
    role: Role,
}

/// A token to be made.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// Unique; the author of what is done with it.
    name: String,
    /// What it may do.
    role: Role,
}

/// A token that was made.
#[derive(Debug, Serialize, JsonSchema)]
struct CreatedToken {
    name: String,
    role: Role,
    /// Its text, shown only now.
    token: String,
}

/// A token.
#[derive(Debug, Serialize, JsonSchema)]
struct Token {
    name: String,
    /// `viewer`, `editor`, `admin` or `proxy`; another was written by a newer version, and may do nothing here.
    role: String,
    /// `flag` and `file`: valid on this replica while it is given.
    source: TokenSource,
    /// RFC 3339; null for one that is given by hand.
    created_at: Option<String>,
}

/// Tokens, by name.
#[derive(Debug, Serialize, JsonSchema)]
struct TokenList {
    items: Vec<Token>,
}

/// A session of the UI.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Session")]
struct SessionView {
    /// For ending it; it opens nothing.
    id: String,
    /// The name of the token it was opened with.
    token: String,
    /// Where that token is from; a session of one that is given by hand is valid on replicas that have the token.
    token_source: TokenSource,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339; up to a minute behind for a session that is used on another replica.
    last_used_at: String,
    /// When it ends if it is not used any more, RFC 3339.
    ends_at: String,
    /// When it ends in any case, RFC 3339.
    expires_at: String,
    /// It is the one that this request comes with.
    current: bool,
}

/// Open sessions, oldest first.
#[derive(Debug, Serialize, JsonSchema)]
struct SessionList {
    items: Vec<SessionView>,
}

/// One entry of the audit trail.
#[derive(Debug, Serialize, JsonSchema)]
struct AuditEntry {
    /// Counts up.
    id: i64,
    /// RFC 3339.
    at: String,
    /// The name of the token.
    actor: String,
    /// What was called.
    action: String,
    /// More of it.
    detail: String,
    /// The revision it made, if it made one.
    revision: Option<u64>,
}

/// The audit trail, newest first.
#[derive(Debug, Serialize, JsonSchema)]
struct AuditPage {
    items: Vec<AuditEntry>,
    /// For the next page; null: there is none.
    next_cursor: Option<String>,
}

const COOKIE: &str = "signalbox_session";

/// A token, or the cookie of a session, as a request presents it.
pub(super) struct Presented {
    pub(super) text: String,
    pub(super) by: Means,
}

impl Presented {
    /// Who presents it. A session's cookie is no token, and a token is no cookie.
    pub(super) fn caller(&self, credentials: &Credentials, how: Use) -> Option<Caller> {
        match self.by {
            Means::Header => {
                let principal = credentials.authenticate(&self.text)?;
                Some(Caller { principal, session: None })
            }
            Means::Cookie => {
                let (principal, session) = credentials.authenticate_session(&self.text, how)?;
                Some(Caller { principal, session: Some(session) })
            }
        }
    }
}

/// How a token is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    Header,
    /// By a browser, of itself: so it may be another site that asks.
    Cookie,
}

/// The token that a request presents.
pub(super) fn presented(headers: &HeaderMap) -> Option<Presented> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.to_str().unwrap_or_default();
        let (scheme, text) = value.split_once(' ').unwrap_or((value, ""));
        // Another scheme presents no token, and must not fall back to the cookie.
        let text = if scheme.eq_ignore_ascii_case("bearer") { text.trim() } else { "" };
        return Some(Presented { text: text.to_owned(), by: Means::Header });
    }
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let text = cookies
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))?;
    Some(Presented { text: text.to_owned(), by: Means::Cookie })
}

/// Refuses what another site makes a browser send (Fetch Metadata, and the Origin header of older browsers).
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |why: &str| {
        Err(Problem::new(StatusCode::FORBIDDEN, format!("a request with the session cookie {why}")))
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (text("sec-fetch-site"), text("origin")) {
        (Some("same-origin" | "none"), _) => Ok(()),
        (Some(_), _) => refused("must come from the same origin"),
        (None, Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            if authority.is_some() && authority == text("host") {
                Ok(())
            } else {
                refused("must come from the same origin")
            }
        }
        (None, None) => refused("needs Origin or Sec-Fetch-Site"),
    }
}

/// Counts what is presented in vain, per address. It keeps noise from the log and load from the process; what makes
/// guessing hopeless is that tokens are 256 random bits. A token that is right passes in any case, so that one
/// misconfigured client behind a shared address shuts nobody out.
#[derive(Debug, Default)]
pub(super) struct BadTokens(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl BadTokens {
    const WINDOW: Duration = Duration::from_secs(60);
    const ALLOWED: u32 = 60;
    const MAX_ADDRESSES: usize = 10_000;

    /// Notes one, and says after how many seconds to try again when there were too many.
    pub(super) fn note(&self, from: IpAddr, now: Instant) -> Option<u32> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= Self::MAX_ADDRESSES {
            seen.retain(|_, (_, since)| now.duration_since(*since) < Self::WINDOW);
            if seen.len() >= Self::MAX_ADDRESSES {
                seen.clear();
            }
        }
        let (count, since) = seen.entry(from).or_insert((0, now));
        if now.duration_since(*since) >= Self::WINDOW {
            (*count, *since) = (0, now);
        }
        *count = count.saturating_add(1);
        let left = Self::WINDOW.saturating_sub(now.duration_since(*since)).as_secs() as u32 + 1;
        (*count > Self::ALLOWED).then_some(left)
    }
}

/// Whether `role` may do what `needed` may. A role that this version does not know may do nothing.
pub(super) fn suffices(role: &StoredRole, needed: Role) -> bool {
    let Some(role) = role.known() else { return false };
    let rank = |role| match role {
        Role::Proxy => 0,
        Role::Viewer => 1,
        Role::Editor => 2,
        Role::Admin => 3,
    };
    rank(role) >= rank(needed)
}

/// 401
pub(super) fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
        .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"signalbox\""))
}

async fn log_in(call: Call) -> Result<Response, Problem> {
    let LogIn { token } = call.json_as()?;
    // Another site must not log a browser in as somebody else.
    if call.headers.contains_key(header::ORIGIN) {
        check_origin(&call.headers)?;
    }
    let token = token.trim();
    let principal = call.app.credentials.authenticate(token);
    let principal = principal
        .filter(|principal| suffices(&principal.role, Role::Viewer))
        .ok_or_else(|| call.app.bad_token(call.peer, "the token is not known, or not for people"))?;
    let mut response = ok(&caller_view(&principal)?)?;
    let opened = call.app.credentials.open_session(token, &principal).await?;
    set_cookie(&mut response, &call, &opened.cookie, LIFETIME.as_secs());
    // A browser that logs in anew does not leave its session of before behind.
    if let Some(before) = own_session(&call) {
        // Failing that is no reason to refuse the login: it is tried again until it is done.
        if let Err(error) = call.app.credentials.end_sessions(vec![before.row().id.clone()]).await {
            tracing::debug!(error = chain(&error), "the browser's session of before is ended later");
        }
    }
    Ok(response)
}

fn session(call: &Call) -> Result<Response, Problem> {
    match &call.caller {
        Some(caller) => ok(&caller_view(&caller.principal)?),
        None => Err(unauthorized("nobody is logged in")),
    }
}

/// The session whose cookie the request presents, if it is open.
fn own_session(call: &Call) -> Option<Arc<Session>> {
    let presented = presented(&call.headers).filter(|presented| presented.by == Means::Cookie)?;
    presented.caller(&call.app.credentials, Use::Silent)?.session
}

/// Whoever has the cookie may end its session, even if the request came from another site: the cookie is not sent
/// with such (`SameSite=Strict`).
async fn log_out(call: Call) -> Result<Response, Problem> {
    let mut response = no_content();
    if let Some(session) = own_session(&call)
        && let Err(error) = call.app.credentials.end_sessions(vec![session.row().id.clone()]).await
    {
        let cause = chain(&error);
        let detail = "you are logged out on this replica; the database is not available, so the others learn of it later";
        response = Problem::unavailable(detail, 5).because(cause).into_response();
    }
    set_cookie(&mut response, &call, "", 0);
    Ok(response)
}

fn list_sessions(call: &Call) -> Result<Response, Problem> {
    let own = call.caller.as_ref().and_then(|caller| caller.session.as_ref());
    let view = |session: &Arc<Session>| {
        let row = session.row();
        SessionView {
            id: row.id.clone(),
            token: row.token.clone(),
            token_source: row.token_source,
            created_at: rfc3339(row.created_at_us),
            last_used_at: rfc3339(session.last_used_us()),
            ends_at: rfc3339(session.ends_at_us()),
            expires_at: rfc3339(row.expires_at_us),
            current: own.is_some_and(|own| own.row().id == row.id),
        }
    };
    ok(&SessionList { items: call.app.credentials.sessions().iter().map(view).collect() })
}

async fn end_sessions(call: Call) -> Result<Response, Problem> {
    let sessions = call.app.credentials.sessions();
    let ids: Vec<String> = sessions.iter().map(|session| session.row().id.clone()).collect();
    let count = ids.len();
    call.app.credentials.end_sessions(ids).await?;
    call.app.note(&call, &format!("end all {count} sessions")).await;
    Ok(no_content())
}

async fn end_session(call: Call) -> Result<Response, Problem> {
    let id = call.path("id");
    let sessions = call.app.credentials.sessions();
    let Some(session) = sessions.iter().find(|session| session.row().id == id) else {
        return Err(Problem::not_found(format!("there is no session {id:?}")));
    };
    call.app.credentials.end_sessions(vec![id.to_owned()]).await?;
    call.app.note(&call, &format!("end session {id} of the token {}", session.row().token)).await;
    Ok(no_content())
}

fn caller_view(principal: &Principal) -> Result<CallerView, Problem> {
    // An endpoint that needs a role has checked that already.
    let role =
        principal.role.known().ok_or_else(|| unauthorized("the token has a role that is not known"))?;
    Ok(CallerView { name: principal.name.to_string(), role })
}

fn set_cookie(response: &mut Response, call: &Call, value: &str, max_age_s: u64) {
    let secure = if call.app.tls { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={max_age_s}{secure}");
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

async fn list_tokens(call: Call) -> Result<Response, Problem> {
    let stored = call.app.credentials.stored().await?.into_iter().map(|row| Token {
        name: row.name,
        role: row.role.as_str().to_owned(),
        source: TokenSource::Stored,
        created_at: Some(rfc3339(row.created_at_us)),
    });
    let given = call.app.credentials.given().into_iter().map(|token| Token {
        name: token.name.to_string(),
        role: token.role.to_string(),
        source: token.source,
        created_at: None,
    });
    ok(&TokenList { items: stored.chain(given).collect() })
}

async fn create_token(call: Call) -> Result<Response, Problem> {
    let NewToken { name, role } = call.json_as()?;
    if let Err(message) = name.parse::<Name>() {
        return Err(Problem::invalid(vec![FieldError::new("name", message)]));
    }
    let text = TokenText::random();
    if !call.app.credentials.create(&name, role, &text).await? {
        let message = format!("there is a token {name:?} already");
        return Err(
            Problem::new(StatusCode::CONFLICT, &*message).errors(vec![FieldError::new("name", message)])
        );
    }
    call.app.note(&call, &format!("create token {name} as {}", json!(role))).await;
    json_response(StatusCode::CREATED, &CreatedToken { name, role, token: text.0 })
}

async fn revoke_token(call: Call) -> Result<Response, Problem> {
    let name = call.path("name");
    let is_own =
        |caller: &Caller| *caller.principal.name == *name && caller.principal.source == TokenSource::Stored;
    if call.caller.as_ref().is_some_and(is_own) {
        let detail = "this is the token you use; revoke it with another, so that nobody is shut out";
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    if !call.app.credentials.revoke(name).await? {
        let given = call.app.credentials.given();
        return Err(match given.iter().find(|token| *token.name == *name) {
            None => Problem::not_found(format!("there is no token {name:?}")),
            Some(token) => Problem::new(StatusCode::CONFLICT, how_to_take_back(token)),
        });
    }
    call.app.note(&call, &format!("revoke token {name}")).await;
    Ok(no_content())
}

/// A token that is given by hand is not the API's to take back.
fn how_to_take_back(token: &GivenToken) -> String {
    let GivenToken { name, role, source, .. } = token;
    match source {
        TokenSource::File => format!(
            "the token {name:?} is in the file of --{role}-token-file of this control plane: take it out of the file,              and it ends within a second, without a restart; on each replica that has it"
        ),
        TokenSource::Flag | TokenSource::Stored => format!(
            "the token {name:?} is given by --{role}-token (SIGNALBOX_{}_TOKEN) of this control plane: start that              without it, on each replica that has it",
            role.as_str().to_uppercase()
        ),
    }
}

async fn audit(call: Call) -> Result<Response, Problem> {
    let (limit, before) = (call.limit()?, call.parsed::<i64>("cursor")?);
    let store = &call.app.store;
    let mut rows = call.app.metrics.store_call("audit", store.audit(before, limit as u32 + 1)).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows.last().filter(|_| more).map(|last| last.id.to_string());
    let entry = |row: AuditRow| AuditEntry {
        id: row.id,
        at: rfc3339(row.at_us),
        actor: row.actor,
        action: row.action,
        detail: row.detail,
        revision: row.revision,
    };
    ok(&AuditPage { items: rows.into_iter().map(entry).collect(), next_cursor })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_header_goes_before_the_cookie() {
        let text = |pairs: &[(&'static str, &'static str)]| {
            presented(&headers(pairs)).map(|token| (token.text, token.by))
        };
        assert_eq!(text(&[]), None);
        assert_eq!(text(&[("authorization", "Bearer a")]), Some(("a".to_owned(), Means::Header)));
        assert_eq!(text(&[("authorization", "bearer  a ")]), Some(("a".to_owned(), Means::Header)));
        let cookie = ("cookie", "x=1; signalbox_session=b");
        assert_eq!(text(&[cookie]), Some(("b".to_owned(), Means::Cookie)));
        assert_eq!(text(&[("authorization", "Basic a"), cookie]), Some((String::new(), Means::Header)));
        assert_eq!(text(&[("cookie", "signalbox_session2=b")]), None);
    }

    #[test]
    fn only_the_same_origin_may_use_the_cookie() {
        let fine = |pairs: &[(&'static str, &'static str)]| check_origin(&headers(pairs)).is_ok();
        assert!(fine(&[("sec-fetch-site", "same-origin")]));
        assert!(fine(&[("host", "a:9080"), ("origin", "http://a:9080")]));
        assert!(!fine(&[("sec-fetch-site", "cross-site"), ("host", "a"), ("origin", "http://a")]));
        assert!(!fine(&[("sec-fetch-site", "same-site")]));
        assert!(!fine(&[("host", "a:9080"), ("origin", "http://b:9080")]));
        assert!(!fine(&[("host", "a"), ("origin", "null")]));
        assert!(!fine(&[("host", "a")]));
    }

    #[test]
    fn too_many_bad_tokens_are_told_when_to_try_again() {
        let (guard, from, now) = (BadTokens::default(), IpAddr::from([127, 0, 0, 1]), Instant::now());
        for _ in 0..BadTokens::ALLOWED {
            assert_eq!(guard.note(from, now), None);
        }
        assert_eq!(guard.note(from, now), Some(61));
        assert_eq!(guard.note(IpAddr::from([127, 0, 0, 2]), now), None);
        assert_eq!(guard.note(from, now + BadTokens::WINDOW), None);
    }
}
