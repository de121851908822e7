//! The contexts of requests in an instance, and what a module may touch while it is called.

use std::net::IpAddr;
use std::task::Waker;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, request, response};
use signalbox_config::Name;
use signalbox_plugin::{Identity, PluginRequest, PluginResponse};
use smallvec::SmallVec;

/// The context of the plugin itself.
pub(crate) const ROOT: u32 = 1;

/// A direction of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Request = 0,
    Response = 1,
}

/// The context of a request.
pub(crate) struct Context {
    pub(crate) facts: Facts,
    /// True if the module has let the paused request, or the paused response, go on.
    pub(crate) resumed: [bool; 2],
    /// The response that the module sends itself.
    pub(crate) reply: Option<Response<Bytes>>,
    /// True if the module has closed the stream.
    pub(crate) is_closed: bool,
    /// Wakes the tasks that wait for the module, by direction: the request and its response may be in different ones.
    pub(crate) wakers: [Option<Waker>; 2],
    /// The properties that the module has set.
    pub(crate) properties: Vec<(Box<[u8]>, Bytes)>,
    pub(crate) done: Done,
}

/// The end of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// Its exchange goes on.
    No,
    /// The exchange has ended, and the module wants to end the context itself.
    Waiting,
    /// The module has ended it.
    Finished,
}

/// Facts about a request that hold for the whole exchange.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) route: Option<Name>,
    pub(crate) listener: Option<Name>,
    pub(crate) upstream: Option<Name>,
    pub(crate) client: Option<IpAddr>,
    pub(crate) id: SmallVec<[u8; 40]>,
    pub(crate) https: bool,
    pub(crate) has_certificate: bool,
    pub(crate) started: Option<SystemTime>,
    pub(crate) body_size: Option<u64>,
    pub(crate) consumer: Option<Name>,
}

impl Facts {
    pub(crate) fn of_request(request: &PluginRequest<'_>) -> Self {
        Self {
            route: Some(request.route.clone()),
            listener: Some(request.listener.clone()),
            upstream: request.upstream.cloned(),
            client: Some(request.client),
            id: SmallVec::from_slice(request.id()),
            https: request.https,
            has_certificate: request.certificate.is_some(),
            started: Some(request.clock.wall()),
            body_size: request.body_size,
            consumer: consumer(request.exchange.identity.as_ref()),
        }
    }

    /// The facts of a request that the plugin did not see.
    pub(crate) fn of_response(response: &PluginResponse<'_>) -> Self {
        Self {
            route: response.route.cloned(),
            started: Some(response.clock.wall()),
            consumer: consumer(response.exchange.identity.as_ref()),
            ..Self::default()
        }
    }
}

fn consumer(identity: Option<&Identity>) -> Option<Name> {
    identity.map(|identity| identity.consumer.name.clone())
}

impl Context {
    pub(crate) fn new(facts: Facts) -> Self {
        Self {
            facts,
            resumed: [false; 2],
            reply: None,
            is_closed: false,
            wakers: [None, None],
            properties: Vec::new(),
            done: Done::No,
        }
    }

    pub(crate) fn wake(&mut self) {
        self.wakers.iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }
}

/// The parts of an exchange that the module may touch while it is called. They belong to one context.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) owner: u32,
    pub(crate) request: Option<request::Parts>,
    pub(crate) response: Option<response::Parts>,
    /// True if the heads may be changed.
    pub(crate) writable: [bool; 2],
    pub(crate) bodies: [Option<Bytes>; 2],
    pub(crate) trailers: [Option<HeaderMap>; 2],
    /// The answer to a call.
    pub(crate) answer: Option<Answer>,
    /// True while the module reads its configuration.
    pub(crate) is_configuring: bool,
    /// True if the module has changed the head of the request.
    pub(crate) has_changed_request: bool,
}

/// The answer of a service to a call.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

/// The parts of an exchange that are lent to a module for one call.
pub(crate) trait Lend {
    /// Moves the parts into the view.
    fn lend(&mut self, view: &mut View);

