//! The cache as a plugin, without a proxy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use signalbox_plugin::testing::{self, Client, Services, consumers};
use signalbox_plugin::{Origin, Plugin, PluginType, States};

use super::entry::Draft;
use super::freshness::Lifetimes;
use super::key::Key;
use super::store::{Found, Store};
use super::vary::Selection;
use super::*;

/// Names and values of headers.
type Fields<'f> = &'f [(&'f str, &'f str)];

/// A cache with a clock that tests set.
struct Tested {
    services: Services,
    states: States,
    plugin: Arc<dyn Plugin>,
}

impl Tested {
    fn new(config: Value) -> Self {
        let (services, states) = (Services::default(), States::default());
        let plugin = testing::build_type(&PluginType::of::<Cache>(), &services, &states, config);
        Self { services, states, plugin }
    }

    /// Another revision.
    fn rebuilt(&mut self, config: Value) {
        self.plugin = testing::build_type(&PluginType::of::<Cache>(), &self.services, &self.states, config);
    }

    /// The answer to a request, which the upstream answers by `upstream` if it is asked.
    fn ask(&self, client: Client, upstream: impl FnOnce(&Client) -> Response<Bytes>) -> Response<Bytes> {
        self.ask_with(client, Origin::Upstream, upstream)
    }

    fn ask_with(
        &self,
        client: Client,
        origin: Origin,
        upstream: impl FnOnce(&Client) -> Response<Bytes>,
    ) -> Response<Bytes> {
        let mut client = client.counting::<Cache>().header("host", "a.example");
        let response = match client.meets(&*self.plugin) {
            Some(answer) => {
                let mut response = response(answer.status, &[], &answer.detail);
                *response.headers_mut() = answer.headers;
                client.receives(&*self.plugin, Origin::Plugin, response)
            }
            None => {
                let response = upstream(&client);
                client.receives(&*self.plugin, origin, response)
            }
        };
        let outcomes: u64 = Cache::OUTCOMES.iter().map(|outcome| client.counted(outcome)).sum();
        assert_eq!(outcomes, 1, "each request has one outcome");
        response
    }

    /// The word of `X-Cache-Status` for a request that the upstream would answer so.
    fn word(&self, client: Client, fields: &[(&str, &str)]) -> String {
        word(&self.ask(client, |_| response(200, fields, "new")))
    }

    /// Stores a response for `/`.
    fn store(&self, fields: &[(&str, &str)]) {
        assert_eq!(self.word(get("/"), fields), "Miss");
    }

    fn advance(&self, seconds: u64) {
        self.services.clock.advance(Duration::from_secs(seconds));
    }
}

fn get(path: &str) -> Client {
    Client::new("GET", path)
}

fn response(status: u16, fields: &[(&str, &str)], body: &str) -> Response<Bytes> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
}

fn word(response: &Response<Bytes>) -> String {
    response.headers()["x-cache-status"].to_str().unwrap().to_owned()
}

fn header<'r>(response: &'r Response<Bytes>, name: &str) -> &'r str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn unasked(_: &Client) -> Response<Bytes> {
    panic!("the upstream is asked")
}

const MINUTE: (&str, &str) = ("cache-control", "max-age=60");

#[test]
fn a_fresh_response_answers_with_its_age() {
    let cache = Tested::new(json!({}));
    let miss = cache.ask(get("/"), |_| response(200, &[MINUTE, ("x-a", "1"), ("age", "2")], "body"));
    assert_eq!(header(&miss, "cache-status"), "\"p\"; fwd=uri-miss; fwd-status=200; stored");
    cache.advance(5);
    let hit = cache.ask(get("/"), unasked);
    assert_eq!((hit.status().as_u16(), &hit.body()[..]), (200, &b"body"[..]));
    assert_eq!((header(&hit, "x-a"), header(&hit, "age"), word(&hit).as_str()), ("1", "7", "Hit"));
    assert_eq!(header(&hit, "cache-status"), "\"p\"; hit; ttl=53");
    cache.advance(53);
    assert_eq!(cache.word(get("/"), &[MINUTE]), "Miss");
}

