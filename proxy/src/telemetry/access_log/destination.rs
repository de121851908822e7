//! Where the lines of the access log go.

use std::path::PathBuf;
use std::str::FromStr;

/// The destination of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Off,
    Stdout,
    File(PathBuf),
    Syslog(SyslogAddress),
}

/// The address of a syslog collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogAddress {
    Udp(HostPort),
    Tcp(HostPort),
    /// A socket of datagrams, or else of streams.
    Unix(PathBuf),
}

/// A name or an IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// The longest path of a Unix socket in bytes: `sun_path` of unix(7), with the zero at its end.
const MAX_SOCKET_PATH: usize = 107;

impl FromStr for Destination {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(match s {
            "off" => Self::Off,
            "stdout" => Self::Stdout,
            _ => match s.strip_prefix("syslog:") {
                Some(address) => Self::Syslog(address.parse()?),
                // A word that means something elsewhere must not become a file of that name.
                None if !s.contains(['/', '.']) => {
                    return Err(format!(
                        "{s:?} is neither stdout nor off, and no address of syslog; a file in the current directory is ./{s}"
                    ));
                }
                None => Self::File(s.into()),
            },
        })
    }
}

impl FromStr for SyslogAddress {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if let Some(address) = s.strip_prefix("udp://") {
            return address.parse().map(Self::Udp);
        }
        if let Some(address) = s.strip_prefix("tcp://") {
            return address.parse().map(Self::Tcp);
        }
        match s.strip_prefix("unix:") {
            Some("") => Err("syslog:unix: needs the path of a socket, like syslog:unix:/dev/log".to_owned()),
            Some(path) if path.len() > MAX_SOCKET_PATH => {
                Err(format!("the path of a Unix socket has at most {MAX_SOCKET_PATH} bytes"))
            }
            Some(path) => Ok(Self::Unix(path.into())),
            None => Err(format!(
                "{s:?} is no address of syslog: write syslog:udp://HOST:PORT, syslog:tcp://HOST:PORT or syslog:unix:PATH"
            )),
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{s:?} is not HOST:PORT, like logs.example:514 or [2001:db8::1]:514");
        let (host, port) = s.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?.to_string(),
            None => host.to_owned(),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || host.len() > 253 || bare.is_none() && !host.chars().all(is_name) {
            return Err(wrong());
        }
        Ok(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read() {
        let at = |host: &str| HostPort { host: host.into(), port: 514 };
        for (text, expected) in [
            ("off", Destination::Off),
            ("stdout", Destination::Stdout),
            ("/var/log/access.log", Destination::File("/var/log/access.log".into())),
            ("access.log", Destination::File("access.log".into())),
            ("./syslog:x", Destination::File("./syslog:x".into())),
            ("syslog:udp://logs.example:514", Destination::Syslog(SyslogAddress::Udp(at("logs.example")))),
            ("syslog:tcp://192.0.2.1:514", Destination::Syslog(SyslogAddress::Tcp(at("192.0.2.1")))),
            ("syslog:tcp://[2001:db8::1]:514", Destination::Syslog(SyslogAddress::Tcp(at("2001:db8::1")))),
            ("syslog:unix:/dev/log", Destination::Syslog(SyslogAddress::Unix("/dev/log".into()))),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for (text, reason) in [
            ("stderr", "a file in the current directory is ./stderr"),
            ("none", "is neither stdout nor off"),
            ("syslog:", "is no address of syslog"),
            ("syslog:logs.example:514", "is no address of syslog"),
            ("syslog:udp://logs.example", "is not HOST:PORT"),
            ("syslog:udp://:514", "is not HOST:PORT"),
            ("syslog:udp://logs.example:0", "is not HOST:PORT"),
            ("syslog:tcp://2001:db8::1:514", "is not HOST:PORT"),
            ("syslog:tcp://[x]:514", "is not HOST:PORT"),
            ("syslog:tcp://a/b:514", "is not HOST:PORT"),
            ("syslog:unix:", "needs the path of a socket"),
            (&format!("syslog:unix:/{}", "x".repeat(107)), "at most 107 bytes"),
        ] {
            let error = text.parse::<Destination>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
