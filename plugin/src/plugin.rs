use bytes::Bytes;

use crate::body::BodyWish;
use crate::flow::{Flow, Reply};
use crate::hooks::Hooks;
use crate::log_record::LogRecord;
use crate::request::{PluginRequest, PluginResponse, UnroutedRequest};

/// A named, configured step in the processing of requests. One instance serves all workers at once.
///
/// The hooks are called on the data path: they must not block, and the routine request should cost no allocation.
///
/// The way in: `on_request` of every plugin in the chain, the highest order first; then, in the same order, `request_body` of those
/// that have it. The first plugin that answers ends the way in: plugins behind it see neither the request nor its body.
///
/// The way out: whoever answers, a target, a plugin or the proxy, the response passes `on_response` and `response_body` of all
/// plugins of the chain, in the reverse order; a type with a [`RESPONSE_ORDER`](crate::Definition::RESPONSE_ORDER) has that place
/// instead. At the end of the exchange `on_log` is called.
///
/// A plugin that panics fails the request: the client gets 500, and the proxy goes on.
///
/// The hooks that a plugin has are those that its `impl` contains; the attribute [`hooks`](crate::hooks) writes the method
/// of that name. Without it the `impl` does not build:
///
/// ```compile_fail,E0046
/// struct Nothing;
/// impl signalbox_plugin::Plugin for Nothing {}
/// ```
///
/// ```
/// struct Nothing;
/// #[signalbox_plugin::hooks]
/// impl signalbox_plugin::Plugin for Nothing {}
/// ```
pub trait Plugin: Send + Sync + 'static {
    /// The hooks of this plugin. Written by `#[hooks]` above `impl Plugin for …`.
    fn hooks(&self) -> Hooks;

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

    /// Says what this plugin wants of the body of this very request. It is asked once, after the `on_request` hooks of all
    /// plugins, unless there is no body.
    fn request_body(&self, _request: &mut PluginRequest<'_>) -> BodyWish {
        BodyWish::Pass
    }

    /// Sees the whole body of a request, or its first bytes, when [`Plugin::request_body`] asks for it.
    ///
    /// It may put another in its place. The proxy sends what it finds in `body` afterwards, and sets `Content-Length`
    /// from it; trailers of the request are dropped. A plugin leaves `Content-Length` and `Transfer-Encoding` alone.
    fn on_request_body<'a>(&'a self, _request: &'a mut PluginRequest<'_>, _body: &'a mut Bytes) -> Flow<'a> {
        Flow::Continue
    }

    /// Sees the head of a response before it goes to the client, whoever made it: see [`PluginResponse::origin`].
    ///
    /// An answer that it returns takes the place of the response, and goes on to the plugins behind it as one of a plugin. The
    /// headers that are left in [`PluginRequest::exchange`] are written after all hooks, so that they win.
    fn on_response<'a>(&'a self, _response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        Flow::Continue
    }

    /// Says what this plugin wants of the body of this very response, after its `on_response`; not called if there is none. It may
    /// change the head. For a filter, the proxy takes out `Content-Length`; what else says of the bytes that they are as they were
    /// (`ETag`, `Accept-Ranges`, digests) is up to the plugin.
    fn response_body(&self, _response: &mut PluginResponse<'_>) -> BodyWish {
        BodyWish::Pass
    }

    /// Sees the whole body of a response, when [`Plugin::response_body`] asks for it, and may put another in its place.
    fn on_response_body<'a>(
        &'a self,
        _response: &'a mut PluginResponse<'_>,
        _body: &'a mut Bytes,
    ) -> Flow<'a> {
        Flow::Continue
    }

    /// Sees the head of a request that no route takes; only plugins that run on every route are called. An answer that it returns is
    /// sent in the place of the 404, and passes the way out as one of a plugin. Headers that it leaves in
    /// [`UnroutedRequest::exchange`] are written on either.
    fn on_no_route(&self, _request: &mut UnroutedRequest<'_>) -> Option<Reply> {
        None
    }

    /// Sees what is known of the exchange when it has ended, however it did. It is called in the midst of the worker's work: it must
    /// hand on what takes time.
    fn on_log(&self, _record: &LogRecord<'_>) {}
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use http::{HeaderValue, StatusCode};

    use super::*;
    use crate::hooks;
    use crate::testing::Client;

    /// Asks an oracle that answers at the second poll, and notes its answer in the request.
    struct Asks {
        oracle: &'static str,
    }

    #[hooks]
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
}
