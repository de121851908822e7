//! Guests in languages that users write: they are built by the real compilers, and run as plugins.
//!
//! `scripts/setup.sh test` installs the compilers.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use std::{env, fs};

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use signalbox_config::BlobId;
use signalbox_plugin::testing::{Answer, Client, Services, build_type};
use signalbox_plugin::{CallError, Origin, Plugin, PluginType, States};
use signalbox_wasm::Wasm;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The place of a program: on the path, or where the setup script puts it.
fn program(name: &str, installed: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    on_path.unwrap_or_else(|| {
        let home = PathBuf::from(env::var_os("HOME").unwrap_or_default());
        home.join(".cache/signalbox").join(installed)
    })
}

/// Runs a compiler, and returns the module that it has written.
fn built(output: &str, build: impl FnOnce(&Path) -> Command) -> Bytes {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(output);
    let mut command = build(&output);
    let done = command.output().unwrap_or_else(|error| {
        panic!("{:?} cannot be run: {error}; `scripts/setup.sh test` installs it", command.get_program())
    });
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    fs::read(&output).unwrap().into()
}

fn go(folder: &Path, output: &str) -> Bytes {
    built(output, |output| {
        let mut command = Command::new(program("go", "go/go/bin/go"));
        command.current_dir(folder).args(["build", "-buildmode=c-shared", "-o"]).arg(output).arg(".");
        command.envs([
            ("GOOS", "wasip1"),
            ("GOARCH", "wasm"),
            ("GOTOOLCHAIN", "local"),
            ("GOFLAGS", "-mod=mod"),
        ]);
        command
    })
}

/// The Go guest, which is built and compiled once.
static GO: LazyLock<Guest> = LazyLock::new(|| Guest::new(go(&here().join("guests/go"), "guest-go.wasm")));

/// A module, with the state in which its compiled form is kept.
struct Guest {
    module: Bytes,
    services: Services,
    states: States,
    /// Keeps the compiled form.
    _kept: Arc<dyn Plugin>,
}

impl Guest {
    fn new(module: Bytes) -> Self {
        Self::new_with(module, json!({}))
    }

    fn new_with(module: Bytes, config: Value) -> Self {
        let (services, states) = (Services::default().with_blobs([module.clone()]), States::default());
        let kept = Self::build(&module, &services, &states, config);
        Self { module, services, states, _kept: kept }
    }

    fn build(module: &Bytes, services: &Services, states: &States, mut config: Value) -> Arc<dyn Plugin> {
        config["module"] = json!(BlobId::of(module).to_string());
        build_type(&PluginType::of::<Wasm>(), services, states, config)
    }

    fn plugin(&self, config: Value) -> Arc<dyn Plugin> {
        Self::build(&self.module, &self.services, &self.states, config)
    }
}

fn met(plugin: &Arc<dyn Plugin>, path: &str) -> Answer {
    Client::new("GET", path).meets(&**plugin).unwrap_or_else(|| panic!("{path} was not answered"))
}

#[test]
fn a_go_guest_reads_and_changes_headers() {
    let plugin = GO.plugin(json!({}));
    let mut client = Client::new("GET", "/headers").header("x-one", "1").header("x-two", "");
    assert!(client.meets(&*plugin).is_none());
    assert_eq!(
        (&client.head.headers["x-seen-x-one"], &client.head.headers["x-seen-x-two"]),
        (&"1".parse().unwrap(), &"".parse().unwrap())
    );
    let response = client.receives(&*plugin, Origin::Upstream, Response::new(Bytes::new()));
    assert_eq!(response.headers()["x-guest"], "go");
    let mut client = Client::new("GET", "/status");
    assert!(client.meets(&*plugin).is_none());
    assert_eq!(client.receives(&*plugin, Origin::Upstream, Response::new(Bytes::new())).status(), 418);
    assert_eq!(met(&plugin, "/refused-header").detail, "bad argument bad argument");
}

