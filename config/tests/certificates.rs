//! Certificates: what is refused and why, what they are good for, and what of them can be read back.

#![allow(clippy::unwrap_used, reason = "of helpers, too")]

mod common;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    PKCS_ED25519, SanType,
};
use serde_json::{Value, json};
use signalbox_config::{
    Body, Certificate, Change, ClientCertificate, Kind, Problem, REDACTED, Relations, Resource, RevisionId,
    Snapshot, StapleSignature,
};

use common::{Catalog, parse};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, in PEM.
fn issued(names: &[&str], by: &Authority) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, by).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// A certificate in DER and its key, for signing responses where `purposes` say so.
fn responder(by: &Authority, purposes: Vec<ExtendedKeyUsagePurpose>) -> (Vec<u8>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.extended_key_usages = purposes;
    (params.signed_by(&key, by).unwrap().der().to_vec(), key)
}

fn spec(certificate: &str, key: &str) -> Value {
    json!({"name": "c", "certificate": certificate, "private_key": key})
}

fn with(spec: &Value, field: &str, value: &Value) -> Value {
    let mut spec = spec.clone();
    spec[field] = value.clone();
    spec
}

fn certificate(resource: &Resource) -> &Certificate {
    match resource.body() {
        Body::Certificate(certificate) => certificate,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    let ca = authority("ca");
    let (cert, key) = issued(&["example.com", "*.example.com"], &ca);
    let (other, other_key) = issued(&["other.example"], &ca);
    let good = spec(&cert, &key);
    let root = ca.as_ref().pem();
    for (spec, expected) in [
        (
            with(&good, "certificate", &json!("hello")),
            "certificate: has no certificate in PEM (-----BEGIN CERTIFICATE-----)",
        ),
        (
            with(&good, "certificate", &json!(cert.replace("-----END CERTIFICATE-----\n", ""))),
            "certificate: is not PEM: ",
        ),
        (
            with(&good, "certificate", &json!(cert.clone() + &key)),
            "certificate: holds a private key, which would be readable here",
        ),
        (
            with(
                &good,
                "certificate",
                &json!("-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n"),
            ),
            "certificate: its certificate 1 is not X.509",
        ),
        (
            with(&good, "certificate", &json!(root + &cert)),
            "certificate: is out of order: its certificate 1 was issued by \"CN=ca\", but \"CN=rcgen self signed cert\" comes next",
        ),
        (
            with(&good, "certificate", &json!(cert.clone() + &authority("ca").as_ref().pem())),
            "certificate: is out of order: its certificate 1 was not signed by the key of the next",
        ),
        (with(&good, "certificate", &json!(cert.clone() + &other)), "certificate: is out of order"),
        (with(&good, "private_key", &json!(other_key)), "private_key: is not the key of the certificate"),
        (with(&good, "private_key", &json!("hello")), "private_key: has no private key in PEM"),
        (
            with(
                &good,
                "private_key",
                &json!(
                    "-----BEGIN ENCRYPTED PRIVATE KEY-----\naGVsbG8=\n-----END ENCRYPTED PRIVATE KEY-----\n"
                ),
            ),
            "private_key: is encrypted",
        ),
        (
            with(
                &good,
                "private_key",
                &json!("-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n"),
            ),
            "private_key: is of a type that is not supported",
        ),
        (
            with(&good, "private_key", &json!(REDACTED)),
            "private_key: is \"<redacted>\", but nothing is stored that could be kept",
        ),
        (
            with(&good, "private_key", &json!({"sha256": "00".repeat(32)})),
            "private_key: must be the key itself",
        ),
        (with(&good, "private_key", &json!({"env": ""})), "private_key: env and file must not be empty"),
        (
            with(&good, "snis", &json!(["a b"])),
            "snis[0]: \"a b\" is not a host name like example.com or *.example.com",
        ),
        (with(&good, "snis", &json!(["192.0.2.1"])), "snis[0]: \"192.0.2.1\" is not a host name"),
        (
            with(&good, "snis", &json!(["a.example.com", "a.b.example.com"])),
            "snis[1]: \"a.b.example.com\" is none of the names of the certificate, which has *.example.com, example.com",
        ),
        (with(&good, "snis", &json!(["*.org"])), "snis[0]: \"*.org\" is none of the names"),
        (
            with(&good, "snis", &json!(["example.com", "EXAMPLE.com"])),
            "snis[1]: \"EXAMPLE.com\" is listed twice",
        ),
        (with(&good, "ocsp_staple", &json!("?")), "ocsp_staple: is neither PEM nor base64"),
        (with(&good, "ocsp_staple", &json!("aGVsbG8=")), "ocsp_staple: is not an OCSP response"),
        // SEQUENCE { ENUMERATED 6 }: unauthorized
        (
            with(&good, "ocsp_staple", &json!("MAMKAQY=")),
            "ocsp_staple: is the response 6 of a server that had no answer",
        ),
    ] {
        let errors = parse(Kind::Certificate, spec.clone()).map(|_| ()).expect_err(expected);
        assert!(
            errors.len() == 1 && errors[0].to_string().starts_with(expected),
            "{errors:?} instead of {expected}"
        );
    }
}

#[test]
fn keys_of_every_common_type_are_taken() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let made = CertificateParams::new(vec!["example.com".to_owned()]).unwrap().self_signed(&key).unwrap();
        let resource = parse(Kind::Certificate, spec(&made.pem(), &key.serialize_pem())).unwrap();
        assert!(certificate(&resource).certified(&key.serialize_pem()).is_ok());
    }
}

