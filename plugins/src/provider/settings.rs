//! The configuration of a provider whose keys are fetched.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, HumanDuration, Kind, Name, ResourceKey};

use super::document::{Endpoint, endpoint_of, is_issuer, place_of};

/// A provider that publishes its keys.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Key set")]
pub(crate) struct KeysSpec {
    /// The upstream whose targets are the provider.
    #[schemars(title = "Upstream")]
    upstream: String,
    /// The path of the key set (JWKS) on the upstream. Absent: the one that the discovery document of the `issuer` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Path")]
    path: Option<String>,
    /// The `Host` of the requests for the key set at `path`. Absent: the one of the `issuer`, or the name of the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Host")]
    host: Option<String>,
    /// The interval at which the keys are fetched anew, from 1s to 24h.
    #[serde(default = "default_refresh")]
    #[schemars(title = "Refresh")]
    refresh: HumanDuration,
    /// The least time between two fetches that are made because of a token whose key is not known, from 1s to 1h.
    #[serde(default = "default_cooldown")]
    #[schemars(title = "Cooldown")]
    cooldown: HumanDuration,
    /// The time for a fetch, and the time that a request waits for one, from 1ms to 1m.
    #[serde(default = "default_timeout")]
    #[schemars(title = "Timeout")]
    timeout: HumanDuration,
}

/// A provider, and the times of fetches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    pub(crate) upstream: Name,
    pub(super) place: Place,
    pub(crate) refresh: Duration,
    pub(crate) cooldown: Duration,
    pub(crate) timeout: Duration,
}

/// The place of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// They are there.
    Keys(Endpoint),
    /// The discovery document says where they are.
    Discovery { issuer: Box<str>, document: Endpoint },
}

/// The bounds of the times of a [`Source`].
const REFRESH: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
const COOLDOWN: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
pub(crate) const TIMEOUT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(60);

impl KeysSpec {
    /// Reads the specification; the errors are those within it.
    pub(crate) fn parse(&self, issuer: Option<&str>, errors: &mut Errors) -> Option<Source> {
        for (field, value, bounds, message) in [
            ("refresh", self.refresh.0, REFRESH, "must be from 1s to 24h"),
            ("cooldown", self.cooldown.0, COOLDOWN, "must be from 1s to 1h"),
            ("timeout", self.timeout.0, TIMEOUT, "must be from 1ms to 1m"),
        ] {
            if !bounds.contains(&value) {
                errors.push(field, message);
            }
        }
        let upstream = check_upstream(&self.upstream, errors);
        let place = self.place(issuer, errors);
        Some(Source {
            upstream: upstream?,
            place: place?,
            refresh: self.refresh.0,
            cooldown: self.cooldown.0,
            timeout: self.timeout.0,
        })
    }

    fn place(&self, issuer: Option<&str>, errors: &mut Errors) -> Option<Place> {
        let Some(path) = &self.path else {
            if self.host.is_some() {
                errors.push("host", "is only used with path");
            }
            return match issuer.filter(|issuer| is_issuer(issuer)) {
                Some(issuer) => Some(Place::Discovery { issuer: issuer.into(), document: place_of(issuer)? }),
                None => {
                    errors.push(
                        "path",
                        "is required unless issuer is the URL of a provider with a discovery document",
                    );
                    None
                }
            };
        };
        if !path.starts_with('/') {
            errors.push("path", "must be a path that begins with /");
            return None;
        }
        let of_issuer = issuer.and_then(endpoint_of).and_then(|it| it.url.authority().cloned());
        let host = match (&self.host, &of_issuer) {
            (Some(host), _) => host,
            (None, Some(authority)) => authority.as_str(),
            (None, None) => &self.upstream,
        };
        if self.host.as_deref() == Some("") || endpoint_of(&format!("http://{host}/")).is_none() {
            errors.push("host", "must be a host, with a port if it is not the usual one");
            return None;
        }
        let place = endpoint_of(&format!("http://{host}{path}"));
        if place.is_none() {
            errors.push("path", "cannot be the path of a request");
        }
        place.map(Place::Keys)
    }

    /// The reference to the upstream; `field` is the one of this specification.
    pub(crate) fn reference(&self, field: &str) -> Option<(ResourceKey, String)> {
        upstream_reference(&self.upstream, &format!("{field}.upstream"))
    }
}

impl Source {
    /// The source of a provider that is known by its discovery document alone.
    pub(crate) fn discovered(upstream: Name, issuer: &str, timeout: Duration) -> Option<Self> {
        Some(Self {
            upstream,
            place: Place::Discovery { issuer: issuer.into(), document: place_of(issuer)? },
            refresh: default_refresh().0,
            cooldown: default_cooldown().0,
            timeout,
        })
    }
}

/// Reads the field `upstream`.
pub(crate) fn check_upstream(name: &str, errors: &mut Errors) -> Option<Name> {
    name.parse().map_err(|message| errors.push("upstream", message)).ok()
}

/// The reference to an upstream in this field.
pub(crate) fn upstream_reference(name: &str, field: &str) -> Option<(ResourceKey, String)> {
    Some((ResourceKey::new(Kind::Upstream, name.parse().ok()?), field.to_owned()))
}

fn default_refresh() -> HumanDuration {
    HumanDuration(Duration::from_secs(600))
}

fn default_cooldown() -> HumanDuration {
    HumanDuration(Duration::from_secs(30))
}

fn default_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(5))
}
