//! The rules for changing headers.

use http::{HeaderMap, Method, Request, Response, StatusCode};

use crate::headers::{Change, Map, MapMut, call_request, local_response};
use crate::status::Status;

fn request() -> http::request::Parts {
    let request = Request::builder()
        .uri("/a?b=c")
        .header("host", "example.com")
        .header("x-one", "1")
        .header("x-two", "2")
        .header("x-two", "3")
        .header("content-length", "7")
        .header("x-consumer-username", "alice");
    request.body(()).unwrap().into_parts().0
}

fn shown(head: &http::request::Parts) -> Vec<String> {
    let map = Map::Request { head, https: true };
    assert_eq!(map.len() as usize, map.pairs().len());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    map.pairs().iter().map(|(name, value)| format!("{}={}", text(name), text(value))).collect()
}

#[test]
fn a_module_sees_pseudo_headers_and_joined_values() {
    let head = request();
    assert_eq!(
        shown(&head),
        [
            ":method=GET",
            ":path=/a?b=c",
            ":scheme=https",
            ":authority=example.com",
            "x-one=1",
            "x-two=2",
            "x-two=3",
            "content-length=7",
            "x-consumer-username=alice",
        ]
    );
    let map = Map::Request { head: &head, https: false };
    let get = |name: &str| map.get(name.as_bytes()).map(|text| String::from_utf8(text.to_vec()).unwrap());
    for (name, value) in [
        ("X-Two", Some("2,3")),
        (":authority", Some("example.com")),
        ("Host", Some("example.com")),
        (":scheme", Some("http")),
        (":method", Some("GET")),
        (":status", None),
        ("absent", None),
        ("bad name", None),
    ] {
        assert_eq!(get(name).as_deref(), value, "{name}");
    }
}

#[test]
fn changes_follow_the_rules() {
    use Change::{Add, Remove, Replace};
    let bad = Err(Status::BadArgument);
    for (change, name, value, expected) in [
        (Add, "x-one", "2", Ok(())),
        (Replace, "x-two", "", Ok(())),
        (Remove, "x-two", "", Ok(())),
        (Remove, "absent", "", Ok(())),
        // Nothing that ends a line.
        (Add, "x-one", "a\r\nb: c", bad),
        (Replace, "x-one", "a\nb", bad),
        (Add, "x-one", "a\0b", bad),
        (Add, "x one", "a", bad),
        (Add, "x-one\r\n", "a", bad),
        (Add, "", "a", bad),
        // The proxy frames the message: no error, and no effect.
        (Replace, "Content-Length", "9", Ok(())),
        (Remove, "content-length", "", Ok(())),
        (Add, "transfer-encoding", "chunked", Ok(())),
        (Add, "connection", "close", Ok(())),
        // The proxy vouches for these.
        (Replace, "x-consumer-username", "mallory", bad),
        (Remove, "X-Consumer-Username", "", bad),
        (Add, "x-forwarded-for", "1.2.3.4", bad),
        (Add, "x-client-cert-subject", "CN=mallory", bad),
        // Pseudo headers.
        (Replace, ":path", "/new?x", Ok(())),
        (Replace, ":path", "new", bad),
        (Replace, ":path", "/a b", bad),
        (Remove, ":path", "", bad),
        (Replace, ":method", "POST", Ok(())),
        (Replace, ":method", "CONNECT", bad),
        (Replace, ":method", "G T", bad),
        (Replace, ":authority", "other.example:8080", Ok(())),
        (Replace, ":authority", "user@other.example", bad),
        (Replace, ":authority", "a\r\nb", bad),
        (Replace, "host", "other.example", Ok(())),
        (Replace, ":status", "200", bad),
        (Replace, ":unknown", "", bad),
    ] {
        let mut head = request();
        let before = shown(&head);
        let changed = MapMut::Request(&mut head).change(change, name.as_bytes(), value.as_bytes());
        assert_eq!(changed, expected, "{change:?} {name}: {value:?}");
        let has_effect = shown(&head) != before;
        let ignored = ["content-length", "transfer-encoding", "connection", "absent"];
        let expects_effect = expected.is_ok() && !ignored.contains(&name.to_lowercase().as_str());
        assert_eq!(has_effect, expects_effect, "{change:?} {name}: {value:?}");
    }
}

#[test]
fn values_and_their_number_are_bounded() {
    let mut fields = HeaderMap::new();
    let mut add = |value: &[u8]| MapMut::Fields(&mut fields).change(Change::Add, b"a", value);
    assert_eq!(add(&vec![b'a'; 17 << 10]), Err(Status::BadArgument));
    for _ in 0..256 {
        add(b"a").unwrap();
    }
    assert_eq!(add(b"a"), Err(Status::BadArgument));
}

#[test]
fn all_headers_are_set_at_once_or_not_at_all() {
    let mut head = request();
    let set = |head: &mut http::request::Parts, pairs: &[(&str, &str)]| {
        let pairs: Vec<(&[u8], &[u8])> =
            pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
        MapMut::Request(head).set_all(&pairs)
    };
    let before = shown(&head);
    assert_eq!(set(&mut head, &[("a", "1"), ("b", "\n")]), Err(Status::BadArgument));
    assert_eq!(set(&mut head, &[(":path", "x")]), Err(Status::BadArgument));
    assert_eq!(shown(&head), before);
    let pairs = [(":path", "/z"), ("a", "1"), ("content-length", "99"), ("x-consumer-username", "mallory")];
    set(&mut head, &pairs).unwrap();
    let mut after = shown(&head);
    after.sort();
    let expected = [
        ":authority=example.com",
        ":method=GET",
        ":path=/z",
        ":scheme=https",
        "a=1",
        "content-length=7",
        "x-consumer-username=alice",
    ];
    assert_eq!(after, expected);
}

#[test]
fn a_response_has_a_status_that_can_be_changed() {
    let (mut head, ()) = Response::new(()).into_parts();
    assert_eq!(Map::Response(&head).get(b":status").unwrap().as_slice(), b"200");
    for (value, expected) in [("404", 404), ("101", 404), ("abc", 404), ("600", 404)] {
        let changed = MapMut::Response(&mut head).change(Change::Replace, b":status", value.as_bytes());
        assert_eq!(changed.is_ok(), value == "404");
        assert_eq!(head.status, StatusCode::from_u16(expected).unwrap());
    }
    MapMut::Response(&mut head).change(Change::Add, b"x-consumer-id", b"seen").unwrap();
}

#[test]
fn local_responses_and_calls_are_checked() {
    let response = local_response(403, &[(b"a", b"1"), (b"content-length", b"9")], "no".into()).unwrap();
    assert_eq!((response.status().as_u16(), response.headers().len()), (403, 1));
    for status in [0, 100, 101, 199, 600, 70_000] {
        assert_eq!(local_response(status, &[], "".into()).unwrap_err(), Status::BadArgument, "{status}");
    }
    let good: [(&[u8], &[u8]); 4] =
        [(b":method", b"POST"), (b":path", b"/p?q"), (b":authority", b"svc"), (b"a", b"1")];
    let call = call_request(&good, "body".into()).unwrap();
    assert_eq!((call.method(), call.uri().to_string()), (&Method::POST, "/p?q".to_owned()));
    assert_eq!(call.headers()["host"], "svc");
    for missing in 0..3 {
        let mut pairs = good.to_vec();
        pairs.remove(missing);
        assert_eq!(call_request(&pairs, "".into()).unwrap_err(), Status::BadArgument);
    }
}
