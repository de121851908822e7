//! `mtls-auth` behind a listener that trusts several authorities.

use http::{HeaderValue, Request};

use crate::harness::{Answer, Backend, Client, Harness, block_on, full};
use crate::tls::{Authority, Tls, authority, https, issued};

/// Two APIs of different authorities behind one listener, which trusts both.
fn document(
    server: &Authority,
    authorities: [&Authority; 2],
    ca_of_one: &Authority,
    backend: &Backend,
) -> String {
    let [one, two] = authorities;
    let text = |pem: String| serde_json::to_string(&pem).unwrap();
    let both = text(format!("{}{}", one.as_ref().pem(), two.as_ref().pem()));
    https(
        &format!("client_auth: {{mode: optional, ca: {both}}}"),
        &[issued(&["a.example"], server).resource("c")],
        &format!(
            "
plugins:
- {{name: one, type: mtls-auth, config: {{ca: {}}}}}
- {{name: two, type: mtls-auth, config: {{ca: {}}}}}
- {{name: any, type: mtls-auth}}
consumers: [{{name: alice, credentials: [{{mtls: {{san: 'DNS:alice.example'}}}}]}}]
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes:
- {{name: one, match: {{paths: [{{prefix: /one}}]}}, plugins: [one], forward: {{upstreams: [{{name: u}}]}}}}
- {{name: two, match: {{paths: [{{prefix: /two}}]}}, plugins: [two], forward: {{upstreams: [{{name: u}}]}}}}
- {{name: any, match: {{paths: [{{prefix: /any}}]}}, plugins: [any], forward: {{upstreams: [{{name: u}}]}}}}
",
            text(ca_of_one.as_ref().pem()),
            text(two.as_ref().pem()),
            backend.address
        ),
    )
}

async fn ask(client: &mut Client, path: &str) -> Answer {
    let mut request = Request::get(path).body(full("")).unwrap();
    for value in ["CN=mallory", "CN=root"] {
        request.headers_mut().append("x-client-cert-subject", HeaderValue::from_static(value));
        request.headers_mut().append("x_client_cert_subject", HeaderValue::from_static(value));
    }
    client.send(request).await
}

#[test]
fn the_authority_of_one_api_admits_to_no_other_and_a_change_concerns_open_connections() {
    block_on(async {
        let (server, one, two) = (authority("server"), authority("one"), authority("two"));
        let backend = Backend::echo();
        let mut harness = Harness::start(&document(&server, [&one, &two], &one, &backend));
        // Both name the consumer: any authority that the listener trusts could write that into a certificate.
        for (path, by, status) in [
            ("/one", Some(&one), 200),
            ("/one", Some(&two), 401),
            ("/two", Some(&one), 401),
            ("/two", Some(&two), 200),
            ("/any", Some(&one), 200),
            ("/any", Some(&two), 200),
            ("/one", None, 401),
        ] {
            let shown = by.map(|by| issued(&["alice.example"], by));
            let tls = Tls::of(&server, shown.as_ref(), rustls::DEFAULT_VERSIONS);
            let mut client = tls.client(harness.address(), "a.example").await;
            for _ in 0..2 {
                let answer = ask(&mut client, path).await;
                assert_eq!(answer.status, status, "{path}: {}", answer.text());
                if status == 200 {
                    assert!(
                        answer.text().contains(r#"["x-consumer-username","alice"]"#),
                        "{}",
                        answer.text()
                    );
                    assert!(
                        answer.text().contains(r#"["x-client-cert-subject","CN=alice"]"#),
                        "{}",
                        answer.text()
                    );
                    assert!(
                        !answer.text().contains("mallory") && !answer.text().contains("root"),
                        "{}",
                        answer.text()
                    );
                }
            }
        }
        let shown = issued(&["alice.example"], &one);
        let tls = Tls::of(&server, Some(&shown), rustls::DEFAULT_VERSIONS);
        let mut client = tls.client(harness.address(), "a.example").await;
        assert_eq!(ask(&mut client, "/one").await.status, 200);
        harness.apply(&document(&server, [&one, &two], &two, &backend)).unwrap();
        assert_eq!(ask(&mut client, "/one").await.status, 401);
        assert_eq!(ask(&mut client, "/any").await.status, 200);
    });
}
