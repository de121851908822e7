//! Web origins as configurations and browsers write them: `https://a.example:8443` (RFC 6454, section 6.2).

/// True if it is an origin as browsers write it, or one with a wildcard where that is safe.
pub(crate) fn is_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let (host, wildcards) = match host.strip_prefix("*.") {
        Some(parent) => (parent, 1 + usize::from(port == Some("*"))),
        None => (host, usize::from(port == Some("*"))),
    };
    let is_ipv6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
        && (is_ipv6 || host.as_bytes().split(|byte| *byte == b'.').all(is_label))
        && port.is_none_or(|port| port == "*" || is_port(port.as_bytes()))
        && wildcards <= 1
}

/// Browsers leave out the port that a scheme usually has.
pub(crate) fn without_usual_port(origin: String) -> String {
    let usual = [("https://", ":443"), ("http://", ":80")];
    let port = usual.iter().find(|(scheme, port)| origin.starts_with(scheme) && origin.ends_with(port));
    match port.and_then(|(_, port)| origin.strip_suffix(port)) {
        Some(shorter) => shorter.to_owned(),
        None => origin,
    }
}

/// A label of a host's name: nothing in it could end the host.
pub(crate) fn is_label(label: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=63).contains(&label.len()) && label.iter().all(fits)
}

/// A port as browsers write it: a decimal number from 1 to 65535 without zeros in front.
pub(crate) fn is_port(port: &[u8]) -> bool {
    let digits = std::str::from_utf8(port).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    !port.starts_with(b"0") && digits.is_some_and(|digits| digits.parse::<u16>().is_ok())
}
