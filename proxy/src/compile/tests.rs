use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use http::{HeaderMap, Method};
use signalbox_config::router::RequestParts;
use signalbox_config::{Resource, document, sha256};
use signalbox_plugin::{Blobs, Clock, States};
use signalbox_plugins::builtin;

use super::*;
use crate::active::CompiledRoute;
use crate::core::clock::SystemClock;
use crate::resolve::Resolver;
use crate::secrets::{SecretError, SecretReader, SecretSource};
use crate::tasks;
use crate::telemetry::TrafficGroup;
use crate::telemetry::spans;

/// Compiles one document after another, each as the change from the one before.
struct Steps {
    runtime: tokio::runtime::Runtime,
    services: Services,
    secrets: Arc<TestSecrets>,
    compiled: Compiled,
}

/// Secrets by the name of their variable or the path of their file.
#[derive(Default)]
struct TestSecrets {
    values: Mutex<HashMap<String, Vec<u8>>>,
    reads: AtomicUsize,
}

impl TestSecrets {
    fn set(&self, source: &str, value: impl Into<Vec<u8>>) {
        self.values.lock().unwrap().insert(source.to_owned(), value.into());
    }
}

impl SecretReader for Arc<TestSecrets> {
    fn read(&self, source: SecretSource<'_>) -> Result<Vec<u8>, SecretError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let values = self.values.lock().unwrap();
        match source {
            SecretSource::Env(name) => values.get(name).cloned().ok_or(SecretError::NotSet),
            SecretSource::File(path) => {
                let missing = || SecretError::Unreadable(io::ErrorKind::NotFound.into());
                values.get(path).cloned().ok_or_else(missing)
            }
        }
    }
}

impl Steps {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let secrets = Arc::<TestSecrets>::default();
        let services = Services {
            types: builtin().clone(),
            clock: Clock::new(SystemClock(Instant::now())),
            spawner: Arc::new(tasks::channel().0),
            states: States::default(),
            blobs: Blobs::default(),
            secrets: Box::new(Arc::clone(&secrets)),
            span_sinks: spans::channel().0,
            resolver: Arc::new(Resolver::new(runtime.handle().clone(), Vec::new())),
            checking: Checking::new(runtime.handle().clone()),
            zone: None,
            workers: 1,
            routes: TrafficGroup::new(1, 100),
            upstreams: TrafficGroup::new(1, 100),
        };
        Self { runtime, services, secrets, compiled: Compiled::empty() }
    }

    fn next(&mut self, text: &str) -> Result<(), Vec<Rejected>> {
        let before = &self.compiled.snapshot;
        let resources: Vec<Arc<Resource>> = document::split(text)
            .unwrap()
            .into_iter()
            .map(|entry| Arc::new(Resource::parse(entry.kind, entry.spec, builtin()).unwrap()))
            .collect();
        let gone = before.iter().filter(|old| resources.iter().all(|new| new.key() != old.key()));
        let mut changes: Vec<Change> = gone.map(|old| Change::Delete(old.key().clone())).collect();
        changes.extend(
            resources
                .iter()
                .filter(|new| before.find(new.key()).is_none_or(|old| old.version() != new.version()))
                .map(|new| Change::Put(Arc::clone(new))),
        );
        let id = RevisionId { epoch: "e".into(), number: before.id().number + 1 };
        let candidate = Candidate { snapshot: before.with(id, 0, changes.clone()), changes };
        let _entered = self.runtime.enter();
        self.compiled = self.compiled.next(&candidate, &self.services)?;
        Ok(())
    }

    fn route(&self, path: &str) -> &Arc<CompiledRoute> {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let request = RequestParts {
            listener: "http",
            method: &method,
            host: "",
            path,
            query: None,
            headers: &headers,
        };
        self.compiled.active.routes.find(&request).expect("a route").value
    }

    fn target(&self, path: &str) -> String {
        self.upstream(path).members.view().targets[0].label.to_string()
    }

    /// The first upstream of the route that takes a path.
    fn upstream(&self, path: &str) -> &Arc<Upstream> {
        let slot = self.route(path).upstreams[0].upstream;
        self.compiled.active.upstreams.get(slot).expect("an upstream")
    }

    fn chain(&self, path: &str) -> Vec<&str> {
        let chain = self.compiled.active.chains.get(self.route(path).chain).expect("a chain");
        chain.steps.iter().map(|step| step.name.as_str()).collect()
    }
}

