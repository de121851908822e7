//! The identity of a client, for which its requests are counted.

use std::hash::BuildHasher;
use std::net::IpAddr;

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, sha256};
use signalbox_plugin::{Consumers, PluginRequest};

/// The property that identifies a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum By {
    /// The authenticated consumer.
    #[default]
    Consumer,
    /// The IP address, or the /64 network of an IPv6 address.
    Ip,
    /// The value of a header.
    Header,
    /// The path of the request.
    Path,
    /// The credential by which the consumer authenticated.
    Credential,
    /// All clients together.
    Global,
}

/// Finds the client of a request.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientKey {
    by: By,
    header: Option<HeaderName>,
}

/// The client of a request, borrowed from it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Client<'a> {
    Address(IpAddr),
    /// One or two texts; the second is empty if there is one.
    Texts([&'a [u8]; 2]),
}

/// A client by a number: an address, or 128 random bits drawn by a keyed hash of the texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ClientId(pub(super) u128);

impl By {
    /// Adds the errors of `by` and `header` to `errors`.
    pub(crate) fn check(self, header: Option<&str>, errors: &mut Errors) {
        match (self, header) {
            (Self::Header, None) => errors.push("header", "is required when by is header"),
            (Self::Header, Some(name)) if name.parse::<HeaderName>().is_err() => {
                errors.push("header", format_args!("{name:?} is not the name of a header"));
            }
            (Self::Header, Some(_)) | (_, None) => {}
            (_, Some(_)) => errors.push("header", "is only used when by is header"),
        }
    }
}

impl ClientKey {
    /// `header` was checked by [`By::check`].
    pub(crate) fn new(by: By, header: Option<&str>) -> Self {
        Self { by, header: header.and_then(|name| name.parse().ok()) }
    }

    /// The client of a request. A request without the property counts for its address.
    pub(crate) fn client<'a>(&self, request: &'a PluginRequest<'_>) -> Client<'a> {
        let identity = request.exchange.identity.as_ref();
        let texts: Option<[&[u8]; 2]> = match self.by {
            By::Ip => None,
            By::Global => Some([b"", b""]),
            By::Path => Some([request.head.uri.path().as_bytes(), b""]),
            By::Header => {
                let value = self.header.as_ref().and_then(|name| request.head.headers.get(name));
                value.map(|value| [value.as_bytes(), b""])
            }
            By::Consumer => identity.map(|identity| [identity.consumer.name.as_str().as_bytes(), b""]),
            By::Credential => identity.and_then(|identity| {
                let credential = identity.credential.as_ref()?;
                Some([identity.consumer.name.as_str().as_bytes(), credential.as_bytes()])
            }),
        };
        texts.map_or(Client::Address(request.client), Client::Texts)
    }

    /// True if it reads one of the headers about the consumer.
    pub(crate) fn uses_consumer_headers(&self) -> bool {
        self.header.as_ref().is_some_and(|name| Consumers::HEADERS.contains(name))
    }
}

impl Client<'_> {
    /// The number of the client under the keys of two hash functions.
    #[inline]
    pub(super) fn id<S: BuildHasher>(&self, [high, low]: &[S; 2]) -> ClientId {
        match self {
            Self::Address(address) => ClientId(bits(*address)),
            Self::Texts(texts) => {
                ClientId(u128::from(high.hash_one(texts)) << 64 | u128::from(low.hash_one(texts)))
            }
        }
    }

    /// The first half of the SHA-256 of `scope` and the client: the same on all proxies, and of one length whatever a
    /// client sends.
    pub(crate) fn digest(&self, scope: &[u8]) -> u128 {
        let mut bytes = Vec::with_capacity(128);
        let mut add = |part: &[u8]| {
            // With its length, so that no two lists of parts have the same bytes.
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        };
        add(scope);
        match self {
            Self::Address(address) => add(&bits(*address).to_be_bytes()),
            Self::Texts([first, second]) => {
                add(first);
                add(second);
            }
        }
        let digest = sha256(&bytes);
        digest.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
    }
}

/// The address, or the /64 network of an IPv6 address, which is what one client commonly has.
fn bits(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() & !u128::from(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_apart_what_only_looks_alike() {
        let texts = |first: &'static str, second: &'static str| {
            Client::Texts([first.as_bytes(), second.as_bytes()]).digest(b"scope")
        };
        assert_eq!(texts("a", "b"), texts("a", "b"));
        for (first, second) in [("ab", ""), ("", "ab"), ("b", "a"), ("a:b", "")] {
            assert_ne!(texts("a", "b"), texts(first, second), "{first:?} {second:?}");
        }
        assert_ne!(Client::Texts([b"a", b""]).digest(b"s"), Client::Texts([b"a", b""]).digest(b"t"));
        let address = |text: &str| Client::Address(text.parse().unwrap()).digest(b"scope");
        assert_eq!(address("192.0.2.1"), address("::ffff:192.0.2.1"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
    }
}
