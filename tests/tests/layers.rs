//! The direction of dependencies between the crates of the workspace, read from `cargo metadata`, and their features.

// Clippy lets only the tests themselves unwrap, not what they share.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace, and which others it may depend on. Development dependencies are left out, but for
/// the two planes', which must not know each other even there.
const LAYERS: &[(&str, &[&str])] = &[
    ("signalbox-proto", &[]),
    ("signalbox-expr", &[]),
    ("signalbox-config", &["signalbox-proto", "signalbox-expr"]),
    ("signalbox-plugin-macros", &[]),
    (
        "signalbox-plugin",
        &["signalbox-plugin-macros", "signalbox-config", "signalbox-proto", "signalbox-expr"],
    ),
    (
        "signalbox-plugins",
        &["signalbox-wasm", "signalbox-plugin", "signalbox-config", "signalbox-proto", "signalbox-expr"],
    ),
    ("signalbox-wasm", &["signalbox-plugin", "signalbox-config", "signalbox-proto", "signalbox-expr"]),
    ("signalbox-process", &[]),
    ("signalbox-rollout", &["signalbox-config"]),
    (
        "signalbox-control-plane",
        &[
            "signalbox-plugin",
            "signalbox-plugins",
            "signalbox-wasm",
            "signalbox-config",
            "signalbox-expr",
            "signalbox-proto",
            "signalbox-process",
            "signalbox-rollout",
        ],
    ),
    (
        "signalbox-proxy",
        &[
            "signalbox-plugin",
            "signalbox-plugins",
            "signalbox-wasm",
            "signalbox-config",
            "signalbox-expr",
            "signalbox-proto",
            "signalbox-process",
        ],
    ),
    ("signalbox-tests", &["signalbox-plugin", "signalbox-plugins", "signalbox-config", "signalbox-proto"]),
    ("signalbox-bench", &["signalbox-tests", "signalbox-plugins", "signalbox-config", "signalbox-proto"]),
];

/// Libraries that only one crate may use directly.
const ONLY_IN: &[(&str, &str)] = &[
    ("sqlx", "signalbox-control-plane"),
    ("axum", "signalbox-control-plane"),
    ("wasmtime", "signalbox-wasm"),
];

/// Libraries that would let a crate do I/O or read a clock, where it must not.
const NEVER_IN: &[(&str, &[&str])] = &[
    ("signalbox-expr", &["tokio", "hyper", "reqwest", "tonic", "jiff", "tempfile", "fastrand"]),
    ("signalbox-config", &["tokio", "hyper", "reqwest", "tonic", "jiff", "tempfile", "fastrand"]),
    // It has jiff for the arithmetic of time zones. `crates_without_a_clock_read_none` finds calls of its clock.
    ("signalbox-rollout", &["tokio", "hyper", "reqwest", "tonic", "tempfile"]),
];

/// The folders of crates whose callers pass the time.
const WITHOUT_CLOCK: &[&str] = &["expr", "config", "rollout"];

struct Dependency {
    name: String,
    /// Named in `[dev-dependencies]`.
    development: bool,
}

fn crates() -> BTreeMap<String, Vec<Dependency>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let dependency =
        |value: &Value| Dependency { name: text(&value["name"]), development: value["kind"] == "dev" };
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            (text(&package["name"]), list(&package["dependencies"]).iter().map(dependency).collect())
        })
        .collect()
}

/// Every package that a selection of the workspace builds, with its features.
fn packages(selection: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--no-dedupe", "--prefix=none", "--format={p} {f}"])
        .args(selection)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn make_run_needs_no_other_build_than_make_test() {
    let run = packages(&["--edges=normal,build"]);
    let test = packages(&["--workspace", "--edges=normal,build,dev"]);
    assert!(run.len() > 100, "the programs need more than {} packages", run.len());
    let built_twice: Vec<_> = run.difference(&test).collect();
    assert!(
        built_twice.is_empty(),
        "the tests have other features of these; name them in [workspace.dependencies]: {built_twice:#?}"
    );
}

#[test]
fn dependencies_point_one_way() {
    for (name, dependencies) in crates() {
        let layer = LAYERS.iter().find(|(known, _)| *known == name);
        let (_, allowed) = layer.unwrap_or_else(|| panic!("{name} has no place among the layers yet"));
        for dependency in dependencies {
            let ours = dependency.name.starts_with("signalbox-");
            assert!(
                !ours || dependency.development || allowed.contains(&dependency.name.as_str()),
                "{name} must not depend on {}",
                dependency.name
            );
        }
    }
}

#[test]
fn the_two_planes_never_import_each_other() {
    let crates = crates();
    let imports = |from: &str, to: &str| crates[from].iter().any(|dependency| dependency.name == to);
    assert!(!imports("signalbox-proxy", "signalbox-control-plane"));
    assert!(!imports("signalbox-control-plane", "signalbox-proxy"));
}

#[test]
fn only_the_control_plane_knows_sql_and_axum() {
    for (name, dependencies) in crates() {
        for (library, owner) in ONLY_IN {
            let used = dependencies.iter().any(|dependency| dependency.name == *library);
            assert!(!used || name == *owner, "{name} must not depend on {library}");
        }
    }
}

#[test]
fn crates_without_a_clock_read_none() {
    let mut folders: Vec<PathBuf> = WITHOUT_CLOCK
        .iter()
        .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src"))
        .collect();
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let text = fs::read_to_string(&path).unwrap();
            // Tests come last in a file, and may measure how long they take.
            let text = text.split("#[test]").next().unwrap_or_default();
            for clock in ["::now(", "::system("] {
                assert!(
                    !text.contains(clock),
                    "{} has {clock:?}; let the caller pass the time",
                    path.display()
                );
            }
        }
    }
    assert!(files > 50, "{files} files");
}

#[test]
fn the_configuration_crate_does_no_io_and_reads_no_clock() {
    let crates = crates();
    for (name, forbidden) in NEVER_IN {
        for dependency in crates[*name].iter().filter(|dependency| !dependency.development) {
            assert!(
                !forbidden.contains(&dependency.name.as_str()),
                "{name} must not depend on {}",
                dependency.name
            );
        }
    }
}
