//! Forwarded headers of trusted proxies.

use std::net::{IpAddr, SocketAddr};

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use signalbox_config::arrival::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, X_REQUEST_ID};
use signalbox_config::{Edge, host};

/// The address of a client.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: IpAddr,
    /// The address as text.
    pub text: HeaderValue,
}

/// The trusted claims about a request.
#[derive(Debug)]
pub struct ForwardedClient {
    pub client: Client,
    pub request_id: Option<HeaderValue>,
}

/// The maximum number of `X-Forwarded-For` addresses that are examined, from the last; beyond it, the last examined
/// one is the client.
const MAX_HOPS: usize = 32;

/// The longest request id that is kept, in bytes.
const MAX_REQUEST_ID: usize = 128;

impl Client {
    /// Creates a client with its canonical address: an IPv4-mapped address counts as IPv4.
    pub fn new(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let text = HeaderValue::from_str(&address.to_string());
        Self { address, text: text.unwrap_or_else(|_| HeaderValue::from_static("unknown")) }
    }
}

/// Reads the forwarded headers of `peer`, which is trusted. It leaves in `headers` what can be passed on:
/// `X-Forwarded-For` with `peer` at its end, and the other fields if they are well-formed and unique.
pub fn apply_forwarded(headers: &mut HeaderMap, edge: &Edge, peer: &Client) -> ForwardedClient {
    let client = client(headers, edge, peer.address);
    let mut chain = Vec::new();
    for part in headers.get_all(X_FORWARDED_FOR) {
        chain.extend_from_slice(part.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer.text.as_bytes());
    match HeaderValue::from_bytes(&chain) {
        Ok(chain) => headers.insert(X_FORWARDED_FOR, chain),
        Err(_) => headers.insert(X_FORWARDED_FOR, peer.text.clone()),
    };
    keep(headers, &X_FORWARDED_PROTO, |proto| matches!(proto, b"http" | b"https"));
    keep(headers, &X_FORWARDED_HOST, |host| {
        std::str::from_utf8(host).is_ok_and(|host| !host.is_empty() && host::normalize(host).is_some())
    });
    let request_id = keep(headers, &X_REQUEST_ID, |id| {
        (1..=MAX_REQUEST_ID).contains(&id.len())
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte))
    });
    ForwardedClient {
        client: if client == peer.address { peer.clone() } else { Client::new(client) },
        request_id,
    }
}

/// The last untrusted address, seen from `peer`; the first one, if all are trusted. An element that is no address ends
/// the chain: its sender is the client as far as is known.
fn client(headers: &HeaderMap, edge: &Edge, peer: IpAddr) -> IpAddr {
    let mut client = peer;
    let values = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let hops = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    for hop in hops.take(MAX_HOPS) {
        let Some(address) = address(hop) else { break };
        client = address.to_canonical();
        if !edge.trusts(client) {
            break;
        }
    }
    client
}

/// Parses an address as proxies write it: with or without port, with or without brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip());
    }
    text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// The only value of `name`, if it is `fine`; otherwise the field is removed.
fn keep(headers: &mut HeaderMap, name: &HeaderName, fine: impl Fn(&[u8]) -> bool) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let only = values.next().filter(|value| values.next().is_none() && fine(value.as_bytes())).cloned();
    if only.is_none() {
        headers.remove(name);
    }
    only
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(peer: &str, headers: &[(&str, &str)]) -> (ForwardedClient, HeaderMap) {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(|range| range.parse().unwrap());
        let edge = Edge { trusted_proxies: trusted.into(), ..Edge::default() };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let forwarded = apply_forwarded(&mut map, &edge, &Client::new(peer.parse().unwrap()));
        (forwarded, map)
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_trusted() {
        let many = format!("203.0.113.1{}", ", 10.0.0.9".repeat(40));
        for (chain, expected) in [
            (&[][..], "10.0.0.1"),
            (&["203.0.113.1"], "203.0.113.1"),
            (&["198.51.100.1, 203.0.113.1"], "203.0.113.1"),
            (&["203.0.113.1, 10.0.0.2"], "203.0.113.1"),
            (&["203.0.113.1", "10.0.0.2"], "203.0.113.1"),
            (&["198.51.100.1", "203.0.113.1", "10.0.0.2"], "203.0.113.1"),
            (&["203.0.113.1:4711"], "203.0.113.1"),
            (&["2001:db9::1"], "2001:db9::1"),
            (&["[2001:db9::1]:4711, [2001:db8::1]"], "2001:db9::1"),
            (&["::ffff:203.0.113.1, ::ffff:10.1.1.1"], "203.0.113.1"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // The elements of an untrusted client do not count.
            (&["unknown, 10.0.0.2"], "10.0.0.2"),
            (&["203.0.113.1, nonsense"], "10.0.0.1"),
            (&["203.0.113.1, "], "10.0.0.1"),
            (&[&*many], "10.0.0.9"),
        ] {
            let headers: Vec<_> = chain.iter().map(|value| ("x-forwarded-for", *value)).collect();
            let (forwarded, map) = forwarded("10.0.0.1", &headers);
            assert_eq!(forwarded.client.text, expected, "{chain:?}");
            assert_eq!(forwarded.client.address.to_string(), expected);
            let all: Vec<_> = chain.iter().copied().chain(["10.0.0.1"]).collect();
            let sent: Vec<_> = map.get_all("x-forwarded-for").iter().collect();
            assert_eq!(sent, [&*all.join(", ")]);
        }
    }

    #[test]
    fn what_is_said_once_and_well_formed_is_kept() {
        for (name, value, kept) in [
            ("x-forwarded-proto", "https", true),
            ("x-forwarded-proto", "gopher", false),
            ("x-forwarded-host", "example.com:8443", true),
            ("x-forwarded-host", "a@b", false),
            ("x-forwarded-host", "", false),
            ("x-request-id", "01890a5d-ac96-774b-bcce-b302099a8057", true),
            ("x-request-id", "Root=1-67891233-abcdef012345678912345678", true),
            ("x-request-id", "a\"b", false),
            ("x-request-id", "", false),
            ("x-request-id", &"x".repeat(129), false),
        ] {
            let (told_once, map) = forwarded("10.0.0.1", &[(name, value)]);
            assert_eq!(map.contains_key(name), kept, "{name}: {value}");
            assert_eq!(told_once.request_id.is_some(), kept && name == "x-request-id");
            assert!(!forwarded("10.0.0.1", &[(name, value), (name, value)]).1.contains_key(name));
        }
    }
}
