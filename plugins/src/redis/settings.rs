//! The configuration of a connection to Redis.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, HumanDuration, SecretSpec};

use crate::reference::check_reference;

/// The Redis servers where proxies count together. Plugins with the same settings share their connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Redis")]
pub(crate) struct RedisSettings {
    /// The addresses, `host:port` each: the server's, those of the sentinels, or those of some nodes of the cluster.
    #[schemars(title = "Addresses", length(min = 1, max = 32))]
    pub(super) addresses: Vec<String>,
    /// The way in which the servers work together.
    #[serde(default)]
    #[schemars(title = "Mode")]
    pub(super) mode: Mode,
    /// The name by which the sentinels know the servers, for `mode: sentinel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Service")]
    pub(super) service: Option<String>,
    /// The number of the database. A cluster has only database 0.
    #[serde(default)]
    #[schemars(title = "Database", range(max = 65_535))]
    pub(super) database: u32,
    /// The name of the user whose permissions the proxy has. Absent: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "User name")]
    pub(super) username: Option<String>,
    /// The password, as a reference: `{"env": "NAME"}` or `{"file": "PATH"}` of the proxy. It is read at each connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Password")]
    pub(super) password: Option<SecretSpec>,
    /// The name of the user at the sentinels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "User name at the sentinels")]
    pub(super) sentinel_username: Option<String>,
    /// The password at the sentinels, likewise a reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Password at the sentinels")]
    pub(super) sentinel_password: Option<SecretSpec>,
    /// TLS for all connections, to the sentinels too. Absent: the connections are not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "TLS")]
    pub(super) tls: Option<TlsSettings>,
    /// The longest time that a request waits for an answer, from 1ms to 10s.
    #[serde(default = "default_timeout")]
    #[schemars(title = "Timeout")]
    pub(super) timeout: HumanDuration,
    /// The beginning of all keys, so that several installations can share a server.
    #[serde(default = "default_prefix")]
    #[schemars(title = "Key prefix", length(max = 64))]
    pub(super) key_prefix: String,
}

/// The way in which Redis servers work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// One server.
    #[default]
    Single,
    /// A primary with replicas. Sentinels know which one is the primary.
    Sentinel,
    /// A cluster of primaries, each with a part of the keys.
    Cluster,
}

/// TLS to Redis.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "TLS to Redis")]
pub(super) struct TlsSettings {
    /// The certificates of the authorities that vouch for the servers, PEM. Absent: those of the proxy's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Authorities", extend("x-multiline" = true))]
    pub(super) ca: Option<String>,
    /// The proxy's own certificate with its chain, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Certificate", extend("x-multiline" = true))]
    pub(super) certificate: Option<String>,
    /// The key of that certificate, as a reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Private key")]
    pub(super) private_key: Option<SecretSpec>,
}

const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);

impl RedisSettings {
    /// Adds the errors of the settings in the field `redis` to `errors`.
    pub(crate) fn check(&self, errors: &mut Errors) {
        if self.addresses.is_empty() {
            errors.push("redis.addresses", "must have at least one address");
        }
        for (index, address) in self.addresses.iter().enumerate() {
            if host_and_port(address).is_none() {
                errors.push(format_args!("redis.addresses[{index}]"), "must be host:port");
            }
        }
        if !TIMEOUTS.contains(&self.timeout.0) {
            errors.push("redis.timeout", "must be from 1ms to 10s");
        }
        if self.mode == Mode::Single && self.addresses.len() > 1 {
            errors.push("redis.addresses", "must be one address in mode single");
        }
        if self.mode == Mode::Cluster && self.database != 0 {
            errors.push("redis.database", "must be 0 in mode cluster");
        }
        self.check_sentinel(errors);
        let secrets = [("password", &self.password), ("sentinel_password", &self.sentinel_password)];
        for (field, secret) in secrets {
            check_reference(&format!("redis.{field}"), secret.as_ref(), errors);
        }
        if let Some(tls) = &self.tls {
            check_reference("redis.tls.private_key", tls.private_key.as_ref(), errors);
            if tls.certificate.is_some() != tls.private_key.is_some() {
                errors.push("redis.tls.certificate", "is only used together with private_key");
            }
        }
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}');
        if !self.key_prefix.bytes().all(plain) {
            errors.push("redis.key_prefix", "must be printable ASCII without spaces and braces");
        }
    }

    fn check_sentinel(&self, errors: &mut Errors) {
        let is_sentinel = self.mode == Mode::Sentinel;
        match &self.service {
            None if is_sentinel => errors.push("redis.service", "is required in mode sentinel"),
            Some(service) if service.is_empty() => errors.push("redis.service", "must not be empty"),
            Some(_) if !is_sentinel => errors.push("redis.service", "is only used in mode sentinel"),
            _ => {}
        }
        let fields = [
            ("sentinel_username", self.sentinel_username.is_some()),
            ("sentinel_password", self.sentinel_password.is_some()),
        ];
        for (field, present) in fields {
            if present && !is_sentinel {
                errors.push(format_args!("redis.{field}"), "is only used in mode sentinel");
            }
        }
    }

    pub(crate) fn key_prefix(&self) -> &str {
        &self.key_prefix
    }
}

