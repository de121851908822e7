//! Lines as messages of syslog (RFC 5424), over UDP (RFC 5426) and TCP (octet counting of RFC 6587); and over Unix sockets in the local
//! form of RFC 3164 without a host name, as `syslog(3)` writes it. journald and rsyslog's imuxsock expect that form: of RFC 5424 they
//! would take the head for a part of the text. Receivers on Unix sockets of streams take a message for each line.
//!
//! Nothing here waits without a deadline, and nothing is kept for later: while there is no collector, lines are lost and counted, so that
//! the writer always takes the workers' buffers.

use std::io::{self, ErrorKind, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, SockAddr, Socket, Type};

use super::clock::{Clock, write_short_time};
use super::destination::SyslogAddress;
use super::lost::Lost;
use super::parts::bounded;
use super::resolve::Resolver;

/// The connection to a collector, which is made when there are lines.
#[derive(Debug)]
pub(super) struct Syslog {
    address: SyslogAddress,
    /// The part of a message's head after the time, by RFC 5424 and in the local form.
    origin: String,
    local_origin: String,
    link: Option<Link>,
    connected_at: Instant,
    /// The time before which no connection is made, and the pause before the next one.
    retry_at: Instant,
    pause: Duration,
    resolver: Resolver,
    clock: Clock,
    /// The head of each message of a buffer.
    head: Vec<u8>,
    /// Framed messages, and where each ends.
    framed: Vec<u8>,
    ends: Vec<usize>,
}

#[derive(Debug)]
enum Link {
    Udp(UdpSocket),
    Datagrams(UnixDatagram),
    Tcp(TcpStream),
    Stream(UnixStream),
}

/// The form of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// RFC 5424, one in a datagram.
    Datagram,
    /// The same, each after its length.
    Counted,
    /// The local form, one in a datagram.
    LocalDatagram,
    /// The same, each with a newline at its end.
    LocalLine,
}

/// The priority: facility 16 (local0), severity 6 (informational).
const PRIORITY: &str = "<134>";

/// The version of RFC 5424, which follows its priority.
const VERSION: &str = "1 ";

/// The largest datagram in bytes, head included; longer lines are cut. Receivers must take 480 and should take 2048 (RFC 5426, section
/// 3.2); the usual ones take 8 KiB.
pub(super) const MAX_DATAGRAM: usize = 8 << 10;

/// The time that a buffer may take, with making a connection; and the time for one address of a name.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after a failure, which doubles while connections fail soon.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A connection that lasts so long was a good one.
const GOOD: Duration = Duration::from_secs(10);

