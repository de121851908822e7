//! The services as a proxy calls them: each call is checked, and begins what it asks for.

use std::sync::Arc;

use signalbox_proto::PROCESS_HEADER;
use tonic::Status;
use tracing::Instrument as _;

use super::admission::exhausted;
use super::grpc::Call;
use super::shared::Shared;
use super::stream::{self, Peer};
use super::token::authorize;
use super::{blobs, counts, purges, report, stats};

/// Serves a call to its end.
pub(super) async fn serve(shared: Arc<Shared>, call: Call) {
    match &*call.path {
        DELTA => discover(shared, call).await,
        REPORT => report::serve(&shared, call).await,
        COUNT => counts::serve(&shared, call).await,
        FETCH_BLOB => blobs::serve(&shared, call).await,
        PURGE => purges::serve(&shared, call).await,
        STATS => stats::serve(&shared, call).await,
        _ => call.refuse(Status::unimplemented("this control plane serves DeltaAggregatedResources alone")),
    }
}

/// The discovery service.
async fn discover(shared: Arc<Shared>, call: Call) {
    let peer = match check(&shared, &call) {
        Ok(peer) => peer,
        Err(status) => return call.refuse(status),
    };
    let encoding = peer.takes_zstd.then_some(ZSTD);
    let span = tracing::info_span!("xds", peer = %peer.address);
    // The client is gone if it cannot be answered.
    let Ok((inbound, outbound)) = call.open(MAX_REQUEST, encoding) else { return };
    let _counted = shared.tasks.token();
    stream::serve(Arc::clone(&shared), inbound, outbound, peer).instrument(span).await;
}

fn check(shared: &Shared, call: &Call) -> Result<Peer, Status> {
    let token = authorize(call, shared)?;
    if shared.tasks.len() >= MAX_STREAMS {
        return Err(exhausted("this control plane has all the streams it can take"));
    }
    if call.headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
        return Err(Status::unimplemented("requests must not be compressed"));
    }
    let (process, takes_zstd) = (process_of(call), takes_zstd(call));
    Ok(Peer { address: call.peer, token, process, takes_zstd })
}

/// The process of the proxy, as it says; empty: it says nothing that can be one.
fn process_of(call: &Call) -> Arc<str> {
    let text = call.header(PROCESS_HEADER).unwrap_or_default();
    let is_id = text.len() <= MAX_PROCESS && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_id { text.into() } else { "".into() }
}

/// True if the client decompresses zstd. Envoy does not.
fn takes_zstd(call: &Call) -> bool {
    let offers = call.headers.get_all("grpc-accept-encoding").iter();
    let mut offered = offers.filter_map(|offer| offer.to_str().ok()).flat_map(|offer| offer.split(','));
    offered.any(|encoding| encoding.trim() == ZSTD)
}

const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const REPORT: &str = "/signalbox.report.v1.ReportService/Report";
const COUNT: &str = "/signalbox.report.v1.ReportService/Count";
const FETCH_BLOB: &str = "/signalbox.report.v1.ReportService/FetchBlob";
const PURGE: &str = "/signalbox.report.v1.ReportService/Purge";
const STATS: &str = "/signalbox.report.v1.ReportService/Stats";

const ZSTD: &str = "zstd";

const MAX_PROCESS: usize = 64;

/// Streams to one control plane.
const MAX_STREAMS: usize = 20_000;

/// A request has names and versions, and no resources. A client that lists more than this is to present a marker.
const MAX_REQUEST: usize = 4 << 20;
