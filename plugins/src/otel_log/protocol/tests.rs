//! Reads what was written by the messages of OpenTelemetry.

use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, Uri, Version};
use prost::Message as _;

use super::*;
use crate::log_sink::SelectionSpec;

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_logs: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_logs: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeLogs {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    log_records: Vec<Record>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(fixed64, tag = "1")]
    time: u64,
    #[prost(int32, tag = "2")]
    severity_number: i32,
    #[prost(string, tag = "3")]
    severity_text: String,
    #[prost(message, optional, tag = "5")]
    body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    attributes: Vec<KeyValue>,
    #[prost(bytes = "vec", tag = "9")]
    trace_id: Vec<u8>,
    #[prost(fixed64, tag = "11")]
    observed_time: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 3, 4")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Int(i64),
    #[prost(double, tag = "4")]
    Double(f64),
}

fn texts(attributes: &[KeyValue]) -> Vec<String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().unwrap().value.as_ref().unwrap() {
        Any::Text(text) => format!("{text:?}"),
        Any::Int(int) => int.to_string(),
        Any::Double(double) => format!("{double:?}"),
    };
    attributes.iter().map(|KeyValue { key, value }| format!("{key}={}", text(value))).collect()
}

fn selection(fields: Option<&[Field]>) -> Selection {
    let mut errors = signalbox_config::Errors::default();
    SelectionSpec { fields, custom_fields: &BTreeMap::new() }.parse(&mut errors)
}

#[test]
fn a_request_has_the_records_of_a_batch_with_the_names_of_the_conventions() {
    let (method, uri) = (Method::POST, Uri::from_static("/users?token=secret"));
    let (host, agent) = (HeaderValue::from_static("[2001:db8::1]:8443"), HeaderValue::from_static("curl/8"));
    let mut record = LogRecord::new(&method, &uri);
    record.version = Version::HTTP_2;
    record.host = Some(&host);
    record.user_agent = Some(&agent);
    record.time = Duration::from_millis(1_767_225_600_042);
    record.duration = Duration::from_micros(1500);
    record.trace_id = b"0af7651916cd43dd8448eb211c80319c";
    record.client = b"192.0.2.1";
    record.status = StatusCode::BAD_GATEWAY;
    record.flags = "UF";
    record.route = "users";
    record.bytes_in = u64::MAX;
    record.revision = 300;
    let second = LogRecord::new(&method, &uri);
    let few = selection(Some(&[Field::Time, Field::Status, Field::Consumer]));
    let entries = [encode_record(&selection(None), &record), encode_record(&few, &second)];
    let attributes = BTreeMap::from([("team".to_owned(), "x".repeat(200))]);
    let request = Request::decode(envelope(&attributes).request(&entries)).unwrap();
    let [ResourceLogs { resource, scope_logs }] = &*request.resource_logs else { panic!("{request:?}") };
    let resource = texts(&resource.as_ref().unwrap().attributes);
    assert_eq!(resource, ["service.name=\"signalbox\"".to_owned(), format!("team={:?}", "x".repeat(200))]);
    let [ScopeLogs { scope, log_records }] = &**scope_logs else { panic!("{scope_logs:?}") };
    assert_eq!(scope.as_ref().unwrap().name, "signalbox");
    let [first, second] = &**log_records else { panic!("{log_records:?}") };
    assert_eq!(first.time, 1_767_225_600_042_000_000);
    assert_eq!(first.observed_time, 1_767_225_600_043_500_000);
    assert_eq!((first.severity_number, first.severity_text.as_str()), (17, "ERROR"));
    let body = first.body.as_ref().unwrap().value.clone();
    assert_eq!(body, Some(Any::Text("POST /users 502".to_owned())));
    assert_eq!(first.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(
        texts(&first.attributes),
        [
            "client.address=\"192.0.2.1\"",
            "http.request.method=\"POST\"",
            "server.address=\"[2001:db8::1]\"",
            "server.port=8443",
            "url.path=\"/users\"",
            "network.protocol.version=\"2\"",
            "http.response.status_code=502",
            "signalbox.flags=\"UF\"",
            "signalbox.route=\"users\"",
            "signalbox.attempts=0",
            "signalbox.duration_ms=1.5",
            "http.request.body.size=9223372036854775807",
            "http.response.body.size=0",
            "user_agent.original=\"curl/8\"",
            "signalbox.revision=300",
        ]
    );
    assert_eq!((second.severity_text.as_str(), second.trace_id.len()), ("INFO", 0));
    assert_eq!(texts(&second.attributes), ["http.response.status_code=200"]);
    let named = BTreeMap::from([("service.name".to_owned(), "shop".to_owned())]);
    let request = Request::decode(envelope(&named).request::<Entry>(&[])).unwrap();
    assert_eq!(
        texts(&request.resource_logs[0].resource.as_ref().unwrap().attributes),
        ["service.name=\"shop\""]
    );
}
