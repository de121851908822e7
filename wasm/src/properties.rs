//! The properties that modules may read. Numbers are little-endian, of eight bytes; a truth value is one byte.

use std::time::UNIX_EPOCH;

use http::{HeaderName, Version};
use signalbox_config::Name;

use crate::context::Facts;
use crate::headers::{Map, Text};
use crate::state::State;

/// The value of a property. The parts of `path` are separated by zero bytes.
pub(crate) fn get(state: &State, path: &[u8]) -> Option<Text> {
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    let mut parts = path.splitn(3, |byte| *byte == 0);
    let (first, second, third) = (parts.next()?, parts.next(), parts.next());
    let context = state.contexts.get(&state.effective);
    let known = match (first, second) {
        (b"plugin_name", None) => text(state.setup.name.as_str()),
        (b"plugin_root_id" | b"plugin_vm_id", None) => text(state.setup.name.as_str()),
        (b"request", Some(field)) => context.and_then(|context| request(state, &context.facts, field, third)),
        (b"response", Some(field)) => response(state, field, third),
        (first, second) => context.and_then(|context| exchange(&context.facts, first, second)),
    };
    known.or_else(|| {
        let set = context?.properties.iter().find(|(set, _)| **set == *path)?;
        Some(Text::from_slice(&set.1))
    })
}

fn text(text: &str) -> Option<Text> {
    Some(Text::from_slice(text.as_bytes()))
}

fn number(number: u64) -> Option<Text> {
    Some(Text::from_slice(&number.to_le_bytes()))
}

fn named(name: Option<&Name>) -> Option<Text> {
    text(name?.as_str())
}

fn exchange(facts: &Facts, first: &[u8], second: Option<&[u8]>) -> Option<Text> {
    match (first, second) {
        (b"source", Some(b"address")) => text(&facts.client?.to_string()),
        (b"connection", Some(b"mtls")) => Some(Text::from_slice(&[u8::from(facts.has_certificate)])),
        (b"route_name", None) => named(facts.route.as_ref()),
        (b"listener_name", None) => named(facts.listener.as_ref()),
        (b"cluster_name", None) => named(facts.upstream.as_ref()),
        (b"consumer", Some(b"name")) => named(facts.consumer.as_ref()),
        _ => None,
    }
}

fn request(state: &State, facts: &Facts, field: &[u8], third: Option<&[u8]>) -> Option<Text> {
    match field {
        b"id" => return Some(Text::from_slice(&facts.id)).filter(|id| !id.is_empty()),
        b"time" => {
            let since = facts.started?.duration_since(UNIX_EPOCH).ok()?;
            return number(u64::try_from(since.as_nanos()).ok()?);
        }
        b"size" => return number(facts.body_size?),
        b"scheme" => return text(if facts.https { "https" } else { "http" }),
        _ => {}
    }
    let head = state.own_view()?.request.as_ref()?;
    let map = Map::Request { head, https: facts.https };
    match field {
        b"path" => map.get(b":path"),
        b"url_path" => text(head.uri.path()),
        b"query" => text(head.uri.query()?),
        b"host" => map.get(b":authority"),
        b"method" => map.get(b":method"),
        b"referer" => map.get(b"referer"),
        b"useragent" => map.get(b"user-agent"),
        b"protocol" => text(match head.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        }),
        b"headers" => header(map, third?),
        _ => None,
    }
}

fn response(state: &State, field: &[u8], third: Option<&[u8]>) -> Option<Text> {
    let head = state.own_view()?.response.as_ref()?;
    match field {
        b"code" => number(head.status.as_u16().into()),
        b"headers" => header(Map::Response(head), third?),
        _ => None,
    }
}

fn header(map: Map<'_>, name: &[u8]) -> Option<Text> {
    HeaderName::from_bytes(name).ok()?;
    map.get(name)
}
