//! The conditions of plugins, evaluated for a request.

use http::request;
use signalbox_plugin::host::RequestView;
use signalbox_plugin::{Identity, Outcomes};

use super::exchange::Exchange;
use crate::active::Step;

/// A request as the condition of a plugin sees it: with the changes of the plugins that ran before.
#[derive(Clone, Copy)]
pub(super) struct RequestFacts<'r> {
    pub(super) exchange: &'r Exchange,
    pub(super) head: &'r request::Parts,
    /// The consumer, if a plugin has authenticated one.
    pub(super) identity: Option<&'r Identity>,
    /// The length of the body, if it is known before it arrives.
    pub(super) body_size: Option<u64>,
}

impl RequestFacts<'_> {
    /// True if the request meets the condition of a plugin, or cannot be told to meet it and the plugin runs then.
    #[inline]
    pub(super) fn meet(&self, step: &Step) -> bool {
        let Some(condition) = &step.condition else { return true };
        let request = &self.exchange.request;
        let worker = &request.downstream.worker;
        let view = RequestView {
            head: self.head,
            https: request.downstream.https,
            client: request.client().address,
            body_size: self.body_size,
            identity: self.identity,
            route: request.route().map(|route| &route.route().name),
            listener: &request.listener.name,
            clock: &worker.shared.clock,
        };
        condition.when.evaluate(&view).unwrap_or_else(|_| {
            step.stats.outcomes.count(worker.index, Outcomes::CONDITION_ERROR);
            condition.runs_on_error
        })
    }
}
