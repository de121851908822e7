//! The conditions of plugins, evaluated for a request.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use http::{HeaderMap, header, request};
use signalbox_config::host;
use signalbox_expr::{ConsumerFacts, Facts, NotKnown};
use signalbox_plugin::{Identity, Outcomes};

use super::exchange::Exchange;
use super::head;
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
        condition.when.evaluate(self).unwrap_or_else(|_| {
            let worker = self.exchange.request.downstream.worker.index;
            step.stats.outcomes.count(worker, Outcomes::CONDITION_ERROR);
            condition.runs_on_error
        })
    }
}

impl Facts for RequestFacts<'_> {
    fn method(&self) -> &str {
        self.head.method.as_str()
    }

    fn path(&self) -> &str {
        self.head.uri.path()
    }

    fn query(&self) -> Option<&str> {
        self.head.uri.query()
    }

    fn host(&self) -> Cow<'_, str> {
        let named = match self.head.uri.authority() {
            Some(authority) => authority.as_str(),
            None => {
                self.head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
            }
        };
        host::normalize(named).unwrap_or_default()
    }

    fn scheme(&self) -> &str {
        // The header of a trusted proxy is still there; that of another client is not.
        let forwarded = self.head.headers.get(&head::X_FORWARDED_PROTO);
        let https =
            forwarded.map_or(self.exchange.request.downstream.https, |forwarded| forwarded == "https");
        if https { "https" } else { "http" }
    }

    fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    fn body_size(&self) -> Result<Option<u64>, NotKnown> {
        Ok(self.body_size)
    }

    fn client(&self) -> Result<IpAddr, NotKnown> {
        Ok(self.exchange.request.client().address)
    }

    fn consumer(&self) -> Result<Option<ConsumerFacts<'_>>, NotKnown> {
        Ok(self.identity.map(|identity| ConsumerFacts {
            name: identity.consumer.name.as_str(),
            groups: identity.consumer.groups(),
        }))
    }

    fn route(&self) -> Option<&str> {
        self.exchange.request.route().map(|route| route.route().name.as_str())
    }

    fn listener(&self) -> &str {
        self.exchange.request.listener.name.as_str()
    }

    fn time(&self) -> Result<SystemTime, NotKnown> {
        Ok(self.exchange.request.downstream.worker.shared.clock.wall())
    }
}