#[test]
fn it_is_chosen_for_its_own_names_unless_others_are_given() {
    let ca = authority("ca");
    let (cert, key) = issued(&["Example.COM", "*.example.com", "192.0.2.1"], &ca);
    let good = spec(&(cert + &ca.as_ref().pem()), &key);
    let parsed = |spec| parse(Kind::Certificate, spec).unwrap();
    let snis = |resource: &Resource| {
        certificate(resource).snis.iter().map(|sni| sni.to_string()).collect::<Vec<_>>()
    };
    let own = parsed(good.clone());
    assert_eq!(snis(&own), ["*.example.com", "example.com"]);
    assert_eq!(certificate(&own).chain.len(), 2);
    assert_eq!(certificate(&own).facts.issuer, "CN=ca");
    assert_eq!(snis(&parsed(with(&good, "snis", &json!(["A.example.com"])))), ["a.example.com"]);
    assert!(snis(&parsed(with(&good, "snis", &json!([])))).is_empty());
    // As `openssl ocsp -respout` writes it: SEQUENCE { ENUMERATED 0, [0] … }.
    let stapled = parsed(with(&good, "ocsp_staple", &json!("MAcKAQCgAgUA")));
    assert_eq!(certificate(&stapled).ocsp.as_deref(), Some(&[0x30, 7, 0x0a, 1, 0, 0xa0, 2, 5, 0][..]));
}

#[test]
fn the_private_key_is_written_and_never_read() {
    let ca = authority("ca");
    let (cert, key) = issued(&["example.com"], &ca);
    let stored = parse(Kind::Certificate, spec(&cert, &key)).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!stored.redacted().to_string().contains(secret));
    assert!(!format!("{stored:?}").contains(&secret[..20]), "not even for debugging");
    assert_eq!(stored.redacted()["private_key"], REDACTED);
    assert!(Kind::Certificate.holds_secret(stored.spec()));

    let mut again = stored.redacted();
    stored.restore_secrets(&mut again);
    assert_eq!(parse(Kind::Certificate, again).unwrap().version(), stored.version());
    // A new certificate needs its own key.
    let (renewed, _) = issued(&["example.com"], &ca);
    let mut renewed = with(&stored.redacted(), "certificate", &json!(renewed));
    stored.restore_secrets(&mut renewed);
    let errors = parse(Kind::Certificate, renewed).map(|_| ()).unwrap_err();
    assert_eq!(errors[0].to_string(), "private_key: is not the key of the certificate");

    let elsewhere =
        parse(Kind::Certificate, with(&spec(&cert, ""), "private_key", &json!({"file": "/key.pem"})));
    let elsewhere = elsewhere.unwrap();
    assert!(!Kind::Certificate.holds_secret(elsewhere.spec()));
    assert_eq!(elsewhere.redacted()["private_key"]["file"], "/key.pem");
    let back = Resource::from_stored(Kind::Certificate, stored.spec(), &Catalog).unwrap();
    assert_eq!(back.version(), stored.version());
}

