//! `grpc-json` between clients of JSON and a real gRPC server.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use signalbox_config::BlobId;
use signalbox_plugin::Blobs;
use signalbox_proxy::telemetry::access_log;

use crate::grpc::serve;
use crate::harness::{Answer, Client, Harness, Wire, block_on, forward_over, full, nobody};

/// The descriptor set of the test server.
fn set() -> Bytes {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins/testdata");
    let mut compiler = protox::Compiler::new([folder]).unwrap();
    compiler.include_imports(true).open_file("library.proto").unwrap();
    compiler.encode_file_descriptor_set().into()
}

fn start(document: &str, more: (&str, &str)) -> Harness {
    start_with_log(document, more, None)
}

/// A proxy with the plugin on its only route; `more` are further plugins of the route, with their names.
pub(crate) fn start_with_log(
    document: &str,
    more: (&str, &str),
    access_log: Option<access_log::Sender>,
) -> Harness {
    let id = BlobId::of(&set());
    let document = document.replace("name: all,", &format!("name: all, plugins: [json{}],", more.0));
    let plugins =
        format!("plugins: [{{name: json, type: grpc-json, config: {{descriptor_set: {id}}}}}{}]", more.1);
    Harness::with(&(document + &plugins), |settings| {
        settings.blobs = Blobs::new(Arc::new(move |asked| (asked == id).then(set)));
        settings.access_log = access_log;
    })
}

async fn call(client: &mut Client, method: Method, uri: &str, body: &str) -> Answer {
    let request = Request::builder().method(method).uri(uri).header("content-type", "application/json");
    client.send(request.body(full(body.to_owned())).unwrap()).await
}

#[test]
fn scripts_call_methods_by_their_rules() {
    block_on(async {
        let harness = start(&forward_over(Wire::Http2, serve().await), ("", ""));
        for wire in [Wire::Http1, Wire::Http2] {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (method, uri, body) in
                [(Method::GET, "/v1/echo/hello%20you", ""), (Method::POST, "/v1/echo", "\"hello you\"")]
            {
                let answer = call(&mut client, method, uri, body).await;
                assert_eq!((answer.status, answer.json()), (200, json!("hello you")), "{uri}");
                assert_eq!(answer.headers["content-type"], "application/json");
                assert!(answer.trailers.is_none());
                assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("grpc")));
            }
            let large = "x".repeat(300_000);
            let answer = call(&mut client, Method::POST, "/v1/echo", &format!("\"{large}\"")).await;
            assert_eq!(answer.json(), json!(large));
            let answer = call(&mut client, Method::GET, "/v1/split/one%20two", "").await;
            assert_eq!((answer.status, answer.text()), (200, "\"one\"\n\"two\"\n"));
            assert_eq!(answer.headers["content-type"], "application/x-ndjson");

            // The server answers with trailers alone.
            let answer = call(&mut client, Method::GET, "/v1/echo/fail", "").await;
            assert_eq!(answer.status, 400);
            assert_eq!(answer.json(), json!({"code": 9, "message": "100 % wrong: ä", "details": []}));
            let answer = call(&mut client, Method::POST, "/v1/echo", "{").await;
            assert_eq!((answer.status, &answer.json()["code"]), (400, &json!(3)));
            let answer = call(&mut client, Method::GET, "/v1/echo/x?other=1", "").await;
            assert!(answer.json()["message"].as_str().unwrap().contains("other"), "{:?}", answer.body);
        }
        // A stream that fails between its messages is not a whole one.
        let mut client = Client::connect(harness.address()).await;
        let request = Request::get("/v1/split/one%20fail").body(full("")).unwrap();
        let broken = client.start(request).await.unwrap();
        assert_eq!(broken.status(), 200);
        assert!(broken.into_body().collect().await.is_err());
    });
}

#[test]
fn a_failure_of_the_proxy_is_its_own_and_a_late_service_is_too() {
    block_on(async {
        let late =
            forward_over(Wire::Http2, serve().await).replace("{upstreams", "{timeout: 200ms, upstreams");
        for (document, status) in [(forward_over(Wire::Http2, nobody()), 503), (late, 504)] {
            let harness = start(&document, ("", ""));
            let mut client = Client::connect(harness.address()).await;
            let answer = call(&mut client, Method::GET, "/v1/echo/wait", "").await;
            assert_eq!(answer.status, status);
            assert_eq!(answer.headers["content-type"], "application/problem+json");
        }
    });
}

#[test]
fn json_is_compressed_and_grpc_is_not_touched() {
    block_on(async {
        let plugins = (", zip", ", {name: zip, type: compress}");
        let harness = start(&forward_over(Wire::Http2, serve().await), plugins);
        let mut client = Client::connect(harness.address()).await;
        let text = "word ".repeat(1000);
        let request = Request::post("/v1/echo").header("content-type", "application/json");
        let request = request.header("accept-encoding", "gzip").body(full(format!("\"{text}\""))).unwrap();
        let answer = client.send(request).await;
        assert_eq!(answer.headers["content-encoding"], "gzip");
        let mut unzipped = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&answer.body[..]), &mut unzipped)
            .unwrap();
        assert_eq!(serde_json::from_str::<Value>(&unzipped).unwrap(), json!(text));
        // An error is a whole answer of its own, whatever was planned for the response.
        let request = Request::get("/v1/echo/fail").header("accept-encoding", "gzip").body(full("")).unwrap();
        let answer = client.send(request).await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!(9)));
        // Calls of gRPC clients pass.
        let mut grpc = crate::grpc::client(harness.address()).await;
        assert_eq!(crate::grpc::echo(&mut grpc, &text).await.unwrap(), text);
    });
}
