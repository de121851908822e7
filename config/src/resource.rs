use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use bytes::Bytes;
use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use crate::certificate::{Certificate, CertificateSpec};
use crate::consumer::{Consumer, ConsumerSpec};
use crate::digest::Fingerprint;
use crate::error::{Errors, FieldError};
use crate::key::{Kind, Name, ResourceKey};
use crate::listener::{Listener, ListenerSpec};
use crate::plugin::{Plugin, PluginCatalog, PluginSpec};
use crate::route::{Action, Route, RouteSpec};
use crate::secret::Secret;
use crate::structure::check_structure;
use crate::upstream::{Upstream, UpstreamSpec};
use crate::wire;
use crate::written::{check_narrowing, check_placeholders};

/// One named, parsed object, with the bytes it is stored and sent as.
pub struct Resource {
    key: ResourceKey,
    /// As it is sent: the specification's canonical JSON in its wrapping.
    encoded: Bytes,
    fingerprint: Fingerprint,
    fleets: Option<Box<[Box<str>]>>,
    body: Body,
}

/// What a resource is, parsed. All are boxed: else each of 100,000 routes takes as much as the largest of the others.
#[derive(Debug)]
pub enum Body {
    /// A listener.
    Listener(Box<Listener>),
    /// A route.
    Route(Box<Route>),
    /// An upstream.
    Upstream(Box<Upstream>),
    /// A plugin.
    Plugin(Box<Plugin>),
    /// A consumer.
    Consumer(Box<Consumer>),
    /// A certificate.
    Certificate(Box<Certificate>),
}

