//! Compresses responses for clients that accept it.
//!
//! The coding is the one that the client prefers by the q-values of `Accept-Encoding`; of equals, the first of `algorithms`. Without
//! that header, or where the client prefers `identity`, the response stays as it is.
//!
//! Responses are compressed whose type is among `content_types` and whose size is at least `min_size`, as far as it is known. They
//! are compressed while they pass: whenever the upstream pauses, all that it has sent goes on to the client, so server-sent events
//! and slow responses arrive as they would without. This plugin is the last to see a response, whatever its `order`, so it
//! compresses what the other plugins have made of it.
//!
//! Not compressed are responses that are encoded already, parts (`206`), those without a body, those with `Cache-Control:
//! no-transform`, and those with a digest of their bytes (`Content-Digest`, `Repr-Digest`, `Digest`).
//!
//! `Vary: Accept-Encoding` is added to every response that could be compressed, also where this one is not. A strong `ETag` becomes
//! a weak one, because the bytes are others; the upstream gets the strong form back in `If-None-Match`, so it can still answer
//! `304`. `Accept-Ranges` and `Content-Length` are removed.
//!
//! A page that has both a secret and a text of the visitor's choice lets those who see the sizes of compressed responses guess the
//! secret (BREACH). Give such a route a plugin of this type with `content_types: []`, which compresses nothing.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{ByteSize, Errors, FieldError};
use signalbox_plugin::{
    Abort, BodyFilter, BodyWish, Context, Definition, Flow, OnConditionError, Output, Plugin, PluginRequest,
    PluginResponse, Reply, hooks,
};

/// The responses that are compressed, and how.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Compression", example = serde_json::json!({}), example = serde_json::json!({
    "algorithms": ["gzip"], "min_size": "4KiB", "content_types": ["application/json", "text/*"],
}))]
pub(crate) struct Config {
    /// The codings that may be used, the best first.
    #[serde(default = "default_algorithms")]
    #[schemars(title = "Algorithms", length(min = 1))]
    algorithms: Vec<Algorithm>,
    /// The size from which a response is compressed. One whose size is not known beforehand is compressed.
    #[serde(default = "default_min_size")]
    #[schemars(title = "Min size")]
    min_size: ByteSize,
    /// The types of responses that are compressed: `application/json`, or `text/*` for all of a kind. None: nothing is compressed.
    #[serde(default = "default_content_types")]
    #[schemars(title = "Content types")]
    content_types: Vec<String>,
}

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Algorithm {
    /// Zstandard (RFC 8878).
    Zstd,
    /// Brotli (RFC 7932).
    Br,
    /// Gzip (RFC 1952).
    Gzip,
}

/// Compresses responses.
pub(crate) struct Compress {
    algorithms: Box<[Algorithm]>,
    min_size: u64,
    /// In lower case; those that end in `/` stand for all of a kind.
    content_types: Box<[Box<str>]>,
}

#[hooks]
impl Plugin for Compress {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        // The client has the weak form from here, and the upstream may compare letter by letter.
        if let Some(tags) = with_strong_forms(&request.head.headers) {
            request.head.headers.insert(IF_NONE_MATCH, tags);
        }
        Flow::Continue
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        let is_not_modified = response.head.status == StatusCode::NOT_MODIFIED;
        if is_not_modified || self.may_compress(response) {
            add_vary(&mut response.head.headers);
        }
        if is_not_modified && self.choose(&response.request.headers).is_some() {
            weaken_etag(&mut response.head.headers);
        }
        Flow::Continue
    }

    fn response_body(&self, response: &mut PluginResponse<'_>) -> BodyWish {
        let is_small = response.size.is_some_and(|size| size < self.min_size);
        let Some(algorithm) = self.choose(&response.request.headers).filter(|_| !is_small) else {
            return BodyWish::Pass;
        };
        if !self.may_compress(response) {
            return BodyWish::Pass;
        }
        let Ok(encoder) = Encoder::new(algorithm) else { return BodyWish::Pass };
        let headers = &mut response.head.headers;
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(algorithm.as_str()));
        headers.remove(ACCEPT_RANGES);
        weaken_etag(headers);
        response.count(algorithm.as_str());
        BodyWish::Filter(Box::new(Compressing { encoder: Some(encoder), is_holding: false }))
    }
}

