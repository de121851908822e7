//! Calls that plugins translate to gRPC: their statuses count for the targets as those of clients that speak gRPC.

use http::Request;
use http_body_util::BodyExt as _;
use signalbox_proxy::telemetry::access_log;

use crate::blame::{STRICT, grpc};
use crate::grpc_json;
use crate::harness::{AnyBody, Client, Harness, block_on, full, until};
use crate::resilience::document;
use crate::telling::{lines, metrics};

/// The plugins that make gRPC calls of other requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Translator {
    Json,
    Web,
}

impl Translator {
    const ALL: [Self; 2] = [Self::Json, Self::Web];

    /// A proxy that has the plugin on the only route of `document`.
    fn start(self, document: &str, log: Option<access_log::Sender>) -> Harness {
        match self {
            Self::Json => grpc_json::start_with_log(document, ("", ""), log),
            Self::Web => {
                let document = document.replace("name: all,", "name: all, plugins: [web],");
                Harness::with_log(&(document + "plugins: [{name: web, type: grpc-web}]"), log)
            }
        }
    }

    /// A call with this deadline, as a client of the plugin makes it.
    fn call(self, timeout: Option<&str>) -> Request<AnyBody> {
        let request = match self {
            Self::Json => Request::get("/v1/echo/x").header("content-type", "application/json"),
            Self::Web => Request::post("/test.Speaker/Echo").header("content-type", "application/grpc-web"),
        };
        let request = timeout.iter().fold(request, |request, limit| request.header("grpc-timeout", *limit));
        let body = if self == Self::Web { &b"\0\0\0\0\0"[..] } else { b"" };
        request.body(full(body)).unwrap()
    }
}

#[test]
fn how_a_translated_call_ends_counts_for_its_target() {
    block_on(async {
        for translator in Translator::ALL {
            for (status, message, timeout, class, is_blamed) in [
                ("14", false, None, "5xx", true),
                ("14", true, None, "5xx", true),
                ("0", true, None, "2xx", false),
                ("5", false, None, "4xx", false),
                ("4", false, None, "5xx", true),
                // The target has got the deadline of the client.
                ("4", false, Some("5S"), "5xx", false),
            ] {
                for fields in STRICT {
                    // A circuit breaker does not wait for the body.
                    let is_blamed = is_blamed && !(message && fields == STRICT[1]);
                    let backend = grpc(status, message);
                    let fields = format!(", protocol: http2{fields}");
                    let harness = translator.start(&document(&[backend.address], &fields, ""), None);
                    let case = format!("{translator:?} {status} {message} {timeout:?} {fields}");
                    for _ in 0..3 {
                        let mut client = Client::connect(harness.address()).await;
                        let answer = client.start(translator.call(timeout)).await.unwrap();
                        // JSON that fails behind its first message is broken off.
                        let _ = answer.into_body().collect().await;
                    }
                    let counted = |line: &&str| {
                        line.starts_with("signalbox_requests_total{listener=\"http\",route=\"all\",")
                            && line.contains(&format!("code_class=\"{class}\""))
                            && line.ends_with(" 3")
                    };
                    until(&case, || metrics(&harness).lines().any(|line| counted(&line))).await;
                    let ejected =
                        || metrics(&harness).contains("signalbox_upstream_healthy_targets{upstream=\"u\"} 0");
                    let open =
                        || metrics(&harness).contains("signalbox_upstream_breaker_state{upstream=\"u\"} 2");
                    if is_blamed {
                        until(&case, || ejected() || open()).await;
                    } else {
                        assert!(!ejected() && !open(), "{case}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_translated_call_is_sent_again_and_both_targets_are_judged() {
    block_on(async {
        let passive = STRICT[0];
        for translator in Translator::ALL {
            let (bad, good) = (grpc("14", false), grpc("0", true));
            let fields = format!(", protocol: http2{passive}");
            let retry = ", retry: {attempts: 1, on: [unavailable], budget: 1}";
            let document = document(&[bad.address, good.address], &fields, retry);
            let harness = translator.start(&document, None);
            let mut client = Client::connect(harness.address()).await;
            let is_ejected =
                || metrics(&harness).contains("signalbox_upstream_healthy_targets{upstream=\"u\"} 1");
            let mut sent = 0;
            while !is_ejected() {
                assert!(sent < 1000, "{translator:?}: the bad target is not ejected");
                sent += 1;
                let answer = client.send(translator.call(None)).await;
                assert_eq!(answer.status, 200, "{translator:?}");
                assert!(!answer.headers.contains_key("grpc-status"), "{translator:?}: {:?}", answer.headers);
            }
        }
    });
}

#[test]
fn the_log_has_the_status_that_the_target_gave() {
    block_on(async {
        for (translator, status) in [(Translator::Json, 503), (Translator::Web, 200)] {
            let backend = grpc("14", false);
            let (sender, receiver) = access_log::channel(1000);
            let document = document(&[backend.address], ", protocol: http2", "");
            let harness = translator.start(&document, Some(sender));
            let answer = Client::connect(harness.address()).await.send(translator.call(None)).await;
            assert_eq!(answer.status, status);
            let line = lines(&receiver, 1).await.remove(0);
            assert_eq!((&line["status"], &line["grpc_status"]), (&status.into(), &14.into()), "{line}");
        }
    });
}
