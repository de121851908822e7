//! Measures what an evaluation costs: `cargo run --release -p signalbox-expr --example expression_cost`.
#![allow(clippy::print_stdout, clippy::expect_used)]

use std::borrow::Cow;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderValue};
use signalbox_expr::{Condition, ConsumerFacts, Facts, NotKnown};

struct Request {
    headers: HeaderMap,
    path: String,
    query: String,
    groups: Vec<Box<str>>,
}

impl Facts for Request {
    fn method(&self) -> &'static str {
        "GET"
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn query(&self) -> Option<&str> {
        Some(&self.query)
    }
    fn host(&self) -> Cow<'_, str> {
        "api.example.com".into()
    }
    fn scheme(&self) -> &'static str {
        "https"
    }
    fn headers(&self) -> &HeaderMap {
        &self.headers
    }
    fn body_size(&self) -> Result<Option<u64>, NotKnown> {
        Ok(Some(0))
    }
    fn client(&self) -> Result<IpAddr, NotKnown> {
        Ok(Ipv4Addr::new(192, 0, 2, 7).into())
    }
    fn consumer(&self) -> Result<Option<ConsumerFacts<'_>>, NotKnown> {
        Ok(Some(ConsumerFacts { name: "alice", groups: &self.groups }))
    }
    fn route(&self) -> Option<&str> {
        Some("orders")
    }
    fn listener(&self) -> &'static str {
        "public"
    }
    fn time(&self) -> Result<SystemTime, NotKnown> {
        Ok(SystemTime::now())
    }
}

fn main() {
    let mut headers = HeaderMap::new();
    for name in
        ["host", "user-agent", "accept", "accept-encoding", "x-request-id", "x-role", "cookie", "referer"]
    {
        headers.insert(name, HeaderValue::from_static("something"));
    }
    headers.insert("x-roles", HeaderValue::from_static("user, editor, admin"));
    let groups = ["eu", "staff", "vip"].map(Into::into).to_vec();
    let usual =
        Request { headers, path: "/api/v1/orders/12345".into(), query: "page=3&sort=asc".into(), groups };
    for text in [
        r#"request.method == "POST""#,
        r#"request.method in ["POST", "PUT", "DELETE"]"#,
        r#"request.path.startsWith("/api/v1/")"#,
        r#"request.headers["x-role"] == "admin""#,
        r#""x-debug" in request.headers"#,
        r#"request.headers["x-none"] == "a""#,
        r#""admin" in request.headers.all("x-roles")"#,
        r#""vip" in consumer.groups"#,
        r#"request.query["page"] == "3""#,
        r#"inCidr(client.ip, ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])"#,
        r#"request.path.matches("^/api/v[0-9]+/orders/[0-9]+$")"#,
        r#"request.path.contains("orders")"#,
        "time.getHours() >= 8 && time.getHours() < 18",
        r#"request.method == "GET" && request.path.startsWith("/api/") && !("staff" in consumer.groups)"#,
    ] {
        measure(text, &usual);
    }
    let (long, groups) = ("a".repeat(64 << 10), Vec::new());
    let mut headers = HeaderMap::new();
    headers.insert("x-roles", HeaderValue::try_from(long.clone()).expect("plain text"));
    let hostile = Request { headers, path: long.clone(), query: long, groups };
    println!("texts of 64 KiB:");
    for text in [
        r#"request.path.matches("(a|b)*a(a|b){9}c")"#,
        r#"request.path.contains("aaaaaaab")"#,
        r#"request.headers["x-roles"] == "a""#,
        r#""admin" in request.headers.all("x-roles")"#,
        r#""page" in request.query"#,
        r#"request.path.lowerAscii() == "a""#,
    ] {
        measure(text, &hostile);
    }
    let text = vec![r#"request.path.matches("(a|b)*a(a|b){9}c")"#; 13].join(" || ");
    measure(&text, &hostile);
}

fn measure(text: &str, request: &Request) {
    let started = Instant::now();
    let condition = Condition::parse(text).expect("a condition");
    let parsed = started.elapsed();
    let started = Instant::now();
    let mut times = 0_u32;
    // The best of several rounds is one that nothing disturbed.
    let mut best = Duration::MAX;
    while started.elapsed() < Duration::from_millis(200) {
        let round = Instant::now();
        let in_round = if request.path.len() > 1000 { 1 } else { 1000 };
        for _ in 0..in_round {
            let _ = black_box(condition.evaluate(black_box(request)));
        }
        best = best.min(round.elapsed() / in_round);
        times += in_round;
    }
    let shown: String = text.chars().take(90).collect();
    println!(
        "{best:>12.1?}, at most {:>7}, read in {parsed:>9.1?}: {shown} ({times} times)",
        condition.cost()
    );
}