impl Syslog {
    pub(super) fn new(address: SyslogAddress) -> Self {
        let now = Instant::now();
        Self {
            address,
            origin: format!(" {} signalbox-proxy {} access - ", host_name(), std::process::id()),
            local_origin: format!(" signalbox-proxy[{}]: ", std::process::id()),
            link: None,
            connected_at: now,
            retry_at: now,
            pause: FIRST_PAUSE,
            resolver: Resolver::default(),
            clock: Clock::default(),
            head: Vec::new(),
            framed: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Sends the lines of a buffer.
    ///
    /// # Errors
    ///
    /// The lines that were not handed to the kernel. Lines that the kernel loses, because the collector breaks the connection, are not
    /// known.
    pub(super) fn write(&mut self, buffer: &[u8]) -> Result<(), Lost> {
        let deadline = Instant::now() + PATIENCE;
        let mut sent = 0;
        // A connection that was fine may have ended since; then one new one is tried at once.
        for is_last in [false, true] {
            let result = self.connected(deadline).and_then(|()| self.send(buffer, &mut sent, deadline));
            let Err(error) = result else { return Ok(()) };
            let was_good = self.drop_link();
            if is_last || !was_good || Instant::now() >= deadline {
                if Instant::now() >= self.retry_at {
                    self.retry_at = Instant::now() + self.pause;
                    self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                }
                let lines = lines(buffer).count().saturating_sub(sent) as u64;
                return Err(Lost { lines, error });
            }
        }
        Ok(())
    }

    /// Drops the connection. True if there was one that lasted long enough to be good; then the next pause is a short one.
    fn drop_link(&mut self) -> bool {
        let was_good = self.link.take().is_some() && self.connected_at.elapsed() >= GOOD;
        if was_good {
            self.pause = FIRST_PAUSE;
        }
        was_good
    }

    /// Frames all lines of a buffer as messages.
    fn frame(&mut self, buffer: &[u8], framing: Framing) {
        self.framed.clear();
        self.ends.clear();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.write_head(now, framing);
        let room = match framing {
            Framing::Datagram | Framing::LocalDatagram => MAX_DATAGRAM.saturating_sub(self.head.len()),
            Framing::Counted | Framing::LocalLine => usize::MAX,
        };
        for line in lines(buffer) {
            let line = bounded(line, room);
            if framing == Framing::Counted {
                // Writing to a vector does not fail.
                let _ = write!(self.framed, "{} ", self.head.len() + line.len());
            }
            self.framed.extend_from_slice(&self.head);
            self.framed.extend_from_slice(line);
            if framing == Framing::LocalLine {
                self.framed.push(b'\n');
            }
            self.ends.push(self.framed.len());
        }
    }

    fn write_head(&mut self, now: Duration, framing: Framing) {
        self.head.clear();
        self.head.extend_from_slice(PRIORITY.as_bytes());
        match framing {
            Framing::Datagram | Framing::Counted => {
                self.head.extend_from_slice(VERSION.as_bytes());
                self.head.extend_from_slice(self.clock.text(now));
                self.head.extend_from_slice(self.origin.as_bytes());
            }
            Framing::LocalDatagram | Framing::LocalLine => {
                write_short_time(&mut self.head, now);
                self.head.extend_from_slice(self.local_origin.as_bytes());
            }
        }
    }

    /// Makes a connection if there is none, or the collector has closed it.
    fn connected(&mut self, deadline: Instant) -> io::Result<()> {
        if self.link.as_ref().is_some_and(|link| !link.is_closed()) {
            return Ok(());
        }
        self.drop_link();
        if Instant::now() < self.retry_at {
            return Err(io::Error::new(
                ErrorKind::NotConnected,
                "the collector did not take lines a moment ago",
            ));
        }
        let link = match &self.address {
            SyslogAddress::Udp(to) => {
                let addresses = self.resolver.resolve(to, deadline)?;
                first(&addresses, |address| {
                    let own: SocketAddr =
                        if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
                    let socket = UdpSocket::bind(own)?;
                    socket.connect(address)?;
                    Ok(Link::Udp(socket))
                })?
            }
            SyslogAddress::Tcp(to) => {
                let addresses = self.resolver.resolve(to, deadline)?;
                first(&addresses, |address| {
                    let timeout = remaining(deadline)?.min(CONNECT_TIMEOUT);
                    TcpStream::connect_timeout(&address, timeout).map(Link::Tcp)
                })?
            }
            SyslogAddress::Unix(path) => connect_unix(path, deadline)?,
        };
        self.link = Some(link);
        self.connected_at = Instant::now();
        Ok(())
    }

    /// Sends messages from number `sent` on, and counts those that are sent.
    fn send(&mut self, buffer: &[u8], sent: &mut usize, deadline: Instant) -> io::Result<()> {
        let framing = self.link.as_ref().ok_or(ErrorKind::NotConnected)?.framing();
        self.frame(buffer, framing);
        let Some(link) = &mut self.link else { return Err(ErrorKind::NotConnected.into()) };
        let begin = sent.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        match link {
            Link::Udp(socket) => {
                socket.set_write_timeout(Some(PATIENCE))?;
                each(&self.framed, &self.ends, begin, sent, deadline, |message| socket.send(message))
            }
            Link::Datagrams(socket) => each(&self.framed, &self.ends, begin, sent, deadline, |message| {
                socket.set_write_timeout(Some(remaining(deadline)?))?;
                socket.send(message)
            }),
            Link::Tcp(stream) => stream_all(&self.framed, &self.ends, begin, sent, |rest| {
                stream.set_write_timeout(Some(remaining(deadline)?))?;
                stream.write(rest)
            }),
            Link::Stream(stream) => stream_all(&self.framed, &self.ends, begin, sent, |rest| {
                stream.set_write_timeout(Some(remaining(deadline)?))?;
                stream.write(rest)
            }),
        }
    }
}

fn lines(buffer: &[u8]) -> impl Iterator<Item = &[u8]> {
    buffer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// Sends each message by itself.
fn each(
    framed: &[u8],
    ends: &[usize],
    mut begin: usize,
    sent: &mut usize,
    deadline: Instant,
    mut send: impl FnMut(&[u8]) -> io::Result<usize>,
) -> io::Result<()> {
    while let Some(end) = ends.get(*sent) {
        remaining(deadline)?;
        match send(framed.get(begin..*end).unwrap_or_default()) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(in_time(error)),
        }
        begin = *end;
        *sent += 1;
    }
    Ok(())
}

/// Sends all messages in as large pieces as the kernel takes.
fn stream_all(
    framed: &[u8],
    ends: &[usize],
    mut begin: usize,
    sent: &mut usize,
    mut write: impl FnMut(&[u8]) -> io::Result<usize>,
) -> io::Result<()> {
    while let Some(rest) = framed.get(begin..).filter(|rest| !rest.is_empty()) {
        match write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => begin += written,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(in_time(error)),
        }
        *sent += ends.iter().skip(*sent).take_while(|end| **end <= begin).count();
    }
    Ok(())
}

impl Link {
    fn framing(&self) -> Framing {
        match self {
            Self::Udp(_) => Framing::Datagram,
            Self::Tcp(_) => Framing::Counted,
            Self::Datagrams(_) => Framing::LocalDatagram,
            Self::Stream(_) => Framing::LocalLine,
        }
    }