#[test]
fn a_server_name_has_one_certificate_of_each_type_in_a_fleet() {
    let ca = authority("ca");
    let named = |name: &str, names: &[&str], fleets: Option<&str>| {
        let (cert, key) = issued(names, &ca);
        let mut spec = with(&spec(&cert, &key), "name", &json!(name));
        if let Some(fleet) = fleets {
            spec["fleets"] = json!([fleet]);
        }
        Change::Put(parse(Kind::Certificate, spec).unwrap().into())
    };
    let check = |changes: &[Change]| {
        let before = Snapshot::empty("e");
        let after = before.with(RevisionId { epoch: "e".into(), number: 1 }, 0, changes.to_vec());
        Relations::of(&before).with(&before, &after, changes).map(|_| ())
    };
    let problems = check(&[named("a", &["x.example"], None), named("b", &["y.example", "x.example"], None)]);
    let problems = problems.unwrap_err();
    assert!(
        matches!(&problems[..], [Problem::Claimed { error, .. }] if error.to_string() == "snis: the server name x.example for ECDSA certificates is taken by certificate/a"),
        "{problems:?}"
    );
    check(&[named("a", &["x.example"], Some("one")), named("b", &["x.example"], Some("two"))]).unwrap();
    let ed25519 = {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let made = CertificateParams::new(vec!["x.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let spec = with(&spec(&made.pem(), &key.serialize_pem()), "name", &json!("b"));
        Change::Put(parse(Kind::Certificate, spec).unwrap().into())
    };
    check(&[named("a", &["x.example"], None), ed25519]).unwrap();
}

#[test]
fn what_shows_a_certificate_needs_it() {
    for (kind, spec, field) in [
        (
            Kind::Listener,
            json!({"name": "l", "address": "0.0.0.0:443", "protocol": "https", "tls": {"default_certificate": "c"}}),
            "tls.default_certificate",
        ),
        (Kind::Upstream, json!({"name": "u", "targets": [], "tls": {"certificate": "c"}}), "tls.certificate"),
    ] {
        let resource = parse(kind, spec).unwrap();
        let references = resource.references();
        assert_eq!(references.len(), 1);
        assert_eq!(
            (references[0].0.to_string().as_str(), references[0].1.as_str()),
            ("certificate/c", field)
        );
    }
}

#[test]
fn settings_of_tls_are_checked() {
    let ca = authority("ca").as_ref().pem();
    let listener = |protocol: &str, tls: &Value| json!({"name": "l", "address": "0.0.0.0:443", "protocol": protocol, "tls": tls});
    let upstream = |tls: &Value| json!({"name": "u", "targets": [{"address": "a:443"}], "tls": tls});
    for (kind, spec) in [
        (Kind::Listener, listener("https", &json!({}))),
        (
            Kind::Listener,
            listener("https", &json!({"min_version": "1.3", "client_auth": {"mode": "required", "ca": ca}})),
        ),
        (Kind::Listener, listener("https", &json!({"client_auth": {"mode": "none"}}))),
        (Kind::Upstream, upstream(&json!({}))),
        (Kind::Upstream, upstream(&json!({"sni": "users.internal", "ca": ca}))),
        (Kind::Upstream, upstream(&json!({"verify": false}))),
    ] {
        parse(kind, spec.clone()).unwrap_or_else(|errors| panic!("{spec}: {errors:?}"));
    }
    for (kind, spec, expected) in [
        (Kind::Listener, listener("http", &json!({})), "tls: is for the protocol https"),
        (
            Kind::Listener,
            listener("https", &json!({"min_version": "1.1"})),
            "tls.min_version: must be one of 1.2, 1.3, is \"1.1\"",
        ),
        (
            Kind::Listener,
            listener("https", &json!({"default_certificate": "No"})),
            "tls.default_certificate: ",
        ),
        (
            Kind::Listener,
            listener("https", &json!({"client_auth": {"mode": "required"}})),
            "tls.client_auth.ca: is required",
        ),
        (
            Kind::Listener,
            listener("https", &json!({"client_auth": {"ca": ca}})),
            "tls.client_auth.mode: must be optional or required with a ca",
        ),
        (
            Kind::Listener,
            listener("https", &json!({"client_auth": {"mode": "optional", "ca": "x"}})),
            "tls.client_auth.ca: has no certificate in PEM",
        ),
        (
            Kind::Upstream,
            json!({"name": "u", "targets": [{"address": "a:80"}], "protocol": "auto"}),
            "protocol: is auto, which is agreed on while TLS is set up",
        ),
        (Kind::Upstream, upstream(&json!({"sni": "a b"})), "tls.sni: \"a b\" is not a host name"),
        (Kind::Upstream, upstream(&json!({"ca": "x"})), "tls.ca: has no certificate in PEM"),
        (
            Kind::Upstream,
            upstream(&json!({"ca": ca, "verify": false})),
            "tls.ca: is not used where verify is false",
        ),
    ] {
        let errors = parse(kind, spec).map(|_| ()).expect_err(expected);
        assert!(
            errors.len() == 1 && errors[0].to_string().starts_with(expected),
            "{errors:?} instead of {expected}"
        );
    }
}

#[test]
fn a_clients_certificate_says_who_it_is_and_no_more() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["alice.example".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "alice, O=admin\r\nx: ü");
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.subject_alt_names.push(SanType::URI("spiffe://example/alice".try_into().unwrap()));
    params.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 1].into()));
    let made = params.self_signed(&key).unwrap();
    let read = ClientCertificate::read(&[made.der().clone()]).unwrap();
    assert_eq!(&*read.subject, "CN=alice\\, O\\=admin\\0d\\0ax: \\c3\\bc,O=Example");
    assert_eq!(
        *read.names,
        ["DNS:alice.example", "URI:spiffe://example/alice", "IP:192.0.2.1"].map(Box::from)
    );
    assert_eq!(read.fingerprint.len(), 64);
    assert!(read.not_after > 4_000_000_000, "rcgen's default");
    assert!(
        ClientCertificate::read(&[b"hello".to_vec().into()]).is_none()
            && ClientCertificate::read(&[]).is_none()
    );
}

