use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};
use x509_parser::public_key::PublicKey;

use crate::authorities::parse_certificates;
use crate::authority::is_host_name;
use crate::error::{Errors, FieldError};
use crate::narrowing::Narrowing;
use crate::ocsp::{self, Staple};
use crate::secret::{REDACTED, ReferenceSpec, SecretSpec};
use crate::specification::{Audience, Context, Specification, common_fields};

/// A certificate as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateSpec {
    /// The name of the certificate, unique among certificates.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The fleets that get the certificate. Absent: all fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// The certificate in PEM, followed by those of the authorities that issued it, each issued by the next.
    pub certificate: String,
    /// The private key in PEM: RSA of at least 2048 bits, ECDSA on P-256 or P-384, or Ed25519. Or a reference: `{env: NAME}` or
    /// `{file: PATH}` on the proxy's host, which is not checked before a proxy reads it. The API never returns the key.
    pub private_key: SecretSpec,
    /// The server names for which the certificate is chosen: `example.com`, `*.example.com`. The certificate must be valid for them.
    /// Absent: all names of the certificate. Empty: no names, so that it is used only where a resource names it. A server name may
    /// have one certificate for each type of key: ECDSA, EdDSA and RSA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snis: Option<Vec<String>>,
    /// An OCSP response, which is stapled to handshakes while it is valid: PEM, or DER in base64. It must be for this certificate, and
    /// valid when it is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocsp_staple: Option<String>,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Certificate {
    /// The certificate, followed by those of its issuers, in order.
    pub chain: Box<[CertificateDer<'static>]>,
    /// Its private key.
    pub key: PrivateKey,
    /// The server names for which it is chosen, in lower case: `example.com`, `*.example.com`.
    pub snis: Box<[Box<str>]>,
    /// The type of its key.
    pub key_type: KeyType,
    /// A DER-encoded OCSP response. See [`Certificate::staple`].
    pub ocsp: Option<Box<[u8]>>,
    /// Facts that the certificate states about itself.
    pub facts: CertificateFacts,
}

/// Facts that a certificate states about itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, JsonSchema)]
pub struct CertificateFacts {
    /// The subject: `CN=example.com, O=Example`.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// The host names that the certificate is valid for.
    pub names: Vec<String>,
    /// The start of its validity, seconds since 1970.
    pub not_before: i64,
    /// The end of its validity, seconds since 1970.
    pub not_after: i64,
}

/// The type of a certificate's key. A server name may have one certificate of each type. A client gets the first of these that it
/// can verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// ECDSA, on any curve.
    Ecdsa,
    /// Ed25519 and others of its kind.
    Eddsa,
    /// RSA.
    Rsa,
}

impl KeyType {
    /// Its name for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ecdsa => "ECDSA",
            Self::Eddsa => "EdDSA",
            Self::Rsa => "RSA",
        }
    }
}

/// The identity that a client proved with a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// As RFC 4514 writes it, in the order of the certificate: `CN=alice,O=Example`.
    pub subject: Box<str>,
    /// Its other names: `DNS:alice.example`, `URI:spiffe://example/alice`, `email:alice@example.com`, `IP:192.0.2.1`.
    pub names: Box<[Box<str>]>,
    /// The SHA-256 of the certificate, 64 hexadecimal digits.
    pub fingerprint: Box<str>,
    /// The end of its validity, seconds since 1970.
    pub not_after: i64,
    /// The certificate in DER, followed by the others that the client sent.
    pub chain: Arc<[CertificateDer<'static>]>,
}

/// A certificate's private key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum PrivateKey {
    /// The key in PEM.
    Pem(Box<str>),
    /// An environment variable of the proxy that holds it.
    Env(String),
    /// A file on the proxy's host that holds it.
    File(String),
}

/// The longest chain.
const MAX_CHAIN: usize = 10;

/// The most server names of a certificate.
const MAX_NAMES: usize = 1000;

impl Specification for CertificateSpec {
    type Parsed = Certificate;