    /// True if the collector has closed the connection. Bytes from it are dropped: nothing is asked of it.
    fn is_closed(&self) -> bool {
        let has_ended = match self {
            Self::Udp(_) | Self::Datagrams(_) => return false,
            Self::Tcp(stream) => has_ended(&socket2::SockRef::from(stream)),
            Self::Stream(stream) => has_ended(&socket2::SockRef::from(stream)),
        };
        // A connection that cannot be read is no good.
        has_ended.unwrap_or(true)
    }
}

/// Reads what is there, up to some KiB. True if it is the end.
fn has_ended(socket: &socket2::SockRef<'_>) -> io::Result<bool> {
    socket.set_nonblocking(true)?;
    let mut result = Ok(false);
    for _ in 0..16 {
        result = socket.recv(&mut [MaybeUninit::uninit(); 512]).map(|read| read == 0);
        if !matches!(result, Ok(false)) {
            break;
        }
    }
    socket.set_nonblocking(false)?;
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        other => other,
    }
}

/// Connects to the first address that lets it.
fn first<T>(addresses: &[SocketAddr], mut connect: impl FnMut(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match connect(*address) {
            Ok(link) => return Ok(link),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to a socket of datagrams, or else of streams.
fn connect_unix(path: &Path, deadline: Instant) -> io::Result<Link> {
    let socket = UnixDatagram::unbound()?;
    match socket.connect(path) {
        Ok(()) => Ok(Link::Datagrams(socket)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error()) => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // Without a timeout it would wait while the collector accepts nobody.
            socket.connect_timeout(&SockAddr::unix(path)?, remaining(deadline)?)?;
            Ok(Link::Stream(socket.into()))
        }
        Err(error) => Err(error),
    }
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(too_slow()) } else { Ok(left) }
}

/// The timeout of a socket looks like one that never waits.
fn in_time(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { too_slow() } else { error }
}

fn too_slow() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "the collector did not take the lines in time")
}