#[test]
fn what_must_not_be_stored_is_not() {
    let refused: &[(Fields<'_>, u16, Fields<'_>, &str)] = &[
        (&[], 200, &[("cache-control", "max-age=60, no-store")], "no-store"),
        (&[], 200, &[("cache-control", "max-age=60, private")], "private"),
        (&[], 200, &[("cache-control", "max-age=60, private=\"x\"")], "private"),
        (&[], 200, &[MINUTE, ("set-cookie", "a=b")], "set-cookie"),
        (&[], 200, &[MINUTE, ("vary", "accept, *")], "vary"),
        (&[], 200, &[MINUTE, ("vary", "x-forwarded-for")], "vary"),
        (&[], 200, &[], "no-freshness"),
        (&[], 206, &[MINUTE], "status"),
        (&[], 200, &[MINUTE, ("content-range", "bytes 0-1/4")], "status"),
        (&[], 500, &[MINUTE], "status"),
        (&[("authorization", "Bearer x")], 200, &[MINUTE], "credentials"),
    ];
    for (asked, status, fields, reason) in refused {
        let cache = Tested::new(json!({}));
        let request = || asked.iter().fold(get("/"), |client, (name, value)| client.header(name, value));
        let first = cache.ask(request(), |_| response(*status, fields, "body"));
        assert!(header(&first, "cache-status").ends_with(&format!("; detail={reason}")), "{fields:?}");
        assert_eq!(cache.word(request(), &[]), "Miss", "{fields:?}");
    }
}

#[test]
fn responses_to_credentials_are_shared_only_if_they_say_so() {
    let with = |value: &str| get("/").header("authorization", value);
    for control in ["public, max-age=60", "s-maxage=60", "max-age=60, must-revalidate"] {
        let cache = Tested::new(json!({}));
        assert_eq!(cache.word(with("a"), &[("cache-control", control)]), "Miss");
        assert_eq!(cache.word(with("b"), &[]), "Hit", "{control}");
        assert_eq!(cache.word(get("/"), &[]), "Hit", "{control}");
    }
    let cache = Tested::new(json!({}));
    cache.store(&[MINUTE]);
    assert_eq!(cache.word(with("a"), &[]), "Miss", "it was made for nobody in particular");
    assert_eq!(cache.word(get("/"), &[]), "Hit");
}

#[test]
fn consumers_have_responses_of_their_own_unless_they_share() {
    let consumers = consumers(&[("alice", &["a"]), ("bob", &["b"])]);
    let asks = |who: &str| {
        let mut client = get("/").knowing(&consumers);
        client.exchange.identity = consumers.anonymous(who);
        client
    };
    let cache = Tested::new(json!({}));
    assert_eq!(cache.word(asks("alice"), &[MINUTE]), "Miss");
    assert_eq!(cache.word(asks("alice"), &[MINUTE]), "Hit");
    assert_eq!(cache.word(asks("bob"), &[MINUTE]), "Miss");
    assert_eq!(cache.word(get("/"), &[MINUTE]), "Miss");
    let shared = Tested::new(json!({"per_consumer": false}));
    assert_eq!(shared.word(asks("alice"), &[MINUTE]), "Miss");
    assert_eq!(shared.word(asks("alice"), &[("cache-control", "public, max-age=60")]), "Miss");
    assert_eq!(shared.word(asks("bob"), &[]), "Hit");
}

#[test]
fn keys_tell_apart_what_servers_may_answer_differently() {
    let cache = Tested::new(json!({"vary": ["x-tenant"]}));
    cache.store(&[MINUTE]);
    let mut secure = get("/");
    secure.https = true;
    let others = [
        get("/?"),
        get("/?a=b"),
        secure,
        get("/").header("x-tenant", ""),
        get("/").header("x-forwarded-host", "evil.example"),
        get("/").header("x-original-url", "/admin"),
    ];
    for other in others {
        assert_eq!(cache.word(other, &[MINUTE]), "Miss");
    }
    assert_eq!(cache.word(get("/"), &[]), "Hit");
}