#[test]
fn the_standard_library_of_go_works() {
    let plugin = GO.plugin(json!({}));
    for _ in 0..3 {
        assert_eq!(met(&plugin, "/standard-library").detail, "6 100000 true true true");
    }
    assert_eq!(met(&plugin, "/properties").detail, "192.0.2.1 p false");
}

#[test]
fn a_go_guest_keeps_state_between_requests_and_reads_its_configuration() {
    let plugin = GO.plugin(json!({"config": {"greeting": "hello"}}));
    assert_eq!(met(&plugin, "/state").detail, "hello 1");
    assert_eq!(met(&plugin, "/state").detail, "hello 2");
    let module = json!(BlobId::of(&GO.module).to_string());
    let context = signalbox_plugin::testing::name("p");
    let refused = PluginType::of::<Wasm>().build(
        json!({"module": module, "config": "{"}).to_string().as_bytes(),
        &GO.services.context(&context, &GO.states),
    );
    assert_eq!(refused.err().unwrap()[0].to_string(), "config: the module refused its configuration");
}

#[test]
fn a_go_guest_calls_a_service_while_the_request_waits() {
    let plugin = GO.plugin(json!({"upstreams": ["svc"]}));
    let mut client = Client::new("GET", "/call").answering(|upstream, request| {
        let text = format!(
            "{upstream} {} {} {}",
            request.uri(),
            request.headers()["x-user"].to_str().unwrap(),
            String::from_utf8_lossy(request.body())
        );
        Ok(Response::builder().status(201).header("x-role", "admin").body(text.into()).unwrap())
    });
    assert!(client.meets(&*plugin).is_none());
    assert_eq!(client.head.headers["x-answer"], "201 admin svc /check ada is it ada?");
    let mut client = Client::new("GET", "/call").answering(|_, _| Err(CallError::Connect));
    assert_eq!(client.meets(&*plugin).unwrap().status, 504);
    // The upstream is not among those that it may call.
    let plugin = GO.plugin(json!({}));
    assert_eq!(met(&plugin, "/call").detail, "bad argument");
}

#[test]
fn a_go_guest_changes_bodies() {
    let plugin = GO.plugin(json!({}));
    for size in [Some(3), None] {
        let mut client = Client::new("POST", "/body-upper");
        client.body_size = size;
        assert!(client.meets(&*plugin).is_none());
        assert_eq!(client.sends(&*plugin, "abc").unwrap(), "ABC");
        let mut client = Client::new("POST", "/body-first");
        client.body_size = size;
        assert!(client.meets(&*plugin).is_none());
        assert_eq!(client.sends(&*plugin, "abc").unwrap(), "ABC");
        assert_eq!(client.head.headers["x-length"], "3");
        let mut client = Client::new("POST", "/body-refused");
        client.body_size = size;
        assert!(client.meets(&*plugin).is_none());
        assert_eq!(client.sends(&*plugin, "abc").unwrap_err().status, 422);
    }
    let mut client = Client::new("GET", "/response-body");
    assert!(client.meets(&*plugin).is_none());
    let response = client.receives(&*plugin, Origin::Upstream, Response::new("abc".into()));
    assert_eq!(response.body(), "from go: abc");
}

#[test]
fn a_go_guest_that_fails_takes_nobody_along() {
    let plugin = GO.plugin(json!({"limits": {"time": "200ms", "memory": "32MiB"}}));
    for path in ["/panic", "/loop", "/sleep", "/memory"] {
        let began = Instant::now();
        assert_eq!(met(&plugin, path).status, 500, "{path}");
        assert!(began.elapsed() < Duration::from_secs(10), "{path} took {:?}", began.elapsed());
        assert_eq!(met(&plugin, "/state").detail, " 1", "{path} leaves a new instance");
    }
}