const TWO_ROUTES: &str = "
routes:
- {name: a, match: {paths: [{exact: /a}]}, forward: {upstreams: [{name: u}]}}
- {name: b, match: {paths: [{exact: /b}]}, forward: {upstreams: [{name: v}]}}
";

fn with_upstreams(u: &str, v: &str) -> String {
    format!(
        "upstreams: [{{name: u, targets: [{{address: '{u}'}}]}}, {{name: v, targets: [{{address: '{v}'}}]}}]{TWO_ROUTES}"
    )
}

#[test]
fn a_changed_upstream_touches_no_route() {
    let mut steps = Steps::start();
    steps.next(&with_upstreams("10.0.0.1:80", "10.0.0.2:80")).unwrap();
    let (a, b) = (Arc::clone(steps.route("/a")), Arc::clone(steps.route("/b")));
    let stats = Arc::clone(&steps.upstream("/a").stats);
    steps.next(&with_upstreams("10.0.0.9:80", "10.0.0.2:80")).unwrap();
    assert!(Arc::ptr_eq(&a, steps.route("/a")) && Arc::ptr_eq(&b, steps.route("/b")));
    assert_eq!((steps.target("/a").as_str(), steps.target("/b").as_str()), ("10.0.0.9:80", "10.0.0.2:80"));
    assert!(Arc::ptr_eq(&stats, &steps.upstream("/a").stats), "its counters go on");
}

#[test]
fn targets_that_stay_are_kept() {
    let mut steps = Steps::start();
    let upstream = |targets: &str| format!("upstreams: [{{name: u, targets: [{targets}]}}]");
    let target = |steps: &Steps, index: usize| {
        let upstream = steps.compiled.active.upstreams.iter().next().unwrap();
        Arc::clone(&upstream.members.view().targets[index])
    };
    steps.next(&upstream("{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}")).unwrap();
    let second = target(&steps, 1);
    steps.next(&upstream("{address: '10.0.0.2:80', weight: 5}, {address: '10.0.0.3:80'}")).unwrap();
    assert!(Arc::ptr_eq(&second, &target(&steps, 0)));
}

#[test]
fn a_freed_slot_is_never_that_of_two_upstreams() {
    let mut steps = Steps::start();
    let one = |name: &str, port: u16| {
        format!(
            "upstreams: [{{name: {name}, targets: [{{address: '10.0.0.1:{port}'}}]}}]
routes: [{{name: r, forward: {{upstreams: [{{name: {name}}}]}}}}]"
        )
    };
    for port in 1..50 {
        steps.next(&one(&format!("u{port}"), port)).unwrap();
        assert_eq!(steps.target("/"), format!("10.0.0.1:{port}"));
        let name = format!("u{port}");
        assert_eq!(steps.upstream("/").stats.name.as_str(), name, "it has counters of its own");
    }
    assert!(steps.compiled.active.upstreams.capacity() <= 2);
}

#[test]
fn equal_plugin_lists_share_a_chain_that_goes_with_its_last_route() {
    let mut steps = Steps::start();
    let plugins =
        "plugins: [{name: k, type: key-auth}, {name: g, type: cors, global: true, config: {origins: ['*']}}]";
    let route = |name: &str, list: &str| {
        format!(
            "{{name: {name}, match: {{paths: [{{exact: /{name}}}]}}, plugins: [{list}], respond: {{body: x}}}}"
        )
    };
    let document = |routes: &[String]| format!("{plugins}\nroutes: [{}]", routes.join(", "));
    steps.next(&document(&[route("a", "k"), route("b", "k"), route("c", "")])).unwrap();
    assert_eq!(steps.route("/a").chain, steps.route("/b").chain);
    assert_eq!((steps.chain("/a"), steps.chain("/c")), (vec!["g", "k"], vec!["g"]));
    steps.next(&document(&[route("b", "k"), route("c", "")])).unwrap();
    assert_eq!(steps.chain("/b"), ["g", "k"]);
    let chain = steps.route("/b").chain;
    steps.next(&document(&[route("b", ""), route("c", "")])).unwrap();
    assert_eq!(steps.chain("/b"), ["g"]);
    assert!(steps.compiled.active.chains.get(chain).is_none());
    assert!(!steps.compiled.chains.has_lists());
    // The next one takes its place.
    steps.next(&document(&[route("b", ""), route("c", "k, g")])).unwrap();
    assert_eq!((steps.chain("/c"), steps.route("/c").chain), (vec!["g", "k"], chain));
}