#[test]
fn a_response_answers_those_requests_that_fit_its_vary() {
    let cache = Tested::new(json!({}));
    let fields = [MINUTE, ("vary", "Accept-Language")];
    let speaks = |language: &str| get("/").header("accept-language", language);
    assert_eq!(cache.word(speaks("de"), &fields), "Miss");
    let other = cache.ask(speaks("fr"), |_| response(200, &fields, "oui"));
    assert_eq!(header(&other, "cache-status"), "\"p\"; fwd=vary-miss; fwd-status=200; stored");
    assert_eq!(&cache.ask(speaks("fr"), unasked).body()[..], b"oui");
    assert_eq!(cache.word(speaks("de"), &[]), "Hit");
    assert_eq!(cache.word(get("/"), &fields), "Miss");
}

#[test]
fn a_stale_response_is_validated_and_made_fresh() {
    let cache = Tested::new(json!({}));
    let old = [MINUTE, ("etag", "\"1\""), ("last-modified", "Sat, 10 Jan 2004 13:37:04 GMT"), ("x-a", "1")];
    cache.ask(get("/"), |_| response(200, &old, "body"));
    cache.advance(61);
    let client = get("/").header("if-none-match", "\"0\"").header("range", "bytes=0-0");
    let answer = cache.ask(client, |client| {
        assert_eq!(client.head.headers["if-none-match"], "\"1\"");
        assert_eq!(client.head.headers["if-modified-since"], "Sat, 10 Jan 2004 13:37:04 GMT");
        response(304, &[("cache-control", "max-age=9"), ("x-a", "2"), ("content-type", "x/y")], "")
    });
    assert_eq!((answer.status().as_u16(), &answer.body()[..]), (206, &b"b"[..]));
    assert_eq!(
        (word(&answer).as_str(), header(&answer, "x-a"), header(&answer, "age")),
        ("Revalidated", "2", "0")
    );
    assert_eq!(header(&answer, "content-type"), "");
    cache.advance(8);
    assert_eq!(&cache.ask(get("/"), unasked).body()[..], b"body");
    cache.advance(1);
    let other = cache.ask(get("/"), |_| response(200, &old, "other"));
    assert_eq!(header(&other, "cache-status"), "\"p\"; fwd=stale; fwd-status=200; stored");
    assert_eq!(&cache.ask(get("/"), unasked).body()[..], b"other");
}

