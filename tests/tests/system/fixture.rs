//! The beginning of most scenarios.

use serde_json::{Value, json};
use signalbox_tests::{Backend, ControlPlane, Proxy};

/// A control plane on SQLite, some proxies, and a backend that they know as the upstream `echo`.
pub(crate) struct Gateway {
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) control_plane: ControlPlane,
    pub(crate) backend: Backend,
}

impl Gateway {
    /// With so many proxies: `proxy-0`, `proxy-1` …, all of them in sync.
    pub(crate) async fn start(proxies: usize) -> Self {
        Self::on(ControlPlane::sqlite().await.unwrap(), proxies).await
    }

    /// Likewise, on this control plane.
    pub(crate) async fn on(control_plane: ControlPlane, proxies: usize) -> Self {
        let backend = Backend::echo("echo").unwrap();
        let api = control_plane.api();
        api.put("upstreams", "echo", &upstream(&[&backend])).await.unwrap();
        let mut started = Vec::new();
        for index in 0..proxies {
            started.push(Proxy::of(&control_plane, &format!("proxy-{index}")).await.unwrap());
        }
        api.wait_in_sync(proxies).await.unwrap();
        Self { proxies: started, control_plane, backend }
    }

    /// Writes a resource, and returns when every proxy serves it.
    pub(crate) async fn put(&self, kinds: &str, name: &str, spec: &Value) -> u64 {
        let api = self.control_plane.api();
        let revision = api.put(kinds, name, spec).await.unwrap();
        api.wait_default(revision).await.unwrap();
        revision
    }
}

/// An upstream of these backends.
pub(crate) fn upstream(backends: &[&Backend]) -> Value {
    let targets: Vec<Value> =
        backends.iter().map(|backend| json!({"address": backend.address().to_string()})).collect();
    json!({"targets": targets})
}

/// A route of a path prefix to the upstream `echo`.
pub(crate) fn forward(prefix: &str) -> Value {
    json!({"match": {"paths": [{"prefix": prefix}]}, "forward": {"upstreams": [{"name": "echo"}]}})
}

/// A route of a path prefix that answers by itself.
pub(crate) fn respond(prefix: &str, body: &str) -> Value {
    json!({"match": {"paths": [{"prefix": prefix}]}, "respond": {"body": body}})
}

/// `value` with these fields over its own.
pub(crate) fn with(mut value: Value, fields: &Value) -> Value {
    if let (Some(value), Some(fields)) = (value.as_object_mut(), fields.as_object()) {
        value.extend(fields.clone());
    }
    value
}
