//! How an upstream's targets are called: the settings for connections and requests.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use signalbox_config::{ResponseLimits, UpstreamLimits, UpstreamProtocol};

use super::endpoint::Endpoint;
use super::load::Load;
use super::target::Target;
use crate::wire::tls::UpstreamTls;

/// How an upstream's targets are called.
#[derive(Debug)]
pub struct Transport {
    pub protocol: UpstreamProtocol,
    pub connect_timeout: Duration,
    /// How long a connection is kept idle.
    pub idle_timeout: Duration,
    pub load: Arc<Load>,
    pub limits: Option<UpstreamLimits>,
    pub response_limits: ResponseLimits,
    /// The TLS settings for targets; `None` for cleartext.
    pub tls: Option<Arc<UpstreamTls>>,
}

impl Transport {
    /// The endpoint of connections to `target`.
    #[inline]
    pub fn endpoint(&self, target: &Target) -> Endpoint {
        let settings = self.tls.as_ref().map_or(0, |tls| tls.settings(&target.label));
        let only_of = self.limits.map_or(0, |_| Arc::as_ptr(&self.load).addr());
        Endpoint { address: target.address, settings, only_of }
    }

    /// The scheme of requests to the targets.
    pub fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }
}