impl Resource {
    /// Reads a specification that a person wrote. All that is wrong with it comes back at once.
    ///
    /// `value` may have a field `kind`, as in declarative documents, if it agrees with `kind`.
    pub fn parse(kind: Kind, mut value: Value, catalog: &dyn PluginCatalog) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let given = value.as_object_mut().and_then(|object| object.remove("kind"));
        if let Some(given) = given.filter(|given| given != kind.as_str()) {
            errors.push("kind", format_args!("is {given}, but this is a {kind}"));
        }
        check_narrowing(kind, &mut value, &mut errors);
        Self::dispatch(kind, Source::Written(value), errors, catalog)
    }

    /// Whether `value` has the shape of a specification of `kind`: a quick look, for those who need not know what is wrong.
    pub fn has_shape(kind: Kind, value: &Value) -> bool {
        match kind {
            Kind::Listener => ListenerSpec::deserialize(value).is_ok(),
            Kind::Route => RouteSpec::deserialize(value).is_ok(),
            Kind::Upstream => UpstreamSpec::deserialize(value).is_ok(),
            Kind::Plugin => PluginSpec::deserialize(value).is_ok(),
            Kind::Consumer => ConsumerSpec::deserialize(value).is_ok(),
            Kind::Certificate => CertificateSpec::deserialize(value).is_ok(),
        }
    }

    /// Reads what was stored: canonical JSON. Its bytes are kept as they are, and so is its version.
    pub fn from_stored(
        kind: Kind,
        spec: &[u8],
        catalog: &dyn PluginCatalog,
    ) -> Result<Self, Vec<FieldError>> {
        Self::dispatch(kind, Source::Encoded(wire::encode_spec(kind, spec)), Errors::default(), catalog)
    }

    /// Reads what was sent as a resource of `kind`. Its bytes are kept as they are, and so is its version.
    pub fn from_wire(
        kind: Kind,
        encoded: Bytes,
        catalog: &dyn PluginCatalog,
    ) -> Result<Self, Vec<FieldError>> {
        Self::dispatch(kind, Source::Encoded(encoded), Errors::default(), catalog)
    }

    fn dispatch(
        kind: Kind,
        source: Source,
        errors: Errors,
        catalog: &dyn PluginCatalog,
    ) -> Result<Self, Vec<FieldError>> {
        match kind {
            Kind::Listener => Self::build(kind, source, errors, |spec: &ListenerSpec, _| {
                spec.parse().map(Box::new).map(Body::Listener)
            }),
            Kind::Route => {
                // A pattern that matches nothing does no harm where it is stored already, and must not take its route away.
                let is_written = matches!(source, Source::Written(_));
                Self::build(kind, source, errors, |spec: &RouteSpec, name| {
                    let parsed = spec.parse(name);
                    let dead = if is_written { spec.dead_patterns() } else { Vec::new() };
                    match parsed {
                        Ok(route) if dead.is_empty() => Ok(Body::Route(Box::new(route))),
                        Ok(_) => Err(dead),
                        Err(errors) => Err([errors, dead].concat()),
                    }
                })
            }
            Kind::Upstream => Self::build(kind, source, errors, |spec: &UpstreamSpec, _| {
                spec.parse().map(Box::new).map(Body::Upstream)
            }),
            Kind::Plugin => Self::build(kind, source, errors, |spec: &PluginSpec, _| {
                spec.parse(catalog).map(Box::new).map(Body::Plugin)
            }),
            Kind::Consumer => Self::build(kind, source, errors, |spec: &ConsumerSpec, name| {
                spec.parse(name).map(Box::new).map(Body::Consumer)
            }),
            Kind::Certificate => Self::build(kind, source, errors, |spec: &CertificateSpec, _| {
                spec.parse().map(Box::new).map(Body::Certificate)
            }),
        }
    }

    fn build<S: Spec>(
        kind: Kind,
        source: Source,
        mut errors: Errors,
        parse: impl FnOnce(&S, &Name) -> Result<Body, Vec<FieldError>>,
    ) -> Result<Self, Vec<FieldError>> {
        let Some(spec) = source.read::<S>(kind, &mut errors) else { return errors.finish(None) };
        if let Source::Written(value) = &source {
            errors.extend_misshapen(check_placeholders(S::schema(), value));
        }
        let common = spec.common();
        let name: Option<Name> =
            common.name.parse().map_err(|message: String| errors.push("name", message)).ok();
        common.check(&mut errors);
        let fleets = common.fleets.map(|fleets| fleets.iter().map(|fleet| fleet.as_str().into()).collect());
        // A name that is wrong must not hide what else is.
        let body = match parse(&spec, name.as_ref().unwrap_or(&Name::lowest())) {
            Ok(body) => Some(body),
            Err(found) => {
                errors.extend_below("", found);
                None
            }
        };
        let encoded = match source {
            Source::Encoded(encoded) => encoded,
            Source::Written(_) => {
                let json = serde_json::to_vec(&spec.canonical())
                    .map_err(|error| vec![FieldError::new("", error.to_string())])?;
                wire::encode_spec(kind, &json)
            }
        };
        if encoded.len() > wire::MAX_SPEC {
            errors.push("", format_args!("is larger than {} bytes", wire::MAX_SPEC));
        }
        let built = name.zip(body).map(|(name, body)| {
            let key = ResourceKey::new(kind, name);
            let fingerprint = Fingerprint::of(&key.to_string(), &encoded);
            Self { key, encoded, fingerprint, fleets, body }
        });
        errors.finish(built)
    }

    /// Kind and name.
    pub fn key(&self) -> &ResourceKey {
        &self.key
    }

    /// What it is.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The protobuf message that is sent; shared, not copied.
    pub fn encoded(&self) -> Bytes {
        self.encoded.clone()
    }

    /// The specification's canonical JSON, as it is stored.
    pub fn spec(&self) -> &[u8] {
        wire::spec_of(&self.encoded)
    }

    /// The hash of name and bytes sent.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The content hash that is its ETag and its xDS version: 16 hexadecimal digits.
    pub fn version(&self) -> String {
        self.fingerprint.version()
    }

    /// The fleets that get it; `None`: all.
    pub fn fleets(&self) -> Option<&[Box<str>]> {
        self.fleets.as_deref()
    }

    /// Whether `fleet` gets it.
    pub fn visible_to(&self, fleet: &str) -> bool {
        self.fleets.as_ref().is_none_or(|fleets| fleets.iter().any(|name| **name == *fleet))
    }

    /// What it cannot do without, each with the field that names it.
    pub fn references(&self) -> Vec<(ResourceKey, String)> {
        let list = |kind, names: &[Name], field: &str| -> Vec<(ResourceKey, String)> {
            names
                .iter()
                .enumerate()
                .map(|(i, name)| (ResourceKey::new(kind, name.clone()), format!("{field}[{i}]")))
                .collect()
        };
        match &self.body {
            Body::Listener(listener) => {
                let name = listener.tls.as_ref().and_then(|tls| tls.default_certificate.clone());
                let key = name.map(|name| ResourceKey::new(Kind::Certificate, name));
                key.into_iter().map(|key| (key, "tls.default_certificate".to_owned())).collect()
            }
            Body::Upstream(upstream) => {
                let name = upstream.tls.as_ref().and_then(|tls| tls.certificate.clone());
                let key = name.map(|name| ResourceKey::new(Kind::Certificate, name));
                key.into_iter().map(|key| (key, "tls.certificate".to_owned())).collect()
            }
            Body::Certificate(_) => Vec::new(),
            Body::Plugin(plugin) => plugin.references.to_vec(),
            Body::Consumer(consumer) => list(Kind::Plugin, &consumer.plugins, "plugins"),
            Body::Route(route) => {
                let mut references = list(Kind::Plugin, &route.plugins, "plugins");
                references.extend(list(
                    Kind::Listener,
                    route.listeners.as_deref().unwrap_or_default(),
                    "listeners",
                ));
                if let Action::Forward(forward) = &route.action {
                    references.extend(forward.listed().enumerate().map(|(i, name)| {
                        let field = format!("forward.upstreams[{i}].name");
                        (ResourceKey::new(Kind::Upstream, name.clone()), field)
                    }));
                    references.extend(forward.mirror.iter().map(|mirror| {
                        let key = ResourceKey::new(Kind::Upstream, mirror.upstream.clone());
                        (key, "forward.mirror.upstream".to_owned())
                    }));
                }
                references
            }
        }
    }

    /// What only one resource may have, each with the field that claims it: a listener's address, an API key, a server
    /// name.
    pub fn claims(&self) -> Vec<(String, String)> {
        match &self.body {
            Body::Listener(listener) => vec![(format!("address {}", listener.address), "address".to_owned())],
            Body::Consumer(consumer) => consumer
                .keys
                .iter()
                .enumerate()
                .filter_map(|(index, credential)| match &credential.key {
                    Secret::Hash(hash) => Some((
                        format!("API key with SHA-256 {}", crate::secret::hex(hash)),
                        format!("credentials[{index}].key_auth.key"),
                    )),
                    Secret::Env(_) | Secret::File(_) => None,
                })
                .collect(),
            Body::Certificate(certificate) => {
                let key_type = certificate.key_type.as_str();
                let snis = certificate.snis.iter();
                let claim = |sni| format!("the server name {sni} for {key_type} certificates");
                snis.map(|sni| (claim(sni), "snis".to_owned())).collect()
            }
            Body::Route(_) | Body::Upstream(_) | Body::Plugin(_) => Vec::new(),
        }
    }

    /// The specification for people: without what is secret.
    pub fn redacted(&self) -> Value {
        match self.key.kind {
            Kind::Consumer => redacted(self.spec(), ConsumerSpec::redact),
            Kind::Certificate => redacted(self.spec(), CertificateSpec::redact),
            Kind::Listener | Kind::Route | Kind::Upstream | Kind::Plugin => {
                serde_json::from_slice(self.spec()).unwrap_or(Value::Null)
            }
        }
    }

    /// The specification for a document that is applied elsewhere. Of keys that are only compared the digest stays; a
    /// secret that is stored as it is becomes what `hide` makes of it, which is told the field.
    pub fn exported(&self, hide: &mut dyn FnMut(&str, &str) -> Value) -> Value {
        let mut spec: Value = serde_json::from_slice(self.spec()).unwrap_or(Value::Null);
        if self.key.kind == Kind::Certificate
            && let Some(key) = spec.get_mut("private_key")
            && let Value::String(text) = key
        {
            *key = hide("private_key", text);
        }
        spec
    }

    /// Puts the secrets of this stored resource where `value`, a new specification of it, has the text that stands
    /// for them. What is not well-formed stays as it is, for [`Resource::parse`] to complain of.
    pub fn restore_secrets(&self, value: &mut Value) {
        match self.key.kind {
            Kind::Consumer => {
                if let Ok(stored) = serde_json::from_slice::<ConsumerSpec>(self.spec()) {
                    stored.restore(value);
                }
            }
            Kind::Certificate => {
                if let Ok(stored) = serde_json::from_slice::<CertificateSpec>(self.spec()) {
                    stored.restore(value);
                }
            }
            Kind::Listener | Kind::Route | Kind::Upstream | Kind::Plugin => {}
        }
    }
}

