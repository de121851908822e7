//! Authenticates requests by signatures with the secrets of consumers.
//!
//! A client signs parts of its request with the secret of a consumer's `hmac_auth` credential:
//!
//! ```text
//! Authorization: hmac keyId="alice", algorithm="hmac-sha256", headers="x-date @request-target host digest", signature="…"
//! ```
//!
//! `headers` lists what is signed, separated by spaces. The signed text has a line for each, in this order, with a line feed
//! between two lines: `name: value` with the name in lower case, and the values of a repeated header joined by `, `. The
//! line of `@request-target` is the method in lower case, a space, and the path in its normal form with the query: the same over
//! HTTP/1.1 and HTTP/2. `signature` is the base64 of the HMAC over the text. `username` is accepted for `keyId`.
//!
//! Always signed must be the date, or nothing would bound how long a request can be sent again: `X-Date` if that is there, else
//! `Date`, which differs from the proxy's clock by at most `clock_skew`; and everything in `required_headers`. Within that time
//! a request can be sent again as it is.
//!
//! With `validate_body`, `Digest` (`SHA-256=…`) or `Content-Digest` (RFC 9530, `sha-256=:…:`) must be signed, and be that of the
//! body, an empty one too. The body is then read whole: one that is larger than `max_body` is answered `413`.
//!
//! A request that is not signed, or signed wrong, is answered `401` with `WWW-Authenticate: hmac realm="…"`, or passes as the
//! `anonymous` consumer. A key that nobody has takes as long as a known one.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request};
use ring::hmac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{ByteSize, Errors, FieldError, HumanDuration, ResourceKey, sha256};
use signalbox_plugin::{BodyWish, Context, Definition, Flow, Plugin, PluginRequest, Reply, hooks};

use crate::authentication::{
    Attempt, Guard, Method, NotRewritable, Refusal, Verdict, anonymous_reference, challenge, check_anonymous,
    check_realm, default_realm,
};
use crate::authorization::{self, Several};
use crate::clock::since_1970;

/// The parts that must be signed, and the algorithms.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "HMAC authentication", example = serde_json::json!({}),
    example = serde_json::json!({"validate_body": true, "clock_skew": "1m", "algorithms": ["hmac-sha512"]}))]
pub(crate) struct Config {
    /// The algorithms that clients may use.
    #[serde(default = "default_algorithms")]
    #[schemars(title = "Algorithms", length(min = 1))]
    algorithms: Vec<HmacAlgorithm>,
    /// The difference between the date of a request and the proxy's clock that is allowed, at most 1d.
    #[serde(default = "default_skew")]
    #[schemars(title = "Clock skew")]
    clock_skew: HumanDuration,
    /// The headers that must be signed besides the date, and `@request-target` for the method, the path and the query.
    #[serde(default = "default_required")]
    #[schemars(title = "Required headers")]
    required_headers: Vec<String>,
    /// Requires a signed digest of the body, and compares it with the body.
    #[serde(default)]
    #[schemars(title = "Validate body")]
    pub(crate) validate_body: bool,
    /// The largest body whose digest is compared, at most 64MiB. Requests with larger ones are answered 413.
    #[serde(default = "default_max_body")]
    #[schemars(title = "Max body")]
    max_body: ByteSize,
    /// Removes the signature from the request before it is forwarded.
    #[serde(default)]
    #[schemars(title = "Hide credentials")]
    hide_credentials: bool,
    /// The consumer as which requests without a valid signature pass. Absent: they are answered 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Anonymous consumer")]
    pub(crate) anonymous: Option<String>,
    /// The realm in the header `WWW-Authenticate`.
    #[serde(default = "default_realm")]
    #[schemars(title = "Realm")]
    realm: String,
}

/// An algorithm of signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
enum HmacAlgorithm {
    /// HMAC with SHA-1, for old clients only.
    #[serde(rename = "hmac-sha1")]
    Sha1,
    /// HMAC with SHA-256.
    #[serde(rename = "hmac-sha256")]
    Sha256,
    /// HMAC with SHA-384.
    #[serde(rename = "hmac-sha384")]
    Sha384,
    /// HMAC with SHA-512.
    #[serde(rename = "hmac-sha512")]
    Sha512,
}

