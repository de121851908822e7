//! The direction of dependencies between the crates of the workspace, read from `cargo metadata`.

// Clippy lets only the tests themselves unwrap, not what they share.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// Every crate of the workspace, and which others it may depend on. Development dependencies are left out, but for
/// the two planes', which must not know each other even there.
const LAYERS: &[(&str, &[&str])] = &[
    ("signalbox-proto", &[]),
    ("signalbox-config", &["signalbox-proto"]),
    ("signalbox-plugins", &["signalbox-config", "signalbox-proto"]),
    ("signalbox-process", &[]),
    (
        "signalbox-control-plane",
        &["signalbox-plugins", "signalbox-config", "signalbox-proto", "signalbox-process"],
    ),
    ("signalbox-proxy", &["signalbox-plugins", "signalbox-config", "signalbox-proto", "signalbox-process"]),
    ("signalbox-tests", &["signalbox-plugins", "signalbox-config", "signalbox-proto"]),
    ("signalbox-bench", &["signalbox-tests", "signalbox-plugins", "signalbox-config", "signalbox-proto"]),
];

/// Libraries that only one crate may use directly.
const ONLY_IN: &[(&str, &str)] = &[("sqlx", "signalbox-control-plane"), ("axum", "signalbox-control-plane")];

/// Libraries that would let a crate do I/O or read a clock, where it must not.
const NEVER_IN: &[(&str, &[&str])] =
    &[("signalbox-config", &["tokio", "hyper", "reqwest", "tonic", "jiff", "tempfile", "fastrand"])];

struct Dependency {
    name: String,
    /// Of `[dev-dependencies]`.
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