#[test]
fn conditions_and_ranges_are_answered_from_the_cache() {
    let cache = Tested::new(json!({}));
    let modified = "Sat, 10 Jan 2004 13:37:04 GMT";
    let fields = [MINUTE, ("etag", "\"1\""), ("last-modified", modified), ("content-type", "text/plain")];
    cache.ask(get("/"), |_| response(200, &fields, "0123456789"));
    let table: &[(Fields<'_>, u16, &str, &str)] = &[
        (&[("if-none-match", "W/\"1\"")], 304, "", ""),
        (&[("if-none-match", "*")], 304, "", ""),
        (&[("if-none-match", "\"2\"")], 200, "0123456789", ""),
        (&[("if-none-match", "\"2\""), ("if-modified-since", modified)], 200, "0123456789", ""),
        (&[("if-modified-since", modified)], 304, "", ""),
        (&[("if-modified-since", "Sat, 10 Jan 2004 13:37:03 GMT")], 200, "0123456789", ""),
        (&[("range", "bytes=2-4")], 206, "234", "bytes 2-4/10"),
        (&[("range", "bytes=-2")], 206, "89", "bytes 8-9/10"),
        (&[("range", "bytes=10-")], 416, "", "bytes */10"),
        (&[("range", "bytes=0-1, 3-4")], 200, "0123456789", ""),
        (&[("range", "bytes=2-4"), ("if-range", "\"1\"")], 206, "234", "bytes 2-4/10"),
        (&[("range", "bytes=2-4"), ("if-range", "\"2\"")], 200, "0123456789", ""),
        (&[("range", "bytes=2-4"), ("if-range", "W/\"1\"")], 200, "0123456789", ""),
        (&[("range", "bytes=2-4"), ("if-range", modified)], 206, "234", "bytes 2-4/10"),
    ];
    for (asked, status, body, range) in table {
        let client = asked.iter().fold(get("/"), |client, (name, value)| client.header(name, value));
        let answer = cache.ask(client, unasked);
        assert_eq!(answer.status().as_u16(), *status, "{asked:?}");
        assert_eq!(
            (&answer.body()[..], header(&answer, "content-range")),
            (body.as_bytes(), *range),
            "{asked:?}"
        );
        assert_eq!(header(&answer, "etag"), "\"1\"");
    }
}

#[test]
fn head_is_answered_by_get_and_never_stored() {
    let cache = Tested::new(json!({}));
    let head = || Client::new("HEAD", "/");
    assert_eq!(cache.word(head(), &[MINUTE]), "Miss");
    assert_eq!(cache.word(get("/"), &[MINUTE, ("etag", "\"1\"")]), "Miss");
    assert_eq!(cache.word(head(), &[]), "Hit");
    cache.advance(61);
    // The headers of a response to HEAD make the stored one fresh, or show that it is outdated.
    let newer =
        cache.ask(head(), |_| response(200, &[MINUTE, ("etag", "\"1\""), ("content-length", "3")], ""));
    assert_eq!(word(&newer), "Miss");
    assert_eq!(cache.word(get("/"), &[]), "Hit");
    cache.advance(61);
    cache.ask(head(), |_| response(200, &[MINUTE, ("etag", "\"2\"")], ""));
    let answer = cache.ask(get("/"), |_| response(200, &[], ""));
    assert!(header(&answer, "cache-status").contains("fwd=uri-miss"));
}

#[test]
fn directives_of_requests_count() {
    let cache = Tested::new(json!({}));
    let with = |control: &str| get("/").header("cache-control", control);
    let answer = cache.ask(with("only-if-cached"), unasked);
    assert_eq!(answer.status(), 504);
    cache.store(&[MINUTE, ("etag", "\"1\"")]);
    cache.advance(10);
    assert_eq!(cache.word(with("only-if-cached"), &[]), "Hit");
    assert_eq!(cache.word(with("max-age=10"), &[]), "Hit");
    let validated = cache.ask(with("max-age=9"), |_| response(304, &[], ""));
    assert_eq!(word(&validated), "Revalidated");
    assert_eq!(cache.word(with("no-store"), &[]), "Bypass");
    let answer = cache.ask(with("no-cache"), |_| response(200, &[MINUTE], "x"));
    assert_eq!(header(&answer, "cache-status"), "\"p\"; fwd=request; fwd-status=200; stored");
    cache.advance(70);
    assert_eq!(cache.word(with("max-stale=11"), &[]), "Stale");
    assert_eq!(cache.ask(with("only-if-cached"), unasked).status(), 504);
    let deaf = Tested::new(json!({"respect_request_cache_control": false}));
    deaf.store(&[MINUTE]);
    assert_eq!(deaf.word(with("no-cache, no-store"), &[]), "Hit");
}

#[test]
fn a_stale_response_takes_the_place_of_errors_within_its_window() {
    let cache = Tested::new(json!({"stale_if_error": "30s"}));
    cache.store(&[MINUTE]);
    cache.advance(89);
    for (origin, status) in
        [(Origin::Upstream, 500), (Origin::Upstream, 503), (Origin::Proxy, 503), (Origin::Proxy, 504)]
    {
        let answer = cache.ask_with(get("/"), origin, |_| response(status, &[], "error"));
        assert_eq!(
            (answer.status().as_u16(), &answer.body()[..], word(&answer).as_str()),
            (200, &b"new"[..], "Stale")
        );
    }
    for (origin, status) in [(Origin::Plugin, 503), (Origin::Upstream, 501), (Origin::Proxy, 413)] {
        let answer =
            cache.ask_with(get("/"), origin, |_| response(status, &[("cache-control", "no-store")], "error"));
        assert_eq!(answer.status().as_u16(), status);
        cache.store(&[MINUTE]);
        cache.advance(89);
    }
    cache.advance(2);
    let answer = cache.ask_with(get("/"), Origin::Proxy, |_| response(503, &[], "error"));
    assert_eq!(answer.status(), 503);
    let strict = Tested::new(json!({"stale_if_error": "30s"}));
    strict.store(&[("cache-control", "max-age=60, must-revalidate")]);
    strict.advance(61);
    assert_eq!(strict.ask(get("/"), |_| response(503, &[], "error")).status(), 503);
}

#[test]
fn unsafe_methods_remove_what_they_change() {
    let cache = Tested::new(json!({}));
    let fill = || {
        for path in ["/", "/a", "/b", "/c"] {
            cache.ask(get(path), |_| response(200, &[MINUTE], "x"));
        }
    };
    fill();
    let location = [("location", "/a"), ("content-location", "http://a.example/b")];
    let answer = cache.ask(Client::new("POST", "/"), |_| response(303, &location, ""));
    assert_eq!(header(&answer, "cache-status"), "\"p\"; fwd=method; fwd-status=303");
    for (path, expected) in [("/", "Miss"), ("/a", "Miss"), ("/b", "Miss"), ("/c", "Hit")] {
        assert_eq!(cache.word(get(path), &[]), expected, "{path}");
    }
    fill();
    cache.ask(Client::new("DELETE", "/"), |_| response(404, &[], ""));
    cache.ask(Client::new("PUT", "/x"), |_| response(204, &[("location", "http://b.example/a")], ""));
    cache.ask_with(Client::new("PUT", "/"), Origin::Proxy, |_| response(200, &[], ""));
    cache.ask(Client::new("OPTIONS", "/"), |_| response(200, &[], ""));
    for path in ["/", "/a"] {
        assert_eq!(cache.word(get(path), &[]), "Hit", "{path}");
    }
}

#[test]
fn a_response_that_was_on_its_way_when_its_url_changed_is_not_stored() {
    let cache = Tested::new(json!({}));
    cache.ask(get("/"), |_| {
        cache.ask(Client::new("POST", "/"), |_| response(200, &[], ""));
        response(200, &[MINUTE], "before the change")
    });
    assert_eq!(cache.word(get("/"), &[MINUTE]), "Miss");
    cache.ask(get("/other"), |_| {
        cache.ask(Client::new("POST", "/"), |_| response(200, &[], ""));
        response(200, &[MINUTE], "x")
    });
    assert_eq!(cache.word(get("/other"), &[]), "Hit");
}

#[test]
fn requests_with_a_body_and_handshakes_pass_by() {
    let cache = Tested::new(json!({}));
    cache.store(&[MINUTE]);
    for size in [Some(1), None] {
        let mut client = get("/");
        client.body_size = size;
        assert_eq!(cache.word(client, &[MINUTE]), "Bypass");
    }
    assert_eq!(cache.word(get("/").header("sec-websocket-version", "13"), &[]), "Bypass");
}

#[test]
fn what_is_stored_outlives_revisions_until_it_would_mean_something_else() {
    let mut cache = Tested::new(json!({"ttl": "1h"}));
    cache.store(&[]);
    for _ in 0..100 {
        cache.rebuilt(json!({"ttl": "1h"}));
        assert_eq!(cache.word(get("/"), &[]), "Hit");
    }
    cache.rebuilt(json!({"ttl": "1h", "hide_headers": true}));
    assert_eq!(cache.ask(get("/"), unasked).headers().get("x-cache-status"), None);
    cache.rebuilt(json!({"ttl": "2h"}));
    assert_eq!(cache.word(get("/"), &[]), "Miss");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |config| testing::refused(&PluginType::of::<Cache>(), config);
    assert_eq!(
        refused(json!({
            "max_size": 1, "max_entry": 2, "respect_cache_control": false, "statuses": [206, 99],
            "vary": ["a b"], "coalesce_wait": "2m",
        })),
        "max_size: must be from 64KiB to 1TiB\n\
         max_entry: must be at least 1 and at most max_size\n\
         ttl: is required when respect_cache_control is false\n\
         statuses[0]: must be from 200 to 599, and neither 206 nor 304\n\
         statuses[1]: must be from 200 to 599, and neither 206 nor 304\n\
         vary[0]: \"a b\" is not the name of a header\n\
         coalesce_wait: must be at most 60s"
    );
    let twice = json!({"purges": [{"id": "1", "all": true}, {"id": "1", "tag": ""}]});
    assert_eq!(
        refused(twice),
        "purges[1].id: is that of another purge\n\
         purges[1]: must have exactly one of url and prefix (with http:// or https://, a host and a path), tag, and all: true"
    );
    assert_eq!(refused(json!({"statuses": []})), "statuses: must have at least one status");
    assert_eq!(refused(json!({"ttl": "0s"})), "ttl: must be longer than 0s");
}

/// A draft for `url`.
fn draft(url: &str) -> Draft {
    Draft {
        key: Key { url: url.into(), route: testing::name("r"), partition: Arc::from(&b""[..]) },
        selection: Selection::default(),
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        lifetimes: Lifetimes {
            initial_age: Duration::ZERO,
            lifetime: Duration::from_secs(60),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            is_strict: false,
            needs_validation: false,
        },
        stored_at: Duration::ZERO,
        is_shareable: true,
        tags: Box::default(),
    }
}

fn put(store: &Arc<Store>, draft: Draft, size: usize) -> bool {
    let ticket = store.ticket();
    let Some(reservation) = store.reserve(draft.size() + size) else { return false };
    store.insert(draft, vec![0; size].into(), ticket, reservation)
}

fn has(store: &Store, url: &str) -> bool {
    let key = Key { url: url.into(), route: testing::name("r"), partition: Arc::from(&b""[..]) };
    matches!(store.find(&key, &HeaderMap::new(), false), Found::Entry(_))
}

#[test]
fn only_one_validates_a_response_in_the_background() {
    let entry = draft("x").with_body(Bytes::new());
    let at = Duration::from_secs;
    assert!(entry.begin_refresh(at(10), at(30)));
    assert!(!entry.begin_refresh(at(10), at(30)) && !entry.begin_refresh(at(39), at(30)));
    assert!(entry.begin_refresh(at(40), at(30)), "the one before is given up");
    entry.allow_refresh(at(42));
    assert!(!entry.begin_refresh(at(41), at(30)) && entry.begin_refresh(at(42), at(30)));
}

#[test]
fn memory_stays_within_its_bound_and_what_is_used_stays() {
    const CAPACITY: usize = 1 << 20;
    let store = Arc::new(Store::new(CAPACITY));
    assert!(put(&store, draft("used"), 1000));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..5000 {
                    assert!(has(store, "used"), "an entry that is used all the time is not evicted");
                    assert!(put(store, draft(&format!("{thread}/{number}")), 100 * (number % 100)));
                    assert!(store.used() <= CAPACITY);
                }
            });
        }
    });
    assert!(!put(&store, draft("too large"), CAPACITY), "it cannot fit");
    assert!(store.len() > 50, "nothing is evicted for it");
    store.invalidate("used");
    for (thread, number) in (0..4).flat_map(|thread| (0..5000).map(move |number| (thread, number))) {
        store.invalidate(&format!("{thread}/{number}"));
    }
    assert_eq!((store.len(), store.used()), (0, 0), "all bytes come back");
}

