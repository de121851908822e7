//! Lets clients in by their IP addresses.
//!
//! `allow` and `deny` list addresses and ranges, of IPv4 and IPv6: `192.0.2.7`, `10.0.0.0/8`, `2001:db8::/32`. A client in
//! a range of `deny` is answered `403`. With `allow`, so is a client in none of its ranges. `deny` has precedence: it can
//! take a part out of a range that is allowed.
//!
//! The address is the client's, as far as it can be trusted: `X-Forwarded-For` counts only as far as the listener's
//! `trusted_proxies` have written it. An IPv4 address that is written as an IPv6 one (`::ffff:192.0.2.7`) is an IPv4 address,
//! and a request whose client has no address is refused. A link-local address counts without its zone (`fe80::1%eth0`).
//!
//! A look-up takes the same time for ten ranges and for ten thousand, within a factor of four.

use std::net::IpAddr;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::address_range::{AddressRange, parse_range};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, Reply, hooks};

/// The addresses that are let in, and those that are not.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "IP restriction", example = serde_json::json!({"allow": ["10.0.0.0/8", "2001:db8::/32"]}),
    example = serde_json::json!({"deny": ["192.0.2.7"]}))]
pub(crate) struct Config {
    /// The addresses and ranges that are let in. Absent: all that are not denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Allowed addresses", length(min = 1))]
    allow: Option<Vec<String>>,
    /// The addresses and ranges that are refused, even if they are in an allowed range.
    #[serde(default)]
    #[schemars(title = "Denied addresses")]
    deny: Vec<String>,
}

/// Lets clients in by their IP addresses.
pub(crate) struct IpRestriction {
    allow: Option<AddressSet>,
    deny: AddressSet,
}

#[hooks]
impl Plugin for IpRestriction {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        if self.admits(request.client) {
            return Flow::Continue;
        }
        Reply::problem(StatusCode::FORBIDDEN, "the client's address is not allowed").into()
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for IpRestriction {
    const NAME: &'static str = "ip-restriction";
    const DESCRIPTION: &'static str = "Lets clients in by their IP addresses.";
    const ORDER: i32 = 1990;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        parse(config, errors);
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let built = parse(&config, &mut errors);
        errors.finish(Some(built))
    }
}

impl IpRestriction {
    fn admits(&self, client: IpAddr) -> bool {
        // The unspecified address stands for none.
        !client.is_unspecified()
            && !self.deny.contains(client)
            && self.allow.as_ref().is_none_or(|allowed| allowed.contains(client))
    }
}

/// The most ranges of a list.
const MAX_RANGES: usize = 100_000;

/// Reads a configuration. Ranges that are wrong are missing from the result.
fn parse(config: &Config, errors: &mut Errors) -> IpRestriction {
    match &config.allow {
        Some(allow) if allow.is_empty() => {
            errors.push("allow", "must not be empty; leave it out to let in all that are not denied");
        }
        None if config.deny.is_empty() => errors.push("", "needs allow, deny or both"),
        Some(_) | None => {}
    }
    let mut set = |field: &str, texts: &[String]| {
        if texts.len() > MAX_RANGES {
            errors.push(field, format_args!("has {} entries; at most {MAX_RANGES}", texts.len()));
        }
        let mut ranges = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            match parse_range(text) {
                Ok(range) => ranges.push(range),
                Err(message) => errors.push(format_args!("{field}[{index}]"), message),
            }
        }
        AddressSet::of(&ranges)
    };
    IpRestriction {
        allow: config.allow.as_deref().map(|texts| set("allow", texts)),
        deny: set("deny", &config.deny),
    }
}

/// A set of addresses: the ranges of each version, sorted and without overlaps.
#[derive(Debug, Default, PartialEq, Eq)]
struct AddressSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl AddressSet {
    fn of(ranges: &[AddressRange]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for range in ranges {
            match (range.network(), range.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.to_bits(), last.to_bits())),
                (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first.to_bits(), last.to_bits())),
                // A range has addresses of one version.
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
            }
        }
        Self { v4: disjoint(v4), v6: disjoint(v6) }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => is_in(&self.v4, address.to_bits()),
            IpAddr::V6(address) => is_in(&self.v6, address.to_bits()),
        }
    }
}

