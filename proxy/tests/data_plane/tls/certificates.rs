//! Certificates: keys of all types and forms, and stapled responses about revocation.

use super::*;

fn openssl(arguments: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::null());
    let output = tokio::task::block_in_place(|| command.output()).expect("openssl is there");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An authority's OCSP response about a certificate that it has issued, for the next seven days, in DER.
fn ocsp_response(ca: &Authority, own: &Issued) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("ca.pem"), ca.as_ref().pem()).unwrap();
    std::fs::write(file("ca.key"), ca.key().serialize_pem()).unwrap();
    std::fs::write(file("own.pem"), &own.certificate).unwrap();
    let serial = openssl(&["x509", "-in", &file("own.pem"), "-noout", "-serial"]);
    let serial = serial.trim().trim_start_matches("serial=").to_owned();
    // openssl's own format of an authority's database.
    std::fs::write(file("index"), format!("V\t400101000000Z\t\t{serial}\tunknown\t/CN=alice\n")).unwrap();
    let [index, ca_file, ca_key, own_file, told] =
        ["index", "ca.pem", "ca.key", "own.pem", "ocsp.der"].map(file);
    openssl(&[
        "ocsp", "-index", &index, "-rsigner", &ca_file, "-rkey", &ca_key, "-CA", &ca_file, "-issuer",
        &ca_file, "-cert", &own_file, "-respout", &told, "-ndays", "7",
    ]);
    std::fs::read(told).unwrap()
}

/// `own` as a resource `c` with this response.
fn stapled(own: &Issued, response: &[u8]) -> String {
    use base64::Engine as _;
    let staple = base64::prelude::BASE64_STANDARD.encode(response);
    own.resource("c").replace("private_key:", &format!("ocsp_staple: {staple}, private_key:"))
}

/// openssl's report of the handshake.
fn asked_by_openssl(address: SocketAddr, more: &[&str]) -> String {
    let connect = address.to_string();
    let command = ["s_client", "-connect", &connect, "-servername", "a.example", "-status"];
    openssl(&[&command, more].concat())
}

#[test]
fn what_an_authority_says_of_revocation_is_stapled_as_long_as_it_is_good() {
    block_on(async {
        let ca = authority("ca");
        let own = issued(&["a.example"], &ca);
        let response = ocsp_response(&ca, &own);
        let mut harness = Harness::start(&https("", &[stapled(&own, &response)], HELLO));
        let address = harness.address();
        for version in ["-tls1_2", "-tls1_3"] {
            let said = asked_by_openssl(address, &[version]);
            assert!(said.contains("OCSP Response Status: successful"), "{said}");
            assert!(said.contains("Cert Status: good"), "{said}");
        }
        // The chain includes the issuer's certificate, whose key the response names.
        let chain =
            Issued { certificate: own.certificate.clone() + &ca.as_ref().pem(), key: own.key.clone() };
        harness.apply(&https("", &[stapled(&chain, &response)], HELLO)).unwrap();
        assert!(asked_by_openssl(address, &[]).contains("Cert Status: good"));

        let other = issued(&["a.example"], &ca);
        let expired = with_time(response.clone(), 2, b"20210101000000Z", ca.key());
        let forged = with_time(response.clone(), 2, b"20990101000000Z", &rcgen::KeyPair::generate().unwrap());
        for (what, resource) in [
            ("another's", stapled(&other, &response)),
            ("expired", stapled(&own, &expired)),
            ("signed by somebody else", stapled(&own, &forged)),
        ] {
            harness.apply(&https("", &[resource], HELLO)).unwrap();
            let said = asked_by_openssl(address, &[]);
            assert!(said.contains("OCSP response: no response sent"), "{what}: {said}");
        }
        // The response expires while it is in use.
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4);
        let soon = soon.strftime("%Y%m%d%H%M%SZ").to_string();
        let soon = with_time(response, 2, soon.as_bytes().try_into().unwrap(), ca.key());
        harness.apply(&https("", &[stapled(&own, &soon)], HELLO)).unwrap();
        until("it is not stapled any more", || {
            asked_by_openssl(address, &[]).contains("OCSP response: no response sent")
        })
        .await;
    });
}

