use crate::request::Request;

fn check(request: &Request, cases: &[(&str, bool)]) {
    for (text, expected) in cases {
        assert_eq!(request.eval(text), Ok(*expected), "{text}");
    }
}

#[test]
fn parts_of_a_request_are_compared() {
    let mut request = Request::new().header("x-role", b"admin").query("page=3&sort=a%20b+c&%6bey=v");
    request.size = Some(42);
    check(
        &request,
        &[
            (r#"request.method == "GET""#, true),
            (r#"request.method != "GET""#, false),
            (r#"request.method in ["GET", "HEAD"]"#, true),
            (r#"request.method in ["POST", "PUT",]"#, false),
            (r#"request.path == "/a/b""#, true),
            (r#"request.path.startsWith("/a/")"#, true),
            (r#"request.path.endsWith("/c")"#, false),
            (r#"request.path.contains("a/b")"#, true),
            (r#"request.path.contains(request.method)"#, false),
            (r#"request.path.matches("^/[a-z]/b$")"#, true),
            (r#"matches(request.path, "b")"#, true),
            (r#"request.path.matches(r"^\w$")"#, false),
            (r#"request.host == "api.example" && request.scheme == "http""#, true),
            (r#"request.headers["X-Role"] == "admin""#, true),
            (r#"request.headers["x-role"].lowerAscii() == 'admin'"#, true),
            (r#""x-role" in request.headers"#, true),
            (r#""x-other" in request.headers"#, false),
            (r#"request.query.page == "3" && int(request.query["page"]) > 2"#, true),
            (r#"request.query["sort"] == "a b c" && request.query.key == "v""#, true),
            (r#""page" in request.query && !("none" in request.query)"#, true),
            ("request.size == 42 && request.size in [41, 42]", true),
            (r#"route.name == "orders" && listener.name == "public""#, true),
            (r#"size(request.path) == 4 && request.path.size() == 4"#, true),
            (r#"request.method + " " + request.path == "GET /a/b""#, true),
            (r#""GET".lowerAscii() == "get" && "é".size() == 1"#, true),
            (r#"(request.method == "GET" ? request.path : "none") == "/a/b""#, true),
            (r#"request.method == "PUT" ? false : true"#, true),
            ("request.size > 100 ? false : request.size > 40 ? true : false", true),
            (r#""a" < "b" && "a" <= "a" && !("b" > "c") && "é" > "z""#, true),
            ("true == !false && true != false", true),
        ],
    );
}

#[test]
fn numbers_are_computed() {
    check(
        &Request::new(),
        &[
            ("1 + 2 * 3 == 7 && (1 + 2) * 3 == 9 && 7 / 2 == 3 && 7 % 4 == 3", true),
            ("10 - 4 - 3 == 3", true),
            ("-9223372036854775808 < -9223372036854775807", true),
            ("-(-3) == 3 && - -3 == 3 && 2 - -3 == 5", true),
            ("0xFF == 255", true),
            ("!!true && !false", true),
        ],
    );
    let request = Request::new().query("n=12a&m=99999999999999999999&z=0");
    for (text, fault) in [
        ("int(request.query.n) == 12", "int() was given a text that is not a whole number"),
        ("int(request.query.m) > 1", "int() was given a text that is not a whole number"),
        ("1 / int(request.query.z) == 1", "a number is divided by 0"),
        ("1 % int(request.query.z) == 1", "a number is divided by 0"),
        ("9223372036854775807 + 1 > 0", "a number is too large"),
        ("-9223372036854775808 / -1 > 0", "a number is too large"),
        ("-(-9223372036854775808) > 0", "a number is too large"),
    ] {
        assert_eq!(request.eval(text), Err(fault.to_owned()), "{text}");
    }
}

#[test]
fn texts_have_the_escapes_of_cel() {
    check(
        &Request::new(),
        &[
            (r#""\x41\u0042\U00000043\104" == "ABCD""#, true),
            (r#""a\tb\n\"\'\\" == 'a\tb\n"\'\\'"#, true),
            (r#"r"\d" == "\\d" && R'\' == "\\""#, true),
            ("\"\"\"a\nb\"\"\" == 'a\\nb'", true),
            ("true // a comment\n && true", true),
        ],
    );
}

#[test]
fn the_client_and_the_time_are_tested() {
    let mut request = Request::new();
    check(
        &request,
        &[
            (r#"inCidr(client.ip, "192.0.2.0/24")"#, true),
            (r#"inCidr(client.ip, ["10.0.0.0/8", "192.0.2.7"])"#, true),
            (r#"inCidr(client.ip, "::/0")"#, false),
            (r#"client.ip == ip("192.0.2.7") && client.ip != ip("192.0.2.8")"#, true),
            (r#"client.ip == ip("::ffff:192.0.2.7")"#, true),
            (r#"time >= timestamp("2026-07-04T12:00:00Z")"#, true),
            (r#"time > timestamp("2026-07-04T14:00:00+02:00")"#, false),
            (r#"time - timestamp("2026-07-04T11:00:00Z") == duration("1h")"#, true),
            (r#"time + duration("30m") < timestamp("2026-07-04T12:30:00.5Z")"#, true),
            (
                r#"time.getHours() == 12 && time.getHours("+05:30") == 17 && time.getMinutes("+05:30") == 30"#,
                true,
            ),
            ("time.getDayOfWeek() == 6 && time.getDate() == 4 && time.getMonth() == 6", true),
            ("time.getFullYear() == 2026 && time.getSeconds() == 0 && time.getDayOfMonth() == 3", true),
            (r#"duration("90s") == duration("1m") + duration("30s")"#, true),
        ],
    );
    request.client = Some("::ffff:10.1.2.3".parse().unwrap());
    check(&request, &[(r#"inCidr(client.ip, "10.0.0.0/8")"#, true)]);
}

#[test]
fn a_consumer_is_there_or_a_fault() {
    let guest = Request::new();
    let no_one = Err("no consumer is authenticated".to_owned());
    assert_eq!(guest.eval(r#"consumer.name == "alice""#), no_one);
    assert_eq!(guest.eval(r#"!("vip" in consumer.groups)"#), no_one);
    check(
        &guest,
        &[
            ("has(consumer.name)", false),
            (r#"has(consumer.name) && consumer.name == "alice""#, false),
            (r#"!has(consumer.groups) || "vip" in consumer.groups"#, true),
        ],
    );
    let alice = Request::new().consumer("alice", &["vip", "eu"]);
    check(
        &alice,
        &[
            (r#"consumer.name == "alice" && has(consumer.name)"#, true),
            (r#""eu" in consumer.groups && !("us" in consumer.groups)"#, true),
            ("size(consumer.groups) == 2", true),
        ],
    );
}

#[test]
fn a_header_that_is_not_there_once_has_no_value() {
    let request =
        Request::new().header("x-role", b"user").header("x-role", b"admin").header("x-raw", b"\xff");
    for (text, fault) in [
        (r#"request.headers["x-none"] == """#, "the request has no header x-none"),
        (r#"request.headers["x-role"] == "user""#, "the request has the header x-role more than once"),
        (r#"request.headers["x-role"] != "admin""#, "the request has the header x-role more than once"),
        (r#"request.headers["x-raw"] == "a""#, "a header or parameter is not UTF-8"),
    ] {
        assert_eq!(request.eval(text), Err(fault.to_owned()), "{text}");
    }
    check(&request, &[("has(request.headers.host)", false), (r#""x-raw" in request.headers"#, true)]);
    let request = Request::new().query("a=1&%61=2&b=%ff");
    for (text, fault) in [
        (r#"request.query["none"] == """#, "the query has no parameter none"),
        (r#"request.query["a"] == "1""#, "the query has the parameter a more than once"),
        (r#"request.query["b"] == "1""#, "a header or parameter is not UTF-8"),
        (r#""x" in request.query.all("b")"#, "a header or parameter is not UTF-8"),
    ] {
        assert_eq!(request.eval(text), Err(fault.to_owned()), "{text}");
    }
    check(&request, &[("has(request.query.a)", true), (r#""2" in request.query.all("a")"#, true)]);
}

#[test]
fn all_values_of_a_header_are_the_elements_of_all_its_lines() {
    let roles = |lines: &[&str]| {
        lines.iter().fold(Request::new(), |request, line| request.header("x-role", line.as_bytes()))
    };
    for (lines, is_admin, count) in [
        (&["admin"][..], true, 1),
        (&["user", "admin"], true, 2),
        (&["user,admin"], true, 2),
        (&["user ,\tadmin , x"], true, 3),
        (&[",,admin,"], true, 1),
        (&["\"a, admin\""], false, 1),
        (&[r#""a\", admin", x"#], false, 2),
        (&["administrator"], false, 1),
        (&[""], false, 0),
        (&[], false, 0),
    ] {
        let request = roles(lines);
        assert_eq!(request.eval(r#""admin" in request.headers.all("x-role")"#), Ok(is_admin), "{lines:?}");
        let text = format!(r#"size(request.headers.all("X-Role")) == {count}"#);
        assert_eq!(request.eval(&text), Ok(true), "{lines:?}");
    }
    let open = roles(&["\"a, admin"]);
    let fault = Err("a quoted string in the header x-role has no end".to_owned());
    assert_eq!(open.eval(r#""admin" in request.headers.all("x-role")"#), fault);
}

#[test]
fn a_fault_is_absorbed_by_what_decides_alone() {
    let request = Request::new();
    let fault = r#"request.headers["x-none"] == "a""#;
    for (text, expected) in [
        (format!("{fault} || true"), Some(true)),
        (format!("true || {fault}"), Some(true)),
        (format!("{fault} || false"), None),
        (format!("{fault} && false"), Some(false)),
        (format!("false && {fault}"), Some(false)),
        (format!("{fault} && true"), None),
        (format!("!({fault})"), None),
        (format!("{fault} && true && false"), Some(false)),
        (format!("({fault} || true) && ({fault} && false || true)"), Some(true)),
        (format!("{fault} ? true : true"), None),
        (format!("true ? true : {fault}"), Some(true)),
        (format!("true ? {fault} : true"), None),
        (r#"request.path in [request.headers["x-none"], request.path]"#.to_owned(), None),
    ] {
        assert_eq!(request.eval(&text).ok(), expected, "{text}");
    }
}

#[test]
fn what_is_not_known_is_a_fault() {
    let mut request = Request::new();
    (request.size, request.client, request.route, request.time) = (None, None, None, None);
    request.is_explained = true;
    for (text, fault) in [
        ("request.size == 0", "the client did not announce the size of the body"),
        ("has(consumer.name)", "consumer is not known"),
        (r#"consumer.name == "a""#, "consumer is not known"),
        (r#"inCidr(client.ip, "0.0.0.0/0")"#, "client.ip is not known"),
        (r#"route.name == "a""#, "no route takes the request"),
        (r#"time > timestamp("2026-01-01T00:00:00Z")"#, "time is not known"),
    ] {
        assert_eq!(request.eval(text), Err(fault.to_owned()), "{text}");
    }
    check(&request, &[("has(request.size)", false)]);
}

#[test]
fn a_text_that_is_too_long_is_a_fault() {
    let long = "a".repeat(signalbox_expr::MAX_TEXT);
    let fault = Err("a text of the request is too long".to_owned());
    for (value, expected) in [(long.clone(), Ok(true)), (format!("{long}a"), fault)] {
        let mut request = Request::new().header("x-long", value.as_bytes()).query(&value);
        request.path = value;
        for text in [
            r#"request.headers["x-long"] != """#,
            r#"!("a" in request.headers.all("x-long"))"#,
            r#"!("b" in request.query)"#,
            r#"request.path != """#,
        ] {
            assert_eq!(request.eval(text), expected, "{text}");
        }
    }
    // Lines count together.
    let request = Request::new().header("x-long", long.as_bytes()).header("x-long", b"b");
    assert!(request.eval(r#""b" in request.headers.all("x-long")"#).is_err());
}
