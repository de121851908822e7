//! The PROXY protocol: the client's address, as a load balancer sends it. Both versions follow HAProxy's
//! `proxy-protocol.txt`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpStream;

/// The beginning of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Preamble {
    /// The client; `None`: the peer itself, or an undisclosed client.
    pub source: Option<SocketAddr>,
    /// Bytes of the connection itself that were already taken from the socket: less than a signature.
    pub read_ahead: Vec<u8>,
}

/// The classification of a connection's first bytes.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// A header that is incomplete so far.
    More,
    /// No header.
    Other,
    /// The beginning of a header that is not valid.
    Malformed,
    /// A header of this length in bytes, with its source address.
    Header(usize, Option<SocketAddr>),
}

const SIGNATURE_1: &[u8; 6] = b"PROXY ";
const SIGNATURE_2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header of version 1, in bytes, with its line end.
const MAX_1: usize = 107;

/// The longest header of version 2 that is accepted, in bytes. The format's own limit is 64 KiB; extensions behind the
/// addresses are ignored.
const MAX_2: usize = 4 << 10;

/// Reads the header from the beginning of `stream`, and nothing behind it. Without a header, the connection is left
/// unchanged if the header is `optional`; else it is an error.
pub(super) async fn read(stream: &TcpStream, optional: bool) -> io::Result<Preamble> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no PROXY protocol header");
    let mut have = Vec::new();
    loop {
        let mut part = [0; 256];
        let read = stream.peek(&mut part).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = have.len();
        have.extend_from_slice(part.get(..read).unwrap_or_default());
        match parse(&have) {
            Parsed::More => take(stream, read)?,
            Parsed::Other if optional => {
                have.truncate(before);
                return Ok(Preamble { source: None, read_ahead: have });
            }
            Parsed::Other | Parsed::Malformed => return Err(malformed()),
            Parsed::Header(length, source) => {
                take(stream, length.saturating_sub(before))?;
                return Ok(Preamble { source, read_ahead: Vec::new() });
            }
        }
    }
}

/// Consumes bytes that were peeked at.
fn take(stream: &TcpStream, mut length: usize) -> io::Result<()> {
    while length > 0 {
        let mut part = [0; 256];
        let size = length.min(part.len());
        let read = stream.try_read(part.get_mut(..size).unwrap_or_default())?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length -= read;
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Parsed {
    if SIGNATURE_1.starts_with(bytes) || SIGNATURE_2.starts_with(bytes) {
        return Parsed::More;
    }
    if let Some(rest) = bytes.strip_prefix(SIGNATURE_1) {
        return parse_1(bytes, rest);
    }
    match bytes.strip_prefix(SIGNATURE_2) {
        Some(rest) => parse_2(rest),
        None => Parsed::Other,
    }
}

fn parse_1(bytes: &[u8], rest: &[u8]) -> Parsed {
    let within = bytes.get(..MAX_1).unwrap_or(bytes);
    let Some(end) = memchr::memchr(b'\n', within) else {
        return if bytes.len() < MAX_1 { Parsed::More } else { Parsed::Malformed };
    };
    let line = rest.get(..end - SIGNATURE_1.len()).and_then(|line| line.strip_suffix(b"\r"));
    let Some(line) = line.and_then(|line| std::str::from_utf8(line).ok()) else { return Parsed::Malformed };
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Parsed::Header(end + 1, None);
    }
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let [family, source, target, source_port, target_port] = [word(), word(), word(), word(), word()];
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| port.to_string() == text);
    let (Some(source), Some(_), Some(port), Some(_), None) =
        (address(source), address(target), port(source_port), port(target_port), words.next())
    else {
        return Parsed::Malformed;
    };
    Parsed::Header(end + 1, Some(SocketAddr::new(source, port)))
}