/// Authenticates requests by signatures with the secrets of consumers.
pub(crate) struct HmacAuth {
    guard: Guard,
    /// The largest body whose digest is compared; `None`: bodies are not looked at.
    max_body: Option<usize>,
}

#[hooks]
impl Plugin for HmacAuth {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        self.guard.on_request(request)
    }

    fn uses_consumer_headers(&self) -> bool {
        self.guard.uses_consumer_headers()
    }

    /// A request that was signed has a digest: see [`Signature::read_signed`].
    fn request_body(&self, request: &mut PluginRequest<'_>) -> BodyWish {
        match self.max_body {
            Some(cap) if DIGESTS.iter().any(|name| request.head.headers.contains_key(name)) => {
                BodyWish::Buffered(cap)
            }
            Some(_) | None => BodyWish::Pass,
        }
    }

    fn on_request_body<'a>(&'a self, request: &'a mut PluginRequest<'_>, body: &'a mut Bytes) -> Flow<'a> {
        match is_digest_of(&request.head.headers, body) {
            true => Flow::Continue,
            false => Reply::problem(StatusCode::UNAUTHORIZED, "the digest is not that of the body").into(),
        }
    }
}

impl Definition for HmacAuth {
    const NAME: &'static str = "hmac-auth";
    const DESCRIPTION: &'static str = "Lets in who signs requests with the secret of a consumer.";
    const ORDER: i32 = 1430;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        Signature::of(config, errors);
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        anonymous_reference(config.anonymous.as_deref())
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let method = Signature::of(&config, &mut errors);
        let max_body = usize::try_from(config.max_body.0).unwrap_or(usize::MAX);
        let max_body = config.validate_body.then_some(max_body);
        errors.finish(Some(Self { guard: Guard::of(method, config.anonymous), max_body }))
    }
}

/// The authentication by signatures.
pub(crate) struct Signature {
    algorithms: Box<[HmacAlgorithm]>,
    clock_skew: Duration,
    required: Box<[Signed]>,
    needs_digest: bool,
    hide_credentials: bool,
    challenge: HeaderValue,
}

/// A part of a request that is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Signed {
    RequestTarget,
    Header(HeaderName),
}

impl Method for Signature {
    fn authenticate(&self, request: &mut PluginRequest<'_>) -> Attempt {
        let credentials = match authorization::of_scheme(&request.head.headers, SCHEME) {
            Ok(Some(credentials)) => credentials,
            Ok(None) => return Verdict::Absent("no signature was found in the request").into(),
            Err(Several) => {
                return Verdict::Refused(Refusal::unauthorized(
                    "the request has more than one Authorization",
                ))
                .into();
            }
        };
        match self.verify(credentials, request, since_1970(request.clock)) {
            Ok(verdict) => verdict.into(),
            Err(detail) => Verdict::Refused(Refusal::unauthorized(detail)).into(),
        }
    }

    fn hide(&self, request: &mut PluginRequest<'_>) -> Result<(), NotRewritable> {
        let is_ours = authorization::of_scheme(&request.head.headers, SCHEME) != Ok(None);
        if self.hide_credentials && is_ours {
            request.head.headers.remove(AUTHORIZATION);
        }
        Ok(())
    }

    fn challenge(&self) -> Option<&HeaderValue> {
        Some(&self.challenge)
    }
}

const SCHEME: &str = "hmac";
const REQUEST_TARGET: &str = "@request-target";
const X_DATE: HeaderName = HeaderName::from_static("x-date");
const DIGEST: HeaderName = HeaderName::from_static("digest");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const DIGESTS: [HeaderName; 2] = [DIGEST, CONTENT_DIGEST];

/// The most parts that are signed.
const MAX_SIGNED: usize = 64;
const MAX_BODY: u64 = 64 << 20;

