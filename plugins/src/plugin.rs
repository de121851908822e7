use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request, response};
use serde::Serialize;
use signalbox_config::{ClientCertificate, Name};
use smallvec::SmallVec;

use crate::consumers::{Consumers, Identity};

/// A named, configured step in the processing of requests. One instance serves all workers at once.
///
/// The hooks are called on the data path: they must not block, and the routine request should cost no allocation.
///
/// The proxy calls them in this order: `on_request` of every plugin in the chain, the highest order first; then, when
/// at least one wants the body, the body is read whole, and `on_request_body` of those plugins is called in the same
/// order; then, once there is an answer, `on_response` in reverse. The first plugin that answers ends the request's
/// way: plugins behind it see neither the request nor its body. Only `on_local_reply` is called for those whose turn
/// never came.
pub trait Plugin: Send + Sync + 'static {
    /// Sees the head of a request before it is sent on.
    ///
    /// Its changes to `head` go to the plugins behind it and to the upstream. The route was chosen before, and
    /// stays: a changed path or host routes nothing anew.
    fn on_request<'a>(&'a self, _request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        Flow::Continue
    }

    /// False if this plugin neither reads nor changes [`Consumers::HEADERS`] of requests. While that holds for all plugins of a
    /// request, its head does without them, and the proxy writes them behind it. It is asked once, when a chain is built.
    fn uses_consumer_headers(&self) -> bool {
        true
    }

    /// The most of a request's body this plugin wants to have in memory, bytes; `None`: it does not want the body,
    /// which is then streamed. A larger body is answered 413. Where several plugins of a chain have a cap, the smallest
    /// counts. It is asked once, when a chain is built.
    fn request_body_cap(&self) -> Option<usize> {
        None
    }

    /// True if this plugin, which has a [`Plugin::request_body_cap`], wants the body of this very request. Otherwise it is
    /// neither held in memory for it nor measured by its cap. It is asked once for each request, after the `on_request` hooks.
    fn wants_request_body(&self, _request: &PluginRequest<'_>) -> bool {
        true
    }

    /// Sees the whole body of a request, when [`Plugin::request_body_cap`] and [`Plugin::wants_request_body`] ask for
    /// it, after `on_request`.
    ///
    /// It may put another in its place. The proxy sends what it finds in `body` afterwards, and sets `Content-Length`
    /// from it; trailers of the request are dropped. A plugin leaves `Content-Length` and `Transfer-Encoding` alone.
    fn on_request_body<'a>(&'a self, _request: &'a mut PluginRequest<'_>, _body: &'a mut Bytes) -> Flow<'a> {
        Flow::Continue
    }

    /// True if [`Plugin::on_response`] is to be called.
    fn wants_response(&self) -> bool {
        false
    }

    /// Sees the head of a response of the upstream before it goes to the client; in the reverse order of the chain.
    ///
    /// It is not called for answers that the proxy or a plugin made. What belongs on those too is left in
    /// [`PluginRequest::exchange`] by `on_request`, and is written after this hook, so that it wins.
    fn on_response(&self, _response: &mut PluginResponse<'_>) {}

    /// True if [`Plugin::on_local_reply`] is to be called. It is asked once, when a chain is built.
    fn wants_local_reply(&self) -> bool {
        false
    }

    /// Sees the head of a request that is answered by the proxy, or by a plugin before this one, before `on_request` of this
    /// plugin was called: the request is refused for its head, its size or too much load, it is redirected to another form of
    /// its path, or no route takes it. What it leaves in `exchange` is written to that answer.
    ///
    /// Where no route takes the request, only global plugins are called, and an answer that one of them returns is sent in the
    /// place of the 404. Otherwise what it returns is dropped.
    fn on_local_reply(&self, _head: &request::Parts, _exchange: &mut Exchange) -> Option<Reply> {
        None
    }
}

/// When a plugin is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The head of the request.
    RequestHeaders,
    /// Its body.
    RequestBody,
    /// The head of the response.
    ResponseHeaders,
    /// Its body.
    ResponseBody,
    /// After all.
    Log,
}

/// The next step of a request.
pub enum Flow<'a> {
    /// It goes on.
    Continue,
    /// It is answered here.
    Respond(Box<Reply>),
    /// It is not known yet. Must not resolve to `Wait` again: the proxy takes that for an error of its own (500).
    ///
    /// The future may borrow the plugin and the request. It runs on the worker's own thread, so it need not be `Send`;
    /// it bounds its own waiting. When the client goes away it is dropped at its next await.
    Wait(LocalBoxFuture<'a, Flow<'static>>),
}

/// A plugin's own answer.
#[derive(Debug)]
pub enum Reply {
    /// An error, which the proxy writes as problem+json with the request's id.
    Problem {
        /// 4xx or 5xx.
        status: StatusCode,
        /// The error, for the client.
        detail: Cow<'static, str>,
        /// Further headers, `WWW-Authenticate`.
        headers: HeaderMap,
    },
    /// An answer as it stands.
    Response(http::Response<Bytes>),
}

impl Reply {
    /// An error without further headers.
    pub fn problem(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::Problem { status, detail: detail.into(), headers: HeaderMap::new() }
    }
}

impl From<Reply> for Flow<'_> {
    fn from(reply: Reply) -> Self {
        Flow::Respond(Box::new(reply))
    }
}

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

/// Facts about a request and its response beyond their heads.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The client's identity, once a plugin has found it out.
    pub identity: Option<Identity>,
    /// True if the headers of the identity are not put into the request's head: no plugin uses them.
    defers_identity: bool,
    /// Inline for the six of `rate-limit` and two more.
    response_headers: SmallVec<[(HeaderName, HeaderValue, Placement); 8]>,
}

