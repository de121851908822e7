//! A request in the form in which a target gets it, for plugins that repeat it later.

use http::{HeaderValue, request};
use signalbox_config::Forward;
use signalbox_plugin::Exchange as PluginNotes;
use signalbox_plugin::outbound::Forwarding;

use super::exchange::Exchange;
use super::forward;
use super::head::Forwarded;

/// The facts about a request that its form for targets depends on.
pub(super) struct AsSent<'w> {
    pub(super) exchange: &'w Exchange,
    pub(super) forward: &'w Forward,
    /// The number of bytes of the path that a prefix of the route matched.
    pub(super) prefix_len: usize,
    /// The host that the client asked for.
    pub(super) host: Option<&'w HeaderValue>,
}

impl Forwarding for AsSent<'_> {
    fn forwarded(&self, head: &request::Parts, notes: &PluginNotes) -> Option<request::Parts> {
        let mut head = head.clone();
        forward::rewrite(self.forward, &mut head, self.prefix_len).ok()?;
        let request = &self.exchange.request;
        let forwarded = Forwarded {
            request_id: request.request_id(),
            client: &request.client().text,
            https: request.downstream.https,
            certificate: request.downstream.certificate.get(),
            host: self.host,
            notes: Some(notes),
            has_trace: true,
            trace: None,
        };
        forwarded.insert(&mut head.headers, true);
        Some(head)
    }
}