/// The name of this host (RFC 5424, section 6.2.4), or `-`.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(char::is_ascii_graphic).take(255).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::telemetry::access_log::clock::MONTHS;
    use crate::telemetry::access_log::destination::HostPort;

    fn loopback(port: u16) -> HostPort {
        HostPort { host: "localhost".to_owned(), port }
    }

    /// The head of a message without its time, and its text.
    fn split(message: &str) -> (String, &str) {
        let fields: Vec<_> = message.splitn(8, ' ').collect();
        let time = fields[1].parse::<jiff::Timestamp>().unwrap();
        assert!(time > jiff::Timestamp::UNIX_EPOCH, "{message}");
        assert_eq!(fields[4], std::process::id().to_string());
        (format!("{} {} {} {}", fields[0], fields[3], fields[5], fields[6]), fields[7])
    }

    const HEAD: &str = "<134>1 signalbox-proxy access -";

    /// The text of a message in the local form.
    fn split_local(message: &str) -> &str {
        let (head, text) = message.split_at("<134>Jan  2 03:04:05".len());
        let time = head.strip_prefix("<134>").unwrap();
        let (month, day, clock) = (&time[..3], &time[4..6], &time[7..]);
        assert!(MONTHS.contains(&month), "{message}");
        assert!((1..=31).contains(&day.trim_start().parse::<u8>().unwrap()), "{message}");
        let clock: Vec<u8> = clock.split(':').map(|part| part.parse().unwrap()).collect();
        assert!(matches!(*clock, [0..=23, 0..=59, 0..=59]), "{message}");
        text.strip_prefix(&format!(" signalbox-proxy[{}]: ", std::process::id())).unwrap()
    }

    /// Reads messages that begin with their lengths.
    fn read_counted(stream: &mut impl Read) -> String {
        let mut length = Vec::new();
        loop {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            if byte[0] == b' ' {
                break;
            }
            length.push(byte[0]);
        }
        let length: usize = std::str::from_utf8(&length).unwrap().parse().unwrap();
        let mut message = vec![0; length];
        stream.read_exact(&mut message).unwrap();
        String::from_utf8(message).unwrap()
    }

    #[test]
    fn datagrams_have_one_line_each_and_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let unix = UnixDatagram::bind(&path).unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        let long = "\u{e4}".repeat(MAX_DATAGRAM);
        let lines = format!("{{\"a\":1}}\n{long}\nlast\n");
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        unix.set_read_timeout(Some(PATIENCE)).unwrap();
        let receive = |is_udp: bool| {
            let mut bytes = vec![0; 2 * MAX_DATAGRAM];
            let length = if is_udp { udp.recv(&mut bytes) } else { unix.recv(&mut bytes) }.unwrap();
            bytes.truncate(length);
            String::from_utf8(bytes).unwrap()
        };
        for is_udp in [true, false] {
            let address = if is_udp {
                SyslogAddress::Udp(HostPort { host: "127.0.0.1".to_owned(), port })
            } else {
                SyslogAddress::Unix(path.clone())
            };
            Syslog::new(address).write(lines.as_bytes()).unwrap();
            let (first, cut, last) = (receive(is_udp), receive(is_udp), receive(is_udp));
            assert!((MAX_DATAGRAM - 1..=MAX_DATAGRAM).contains(&cut.len()), "{}", cut.len());
            let text = |message| if is_udp { split(message).1 } else { split_local(message) };
            if is_udp {
                assert_eq!(split(&first).0, HEAD);
            }
            assert_eq!((text(&first), text(&last)), ("{\"a\":1}", "last"));
            assert!(long.starts_with(text(&cut)));
        }
    }

    #[test]
    fn messages_over_tcp_begin_with_their_length() {
        let long = "x".repeat(3 * MAX_DATAGRAM);
        let lines = format!("one\n{long}\n");
        let check = |mut stream: TcpStream| {
            assert_eq!(split(&read_counted(&mut stream)), (HEAD.to_owned(), "one"));
            assert_eq!(split(&read_counted(&mut stream)).1, long);
        };
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut syslog = Syslog::new(SyslogAddress::Tcp(loopback(tcp.local_addr().unwrap().port())));
        syslog.write(lines.as_bytes()).unwrap();
        let mut stream = tcp.accept().unwrap().0;
        check(stream.try_clone().unwrap());
        // Bytes from a collector are ignored.
        stream.write_all(b"hello").unwrap();
        syslog.write(lines.as_bytes()).unwrap();
        check(stream);
        // It has closed the connection, and takes the next one.
        wait_until(|| syslog.link.as_ref().is_some_and(Link::is_closed));
        syslog.write(lines.as_bytes()).unwrap();
        check(tcp.accept().unwrap().0);
    }

    #[test]
    fn messages_over_a_unix_stream_are_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let long = "x".repeat(3 * MAX_DATAGRAM);
        let unix = UnixListener::bind(&path).unwrap();
        let mut syslog = Syslog::new(SyslogAddress::Unix(path));
        syslog.write(format!("one\n{long}\n").as_bytes()).unwrap();
        syslog.write(b"last\n").unwrap();
        let mut stream = unix.accept().unwrap().0;
        drop(syslog);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.ends_with('\n'));
        assert!(text.lines().map(split_local).eq(["one", &long, "last"]), "{text}");
    }

    #[test]
    fn a_good_connection_makes_the_next_pause_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for (age, expected) in [(GOOD, FIRST_PAUSE), (Duration::ZERO, LONGEST_PAUSE)] {
            let _ = std::fs::remove_file(&path);
            let unix = UnixListener::bind(&path).unwrap();
            let mut syslog = Syslog::new(SyslogAddress::Unix(path.clone()));
            // There was an outage before.
            syslog.pause = LONGEST_PAUSE;
            syslog.write(b"one\n").unwrap();
            drop(unix.accept().unwrap());
            drop(unix);
            wait_until(|| syslog.link.as_ref().is_some_and(Link::is_closed));
            // A connection that was made just now is no good one on a machine that is very busy either.
            syslog.connected_at = Instant::now().checked_sub(age).unwrap() + (GOOD - age);
            assert!(syslog.connected(Instant::now() + PATIENCE).is_err());
            assert_eq!(syslog.pause, expected);
        }
    }

    #[test]
    fn while_there_is_no_collector_lines_are_lost_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut syslog = Syslog::new(SyslogAddress::Unix(path.clone()));
        let lost = syslog.write(b"one\ntwo\n").unwrap_err();
        assert_eq!((lost.lines, lost.error.kind()), (2, ErrorKind::NotFound));
        for doublings in 1..=20 {
            assert_eq!(syslog.pause, (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE));
            assert!(syslog.retry_at <= Instant::now() + LONGEST_PAUSE);
            if doublings == 1 {
                // The pause does not wait.
                syslog.retry_at = Instant::now() + LONGEST_PAUSE;
                assert_eq!(syslog.write(b"one\n").unwrap_err().error.kind(), ErrorKind::NotConnected);
            }
            syslog.retry_at = Instant::now();
            assert_eq!(syslog.write(b"one\n").unwrap_err().lines, 1);
        }
        let unix = UnixDatagram::bind(&path).unwrap();
        syslog.retry_at = Instant::now();
        syslog.write(b"one\n").unwrap();
        assert!(unix.recv(&mut [0; 512]).is_ok());
    }

    #[test]
    fn a_line_that_was_sent_in_part_is_sent_again_as_a_whole() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut syslog = Syslog::new(SyslogAddress::Tcp(loopback(tcp.local_addr().unwrap().port())));
        let mut sent = 0;
        let deadline = Instant::now() + 10 * PATIENCE;
        syslog.connected(deadline).unwrap();
        let lines = "x".repeat(100) + "\n" + &"y".repeat(8 << 20) + "\nz\n";
        let first = tcp.accept().unwrap().0;
        let soon = Instant::now() + Duration::from_millis(500);
        assert_eq!(syslog.send(lines.as_bytes(), &mut sent, soon).unwrap_err().kind(), ErrorKind::TimedOut);
        // On a machine that is very busy, not even the first was sent.
        let before = sent;
        assert!(before < 2, "{before}");
        drop(first);
        syslog.link = None;
        syslog.connected(deadline).unwrap();
        let reader = std::thread::spawn(move || {
            let mut second = tcp.accept().unwrap().0;
            let messages = (before..3).map(|_| split(&read_counted(&mut second)).1.to_owned());
            messages.collect::<Vec<_>>()
        });
        syslog.send(lines.as_bytes(), &mut sent, deadline).unwrap();
        assert_eq!(sent, 3);
        let received = reader.join().unwrap();
        assert!(received.iter().eq(lines.lines().skip(before)), "{} of {}", received.len(), 3 - before);
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