    /// Moves them back.
    fn take_back(&mut self, view: &mut View);
}

/// Lends nothing.
pub(crate) struct Nothing;

impl Lend for Nothing {
    fn lend(&mut self, _: &mut View) {}

    fn take_back(&mut self, _: &mut View) {}
}

/// Lends the head of a request, which may be changed, and its body.
pub(crate) struct OfRequest<'r> {
    pub(crate) head: &'r mut request::Parts,
    pub(crate) body: Option<&'r mut Bytes>,
    /// Becomes true if the module changes the head.
    pub(crate) has_changed: &'r mut bool,
}

impl Lend for OfRequest<'_> {
    fn lend(&mut self, view: &mut View) {
        view.request = Some(std::mem::replace(self.head, request_head()));
        view.writable = [true, false];
        view.bodies[0] = self.body.as_mut().map(|body| std::mem::take(*body));
    }

    fn take_back(&mut self, view: &mut View) {
        *self.has_changed |= view.has_changed_request;
        if let Some(head) = view.request.take() {
            *self.head = head;
        }
        if let Some((body, lent)) = self.body.as_mut().zip(view.bodies[0].take()) {
            **body = lent;
        }
    }
}

/// Lends the head of a response, which may be changed, its body, and a copy of the head of the request.
pub(crate) struct OfResponse<'r> {
    pub(crate) request: &'r request::Parts,
    pub(crate) head: &'r mut response::Parts,
    pub(crate) body: Option<&'r mut Bytes>,
}

impl Lend for OfResponse<'_> {
    fn lend(&mut self, view: &mut View) {
        view.request = Some(copy(self.request));
        view.response = Some(std::mem::replace(self.head, response_head()));
        view.writable = [false, true];
        view.bodies[1] = self.body.as_mut().map(|body| std::mem::take(*body));
    }

    fn take_back(&mut self, view: &mut View) {
        if let Some(head) = view.response.take() {
            *self.head = head;
        }
        if let Some((body, lent)) = self.body.as_mut().zip(view.bodies[1].take()) {
            **body = lent;
        }
    }
}

/// Lends a part of a body, or trailers, while the body passes.
pub(crate) struct OfBody<'r> {
    pub(crate) direction: Direction,
    pub(crate) body: &'r mut Bytes,
    pub(crate) trailers: Option<&'r mut HeaderMap>,
}

impl Lend for OfBody<'_> {
    fn lend(&mut self, view: &mut View) {
        view.bodies[self.direction as usize] = Some(std::mem::take(self.body));
        view.trailers[self.direction as usize] =
            self.trailers.as_mut().map(|trailers| std::mem::take(*trailers));
    }

    fn take_back(&mut self, view: &mut View) {
        if let Some(body) = view.bodies[self.direction as usize].take() {
            *self.body = body;
        }
        let lent = view.trailers[self.direction as usize].take();
        if let Some((trailers, lent)) = self.trailers.as_mut().zip(lent) {
            **trailers = lent;
        }
    }
}

/// Lends copies of the heads, for the log.
pub(crate) struct OfLog {
    pub(crate) request: Option<request::Parts>,
    pub(crate) response: Option<response::Parts>,
}

impl Lend for OfLog {
    fn lend(&mut self, view: &mut View) {
        view.request = self.request.take();
        view.response = self.response.take();
    }

    fn take_back(&mut self, view: &mut View) {
        self.request = view.request.take();
        self.response = view.response.take();
    }
}

/// A copy without extensions.
pub(crate) fn copy(head: &request::Parts) -> request::Parts {
    let mut copy = request_head();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    copy
}

/// An empty head. Making one allocates nothing.
pub(crate) fn request_head() -> request::Parts {
    http::Request::new(()).into_parts().0
}

/// The same for a response.
pub(crate) fn response_head() -> response::Parts {
    Response::new(()).into_parts().0
}
