//! Authenticates requests by the client certificates of consumers.
//!
//! The listener asks for the certificate, and verifies it (`tls.client_auth`). This plugin finds the consumer with a matching
//! `mtls` credential: by the SHA-256 of the certificate, by one of its other names, or by its subject, whichever `by` lists, in
//! this order. If other names of one certificate belong to several consumers, it is refused.
//!
//! With `ca`, one of these authorities must have issued the certificate, besides what the listener demands. A client cannot even
//! connect with a certificate that the listener does not trust, so the authorities of the listener are those of all APIs behind it,
//! and the `ca` of each API's plugin says which of them count there. The chain is checked again for the first request in each minute,
//! so a change of `ca` concerns open connections, too. A chain that is refused is remembered for a minute, likewise.
//!
//! Every certificate of `ca` must be one of an authority: with `CA:TRUE` in its `basicConstraints` and, if it has a `keyUsage`,
//! with `keyCertSign`. Others are refused when the plugin is written, because whoever has the key of such a certificate could issue
//! more of them. One that an earlier version has stored keeps working; a file that a proxy
//! reads by `--config` counts as written. To let in single certificates, name their `fingerprint` in the credentials of consumers. An authority that has
//! expired, or is not valid yet, is accepted, so that a list with an old one can still be edited, but it vouches for nobody; the
//! proxy's log names it when the plugin is built.
//!
//! A request over a connection without a certificate is answered `401`, and so is one whose certificate belongs to nobody, is not
//! one of the `ca`, or has expired since the connection was made. With `anonymous`, such requests pass as that consumer. The answer has no
//! `WWW-Authenticate`, for there is no scheme that a client could answer with.
//!
//! The upstream gets the consumer's identity in headers, as with [key-auth](key-auth.md). What the client itself sends as
//! `X-Client-Cert-…` is removed.

use std::ops::Range;
use std::time::Duration;

use http::HeaderValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{ClientAuthorities, ClientCertificate, Errors, FieldError, ResourceKey};
use signalbox_plugin::{Consumers, Context, Definition, Flow, Identity, Plugin, PluginRequest, hooks};

use crate::authentication::{Attempt, Guard, Method, Refusal, Verdict, anonymous_reference, check_anonymous};
use crate::clock::since_1970;
use crate::verified::{self, Verified};

/// The names by which a certificate is looked up.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "mTLS authentication", example = serde_json::json!({}),
    example = serde_json::json!({"by": ["san"], "anonymous": "guest"}))]
pub(crate) struct Config {
    /// The names of a certificate that identify a consumer.
    #[serde(default = "default_by")]
    #[schemars(title = "Identify by", length(min = 1))]
    by: Vec<By>,
    /// The certificates of the authorities that may have issued the certificate, PEM. Absent: all that the listener trusts. They must
    /// have `CA:TRUE`. One that has expired vouches for nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Authorities", extend("x-multiline" = true))]
    ca: Option<String>,
    /// The consumer as which requests without a consumer's certificate pass. Absent: they are answered 401.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Anonymous consumer")]
    pub(crate) anonymous: Option<String>,
}

/// A name of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum By {
    /// The SHA-256 of the certificate.
    Fingerprint,
    /// One of its other names.
    San,
    /// Its subject.
    Subject,
}

/// Authenticates requests by the client certificates of consumers.
pub(crate) struct MtlsAuth(Guard);

#[hooks]
impl Plugin for MtlsAuth {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        self.0.on_request(request)
    }

    fn uses_consumer_headers(&self) -> bool {
        self.0.uses_consumer_headers()
    }
}

impl Definition for MtlsAuth {
    const NAME: &'static str = "mtls-auth";
    const DESCRIPTION: &'static str = "Lets in who has the client certificate of a consumer.";
    const ORDER: i32 = 1460;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        Certificate::of(config, errors);
    }

    fn check_written(config: &Config, errors: &mut Errors) {
        if let Some(Err(message)) = config.ca.as_deref().map(ClientAuthorities::check) {
            errors.push("ca", message);
        }
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        anonymous_reference(config.anonymous.as_deref())
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let method = Certificate::of(&config, &mut errors);
        method.warn(context);
        errors.finish(Some(Self(Guard::of(method, config.anonymous))))
    }
}

