use std::fmt;

use bytes::Bytes;
use serde_json::Value;

use crate::catalog::PluginCatalog;
use crate::digest::Fingerprint;
use crate::encoding::{MAX_SPEC, encode_spec, spec_of};
use crate::error::{Errors, FieldError};
use crate::key::ResourceKey;
use crate::kind::Kind;
use crate::reading::{ReadSpec, Source};
use crate::table::Body;

/// One named, parsed object, with the bytes it is stored and sent as.
pub struct Resource {
    key: ResourceKey,
    /// As it is sent: the specification's canonical JSON in its wrapping. Of a kind for control planes only, the JSON alone.
    encoded: Bytes,
    fingerprint: Fingerprint,
    fleets: Option<Box<[Box<str>]>>,
    body: Body,
}

impl Resource {
    /// Reads a specification that a person wrote. All errors come back at once.
    ///
    /// `value` may have a field `kind`, as in declarative documents, if it agrees with `kind`.
    pub fn parse(kind: Kind, mut value: Value, catalog: &dyn PluginCatalog) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let given = value.as_object_mut().and_then(|object| object.remove("kind"));
        if let Some(given) = given.filter(|given| given != kind.as_str()) {
            errors.push("kind", format_args!("is {given}, but this is a {kind}"));
        }
        let read = (kind.row().read)(Source::Written(value), errors, catalog)?;
        let encoded = read.canonical.as_ref().map(|json| encode_spec(kind, json));
        Self::build(kind, read, encoded.unwrap_or_default())
    }

    /// True if `value` has the shape of a specification of `kind`: a quick check for callers that do not need the errors.
    pub fn has_shape(kind: Kind, value: &Value) -> bool {
        (kind.row().fits)(value)
    }

    /// Reads canonical JSON that was stored. Its bytes are kept as they are, and so is its version.
    pub fn from_stored(
        kind: Kind,
        spec: &[u8],
        catalog: &dyn PluginCatalog,
    ) -> Result<Self, Vec<FieldError>> {
        Self::from_wire(kind, encode_spec(kind, spec), catalog)
    }

    /// Reads bytes that were sent as a resource of `kind`. They are kept as they are, and so is the version.
    pub fn from_wire(
        kind: Kind,
        encoded: Bytes,
        catalog: &dyn PluginCatalog,
    ) -> Result<Self, Vec<FieldError>> {
        let read = (kind.row().read)(Source::Stored(spec_of(kind, &encoded)), Errors::default(), catalog)?;
        Self::build(kind, read, encoded)
    }

    fn build(kind: Kind, read: ReadSpec<Body>, encoded: Bytes) -> Result<Self, Vec<FieldError>> {
        let ReadSpec { name, fleets, body, mut errors, .. } = read;
        if encoded.len() > MAX_SPEC {
            errors.push("", format_args!("is larger than {MAX_SPEC} bytes"));
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

    /// The parsed form.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The protobuf message that is sent; shared, not copied.
    pub fn encoded(&self) -> Bytes {
        self.encoded.clone()
    }

    /// The specification's canonical JSON, as it is stored.
    pub fn spec(&self) -> &[u8] {
        spec_of(self.key.kind, &self.encoded)
    }

    /// The hash of name and bytes sent.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The content hash that is its ETag and its xDS version: 16 hexadecimal digits.
    pub fn version(&self) -> String {
        self.fingerprint.version()
    }

    /// The fleets that get it; `None`: all that get resources of its kind.
    pub fn fleets(&self) -> Option<&[Box<str>]> {
        self.fleets.as_deref()
    }

    /// True if proxies of `fleet` get it.
    pub fn visible_to(&self, fleet: &str) -> bool {
        let is_in = |fleets: &[Box<str>]| fleets.iter().any(|name| **name == *fleet);
        self.key.kind.is_for_proxies() && self.fleets().is_none_or(is_in)
    }

    /// True if proxies of every fleet get it.
    pub fn is_visible_to_all(&self) -> bool {
        self.key.kind.is_for_proxies() && self.fleets.is_none()
    }

    /// The resources that it cannot do without, each with the field that names it.
    pub fn references(&self) -> Vec<(ResourceKey, String)> {
        self.body.references()
    }

    /// Things that only one resource may have, each with the field that claims it: a listener's address, an API key, a server
    /// name.
    pub fn claims(&self) -> Vec<(String, String)> {
        self.body.claims()
    }

    /// The specification with [`REDACTED`](crate::REDACTED) in the place of secrets.
    pub fn redacted(&self) -> Value {
        (self.key.kind.row().redact)(self.spec())
    }

    /// The specification for a document that is applied elsewhere. Of keys that are only compared the digest stays. A secret
    /// that is stored in clear is replaced by what `hide` returns for its field and itself.
    pub fn exported(&self, hide: &mut dyn FnMut(&str, &str) -> Value) -> Value {
        let mut spec: Value = serde_json::from_slice(self.spec()).unwrap_or(Value::Null);
        self.key.kind.visit_clear_secrets(&mut spec, &mut |field, value| {
            if let Value::String(secret) = value {
                *value = hide(field, secret);
            }
        });
        spec
    }

    /// Puts the secrets of this stored resource where `value`, a new specification of it, has the placeholder for them. A part
    /// that is not well-formed stays as it is, and [`Resource::parse`] reports it.
    pub fn restore_secrets(&self, value: &mut Value) {
        (self.key.kind.row().restore)(self.spec(), value);
    }
}

/// Without the bytes, which hold secrets.
impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Resource");
        out.field("key", &self.key).field("version", &self.version()).field("fleets", &self.fleets);
        out.field("body", &self.body).finish()
    }
}