#[test]
fn the_example_in_go_works() {
    let example = Guest::new_with(
        go(&here().join("../examples/wasm-go"), "example-go.wasm"),
        json!({"config": {"token": "s3cret", "stamp": "yes"}}),
    );
    let plugin = example.plugin(json!({"config": {"token": "s3cret", "stamp": "yes"}}));
    assert_eq!(met(&plugin, "/").status, 401);
    let mut client = Client::new("GET", "/").header("x-token", "s3cret");
    assert!(client.meets(&*plugin).is_none());
    assert!(client.head.headers.get("x-token").is_none());
    let response = client.receives(&*plugin, Origin::Upstream, Response::new(Bytes::new()));
    assert_eq!(response.headers()["x-stamp"], "yes");
}

#[test]
fn a_c_guest_works_without_any_library() {
    let module = built("guest-c.wasm", |output| {
        let mut command = Command::new("clang");
        command.args(["--target=wasm32", "-nostdlib", "-O2", "-Wl,--no-entry", "-o"]).arg(output);
        command.arg(here().join("guests/c/guest.c"));
        command
    });
    let guest = Guest::new_with(module, json!({"config": "from c"}));
    let plugin = guest.plugin(json!({"config": "from c"}));
    let refused = met(&plugin, "/");
    assert_eq!((refused.status, refused.detail.as_str()), (401, "show a token\n"));
    let mut client = Client::new("GET", "/").header("x-token", "abc");
    assert!(client.meets(&*plugin).is_none());
    assert_eq!(client.head.headers["x-was"], "abc");
    assert!(!client.head.headers.contains_key("x-token"));
    let response = client.receives(&*plugin, Origin::Upstream, Response::new(Bytes::new()));
    assert_eq!(response.headers()["x-stamp"], "from c");
}

#[test]
fn an_assemblyscript_guest_works() {
    let module = built("guest-assemblyscript.wasm", |output| {
        let mut command = Command::new(program("asc", "assemblyscript/node_modules/.bin/asc"));
        command
            .arg(here().join("guests/assemblyscript/guest.ts"))
            .args(["--runtime", "minimal", "-o"])
            .arg(output);
        command.arg("--baseDir").arg("/");
        command
    });
    let plugin = Guest::new(module).plugin(json!({}));
    for _ in 0..200 {
        let mut client = Client::new("GET", "/").header("x-in", &"long ".repeat(1000));
        assert!(client.meets(&*plugin).is_none());
        assert_eq!(client.head.headers["x-out"].len(), 5000);
        let response = client.receives(&*plugin, Origin::Upstream, Response::new("some".into()));
        assert_eq!(response.body(), "some and more");
    }
}

#[test]
fn a_rust_guest_works_and_its_panics_are_traps() {
    let module = built("guest-rust.wasm", |output| {
        let root = PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/signalbox/rust");
        let mut command = Command::new(root.join("usr/bin/rustc"));
        command.env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"));
        command.arg("--sysroot").arg(root.join("usr"));
        command.args([
            "--target",
            "wasm32-unknown-unknown",
            "--crate-type",
            "cdylib",
            "--edition",
            "2021",
            "-O",
        ]);
        command.args(["-C", "linker=wasm-ld", "-o"]).arg(output).arg(here().join("guests/rust/guest.rs"));
        command
    });
    let plugin = Guest::new(module).plugin(json!({}));
    let mut count = |name: &str| {
        let mut client = Client::new("GET", "/").header("x-client", name);
        assert!(client.meets(&*plugin).is_none());
        let response = client.receives(&*plugin, Origin::Upstream, Response::new(Bytes::new()));
        client.ends(&*plugin, 200);
        response.headers()["x-count"].to_str().unwrap().to_owned()
    };
    assert_eq!(["a", "b", "a", "a"].map(&mut count), ["1", "1", "2", "3"]);
    assert_eq!(met(&plugin, "/").status, 500, "it panics without the header");
    assert_eq!(count("a"), "1", "a new instance begins anew");
}