impl Signature {
    /// Reads a configuration. Parts that are wrong are missing from the result.
    pub(crate) fn of(config: &Config, errors: &mut Errors) -> Self {
        check_anonymous(config.anonymous.as_deref(), errors);
        check_realm(&config.realm, errors);
        if config.algorithms.is_empty() {
            errors.push("algorithms", "must have at least one algorithm");
        }
        if config.clock_skew.0 > Duration::from_secs(86_400) {
            errors.push("clock_skew", "must be at most 1d");
        }
        if config.max_body.0 == 0 || config.max_body.0 > MAX_BODY {
            errors.push("max_body", "must be at least 1 byte, and at most 64MiB");
        }
        let mut required = Vec::with_capacity(config.required_headers.len());
        for (index, name) in config.required_headers.iter().enumerate() {
            match Signed::parse(name) {
                Some(signed) => required.push(signed),
                None => errors.push(
                    format_args!("required_headers[{index}]"),
                    format_args!("{name:?} is neither the name of a header nor @request-target"),
                ),
            }
        }
        Self {
            algorithms: config.algorithms.as_slice().into(),
            clock_skew: config.clock_skew.0,
            required: required.into(),
            needs_digest: config.validate_body,
            hide_credentials: config.hide_credentials,
            challenge: challenge(SCHEME, &config.realm, ""),
        }
    }

    fn verify(
        &self,
        credentials: &[u8],
        request: &PluginRequest<'_>,
        now: Duration,
    ) -> Result<Verdict, &'static str> {
        let credentials = std::str::from_utf8(credentials).ok().and_then(Parameters::read);
        let Parameters { key_id, algorithm, headers, signature } =
            credentials.ok_or("the Authorization is not one of the scheme hmac")?;
        let algorithm = self.algorithms.iter().find(|allowed| allowed.name() == algorithm);
        let algorithm = algorithm.ok_or("the signature's algorithm is not supported")?;
        let signed = self.read_signed(headers, &request.head.headers)?;
        let text = signed_text(&signed, request.head).ok_or("a signed header is not in the request")?;
        let signature = BASE64.decode(signature).map_err(|_| "the signature is not base64")?;
        let known = request.consumers.by_signing_key(key_id);
        let secret = known.map_or(&DECOY[..], |known| &known.secret);
        let key = hmac::Key::new(algorithm.ring(), secret);
        let is_signed = hmac::verify(&key, text.as_bytes(), &signature).is_ok();
        let known = known.filter(|_| is_signed).ok_or("the signature is not the one of the request")?;
        self.check_date(&request.head.headers, now)?;
        Ok(Verdict::Passed(Some(known.identity.clone())))
    }

    /// The parts that a client says to have signed, if all are among them that must be.
    fn read_signed(&self, list: &str, headers: &HeaderMap) -> Result<Vec<Signed>, &'static str> {
        let mut signed: Vec<Signed> = Vec::new();
        for name in list.split(' ').filter(|name| !name.is_empty()) {
            let part = Signed::parse(name).ok_or("the signature names a header that is none")?;
            if signed.contains(&part) || signed.len() >= MAX_SIGNED {
                return Err("the signature names a header twice, or too many");
            }
            signed.push(part);
        }
        let date = date_header(headers);
        let is_signed = |name: &HeaderName| signed.contains(&Signed::Header(name.clone()));
        if !is_signed(&date) {
            return Err("the date of the request is not signed");
        }
        // Each that is there, for the one is checked that is.
        let digests: Vec<_> = DIGESTS.into_iter().filter(|name| headers.contains_key(name)).collect();
        if self.needs_digest && (digests.is_empty() || !digests.iter().all(is_signed)) {
            return Err("the digest of the body is not signed");
        }
        if !self.required.iter().all(|required| signed.contains(required)) {
            return Err("the signature does not include everything that must be signed");
        }
        Ok(signed)
    }

    fn check_date(&self, headers: &HeaderMap, now: Duration) -> Result<(), &'static str> {
        let mut values = headers.get_all(date_header(headers)).iter();
        let only = values.next().filter(|_| values.next().is_none());
        let date = only.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let date = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok());
        let date = date.ok_or("the date of the request is none")?;
        // Dates have whole seconds.
        let skew = Duration::from_secs(now.as_secs()).abs_diff(date);
        if skew > self.clock_skew { Err("the date of the request is too far from now") } else { Ok(()) }
    }
}

/// The secret of keys that nobody has.
const DECOY: [u8; 32] = [0; 32];

/// The header with the date: browsers cannot set `Date`.
fn date_header(headers: &HeaderMap) -> HeaderName {
    if headers.contains_key(&X_DATE) { X_DATE } else { DATE }
}