/// The authentication by client certificates.
pub(crate) struct Certificate {
    by: Box<[By]>,
    authorities: Option<Authorities>,
}

/// The authorities, and the certificates that were checked, each with the times since 1970 between which that need not be checked
/// again.
struct Authorities {
    trusted: ClientAuthorities,
    /// The certificates that they have issued.
    checked: Verified<Range<Duration>>,
    /// The chains that lead to none of them. They push out no certificate of others.
    refused: Verified<Range<Duration>>,
}

/// The time for which the result of a check is remembered: a certificate of the chain could expire, or begin to be valid.
const MEMORY: Duration = Duration::from_secs(60);

impl Method for Certificate {
    fn authenticate(&self, request: &mut PluginRequest<'_>) -> Attempt {
        let Some(certificate) = request.certificate else {
            return Verdict::Absent("the client has no certificate").into();
        };
        // It was valid when the connection was made.
        let now = since_1970(request.clock);
        if certificate.not_after < i64::try_from(now.as_secs()).unwrap_or(i64::MAX) {
            return Verdict::Refused(Refusal::unauthorized("the client's certificate has expired")).into();
        }
        if self.authorities.as_ref().is_some_and(|authorities| !authorities.vouch_for(certificate, now)) {
            let detail = "the client's certificate is not issued by an authority that counts here";
            return Verdict::Refused(Refusal::unauthorized(detail)).into();
        }
        match self.owner(certificate, request.consumers) {
            Ok(identity) => Verdict::Passed(Some(identity)).into(),
            Err(detail) => Verdict::Refused(Refusal::unauthorized(detail)).into(),
        }
    }

    fn challenge(&self) -> Option<&HeaderValue> {
        None
    }
}

impl Authorities {
    fn vouch_for(&self, certificate: &ClientCertificate, now: Duration) -> bool {
        // Whoever has the certificate has its chain: what others the client sent makes no difference to the next time.
        let Some(own) = certificate.chain.first() else { return false };
        let is_current = |known: &Range<Duration>| known.contains(&now).then_some(());
        let hash = verified::hash(own);
        if self.checked.find(&hash, is_current).is_some() {
            return true;
        }
        // With others the certificate may be good, so what is refused is the whole chain.
        let chain = verified::hash_of_parts(certificate.chain.iter().map(AsRef::as_ref));
        if self.refused.find(&chain, is_current).is_some() {
            return false;
        }
        let is_good = self.trusted.vouch_for(certificate, now);
        match is_good {
            true => self.checked.remember(hash, now..now + MEMORY),
            false => self.refused.remember(chain, now..now + MEMORY),
        }
        is_good
    }
}

impl Certificate {
    /// Reads a configuration. Parts that are wrong are missing from the result.
    pub(crate) fn of(config: &Config, errors: &mut Errors) -> Self {
        check_anonymous(config.anonymous.as_deref(), errors);
        if config.by.is_empty() {
            errors.push("by", "must have at least one of fingerprint, san, subject");
        }
        let authorities = config.ca.as_deref().and_then(|pem| {
            let trusted = ClientAuthorities::from_pem(pem);
            trusted.map_err(|message| errors.push("ca", message)).ok()
        });
        let all = [By::Fingerprint, By::San, By::Subject];
        Self {
            by: all.into_iter().filter(|by| config.by.contains(by)).collect(),
            authorities: authorities.map(|trusted| Authorities {
                trusted,
                checked: Verified::default(),
                refused: Verified::default(),
            }),
        }
    }

    /// Names the authorities in the log that are not valid now.
    pub(crate) fn warn(&self, context: &Context<'_>) {
        let Some(Authorities { trusted, .. }) = &self.authorities else { return };
        let places: Vec<String> =
            trusted.not_valid_at(since_1970(context.clock)).map(|place| place.to_string()).collect();
        if places.len() == trusted.count() {
            context.log.warn("no certificate passes: none of the authorities in `ca` is valid now");
        } else if !places.is_empty() {
            let places = places.join(", ");
            context
                .log
                .warn(format_args!("authorities in `ca` are not valid now, and vouch for nobody: {places}"));
        }
    }