/// Sorts ranges, and drops those within others: two ranges that begin at powers of two overlap only so.
fn disjoint<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_by(|(first, last), (other_first, other_last)| {
        first.cmp(other_first).then_with(|| other_last.cmp(last))
    });
    let mut end: Option<T> = None;
    ranges.retain(|(_, last)| {
        let is_new = end.is_none_or(|end| *last > end);
        if is_new {
            end = Some(*last);
        }
        is_new
    });
    ranges.into()
}

fn is_in<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= address);
    behind.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|(_, last)| address <= *last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::testing::{Client, build, refused};

    #[test]
    fn addresses_decide_who_passes() {
        for (config, passes, refused) in [
            (
                json!({"allow": ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]}),
                &["10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8::1", "::ffff:10.1.1.1"][..],
                &["9.255.255.255", "11.0.0.0", "192.0.2.8", "2001:db9::", "::a00:1", "::ffff:11.0.0.1"][..],
            ),
            (
                json!({"deny": ["10.0.0.0/8", "fe80::/10"]}),
                &["192.0.2.7", "::1"],
                &["10.1.1.1", "::ffff:10.1.1.1", "fe80::1", "0.0.0.0", "::"],
            ),
            (
                json!({"allow": ["10.0.0.0/8"], "deny": ["10.1.0.0/16", "10.2.3.4"]}),
                &["10.0.0.1", "10.2.3.5"],
                &["10.1.0.0", "10.1.255.255", "10.2.3.4", "192.0.2.7"],
            ),
            // No address is none of all addresses.
            (json!({"allow": ["0.0.0.0/0"]}), &["192.0.2.7"], &["0.0.0.0", "::", "::1"]),
        ] {
            let plugin = build("ip-restriction", config.clone());
            let status =
                |address| Client::new("GET", "/").from(address).meets(&*plugin).map_or(200, |it| it.status);
            for address in passes {
                assert_eq!(status(address), 200, "{config} {address}");
            }
            for address in refused {
                assert_eq!(status(address), 403, "{config} {address}");
            }
        }
    }

    #[test]
    fn bad_configurations_are_refused() {
        assert_eq!(refused("ip-restriction", json!({})), "needs allow, deny or both");
        assert_eq!(refused("ip-restriction", json!({"deny": []})), "needs allow, deny or both");
        assert!(refused("ip-restriction", json!({"allow": []})).starts_with("allow: must not be empty"));
        for bad in ["10.0.0.1/8", "10", "", "a.example", "fe80::1%eth0", "::ffff:10.0.0.0/104", "10.0.0.0/33"]
        {
            let errors = refused("ip-restriction", json!({"allow": ["10.0.0.0/8", bad]}));
            assert!(errors.starts_with("allow[1]: "), "{bad}: {errors}");
            assert!(refused("ip-restriction", json!({"deny": [bad]})).starts_with("deny[0]: "));
        }
    }

    proptest! {
        #[test]
        fn a_set_has_the_addresses_of_its_ranges(
            ranges in proptest::collection::vec((any::<[u8; 2]>(), 0_u8..=16), 0..20),
            addresses in proptest::collection::vec(any::<[u8; 2]>(), 20),
        ) {
            // All lie in a small network, so that ranges overlap.
            let address = |[a, b]: [u8; 2]| IpAddr::from([10, 20, a, b]);
            let ranges: Vec<AddressRange> = ranges
                .iter()
                .map(|(bytes, prefix)| AddressRange::new(address(*bytes), 16 + prefix).unwrap().trunc())
                .collect();
            let set = AddressSet::of(&ranges);
            for address in addresses.into_iter().map(address) {
                let expected = ranges.iter().any(|range| range.contains(&address));
                prop_assert_eq!(set.contains(address), expected, "{} in {:?}", address, ranges);
            }
        }
    }
}
