use std::borrow::Cow;
use std::net::IpAddr;
use std::time::SystemTime;

use http::HeaderMap;

/// A property of the request that the caller does not know: an explanation, for example, knows no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotKnown;

/// The properties of a request that conditions can ask for. Each is read only when a condition asks for it.
pub trait Facts {
    /// The method, `GET`.
    fn method(&self) -> &str;
    /// The path without the query, as routes match it.
    fn path(&self) -> &str;
    /// The query without the question mark, as it came.
    fn query(&self) -> Option<&str>;
    /// The host that the client asked for: lower-case, without a port.
    fn host(&self) -> Cow<'_, str>;
    /// The scheme of the client's request: `http` or `https`.
    fn scheme(&self) -> &str;
    /// The headers.
    fn headers(&self) -> &HeaderMap;
    /// The length of the body that the client announced, bytes; `None`: it did not say.
    fn body_size(&self) -> Result<Option<u64>, NotKnown>;
    /// The client's address, as far as it can be trusted.
    fn client(&self) -> Result<IpAddr, NotKnown>;
    /// The authenticated consumer; `None`: no plugin has authenticated one.
    fn consumer(&self) -> Result<Option<ConsumerFacts<'_>>, NotKnown>;
    /// The name of the route; `None`: no route takes the request.
    fn route(&self) -> Option<&str>;
    /// The name of the listener.
    fn listener(&self) -> &str;
    /// The wall-clock time.
    fn time(&self) -> Result<SystemTime, NotKnown>;
}

/// A consumer as conditions see it.
#[derive(Debug, Clone, Copy)]
pub struct ConsumerFacts<'a> {
    /// The name.
    pub name: &'a str,
    /// The groups.
    pub groups: &'a [Box<str>],
}
