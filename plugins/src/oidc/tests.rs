//! Sessions by a clock that the tests set. `proxy/tests/data_plane/oidc.rs` has a provider and a browser.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Response;
use http::header::{LOCATION, SET_COOKIE};
use serde_json::json;
use signalbox_plugin::testing::TestClock;
use signalbox_plugin::{Clock, Origin, Plugin};
use tempfile::NamedTempFile;

use super::seal::Sealer;
use crate::testing::{Client, build};

const SECRET: &str = "a secret of the gateway that is long enough";
const LOGIN: Duration = Duration::from_secs(1 << 30);

/// The plugin, and the file with its secret.
fn plugin() -> (Arc<dyn Plugin>, NamedTempFile) {
    plugin_that(false)
}

/// The same, which may forward access tokens.
fn plugin_that(forwards_access_tokens: bool) -> (Arc<dyn Plugin>, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SECRET).unwrap();
    let config = json!({
        "issuer": "https://login.example", "upstream": "login", "client_id": "shop",
        "redirect_uri": "http://shop.example/callback", "session": {"keys": [{"file": file.path()}]},
        "forward_access_token": forwards_access_tokens,
    });
    (build("oidc", config), file)
}

/// A clock that shows this time after the login.
fn clock(after: u64) -> Clock {
    let after = Duration::from_secs(after);
    Clock::new(TestClock::new(after, SystemTime::UNIX_EPOCH + LOGIN + after))
}

/// The cookie of a session, with these changes.
fn cookie(changes: &serde_json::Value) -> String {
    let mut session = json!({
        "id": "one", "claims": {"sub": "alice"}, "created": LOGIN.as_secs(), "seen": LOGIN.as_secs(),
    });
    session.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let scope = ["https://login.example", "shop", "http://shop.example/callback"];
    let sealed = Sealer::new([SECRET.as_bytes()], &scope).seal("session", session.to_string().as_bytes());
    format!("session=1.{}", sealed.unwrap())
}

fn client(path: &str, cookie: &str, after: u64) -> Client {
    Client::new("GET", path).header("host", "shop.example").header("cookie", cookie).with_clock(&clock(after))
}

/// True if the response to a request that was admitted sets a cookie.
fn sets_cookie(plugin: &dyn Plugin, client: &mut Client) -> bool {
    let response = client.receives(plugin, Origin::Upstream, Response::new(Bytes::new()));
    response.headers().contains_key(SET_COOKIE)
}

#[test]
fn the_time_of_a_request_is_noted_unless_the_session_was_logged_out_meanwhile() {
    let (plugin, _file) = plugin();
    // A quarter of the idle time has passed, or not.
    for (after, expected) in [(899, false), (900, true)] {
        let mut client = client("/", &cookie(&json!({})), after);
        assert!(client.meets(&*plugin).is_none());
        assert_eq!(sets_cookie(&*plugin, &mut client), expected, "{after}");
    }
    let mut slow = client("/", &cookie(&json!({})), 900);
    let mut other = client("/", &cookie(&json!({"id": "two"})), 900);
    assert!(slow.meets(&*plugin).is_none() && other.meets(&*plugin).is_none());
    assert_eq!(
        client("/logout", &cookie(&json!({"refreshes": 7})), 901).meets(&*plugin).unwrap().status,
        200
    );
    assert!(!sets_cookie(&*plugin, &mut slow) && sets_cookie(&*plugin, &mut other));
    for (id, expected) in [("one", 401), ("two", 200)] {
        let mut client = client("/", &cookie(&json!({"id": id})), 902);
        assert_eq!(client.meets(&*plugin).map_or(200, |answer| answer.status), expected, "{id}");
    }
}

#[test]
fn a_session_of_an_older_version_goes_on() {
    let (plugin, _file) = plugin();
    let mut client = client("/", &cookie(&json!({"id": ""})), 900);
    assert!(client.meets(&*plugin).is_none() && sets_cookie(&*plugin, &mut client));
}

#[test]
fn a_session_that_has_ended_and_cannot_be_taken_away_leads_to_a_login_and_not_to_itself() {
    let (plugin, _file) = plugin_that(true);
    let location = |refreshes: u64| {
        let changes =
            json!({"refreshes": refreshes, "access_token": "token", "expires": LOGIN.as_secs() + 10});
        let mut client = client("/page", &cookie(&changes), 20).header("sec-fetch-mode", "navigate");
        let answer = client.meets(&*plugin).unwrap();
        assert_eq!(answer.status, 302);
        answer.headers[LOCATION].to_str().unwrap().to_owned()
    };
    // The browser loses the session, and comes back without it.
    assert_eq!(location(7), "http://shop.example/page");
    // This one is older than what the browser was given, so the response may not take it away.
    let start = location(0);
    assert!(start.starts_with("http://shop.example/callback?begin="), "{start}");
}
