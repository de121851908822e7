//! Prepares a request's head as a proxy does before it looks for a route. [`RouteIndex::explain`](crate::RouteIndex) gives a
//! proxy's answer only for a request that was prepared so.

use http::HeaderMap;
use http::header::{self, HeaderName};
use smallvec::SmallVec;

/// The name of the consumer.
pub const X_CONSUMER_ID: HeaderName = HeaderName::from_static("x-consumer-id");
/// The same.
pub const X_CONSUMER_USERNAME: HeaderName = HeaderName::from_static("x-consumer-username");
/// The consumer's `custom_id`, by which backends know it.
pub const X_CONSUMER_CUSTOM_ID: HeaderName = HeaderName::from_static("x-consumer-custom-id");
/// The consumer's groups.
pub const X_CONSUMER_GROUPS: HeaderName = HeaderName::from_static("x-consumer-groups");
/// By which credential the consumer was known.
pub const X_CREDENTIAL_IDENTIFIER: HeaderName = HeaderName::from_static("x-credential-identifier");
/// There when the consumer is the anonymous one.
pub const X_ANONYMOUS_CONSUMER: HeaderName = HeaderName::from_static("x-anonymous-consumer");

/// The headers that only plugins vouch for; the proxy removes them from what clients send.
pub const CONSUMER: [HeaderName; 6] = [
    X_CONSUMER_ID,
    X_CONSUMER_USERNAME,
    X_CONSUMER_CUSTOM_ID,
    X_CONSUMER_GROUPS,
    X_CREDENTIAL_IDENTIFIER,
    X_ANONYMOUS_CONSUMER,
];

/// Subject, other names and fingerprint of the certificate that a client showed.
pub const CLIENT_CERTIFICATE: [HeaderName; 3] = [
    HeaderName::from_static("x-client-cert-subject"),
    HeaderName::from_static("x-client-cert-san"),
    HeaderName::from_static("x-client-cert-fingerprint"),
];

/// The id of a request.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The addresses that a request came from.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `http` or `https`, as the client asked.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The host that the client asked for.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The headers by which a proxy tells of a client.
pub const TOLD: [HeaderName; 5] =
    [X_REQUEST_ID, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST, header::FORWARDED];

/// The fields that are removed because a client must not set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claims {
    /// The fields that only the proxy may set: those about consumers and clients' certificates.
    OfTheProxy,
    /// And what proxies before it may say of a client.
    All,
}

/// Removes fields in which somebody claims something of a client.
pub fn remove_claims(fields: &mut HeaderMap, which: Claims) {
    let told: &[HeaderName] = if which == Claims::All { &TOLD } else { &[] };
    for name in CONSUMER.iter().chain(&CLIENT_CERTIFICATE).chain(told) {
        fields.remove(name);
    }
    if which == Claims::All {
        let others = fields.keys().filter(|name| tells_otherwise(name.as_str())).cloned();
        for name in others.collect::<SmallVec<[HeaderName; 4]>>() {
            fields.remove(name);
        }
    }
}

/// Removes the fields of [`is_misspelt`].
pub fn remove_misspelt(fields: &mut HeaderMap) {
    let misspelt: SmallVec<[HeaderName; 4]> =
        fields.keys().filter(|name| is_misspelt(name.as_str())).cloned().collect();
    for name in misspelt {
        fields.remove(name);
    }
}

/// Tells the fields by which other proxies describe a client: `X-Forwarded-Port`, `X-Forwarded-Prefix` and the like.
#[inline]
pub fn tells_otherwise(name: &str) -> bool {
    name.starts_with("x-forwarded-") || name == "x-real-ip"
}

/// True if a server that takes other characters for `-` would take the field for one that only the proxy may set, or for the
/// body's framing. Many take `_` for it, some `.`, and those that make variables of names whatever a variable cannot have.
#[inline]
pub fn is_misspelt(name: &str) -> bool {
    has_other_separators(name) && {
        let name = plain_spelling(name);
        is_claim(&name)
            || name == header::TRANSFER_ENCODING.as_str()
            || name == header::CONTENT_LENGTH.as_str()
    }
}

/// Removes the field `name` in every spelling that a server may take for it.
pub fn remove_every_spelling(fields: &mut HeaderMap, name: &HeaderName) {
    let is_same = |a: u8, b: u8| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric());
    let is_spelling = |other: &str| {
        let name = name.as_str();
        other.len() == name.len() && other.bytes().zip(name.bytes()).all(|(a, b)| is_same(a, b))
    };
    let found: SmallVec<[HeaderName; 4]> =
        fields.keys().filter(|other| is_spelling(other.as_str())).cloned().collect();
    for other in found {
        fields.remove(other);
    }
}

/// True if `name`, which is in lower case, has characters besides letters, digits and `-`.
#[inline]
fn has_other_separators(name: &str) -> bool {
    !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn plain_spelling(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

fn is_claim(name: &str) -> bool {
    CONSUMER.iter().chain(&CLIENT_CERTIFICATE).chain(&TOLD).any(|claim| *claim == name)
        || tells_otherwise(name)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_claim_is_known_in_every_spelling() {
        for name in [
            "x_consumer_id",
            "x.consumer.id",
            "x-consumer_id",
            "x-consumer.id",
            "x~consumer~id",
            "x_real.ip",
            "x_client_cert_subject",
            "x.forwarded.for",
            "transfer_encoding",
            "content.length",
            "x_anonymous.consumer",
        ] {
            assert!(is_misspelt(name), "{name}");
        }
        for name in
            ["x-consumer-id", "x_consumer_ids", "x.api.key", "content_type", "x-consumerid", "xconsumer_id"]
        {
            assert!(!is_misspelt(name), "{name}");
        }
    }

    #[test]
    fn a_field_is_removed_in_every_spelling() {
        let mut fields = HeaderMap::new();
        for name in ["x-user", "x_user", "x.user", "x-user-id", "x_userid"] {
            fields.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        for name in ["x-user", "x_user_id"] {
            remove_every_spelling(&mut fields, &HeaderName::from_static(name));
        }
        assert_eq!(fields.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x_userid"]);
    }
}