#[test]
fn purges_remove_what_they_select_and_what_is_on_its_way() {
    let fill = |cache: &Tested| {
        for (path, tags) in [("/x", "one"), ("/x/y", "one, two"), ("/z", "three")] {
            cache.ask(get(path), |_| response(200, &[MINUTE, ("cache-tag", tags)], "x"));
        }
    };
    let table: &[(Value, &[&str])] = &[
        (json!({"url": "http://A.example:80/x"}), &["/x/y", "/z"]),
        (json!({"prefix": "http://a.example/x"}), &["/z"]),
        (json!({"tag": "two"}), &["/x", "/z"]),
        (json!({"tag": "tw"}), &["/x", "/x/y", "/z"]),
        (json!({"all": true}), &[]),
    ];
    for (purge, left) in table {
        let mut purge = purge.clone();
        purge["id"] = json!("1");
        let mut cache = Tested::new(json!({}));
        fill(&cache);
        cache.rebuilt(json!({"purges": [purge.clone()]}));
        for path in ["/x", "/x/y", "/z"] {
            let expected = if left.contains(&path) { "Hit" } else { "Miss" };
            assert_eq!(cache.word(get(path), &[]), expected, "{purge} {path}");
        }
        fill(&cache);
        cache.rebuilt(json!({"purges": [purge.clone(), {"id": "2", "url": "http://b.example/"}]}));
        assert_eq!(cache.word(get("/x/y"), &[]), "Hit", "{purge} is not carried out twice");
    }
    let cache = Tested::new(json!({}));
    cache.ask(get("/"), |_| {
        let config = json!({"purges": [{"id": "1", "tag": "t"}]});
        testing::build_type(&PluginType::of::<Cache>(), &cache.services, &cache.states, config);
        response(200, &[MINUTE], "before the purge")
    });
    assert_eq!(cache.word(get("/"), &[MINUTE]), "Miss");
}

