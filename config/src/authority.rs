//! Host names and ports, as a specification may have them.

/// A name of labels, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    v6_address(host).is_some() || (host.len() <= 253 && host.split('.').all(label))
}

pub(crate) fn v6_address(host: &str) -> Option<std::net::Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// A host with an optional port, for the `Host` header.
pub(crate) fn check_authority(host: &str) -> Result<(), String> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => Some(name).filter(|_| is_port(port)),
        _ => Some(host),
    };
    match name.is_some_and(is_host_name) {
        true => Ok(()),
        false => Err(format!("{host:?} is not a host name with an optional port")),
    }
}

/// A decimal number from 1 to 65535, and nothing else that would be read as one.
pub(crate) fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}
