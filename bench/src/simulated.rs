//! Simulated proxies: each has a TCP connection and its streams, as a proxy does, and applies nothing. They are light, so that
//! ten thousand of them leave the processor to the control plane.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, RecvStream, SendStream};
use http::{Request, StatusCode};
use prost::Message;
use signalbox_proto::envoy::config::core::v3::Node;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use signalbox_proto::signalbox::config::v1::{Resource, Revision, resource::Kind};
use signalbox_proto::signalbox::report::v1::traffic_series::Scope;
use signalbox_proto::signalbox::report::v1::{ProxyReport, StatsReport, StatsRequest, TrafficSeries};
use signalbox_proto::{MARKER_NAME, NODE_HEADER, RESOURCE_TYPE_URL};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

/// How a simulated proxy behaves.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// The xDS address of its control plane.
    pub address: SocketAddr,
    /// The token that it presents.
    pub token: Arc<str>,
    /// Offers zstd.
    pub zstd: bool,
    /// Sends a report as soon as a revision is served, beside those every two seconds.
    pub report_each: bool,
    /// Opens the stream of counts, too.
    pub counts: bool,
    /// Opens the stream of traffic, too, and reports so many series in each report; 0: it does not open it.
    pub series: usize,
}

/// A proxy has acknowledged a revision.
#[derive(Debug, Clone, Copy)]
pub struct Acked {
    /// The revision that it had before.
    pub before: u64,
    /// The revision.
    pub revision: u64,
    /// When.
    pub at: Instant,
}

