//! The data of a request that the access log shows.

use std::time::Duration;

/// The logged data of a request, but for its head. An empty text stands for an absent value.
#[derive(Default)]
pub struct Entry<'a> {
    /// The time at which its head was complete, since 1970.
    pub time: Duration,
    pub request_id: &'a [u8],
    pub trace_id: &'a [u8],
    /// The id of the request's span, if that is exported.
    pub span_id: &'a [u8],
    pub client: &'a [u8],
    pub status: u16,
    pub flags: &'a str,
    /// The status of a gRPC call, as far as it is known.
    pub grpc_status: Option<u8>,
    pub route: &'a str,
    pub upstream: &'a str,
    /// The reason why the target did not answer.
    pub upstream_error: &'a str,
    pub target: &'a str,
    pub attempts: u8,
    pub duration: Duration,
    pub upstream_duration: Option<Duration>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub consumer: &'a str,
    /// The plugin that answered or failed.
    pub plugin: &'a str,
    /// The answers that plugins in shadow would have given. The field is left out where this is empty.
    pub shadow: &'a str,
    pub revision: u64,
}