impl Definition for Compress {
    const NAME: &'static str = "compress";
    const DESCRIPTION: &'static str = "Compresses responses for clients that accept it.";
    const ORDER: i32 = 90;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    const RESPONSE_ORDER: Option<i32> = Some(i32::MAX);
    const OUTCOMES: &'static [&'static str] = &["zstd", "br", "gzip"];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        if config.algorithms.is_empty() {
            errors.push("algorithms", "must have at least one of zstd, br, gzip");
        }
        for (index, content_type) in config.content_types.iter().enumerate() {
            if parse_type(content_type).is_none() {
                errors.push(format_args!("content_types[{index}]"), "must be like text/html or text/*");
            }
        }
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let built = Self {
            algorithms: config.algorithms.into(),
            min_size: config.min_size.0,
            content_types: config.content_types.iter().filter_map(|text| parse_type(text)).collect(),
        };
        errors.finish(Some(built))
    }
}

impl Compress {
    /// True if the response is one that is compressed for those who accept it.
    fn may_compress(&self, response: &PluginResponse<'_>) -> bool {
        let (status, headers) = (response.head.status, &response.head.headers);
        let is_encoded = headers.get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let has_digest =
            ["content-digest", "repr-digest", "digest"].iter().any(|it| headers.contains_key(*it));
        let is_fixed = headers.get_all(CACHE_CONTROL).iter().any(|value| {
            let mut directives = value.as_bytes().split(|byte| *byte == b',');
            directives.any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
        });
        status != StatusCode::PARTIAL_CONTENT
            && status != StatusCode::NO_CONTENT
            && !headers.contains_key(CONTENT_RANGE)
            && !(is_encoded || has_digest || is_fixed)
            && self.has_type(headers)
    }

    fn has_type(&self, headers: &HeaderMap) -> bool {
        let Some(Ok(content_type)) = headers.get(CONTENT_TYPE).map(HeaderValue::to_str) else { return false };
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        self.content_types.iter().any(|wanted| match wanted.strip_suffix('/') {
            Some(kind) => essence.split('/').next().is_some_and(|it| it.eq_ignore_ascii_case(kind)),
            None => essence.eq_ignore_ascii_case(wanted),
        })
    }

    /// The coding that the client likes best; `None`: none, or not better than no coding at all.
    fn choose(&self, request: &HeaderMap) -> Option<Algorithm> {
        let mut accepted = request.get_all(ACCEPT_ENCODING).iter().peekable();
        accepted.peek()?;
        let mut weights: [Option<u16>; 3] = [None; 3];
        let (mut any, mut identity) = (None, None);
        for value in accepted {
            for entry in value.to_str().ok()?.split(',') {
                let (coding, weight) = parse_entry(entry);
                match coding {
                    "*" => any = Some(weight),
                    coding if coding.eq_ignore_ascii_case("identity") => identity = Some(weight),
                    coding => {
                        let place = Algorithm::ALL.iter().position(|it| it.is_named(coding));
                        if let Some(slot) = place.and_then(|place| weights.get_mut(place)) {
                            *slot = Some(weight);
                        }
                    }
                }
            }
        }
        let weight =
            |algorithm: &Algorithm| weights.get(*algorithm as usize).copied().flatten().or(any).unwrap_or(0);
        // The first of those with the greatest weight.
        let best = self.algorithms.iter().rev().max_by_key(|algorithm| weight(algorithm))?;
        let best_weight = weight(best);
        (best_weight > 0 && best_weight >= identity.unwrap_or(0)).then_some(*best)
    }
}

impl Algorithm {
    const ALL: [Self; 3] = [Self::Zstd, Self::Br, Self::Gzip];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }

    /// `x-gzip` is the same as `gzip` (RFC 9110, section 8.4.1.3).
    fn is_named(self, coding: &str) -> bool {
        coding.eq_ignore_ascii_case(self.as_str())
            || self == Self::Gzip && coding.eq_ignore_ascii_case("x-gzip")
    }
}

/// A coding and its weight in thousandths. A weight that is none counts as 0.
fn parse_entry(entry: &str) -> (&str, u16) {
    let mut parts = entry.split(';');
    let coding = parts.next().unwrap_or_default().trim();
    let weight = parts.find_map(|part| {
        let (name, weight) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| weight.trim().parse::<f32>().unwrap_or(0.0))
    });
    let weight = weight.unwrap_or(1.0).clamp(0.0, 1.0);
    (coding, (weight * 1000.0).round() as u16)
}

