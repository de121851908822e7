use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Value, json};
use signalbox_config::BlobId;
use signalbox_plugin::testing::{Answer, Client, Services, build_type, pass};
use signalbox_plugin::{BodyFilter, Plugin, PluginType, States};

use super::response::Translator;
use super::*;

const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");

/// The descriptor set of a file and those that it imports.
fn compile(file: &str, folders: &[&str]) -> Bytes {
    let mut compiler = protox::Compiler::new(folders).unwrap();
    compiler.include_imports(true).open_file(file).unwrap();
    compiler.encode_file_descriptor_set().into()
}

/// The descriptor set of `testdata/library.proto`.
fn set() -> Bytes {
    compile("library.proto", &[TESTDATA])
}

fn config(with: &Value) -> Value {
    let mut config = json!({"descriptor_set": BlobId::of(&set())});
    config.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
    config
}

fn plugin(with: &Value) -> Arc<dyn Plugin> {
    let services = Services::default().with_blobs([set()]);
    build_type(&PluginType::of::<GrpcJson>(), &services, &States::default(), config(with))
}

fn errors(set: Bytes, config: &Value) -> Vec<String> {
    let blobs = Blobs::new(Arc::new(move |id| (BlobId::of(&set) == id).then(|| set.clone())));
    let found = PluginType::of::<GrpcJson>().check_blobs(config, &blobs);
    found.iter().map(ToString::to_string).collect()
}

/// The call that a request becomes: the path and the message, or the answer.
fn call(plugin: &dyn Plugin, method: &str, uri: &str, body: &str) -> Result<(String, Value), Box<Answer>> {
    let mut client = Client::new(method, uri).header("content-type", "application/json");
    if let Some(answer) = client.meets(plugin) {
        return Err(Box::new(answer));
    }
    let path = client.head.uri.path().to_owned();
    let bytes = client.sends_bytes(plugin, Bytes::copy_from_slice(body.as_bytes()))?;
    assert_eq!(client.head.method, "POST");
    assert_eq!(client.head.headers["content-type"], "application/grpc");
    assert_eq!(client.head.headers["te"], "trailers");
    let pool = DescriptorPool::decode(set()).unwrap();
    let (service, name) = path[1..].split_once('/').unwrap();
    let service = pool.get_service_by_name(service).unwrap();
    let method = service.methods().find(|method| method.name() == name).unwrap();
    assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 5);
    let message = DynamicMessage::decode(method.input(), &bytes[5..]).unwrap();
    Ok((name.to_owned(), serde_json::to_value(&message).unwrap()))
}

