//! Certificates and their stapled OCSP responses are checked.

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Admin, certificate, expect};
use crate::ocsp::with_time;

#[tokio::test]
async fn a_certificates_key_is_kept_and_told_to_nobody() {
    let admin = Admin::start().await;
    let first = certificate("a.example", 4000);
    let key = first["private_key"].as_str().unwrap().lines().nth(1).unwrap().to_owned();
    let created = admin.put("/certificates/c", first.clone()).await;
    expect(&created, 201);
    assert_eq!(created.body["meta"]["certificate"]["names"], json!(["a.example"]));
    assert_eq!(created.body["meta"]["certificate"]["not_after"], json!(64_060_588_800_i64));
    let one = created.revision().unwrap();

    // Another certificate with its key, and back again.
    expect(&admin.put("/certificates/c", certificate("a.example", 4000)).await, 200);
    for path in [
        "/certificates/c",
        "/certificates",
        "/revisions/1",
        "/revisions/2",
        "/export",
        "/revisions/1/diff",
        "/revisions/2/diff",
        "/export?revision=1",
        "/audit",
    ] {
        let text = admin.get(path).await.body.to_string();
        assert!(path == "/audit" || text.contains("<redacted>"), "{path}: {text}");
        assert!(!text.contains("PRIVATE KEY") && !text.contains(&key), "{path}: {text}");
    }
    expect(&admin.post(&format!("/revisions/{one}/rollback"), json!({})).await, 200);
    let read = admin.get("/certificates/c").await.body;
    assert_eq!(read["meta"]["version"], created.body["meta"]["version"], "the key is the first again");
    let mut again = read.clone();
    again["description"] = json!("renewed by hand");
    expect(&admin.put("/certificates/c", again).await, 200);
    let exported = admin.get("/export?format=json").await.body;
    let unchanged = admin.post("/apply?prune=true", exported).await;
    assert_eq!((unchanged.status.as_u16(), &unchanged.body["revision"]), (200, &Value::Null), "{unchanged}");

    let raw = std::fs::read(&admin.database).unwrap();
    let wal = std::fs::read(admin.database.with_extension("db-wal")).unwrap_or_default();
    let disk = [raw, wal].concat();
    assert!(!disk.windows(key.len()).any(|window| window == key.as_bytes()));
}

#[tokio::test]
async fn a_certificate_that_cannot_serve_is_refused_with_the_reason() {
    let admin = Admin::start().await;
    let expired = admin.put("/certificates/c", certificate("a.example", 2020)).await;
    expect(&expired, 422);
    assert_eq!(expired.message("certificate"), "expired on 2020-01-01T00:00:00Z");
    let document = json!({"certificates": [{"name": "c"}]});
    expect(&admin.post("/apply", document).await, 422);

    // A root that has expired says nothing, an intermediate authority that has makes the chain useless.
    let authority = |name: &str, until| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        (params, rcgen::KeyPair::generate().unwrap())
    };
    let (params, key) = authority("root", 2020);
    let root = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
    for (until, status) in [(2020, 422), (4000, 201)] {
        let (params, key) = authority("intermediate", until);
        let intermediate = rcgen::CertifiedIssuer::signed_by(params, key, &root).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["chained.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(4000, 1, 1);
        let own = params.signed_by(&key, &intermediate).unwrap();
        let chain = own.pem() + &intermediate.as_ref().pem() + &root.as_ref().pem();
        let spec = json!({"certificate": chain, "private_key": key.serialize_pem()});
        let answer = admin.put("/certificates/chained", spec).await;
        expect(&answer, status);
        if status == 422 {
            let reason = "is of no use: its certificate 2 expired on 2020-01-01T00:00:00Z";
            assert_eq!(answer.message("certificate"), reason);
        }
    }

    expect(&admin.put("/certificates/c", certificate("a.example", 4000)).await, 201);
    let taken = admin.put("/certificates/d", certificate("a.example", 4000)).await;
    expect(&taken, 409);
    assert!(taken.message("snis").contains("certificate/c"), "{taken}");
    let listener =
        json!({"address": "127.0.0.1:8443", "protocol": "https", "tls": {"default_certificate": "x"}});
    let dangling = admin.put("/listeners/https", listener).await;
    expect(&dangling, 422);
    assert_eq!(dangling.fields(), ["tls.default_certificate"]);
    let upstream = json!({"targets": [], "tls": {"certificate": "c"}});
    expect(&admin.put("/upstreams/u", upstream).await, 201);
    expect(&admin.call(Method::DELETE, "/certificates/c", None).await, 409);
}

/// The OCSP response of an authority for a certificate that it has issued, valid from now on for seven days, in DER.
fn ocsp_response(authority: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>, own: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let output =
            std::process::Command::new("openssl").args(arguments).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    std::fs::write(dir.path().join("ca.pem"), authority.as_ref().pem()).unwrap();
    std::fs::write(dir.path().join("ca.key"), authority.key().serialize_pem()).unwrap();
    std::fs::write(dir.path().join("own.pem"), own).unwrap();
    let serial = openssl(&["x509", "-in", "own.pem", "-noout", "-serial"]);
    let serial = serial.trim().trim_start_matches("serial=");
    std::fs::write(dir.path().join("index"), format!("V\t400101000000Z\t\t{serial}\tunknown\t/CN=a\n"))
        .unwrap();
    openssl(&[
        "ocsp", "-index", "index", "-rsigner", "ca.pem", "-rkey", "ca.key", "-CA", "ca.pem", "-issuer",
        "ca.pem", "-cert", "own.pem", "-respout", "told", "-ndays", "7",
    ]);
    std::fs::read(dir.path().join("told")).unwrap()
}

#[tokio::test]
async fn a_staple_of_another_certificate_or_signer_or_out_of_date_is_refused() {
    let admin = Admin::start().await;
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let issued = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        (params.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
    };
    let (own, key) = issued();
    let good = ocsp_response(&authority, &own);
    let others = ocsp_response(&authority, &issued().0);
    let expired = with_time(good.clone(), 2, b"20210101000000Z", authority.key());
    let early = with_time(good.clone(), 1, b"20990101000000Z", authority.key());
    let forged = with_time(good.clone(), 2, b"20990101000000Z", &rcgen::KeyPair::generate().unwrap());
    for (response, reason) in [
        (others, "is of another certificate"),
        (expired, "expired on 2021-01-01T00:00:00Z"),
        (early, "is not good before it was made, on 2099-01-01T00:00:00Z"),
        (forged, "is not signed by the certificate's issuer"),
    ] {
        let spec = json!({"certificate": own, "private_key": key, "ocsp_staple": base64(&response)});
        for path in ["/certificates/c", "/certificates/c?dry_run=true"] {
            let refused = admin.put(path, spec.clone()).await;
            expect(&refused, 422);
            assert_eq!(refused.fields(), ["ocsp_staple"]);
            assert!(refused.message("ocsp_staple").starts_with(reason), "{refused}");
        }
    }
    let spec = json!({"certificate": own, "private_key": key, "ocsp_staple": base64(&good)});
    expect(&admin.put("/certificates/c", spec).await, 201);
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::prelude::BASE64_STANDARD.encode(bytes)
}