#[test]
fn purges_beside_the_configuration_reach_the_cache() {
    let purge =
        |cache: &Tested, json: Value| cache.states.purges().carry_out(&serde_json::from_value(json).unwrap());
    let fill = |cache: &Tested| {
        for (path, tags) in [("/x", "one"), ("/x?q", "two")] {
            cache.ask(get(path), |_| response(200, &[MINUTE, ("cache-tag", tags)], "x"));
        }
    };
    let table: &[(Value, &[&str])] = &[
        (json!({"host": "a.example", "tag": "two"}), &["/x"]),
        (json!({"path": "/x"}), &[]),
        (json!({"path": "/x?q"}), &["/x"]),
        (json!({"route": "route"}), &[]),
        (json!({"route": "another"}), &["/x", "/x?q"]),
        (json!({}), &["/x", "/x?q"]),
        (json!({"all": true}), &[]),
    ];
    for (json, left) in table {
        let cache = Tested::new(json!({}));
        fill(&cache);
        purge(&cache, json.clone());
        for path in ["/x", "/x?q"] {
            let expected = if left.contains(&path) { "Hit" } else { "Miss" };
            assert_eq!(cache.word(get(path), &[]), expected, "{json} {path}");
        }
    }
    let cache = Tested::new(json!({}));
    cache.ask(get("/"), |_| {
        purge(&cache, json!({"path": "/other"}));
        response(200, &[MINUTE], "before the purge")
    });
    assert_eq!(cache.word(get("/"), &[MINUTE]), "Miss", "it was requested before the purge");
}

#[test]
fn the_origin_of_a_url_ends_before_its_path() {
    assert_eq!(origin_of("http://a.example:81/x?http://"), "http://a.example:81");
    assert_eq!(origin_of("https://a.example"), "https://a.example");
}
