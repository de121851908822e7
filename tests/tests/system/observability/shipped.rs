//! The files that are shipped, as the tests read them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use signalbox_tests::control_plane::ADMIN_TOKEN;

/// The names of the dashboards.
pub(super) const DASHBOARDS: [&str; 4] = ["fleet", "route", "upstream", "rollout"];

/// The token of the proxies' admin servers.
pub(super) const PROXY_ADMIN_TOKEN: &str = "proxy-admin-token-of-the-system-tests";

pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

pub(super) fn shipped(name: &str) -> PathBuf {
    repository().join("observability").join(name)
}

pub(super) fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A copy of Prometheus' configuration with its rules and the secrets that it names.
pub(super) struct Configuration(tempfile::TempDir);

impl Configuration {
    pub(super) fn new() -> Self {
        let configuration =
            Self(tempfile::Builder::new().prefix("signalbox-configuration-").tempdir().unwrap());
        for folder in ["rules", "secrets"] {
            std::fs::create_dir(configuration.dir().join(folder)).unwrap();
        }
        for name in ["prometheus.yml", "rules/signalbox.rules.yml"] {
            std::fs::copy(shipped(name), configuration.dir().join(name)).unwrap();
        }
        std::fs::write(configuration.dir().join("secrets/viewer-token"), ADMIN_TOKEN).unwrap();
        std::fs::write(configuration.dir().join("secrets/proxy-admin-token"), PROXY_ADMIN_TOKEN).unwrap();
        configuration
    }

    pub(super) fn edit(&self, name: &str, edit: impl Fn(String) -> String) {
        let path = self.dir().join(name);
        let text = read(&path);
        let edited = edit(text.clone());
        assert_ne!(text, edited, "{name} has nothing to replace");
        std::fs::write(path, edited).unwrap();
    }

    pub(super) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn file(&self) -> PathBuf {
        self.dir().join("prometheus.yml")
    }
}

pub(super) fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(shipped("grafana/dashboards").join(format!("{name}.json")))).unwrap()
}

pub(super) fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An expression of a dashboard, as Grafana sends it when all values are chosen.
pub(super) fn filled(expression: &str) -> String {
    let filled = ["$fleet", "$instance", "$route", "$upstream"]
        .iter()
        .fold(expression.to_owned(), |text, variable| text.replace(variable, ".*"));
    let filled = filled.replace("$__rate_interval", "1m");
    assert!(!filled.contains('$'), "{expression} has an unknown variable");
    filled
}

/// The expressions of a dashboard's panels and markers, each with the text that names its series.
pub(super) fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for target in array(&dashboard["panels"]).flat_map(|panel| array(&panel["targets"])) {
        all.push((filled(text(&target["expr"])), text(&target["legendFormat"]).to_owned()));
    }
    for marker in array(&dashboard["annotations"]["list"]) {
        let legend = format!("{} {}", text(&marker["titleFormat"]), text(&marker["textFormat"]));
        all.push((filled(text(&marker["expr"])), legend));
    }
    all
}