    const TITLE: &'static str = "Certificate";
    const TITLES: &'static str = "Certificates";
    const ABOUT: &'static str =
        "A certificate with its private key. Listeners present it to clients, and upstreams to targets.";
    const AUDIENCE: Audience = Audience::Proxies { wire_tag: 6 };
    const CLEAR_SECRETS: &'static [&'static str] = &["private_key"];

    common_fields!(CertificateSpec);

    fn narrowing(_: &Value) -> &'static [Narrowing] {
        const { &[Narrowing::not_null(&["snis"], "for all names of the certificate")] }
    }

    fn claims(certificate: &Certificate) -> Vec<(String, String)> {
        let key_type = certificate.key_type.as_str();
        let snis = certificate.snis.iter();
        let claim = |sni| format!("the server name {sni} for {key_type} certificates");
        snis.map(|sni| (claim(sni), "snis".to_owned())).collect()
    }

    fn parse(&self, _: &Context<'_>) -> Result<Certificate, Vec<FieldError>> {
        let mut errors = Errors::default();
        let chain = parse_certificates(&self.certificate).and_then(check_chain);
        let (chain, facts, key_type) = match chain {
            Ok((chain, facts, key_type)) => (Some(chain), Some(facts), key_type),
            Err(message) => {
                errors.push("certificate", message);
                (None, None, KeyType::Rsa)
            }
        };
        let key = match &self.private_key {
            SecretSpec::Literal(text) if text == REDACTED => {
                Err("is \"<redacted>\", but nothing is stored that could be kept".to_owned())
            }
            SecretSpec::Literal(pem) => {
                let checked = match &chain {
                    Some(chain) => certified(chain, pem).map(drop),
                    None => signing_key(pem).map(drop),
                };
                checked.map(|()| PrivateKey::Pem(pem.as_str().into()))
            }
            SecretSpec::Reference(ReferenceSpec::Env(name)) if !name.is_empty() => {
                Ok(PrivateKey::Env(name.clone()))
            }
            SecretSpec::Reference(ReferenceSpec::File(path)) if !path.is_empty() => {
                Ok(PrivateKey::File(path.clone()))
            }
            SecretSpec::Reference(ReferenceSpec::Sha256(_)) => {
                Err("must be the key itself, {env: NAME} or {file: PATH}".to_owned())
            }
            SecretSpec::Reference(_) => Err("env and file must not be empty".to_owned()),
        };
        let key = key.map_err(|message| errors.push("private_key", message)).ok();
        let snis = match (&self.snis, &facts) {
            (Some(given), facts) => parse_snis(given, facts.as_ref(), &mut errors),
            (None, Some(facts)) => facts.names.iter().map(|name| name.as_str().into()).collect(),
            (None, None) => Vec::new(),
        };
        let ocsp = self
            .ocsp_staple
            .as_deref()
            .and_then(|text| parse_ocsp(text).map_err(|message| errors.push("ocsp_staple", message)).ok());
        let parsed = chain.zip(facts).zip(key).map(|((chain, facts), key)| Certificate {
            chain: chain.into(),
            key,
            snis: snis.into(),
            key_type,
            ocsp,
            facts,
        });
        errors.finish(parsed)
    }

    fn redact(&mut self) {
        if let SecretSpec::Literal(_) = self.private_key {
            self.private_key = SecretSpec::Literal(REDACTED.to_owned());
        }
    }

    fn restore(&self, new: &mut Value) {
        if let Some(key) = new.get_mut("private_key").filter(|key| key.as_str() == Some(REDACTED)) {
            *key = serde_json::to_value(&self.private_key).unwrap_or(Value::Null);
        }
    }
}

impl Certificate {
    /// The first of the chain that has expired at `now`, seconds since 1970: its place, from 1, and when it did. A root at its
    /// end does not count, for clients go by the one that they have.
    pub fn expired(&self, now: i64) -> Option<(usize, i64)> {
        self.chain.iter().enumerate().find_map(|(index, der)| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            let root = index > 0 && certificate.issuer().as_raw() == certificate.subject().as_raw();
            let until = certificate.validity().not_after.timestamp();
            (until < now && !root).then_some((index + 1, until))
        })
    }

    /// The certificate, ready to prove who one is with `key`, its private key in PEM; or why that is none.
    pub fn certified(&self, key: &str) -> Result<CertifiedKey, String> {
        certified(&self.chain, key)
    }

    /// The OCSP response for clients while [it is current](Staple::check), or the reason why it cannot be used. It must be for this
    /// very certificate, and signed by its issuer, which is known where the chain or the response has the issuer.
    pub fn staple(&self) -> Result<Option<Staple<'_>>, String> {
        self.ocsp.as_deref().map(|der| ocsp::staple(der, &self.chain)).transpose()
    }
}

