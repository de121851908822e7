//! `grpc-web` between clients as browsers are and a real gRPC server.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use prost::Message as _;

use crate::grpc::serve;
use crate::harness::{Answer, Client, Harness, Wire, block_on, forward_over, full, nobody};

const WEB: &str = "application/grpc-web+proto";
const WEB_TEXT: &str = "application/grpc-web-text";

fn with_plugin(document: &str) -> String {
    document.replace("name: all,", "name: all, plugins: [web],") + "plugins: [{name: web, type: grpc-web}]"
}

/// A message in its frame.
fn frame(text: &str) -> Vec<u8> {
    let message = text.to_owned().encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

/// The messages and the trailers of a body.
fn read(mut body: &[u8]) -> (Vec<String>, String) {
    let (mut messages, mut trailers) = (Vec::new(), String::new());
    while let [flag, a, b, c, d, rest @ ..] = body {
        let (content, others) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        match flag {
            0 => messages.push(String::decode(content).unwrap()),
            0x80 => trailers = String::from_utf8(content.to_vec()).unwrap(),
            other => panic!("a frame of the kind {other}"),
        }
        body = others;
        assert!(trailers.is_empty() || body.is_empty(), "the trailers are the last frame");
    }
    assert!(body.is_empty(), "{body:?}");
    (messages, trailers)
}

async fn call(client: &mut Client, method: &str, content_type: &str, body: Vec<u8>) -> Answer {
    let request = Request::post(format!("/test.Speaker/{method}")).header("content-type", content_type);
    client.send(request.body(full(body)).unwrap()).await
}

/// Decodes text whose parts are padded each.
fn decode_parts(text: &str) -> Vec<u8> {
    let groups = text.as_bytes().chunks(4);
    groups.flat_map(|group| STANDARD.decode(group).unwrap()).collect()
}

#[test]
fn browsers_call_services_in_both_forms_over_both_versions_of_http() {
    block_on(async {
        let harness = Harness::start(&with_plugin(&forward_over(Wire::Http2, serve().await)));
        for wire in [Wire::Http1, Wire::Http2] {
            let mut client = Client::speaking(wire, harness.address()).await;
            for text in ["hello".to_owned(), "x".repeat(300_000)] {
                let answer = call(&mut client, "Echo", WEB, frame(&text)).await;
                assert_eq!((answer.status, &answer.headers["content-type"]), (200, &WEB.parse().unwrap()));
                assert!(answer.trailers.is_none(), "browsers cannot read them");
                let (messages, trailers) = read(&answer.body);
                assert_eq!((messages, trailers.contains("grpc-status: 0\r\n")), (vec![text.clone()], true));

                let body = STANDARD.encode(frame(&text)).into_bytes();
                let answer = call(&mut client, "Echo", WEB_TEXT, body).await;
                assert_eq!(answer.headers["content-type"], "application/grpc-web-text");
                assert!(!answer.headers.contains_key("content-length"));
                let (messages, trailers) = read(&decode_parts(answer.text()));
                assert_eq!((messages, trailers.contains("grpc-status: 0\r\n")), (vec![text], true));
            }
            // The status follows messages.
            let answer = call(&mut client, "Split", WEB, frame("one two fail")).await;
            let (messages, trailers) = read(&answer.body);
            assert_eq!(messages, ["one", "two", "fail"]);
            assert!(trailers.contains("grpc-status: 15\r\n"), "{trailers}");
            assert!(trailers.contains("grpc-message: in%20the%20middle\r\n"), "{trailers}");
            // The response has only a head.
            let answer = call(&mut client, "Echo", WEB, frame("fail")).await;
            assert_eq!((answer.status, answer.body.len()), (200, 0));
            assert_eq!(answer.headers["grpc-status"], "9");
        }
    });
}

#[test]
fn failures_are_statuses_of_grpc_and_text_that_is_none_is_a_bad_request() {
    block_on(async {
        let server = serve().await;
        for (document, status) in [
            (forward_over(Wire::Http2, nobody()), "14"),
            (forward_over(Wire::Http2, server).replace("{upstreams", "{timeout: 200ms, upstreams"), "4"),
        ] {
            let harness = Harness::start(&with_plugin(&document));
            let mut client = Client::connect(harness.address()).await;
            let answer = call(&mut client, "Echo", WEB, frame("wait")).await;
            assert_eq!((answer.status, &answer.headers["content-type"]), (200, &WEB.parse().unwrap()));
            assert_eq!(answer.headers["grpc-status"], status, "{:?}", answer.headers);
            assert!(!answer.headers["grpc-message"].is_empty());
            assert!(answer.body.is_empty());
        }
        let harness = Harness::start(&with_plugin(&forward_over(Wire::Http2, server)));
        for wrong in ["AAAAA", "no*base64*at*all"] {
            let mut client = Client::connect(harness.address()).await;
            let answer = call(&mut client, "Echo", WEB_TEXT, wrong.as_bytes().to_vec()).await;
            assert_eq!(answer.status, 400, "{wrong}: {:?}", answer.body);
        }
    });
}