fn redacted<S: Spec>(spec: &[u8], redact: fn(&mut S)) -> Value {
    // What it was parsed from can be read again; else nothing is told.
    let Ok(mut spec) = serde_json::from_slice::<S>(spec) else { return Value::Null };
    redact(&mut spec);
    serde_json::to_value(spec).unwrap_or(Value::Null)
}

/// Without the bytes, which hold what is secret.
impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Resource");
        out.field("key", &self.key).field("version", &self.version()).field("fleets", &self.fleets);
        out.field("body", &self.body).finish()
    }
}

/// Where a specification comes from.
enum Source {
    /// A person: its canonical form is made from it.
    Written(Value),
    /// Another part of Signalbox: its bytes are what counts.
    Encoded(Bytes),
}

impl Source {
    /// The specification, as far as its shape allows one: `errors` may have been added to even so.
    fn read<S: Spec>(&self, kind: Kind, errors: &mut Errors) -> Option<S> {
        let first_try = match self {
            Self::Written(value) => S::deserialize(value).ok(),
            Self::Encoded(encoded) => serde_json::from_slice(wire::spec_of(encoded)).ok(),
        };
        if first_try.is_some() {
            return first_try;
        }
        let mut value = match self {
            Self::Written(value) => value.clone(),
            Self::Encoded(encoded) => serde_json::from_slice(wire::spec_of(encoded))
                .map_err(|error| errors.push("", format_args!("is not JSON: {error}")))
                .ok()?,
        };
        let misshapen = check_structure(S::schema(), &mut value, kind.as_str());
        let is_explained = !misshapen.is_empty();
        errors.extend_misshapen(misshapen);
        match serde_path_to_error::deserialize(value) {
            Ok(spec) => Some(spec),
            Err(error) => {
                if !is_explained {
                    let path = error.path().to_string();
                    errors.push(if path == "." { "" } else { &path }, error.inner());
                }
                None
            }
        }
    }
}