impl Signed {
    fn parse(name: &str) -> Option<Self> {
        match name {
            REQUEST_TARGET => Some(Self::RequestTarget),
            name => name.parse().ok().map(Self::Header),
        }
    }
}

impl HmacAlgorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "hmac-sha1",
            Self::Sha256 => "hmac-sha256",
            Self::Sha384 => "hmac-sha384",
            Self::Sha512 => "hmac-sha512",
        }
    }

    fn ring(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }
}

/// The parameters of a signature.
struct Parameters<'c> {
    key_id: &'c str,
    algorithm: &'c str,
    headers: &'c str,
    signature: &'c str,
}

impl<'c> Parameters<'c> {
    /// Reads `name="value", …`. `None`: one is missing, twice there, or not known.
    fn read(text: &'c str) -> Option<Self> {
        let (mut key_id, mut algorithm, mut headers, mut signature) = (None, None, None, None);
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (name, after) = rest.split_once("=\"")?;
            let (value, after) = after.split_once('"')?;
            let place = match name.trim() {
                "keyId" | "username" => &mut key_id,
                "algorithm" => &mut algorithm,
                "headers" => &mut headers,
                "signature" => &mut signature,
                _ => return None,
            };
            if place.replace(value).is_some() {
                return None;
            }
            rest = match after.trim_start() {
                "" => "",
                after => after.strip_prefix(',')?.trim_start(),
            };
        }
        Some(Self { key_id: key_id?, algorithm: algorithm?, headers: headers?, signature: signature? })
    }
}

/// The text that is signed. `None`: a part is missing, or not text.
fn signed_text(signed: &[Signed], head: &request::Parts) -> Option<String> {
    let mut lines = Vec::with_capacity(signed.len());
    for part in signed {
        lines.push(match part {
            Signed::RequestTarget => {
                let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
                format!("{} {target}", head.method.as_str().to_ascii_lowercase())
            }
            Signed::Header(name) => {
                let values: Option<Vec<&str>> = head
                    .headers
                    .get_all(name)
                    .iter()
                    .map(|value| value.to_str().ok().map(str::trim))
                    .collect();
                let values = values.filter(|values| !values.is_empty())?;
                format!("{name}: {}", values.join(", "))
            }
        });
    }
    Some(lines.join("\n"))
}

/// True if every digest among `headers` is that of `body`.
fn is_digest_of(headers: &HeaderMap, body: &[u8]) -> bool {
    let expected = BASE64.encode(sha256(body));
    let is_right = |value: &HeaderValue, before: &str, behind: &str| {
        let digest = value.to_str().ok().and_then(|text| {
            let (algorithm, digest) = text.trim().split_once('=')?;
            algorithm.eq_ignore_ascii_case("sha-256").then_some(digest)
        });
        let digest = digest.and_then(|digest| digest.strip_prefix(before)?.strip_suffix(behind));
        digest == Some(&expected)
    };
    headers.get_all(DIGEST).iter().all(|value| is_right(value, "", ""))
        && headers.get_all(CONTENT_DIGEST).iter().all(|value| is_right(value, ":", ":"))
}

fn default_algorithms() -> Vec<HmacAlgorithm> {
    vec![HmacAlgorithm::Sha256, HmacAlgorithm::Sha384, HmacAlgorithm::Sha512]
}

fn default_skew() -> HumanDuration {
    HumanDuration(Duration::from_secs(300))
}

fn default_required() -> Vec<String> {
    vec![REQUEST_TARGET.to_owned(), "host".to_owned()]
}