#[test]
fn a_name_with_a_zero_byte_is_not_the_name_before_it() {
    let made = CertificateParams::new(vec!["alice.example-evil".to_owned()]).unwrap();
    let made = made.self_signed(&KeyPair::generate().unwrap()).unwrap();
    // The same length, so that the certificate stays DER. Nobody checks its signature here.
    let mut der = made.der().to_vec();
    let place = der.windows(18).position(|window| window == b"alice.example-evil").unwrap();
    der[place + 13] = 0;
    let read = ClientCertificate::read(&[der.into()]);
    let names = read.map(|read| read.names).unwrap_or_default();
    assert!(!names.iter().any(|name| **name == *"DNS:alice.example"), "{names:?}");
}

/// An element of DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let length = u16::try_from(contents.len()).unwrap().to_be_bytes();
    let mut element = vec![tag, 0x82, length[0], length[1]];
    element.extend(contents);
    element
}

/// The statement of an OCSP response on a certificate.
struct Said<'a> {
    /// The certificate that it is about, and the certificate of that one's issuer.
    own: &'a str,
    issuer: &'a str,
    status: &'a [u8],
    next_update: Option<&'a str>,
    signed_by: &'a KeyPair,
    /// The certificates that it is sent with.
    sent: &'a [&'a [u8]],
}

