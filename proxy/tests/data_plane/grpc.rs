//! gRPC with a real server and a real client (tonic), and the local replies for it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Request;
use http::uri::PathAndQuery;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::harness::{Backend, Client, Harness, Wire, block_on, forward_over, full, nobody};

type Words = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;
type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A service with a method of each kind; messages are `google.protobuf.StringValue`.
#[derive(Clone)]
struct Speaker;

impl tonic::server::NamedService for Speaker {
    const NAME: &'static str = "test.Speaker";
}

impl Service<Request<Body>> for Speaker {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Later<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/test.Speaker/Echo" => grpc.unary(Echo, request).await,
                "/test.Speaker/Split" => grpc.server_streaming(Split, request).await,
                "/test.Speaker/Join" => grpc.client_streaming(Join, request).await,
                "/test.Speaker/Talk" => grpc.streaming(Talk, request).await,
                other => panic!("{other}"),
            })
        })
    }
}

macro_rules! method {
    ($name:ident, $from:ty => $to:ty, $answer:expr) => {
        #[derive(Clone)]
        struct $name;

        impl Service<tonic::Request<$from>> for $name {
            type Response = Response<$to>;
            type Error = Status;
            type Future = Later<Result<Self::Response, Status>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: tonic::Request<$from>) -> Self::Future {
                Box::pin($answer(request))
            }
        }
    };
}

method!(Echo, String => String, async |request: tonic::Request<String>| {
    match request.get_ref().as_str() {
        "fail" => Err(Status::failed_precondition("100 % wrong: \u{e4}")),
        "wait" => std::future::pending().await,
        _ => Ok(Response::new(request.into_inner())),
    }
});

fn words(text: &str) -> Vec<Result<String, Status>> {
    text.split(' ').map(|word| Ok(word.to_owned())).collect()
}

method!(Split, String => Words, async |request: tonic::Request<String>| {
    let mut words = words(request.get_ref());
    if request.get_ref().ends_with("fail") {
        words.push(Err(Status::data_loss("in the middle")));
    }
    Ok(Response::new(Box::pin(tokio_stream::iter(words)) as Words))
});

method!(Join, Streaming<String> => String, async |request: tonic::Request<Streaming<String>>| {
    let words: Vec<String> = request.into_inner().collect::<Result<_, _>>().await?;
    Ok(Response::new(words.join(" ")))
});

method!(Talk, Streaming<String> => Words, async |request: tonic::Request<Streaming<String>>| {
    let answers = request.into_inner().map(|word| word.map(|word| word.to_uppercase()));
    Ok(Response::new(Box::pin(answers) as Words))
});

pub(crate) async fn serve() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(Speaker);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

pub(crate) async fn client(address: SocketAddr) -> Grpc<Channel> {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    grpc
}

fn method(name: &str) -> PathAndQuery {
    format!("/test.Speaker/{name}").parse().unwrap()
}

fn codec() -> ProstCodec<String, String> {
    ProstCodec::default()
}

pub(crate) async fn echo(grpc: &mut Grpc<Channel>, text: &str) -> Result<String, Status> {
    grpc.ready().await.unwrap();
    let request = tonic::Request::new(text.to_owned());
    grpc.unary(request, method("Echo"), codec()).await.map(Response::into_inner)
}

#[test]
fn calls_of_all_kinds_pass() {
    block_on(async {
        let harness = Harness::start(&forward_over(Wire::Http2, serve().await));
        let mut grpc = client(harness.address()).await;
        for text in ["hello".to_owned(), "x".repeat(2 << 20)] {
            assert_eq!(echo(&mut grpc, &text).await.unwrap(), text);
        }
        // The response has only trailers, with a message that is not ASCII.
        let status = echo(&mut grpc, "fail").await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "100 % wrong: \u{e4}"));

        grpc.ready().await.unwrap();
        let request = tonic::Request::new("one two three".to_owned());
        let answer = grpc.server_streaming(request, method("Split"), codec()).await.unwrap();
        let got: Vec<String> = answer.into_inner().collect::<Result<_, _>>().await.unwrap();
        assert_eq!(got, ["one", "two", "three"]);
        // The status follows messages.
        grpc.ready().await.unwrap();
        let request = tonic::Request::new("one fail".to_owned());
        let answer = grpc.server_streaming(request, method("Split"), codec()).await.unwrap();
        let got: Vec<Result<String, Status>> = answer.into_inner().collect().await;
        assert_eq!(got.len(), 3);
        assert_eq!(got[2].as_ref().unwrap_err().code(), Code::DataLoss);

        grpc.ready().await.unwrap();
        let said = tokio_stream::iter(["a", "b", "c"].map(str::to_owned));
        let answer = grpc.client_streaming(tonic::Request::new(said), method("Join"), codec()).await.unwrap();
        assert_eq!(answer.into_inner(), "a b c");

        grpc.ready().await.unwrap();
        let (say, said) = tokio::sync::mpsc::channel(1);
        let said = tonic::Request::new(ReceiverStream::new(said));
        say.send("first".to_owned()).await.unwrap();
        let mut heard = grpc.streaming(said, method("Talk"), codec()).await.unwrap().into_inner();
        assert_eq!(heard.message().await.unwrap().unwrap(), "FIRST");
        for turn in 0..20 {
            say.send(format!("turn {turn}")).await.unwrap();
            assert_eq!(heard.message().await.unwrap().unwrap(), format!("TURN {turn}"));
        }
        drop(say);
        assert_eq!(heard.message().await.unwrap(), None);
    });
}