fn default_max_body() -> ByteSize {
    ByteSize(1 << 20)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Client, build, consumers_of, refused};
    use signalbox_plugin::Consumers;

    const SECRET: &str = "a secret of alice";
    const TARGET: &str = "/p?q=1";

    fn known() -> Consumers {
        let credentials = json!([{"hmac_auth": {"key_id": "alice-key", "secret": SECRET}}]);
        consumers_of(&[json!({"name": "alice", "credentials": credentials}), json!({"name": "guest"})])
    }

    fn date(offset: i64) -> String {
        let now = since_1970(&Client::new("GET", "/").clock).as_secs().checked_add_signed(offset).unwrap();
        httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now))
    }

    /// A request whose headers are signed as `headers` lists them.
    fn signed(client: Client, headers: &str) -> Client {
        signed_with(client, headers, "alice-key", "hmac-sha256", SECRET)
    }

    fn signed_with(client: Client, headers: &str, key_id: &str, algorithm: &str, secret: &str) -> Client {
        let parts: Vec<Signed> = headers.split(' ').filter_map(Signed::parse).collect();
        let text = signed_text(&parts, &client.head).unwrap_or_default();
        let ring = match algorithm {
            "hmac-sha1" => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            "hmac-sha512" => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        };
        let signature = hmac::sign(&hmac::Key::new(ring, secret.as_bytes()), text.as_bytes());
        let signature = BASE64.encode(signature);
        let authorization = format!(
            "hmac keyId=\"{key_id}\", algorithm=\"{algorithm}\", headers=\"{headers}\", signature=\"{signature}\""
        );
        client.header("authorization", &authorization).knowing(&known())
    }

    fn client() -> Client {
        Client::new("POST", TARGET).header("host", "a.example")
    }

    fn status(config: Value, mut client: Client) -> u16 {
        client.meets(&*build("hmac-auth", config)).map_or(200, |answer| answer.status)
    }

    #[test]
    fn the_text_that_is_signed_is_the_documented_one() {
        let client = client().header("X-A", " 1 ").header("x-a", "2").header("date", "today");
        let parts = [REQUEST_TARGET, "X-A", "date", "host"].map(|name| Signed::parse(name).unwrap());
        assert_eq!(
            signed_text(&parts, &client.head).unwrap(),
            "post /p?q=1\nx-a: 1, 2\ndate: today\nhost: a.example"
        );
        assert!(signed_text(&[Signed::parse("x-b").unwrap()], &client.head).is_none());
    }

    #[test]
    fn what_is_signed_right_is_the_consumers() {
        let all = "date @request-target host";
        let mut first = signed(client().header("date", &date(0)), all);
        assert!(first.meets(&*build("hmac-auth", json!({}))).is_none());
        assert_eq!(first.head.headers["x-consumer-username"], "alice");
        assert_eq!(first.head.headers["x-credential-identifier"], "alice-key");
        assert_eq!(
            status(json!({"clock_skew": "5m"}), signed(client().header("date", &date(-299)), all)),
            200
        );
        let with_x_date = client().header("x-date", &date(0)).header("date", "long ago");
        assert_eq!(status(json!({}), signed(with_x_date, "x-date @request-target host")), 200);
        let rfc_850 = {
            // Sunday, 06-Nov-94 08:49:37 GMT
            let imf = date(0);
            let (day, rest) = imf.split_once(", ").unwrap();
            let day = match day {
                "Mon" => "Monday",
                "Tue" => "Tuesday",
                "Wed" => "Wednesday",
                "Thu" => "Thursday",
                "Fri" => "Friday",
                "Sat" => "Saturday",
                _ => "Sunday",
            };
            let parts: Vec<&str> = rest.split(' ').collect();
            format!("{day}, {}-{}-{} {} GMT", parts[0], parts[1], &parts[2][2..], parts[3])
        };
        assert_eq!(status(json!({}), signed(client().header("date", &rfc_850), all)), 200, "{rfc_850}");
        let sha512 = signed_with(client().header("date", &date(0)), all, "alice-key", "hmac-sha512", SECRET);
        assert_eq!(status(json!({}), sha512), 200);
    }

    #[test]
    fn what_is_not_signed_right_is_answered_401() {
        let all = "date @request-target host";
        let now = || client().header("date", &date(0));
        for (what, refused) in vec![
            ("nothing", client()),
            ("another scheme", client().header("authorization", "Bearer x")),
            ("no parameters", now().header("authorization", "hmac ")),
            ("an unknown parameter", now().header("authorization", "hmac keyId=\"a\", x=\"y\"")),
            ("an open quotation mark", now().header("authorization", "hmac keyId=\"a")),
            ("an empty list", signed(now(), "")),
            ("no date", signed(now(), "@request-target host")),
            ("no target", signed(now(), "date host")),
            ("no host", signed(now(), "date @request-target")),
            ("a header twice", signed(now(), "date date @request-target host")),
            ("a header that is not there", signed(now(), "date @request-target host x-other")),
            ("a late date", signed(client().header("date", &date(-302)), all)),
            ("an early date", signed(client().header("date", &date(302)), all)),
            ("no date at all", signed(client(), all)),
            ("a date that is none", signed(client().header("date", "today"), all)),
            ("two dates", signed(now().header("date", &date(0)), all)),
            // The one that counts is not the one that is signed.
            ("an unsigned x-date", signed(now().header("x-date", &date(0)), all)),
            ("another key", signed_with(now(), all, "nobody", "hmac-sha256", SECRET)),
            ("another secret", signed_with(now(), all, "alice-key", "hmac-sha256", "another secret ..")),
            ("an empty secret", signed_with(now(), all, "nobody", "hmac-sha256", "")),
            ("the decoy's secret", signed_with(now(), all, "nobody", "hmac-sha256", &"\0".repeat(32))),
            ("sha1", signed_with(now(), all, "alice-key", "hmac-sha1", SECRET)),
            ("another algorithm", signed_with(now(), all, "alice-key", "none", SECRET)),
            ("two signatures", signed(signed(now(), all), all)),
        ] {
            let mut refused = refused.knowing(&known());
            let answer = refused.meets(&*build("hmac-auth", json!({}))).expect(what);
            assert_eq!(answer.status, 401, "{what}");
            assert_eq!(answer.headers["www-authenticate"], "hmac realm=\"signalbox\"", "{what}");
        }
        let mut changed = signed(now(), all);
        changed.head.uri = "/p?q=2".parse().unwrap();
        assert_eq!(status(json!({}), changed), 401);
        let mut changed = signed(now(), all);
        changed.head.method = http::Method::PUT;
        assert_eq!(status(json!({}), changed), 401);
    }

    #[test]
    fn a_digest_must_be_signed_and_be_that_of_the_body() {
        let config = json!({"validate_body": true});
        let plugin = build("hmac-auth", config.clone());
        let digest = |body: &str| format!("SHA-256={}", BASE64.encode(sha256(body.as_bytes())));
        let now = || client().header("date", &date(0));
        let with = "date @request-target host digest";
        for (what, refused) in [
            ("no digest", signed(now(), "date @request-target host")),
            (
                "a digest that is not signed",
                signed(now().header("digest", &digest("x")), "date @request-target host"),
            ),
            (
                "a second digest that is not signed",
                signed(now().header("digest", &digest("x")).header("content-digest", "sha-256=:x:"), with),
            ),
        ] {
            assert_eq!(status(config.clone(), refused), 401, "{what}");
        }
        for (claimed, body, expected) in
            [("body", "body", true), ("", "", true), ("body", "", false), ("", "body", false)]
        {
            let mut client = signed(now().header("digest", &digest(claimed)), with);
            assert!(client.meets(&*plugin).is_none());
            assert_eq!(client.sends(&*plugin, body).is_ok(), expected, "{claimed:?} {body:?}");
        }
        let structured = format!("sha-256=:{}:", BASE64.encode(sha256(b"body")));
        let mut client =
            signed(now().header("content-digest", &structured), "date @request-target host content-digest");
        assert!(client.meets(&*plugin).is_none());
        assert!(client.sends(&*plugin, "body").is_ok() && client.sends(&*plugin, "Body").is_err());
        let mut other = signed(now().header("digest", "MD5=abc"), with);
        assert!(other.meets(&*plugin).is_none() && other.sends(&*plugin, "").is_err());
    }

    #[test]
    fn bad_configurations_are_refused() {
        for (config, field) in [
            (json!({"algorithms": []}), "algorithms: "),
            (json!({"algorithms": ["md5"]}), "algorithms[0]: "),
            (json!({"clock_skew": "2d"}), "clock_skew: "),
            (json!({"required_headers": ["a b"]}), "required_headers[0]: "),
            (json!({"max_body": 0}), "max_body: "),
            (json!({"anonymous": "A B"}), "anonymous: "),
        ] {
            let errors = refused("hmac-auth", config.clone());
            assert!(errors.starts_with(field), "{config}: {errors}");
        }
    }
}
