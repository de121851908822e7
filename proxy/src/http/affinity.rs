//! Session affinity: the request property by which hashing policies choose a target.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, header, request};
use percent_encoding::percent_decode_str;
use signalbox_config::HashOn;
use signalbox_plugin::Exchange as PluginNotes;

use super::exchange::Exchange;
use super::trust::Client;
use crate::upstream::hash::stable_hash;

/// The hash of the request's affinity property; `None` if it has none. If the property is a cookie, a missing one is
/// generated and set on the response.
pub(super) fn hash(
    on: &HashOn,
    exchange: &mut Exchange,
    head: &request::Parts,
    notes: Option<&PluginNotes>,
) -> Option<u64> {
    let known = known(on, exchange.request.client(), head, notes);
    match (known, on) {
        (None, HashOn::Cookie { name, attributes }) => {
            let value = format!("{:016x}", fastrand::u64(..));
            let text = format!("{name}={value}{attributes}");
            exchange.attempts.set_cookie = HeaderValue::try_from(text).ok().map(Box::new);
            Some(stable_hash(value.as_bytes()))
        }
        (known, _) => known,
    }
}

/// The hash of the affinity property that the request already has.
pub(super) fn known(
    on: &HashOn,
    client: &Client,
    head: &request::Parts,
    notes: Option<&PluginNotes>,
) -> Option<u64> {
    match on {
        HashOn::Header(name) => head
            .headers
            .get(name)
            .or_else(|| notes?.deferred_headers().find(|(known, _)| *known == name).map(|(_, value)| value))
            .filter(|value| !value.is_empty())
            .map(|value| stable_hash(value.as_bytes())),
        HashOn::Cookie { name, .. } => cookie(&head.headers, name).map(stable_hash),
        HashOn::Query(name) => parameter(head.uri.query()?, name).map(|value| stable_hash(value.as_bytes())),
        HashOn::SourceIp => Some(stable_hash(client.text.as_bytes())),
        HashOn::Consumer => {
            let identity = notes?.identity.as_ref()?;
            Some(stable_hash(identity.consumer.name.as_str().as_bytes()))
        }
    }
}

/// The value of the first cookie of this name that has one.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .filter(|value| !value.is_empty())
}

/// The value of the first query parameter of this name, decoded.
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let decoded = |text: &'a str| percent_decode_str(text).decode_utf8_lossy();
    query
        .split('&')
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(key, _)| decoded(key) == name)
        .map(|(_, value)| decoded(value))
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        for (header, value) in [
            ("sid=1", Some("1")),
            ("a=b; sid=2", Some("2")),
            ("xsid=1;sid=3;sid=4", Some("3")),
            ("sidx=1", None),
            ("sid=", None),
            ("sid", None),
        ] {
            let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static(header))]);
            assert_eq!(cookie(&headers, "sid"), value.map(str::as_bytes), "{header}");
        }
    }

    #[test]
    fn parameters_are_found_decoded() {
        for (query, value) in [
            ("user=1", Some("1")),
            ("a=b&us%65r=%31&user=2", Some("1")),
            ("users=1", None),
            ("user=", None),
            ("user", None),
        ] {
            assert_eq!(parameter(query, "user").as_deref(), value, "{query}");
        }
    }
}