#[test]
fn a_routes_plugin_takes_the_place_of_the_global_one_of_its_type() {
    let mut steps = Steps::start();
    let document = |own: &str| {
        format!(
            "plugins: [{{name: everywhere, type: key-auth, global: true}}, {{name: own, type: key-auth{own}}}]
routes: [{{name: r, plugins: [own], respond: {{body: x}}}}]"
        )
    };
    steps.next(&document("")).unwrap();
    assert_eq!(steps.chain("/"), ["own"]);
    steps.next(&document(", enabled: false")).unwrap();
    assert_eq!(steps.chain("/"), ["everywhere"]);
}

#[test]
fn consumers_chains_follow_their_plugins() {
    let mut steps = Steps::start();
    let document = |plugin: &str| {
        format!("plugins: [{plugin}]\nconsumers: [{{name: alice, plugins: [c]}}, {{name: bob}}]")
    };
    let alice =
        |steps: &Steps| steps.compiled.active.consumer_chains.get("alice").map(|chain| chain.steps.len());
    steps.next(&document("{name: c, type: cors, config: {origins: ['*']}}")).unwrap();
    assert_eq!(alice(&steps), Some(1));
    steps.next(&document("{name: c, type: cors, enabled: false, config: {origins: ['*']}}")).unwrap();
    assert_eq!(alice(&steps), None);
    steps.next(&document("{name: c, type: cors, config: {origins: ['*']}}")).unwrap();
    assert_eq!(alice(&steps), Some(1));
    steps.next("plugins: [{name: c, type: cors, config: {origins: ['*']}}]").unwrap();
    assert_eq!(alice(&steps), None);
    assert!(!steps.compiled.consumers.has_references());
}

#[test]
fn the_plugins_of_groups_stand_behind_those_of_the_consumer() {
    const PLUGINS: &str = "plugins:
- {name: own-limit, type: rate-limit, config: {limit: 1}}
- {name: first-limit, type: rate-limit, config: {limit: 2}}
- {name: first-cors, type: cors}
- {name: second-cors, type: cors}
- {name: second-key, type: key-auth}
";
    let mut steps = Steps::start();
    let groups = "consumer_groups: [{name: first, plugins: [first-limit, first-cors]}, {name: second, plugins: [second-cors, second-key]}]
";
    let consumers = "consumers:
- {name: both, groups: [first, Other, second]}
- {name: swapped, groups: [second, first]}
- {name: owner, groups: [first], plugins: [own-limit]}
- {name: outside, groups: [First]}
- {name: twin, groups: [first, Other, second]}
";
    let names = |steps: &Steps, consumer: &str| {
        let chain = steps.compiled.active.consumer_chains.get(consumer);
        chain.map(|chain| chain.steps.iter().map(|step| step.name.to_string()).collect::<Vec<_>>().join(" "))
    };
    steps.next(&format!("{PLUGINS}{groups}{consumers}")).unwrap();
    assert_eq!(names(&steps, "both").as_deref(), Some("first-cors second-key first-limit"));
    assert_eq!(names(&steps, "swapped").as_deref(), Some("second-cors second-key first-limit"));
    assert_eq!(names(&steps, "owner").as_deref(), Some("first-cors own-limit"));
    assert_eq!(names(&steps, "outside"), None);
    let shared =
        ["both", "twin"].map(|name| steps.compiled.active.consumer_chains.get(name).cloned().unwrap());
    assert!(Arc::ptr_eq(&shared[0], &shared[1]));
    // A plugin of a group, a group and a membership that change reach the consumers.
    steps
        .next(&format!(
            "{}{groups}{consumers}",
            PLUGINS.replace("name: first-cors,", "name: first-cors, enabled: false,")
        ))
        .unwrap();
    assert_eq!(names(&steps, "owner").as_deref(), Some("own-limit"));
    assert_eq!(names(&steps, "both").as_deref(), Some("second-cors second-key first-limit"));
    steps.next(&format!("{PLUGINS}{}{consumers}", groups.replace("first-limit, ", ""))).unwrap();
    assert_eq!(names(&steps, "both").as_deref(), Some("first-cors second-key"));
    steps
        .next(&format!("{PLUGINS}{groups}{}", consumers.replace("groups: [First]", "groups: [first]")))
        .unwrap();
    assert_eq!(names(&steps, "outside").as_deref(), Some("first-cors first-limit"));
    let missing = steps.next("consumer_groups: [{name: first, plugins: [gone]}]").unwrap_err();
    let expected = ("consumer-group/first".to_owned(), "plugins", "plugin \"gone\" does not exist");
    assert_eq!(reasons(&missing), [expected]);
    steps.next(PLUGINS).unwrap();
    assert_eq!(names(&steps, "both"), None);
    assert!(!steps.compiled.consumers.has_references());
}