/// Adds `Accept-Encoding` to `Vary`, unless it is there.
fn add_vary(headers: &mut HeaderMap) {
    let has_it = headers.get_all(VARY).iter().any(|value| {
        let mut names = value.as_bytes().split(|byte| *byte == b',');
        names.any(|name| {
            let name = name.trim_ascii();
            name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding")
        })
    });
    if !has_it {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Makes a strong `ETag` a weak one.
fn weaken_etag(headers: &mut HeaderMap) {
    let Some(strong) = headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\"")) else { return };
    if let Ok(weak) = HeaderValue::from_bytes(&[b"W/", strong.as_bytes()].concat()) {
        headers.insert(ETAG, weak);
    }
}

/// The weak tags of `If-None-Match`, each with its strong form beside it; `None` if there is no weak one.
fn with_strong_forms(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut given = headers.get_all(IF_NONE_MATCH).iter();
    let value = given.next().filter(|_| given.next().is_none())?.to_str().ok()?;
    if !value.contains("W/\"") {
        return None;
    }
    let mut rest = value;
    let mut strong = String::new();
    while let Some((_, behind)) = rest.split_once("W/\"") {
        let (tag, behind) = behind.split_once('"')?;
        strong.push_str(", \"");
        strong.push_str(tag);
        strong.push('"');
        rest = behind;
    }
    HeaderValue::try_from(format!("{value}{strong}")).ok()
}

/// A type in lower case, without the `*` of a kind.
fn parse_type(text: &str) -> Option<Box<str>> {
    let (kind, subtype) = text.split_once('/')?;
    let is_token = |text: &str| {
        !text.is_empty() && text.bytes().all(|it| it.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&it))
    };
    let text = text.to_ascii_lowercase();
    match subtype {
        "*" if is_token(kind) => Some(text.trim_end_matches('*').into()),
        _ if is_token(kind) && is_token(subtype) => Some(text.into()),
        _ => None,
    }
}

/// An encoder that writes into memory.
enum Encoder {
    Zstd(Box<zstd::stream::write::Encoder<'static, Vec<u8>>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

/// The levels are those at which servers commonly compress on the fly. The windows bound the memory of a response: zstd
/// 512 KiB (clients must accept up to 8 MiB, RFC 9659), brotli 512 KiB, gzip 32 KiB.
const ZSTD_LEVEL: i32 = 3;
const ZSTD_WINDOW_LOG: u32 = 19;
const BROTLI_QUALITY: u32 = 5;
const BROTLI_WINDOW_LOG: u32 = 19;
const GZIP_LEVEL: u32 = 6;
const BUFFER: usize = 4 << 10;

impl Encoder {
    fn new(algorithm: Algorithm) -> io::Result<Self> {
        Ok(match algorithm {
            Algorithm::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW_LOG)?;
                Self::Zstd(Box::new(encoder))
            }
            Algorithm::Br => {
                let (quality, window) = (BROTLI_QUALITY, BROTLI_WINDOW_LOG);
                Self::Br(Box::new(brotli::CompressorWriter::new(Vec::new(), BUFFER, quality, window)))
            }
            Algorithm::Gzip => {
                Self::Gzip(Box::new(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))))
            }
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Zstd(encoder) => &mut **encoder,
            Self::Br(encoder) => &mut **encoder,
            Self::Gzip(encoder) => &mut **encoder,
        }
    }

    /// The bytes that were put out so far.
    fn take(&mut self) -> Bytes {
        let out = match self {
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Br(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        };
        std::mem::take(out).into()
    }

    fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Zstd(encoder) => encoder.finish()?,
            Self::Br(encoder) => encoder.into_inner(),
            Self::Gzip(encoder) => encoder.finish()?,
        }
        .into())
    }
}

/// A response on its way through an encoder.
struct Compressing {
    /// `None` once the response has ended.
    encoder: Option<Encoder>,
    /// True if the encoder may hold something back.
    is_holding: bool,
}

