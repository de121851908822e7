//! A range of addresses: `10.0.0.0/8`, `2001:db8::/32`; an address alone is a range of one.

use std::net::IpAddr;

use ipnet::IpNet;

/// A range of addresses, of one version.
pub type AddressRange = IpNet;

/// Reads a range as people write it. Its address must be the first of the range, and an IPv4 address be written as one, so that
/// nobody is misled about the addresses in it.
pub fn parse_range(text: &str) -> Result<AddressRange, String> {
    let wrong = || "must be an address or a range, like 10.0.0.0/8 or 2001:db8::/32".to_owned();
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    if address.to_canonical() != address {
        return Err("must be written as an IPv4 address".to_owned());
    }
    let range = match prefix {
        None => IpNet::from(address),
        Some(digits) => {
            let prefix: u8 = digits.parse().map_err(|_| wrong())?;
            // `+8` and `08` are none.
            if prefix.to_string() != digits {
                return Err(wrong());
            }
            IpNet::new(address, prefix).map_err(|_| wrong())?
        }
    };
    match range.trunc() {
        first if first == range => Ok(range),
        first => Err(format!("has bits beyond its prefix; write {first}")),
    }
}

/// True if `address` is in `range`. An IPv4 address that is written as an IPv6 one is an IPv4 address.
pub(crate) fn contains(range: &IpNet, address: IpAddr) -> bool {
    range.contains(&address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_their_addresses() {
        for (range, address, expected) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("10.0.0.0/8", "::a00:1", false),
            ("0.0.0.0/0", "203.0.113.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::/32", "2001:db8:1::", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("::/0", "::1", true),
            ("::1", "::1", true),
        ] {
            let range = parse_range(range).unwrap();
            assert_eq!(contains(&range, address.parse().unwrap()), expected, "{range} {address}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in [
            "",
            "10",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "a/8",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_range("10.1.2.3/8").unwrap_err(), "has bits beyond its prefix; write 10.0.0.0/8");
    }
}
