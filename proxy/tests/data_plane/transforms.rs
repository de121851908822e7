//! `request-transform` and `response-transform` over a running proxy.

use std::io::Read as _;

use http::{Request, Response};
use serde_json::{Value, json};

use crate::harness::{AnyBody, Backend, Harness, Wire, block_on, full};
use crate::shaping::{ask, document, example};

/// A backend whose response is made of the request's headers: `x-status`, `x-type`, `x-encoding`, `x-body`.
fn backend() -> Backend {
    Backend::start(async |request: Request<hyper::body::Incoming>| {
        let wanted = |name: &str| Some(request.headers().get(name)?.to_str().unwrap().to_owned());
        let mut response = Response::builder()
            .status(wanted("x-status").map_or(200, |status| status.parse().unwrap()))
            .header("content-type", wanted("x-type").unwrap_or_else(|| "application/json".to_owned()))
            .header("server", "backend")
            .header("etag", "\"v1\"")
            .header("accept-ranges", "bytes")
            .header("x-range", if request.headers().contains_key("range") { "asked" } else { "none" });
        if let Some(encoding) = wanted("x-encoding") {
            response = response.header("content-encoding", encoding);
        }
        let body =
            wanted("x-body").unwrap_or_else(|| r#"{"user": {"name": "a", "password": "b"}}"#.to_owned());
        let is_empty = matches!(wanted("x-status").as_deref(), Some("204" | "304"));
        response.body(full(if is_empty { String::new() } else { body })).unwrap()
    })
}

#[test]
fn a_response_has_other_headers_and_another_body() {
    block_on(async {
        let backend = backend();
        let plugins = [
            ("headers", "response-transform", example("response-transform", 0)),
            ("body", "response-transform", example("response-transform", 1)),
            ("small", "response-transform", json!({"remove": {"body": ["user"]}, "max_body": "30B"})),
        ];
        let harness = Harness::start(&document(&backend, &plugins));
        for wire in Wire::BOTH {
            let get = async |path: &str, headers: &[(&str, &str)]| {
                ask(&harness, wire, "GET", path, headers, full("")).await
            };
            let answer = get("/headers", &[]).await;
            assert!(!answer.headers.contains_key("server"), "{wire:?}");
            assert_eq!(
                (&answer.headers["x-served-by"], &answer.headers["etag"]),
                (&"headers".parse().unwrap(), &"\"v1\"".parse().unwrap())
            );

            let answer = get("/body", &[("range", "bytes=0-3")]).await;
            assert_eq!(answer.text(), r#"{"user":{"name":"a"},"version":2}"#, "{wire:?}");
            assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
            assert_eq!(answer.headers["x-range"], "none");
            for gone in ["etag", "accept-ranges"] {
                assert!(!answer.headers.contains_key(gone), "{wire:?} {gone}");
            }
            // Neither the response to HEAD nor a 304 speaks of the bytes of the upstream.
            let head = ask(&harness, wire, "HEAD", "/body", &[], full("")).await;
            assert_eq!((head.status, head.text()), (200, ""));
            assert!(
                !head.headers.contains_key("content-length") && !head.headers.contains_key("etag"),
                "{wire:?}"
            );
            for status in ["204", "404"] {
                let answer = get("/body", &[("x-status", status), ("x-body", "not JSON")]).await;
                assert_eq!(answer.status.to_string(), status, "{wire:?}");
                assert_eq!(answer.headers["etag"], "\"v1\"", "{wire:?}");
            }
            let events = get("/body", &[("x-type", "text/event-stream"), ("x-body", "data: {}")]).await;
            assert_eq!(events.text(), "data: {}");
            for headers in [
                &[("x-encoding", "gzip"), ("x-body", "zipped")][..],
                &[("x-body", "not JSON")],
                &[("x-status", "206")],
            ] {
                let answer = get("/body", headers).await;
                assert_eq!(answer.status, 502, "{wire:?} {headers:?}");
                assert!(
                    !answer.text().contains("zipped") && !answer.text().contains("password"),
                    "{answer:?}"
                );
            }
            // It is too large.
            assert_eq!(get("/small", &[]).await.status, 502, "{wire:?}");
            assert_eq!(get("/small", &[("x-body", r#"{"user":1,"b":2}"#)]).await.text(), r#"{"b":2}"#);
        }
    });
}

#[test]
fn a_changed_body_is_compressed_afterwards() {
    block_on(async {
        let backend = backend();
        let plugins = [("body", "response-transform", example("response-transform", 1))];
        let document = document(&backend, &plugins)
            .replace("plugins: [body]", "plugins: [body, zip]")
            .replace("\nupstreams:", "\n- {name: zip, type: compress, config: {min_size: 1B}}\nupstreams:");
        let harness = Harness::start(&document);
        for wire in Wire::BOTH {
            let answer = ask(&harness, wire, "GET", "/body", &[("accept-encoding", "gzip")], full("")).await;
            assert_eq!(answer.headers["content-encoding"], "gzip", "{wire:?}");
            let mut text = String::new();
            flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut text).unwrap();
            assert_eq!(text, r#"{"user":{"name":"a"},"version":2}"#, "{wire:?}");
        }
    });
}

#[test]
fn a_request_takes_values_from_itself() {
    block_on(async {
        let backend = Backend::echo();
        let plugins = [
            ("plain", "request-transform", example("request-transform", 0)),
            ("made", "request-transform", example("request-transform", 1)),
        ];
        let harness = Harness::start(&document(&backend, &plugins));
        let json = ("content-type", "application/json");
        for wire in Wire::BOTH {
            let post = async |path: &str, headers: &[(&str, &str)], body: AnyBody| {
                ask(&harness, wire, "POST", path, headers, body).await.json()
            };
            let header = |told: &Value, name: &str| -> Vec<String> {
                let lines = told["headers"].as_array().unwrap().iter();
                lines
                    .filter(|line| line[0] == name)
                    .map(|line| line[1].as_str().unwrap().to_owned())
                    .collect()
            };
            let told = post(
                "/plain?trace=1&a=%20",
                &[json, ("x-debug", "1"), ("x-old", "o")],
                full("{\"a\": 1.10}"),
            )
            .await;
            assert_eq!(
                (told["target"].as_str(), told["body"].as_str()),
                (Some("/plain?a=%20"), Some(r#"{"a":1.10,"source":"gateway"}"#))
            );
            assert_eq!((header(&told, "x-debug"), header(&told, "x-new")), (vec![], vec!["o".to_owned()]));

            let body = r#"{"user":{"name":"a","password":"b"}}"#;
            let told = post("/made?tenant=t%31", &[json, ("x-tenant", "mine")], full(body)).await;
            assert_eq!(header(&told, "x-tenant"), ["t1"], "{wire:?}");
            assert_eq!(told["body"], r#"{"user":{"name":"a"},"meta":{"client":"127.0.0.1"}}"#, "{wire:?}");
            let told = post("/made", &[("x-tenant", "mine")], full(body)).await;
            assert_eq!(
                (header(&told, "x-tenant"), told["body"].as_str()),
                (vec!["none".to_owned()], Some(body))
            );
            // A line break cannot become a header.
            let told = post("/made?tenant=a%0d%0ax-admin:1", &[("x-tenant", "mine")], full("")).await;
            assert_eq!((header(&told, "x-tenant"), header(&told, "x-admin")), (vec![], vec![]));
        }
    });
}