/// What all specifications share.
trait Spec: Serialize + DeserializeOwned + JsonSchema + Sized {
    fn common(&self) -> Common<'_>;

    /// As it is stored and sent.
    fn canonical(self) -> Self {
        self
    }

    /// Its JSON schema, derived once.
    fn schema() -> &'static Schema;
}

struct Common<'a> {
    name: &'a str,
    description: Option<&'a str>,
    labels: &'a BTreeMap<String, String>,
    fleets: Option<&'a [String]>,
}

impl Common<'_> {
    fn check(&self, errors: &mut Errors) {
        if self.description.is_some_and(|text| text.len() > 4096) {
            errors.push("description", "must have at most 4096 bytes");
        }
        if self.labels.len() > 64 {
            errors.push("labels", format_args!("has {} entries; at most 64", self.labels.len()));
        }
        for (key, value) in self.labels {
            if key.is_empty() || key.len() > 128 || value.len() > 256 || key.contains(['=', ',']) {
                errors.push(
                    format_args!("labels.{key}"),
                    "a key has 1 to 128 bytes without '=' and ',', a value up to 256",
                );
            }
        }
        if let Some(fleets) = self.fleets {
            if fleets.is_empty() {
                errors.push("fleets", "must not be empty; leave it out for all fleets");
            }
            crate::route::parse_names(fleets, "fleets", errors);
        }
    }
}

macro_rules! spec {
    ($type:ty $(, $canonical:expr)?) => {
        impl Spec for $type {
            fn common(&self) -> Common<'_> {
                Common {
                    name: &self.name,
                    description: self.description.as_deref(),
                    labels: &self.labels,
                    fleets: self.fleets.as_deref(),
                }
            }

            fn schema() -> &'static Schema {
                static SCHEMA: LazyLock<Schema> = LazyLock::new(|| schemars::schema_for!($type));
                &SCHEMA
            }

            $(fn canonical(self) -> Self {
                let canonical: fn(Self) -> Self = $canonical;
                canonical(self)
            })?
        }
    };
}

spec!(ListenerSpec);
spec!(RouteSpec);
spec!(UpstreamSpec);
spec!(PluginSpec);
spec!(ConsumerSpec, ConsumerSpec::canonical);
spec!(CertificateSpec);