#[derive(Debug, Clone, Copy)]
enum Placement {
    Set,
    Append,
}

impl Exchange {
    /// Leaves the headers of the identity to the proxy, because no plugin of the request uses them.
    pub fn defer_identity(&mut self) {
        self.defers_identity = true;
    }

    /// The headers by which the upstream learns the client's identity, as far as they are not in the request's head.
    pub fn deferred_headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.identity.iter().filter(|_| self.defers_identity).flat_map(Identity::headers)
    }

    /// Sets a header on whatever answer goes to the client, the proxy's own errors included.
    pub fn set_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        if self.response_headers.iter().any(|(before, ..)| *before == name) {
            self.response_headers.retain(|(before, ..)| *before != name);
        }
        self.response_headers.push((name, value, Placement::Set));
    }

    /// Adds a header beside those of its name (`Vary`).
    pub fn append_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.response_headers.push((name, value, Placement::Append));
    }

    /// The headers that were set and added, in this order. They belong on the answer behind its own headers, except
    /// those that one of them [replaces](Self::replaces).
    pub fn response_headers(&self) -> impl ExactSizeIterator<Item = (&HeaderName, &HeaderValue)> {
        self.response_headers.iter().map(|(name, value, _)| (name, value))
    }

    /// True if an answer's own headers of this name are left out.
    pub fn replaces(&self, name: &HeaderName) -> bool {
        self.response_headers
            .iter()
            .any(|(set, _, placement)| matches!(placement, Placement::Set) && set == name)
    }

    /// Puts those headers into the map of an answer. The proxy calls it once, after the `on_response` hooks.
    pub fn write_response_headers(&mut self, headers: &mut HeaderMap) {
        for (name, value, placement) in self.response_headers.drain(..) {
            match placement {
                Placement::Set => headers.insert(name, value).map_or((), drop),
                Placement::Append => drop(headers.append(name, value)),
            }
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

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::testing::Client;

    /// Asks an oracle that answers at the second poll, and notes its answer in the request.
    struct Asks {
        oracle: &'static str,
    }

    impl Plugin for Asks {
        fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
            if request.head.uri.path() == "/known" {
                return Flow::Continue;
            }
            Flow::Wait(Box::pin(async move {
                let mut asked = false;
                std::future::poll_fn(|_| match std::mem::replace(&mut asked, true) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                })
                .await;
                request.head.headers.insert("x-oracle", HeaderValue::from_static(self.oracle));
                if request.head.uri.path() == "/denied" {
                    return Reply::problem(StatusCode::FORBIDDEN, "the oracle says no").into();
                }
                Flow::Continue
            }))
        }
    }

    /// How a proxy drives a chain.
    async fn drive(chain: &[Box<dyn Plugin>], request: &mut PluginRequest<'_>) -> Option<Box<Reply>> {
        for plugin in chain {
            let flow = match plugin.on_request(request) {
                Flow::Wait(future) => future.await,
                Flow::Continue => Flow::Continue,
                Flow::Respond(reply) => Flow::Respond(reply),
            };
            match flow {
                Flow::Continue => {}
                Flow::Respond(reply) => return Some(reply),
                Flow::Wait(_) => panic!("waits twice"),
            }
        }
        None
    }

    fn run(path: &str) -> (Client, Option<Box<Reply>>) {
        let chain: [Box<dyn Plugin>; 2] =
            [Box::new(Asks { oracle: "first" }), Box::new(Asks { oracle: "second" })];
        let mut client = Client::new("GET", path);
        let reply = {
            let mut request = client.request();
            let mut future = pin!(drive(&chain, &mut request));
            let mut context = Context::from_waker(Waker::noop());
            loop {
                if let Poll::Ready(reply) = future.as_mut().poll(&mut context) {
                    break reply;
                }
            }
        };
        (client, reply)
    }

    #[test]
    fn a_plugin_that_waits_borrows_the_request_and_the_chain_goes_on() {
        let (client, reply) = run("/");
        assert!(reply.is_none());
        assert_eq!(client.head.headers["x-oracle"], "second");
        let (client, reply) = run("/known");
        assert!(reply.is_none() && client.head.headers.is_empty());
    }

    #[test]
    fn a_plugin_that_waited_can_answer_and_ends_the_chain() {
        let (client, reply) = run("/denied");
        assert_eq!(client.head.headers["x-oracle"], "first");
        match *reply.unwrap() {
            Reply::Problem { status, .. } => assert_eq!(status, StatusCode::FORBIDDEN),
            Reply::Response(_) => panic!("not a problem"),
        }
    }

    #[test]
    fn response_headers_are_set_or_appended_in_order() {
        let mut exchange = Exchange::default();
        exchange.set_response_header(http::header::SERVER, HeaderValue::from_static("a"));
        exchange.append_response_header(http::header::VARY, HeaderValue::from_static("origin"));
        exchange.set_response_header(http::header::SERVER, HeaderValue::from_static("b"));
        assert!(exchange.replaces(&http::header::SERVER) && !exchange.replaces(&http::header::VARY));
        let texts =
            |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let added: Vec<_> = exchange.response_headers().map(texts).collect();
        assert_eq!(added, ["vary: origin", "server: b"]);
        let mut headers = HeaderMap::new();
        headers.insert(http::header::SERVER, HeaderValue::from_static("upstream"));
        headers.insert(http::header::VARY, HeaderValue::from_static("accept"));
        exchange.write_response_headers(&mut headers);
        assert_eq!(headers.get_all(http::header::SERVER).iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!(headers.get_all(http::header::VARY).iter().collect::<Vec<_>>(), ["accept", "origin"]);
    }
}
