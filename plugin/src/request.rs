use std::net::IpAddr;
use std::time::Duration;

use http::{request, response};
use signalbox_config::{ClientCertificate, Name};

use crate::consumers::{Consumers, Identity};
use crate::exchange::Exchange;

/// A request on its way through the plugins.
pub struct PluginRequest<'r> {
    /// Its head: as the client sent it, less the hop-by-hop headers and those that only plugins vouch for.
    pub head: &'r mut request::Parts,
    /// The route that took it.
    pub route: &'r Name,
    /// The client's address, as far as it can be trusted.
    pub client: IpAddr,
    /// The client's verified certificate; `None`: it presented none.
    pub certificate: Option<&'r ClientCertificate>,
    /// Monotonic time since some moment before the process served requests: it never jumps.
    pub now: Duration,
    /// All consumers of this request's revision.
    pub consumers: &'r Consumers,
    /// The state that outlives the request phase.
    pub exchange: &'r mut Exchange,
}

impl PluginRequest<'_> {
    /// Notes who the client is, and tells the upstream by headers. It replaces an identity that was noted before.
    pub fn authenticate(&mut self, identity: Identity) {
        let defers = self.exchange.defers_identity;
        if self.exchange.identity.replace(identity).is_some() && !defers {
            for name in &Consumers::HEADERS {
                self.head.headers.remove(name);
            }
        }
        if !defers {
            self.write_identity();
        }
    }

    /// Puts the headers of the identity into the head, now and whenever one is noted: a plugin follows that uses them.
    pub fn stop_deferring_identity(&mut self) {
        if std::mem::take(&mut self.exchange.defers_identity) {
            self.write_identity();
        }
    }

    fn write_identity(&mut self) {
        for (name, value) in self.exchange.identity.iter().flat_map(Identity::headers) {
            self.head.headers.insert(name, value.clone());
        }
    }
}

/// A response on its way back through the plugins.
pub struct PluginResponse<'r> {
    /// Its head.
    pub head: &'r mut response::Parts,
    /// The route that took the request.
    pub route: &'r Name,
    /// The state that the request phase left.
    pub exchange: &'r mut Exchange,
}