#[test]
fn a_key_that_is_read_on_the_host_is_one_that_clients_can_send_or_is_rejected() {
    let document = "consumers: [{name: c, credentials: [{key_auth: {key: {file: /keys/c}}}]}]";
    for (content, key) in [("k1", "k1"), ("k2\n", "k2"), ("k3\r\n", "k3")] {
        let mut steps = Steps::start();
        steps.secrets.set("/keys/c", content);
        steps.next(document).unwrap();
        let owner = steps.compiled.active.consumers.by_key(&sha256(key.as_bytes()));
        assert_eq!(owner.map(|owner| owner.consumer.name.as_str()), Some("c"), "{content:?}");
    }
    for (content, reason) in [
        ("", "is empty"),
        ("\n", "is empty"),
        ("k \n", "ends with white space"),
        (" k", "begins with white space"),
        ("k\n\n", "ends with a line break"),
        ("a\nb", "has the control character U+000A"),
    ] {
        let mut steps = Steps::start();
        steps.secrets.set("/keys/c", content);
        let rejected = steps.next(document).unwrap_err();
        assert_eq!(rejected[0].field, "credentials[0].key_auth.key");
        assert!(rejected[0].message.contains(reason), "{content:?}: {}", rejected[0].message);
    }
}

#[test]
fn what_is_not_there_is_rejected_by_name() {
    let mut steps = Steps::start();
    let rejected = steps
        .next("routes: [{name: r, plugins: [p], forward: {upstreams: [{name: u}]}}]\nconsumers: [{name: c, plugins: [q]}]")
        .unwrap_err();
    let told: Vec<_> = rejected
        .iter()
        .map(|it| (it.key.as_ref().unwrap().to_string(), it.field.as_str(), it.message.as_str()))
        .collect();
    for expected in [
        ("route/r".to_owned(), "plugins", "plugin \"p\" does not exist"),
        ("route/r".to_owned(), "forward.upstreams", "upstream \"u\" does not exist"),
        ("consumer/c".to_owned(), "plugins", "plugin \"q\" does not exist"),
    ] {
        assert!(told.contains(&expected), "{told:?}");
    }
    assert_eq!(steps.compiled.snapshot.len(), 0);
}

#[test]
fn resources_are_counted() {
    let mut steps = Steps::start();
    steps.next(&with_upstreams("10.0.0.1:80", "10.0.0.2:80")).unwrap();
    steps.next(&with_upstreams("10.0.0.3:80", "10.0.0.2:80")).unwrap();
    let counts = |steps: &Steps| {
        [Kind::Route, Kind::Upstream, Kind::Plugin].map(|kind| steps.compiled.counts[kind as usize])
    };
    assert_eq!(counts(&steps), [2, 2, 0]);
    steps.next("routes: []").unwrap();
    assert_eq!(steps.compiled.counts.iter().sum::<u64>(), 0);
}

/// The rejections: resource, field and reason.
fn reasons(rejected: &[Rejected]) -> Vec<(String, &str, &str)> {
    let reason = |it: &Rejected| it.key.as_ref().unwrap().to_string();
    rejected.iter().map(|it| (reason(it), it.field.as_str(), it.message.as_str())).collect()
}

#[test]
fn a_key_that_cannot_be_read_is_rejected_with_its_place_and_the_reason() {
    let mut steps = Steps::start();
    let document = "consumers: [{name: c, credentials: [
{key_auth: {key: {env: KEY}}}, {key_auth: {key: {file: /keys/c}}}, {key_auth: {key: {env: OTHER}}}]}]";
    steps.secrets.set("OTHER", "k");
    let rejected = steps.next(document).unwrap_err();
    assert_eq!(
        reasons(&rejected),
        [
            (
                "consumer/c".to_owned(),
                "credentials[0].key_auth.key",
                "the environment variable KEY of the proxy is not set"
            ),
            (
                "consumer/c".to_owned(),
                "credentials[1].key_auth.key",
                "the file /keys/c on the proxy's host cannot be read: entity not found"
            ),
        ]
    );
    steps.secrets.set("KEY", "k1");
    steps.secrets.set("/keys/c", "k2");
    steps.next(document).unwrap();
    for key in ["k", "k1", "k2"] {
        assert!(steps.compiled.active.consumers.by_key(&sha256(key.as_bytes())).is_some(), "{key}");
    }
}