/// Runs the proxy of this number until its connection or a stream ends, which is an error, as it is when the control plane says
/// nothing for as long as a real proxy allows.
pub async fn run(number: usize, behaviour: Behaviour, acked: UnboundedSender<Acked>) -> Result<()> {
    let id = format!("simulated-{number}");
    let tcp = TcpStream::connect(behaviour.address).await.context("no connection")?;
    tcp.set_nodelay(true)?;
    let (client, mut connection) =
        h2::client::Builder::new().initial_window_size(WINDOW).handshake::<_, Bytes>(tcp).await?;
    let mut pings = connection.ping_pong().context("the pings are not taken yet")?;
    let _connection = AbortOnDrop(tokio::spawn(async move { drop(connection.await) }));
    let mut client = client.ready().await?;
    let (response, mut requests) = open(&mut client, &behaviour, DISCOVERY, &id)?;
    requests.send_data(grpc(&first_request(&id)), false)?;
    let response = response.await?;
    ensure!(response.status() == StatusCode::OK, "{}", response.status());
    let mut responses = response.into_body();
    let (_report, mut reports) = open(&mut client, &behaviour, REPORT, &id)?;
    let _counts = match behaviour.counts {
        true => {
            let (response, requests) = open(&mut client, &behaviour, COUNT, &id)?;
            Some((response.await?, requests))
        }
        false => None,
    };
    let series = (behaviour.series > 0).then(|| open(&mut client, &behaviour, STATS, &id)).transpose()?;
    let traffic = report_traffic(series, behaviour.series);
    tokio::pin!(traffic);
    // Their phases differ, as those of real proxies do.
    let first = Instant::now() + REPORT_INTERVAL.mul_f64(fastrand::f64());
    let mut interval = tokio::time::interval_at(first, REPORT_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut pinged = false;
    let mut messages = Messages::default();
    let mut served = 0;
    loop {
        tokio::select! {
            data = responses.data() => {
                let Some(data) = data else { bail!("the control plane ended the stream: {:?}", responses.trailers().await) };
                let data = data?;
                release(&mut responses, data.len())?;
                heard = Instant::now();
                messages.buffer.extend_from_slice(&data);
                while let Some(message) = messages.next(number)? {
                    let nonce = message.nonce;
                    let type_url = RESOURCE_TYPE_URL.to_owned();
                    let ack = DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..Default::default() };
                    requests.send_data(grpc(&ack), false)?;
                    if let Some(revision) = message.revision {
                        let acknowledged = Acked { before: served, revision, at: Instant::now() };
                        served = revision;
                        acked.send(acknowledged).ok().context("nobody counts")?;
                        if behaviour.report_each {
                            reports.send_data(grpc(&report(&id, served)), false)?;
                        }
                    }
                }
            }
            _ = interval.tick() => {
                reports.send_data(grpc(&report(&id, served)), false)?;
                let silent = heard.elapsed();
                ensure!(silent < SILENCE, "the control plane is silent");
                if silent >= PING_AFTER && !pinged {
                    pings.send_ping(Ping::opaque())?;
                    pinged = true;
                }
            }
            ended = &mut traffic => return ended,
            pong = poll_fn(|cx| pings.poll_pong(cx)), if pinged => {
                pong?;
                (heard, pinged) = (Instant::now(), false);
            }
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn open(
    client: &mut SendRequest<Bytes>,
    behaviour: &Behaviour,
    path: &str,
    id: &str,
) -> Result<(ResponseFuture, SendStream<Bytes>)> {
    let mut request = Request::post(format!("http://{}{path}", behaviour.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", behaviour.token))
        .header(NODE_HEADER, id);
    if behaviour.zstd {
        request = request.header("grpc-accept-encoding", "zstd,identity");
    }
    Ok(client.send_request(request.body(())?, false)?)
}

fn release(stream: &mut RecvStream, length: usize) -> Result<()> {
    Ok(stream.flow_control().release_capacity(length)?)
}

fn first_request(id: &str) -> DeltaDiscoveryRequest {
    let node = Node {
        id: id.to_owned(),
        cluster: "default".to_owned(),
        user_agent_name: "signalbox-proxy".to_owned(),
        ..Node::default()
    };
    DeltaDiscoveryRequest {
        node: Some(node),
        type_url: RESOURCE_TYPE_URL.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    }
}

fn report(id: &str, revision: u64) -> ProxyReport {
    ProxyReport { node_id: id.to_owned(), revision, ..ProxyReport::default() }
}

/// Reports the traffic of `series` routes, as often as the control plane wants it. It waits for ever if there is no stream.
async fn report_traffic(stream: Option<(ResponseFuture, SendStream<Bytes>)>, series: usize) -> Result<()> {
    let Some((response, mut reports)) = stream else { return std::future::pending().await };
    let mut answers = response.await?.into_body();
    let mut buffer = BytesMut::new();
    let boot = fastrand::u64(..);
    let mut length = Duration::ZERO;
    for number in 0_u64.. {
        // The first answer asks, and each of the others has taken a report.
        let (is_compressed, answer) = loop {
            if let Some(message) = take_message(&mut buffer) {
                break message;
            }
            let data = answers.data().await.context("the control plane ended the stream of traffic")??;
            release(&mut answers, data.len())?;
            buffer.extend_from_slice(&data);
        };
        ensure!(!is_compressed, "an answer about traffic is compressed");
        let answer = StatsRequest::decode(answer)?;
        ensure!(answer.taken == number || number == 0, "report {number} was not taken: {answer:?}");
        let interval = Duration::from_millis(answer.interval_ms.into());
        // Their phases differ.
        length = if number == 0 { interval.mul_f64(fastrand::f64()) } else { length.max(interval) };
        tokio::time::sleep(length).await;
        let report = StatsReport {
            boot,
            number: number + 1,
            length_ms: length.as_millis() as u64,
            series: (0..series).map(traffic_of).collect(),
            ..StatsReport::default()
        };
        reports.send_data(grpc(&report), false)?;
    }
    Ok(())
}

/// The traffic of a route in a report, with latencies between one and thirty milliseconds.
fn traffic_of(index: usize) -> TrafficSeries {
    let buckets: Vec<u32> = (80..120).step_by(3).collect();
    let bucket_counts: Vec<u64> = buckets.iter().map(|_| fastrand::u64(1..100)).collect();
    TrafficSeries {
        scope: Scope::Route.into(),
        name: format!("r-{index}"),
        succeeded: bucket_counts.iter().sum(),
        bytes_in: fastrand::u64(1..1 << 20),
        bytes_out: fastrand::u64(1..1 << 24),
        buckets,
        bucket_counts,
        ..TrafficSeries::default()
    }
}

/// Takes a whole gRPC message out of what has come, and says whether it is compressed; `None`: more has to come.
fn take_message(buffer: &mut BytesMut) -> Option<(bool, Bytes)> {
    let (prefix, rest) = buffer.split_first_chunk::<PREFIX>()?;
    let [compressed, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if rest.len() < length {
        return None;
    }
    buffer.advance(PREFIX);
    Some((compressed != 0, buffer.split_to(length).freeze()))
}

/// A gRPC message.
fn grpc(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    bytes.put(message.encode_to_vec().as_slice());
    bytes.freeze()
}

/// The responses of a stream.
#[derive(Default)]
struct Messages {
    buffer: BytesMut,
    /// How many resources have come, where they are counted.
    resources: usize,
}

/// A response's nonce, and the number of the revision that it completes.
struct Received {
    nonce: String,
    revision: Option<u64>,
}

impl Messages {
    fn next(&mut self, number: usize) -> Result<Option<Received>> {
        let Some((is_compressed, content)) = take_message(&mut self.buffer) else { return Ok(None) };
        if self.buffer.is_empty() {
            // An idle proxy holds no buffer.
            self.buffer = BytesMut::new();
        }
        let counts = number.is_multiple_of(COUNTED);
        let response = match (is_compressed, counts) {
            (false, _) => DeltaDiscoveryResponse::decode(content)?,
            (_, true) => DeltaDiscoveryResponse::decode(zstd::stream::decode_all(&*content)?.as_slice())?,
            // Decompressing everything would cost this process more than it costs the control plane to send it.
            (_, false) => DeltaDiscoveryResponse::decode(stored_end(&content)?)?,
        };
        self.resources += response.resources.len();
        let marker = marker(&response)?;
        if let Some(marker) = &marker {
            // The marker is a resource, too.
            let came = self.resources - 1;
            ensure!(
                !counts || !marker.full || came as u64 == marker.resource_count,
                "{came} resources instead of {}",
                marker.resource_count
            );
            self.resources = 0;
        }
        Ok(Some(Received { nonce: response.nonce, revision: marker.map(|marker| marker.number) }))
    }
}

/// The revision that a response completes.
fn marker(response: &DeltaDiscoveryResponse) -> Result<Option<Revision>> {
    let Some(found) = response.resources.iter().find(|resource| resource.name == MARKER_NAME) else {
        return Ok(None);
    };
    let any = found.resource.as_ref().context("a marker without content")?;
    match Resource::decode(&*any.value)?.kind {
        Some(Kind::Revision(revision)) => Ok(Some(revision)),
        other => bail!("not a marker: {other:?}"),
    }
}

/// The content of the last zstd frame, which is not compressed. RFC 8878, section 3.1.1.
fn stored_end(mut frames: &[u8]) -> Result<&[u8]> {
    loop {
        let (head, rest) = frames.split_at_checked(5).context("no frame")?;
        let descriptor = *head.last().context("no descriptor")?;
        let single = descriptor & 1 << 5 != 0;
        let length = match descriptor >> 6 {
            0 => usize::from(single),
            bits => 1 << bits,
        };
        ensure!(descriptor & 3 == 0, "a dictionary");
        let mut rest = rest.get(length + usize::from(!single)..).context("a short header")?;
        let content = loop {
            let ([a, b, c], block) = rest.split_first_chunk::<3>().context("no block")?;
            let header = u32::from_le_bytes([*a, *b, *c, 0]);
            let size = match header >> 1 & 3 {
                1 => 1,
                _ => (header >> 3) as usize,
            };
            let (content, after) = block.split_at_checked(size).context("a short block")?;
            rest = after;
            if header & 1 == 1 {
                break content;
            }
        };
        if descriptor & 1 << 2 != 0 {
            rest = rest.get(4..).context("no checksum")?;
        }
        if rest.is_empty() {
            return Ok(content);
        }
        frames = rest;
    }
}

const DISCOVERY: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const REPORT: &str = "/signalbox.report.v1.ReportService/Report";
const COUNT: &str = "/signalbox.report.v1.ReportService/Count";
const STATS: &str = "/signalbox.report.v1.ReportService/Stats";

/// The length of a gRPC message's prefix.
const PREFIX: usize = 5;

/// One proxy in so many decompresses all, and counts what it got.
const COUNTED: usize = 500;

/// Bytes of a stream that may be on their way; as hyper has it.
const WINDOW: u32 = 2 << 20;

const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// As a proxy: `proxy/src/source/connect.rs`.
const PING_AFTER: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_concatenated_frames_is_found() {
        let stored = b"\x28\xb5\x2f\xfd\x20\x03\x19\0\0end";
        assert_eq!(stored_end(stored).unwrap(), b"end");
        for length in [1, 1000, 300_000] {
            let text: Vec<u8> = (0..length).map(|index: u64| (index * index % 251) as u8).collect();
            let frames = [zstd::bulk::compress(&text, 3).unwrap(), stored.to_vec()].concat();
            assert_eq!(stored_end(&frames).unwrap(), b"end", "{length}");
            assert!(stored_end(&frames[..frames.len() - 1]).is_err());
        }
    }
}
