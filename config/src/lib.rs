//! The resources: their types, how they are read and checked, and what is built from a set of them.
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

/// Calls a macro with every kind of resource, in the order in which documents list them: a description, the names, and the type of
/// the specification. A new kind is a file with an implementation of `Specification`, and an entry here.
macro_rules! for_each_kind {
    ($then:ident) => {
        $then! {
            /// An address with protocol settings.
            Listener "listener" "listeners" listener::ListenerSpec;
            /// A match and an action.
            Route "route" "routes" route::RouteSpec;
            /// A named set of targets.
            Upstream "upstream" "upstreams" upstream::UpstreamSpec;
            /// A named, configured step in the processing of requests.
            Plugin "plugin" "plugins" plugin::PluginSpec;
            /// A known caller with credentials.
            Consumer "consumer" "consumers" consumer::ConsumerSpec;
            /// A set of consumers with common plugins.
            ConsumerGroup "consumer-group" "consumer_groups" consumer_group::ConsumerGroupSpec;
            /// A certificate with its private key.
            Certificate "certificate" "certificates" certificate::CertificateSpec;
            /// A named set of proxies and the policy by which revisions reach them.
            Fleet "fleet" "fleets" fleet::FleetSpec;
            /// An address to which the control plane sends events.
            Webhook "webhook" "webhooks" webhook::WebhookSpec;
            /// A text for operators, which only the tests of this crate know.
            Note "note" "notes" note::NoteSpec, cfg(test);
        }
    };
}

mod access_log;
pub mod address_range;
pub mod arrival;
mod authorities;
mod authority;
mod balancing;
mod blob;
mod bounds;
mod breaker;
mod catalog;
mod certificate;
mod clear_secrets;
mod client_authorities;
mod consumer;
mod consumer_group;
mod credential;
mod credential_header;
mod cron;
mod digest;
pub mod document;
mod encoding;
mod error;
mod fleet;
mod freeze;
mod gates;
mod header_text;
mod health;
pub mod host;
mod key;
mod kind;
mod listener;
mod log_format;
mod marker;
mod matchable;
mod names;
mod narrowing;
pub mod node;
#[cfg(test)]
mod note;
mod ocsp;
mod password;
pub mod path;
mod placeholder;
mod plugin;
mod public_key;
mod purge;
mod reading;
mod relations;
pub mod request_target;
mod resource;
mod respond;
mod retry;
mod route;
pub mod router;
mod secret;
mod shared_secret;
mod snapshot;
mod specification;
mod structure;
mod table;
pub mod template;
mod tracing;
mod upstream;
mod values;
mod webhook;

/// The bytes of resources and commit markers on the wire and on a proxy's disk: see `config.proto`.
pub mod wire {
    pub use crate::encoding::{MAX_SPEC, Payload, decode, type_url};
    pub use crate::marker::{MarkerVersion, encode_marker, marker_version, parse_marker_version};
}

pub use access_log::{AccessLog, AccessLogSpec, LogFormat, LogFormatSpec, LogSample};
pub use balancing::{HashOn, LoadBalancing};
pub use blob::{BlobId, NotABlobId};
pub use breaker::{CircuitBreaker, CircuitBreakerSpec, ErrorRate, UpstreamLimits};
pub use catalog::PluginCatalog;
pub use certificate::{
    Certificate, CertificateFacts, CertificateSpec, ClientCertificate, KeyType, PrivateKey,
};
pub use client_authorities::ClientAuthorities;
pub use consumer::{Consumer, ConsumerSpec, is_group};
pub use consumer_group::{ConsumerGroup, ConsumerGroupSpec};
pub use credential::{
    BasicAuthSpec, CertificateName, Credential, CredentialSpec, HmacAuthSpec, JwtSpec, KeyAuthSpec,
    MIN_HMAC_SECRET, MtlsSpec, Proof, TokenKey,
};
pub use credential_header::is_credential_name;
pub use cron::Cron;
pub use digest::{Digest, Fingerprint};
pub use error::{Errors, FieldError};
pub use fleet::{
    Fleet, FleetSpec, OnFailure, OnInconclusive, OnNewWrite, RolloutPolicy, RolloutStep, StepSize, Strategy,
    WhenEmpty,
};
pub use freeze::{FreezeWindow, ZoneName};
pub use gates::{Gates, RateGate};
pub use header_text::{HeaderTextSpec, PlaceSpec};
pub use health::{ActiveCheck, HealthCheck, PassiveCheck, Probe};
pub use key::{Name, ResourceKey};
pub use kind::Kind;
pub use listener::{
    ClientAuth, Edge, HalfClose, Limits, LimitsSpec, Listener, ListenerProtocol, ListenerSpec, ListenerTls,
    ProxyProtocol, TlsVersion,
};
pub use log_format::{LogPart, LogValue, RequestValue, TimePart};
pub use node::NodeId;
pub use ocsp::{NotCurrent, Staple, StapleSignature};
pub use password::{Password, PasswordHash, PasswordSpec, check_password};
pub use placeholder::{check_placeholders, mentions_placeholder};
pub use plugin::{Plugin, PluginSpec, parse_condition};
pub use public_key::{KeyShape, PublicKey, TokenAlgorithm};
pub use purge::Purge;
pub use relations::{Problem, Relations};
pub use resource::Resource;
pub use respond::{Respond, RespondSpec};
pub use retry::{Retry, RetryOn, RetrySet, RetrySpec};
pub use route::{
    Action, Forward, HeaderMatch, HostMatch, Mirror, PathMatch, PathRewrite, PathSpec, PrefixPath,
    QueryMatch, Redirect, Rewrite, Route, RouteMatch, RouteSpec, ValueMatch, WeightedUpstream,
};
pub use router::RouteIndex;
pub use secret::{REDACTED, ReferenceSpec, Secret, SecretSpec, check_key, sha256, without_line_break};
pub use shared_secret::{SharedSecret, SharedSecretSpec, check_shared_secret};
pub use snapshot::{Assignment, Change, RevisionId, Snapshot};
pub use specification::Audience;
pub use structure::check_structure;
pub use table::Body;
pub use tracing::{
    BaggageTrust, LateSampling, OtlpProtocol, ParentSampling, SampleRatio, Sampling, TraceContextTrust,
    TraceExporter, TraceFormat, Tracing, TracingSpec,
};
pub use upstream::{ResponseLimits, Target, Upstream, UpstreamProtocol, UpstreamSpec, UpstreamTls};
pub use values::{ByteSize, HumanDuration};
pub use webhook::{
    Webhook, WebhookFormat, WebhookKey, WebhookRolloutEvent, WebhookSpec, WebhookTopic, WebhookUrl,
    parse_webhook_url,
};