    fn owner(
        &self,
        certificate: &ClientCertificate,
        consumers: &Consumers,
    ) -> Result<Identity, &'static str> {
        for by in &self.by {
            let found = match by {
                By::Fingerprint => consumers.by_certificate_fingerprint(&certificate.fingerprint),
                By::Subject => consumers.by_certificate_subject(&certificate.subject),
                By::San => {
                    let mut owners =
                        certificate.names.iter().filter_map(|name| consumers.by_certificate_name(name));
                    let first = owners.next();
                    let is_other = |other: &Identity| {
                        first.is_some_and(|first| first.consumer.name != other.consumer.name)
                    };
                    if owners.any(is_other) {
                        return Err("the client's certificate has names of several consumers");
                    }
                    first
                }
            };
            if let Some(identity) = found {
                return Ok(identity.clone());
            }
        }
        Err("the client's certificate belongs to no consumer")
    }
}

fn default_by() -> Vec<By> {
    vec![By::Fingerprint, By::San, By::Subject]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use std::time::SystemTime;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
    use signalbox_config::{Kind, Resource};
    use signalbox_plugin::Clock;
    use signalbox_plugin::testing::TestClock;

    use super::*;
    use crate::testing::{Client, build, consumers_of, refused};

    fn known() -> Consumers {
        let one = |name: &str, mtls: Value| json!({"name": name, "credentials": [{"mtls": mtls}]});
        consumers_of(&[
            one("by-subject", json!({"subject": "CN=alice,O=Example"})),
            one("by-name", json!({"san": "DNS:alice.example"})),
            one("by-uri", json!({"san": "URI:spiffe://example/alice"})),
            one("by-fingerprint", json!({"fingerprint": "ab".repeat(32)})),
            json!({"name": "guest"}),
        ])
    }

    fn certificate(subject: &str, names: &[&str], fingerprint: &str, not_after: i64) -> ClientCertificate {
        ClientCertificate {
            subject: subject.into(),
            names: names.iter().map(|name| (*name).into()).collect(),
            fingerprint: fingerprint.repeat(32).into(),
            not_after,
            chain: [].into(),
        }
    }

    #[test]
    fn a_certificate_is_its_consumers() {
        let by = |list: Value| json!({"by": list});
        let all = json!({});
        for (config, certificate, expected) in [
            (&all, Some(certificate("CN=alice,O=Example", &[], "00", i64::MAX)), Ok("by-subject")),
            (&all, Some(certificate("CN=x", &["DNS:x", "DNS:alice.example"], "00", i64::MAX)), Ok("by-name")),
            (&all, Some(certificate("CN=x", &["URI:spiffe://example/alice"], "00", i64::MAX)), Ok("by-uri")),
            (&all, Some(certificate("CN=alice,O=Example", &[], "ab", i64::MAX)), Ok("by-fingerprint")),
            (
                &by(json!(["subject"])),
                Some(certificate("CN=x", &["DNS:alice.example"], "ab", i64::MAX)),
                Err("no consumer"),
            ),
            (
                &by(json!(["san"])),
                Some(certificate("CN=alice,O=Example", &[], "ab", i64::MAX)),
                Err("no consumer"),
            ),
            (
                &all,
                Some(certificate(
                    "CN=x",
                    &["DNS:alice.example", "URI:spiffe://example/alice"],
                    "00",
                    i64::MAX,
                )),
                Err("several consumers"),
            ),
            // Neither a part of a name, nor a name of another kind.
            (
                &all,
                Some(certificate("CN=alice", &["DNS:alice.exampl", "URI:alice.example"], "00", i64::MAX)),
                Err("no consumer"),
            ),
            (&all, Some(certificate("CN=alice,O=Example", &[], "00", 1_000_000_000)), Err("has expired")),
            (&all, None, Err("has no certificate")),
        ] {
            let mut client = Client::new("GET", "/").knowing(&known());
            client.certificate = certificate.clone();
            let answer = client.meets(&*build("mtls-auth", config.clone()));
            match (answer, expected) {
                (None, Ok(consumer)) => {
                    assert_eq!(client.head.headers["x-consumer-username"], consumer, "{certificate:?}");
                }
                (Some(answer), Err(detail)) => {
                    assert_eq!(answer.status, 401);
                    assert!(answer.detail.contains(detail), "{}", answer.detail);
                    assert!(!answer.headers.contains_key("www-authenticate"));
                }
                (answer, expected) => panic!("{answer:?}, expected {expected:?} for {certificate:?}"),
            }
        }
    }

    #[test]
    fn who_has_no_certificate_may_pass_as_the_anonymous_consumer() {
        let mut client = Client::new("GET", "/").knowing(&known());
        assert!(client.meets(&*build("mtls-auth", json!({"anonymous": "guest"}))).is_none());
        assert_eq!(client.head.headers["x-anonymous-consumer"], "true");
        assert!(refused("mtls-auth", json!({"by": []})).starts_with("by: "));
        for ca in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(refused("mtls-auth", json!({"ca": ca})).starts_with("ca: "), "{ca}");
        }
    }

    #[test]
    fn a_certificate_of_no_authority_is_refused_when_it_is_written_and_works_where_it_is_stored() {
        let params = CertificateParams::new(vec!["alice.example".to_owned()]).unwrap();
        let own = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let method = json!({"ca": own.pem()});
        for (type_name, config, field) in [
            ("mtls-auth", method.clone(), "config.ca"),
            ("auth", json!({"any": [{"key-auth": {}}, {"mtls-auth": method}]}), "config.any[1].mtls-auth.ca"),
        ] {
            let spec = json!({"name": "certificate", "type": type_name, "config": config});
            let stored = Resource::from_stored(Kind::Plugin, spec.to_string().as_bytes(), crate::builtin());
            assert!(stored.is_ok(), "{stored:?}");
            let errors = Resource::parse(Kind::Plugin, spec, crate::builtin()).unwrap_err();
            assert_eq!((errors[0].field.as_str(), errors.len()), (field, 1), "{errors:?}");
            assert!(errors[0].message.contains("CA:TRUE"), "{errors:?}");
        }
    }

    /// An authority that is valid from 2030 to 2040.
    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date_time_ymd(2030, 1, 1), date_time_ymd(2040, 1, 1));
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// The certificate of the client, and that of the authority between it and `root`.
    fn issued(root: &CertifiedIssuer<'_, KeyPair>) -> [rcgen::Certificate; 2] {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "between");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let between = CertifiedIssuer::signed_by(params, key, root).unwrap();
        let params = CertificateParams::new(vec!["alice.example".to_owned()]).unwrap();
        [params.signed_by(&KeyPair::generate().unwrap(), &between).unwrap(), between.as_ref().clone()]
    }

    #[test]
    fn a_refused_chain_is_remembered_for_a_minute_and_others_of_the_certificate_are_not_refused_by_it() {
        let root = authority();
        let plugin = build("mtls-auth", json!({"ca": root.as_ref().pem()}));
        let [own, between] = issued(&root);
        let start = Duration::from_secs(date_time_ymd(2030, 1, 1).unix_timestamp().unsigned_abs());
        let passes = |chain: &[&rcgen::Certificate], now: Duration| {
            let chain: Vec<_> = chain.iter().map(|certificate| certificate.der().clone()).collect();
            let mut client = Client::new("GET", "/").knowing(&known());
            client.certificate = ClientCertificate::read(&chain);
            client.clock = Clock::new(TestClock::new(now, SystemTime::UNIX_EPOCH + now));
            client.meets(&*plugin).is_none()
        };
        let second = Duration::from_secs(1);
        // Before the authority is valid, and until a minute after that was found out.
        for (now, expected) in
            [(start - 30 * second, false), (start + 29 * second, false), (start + 30 * second, true)]
        {
            assert_eq!(passes(&[&own, &between], now), expected, "{now:?}");
        }
        let [own, between] = issued(&root);
        for (chain, expected) in [(&[&own][..], false), (&[&own, &between], true), (&[&own], true)] {
            assert_eq!(passes(chain, start), expected, "{}", chain.len());
        }
    }
}