impl Said<'_> {
    /// The response in PEM.
    fn response(&self) -> Value {
        use rcgen::SigningKey as _;
        use x509_parser::prelude::{FromDer as _, Pem, X509Certificate};
        let [own, issuer] =
            [self.own, self.issuer].map(|pem| Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap());
        let own = X509Certificate::from_der(&own.contents).unwrap().1;
        let issuer = X509Certificate::from_der(&issuer.contents).unwrap().1;
        let sha1 = |bytes: &[u8]| {
            ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
        };
        let algorithm = der(0x30, &[&der(6, &[&[0x2b, 0x0e, 3, 2, 0x1a]]), &[5, 0]]);
        let id = der(
            0x30,
            &[
                &algorithm,
                &der(4, &[&sha1(own.issuer().as_raw())]),
                &der(4, &[&sha1(&issuer.public_key().subject_public_key.data)]),
                &der(2, &[own.raw_serial()]),
            ],
        );
        let time = |text: &str| der(0x18, &[text.as_bytes()]);
        let next = self.next_update.map_or_else(Vec::new, |next| der(0xa0, &[&time(next)]));
        let single = der(0x30, &[&id, self.status, &time("20300101000000Z"), &next]);
        let by_key = der(0xa2, &[&der(4, &[&[0; 20]])]);
        let data = der(0x30, &[&by_key, &time("20300101000000Z"), &der(0x30, &[&single])]);
        // ecdsa-with-SHA256
        let algorithm = der(0x30, &[&der(6, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]])]);
        let signature = der(3, &[&[0], &self.signed_by.sign(&data).unwrap()]);
        let sent = match self.sent {
            [] => Vec::new(),
            sent => der(0xa0, &[&der(0x30, sent)]),
        };
        let basic = der(0x30, &[&data, &algorithm, &signature, &sent]);
        let kind = der(6, &[&[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1]]);
        let bytes = der(0x30, &[&kind, &der(4, &[&basic])]);
        let response = der(0x30, &[&[0x0a, 1, 0], &der(0xa0, &[&bytes])]);
        json!(pem_of(&response))
    }
}

fn pem_of(der: &[u8]) -> String {
    let body = base64(der);
    format!("-----BEGIN OCSP RESPONSE-----\n{body}\n-----END OCSP RESPONSE-----\n")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let number = (0..3).fold(0_u32, |sum, index| sum << 8 | u32::from(*part.get(index).unwrap_or(&0)));
        for index in 0..4 {
            let digit = char::from(DIGITS[(number >> (18 - 6 * index) & 63) as usize]);
            text.push(if index <= part.len() { digit } else { '=' });
        }
    }
    text
}