#[test]
fn a_call_whose_time_is_over_between_its_messages_is_told_so() {
    block_on(async {
        let document = forward_over(Wire::Http2, serve().await);
        for limit in ["timeout: 2s", "timeout: 0s, idle_timeout: 2s"] {
            let document = document.replace("{upstreams", &format!("{{{limit}, upstreams"));
            let harness = Harness::start(&document);
            let mut grpc = client(harness.address()).await;
            grpc.ready().await.unwrap();
            let (say, said) = tokio::sync::mpsc::channel(1);
            say.send("first".to_owned()).await.unwrap();
            let said = tonic::Request::new(ReceiverStream::new(said));
            let mut heard = grpc.streaming(said, method("Talk"), codec()).await.unwrap().into_inner();
            assert_eq!(heard.message().await.unwrap().unwrap(), "FIRST");
            let status = heard.message().await.unwrap_err();
            assert_eq!(status.code(), Code::DeadlineExceeded, "{limit}: {status:?}");
        }
    });
}

#[test]
fn what_the_proxy_says_itself_is_a_status_of_grpc() {
    block_on(async {
        let server = serve().await;
        let forward = |address: SocketAddr| forward_over(Wire::Http2, address);
        let key = |document: String| {
            document.replace("name: all,", "name: all, plugins: [key],")
                + "plugins: [{name: key, type: key-auth}]"
        };
        for (case, document, text, code, message) in [
            ("no route", "{}".to_owned(), "x", Code::Unimplemented, "No route matches this request."),
            ("no target", forward(nobody()), "x", Code::Unavailable, "The service cannot be reached."),
            (
                "late",
                forward(server).replace("{upstreams", "{timeout: 200ms, upstreams"),
                "wait",
                Code::DeadlineExceeded,
                "The service did not answer in time.",
            ),
            ("no key", key(forward(server)), "x", Code::Unauthenticated, ""),
            (
                "breaker",
                forward(nobody()).replace(
                    "{name: u, ",
                    "{name: u, circuit_breaker: {error_rate: {min_requests: 1, fallback: {body: instead}}}, ",
                ),
                "x",
                Code::Unavailable,
                "",
            ),
            (
                "own answer",
                "routes: [{name: r, respond: {status: 403, body: no}}]".to_owned(),
                "x",
                Code::PermissionDenied,
                "Forbidden",
            ),
            (
                "no gRPC",
                forward_over(Wire::Http1, Backend::raw(|_| async {}).address),
                "x",
                Code::Unavailable,
                "The service failed to respond.",
            ),
        ] {
            let harness = Harness::start(&document);
            let mut client = client(harness.address()).await;
            if case == "breaker" {
                // The failure opens the breaker.
                echo(&mut client, text).await.unwrap_err();
            }
            let status = echo(&mut client, text).await.unwrap_err();
            assert_eq!(status.code(), code, "{case}: {status:?}");
            assert!(message.is_empty() || status.message() == message, "{case}: {status:?}");
        }
        // Other clients get a response that they understand.
        let harness = Harness::start("{}");
        let mut client = Client::connect_http2(harness.address()).await;
        for (content_type, te, status) in [
            ("application/grpc", "trailers", 200),
            ("application/grpc+proto", "trailers", 200),
            ("application/grpc-web", "trailers", 404),
            ("application/json", "trailers", 404),
        ] {
            let request = Request::post("/").header("content-type", content_type).header("te", te);
            let answer = client.send(request.body(full("")).unwrap()).await;
            assert_eq!((answer.status, answer.body.is_empty()), (status, status == 200), "{content_type}");
        }
    });
}
