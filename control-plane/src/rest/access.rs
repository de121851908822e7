//! Who calls: tokens, the session of the UI, and the audit trail.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use signalbox_config::{FieldError, Name};

use super::call::{Call, json_response, no_content, ok, rfc3339};
use super::endpoint::{Access, CURSOR, Endpoint, LIMIT, Media, RESOURCE_LIMIT};
use super::problem::Problem;
use crate::auth::{Principal, TokenText};
use crate::store::{AuditRow, Role};

pub(super) fn endpoints() -> Vec<Endpoint> {
    let admin = Access::Role(Role::Admin);
    vec![
        Endpoint::new(Method::POST, "/session", "logIn", |call| async move { log_in(&call) }.boxed())
            .text("access", "Log in: sets a cookie that stands for the token")
            .access(Access::Public)
            .body(Media::Json, |generator| generator.subschema_for::<LogIn>(), RESOURCE_LIMIT)
            .answer::<Caller>(200, "Who you are"),
        Endpoint::new(Method::GET, "/session", "getSession", |call| async move { session(&call) }.boxed())
            .text("access", "Who you are")
            .answer::<Caller>(200, "You"),
        Endpoint::new(Method::DELETE, "/session", "logOut", |call| async move { Ok(log_out(&call)) }.boxed())
            .text("access", "Log out: clears the cookie")
            .access(Access::Public)
            .empty(204, "You are logged out"),
        Endpoint::new(Method::GET, "/tokens", "listTokens", |call| list_tokens(call).boxed())
            .text("access", "Tokens, by name")
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
            .text("access", "Revoke a token")
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
struct Caller {
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
    role: Role,
    /// RFC 3339.
    created_at: String,
}

/// Tokens, by name.
#[derive(Debug, Serialize, JsonSchema)]
struct TokenList {
    items: Vec<Token>,
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

/// A token as a request presents it.
pub(super) struct Presented {
    pub(super) text: String,
    pub(super) by: Means,
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

/// Whether `role` may do what `needed` may.
pub(super) fn suffices(role: Role, needed: Role) -> bool {
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

fn log_in(call: &Call) -> Result<Response, Problem> {
    let LogIn { token } = call.json_as()?;
    // Another site must not log a browser in as somebody else.
    if call.headers.contains_key(header::ORIGIN) {
        check_origin(&call.headers)?;
    }
    let principal = call.app.tokens.authenticate(token.trim());
    let principal = principal
        .filter(|principal| suffices(principal.role, Role::Viewer))
        .ok_or_else(|| call.app.bad_token(call.peer, "the token is not known, or not for people"))?;
    let mut response = ok(&caller(&principal))?;
    set_cookie(&mut response, call, token.trim(), 30 * 24 * 3600);
    Ok(response)
}

fn session(call: &Call) -> Result<Response, Problem> {
    match &call.principal {
        Some(principal) => ok(&caller(principal)),
        None => Err(unauthorized("nobody is logged in")),
    }
}

fn log_out(call: &Call) -> Response {
    let mut response = no_content();
    set_cookie(&mut response, call, "", 0);
    response
}

fn caller(principal: &Principal) -> Caller {
    Caller { name: principal.name.to_string(), role: principal.role }
}

fn set_cookie(response: &mut Response, call: &Call, value: &str, max_age_s: u32) {
    let secure = if call.app.tls { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={max_age_s}{secure}");
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
}

async fn list_tokens(call: Call) -> Result<Response, Problem> {
    let rows = call.app.tokens.list().await?;
    let items = rows
        .into_iter()
        .map(|row| Token { name: row.name, role: row.role, created_at: rfc3339(row.created_at_us) })
        .collect();
    ok(&TokenList { items })
}

async fn create_token(call: Call) -> Result<Response, Problem> {
    let NewToken { name, role } = call.json_as()?;
    if let Err(message) = name.parse::<Name>() {
        return Err(Problem::invalid(vec![FieldError::new("name", message)]));
    }
    let text = TokenText::random();
    if !call.app.tokens.create(&name, role, &text).await? {
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
    if call.principal.as_ref().is_some_and(|principal| *principal.name == *name) {
        let detail = "this is the token you use; revoke it with another, so that nobody is shut out";
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    if !call.app.tokens.revoke(name).await? {
        return Err(Problem::not_found(format!("there is no token {name:?}")));
    }
    call.app.note(&call, &format!("revoke token {name}")).await;
    Ok(no_content())
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
