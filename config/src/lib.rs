//! The resources: what they are, how they are read and checked, and what is built from a set of them.
//!
//! Both planes call this crate, so that what the control plane accepts a proxy can run. It does no I/O and reads
//! no clock.
//!
//! - a **specification** ([`RouteSpec`] …) is what people write: loose, with serde and a JSON schema;
//! - a **resource** ([`Resource`]) is a specification that was parsed: its domain type ([`Route`] …) cannot be wrong;
//! - a [`Snapshot`] is all resources at one revision, with a [`Digest`] that is kept in O(change);
//! - [`Relations`] are the references between them, checked in O(change);
//! - a [`RouteIndex`] finds the route of a request, and can say why.

#![warn(missing_docs)]

pub mod arrival;
mod balancing;
mod breaker;
mod certificate;
mod cidr;
mod consumer;
mod digest;
pub mod document;
mod error;
mod health;
pub mod host;
mod key;
mod listener;
mod matchable;
mod ocsp;
pub mod path;
mod plugin;
mod relations;
mod resource;
mod retry;
mod route;
pub mod router;
mod secret;
mod snapshot;
mod structure;
mod upstream;
mod values;
pub mod wire;
mod written;

pub use balancing::{HashOn, LoadBalancing};
pub use breaker::{CircuitBreaker, CircuitBreakerSpec, ErrorRate, UpstreamLimits};
pub use certificate::{
    Certificate, CertificateFacts, CertificateSpec, ClientCertificate, KeyType, PrivateKey,
};
pub use cidr::Cidr;
pub use consumer::{Consumer, ConsumerSpec, CredentialSpec, KeyAuthSpec, KeyCredential};
pub use digest::{Digest, Fingerprint};
pub use error::{Errors, FieldError};
pub use health::{ActiveCheck, HealthCheck, PassiveCheck, Probe};
pub use key::{Kind, Name, ResourceKey};
pub use listener::{
    ClientAuth, Edge, HalfClose, Limits, LimitsSpec, Listener, ListenerProtocol, ListenerSpec, ListenerTls,
    ProxyProtocol, TlsVersion,
};
pub use ocsp::{NotCurrent, Staple};
pub use plugin::{Plugin, PluginCatalog, PluginSpec};
pub use relations::{Problem, Relations};
pub use resource::{Body, Resource};
pub use retry::{Retry, RetryOn, RetrySet, RetrySpec};
pub use route::{
    Action, Forward, HeaderMatch, HostMatch, Mirror, PathMatch, PathRewrite, PathSpec, PrefixPath,
    QueryMatch, Redirect, Respond, Rewrite, Route, RouteMatch, RouteSpec, ValueMatch, WeightedUpstream,
};
pub use router::RouteIndex;
pub use secret::{REDACTED, Secret, SecretSpec, check_key, sha256, without_line_break};
pub use snapshot::{Change, RevisionId, Snapshot};
pub use structure::check_structure;
pub use upstream::{ResponseLimits, Target, Upstream, UpstreamProtocol, UpstreamSpec, UpstreamTls};
pub use values::{ByteSize, HumanDuration};
pub use written::{check_placeholders, mentions_placeholder};
