//! A request as conditions see it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use http::{HeaderMap, header, request};
use signalbox_config::arrival::X_FORWARDED_PROTO;
use signalbox_config::{Name, host};
use signalbox_expr::{Condition, ConsumerFacts, Facts, NotKnown};

use crate::clock::Clock;
use crate::consumers::Identity;
use crate::request::PluginRequest;

/// A request as conditions see it: with the changes of the plugins that ran before.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'r> {
    /// Its head.
    pub head: &'r request::Parts,
    /// True if the client speaks TLS.
    pub https: bool,
    /// The client's address, as far as it can be trusted.
    pub client: IpAddr,
    /// The size of the body; `None`: it is not known before it arrives.
    pub body_size: Option<u64>,
    /// The consumer, if a plugin has authenticated one.
    pub identity: Option<&'r Identity>,
    /// The route; `None`: none was found.
    pub route: Option<&'r Name>,
    /// The listener.
    pub listener: &'r Name,
    /// The time.
    pub clock: &'r Clock,
}

impl PluginRequest<'_> {
    /// True if the request, as it is now, meets a condition; `None`: the condition has no value for it.
    pub fn meets(&self, condition: &Condition) -> Option<bool> {
        let view = RequestView {
            head: self.head,
            https: self.https,
            client: self.client,
            body_size: self.body_size,
            identity: self.exchange.identity.as_ref(),
            route: Some(self.route),
            listener: self.listener,
            clock: self.clock,
        };
        condition.evaluate(&view).ok()
    }

    /// The scheme that the client used, `http` or `https`, as far as it is known: a trusted proxy says it, or the connection.
    pub fn scheme(&self) -> &'static str {
        scheme(self.head, self.https)
    }
}

fn scheme(head: &request::Parts, https: bool) -> &'static str {
    // The header of a trusted proxy is still there; that of another client is not.
    let forwarded = head.headers.get(X_FORWARDED_PROTO);
    if forwarded.map_or(https, |forwarded| forwarded == "https") { "https" } else { "http" }
}

impl Facts for RequestView<'_> {
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
        scheme(self.head, self.https)
    }

    fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    fn body_size(&self) -> Result<Option<u64>, NotKnown> {
        Ok(self.body_size)
    }

    fn client(&self) -> Result<IpAddr, NotKnown> {
        Ok(self.client)
    }

    fn consumer(&self) -> Result<Option<ConsumerFacts<'_>>, NotKnown> {
        Ok(self.identity.map(|identity| ConsumerFacts {
            name: identity.consumer.name.as_str(),
            groups: identity.consumer.groups(),
        }))
    }

    fn route(&self) -> Option<&str> {
        self.route.map(Name::as_str)
    }

    fn listener(&self) -> &str {
        self.listener.as_str()
    }

    fn time(&self) -> Result<SystemTime, NotKnown> {
        Ok(self.clock.wall())
    }
}