#[test]
fn a_staple_is_of_this_certificate_and_says_that_it_is_good() {
    const GOOD: &[u8] = &[0x80, 0];
    const JANUARY: i64 = 1_893_456_000;
    let ca = authority("ca");
    let root = ca.as_ref().pem();
    let (cert, key) = issued(&["example.com"], &ca);
    let (other, _) = issued(&["example.com"], &ca);
    let chain = cert.clone() + &root;
    // Another authority of the same name, so that only its key tells it apart.
    let namesake = authority("ca").as_ref().pem();
    let said = |own, issuer, status, next_update| {
        Said { own, issuer, status, next_update, signed_by: ca.key(), sent: &[] }.response()
    };
    let day = Some("20300102000000Z");
    let revoked = der(0xa1, &[&der(0x18, &[b"20290101000000Z"])]);
    // One that has its authority's name, which does not make it its own.
    let nameless = CertifiedIssuer::self_signed(
        {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        },
        KeyPair::generate().unwrap(),
    )
    .unwrap();
    let (same_name, same_name_key) = issued(&["example.com"], &nameless);
    let nameless_pem = nameless.as_ref().pem();
    let staple = Said {
        own: &same_name,
        issuer: &nameless_pem,
        status: GOOD,
        next_update: day,
        signed_by: nameless.key(),
        sent: &[],
    };
    let staple = staple.response();
    let same_name = with(&spec(&same_name, &same_name_key), "ocsp_staple", &staple);
    assert!(certificate(&parse(Kind::Certificate, same_name).unwrap()).staple().is_ok());
    for (certificate, staple, expected) in [
        (&cert, said(&cert, &root, GOOD, day), Ok(JANUARY + 86_400)),
        (&chain, said(&cert, &root, GOOD, day), Ok(JANUARY + 86_400)),
        (&cert, said(&cert, &root, GOOD, Some("20310101000000Z")), Ok(JANUARY + 365 * 86_400)),
        // It does not say until when.
        (&cert, said(&cert, &root, GOOD, None), Ok(JANUARY + 86_400)),
        (&cert, said(&other, &root, GOOD, day), Err("is of another certificate")),
        (&chain, said(&other, &root, GOOD, day), Err("is of another certificate")),
        (&chain, said(&cert, &namesake, GOOD, day), Err("is of another certificate")),
        (&cert, said(&cert, &root, &revoked, day), Err("says that the certificate is revoked")),
        (&cert, said(&cert, &root, &[0x82, 0], day), Err("says that its authority does not know")),
        (&cert, json!("MAcKAQCgAgUA"), Err("is not an OCSP response that can be read")),
    ] {
        let spec = with(&spec(certificate, &key), "ocsp_staple", &staple);
        // It is read back whatever it says: what was stored is not lost.
        let resource = parse(Kind::Certificate, spec).unwrap();
        let resource = Resource::from_stored(Kind::Certificate, resource.spec(), &Catalog).unwrap();
        let found = self::certificate(&resource).staple().map(|staple| staple.unwrap());
        match (found, expected) {
            (Ok(staple), Ok(until)) => {
                assert_eq!((staple.from, staple.until), (JANUARY, until));
                assert_eq!(staple.check(until), Err(signalbox_config::NotCurrent::Expired(until)));
            }
            (Err(error), Err(expected)) => assert!(error.starts_with(expected), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn a_staple_is_signed_by_the_issuer_or_a_responder_of_it() {
    let ca = authority("ca");
    let root = ca.as_ref().pem();
    let (cert, key) = issued(&["example.com"], &ca);
    let chain = cert.clone() + &root;
    let namesake = authority("ca");
    let ocsp = || vec![ExtendedKeyUsagePurpose::OcspSigning];
    let (allowed, allowed_key) = responder(&ca, ocsp());
    let (for_tls, for_tls_key) = responder(&ca, vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let (unnamed, unnamed_key) = responder(&ca, Vec::new());
    let (foreign, foreign_key) = responder(&namesake, ocsp());
    let ca_der = ca.as_ref().der().to_vec();
    let namesake_der = namesake.as_ref().der().to_vec();
    let (verified, unknown) = (Some(StapleSignature::Verified), Some(StapleSignature::IssuerUnknown));
    for (certificate, signed_by, sent, expected) in [
        (&chain, ca.key(), vec![], verified),
        (&chain, ca.key(), vec![&*ca_der], verified),
        (&chain, &allowed_key, vec![&*allowed], verified),
        (&chain, &allowed_key, vec![&*for_tls, &*allowed], verified),
        // The issuer is found in the response where the chain lacks it.
        (&cert, ca.key(), vec![&*ca_der], verified),
        (&cert, &allowed_key, vec![&*allowed, &*ca_der], verified),
        (&cert, ca.key(), vec![], unknown),
        (&cert, &allowed_key, vec![&*allowed], unknown),
        // Without its certificate nobody knows of the responder.
        (&chain, &allowed_key, vec![], None),
        (&chain, &for_tls_key, vec![&*for_tls], None),
        (&chain, &unnamed_key, vec![&*unnamed], None),
        (&chain, &foreign_key, vec![&*foreign], None),
        (&chain, namesake.key(), vec![&*namesake_der], None),
        (&chain, &foreign_key, vec![&*allowed], None),
        (&cert, namesake.key(), vec![&*ca_der], None),
    ] {
        let said = Said {
            own: &cert,
            issuer: &root,
            status: &[0x80, 0],
            next_update: Some("20300102000000Z"),
            signed_by,
            sent: &sent,
        };
        let resource =
            parse(Kind::Certificate, with(&spec(certificate, &key), "ocsp_staple", &said.response()));
        let resource = resource.unwrap();
        let found = self::certificate(&resource).staple().map(|staple| staple.unwrap().signature);
        match (found, expected) {
            (Ok(found), Some(expected)) => assert_eq!(found, expected),
            (Err(error), None) => {
                assert!(error.starts_with("is not signed by the certificate's issuer, CN=ca"), "{error}");
            }
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }
}