impl ClientCertificate {
    /// Reads the first certificate of the chain that a client sent. What its texts have besides printable ASCII is written as `\\` and
    /// two hexadecimal digits for each byte. `None`: it is not X.509.
    pub fn read(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let der = chain.first()?;
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| {
            Some(match name {
                GeneralName::DNSName(name) => format!("DNS:{}", escaped(name, ",")),
                GeneralName::URI(uri) => format!("URI:{}", escaped(uri, ",")),
                GeneralName::RFC822Name(address) => format!("email:{}", escaped(address, ",")),
                GeneralName::IPAddress(bytes) => match bytes.len() {
                    4 => format!("IP:{}", IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?)),
                    _ => format!("IP:{}", IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?)),
                },
                _ => return None,
            })
        });
        Some(Self {
            subject: distinguished(certificate.subject()).into(),
            names: names.take(MAX_NAMES).map(Into::into).collect(),
            fingerprint: crate::secret::hex(&crate::secret::sha256(der)).into(),
            not_after: certificate.validity().not_after.timestamp(),
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
        })
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pem(_) => f.write_str(REDACTED),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Reads the first, and checks that each was issued by the next.
fn check_chain(
    chain: Vec<CertificateDer<'static>>,
) -> Result<(Vec<CertificateDer<'static>>, CertificateFacts, KeyType), String> {
    if chain.len() > MAX_CHAIN {
        return Err(format!("has {} certificates; at most {MAX_CHAIN}", chain.len()));
    }
    let mut parsed = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => parsed.push(certificate),
            _ => return Err(format!("its certificate {} is not X.509", index + 1)),
        }
    }
    for (index, pair) in parsed.windows(2).enumerate() {
        if pair[0].issuer().as_raw() != pair[1].subject().as_raw() {
            return Err(format!(
                "is out of order: its certificate {} was issued by {:?}, but {:?} comes next",
                index + 1,
                distinguished(pair[0].issuer()),
                distinguished(pair[1].subject())
            ));
        }
        let verified = pair[0].verify_signature(Some(pair[1].public_key()));
        if matches!(verified, Err(x509_parser::error::X509Error::SignatureVerificationError)) {
            return Err(format!(
                "is out of order: its certificate {} was not signed by the key of the next",
                index + 1
            ));
        }
    }
    let first = parsed.first().ok_or("has no certificate")?;
    let facts = CertificateFacts {
        subject: distinguished(first.subject()),
        issuer: distinguished(first.issuer()),
        names: names_of(first),
        not_before: first.validity().not_before.timestamp(),
        not_after: first.validity().not_after.timestamp(),
    };
    let key_type = match first.public_key().parsed() {
        Ok(PublicKey::EC(_)) => KeyType::Ecdsa,
        Ok(PublicKey::RSA(_)) => KeyType::Rsa,
        _ => KeyType::Eddsa,
    };
    drop(parsed);
    Ok((chain, facts, key_type))
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names: BTreeSet<String> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .filter(|name| is_server_name(name))
        .take(MAX_NAMES)
        .collect();
    names.into_iter().collect()
}

fn parse_snis(given: &[String], facts: Option<&CertificateFacts>, errors: &mut Errors) -> Vec<Box<str>> {
    if given.len() > MAX_NAMES {
        errors.push("snis", format_args!("has {} entries; at most {MAX_NAMES}", given.len()));
    }
    let mut snis: BTreeSet<Box<str>> = BTreeSet::new();
    for (index, text) in given.iter().enumerate() {
        let name = text.to_ascii_lowercase();
        if !is_server_name(&name) {
            let message = format!("{text:?} is not a host name like example.com or *.example.com");
            errors.push(format_args!("snis[{index}]"), message);
        } else if facts.is_some_and(|facts| !facts.names.iter().any(|own| covers(own, &name))) {
            let own = facts.map(|facts| facts.names.join(", ")).filter(|names| !names.is_empty());
            let own = own.as_deref().unwrap_or("no names");
            let message = format!("{text:?} is none of the names of the certificate, which has {own}");
            errors.push(format_args!("snis[{index}]"), message);
        } else if !snis.insert(name.into()) {
            errors.push(format_args!("snis[{index}]"), format_args!("{text:?} is listed twice"));
        }
    }
    snis.into_iter().collect()
}