/// A certificate for `c.example` whose private key is in the variable `KEY`, as a document has it, and that key.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["c.example".to_owned()]).unwrap();
    let pem = certificate.self_signed(&key).unwrap().pem();
    (format!("{{name: c, certificate: {pem:?}, private_key: {{env: KEY}}}}"), key.serialize_pem())
}

#[test]
fn a_private_key_that_cannot_be_read_is_the_only_reason_given() {
    let (certificate, key) = certificate();
    let document = format!(
        "certificates: [{certificate}]
listeners: [{{name: l, protocol: https, address: '127.0.0.1:1', tls: {{default_certificate: c}}}}]
upstreams: [{{name: u, targets: [{{address: '10.0.0.1:80'}}], tls: {{certificate: c, sni: c.example}}}}]
routes: [{{name: r, forward: {{upstreams: [{{name: u}}], mirror: {{upstream: u}}}}}}]"
    );
    let mut steps = Steps::start();
    let rejected = steps.next(&document).unwrap_err();
    let not_set = "the environment variable KEY of the proxy is not set";
    assert_eq!(reasons(&rejected), [("certificate/c".to_owned(), "private_key", not_set)]);
    steps.secrets.set("KEY", b"\xff".as_slice());
    let rejected = steps.next(&document).unwrap_err();
    let not_text = "the environment variable KEY of the proxy is not text in UTF-8";
    assert_eq!(reasons(&rejected), [("certificate/c".to_owned(), "private_key", not_text)]);
    steps.secrets.set("KEY", key);
    steps.next(&document).unwrap();
    assert!(steps.compiled.listener_tls(&"l".parse().unwrap()).is_some());
    assert!(steps.upstream("/").transport.tls.is_some());
}

#[test]
fn a_certificate_that_is_missing_is_named_by_each_who_refers_to_it() {
    let document =
        "listeners: [{name: l, protocol: https, address: '127.0.0.1:1', tls: {default_certificate: c}}]
upstreams: [{name: u, targets: [{address: '10.0.0.1:80'}], tls: {certificate: c}}]";
    let rejected = Steps::start().next(document).unwrap_err();
    let message = "certificate \"c\" does not exist";
    assert_eq!(
        reasons(&rejected),
        [
            ("listener/l".to_owned(), "tls.default_certificate", message),
            ("upstream/u".to_owned(), "tls.certificate", message),
        ]
    );
}

#[test]
fn routes_may_exchange_their_plugin_lists_in_one_revision() {
    let plugins =
        "plugins: [{name: j, type: key-auth}, {name: k, type: key-auth}, {name: l, type: key-auth}]";
    let document = |lists: [&str; 3]| {
        let route = |(index, list): (usize, &&str)| {
            format!(
                "{{name: r{index}, match: {{paths: [{{exact: /{index}}}]}}, plugins: [{list}], respond: {{}}}}"
            )
        };
        let routes: Vec<_> = lists.iter().enumerate().map(route).collect();
        format!("{plugins}\nroutes: [{}]", routes.join(", "))
    };
    let mut steps = Steps::start();
    for lists in
        [["j", "k", ""], ["k", "j", ""], ["", "j", "k"], ["l", "", "j"], ["k", "k", "k"], ["", "l", "j"]]
    {
        steps.next(&document(lists)).unwrap();
        for (index, list) in lists.iter().enumerate() {
            assert_eq!(steps.chain(&format!("/{index}")).join(""), **list, "{lists:?}");
        }
        assert!(steps.compiled.active.chains.capacity() <= 4);
    }
    steps.next(plugins).unwrap();
    assert!(!steps.compiled.chains.has_lists());
}

/// The number of resources of each kind that others refer to.
const MANY: usize = 60;

