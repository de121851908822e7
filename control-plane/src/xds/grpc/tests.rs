use std::time::Duration;

use h2::client;
use tokio::io::DuplexStream;

use super::*;

/// A message with one field of bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(bytes = "vec", tag = "1")]
    content: Vec<u8>,
}

/// A client's side of a call.
struct Client {
    requests: SendStream<Bytes>,
    responses: RecvStream,
    _sender: client::SendRequest<Bytes>,
}

/// A call over a connection in memory, whose client may receive `window` bytes of it.
async fn call(limit: usize, window: u32) -> (Client, Inbound<Text>, Outbound) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (sender, connection) = client::Builder::new()
        .initial_window_size(window)
        .handshake::<DuplexStream, Bytes>(near)
        .await
        .unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let server = async {
        let mut server = h2::server::handshake(far).await.unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        let opened = Call::new(request, respond, ([127, 0, 0, 1], 1).into()).open(limit, None).unwrap();
        tokio::spawn(async move { while let Some(Ok(_)) = server.accept().await {} });
        opened
    };
    let client = async {
        let mut sender = sender.ready().await.unwrap();
        let request = http::Request::post("http://a/b").body(()).unwrap();
        let (response, requests) = sender.send_request(request, false).unwrap();
        Client { requests, responses: response.await.unwrap().into_body(), _sender: sender }
    };
    let (client, (inbound, outbound)) = tokio::join!(client, server);
    (client, inbound, outbound)
}

fn encoded(content: &[u8]) -> Bytes {
    let parts = Message::of(&Text { content: content.to_vec() }).into_parts();
    parts.iter().rev().flat_map(|part| part.iter().copied()).collect()
}

fn message(shared: &'static [u8], end: &'static [u8]) -> Message {
    Message { shared: Bytes::from_static(shared), end: Bytes::from_static(end), compressed: false }
}

#[test]
fn a_small_message_is_one_piece_with_its_flag() {
    let parts = |message: Message| message.into_parts();
    assert_eq!(parts(message(b"ab", b"c")), [&b"\0\0\0\0\x03abc"[..]]);
    assert_eq!(parts(Message { compressed: true, ..message(b"", b"d") }), [&b"\x01\0\0\0\x01d"[..]]);
}

#[test]
fn the_bytes_of_a_large_message_are_not_copied() {
    static LARGE: [u8; COPIED] = [7; COPIED];
    let parts = message(&LARGE, b"end").into_parts();
    assert_eq!(parts, [&b"end"[..], &LARGE[..], b"\0\0\0\x10\x03"]);
    assert_eq!(parts[1].as_ptr(), LARGE.as_ptr());
}

#[tokio::test]
async fn messages_are_read_however_they_are_cut_into_frames() {
    // Not more frames than h2 takes for an attack.
    let contents = [&b"first"[..], b"", &[7; 100]];
    let all: Vec<u8> = contents.iter().flat_map(|content| encoded(content)).collect();
    for size in [1, 4, 7, 100, all.len()] {
        let (mut client, mut inbound, _outbound) = call(1 << 20, 1 << 16).await;
        let chunks: Vec<_> = all.chunks(size).map(Bytes::copy_from_slice).collect();
        tokio::spawn(async move {
            for chunk in chunks {
                client.requests.send_data(chunk, false).unwrap();
            }
            client.requests.send_data(Bytes::new(), true).unwrap();
            client.responses.data().await
        });
        for content in contents {
            assert_eq!(inbound.message().await.unwrap().unwrap().content, content, "{size}");
        }
        assert!(inbound.message().await.unwrap().is_none(), "{size}");
    }
}

#[tokio::test]
async fn what_is_no_message_ends_the_stream() {
    let truncated = encoded(b"first").slice(..6);
    for (sent, code) in [
        (Bytes::from_static(b"\0\0\0\0\x0b"), tonic::Code::OutOfRange),
        (Bytes::from_static(b"\x01\0\0\0\0"), tonic::Code::Unimplemented),
        (Bytes::from_static(b"\0\0\0\0\x01\xff"), tonic::Code::Internal),
        (truncated, tonic::Code::Internal),
    ] {
        let (mut client, mut inbound, _outbound) = call(10, 1 << 16).await;
        client.requests.send_data(sent.clone(), true).unwrap();
        assert_eq!(inbound.message().await.unwrap_err().code(), code, "{sent:?}");
    }
}

#[tokio::test]
async fn a_message_waits_for_the_client_to_read() {
    static LARGE: [u8; 100_000] = [7; 100_000];
    let (mut client, _inbound, mut outbound) = call(10, 1 << 15).await;
    outbound.begin(message(&LARGE, b"end")).unwrap();
    assert!(outbound.is_busy());
    let mut read = 0;
    let reading = async {
        while let Some(data) = client.responses.data().await {
            let data = data.unwrap();
            read += data.len();
            client.responses.flow_control().release_capacity(data.len()).unwrap();
        }
        client.responses.trailers().await.unwrap().unwrap()
    };
    let writing = async {
        outbound.written().await.unwrap();
        outbound.end(&Status::unavailable("it shuts down"));
    };
    let both = async { tokio::join!(reading, writing).0 };
    let trailers = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    assert_eq!(read, PREFIX + LARGE.len() + 3);
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"14".parse().unwrap(), &"it%20shuts%20down".parse().unwrap())
    );
}

#[tokio::test]
async fn a_stream_that_ends_in_a_message_is_reset() {
    let (mut client, _inbound, mut outbound) = call(10, 10).await;
    outbound.begin(message(b"more than ten bytes", b"")).unwrap();
    outbound.end(&Status::unavailable("it shuts down"));
    let ended = async {
        loop {
            match client.responses.data().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    assert_eq!(ended.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
}