/// `host:port`, the host of an IPv6 address in brackets.
pub(super) fn host_and_port(address: &str) -> Option<(String, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None => host,
    };
    let is_bracketed_or_plain = address.starts_with('[') || !host.contains(':');
    let port: u16 = port.parse().ok()?;
    let is_name = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@');
    (is_bracketed_or_plain && is_name && port != 0).then(|| (host.to_owned(), port))
}

fn default_timeout() -> HumanDuration {
    HumanDuration(Duration::from_millis(50))
}

fn default_prefix() -> String {
    "signalbox".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(settings: serde_json::Value) -> String {
        let settings: RedisSettings = serde_json::from_value(settings).unwrap();
        let mut errors = Errors::default();
        settings.check(&mut errors);
        let errors = errors.finish(Some(())).err().unwrap_or_default();
        errors.iter().map(|error| format!("{} {}\n", error.field, error.message)).collect()
    }

    #[test]
    fn good_settings_have_no_errors() {
        for settings in [
            json!({"addresses": ["redis.example:6379"]}),
            json!({"addresses": ["[::1]:6379"], "password": {"env": "REDIS_PASSWORD"}, "timeout": "1ms"}),
            json!({"addresses": ["a:1", "b:2"], "mode": "sentinel", "service": "main", "database": 3,
                "sentinel_username": "u", "sentinel_password": {"file": "/run/secrets/sentinel"}}),
            json!({"addresses": ["a:1", "b:2"], "mode": "cluster", "tls": {}}),
        ] {
            assert_eq!(errors(settings.clone()), "", "{settings}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        for (settings, field) in [
            (json!({"addresses": []}), "redis.addresses "),
            (json!({"addresses": ["redis"]}), "redis.addresses[0] "),
            (json!({"addresses": ["::1:6379"]}), "redis.addresses[0] "),
            (json!({"addresses": ["user@redis:6379"]}), "redis.addresses[0] "),
            (json!({"addresses": ["redis:0"]}), "redis.addresses[0] "),
            (json!({"addresses": ["a:1", "b:1"]}), "redis.addresses "),
            (json!({"addresses": ["a:1"], "timeout": "0s"}), "redis.timeout "),
            (json!({"addresses": ["a:1"], "timeout": "1m"}), "redis.timeout "),
            (json!({"addresses": ["a:1"], "mode": "cluster", "database": 1}), "redis.database "),
            (json!({"addresses": ["a:1"], "mode": "sentinel"}), "redis.service "),
            (json!({"addresses": ["a:1"], "service": "main"}), "redis.service "),
            (json!({"addresses": ["a:1"], "sentinel_username": "u"}), "redis.sentinel_username "),
            (json!({"addresses": ["a:1"], "password": "in the clear"}), "redis.password "),
            (json!({"addresses": ["a:1"], "password": {"env": ""}}), "redis.password "),
            (json!({"addresses": ["a:1"], "tls": {"certificate": "PEM"}}), "redis.tls.certificate "),
            (json!({"addresses": ["a:1"], "key_prefix": "{a}"}), "redis.key_prefix "),
        ] {
            let found = errors(settings.clone());
            assert!(found.starts_with(field) && found.lines().count() == 1, "{settings}: {found}");
        }
    }
}
