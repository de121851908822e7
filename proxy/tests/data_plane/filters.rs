//! Filters over a running proxy.

use http::Request;

use crate::harness::{Backend, Client, Harness, Wire, block_on, full};

#[test]
fn filters_refuse_what_they_are_configured_to_refuse() {
    block_on(async {
        let backend = Backend::echo();
        let route = |name: &str, plugins: &str| {
            format!(
                "- {{name: {name}, match: {{paths: [{{exact: /{name}}}]}}, plugins: [{plugins}], forward: {{upstreams: [{{name: u}}]}}}}\n"
            )
        };
        let document = format!(
            "
plugins:
- {{name: local, type: ip-restriction, config: {{allow: [127.0.0.0/8, '::1']}}}}
- {{name: elsewhere, type: ip-restriction, config: {{allow: [192.0.2.0/24]}}}}
- {{name: denied, type: ip-restriction, config: {{deny: [127.0.0.1]}}}}
- {{name: bots, type: bot-detection, config: {{deny: ['(?i)bot', '^$']}}}}
- {{name: csrf, type: csrf}}
- {{name: closed, type: respond, config: {{status: 503, body: closed, headers: {{retry-after: '60'}}}}}}
- {{name: staff, type: acl, config: {{allow: [staff]}}}}
- {{name: key, type: key-auth, config: {{anonymous: guest}}}}
consumers:
- {{name: alice, groups: [staff], credentials: [{{key_auth: {{key: alice-key}}}}]}}
- {{name: bob, credentials: [{{key_auth: {{key: bob-key}}}}]}}
- {{name: guest}}
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes:
{}{}{}{}{}{}{}",
            backend.address,
            route("local", "local"),
            route("elsewhere", "elsewhere"),
            route("denied", "denied"),
            route("bots", "bots"),
            route("csrf", "csrf"),
            route("closed", "closed"),
            route("staff", "key, staff"),
        );
        let harness = Harness::start(&document);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (method, path, headers, status) in [
                ("GET", "/local", &[][..], 200),
                // Nobody on the way is trusted to say where the client comes from.
                ("GET", "/elsewhere", &[("x-forwarded-for", "192.0.2.1")][..], 403),
                ("GET", "/denied", &[("x-forwarded-for", "192.0.2.1")], 403),
                ("GET", "/bots", &[], 403),
                ("GET", "/bots", &[("user-agent", "Mozilla/5.0")], 200),
                ("GET", "/bots", &[("user-agent", "Mozilla/5.0"), ("user-agent", "SomeBot")], 403),
                ("POST", "/csrf", &[("sec-fetch-site", "cross-site")], 403),
                ("POST", "/csrf", &[("sec-fetch-site", "same-origin")], 200),
                ("POST", "/csrf", &[("origin", "http://test.example")], 200),
                ("POST", "/csrf", &[("origin", "http://evil.example")], 403),
                ("GET", "/csrf", &[("sec-fetch-site", "cross-site")], 200),
                ("GET", "/closed", &[], 503),
                ("HEAD", "/closed", &[], 503),
                ("GET", "/staff", &[("apikey", "alice-key")], 200),
                ("GET", "/staff", &[("apikey", "bob-key")], 403),
                ("GET", "/staff", &[], 401),
                ("GET", "/staff", &[("x-consumer-groups", "staff"), ("x.consumer.groups", "staff")], 401),
            ] {
                let mut request = Request::builder().method(method).uri(path);
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                let answer = client.send(request.body(full("")).unwrap()).await;
                assert_eq!(answer.status, status, "{wire:?} {method} {path} {headers:?}");
                match (method, path) {
                    ("GET", "/closed") => assert_eq!(answer.text(), "closed"),
                    ("HEAD", "/closed") => {
                        assert_eq!(answer.text(), "");
                        assert_eq!(answer.headers["retry-after"], "60");
                    }
                    _ => {}
                }
            }
        }
    });
}
