//! `explain` says what a proxy does: ten thousand random requests to real proxies, each explained as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Map, Value, json};
use signalbox_tests::{Api, ControlPlane, Proxy, free_port};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const REQUESTS: usize = 10_000;

/// Connections that are kept alive, each with its share of the requests.
const CLIENTS: usize = 8;

/// By which proxy and listener a request comes.
#[derive(Debug, Clone)]
struct Entrance {
    fleet: &'static str,
    listener: &'static str,
    address: SocketAddr,
}

/// A request as it is sent, and as it is asked about.
#[derive(Debug)]
struct Asked {
    text: String,
    question: Value,
}

/// The outcome of a request.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Route(String),
    /// `strict_slash` redirects.
    Redirected,
    Refused(u64),
}

struct Random(fastrand::Rng);

impl Random {
    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.0.usize(..choices.len())].clone()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.u32(..100) < percent
    }

    fn some<T: Clone>(&mut self, choices: &[T], most: usize) -> Vec<T> {
        (0..=self.0.usize(..most)).map(|_| self.of(choices)).collect()
    }

    fn route(&mut self) -> Value {
        let mut matches = Map::new();
        let has_hosts = self.chance(50);
        if has_hosts {
            let mut hosts = self.some(&["a.example", "*.example", "*.a.example", "b.a.example"], 2);
            hosts.dedup();
            matches.insert("hosts".to_owned(), json!(hosts));
        }
        // Few routes take any request, or all others would be in vain.
        if self.chance(if has_hosts { 90 } else { 97 }) {
            let paths = [
                json!({"exact": "/a"}),
                json!({"exact": "/a/"}),
                json!({"exact": "/a/b"}),
                json!({"prefix": "/a"}),
                json!({"prefix": "/a/"}),
                json!({"prefix": "/a/b"}),
                json!({"prefix": "/b"}),
                json!({"template": "/{x}"}),
                json!({"template": "/a/{x}"}),
                json!({"template": "/a/{x}/"}),
                json!({"template": "/{x}/b"}),
                json!({"template": "/b/{*rest}"}),
                json!({"regex": "/a/[ab]+"}),
                json!({"regex": "/[a-c]+/?"}),
            ];
            let mut list = self.some(&paths, 2);
            list.dedup();
            matches.insert("paths".to_owned(), json!(list));
        }
        if self.chance(30) {
            let mut methods = self.some(&["GET", "POST", "PURGE", "CONNECT", "OPTIONS", "HEAD"], 2);
            methods.dedup();
            matches.insert("methods".to_owned(), json!(methods));
        }
        if self.chance(25) {
            let headers = [
                json!({"name": "x-env", "exact": "beta"}),
                json!({"name": "X-Env", "prefix": "al"}),
                json!({"name": "x-env", "present": false}),
                json!({"name": "x-env", "regex": "be.*", "invert": true}),
                json!({"name": "host", "prefix": "a."}),
                json!({"name": "x-consumer-id", "present": true}),
                json!({"name": "x-forwarded-for", "present": true}),
                json!({"name": "x-real-ip", "present": true}),
                json!({"name": "x_consumer_id", "present": true}),
                json!({"name": "connection", "present": true}),
            ];
            matches.insert("headers".to_owned(), json!(self.some(&headers, 2)));
        }
        if self.chance(25) {
            let query = [
                json!({"name": "v", "exact": "2"}),
                json!({"name": "v", "present": true}),
                json!({"name": "w", "exact": "a b"}),
                json!({"name": "v", "prefix": "1", "invert": true}),
            ];
            matches.insert("query".to_owned(), json!(self.some(&query, 2)));
        }
        let mut route =
            json!({"priority": self.of(&[0, 0, 0, 0, 0, 0, 0, 0, 1, -1]), "strict_slash": self.chance(40)});
        if !matches.is_empty() {
            route["match"] = Value::Object(matches);
        }
        if self.chance(30) {
            route["fleets"] = self.of(&[json!(["eu"]), json!(["us", "default"]), json!(["eu", "default"])]);
        }
        if self.chance(25) {
            route["listeners"] = self.of(&[json!(["http"]), json!(["raw"]), json!(["http", "raw"])]);
        }
        if self.chance(5) {
            route["enabled"] = json!(false);
        }
        route
    }

    fn request(&mut self, entrance: &Entrance) -> Asked {
        let bad = ["user@a.example", "a.example:x", "a/b"];
        let good = [
            "a.example",
            "A.Example:8080",
            "b.a.example",
            "c.b.a.example",
            "example",
            "x.example.",
            "[::1]:80",
            "127.0.0.1",
        ];
        let hosts = if self.chance(5) { &bad[..] } else { &good[..] };
        let host = self.of(hosts);
        let method =
            self.of(&["GET", "GET", "GET", "POST", "get", "Post", "PURGE", "OPTIONS", "HEAD", "CONNECT"]);
        let mut headers: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, value) in [
            ("X-Env", "beta"),
            ("X-Env", "alpha"),
            ("x-consumer-id", "alice"),
            ("X-Forwarded-For", "203.0.113.1"),
            ("x-real-ip", "203.0.113.1"),
            ("x_consumer_id", "alice"),
        ] {
            if self.chance(12) {
                headers.insert(name, value);
            }
        }
        let target = if method == "CONNECT" {
            self.of(&["a.example:443", "b.a.example:80", "c.b.a.example:1", "127.0.0.1:80"]).to_owned()
        } else {
            let segments =
                ["a", "a", "a", "a", "b", "b", "b", "c", "ab", "%61", "%2e", "%2F", "..", "", "a%20b"];
            let mut path = String::new();
            for segment in self.some(&segments, 3) {
                path.push('/');
                path.push_str(segment);
            }
            if self.chance(30) {
                path.push('/');
            }
            if method == "OPTIONS" && self.chance(10) {
                path = "*".to_owned();
            } else {
                path += self.of(&["", "", "", "?v=2", "?v=1&v=2", "?w=a+b&v", "?%76=2", "?V=2", "?"]);
            }
            path
        };
        let is_connect = method == "CONNECT";
        // The form in which a client of a proxy asks.
        let absolute =
            !is_connect && target.starts_with('/') && !host.contains(['@', '/']) && self.chance(10);
        let target = if absolute {
            format!("http://{}{target}", self.of(&["a.example", "B.a.example:81"]))
        } else {
            target
        };
        let host = if is_connect { target.clone() } else { host.to_owned() };
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
        for (name, value) in &headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        let mut asked: Map<String, Value> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        asked.insert("Host".to_owned(), json!(host));
        let question = json!({
            "method": method, "url": target, "headers": asked,
            "fleet": entrance.fleet, "listener": entrance.listener,
        });
        Asked { text, question }
    }
}