fn is_server_name(name: &str) -> bool {
    let plain = name.strip_prefix("*.").unwrap_or(name);
    is_host_name(plain) && !plain.starts_with('[') && plain.parse::<std::net::Ipv4Addr>().is_err()
}

/// True if a certificate's name covers a server name: a wildcard stands for one label (RFC 9525, section 6.3).
fn covers(own: &str, name: &str) -> bool {
    own == name
        || own.strip_prefix("*.").is_some_and(|parent| {
            name.split_once('.').is_some_and(|(label, rest)| label != "*" && rest == parent)
        })
}

/// The DER of an OCSP response that is one.
fn parse_ocsp(text: &str) -> Result<Box<[u8]>, String> {
    const BEGIN: &str = "-----BEGIN ";
    let wrapped;
    let pem = if text.trim_start().starts_with(BEGIN) {
        text
    } else {
        let digits: String = text.split_whitespace().collect();
        wrapped = format!("{BEGIN}OCSP RESPONSE-----\n{digits}\n-----END OCSP RESPONSE-----\n");
        &wrapped
    };
    let not_read = |_| "is neither PEM nor base64".to_owned();
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| not_read(error.to_string()))?;
    // RFC 6960, section 4.2.1: SEQUENCE { responseStatus ENUMERATED, [0] … }, where 0 is "successful".
    let der = pem.contents;
    let body = match *der.as_slice() {
        [0x30, short, ref body @ ..] if short < 0x80 => (usize::from(short) == body.len()).then_some(body),
        [0x30, 0x81, len, ref body @ ..] => (usize::from(len) == body.len()).then_some(body),
        [0x30, 0x82, high, low, ref body @ ..] => {
            (usize::from(high) << 8 | usize::from(low) == body.len()).then_some(body)
        }
        _ => None,
    };
    match body {
        Some([0x0a, 0x01, 0x00, 0xa0, ..]) => Ok(der.into()),
        Some([0x0a, 0x01, status, ..]) => {
            Err(format!("is the response {status} of a server that had no answer"))
        }
        _ => Err("is not an OCSP response".to_owned()),
    }
}

/// A name as RFC 4514 writes it, but in the order of the certificate.
fn distinguished(name: &X509Name<'_>) -> String {
    let mut out = String::new();
    for attribute in name.iter_attributes() {
        if !out.is_empty() {
            out.push(',');
        }
        match x509_parser::objects::oid2abbrev(attribute.attr_type(), x509_parser::objects::oid_registry()) {
            Ok(known) => out.push_str(known),
            Err(_) => out.push_str(&attribute.attr_type().to_id_string()),
        }
        out.push('=');
        match attribute.as_str() {
            Ok(text) => out.push_str(&escaped(text, ",+\"\\<>;=")),
            Err(_) => out.push_str(&format!("#{}", crate::secret::hex(attribute.as_slice()))),
        }
    }
    out
}

/// `text` in printable ASCII, with `special` and all else escaped: RFC 4514, section 2.4.
fn escaped(text: &str, special: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match char::from(byte) {
            c if special.contains(c) => out.extend(['\\', c]),
            c @ ' '..='~' if c != '\\' => out.push(c),
            _ => out.push_str(&format!("\\{byte:02x}")),
        }
    }
    out
}

fn certified(chain: &[CertificateDer<'static>], key: &str) -> Result<CertifiedKey, String> {
    let certified = CertifiedKey::new(chain.to_vec(), signing_key(key)?);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err("is not the key of the certificate".to_owned()),
        Err(error) => Err(format!("cannot be used with the certificate: {error}")),
    }
}

fn signing_key(pem: &str) -> Result<Arc<dyn rustls::sign::SigningKey>, String> {
    if pem.contains("ENCRYPTED") {
        return Err("is encrypted; write it without a password, it is kept encrypted here".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| "has no private key in PEM (-----BEGIN PRIVATE KEY-----)".to_owned())?;
    provider().key_provider.load_private_key(key).map_err(|_| {
        "is of a type that is not supported: it must be RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384, or Ed25519"
            .to_owned()
    })
}

fn provider() -> CryptoProvider {
    ring::default_provider()
}
