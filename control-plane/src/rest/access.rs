//! Endpoints for tokens, the sessions of the UI, and the audit trail.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use signalbox_config::{FieldError, Name};
use signalbox_process::ErrorChain;

use super::call::{Call, Caller, json_response, no_content, ok};
use super::endpoint::{Access, CURSOR, Endpoint, LIMIT, Media, RESOURCE_LIMIT};
use super::presented::{COOKIE, Means, check_origin, presented};
use super::problem::{Problem, unauthorized};
use super::roles::suffices;
use crate::auth::{GivenToken, LIFETIME, Principal, Session, TokenText, Use};
use crate::clock::rfc3339;
use crate::store::{AuditRow, Role, TokenSource};

pub(super) fn endpoints() -> Vec<Endpoint> {
    let admin = Access::Role(Role::Admin);
    vec![
        Endpoint::new(Method::POST, "/session", "logIn", |call| log_in(call).boxed())
            .text("access", "Log in: opens a session that stands for the token, and sets its cookie")
            .access(Access::Public)
            .body(Media::Json, |generator| generator.subschema_for::<LogIn>(), RESOURCE_LIMIT)
            .answer::<CallerView>(200, "The caller")
            .problems(&[401, 422, 429, 503]),
        Endpoint::new(Method::GET, "/session", "getSession", |call| async move { session(&call) }.boxed())
            .text("access", "Read who the caller is: name, role and session")
            .answer::<CallerView>(200, "The caller"),
        Endpoint::new(Method::DELETE, "/session", "logOut", |call| log_out(call).boxed())
            .text("access", "Log out: ends the session and its event streams on every replica, and clears the cookie")
            .access(Access::Public)
            .empty(204, "The session has ended")
            .problems(&[503]),
        Endpoint::new(Method::GET, "/sessions", "listSessions", |call| async move { list_sessions(&call) }.boxed())
            .text("access", "List the open sessions of the UI, oldest first")
            .access(admin)
            .answer::<SessionList>(200, "The sessions, without their cookies"),
        Endpoint::new(Method::DELETE, "/sessions", "endSessions", |call| end_sessions(call).boxed())
            .text("access", "End all sessions, the caller's among them")
            .access(admin)
            .empty(204, "The sessions have ended")
            .problems(&[503]),
        Endpoint::new(Method::DELETE, "/sessions/{id}", "endSession", |call| end_session(call).boxed())
            .text("access", "End a session")
            .access(admin)
            .empty(204, "The session has ended")
            .problems(&[404, 503]),
        Endpoint::new(Method::GET, "/tokens", "listTokens", |call| list_tokens(call).boxed())
            .text("access", "List the stored tokens, and those that are given to this replica by hand")
            .access(admin)
            .answer::<TokenList>(200, "The tokens, without their texts")
            .problems(&[503]),
        Endpoint::new(Method::POST, "/tokens", "createToken", |call| create_token(call).boxed())
            .text("access", "Create a token")
            .access(admin)
            .body(Media::Json, |generator| generator.subschema_for::<NewToken>(), RESOURCE_LIMIT)
            .answer::<CreatedToken>(201, "The token. Its text is never shown again")
            .problems(&[409, 422, 503]),
        Endpoint::new(Method::DELETE, "/tokens/{name}", "revokeToken", |call| revoke_token(call).boxed())
            .text("access", "Revoke a stored token: its sessions, event streams and proxies' streams end on every replica")
            .access(admin)
            .empty(204, "The token is revoked")
            .problems(&[404, 409, 503]),
        Endpoint::new(Method::GET, "/audit", "listAudit", |call| audit(call).boxed())
            .text("access", "List the audit trail, newest first")
            .access(admin)
            .parameters(&[LIMIT, CURSOR])
            .answer::<AuditPage>(200, "One page of the audit trail")
            .problems(&[503]),
    ]
}

/// A token to log in with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LogIn {
    token: String,
}

/// The caller of the API.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Caller")]
struct CallerView {
    /// The name of its token.
    name: String,
    /// The rights of the token.
    role: Role,
}

/// A token to be made.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// Unique; the author of what is done with it.
    name: String,
    /// The rights of the token.
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
    /// The operation that was called.
    action: String,
    /// Details of the operation.
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

/// How often a request that waits looks whether its session has expired.
const EXPIRY_CHECK: Duration = Duration::from_secs(1);

/// Awaits `work` for as long as the token or session of the request may read; 401 as soon as it may not.
pub(super) async fn while_permitted<T>(call: &Call, work: impl Future<Output = T>) -> Result<T, Problem> {
    let credentials = &call.app.credentials;
    let mut changes = credentials.changes();
    let presented = presented(&call.headers);
    let is_permitted = || {
        let caller = presented.as_ref().and_then(|presented| presented.caller(credentials, Use::Silent));
        caller.is_some_and(|caller| suffices(&caller.principal.role, Role::Viewer))
    };
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            output = &mut work => return Ok(output),
            // The sender lives as long as the credentials.
            _ = changes.changed() => {}
            () = tokio::time::sleep(EXPIRY_CHECK) => {}
        }
        if !is_permitted() {
            return Err(unauthorized(
                "the token or session was revoked or has expired while the request waited",
            ));
        }
    }
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
            tracing::debug!(error = %ErrorChain(&error), "the browser's previous session could not be ended yet; the control plane tries again");
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
        let cause = ErrorChain(&error).to_string();
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
    call.audit(&format!("end all {count} sessions")).await;
    Ok(no_content())
}

async fn end_session(call: Call) -> Result<Response, Problem> {
    let id = call.path("id");
    let sessions = call.app.credentials.sessions();
    let Some(session) = sessions.iter().find(|session| session.row().id == id) else {
        return Err(Problem::not_found(format!("there is no session {id:?}")));
    };
    call.app.credentials.end_sessions(vec![id.to_owned()]).await?;
    call.audit(&format!("end session {id} of the token {}", session.row().token)).await;
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
    let conflict = |message: String| {
        Problem::new(StatusCode::CONFLICT, &*message).errors(vec![FieldError::new("name", message)])
    };
    // Both would be the same author in the history and in the audit trail.
    if let Some(given) = call.app.credentials.given().iter().find(|token| *token.name == *name) {
        return Err(conflict(format!(
            "{name:?} is the name of a token that is given to this control plane by {}; choose another name",
            given_by(given)
        )));
    }
    let text = TokenText::random();
    if !call.app.credentials.create(&name, role, &text).await? {
        return Err(conflict(format!("there is a token {name:?} already")));
    }
    call.audit(&format!("create token {name} as {}", json!(role))).await;
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
    call.audit(&format!("revoke token {name}")).await;
    Ok(no_content())
}

/// Says how to revoke a token that is given by hand, which the API cannot do.
fn how_to_take_back(token: &GivenToken) -> String {
    let GivenToken { name, source, .. } = token;
    let place = given_by(token);
    match source {
        TokenSource::File => format!(
            "the token {name:?} is given to this control plane by {place}: take it out of the file, and it ends within \
             a second, without a restart; on each replica that has it"
        ),
        TokenSource::Flag | TokenSource::Stored => format!(
            "the token {name:?} is given to this control plane by {place}: start that without it, on each replica \
             that has it"
        ),
    }
}

/// Names the flag by which a token is given.
fn given_by(token: &GivenToken) -> String {
    let GivenToken { role, source, .. } = token;
    match source {
        TokenSource::File => format!("the file of --{role}-token-file"),
        TokenSource::Flag | TokenSource::Stored => {
            format!("--{role}-token (SIGNALBOX_{}_TOKEN)", role.as_str().to_uppercase())
        }
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