impl BodyFilter for Compressing {
    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        let Some(encoder) = &mut self.encoder else { return Ok(()) };
        encoder.writer().write_all(&data).map_err(|error| failed(&error))?;
        self.is_holding = true;
        out.push(encoder.take());
        Ok(())
    }

    fn on_pause(&mut self, out: &mut Output) -> Result<(), Abort> {
        let Some(encoder) = self.encoder.as_mut().filter(|_| self.is_holding) else { return Ok(()) };
        encoder.writer().flush().map_err(|error| failed(&error))?;
        self.is_holding = false;
        out.push(encoder.take());
        Ok(())
    }

    fn on_end(&mut self, _: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
        if let Some(encoder) = self.encoder.take() {
            out.push(encoder.finish().map_err(|error| failed(&error))?);
        }
        Ok(())
    }
}

fn failed(error: &io::Error) -> Abort {
    let reply = Reply::problem(StatusCode::INTERNAL_SERVER_ERROR, "the response cannot be compressed");
    Abort::new(format!("the encoder failed: {error}"), reply)
}

fn default_algorithms() -> Vec<Algorithm> {
    Algorithm::ALL.into()
}

fn default_min_size() -> ByteSize {
    ByteSize(1 << 10)
}

fn default_content_types() -> Vec<String> {
    let types = [
        "text/*",
        "application/json",
        "application/problem+json",
        "application/javascript",
        "application/xml",
        "application/xhtml+xml",
        "application/rss+xml",
        "application/atom+xml",
        "application/manifest+json",
        "application/wasm",
        "image/svg+xml",
    ];
    types.map(str::to_owned).into()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::Arc;

    use http::Response;
    use serde_json::{Value, json};
    use signalbox_plugin::Origin;
    use signalbox_plugin::testing::pass;

    use super::*;
    use crate::testing::{Client, build, refused};

    fn plugin(config: Value) -> Arc<dyn Plugin> {
        build("compress", config)
    }

    /// The response of this type to a request with this `Accept-Encoding`.
    fn answer(config: Value, accepted: Option<&str>, fields: &[(&str, &str)]) -> Response<Bytes> {
        let mut client = Client::new("GET", "/");
        if let Some(accepted) = accepted {
            client = client.header("accept-encoding", accepted);
        }
        let mut response = Response::builder();
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let response = response.body(Bytes::from("text ".repeat(1000))).unwrap();
        client.receives(&*plugin(config), Origin::Upstream, response)
    }

    fn decoded(response: &Response<Bytes>) -> String {
        let body = &response.body()[..];
        let mut text = String::new();
        match response.headers().get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            Some(b"zstd") => {
                zstd::stream::read::Decoder::new(body).unwrap().read_to_string(&mut text).unwrap()
            }
            Some(b"br") => brotli::Decompressor::new(body, 4096).read_to_string(&mut text).unwrap(),
            Some(b"gzip") => flate2::read::GzDecoder::new(body).read_to_string(&mut text).unwrap(),
            other => panic!("{other:?}"),
        };
        text
    }

    #[test]
    fn the_coding_is_the_one_that_the_client_prefers() {
        for (accepted, coding) in [
            (Some("gzip, br, zstd"), Some("zstd")),
            (Some("gzip, br;q=0.9"), Some("gzip")),
            (Some("br, gzip"), Some("br")),
            (Some("GZIP;Q=0.5"), Some("gzip")),
            (Some("x-gzip"), Some("gzip")),
            (Some("*"), Some("zstd")),
            (Some("zstd;q=0, *"), Some("br")),
            (Some("gzip;q=0"), None),
            (Some("*;q=0"), None),
            (Some("gzip;q=x"), None),
            (Some("identity"), None),
            (Some("identity, gzip;q=0.5"), None),
            (Some("identity;q=0, gzip;q=0.5"), Some("gzip")),
            (Some("identity, gzip"), Some("gzip")),
            (Some("deflate"), None),
            (Some(""), None),
            (None, None),
        ] {
            let response = answer(json!({}), accepted, &[("content-type", "text/plain; charset=utf-8")]);
            let found = response.headers().get(CONTENT_ENCODING).map(|coding| coding.to_str().unwrap());
            assert_eq!(found, coding, "{accepted:?}");
            assert_eq!(response.headers()["vary"], "Accept-Encoding", "{accepted:?}");
            if coding.is_some() {
                assert_eq!(decoded(&response), "text ".repeat(1000));
                assert!(response.body().len() < 200);
            }
        }
    }

    #[test]
    fn what_must_not_be_changed_stays_as_it_is() {
        for fields in [
            &[("content-type", "text/plain"), ("content-encoding", "br")][..],
            &[("content-type", "text/plain"), ("cache-control", "max-age=1, No-Transform")],
            &[("content-type", "text/plain"), ("content-digest", "sha-256=:x:")],
            &[("content-type", "text/plain"), ("content-range", "bytes 0-9/10")],
            &[("content-type", "image/png")],
            &[],
        ] {
            let response = answer(json!({}), Some("gzip"), fields);
            assert!(
                response.headers().get(CONTENT_ENCODING).is_none_or(|coding| coding == "br"),
                "{fields:?}"
            );
            assert!(!response.headers().contains_key(VARY), "{fields:?}");
            assert_eq!(response.body().len(), 5000);
        }
        for config in [json!({"min_size": 5001}), json!({"content_types": []})] {
            let response = answer(config, Some("gzip"), &[("content-type", "text/plain")]);
            assert!(!response.headers().contains_key(CONTENT_ENCODING));
        }
    }

    #[test]
    fn the_validator_of_a_compressed_response_is_weak_and_still_validates() {
        let fields = [
            ("content-type", "text/html"),
            ("etag", "\"v1\""),
            ("accept-ranges", "bytes"),
            ("vary", "origin"),
        ];
        let response = answer(json!({}), Some("gzip"), &fields);
        assert_eq!(response.headers()["etag"], "W/\"v1\"");
        assert!(!response.headers().contains_key(ACCEPT_RANGES));
        let vary: Vec<_> = response.headers().get_all(VARY).iter().collect();
        assert_eq!(vary, ["origin", "Accept-Encoding"]);
        let plain = answer(json!({}), None, &fields);
        assert_eq!(plain.headers()["etag"], "\"v1\"");

        let mut client = Client::new("GET", "/").header("if-none-match", "W/\"v1\", \"v2\"");
        assert!(client.meets(&*plugin(json!({}))).is_none());
        assert_eq!(client.head.headers["if-none-match"], "W/\"v1\", \"v2\", \"v1\"");
        let mut client = Client::new("GET", "/").header("accept-encoding", "br");
        let response = Response::builder().status(304).header("etag", "\"v1\"").body(Bytes::new()).unwrap();
        let response = client.receives(&*plugin(json!({})), Origin::Upstream, response);
        assert_eq!(
            (&response.headers()["etag"], &response.headers()["vary"]),
            (&"W/\"v1\"".parse().unwrap(), &"Accept-Encoding".parse().unwrap())
        );
    }

    #[test]
    fn what_has_come_can_be_read_at_every_pause() {
        for algorithm in Algorithm::ALL {
            let mut filter =
                Compressing { encoder: Some(Encoder::new(algorithm).unwrap()), is_holding: false };
            let parts = ["data: one\n\n", "data: two\n\n"].map(Bytes::from);
            let out = pass(&mut filter, parts).unwrap();
            let mut so_far = Vec::new();
            for (index, part) in out.iter().take(2).enumerate() {
                so_far.extend_from_slice(part);
                let mut text = vec![0; 11 * (index + 1)];
                let read: &mut dyn io::Read = match algorithm {
                    Algorithm::Zstd => &mut zstd::stream::read::Decoder::new(&so_far[..]).unwrap(),
                    Algorithm::Br => &mut brotli::Decompressor::new(&so_far[..], 4096),
                    Algorithm::Gzip => &mut flate2::read::GzDecoder::new(&so_far[..]),
                };
                read.read_exact(&mut text).unwrap();
                assert!(
                    String::from_utf8(text).unwrap().ends_with(["one\n\n", "two\n\n"][index]),
                    "{algorithm:?}"
                );
            }
        }
    }

    #[test]
    fn bad_configurations_are_refused_with_all_that_is_wrong() {
        let all = refused("compress", json!({"algorithms": [], "content_types": ["text", "*/*", "a b/c"]}));
        for field in ["algorithms: ", "content_types[0]: ", "content_types[1]: ", "content_types[2]: "] {
            assert!(all.contains(field), "{field} in {all}");
        }
    }
}