fn parse_2(rest: &[u8]) -> Parsed {
    let Some(&[command, family, high, low]) = rest.first_chunk() else { return Parsed::More };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let total = SIGNATURE_2.len() + 4 + length;
    if !matches!(command, 0x20 | 0x21) || total > MAX_2 {
        return Parsed::Malformed;
    }
    let Some(addresses) = rest.get(4..4 + length) else { return Parsed::More };
    // LOCAL: the load balancer's own connection, such as a health check.
    if command == 0x20 {
        return Parsed::Header(total, None);
    }
    let port = |at: usize| match (addresses.get(at), addresses.get(at + 1)) {
        (Some(high), Some(low)) => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    };
    let source = match family {
        // TCP. Extensions behind the addresses are ignored.
        0x11 if length >= 12 => addresses.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)).zip(port(8)),
        0x21 if length >= 36 => addresses.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)).zip(port(32)),
        0x11 | 0x21 => return Parsed::Malformed,
        // Unspecified, UDP, or a Unix socket.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => None,
        _ => return Parsed::Malformed,
    };
    Parsed::Header(total, source.map(|(address, port)| SocketAddr::new(address, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: &[u8], source: Option<&str>) -> Parsed {
        Parsed::Header(bytes.len(), source.map(|source| source.parse().unwrap()))
    }

    fn version_2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&SIGNATURE_2[..], &[command, family], &length, payload].concat()
    }

    #[test]
    fn headers_are_read_as_they_come() {
        let v4 = [&[192, 0, 2, 1, 10, 0, 0, 1][..], &[0x1f, 0x90, 0, 80]].concat();
        let v6 = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 16], &[0, 7, 0, 80]]
            .concat();
        let tlv = [&v4[..], b"\x04\0\x01x"].concat();
        for (bytes, source) in [
            (b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\n".to_vec(), Some("192.0.2.1:8080")),
            (b"PROXY TCP6 2001:db8::1 ::1 7 80\r\n".to_vec(), Some("[2001:db8::1]:7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff:f...f:ffff 1 2 3\r\n".to_vec(), None),
            (version_2(0x21, 0x11, &v4), Some("192.0.2.1:8080")),
            (version_2(0x21, 0x11, &tlv), Some("192.0.2.1:8080")),
            (version_2(0x21, 0x21, &v6), Some("[2001:db8::1]:7")),
            (version_2(0x20, 0x00, b""), None),
            (version_2(0x20, 0x11, &v4), None),
            (version_2(0x21, 0x00, b"abc"), None),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ] {
            for length in 0..bytes.len() {
                assert_eq!(
                    parse(&bytes[..length]),
                    Parsed::More,
                    "{:?}",
                    String::from_utf8_lossy(&bytes[..length])
                );
            }
            assert_eq!(parse(&bytes), header(&bytes, source));
            assert_eq!(parse(&[&bytes[..], b"GET / HTTP/1.1\r\n"].concat()), header(&bytes, source));
        }
    }

    #[test]
    fn what_is_no_header_is_told_from_what_is_malformed() {
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0\r\n",
            b"PROXX",
            b"\r\n\r\n\0\r\nQUIT\r",
            b"\x16\x03\x01",
            b"proxy ",
        ] {
            assert_eq!(parse(other), Parsed::Other, "{:?}", String::from_utf8_lossy(other));
        }
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat();
        for bad in [
            &b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\n"[..],
            b"PROXY TCP4 192.0.2.1 10.0.0.1 8080\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80 9\r\n",
            b"PROXY TCP4  192.0.2.1 10.0.0.1 8080 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80 \r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 65536 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 +1 80\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 08 80\r\n",
            b"PROXY TCP4 192.0.2.01 10.0.0.1 8 80\r\n",
            b"PROXY TCP4 ::1 ::1 8 80\r\n",
            b"PROXY TCP6 192.0.2.1 10.0.0.1 8 80\r\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 8 80\r\n",
            b"PROXY \r\n",
            b"PROXY \xff\r\n",
            &long,
            &version_2(0x11, 0x11, &[0; 12]),
            &version_2(0x22, 0x11, &[0; 12]),
            &version_2(0x21, 0x11, &[0; 11]),
            &version_2(0x21, 0x21, &[0; 35]),
            &version_2(0x21, 0x41, &[0; 36]),
            &version_2(0x21, 0x11, &[0; 4081]),
        ] {
            assert_eq!(parse(bad), Parsed::Malformed, "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
