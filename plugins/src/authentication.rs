//! The parts that all ways to authenticate share: a [`Method`] finds out who the client is, and a [`Guard`] decides what
//! becomes of the request.

use std::borrow::Cow;

use futures_util::future::LocalBoxFuture;
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use signalbox_config::{Errors, Kind, Name, ResourceKey};
use signalbox_plugin::{Flow, Identity, PluginRequest, Reply};

use crate::query;

/// A way to authenticate.
pub(crate) trait Method: Send + Sync + 'static {
    /// Removes what only this method may tell the upstream, whoever the client turns out to be.
    fn strip(&self, _request: &mut PluginRequest<'_>) {}

    /// Finds out who the client is.
    fn authenticate(&self, request: &mut PluginRequest<'_>) -> Attempt;

    /// Finds it out once what [`Attempt::Again`] waited for is over.
    fn authenticate_again(&self, _request: &mut PluginRequest<'_>) -> Verdict {
        Refusal::unavailable("the credential could not be checked").into()
    }

    /// Removes the credentials from the request, if that is configured.
    fn hide(&self, _request: &mut PluginRequest<'_>) -> Result<(), NotRewritable> {
        Ok(())
    }

    /// The challenge to a client that presents nothing; `None`: the scheme has none.
    fn challenge(&self) -> Option<&HeaderValue>;

    /// False if this method neither reads nor changes the headers about the consumer.
    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

/// The result of an attempt to authenticate.
pub(crate) enum Attempt {
    /// It is known.
    Done(Verdict),
    /// It is not known yet. The future bounds its own waiting.
    Wait(LocalBoxFuture<'static, Verdict>),
    /// It is not known yet, and [`Method::authenticate_again`] says it once the future is done. The future bounds its own waiting.
    Again(LocalBoxFuture<'static, ()>),
}

/// The proof that a client gave.
pub(crate) enum Verdict {
    /// It is good. `None`: it is good, and belongs to no consumer.
    Passed(Option<Identity>),
    /// There is none.
    Absent(&'static str),
    /// It is not good.
    Refused(Refusal),
}

/// Why a proof is not good.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// 401, or 503 if it cannot be checked.
    pub(crate) status: StatusCode,
    /// The reason, for the client.
    pub(crate) detail: Cow<'static, str>,
    /// The challenge, where it is not the usual one of the method.
    pub(crate) challenge: Option<HeaderValue>,
}

/// The target of the request has no form without the credential.
#[derive(Debug)]
pub(crate) struct NotRewritable;

impl Attempt {
    /// The verdict, once it is known.
    async fn verdict(self, method: &dyn Method, request: &mut PluginRequest<'_>) -> Verdict {
        match self {
            Self::Done(verdict) => verdict,
            Self::Wait(future) => future.await,
            Self::Again(future) => {
                future.await;
                method.authenticate_again(request)
            }
        }
    }
}

impl From<Verdict> for Attempt {
    fn from(verdict: Verdict) -> Self {
        Self::Done(verdict)
    }
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Refusal {
    /// The proof is wrong.
    pub(crate) fn unauthorized(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, detail: detail.into(), challenge: None }
    }

    /// The proof cannot be checked now.
    pub(crate) fn unavailable(detail: &'static str) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, detail: detail.into(), challenge: None }
    }
}

/// Decides what becomes of requests, by one method or several.
pub(crate) struct Guard {
    pub(crate) methods: Box<[Box<dyn Method>]>,
    pub(crate) needs: Needs,
    /// The consumer as which requests without a good proof pass.
    pub(crate) anonymous: Option<Box<str>>,
}

/// How many of several methods a client has to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// The first that it can.
    Any,
    /// All, as one consumer.
    All,
}

impl Guard {
    /// The guard of a plugin with one method.
    pub(crate) fn of(method: impl Method, anonymous: Option<String>) -> Self {
        Self {
            methods: [Box::new(method) as Box<dyn Method>].into(),
            needs: Needs::Any,
            anonymous: anonymous.map(Into::into),
        }
    }

    pub(crate) fn uses_consumer_headers(&self) -> bool {
        self.methods.iter().any(|method| method.uses_consumer_headers())
    }

    pub(crate) fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        for method in &self.methods {
            method.strip(request);
        }
        // Another plugin has authenticated it: several can stand side by side if each lets pass who comes without.
        let is_known =
            request.exchange.identity.as_ref().is_some_and(|identity| identity.credential.is_some());
        if is_known && self.anonymous.is_some() {
            return self.hide(request).unwrap_or(Flow::Continue);
        }
        let mut tally = Tally::default();
        for (index, method) in self.methods.iter().enumerate() {
            match method.authenticate(request) {
                Attempt::Done(verdict) => {
                    if tally.add(&**method, verdict, self.needs) {
                        break;
                    }
                }
                attempt => {
                    return Flow::Wait(Box::pin(async move {
                        let verdict = attempt.verdict(&**method, request).await;
                        if !tally.add(&**method, verdict, self.needs) {
                            self.try_rest(index + 1, request, &mut tally).await;
                        }
                        self.finish(request, tally)
                    }));
                }
            }
        }
        self.finish(request, tally)
    }

    async fn try_rest(&self, from: usize, request: &mut PluginRequest<'_>, tally: &mut Tally) {
        for method in self.methods.iter().skip(from) {
            let verdict = method.authenticate(request).verdict(&**method, request).await;
            if tally.add(&**method, verdict, self.needs) {
                return;
            }
        }
    }

    fn finish(&self, request: &mut PluginRequest<'_>, tally: Tally) -> Flow<'static> {
        if let Some(failed) = self.hide(request) {
            return failed;
        }
        match tally.result() {
            Ok(Some(identity)) => request.authenticate(identity),
            // The client has proved who it is, to no consumer.
            Ok(None) => request.exchange.is_personal = true,
            Err(failed) => {
                match self.anonymous.as_deref().and_then(|name| request.consumers.anonymous(name)) {
                    Some(identity) => request.authenticate(identity),
                    None => return self.refuse(failed),
                }
            }
        }
        Flow::Continue
    }

    /// Removes the credentials. An answer, if that is impossible.
    fn hide(&self, request: &mut PluginRequest<'_>) -> Option<Flow<'static>> {
        for method in &self.methods {
            if method.hide(request).is_err() {
                let detail = "the request's target cannot be rewritten";
                return Some(Reply::problem(StatusCode::BAD_REQUEST, detail).into());
            }
        }
        None
    }

    fn refuse(&self, failed: Failed) -> Flow<'static> {
        let (status, detail, own) = match failed {
            Failed::Absent(detail) => (StatusCode::UNAUTHORIZED, Cow::Borrowed(detail), None),
            Failed::Refused(Refusal { status, detail, challenge }) => (status, detail, challenge),
            Failed::Several => (
                StatusCode::UNAUTHORIZED,
                Cow::Borrowed("the credentials belong to different consumers"),
                None,
            ),
        };
        let mut headers = HeaderMap::new();
        if status == StatusCode::UNAUTHORIZED {
            match own {
                Some(challenge) => drop(headers.append(WWW_AUTHENTICATE, challenge)),
                None => {
                    for challenge in self.methods.iter().filter_map(|method| method.challenge()) {
                        headers.append(WWW_AUTHENTICATE, challenge.clone());
                    }
                }
            }
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        Reply::Problem { status, detail, headers }.into()
    }
}

/// The verdicts of the methods so far.
#[derive(Default)]
struct Tally {
    passed: bool,
    identity: Option<Identity>,
    /// The first error of a proof that was there counts more than that there is none.
    failed: Option<Failed>,
}

enum Failed {
    Absent(&'static str),
    Refused(Refusal),
    Several,
}

impl Tally {
    /// Adds a verdict. True: the others do not matter any more.
    fn add(&mut self, method: &dyn Method, verdict: Verdict, needs: Needs) -> bool {
        match verdict {
            Verdict::Passed(identity) => {
                self.passed = true;
                match (&self.identity, identity) {
                    (Some(one), Some(other)) if one.consumer.name != other.consumer.name => {
                        self.failed = Some(Failed::Several);
                        return true;
                    }
                    (None, Some(identity)) => self.identity = Some(identity),
                    (_, _) => {}
                }
                if needs == Needs::Any {
                    self.failed = None;
                }
                needs == Needs::Any
            }
            Verdict::Absent(detail) => {
                if self.failed.is_none() {
                    self.failed = Some(Failed::Absent(detail));
                }
                needs == Needs::All
            }
            Verdict::Refused(mut refusal) => {
                if !matches!(self.failed, Some(Failed::Refused(_))) {
                    refusal.challenge = refusal.challenge.or_else(|| method.challenge().cloned());
                    self.failed = Some(Failed::Refused(refusal));
                }
                needs == Needs::All
            }
        }
    }

    fn result(self) -> Result<Option<Identity>, Failed> {
        match self.failed {
            Some(failed) => Err(failed),
            None if self.passed => Ok(self.identity),
            None => Err(Failed::Absent("authentication is required")),
        }
    }
}

/// Checks the name of an anonymous consumer.
pub(crate) fn check_anonymous(anonymous: Option<&str>, errors: &mut Errors) {
    if let Some(Err(message)) = anonymous.map(str::parse::<Name>) {
        errors.push("anonymous", message);
    }
}

/// The reference to an anonymous consumer.
pub(crate) fn anonymous_reference(anonymous: Option<&str>) -> Vec<(ResourceKey, String)> {
    let consumer = anonymous.and_then(|name| name.parse().ok());
    let reference = |name| (ResourceKey::new(Kind::Consumer, name), "anonymous".to_owned());
    consumer.map(reference).into_iter().collect()
}

/// Checks the realm of a challenge.
pub(crate) fn check_realm(realm: &str, errors: &mut Errors) {
    let is_plain = |byte| matches!(byte, 0x20..0x7f) && !matches!(byte, b'"' | b'\\');
    if !realm.bytes().all(is_plain) {
        errors.push("realm", "must be printable ASCII without quotation marks and backslashes");
    }
}

/// A challenge with a realm that [`check_realm`] accepts, and further parameters.
pub(crate) fn challenge(scheme: &str, realm: &str, parameters: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("{scheme} realm=\"{realm}\"{parameters}"))
        .unwrap_or(HeaderValue::from_static("Basic"))
}

/// Removes all parameters of the query that have one of `names`.
pub(crate) fn remove_parameters(uri: &mut Uri, names: &[Box<str>]) -> Result<(), NotRewritable> {
    let Some(query) = uri.query().filter(|_| !names.is_empty()) else { return Ok(()) };
    let is_named = |parameter: &query::Parameter<'_>| names.iter().any(|name| parameter.is_named(name));
    if query::parameters(query).any(|parameter| is_named(&parameter)) {
        let kept: Vec<&str> = query::parameters(query)
            .filter(|parameter| !is_named(parameter))
            .map(query::Parameter::text)
            .collect();
        *uri = query::with_query(uri, &kept.join("&")).ok_or(NotRewritable)?;
    }
    Ok(())
}

pub(crate) fn default_realm() -> String {
    "signalbox".to_owned()
}