/// `MANY` upstreams, plugins, routes and consumers, the nth of each with the nth of the others; those that `change`
/// names are changed.
fn many(certificate: &str, change: &str) -> String {
    let lines = |line: &dyn Fn(usize) -> String| (0..MANY).map(line).collect::<String>();
    let is = |kind: &str, index: usize| change == format!("{kind}{index}");
    let upstream = |index| {
        let port = if is("upstream", index) { 81 } else { 80 };
        let tls = if index == 3 { ", tls: {certificate: c, sni: c.example}" } else { "" };
        format!("- {{name: u{index}, targets: [{{address: '10.0.0.1:{port}'}}]{tls}}}\n")
    };
    let plugin = |index| {
        let origin = if is("plugin", index) { "https://a.example" } else { "https://b.example" };
        let global = index == 4;
        format!("- {{name: p{index}, type: cors, global: {global}, config: {{origins: ['{origin}']}}}}\n")
    };
    let route = |index| {
        let timeout = if is("route", index) { 2 } else { 1 };
        format!(
            "- {{name: r{index}, match: {{paths: [{{exact: /{index}}}]}}, plugins: [p{index}], forward: {{timeout: {timeout}s, upstreams: [{{name: u{index}}}]}}}}\n"
        )
    };
    let consumer = |index| {
        let group = if is("consumer", index) { "b" } else { "a" };
        format!(
            "- {{name: c{index}, groups: [{group}], plugins: [p{index}], credentials: [{{key_auth: {{key: {{env: KEY{index}}}}}}}]}}\n"
        )
    };
    format!(
        "certificates: [{certificate}]\nupstreams:\n{}plugins:\n{}routes:\n{}consumers:\n{}",
        lines(&upstream),
        lines(&plugin),
        lines(&route),
        lines(&consumer)
    )
}

/// The numbers of routes, upstreams, chains of routes and chains of consumers that `now` does not share with `before`.
fn compiled_anew(before: &Compiled, now: &Compiled) -> [usize; 4] {
    fn differing<T>(pairs: impl Iterator<Item = (Arc<T>, Arc<T>)>) -> usize {
        pairs.filter(|(a, b)| !Arc::ptr_eq(a, b)).count()
    }
    let (old, new) = (&before.active, &now.active);
    let route = |active: &Active, index: usize| {
        let path = format!("/{index}");
        let (method, headers) = (Method::GET, HeaderMap::new());
        let request = RequestParts {
            listener: "http",
            method: &method,
            host: "",
            path: &path,
            query: None,
            headers: &headers,
        };
        Arc::clone(active.routes.find(&request).expect("a route").value)
    };
    fn pairs<'a, T: 'a>(
        old: impl Iterator<Item = &'a Arc<T>>,
        new: impl Iterator<Item = &'a Arc<T>>,
    ) -> impl Iterator<Item = (Arc<T>, Arc<T>)> {
        old.cloned().zip(new.cloned())
    }
    let consumer_chain = |active: &Active, index: usize| {
        Arc::clone(active.consumer_chains.get(&*format!("c{index}")).expect("a chain"))
    };
    [
        differing((0..MANY).map(|index| (route(old, index), route(new, index)))),
        differing(pairs(old.upstreams.iter(), new.upstreams.iter())),
        differing(pairs(old.chains.iter(), new.chains.iter())),
        differing((0..MANY).map(|index| (consumer_chain(old, index), consumer_chain(new, index)))),
    ]
}

#[test]
fn a_change_compiles_what_depends_on_it_and_nothing_else() {
    let (certificate, key) = certificate();
    let mut steps = Steps::start();
    steps.secrets.set("KEY", key);
    for index in 0..MANY {
        steps.secrets.set(&format!("KEY{index}"), format!("key {index}"));
    }
    steps.next(&many(&certificate, "")).unwrap();
    let other_certificate = certificate.replacen("{name", "{description: other, name", 1);
    for (certificate, change, expected, secrets) in [
        (&certificate, "route7", [1, 0, 0, 0], 0),
        (&certificate, "upstream7", [0, 1, 0, 0], 0),
        (&certificate, "plugin7", [0, 0, 1, 1], 0),
        (&certificate, "consumer7", [0, 0, 0, 1], 1),
        // The chains are its own, the chain of routes without plugins, and those that it may be part of.
        (&certificate, "plugin4", [0, 0, MANY + 1, 1], 0),
        (&other_certificate, "", [0, 1, 0, 0], 1),
        (&certificate, "nothing", [0, 0, 0, 0], 0),
    ] {
        let before = steps.compiled.clone();
        let reads = steps.secrets.reads.load(Ordering::Relaxed);
        steps.next(&many(certificate, change)).unwrap();
        assert_eq!(compiled_anew(&before, &steps.compiled), expected, "{change}");
        assert_eq!(steps.secrets.reads.load(Ordering::Relaxed) - reads, secrets, "{change}");
        steps.compiled = before;
    }
}