#[test]
fn a_name_has_a_certificate_for_each_type_of_key() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        openssl(&[
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-subj",
            "/CN=theirs",
            "-addext",
            "subjectAltName=DNS:a.example",
            "-keyout",
            &file("key"),
            "-out",
            &file("certificate"),
        ]);
        let read = |name: &str| std::fs::read_to_string(file(name)).unwrap();
        let rsa = Issued { certificate: read("certificate"), key: read("key") };
        let ca = authority("ca");
        let ecdsa = issued(&["a.example"], &ca);
        let both = [rsa.resource("rsa"), ecdsa.resource("ecdsa")];
        let mut harness = Harness::start(&https("default_certificate: ecdsa", &both, HELLO));
        let address = harness.address();
        // The subject of the served certificate.
        let shown = |more: &[&str]| {
            let connect = address.to_string();
            let said = openssl(&[&["s_client", "-connect", &connect], more].concat());
            said.lines().find(|line| line.starts_with("subject=")).unwrap_or_default().replace(' ', "")
        };
        let (theirs, alice) = ("subject=CN=theirs", "CN=alice");
        // The listener's default is for clients without a server name.
        for name in [&["-servername", "a.example"][..], &["-noservername"]] {
            let shown = |more: &[&str]| shown(&[name, more].concat());
            for version in ["-tls1_2", "-tls1_3"] {
                assert!(shown(&[version]).contains(alice), "who can check both gets the one that costs less");
            }
            assert_eq!(shown(&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]), theirs);
            assert_eq!(shown(&["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"]), theirs);
            assert!(shown(&["-tls1_3", "-sigalgs", "ECDSA+SHA256"]).contains(alice));
        }
        Tls::trusting(&ca).connect(address, "a.example").await.unwrap();
        // Without one of them, the other is served to all.
        harness.apply(&https("", &[rsa.resource("rsa")], HELLO)).unwrap();
        assert_eq!(shown(&["-servername", "a.example"]), theirs);
        harness.apply(&https("", &[ecdsa.resource("ecdsa")], HELLO)).unwrap();
        assert!(shown(&["-servername", "a.example"]).contains(alice));
    });
}

#[test]
fn keys_of_every_usual_kind_and_form_serve() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let openssl = |args: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(args).current_dir(&directory).stdin(Stdio::null());
            let output = tokio::task::block_in_place(|| command.output()).expect("openssl is there");
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let read = |file: &str| std::fs::read_to_string(directory.path().join(file)).unwrap();
        for (kind, form, begins) in [
            (&["-newkey", "rsa:2048"][..], &[][..], "-----BEGIN PRIVATE KEY"),
            (&["-newkey", "rsa:3072"], &["rsa", "-traditional"], "-----BEGIN RSA PRIVATE KEY"),
            (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"], &[], "-----BEGIN PRIVATE KEY"),
            (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"], &["ec"], "-----BEGIN EC PRIVATE KEY"),
            (&["-newkey", "ed25519"], &[], "-----BEGIN PRIVATE KEY"),
        ] {
            let made = [
                &["req", "-x509", "-nodes", "-subj", "/CN=a", "-addext", "subjectAltName=DNS:a.example"][..],
                &["-keyout", "key.pem", "-out", "certificate.pem"],
                kind,
            ]
            .concat();
            openssl(&made);
            if !form.is_empty() {
                openssl(&[form, &["-in", "key.pem", "-out", "key.pem"]].concat());
            }
            let own = Issued { certificate: read("certificate.pem"), key: read("key.pem") };
            assert!(own.key.starts_with(begins), "{form:?}");
            let harness = Harness::start(&https("", &[own.resource("c")], HELLO));
            let port = harness.address().port();
            for version in ["--tlsv1.3", "--tls-max"] {
                let mut command = Command::new("curl");
                command.args(["-sS", "--cacert", "certificate.pem", version]);
                command.args((version == "--tls-max").then_some("1.2"));
                command.args(["--resolve", &format!("a.example:{port}:127.0.0.1")]);
                command.arg(format!("https://a.example:{port}/")).current_dir(&directory);
                let output = tokio::task::block_in_place(|| command.output()).expect("curl is there");
                let error = String::from_utf8_lossy(&output.stderr);
                assert_eq!(String::from_utf8_lossy(&output.stdout), "hello", "{kind:?} {version}: {error}");
            }
        }
    });
}
