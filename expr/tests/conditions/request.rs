//! A request that conditions are evaluated for.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};
use signalbox_expr::{Condition, ConsumerFacts, Facts, NotKnown};

/// A request, with its parts as a test sets them.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) size: Option<u64>,
    pub(crate) client: Option<IpAddr>,
    pub(crate) consumer: Option<(String, Vec<Box<str>>)>,
    pub(crate) route: Option<String>,
    pub(crate) time: Option<SystemTime>,
    /// The consumer is not known, because no plugin has run.
    pub(crate) is_explained: bool,
}

impl Request {
    /// `GET http://api.example/a/b` of 192.0.2.7, at noon of 4 July 2026, a Saturday.
    pub(crate) fn new() -> Self {
        Self {
            method: "GET".into(),
            path: "/a/b".into(),
            query: None,
            headers: HeaderMap::new(),
            size: Some(0),
            client: Some("192.0.2.7".parse().unwrap()),
            consumer: None,
            route: Some("orders".into()),
            time: Some(UNIX_EPOCH + Duration::from_secs(1_783_166_400)),
            is_explained: false,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &[u8]) -> Self {
        self.headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap());
        self
    }

    pub(crate) fn query(mut self, query: &str) -> Self {
        self.query = Some(query.into());
        self
    }

    pub(crate) fn consumer(mut self, name: &str, groups: &[&str]) -> Self {
        self.consumer = Some((name.into(), groups.iter().map(|group| (*group).into()).collect()));
        self
    }

    /// The value of a condition, or the text of its fault.
    pub(crate) fn eval(&self, text: &str) -> Result<bool, String> {
        let condition = Condition::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        condition.evaluate(self).map_err(|fault| fault.to_string())
    }
}

impl Facts for Request {
    fn method(&self) -> &str {
        &self.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    fn host(&self) -> Cow<'_, str> {
        "api.example".into()
    }

    fn scheme(&self) -> &'static str {
        "http"
    }

    fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn body_size(&self) -> Result<Option<u64>, NotKnown> {
        Ok(self.size)
    }

    fn client(&self) -> Result<IpAddr, NotKnown> {
        self.client.ok_or(NotKnown)
    }

    fn consumer(&self) -> Result<Option<ConsumerFacts<'_>>, NotKnown> {
        if self.is_explained {
            return Err(NotKnown);
        }
        Ok(self.consumer.as_ref().map(|(name, groups)| ConsumerFacts { name, groups }))
    }

    fn route(&self) -> Option<&str> {
        self.route.as_deref()
    }

    fn listener(&self) -> &'static str {
        "public"
    }

    fn time(&self) -> Result<SystemTime, NotKnown> {
        self.time.ok_or(NotKnown)
    }
}