#[test]
fn requests_become_messages() {
    let plugin = plugin(&json!({}));
    for (method, uri, body, name, message) in [
        ("GET", "/v1/shelves/1/books/2", "", "GetBook", json!({"name": "shelves/1/books/2"})),
        ("GET", "/v1/books/a%2Fb", "", "GetBook", json!({"id": "a/b"})),
        ("POST", "/v1/shelves/1/books/2:lend", "", "Lend", json!({"name": "shelves/1/books/2"})),
        ("OPTIONS", "/v1/any?id=7", "", "Any", json!({"id": "7"})),
        (
            "GET",
            "/v1/books/1?states=LENT&states=0&author.name=A%20B&author.born=1900&since=2020-01-02T03:04:05Z&at_most=1.5s&fields=id,author.name&lent=true&token=_-8&price=1.5&brief=true",
            "",
            "GetBook",
            json!({
                "id": "1", "states": ["LENT", "UNKNOWN"], "author": {"name": "A B", "born": 1900},
                "since": "2020-01-02T03:04:05Z", "atMost": "1.500s", "fields": "id,author.name", "lent": true,
                "token": "/+8=", "price": 1.5, "brief": true,
            }),
        ),
        (
            "GET",
            "/v1/books/1?atMost=2s&price=NaN",
            "",
            "GetBook",
            json!({"id": "1", "atMost": "2s", "price": "NaN"}),
        ),
        (
            "POST",
            "/v1/shelves/9/books?validate_only=true",
            r#"{"displayTitle": "T", "pages": "12", "tags": ["x"], "labels": {"a": "b"}, "state": "LENT"}"#,
            "CreateBook",
            json!({
                "parent": "shelves/9", "validateOnly": true,
                "book": {"displayTitle": "T", "pages": "12", "tags": ["x"], "labels": {"a": "b"}, "state": "LENT"},
            }),
        ),
        // The path counts, whatever the body says.
        (
            "PUT",
            "/v1/books/7",
            r#"{"id": "8", "display_title": "T"}"#,
            "Replace",
            json!({"id": "7", "displayTitle": "T"}),
        ),
        ("PUT", "/v1/books/7", "", "Replace", json!({"id": "7"})),
        ("POST", "/v1/echo", "\"hi\"", "Echo", json!("hi")),
    ] {
        let called = call(&*plugin, method, uri, body);
        let (called, sent) = called.unwrap_or_else(|answer| panic!("{method} {uri}: {answer:?}"));
        assert_eq!((called.as_str(), &sent), (name, &message), "{method} {uri}");
    }
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let plugin = plugin(&json!({}));
    for (method, uri, body, reason) in [
        ("GET", "/v1/books/1?other=1", "", "\"other\" is not known"),
        ("GET", "/v1/books/1?labels=1", "", "a map cannot be"),
        ("GET", "/v1/books/1?authors.name=1", "", "not known"),
        ("GET", "/v1/books/1?author=1", "", "cannot be a parameter"),
        ("GET", "/v1/books/1?author.born=-1", "", "not a number"),
        ("GET", "/v1/books/1?states=GONE", "", "not a value of test.State"),
        ("GET", "/v1/books/1?brief=1", "", "neither true nor false"),
        ("GET", "/v1/books/1?since=today", "", "since"),
        ("GET", "/v1/books/1?token=%25", "", "not base64"),
        ("GET", "/v1/books/1?id=2", "", "part of the path"),
        ("GET", "/v1/books/%zz", "", "percent-encoded"),
        ("GET", "/v1/books/1", "{}", "takes no body"),
        ("PUT", "/v1/books/7?pages=1", "{}", "\"pages\" is not known"),
        ("PUT", "/v1/books/7", "{", "the body"),
        ("PUT", "/v1/books/7", "{} {}", "trailing"),
        ("PUT", "/v1/books/7", r#"{"other": 1}"#, "the body"),
        ("PUT", "/v1/books/7", r#"{"pages": "x"}"#, "the body"),
        ("POST", "/v1/shelves/9/books?book.id=1", "{}", "not known"),
        // A body must not set what is not its field.
        ("POST", "/v1/shelves/9/books", r#"{},"validateOnly":true"#, "the body"),
    ] {
        let answer = call(&*plugin, method, uri, body).expect_err(uri);
        assert_eq!(answer.status, 400, "{uri}: {answer:?}");
        let json: Value = serde_json::from_str(&answer.detail).unwrap();
        assert_eq!(json["code"], 3, "{json}");
        assert!(json["message"].as_str().unwrap().contains(reason), "{uri}: {json}");
    }
    let lenient = self::plugin(&json!({"ignore_unknown_parameters": true}));
    assert!(call(&*lenient, "GET", "/v1/books/1?other=1", "").is_ok());
}

#[test]
fn what_a_client_sends_is_bounded_in_depth_and_number() {
    let plugin = plugin(&json!({}));
    let deep = |depth: usize| format!("/v1/search?{}value=x", "not.".repeat(depth));
    assert!(call(&*plugin, "GET", &deep(20), "").is_ok());
    for depth in [32, 8000] {
        let answer = call(&*plugin, "GET", &deep(depth), "").unwrap_err();
        assert_eq!(answer.status, 400, "{depth}");
    }
    let nested = format!("{}{}", "{\"not\":".repeat(5000), "}".repeat(5000));
    assert_eq!(call(&*plugin, "POST", "/v1/search", &nested).unwrap_err().status, 400);
    let many =
        |count: usize| format!("{{\"value\": \",[{{\\\",\", \"flags\": [{}true]}}", "true,".repeat(count));
    assert!(call(&*plugin, "POST", "/v1/search", &many(50_000)).is_ok());
    let answer = call(&*plugin, "POST", "/v1/search", &many(100_000)).unwrap_err();
    assert!(answer.detail.contains("more than 100000 values"), "{answer:?}");
}

#[test]
fn a_response_that_is_nested_without_end_is_an_error() {
    let nested = |depth: usize| {
        let mut value = json!({"value": "x"});
        for _ in 0..depth {
            value = json!({"any": {"@type": "t/test.Filter", "not": {}, "value": value["value"], "any": value.get("any").cloned().unwrap_or(Value::Null)}});
        }
        value
    };
    assert!(translated(&json!({}), "Search", &[nested(5)], OK).is_ok());
    // Built by hand, because nothing writes it as JSON.
    let pool = DescriptorPool::decode(set()).unwrap();
    let filter = pool.get_message_by_name("test.Filter").unwrap();
    let any = pool.get_message_by_name("google.protobuf.Any").unwrap();
    let mut message = DynamicMessage::new(filter);
    for _ in 0..5000 {
        let mut holder = DynamicMessage::new(any.clone());
        holder.set_field_by_name("type_url", prost_reflect::Value::String("/test.Filter".to_owned()));
        holder.set_field_by_name(
            "value",
            prost_reflect::Value::Bytes(prost::Message::encode_to_vec(&message).into()),
        );
        message = DynamicMessage::new(pool.get_message_by_name("test.Filter").unwrap());
        message.set_field_by_name("any", prost_reflect::Value::Message(holder));
    }
    assert!(!super::rules::is_shallow(&message, &pool));
}

#[test]
fn other_requests_pass() {
    let plugin = plugin(&json!({"services": ["test.Library"]}));
    for (method, uri) in
        [("GET", "/v2/books/1"), ("PATCH", "/v1/books/1"), ("GET", "/v1/echo/x"), ("POST", "/v1/collect")]
    {
        let mut client = Client::new(method, uri);
        assert!(client.meets(&*plugin).is_none());
        assert_eq!((client.head.method.as_str(), client.head.uri.to_string()), (method, uri.to_owned()));
    }
    let mut client = Client::new("GET", "/v1/books/1").header("content-type", "application/grpc+proto");
    assert!(client.meets(&*plugin).is_none());
    assert_eq!(client.head.uri.path(), "/v1/books/1");
}

/// Translates the frames `messages` of a method, and then the trailers.
fn translated(
    with: &Value,
    method: &str,
    messages: &[Value],
    trailers: &[(&'static str, &str)],
) -> Result<(String, String), (u16, Value)> {
    let services = Services::default().with_blobs([set()]);
    let states = States::default();
    let name = "p".parse().unwrap();
    let config: Config = serde_json::from_value(config(with)).unwrap();
    let plugin = GrpcJson::build(config, &services.context(&name, &states)).unwrap();
    let paths = [
        ("GET", "/v1/books/1"),
        ("GET", "/v1/books"),
        ("GET", "/v1/books/1/tags"),
        ("POST", "/v1/files/x"),
        ("GET", "/v1/search"),
    ];
    let mut rules = paths.iter().map(|(method, path)| plugin.rules.tree.find(method, path).unwrap().0);
    let rule = Arc::clone(rules.find(|rule| rule.method.path.as_str().ends_with(method)).unwrap());
    let output = rule.method.output.clone();
    let mut filter = Translator::new(rule, Arc::clone(&plugin.rules), plugin.style.clone());
    let mut frames: Vec<u8> = Vec::new();
    for message in messages {
        let message = DynamicMessage::deserialize(output.clone(), message).unwrap();
        frames.extend(grpc::frame(&message.encode_to_vec()));
    }
    let refused = |abort: signalbox_plugin::Abort| match *abort.reply {
        Reply::Response(response) => {
            (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
        }
        reply @ Reply::Problem { .. } => panic!("{reply:?}"),
    };
    let mut out = signalbox_plugin::Output::default();
    // Byte by byte, so that every cut is tried.
    for byte in frames {
        filter.on_data(Bytes::from(vec![byte]), &mut out).map_err(refused)?;
    }
    let mut fields = HeaderMap::new();
    for (name, value) in trailers {
        fields.insert(*name, HeaderValue::from_str(value).unwrap());
    }
    filter.on_end(&mut fields, &mut out).map_err(refused)?;
    assert!(fields.is_empty());
    let mut head = Response::new(()).into_parts().0;
    filter.finish_head(&mut head);
    let content_type = head.headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap()).to_owned();
    let body = out.take().collect::<Vec<_>>().concat();
    Ok((content_type, String::from_utf8(body).unwrap()))
}

const OK: &[(&str, &str)] = &[("grpc-status", "0")];

#[test]
fn messages_become_json() {
    let book =
        json!({"id": "1", "displayTitle": "T", "pages": "9007199254740993", "price": "NaN", "state": "LENT"});
    let json = |with: &Value, method: &str, messages: &[Value]| {
        let (_, body) = translated(with, method, messages, OK).unwrap();
        serde_json::from_str::<Value>(&body).unwrap()
    };
    let none = json!({});
    assert_eq!(json(&none, "GetBook", std::slice::from_ref(&book)), book);
    let named =
        json(&json!({"proto_names": true, "enums_as_numbers": true}), "GetBook", std::slice::from_ref(&book));
    assert_eq!((&named["display_title"], &named["state"]), (&json!("T"), &json!(1)));
    let all = json(&json!({"write_defaults": true}), "GetBook", &[json!({})]);
    assert_eq!((&all["tags"], &all["pages"], &all["labels"]), (&json!([]), &json!("0"), &json!({})));
    assert_eq!(json(&none, "Tags", &[json!({"tags": ["a", "b"]})]), json!(["a", "b"]));
    assert_eq!(json(&none, "Tags", &[json!({})]), json!([]), "a list is never null");
    let (_, lines) = translated(&none, "List", &[json!({"id": "1"}), json!({})], OK).unwrap();
    assert_eq!(lines, "{\"id\":\"1\"}\n{}\n");
    assert_eq!(translated(&none, "List", &[], OK).unwrap().1, "");
    let file = json!({"contentType": "text/plain", "data": "aGk="});
    assert_eq!(translated(&none, "Upload", &[file], OK).unwrap(), ("text/plain".to_owned(), "hi".to_owned()));
}

#[test]
fn failures_have_a_status_and_a_body() {
    let none = json!({});
    let failed = |method: &str, messages: &[Value], trailers: &[(&'static str, &str)]| {
        translated(&none, method, messages, trailers).unwrap_err()
    };
    let (status, body) = failed("List", &[], &[("grpc-status", "5"), ("grpc-message", "no %C3%A4")]);
    assert_eq!((status, body), (404, json!({"code": 5, "message": "no ä", "details": []})));
    // The details of an error: one type is known, one is not.
    let any = |url: &str, value: Vec<u8>| {
        let mut any = vec![0x0a, url.len() as u8];
        any.extend(url.as_bytes());
        any.extend([0x12, value.len() as u8]);
        any.extend(value);
        any
    };
    let mut details = vec![0x08, 3, 0x12, 1, b'm'];
    for detail in [any("t/test.Author", vec![0x0a, 1, b'A']), any("t/test.Other", vec![1, 2])] {
        details.extend([0x1a, detail.len() as u8]);
        details.extend(detail);
    }
    use base64::Engine as _;
    let details = base64::engine::general_purpose::STANDARD_NO_PAD.encode(details);
    let (status, body) =
        failed("GetBook", &[], &[("grpc-status", "3"), ("grpc-status-details-bin", &details)]);
    assert_eq!(status, 400);
    assert_eq!(
        body["details"],
        json!([{"@type": "t/test.Author", "name": "A"}, {"@type": "t/test.Other", "value": "AQI="}])
    );
    let (status, _) = failed("GetBook", &[], &[("grpc-status", "14"), ("grpc-status-details-bin", "*")]);
    assert_eq!(status, 503, "details that cannot be read change nothing");
    let (status, _) = failed("GetBook", &[json!({})], &[("grpc-status", "13")]);
    assert_eq!(status, 500, "the only message is no response before the status is known");
    for (method, messages, trailers, message) in [
        ("GetBook", &[][..], OK, "no message"),
        ("GetBook", &[json!({}), json!({})], OK, "more than one message"),
        ("GetBook", &[json!({})], &[], "without a status"),
    ] {
        let (status, body) = failed(method, messages, trailers);
        assert_eq!(status, 500);
        assert!(body["message"].as_str().unwrap().contains(message), "{body}");
    }
}

#[test]
fn messages_are_bounded() {
    let with = json!({"max_message": 20});
    let (status, body) = translated(&with, "GetBook", &[json!({"id": "x".repeat(30)})], OK).unwrap_err();
    assert_eq!(status, 500);
    assert!(body["message"].as_str().unwrap().contains("more than 20 bytes"), "{body}");
}

#[test]
fn a_descriptor_set_that_is_none_is_refused() {
    let bad = Bytes::from_static(b"no set");
    let found = errors(bad.clone(), &json!({"descriptor_set": BlobId::of(&bad)}));
    assert!(found[0].starts_with("descriptor_set: is not a descriptor set"), "{found:?}");
    let found = errors(set(), &config(&json!({"services": ["test.Other"]})));
    assert!(found[0].starts_with("services: has \"test.Other\" at 0"), "{found:?}");
    let empty = Bytes::new();
    let found = errors(empty.clone(), &json!({"descriptor_set": BlobId::of(&empty)}));
    assert!(found[0].contains("no method with a google.api.http rule"), "{found:?}");
    assert_eq!(errors(set(), &config(&json!({}))), Vec::<String>::new());
}

#[test]
fn a_wrong_rule_is_named_by_its_method() {
    let folder = tempfile::tempdir().unwrap();
    let rules = [
        ("get: \"v1\"", "must begin with /"),
        ("get: \"/v1/{nothing}\"", "has no field \"nothing\""),
        ("get: \"/v1/{tags}\"", "cannot be a part of a path"),
        ("post: \"/v1\" body: \"nothing\"", "has no field \"nothing\""),
        ("get: \"/v1\" response_body: \"nothing\"", "has no field \"nothing\""),
        ("get: \"/v1\" additional_bindings { get: \"/v1\" }", "is that of /bad.S/M, too"),
        ("body: \"*\"", "has no path"),
    ];
    for (rule, reason) in rules {
        let text = format!(
            "syntax = \"proto3\"; package bad; import \"google/api/annotations.proto\"; message A {{ repeated string tags = 1; }}
             service S {{ rpc M(A) returns (A) {{ option (google.api.http) = {{ {rule} }}; }} }}"
        );
        std::fs::write(folder.path().join("bad.proto"), text).unwrap();
        let set = compile("bad.proto", &[folder.path().to_str().unwrap(), TESTDATA]);
        let found = errors(set.clone(), &json!({"descriptor_set": BlobId::of(&set)}));
        assert!(found[0].starts_with("descriptor_set: bad.S.M: ") && found[0].contains(reason), "{found:?}");
    }
}

#[test]
fn a_filter_sees_frames_in_pieces() {
    // The harness passes whole parts, too.
    let services = Services::default().with_blobs([set()]);
    let (name, states) = ("p".parse().unwrap(), States::default());
    let config: Config = serde_json::from_value(config(&json!({}))).unwrap();
    let plugin = GrpcJson::build(config, &services.context(&name, &states)).unwrap();
    let rule = Arc::clone(plugin.rules.tree.find("GET", "/v1/books").unwrap().0);
    let message = DynamicMessage::new(rule.method.output.clone());
    let frames = [grpc::frame(&message.encode_to_vec()), grpc::frame(&message.encode_to_vec())].concat();
    let mut filter = Translator::new(rule, plugin.rules, plugin.style);
    assert!(filter.holds_head());
    let abort = pass(&mut filter, [Bytes::from(frames)]).unwrap_err();
    assert!(abort.reason.contains("without a status"), "{abort:?}");
}