/// Reads an answer: status, fields in lower case; over its body. Whether the connection goes on.
async fn answer(
    stream: &mut BufReader<TcpStream>,
    headless: bool,
) -> Result<(u64, BTreeMap<String, String>, bool)> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status: u64 = status.with_context(|| format!("no status in {line:?}"))?;
    let mut fields = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        fields.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length: usize = fields.get("content-length").map_or(Ok(0), |length| length.parse())?;
    if !headless && status != 204 {
        stream.read_exact(&mut vec![0; length]).await?;
    }
    let goes_on = !fields.get("connection").is_some_and(|value| value.contains("close"));
    Ok((status, fields, goes_on))
}

/// Sends the requests of one client, each to the proxy and to `explain`.
async fn compare(api: Api, entrances: Vec<Entrance>, seed: u64) -> Result<BTreeMap<String, usize>> {
    let mut random = Random(fastrand::Rng::with_seed(seed));
    let mut connections: BTreeMap<SocketAddr, BufReader<TcpStream>> = BTreeMap::new();
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for index in 0..REQUESTS / CLIENTS {
        let entrance = random.of(&entrances);
        let asked = random.request(&entrance);
        let mut stream = match connections.remove(&entrance.address) {
            Some(stream) => stream,
            None => BufReader::new(TcpStream::connect(entrance.address).await?),
        };
        stream.write_all(asked.text.as_bytes()).await?;
        let (status, fields, goes_on) = answer(&mut stream, asked.text.starts_with("HEAD ")).await?;
        if goes_on {
            connections.insert(entrance.address, stream);
        }
        let served = match (status, fields.get("x-route")) {
            (200, Some(route)) => Outcome::Route(route.clone()),
            (301 | 308, _) => Outcome::Redirected,
            (status, _) => Outcome::Refused(status),
        };
        let explained = api.call(Method::POST, "/explain", Some(&asked.question)).await?.success()?.body;
        let winner = &explained["winner"];
        let expected = match (explained["refused"]["status"].as_u64(), winner["route"].as_str()) {
            (Some(status), _) => Outcome::Refused(status),
            (None, Some(_)) if winner["slash"].is_string() => Outcome::Redirected,
            (None, Some(route)) => Outcome::Route(route.to_owned()),
            (None, None) => bail!("neither refused nor a route: {explained:#}"),
        };
        if served != expected {
            bail!(
                "seed {seed}, request {index}, {entrance:?}: {asked:#?}\nserved {served:?}, explained {explained:#}"
            );
        }
        *outcomes.entry(format!("{served:?}")).or_default() += 1;
    }
    Ok(outcomes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn explain_says_of_ten_thousand_requests_what_proxies_do() {
    let seed = fastrand::u64(..);
    let mut random = Random(fastrand::Rng::with_seed(seed));
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    let routes: Vec<Value> = (0..80)
        .map(|index| {
            let mut route = random.route();
            let name = format!("r{index}");
            route["respond"] = json!({"body": name, "headers": {"x-route": name}});
            route["name"] = json!(name);
            route
        })
        .collect();
    let raw = json!({"name": "raw", "address": "127.0.0.1:8081", "normalize_path": false});
    let document = json!({"listeners": [raw], "routes": routes});
    let revision = api.apply(&document).await.unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
    let mut proxies = Vec::new();
    let mut entrances = Vec::new();
    for fleet in ["eu", "default"] {
        let raw = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let proxy = Proxy::builder().control_plane(&control_plane).node_id(fleet).fleet(fleet);
        let proxy = proxy.listener("raw", raw).start().await.unwrap();
        api.wait(revision, fleet).await.unwrap();
        entrances.push(Entrance { fleet, listener: "http", address: proxy.http() });
        entrances.push(Entrance { fleet, listener: "raw", address: raw });
        proxies.push(proxy);
    }
    let entrances = Arc::new(entrances);
    let clients = (0..CLIENTS as u64)
        .map(|client| tokio::spawn(compare(api.clone(), entrances.to_vec(), seed.wrapping_add(client + 1))));
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for client in futures_util::future::join_all(clients).await {
        let found = client.unwrap().unwrap_or_else(|error| panic!("routes of seed {seed}: {error:#}"));
        for (outcome, count) in found {
            *outcomes.entry(outcome).or_default() += count;
        }
    }
    // All kinds of outcomes were among them. How many routes win depends on how much the best of them matches.
    let routes = outcomes.keys().filter(|outcome| outcome.starts_with("Route")).count();
    let has = |outcome: &str| outcomes.contains_key(outcome);
    assert!(routes >= 2 && has("Refused(400)") && has("Redirected"), "seed {seed}: {outcomes:?}");
}
