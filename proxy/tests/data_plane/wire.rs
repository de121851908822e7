//! Byte-level tools: a backend that records its requests, and HTTP/2 frames.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::Backend;

/// A backend that parses strictly, and records the requests.
pub(crate) struct Recorder {
    pub(crate) backend: Backend,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A complete request as the backend got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Method and target.
    pub(crate) line: String,
    /// The head, lower-case, with its line ends.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Recorder {
    pub(crate) fn start() -> Self {
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let kept = Arc::clone(&seen);
        let backend = Backend::raw(move |mut stream| {
            let seen = Arc::clone(&kept);
            async move {
                let mut bytes = Vec::new();
                loop {
                    let request = loop {
                        match read_request(&bytes) {
                            Ok(Some(found)) => break Some(found),
                            Ok(None) => {}
                            Err(wrong) => {
                                let line = format!("malformed: {wrong}");
                                seen.lock().unwrap().push(Seen {
                                    line,
                                    head: String::new(),
                                    body: String::new(),
                                });
                                return;
                            }
                        }
                        let mut part = [0; 4096];
                        match stream.read(&mut part).await {
                            Ok(read @ 1..) => bytes.extend_from_slice(&part[..read]),
                            Ok(0) | Err(_) => break None,
                        }
                    };
                    let Some((request, length)) = request else { return };
                    bytes.drain(..length);
                    seen.lock().unwrap().push(request);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                        return;
                    }
                }
            }
        });
        Self { backend, seen }
    }

    /// Takes the requests since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// Parses the first request in `bytes`, if it is complete, and returns its length. It accepts only what RFC 9112 has a
/// sender write: leniency here would hide errors of the proxy.
fn read_request(bytes: &[u8]) -> Result<Option<(Seen, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..end + 2]).into_owned();
    let mut lines = head.split_terminator("\r\n");
    let first = lines.next().unwrap_or_default();
    let words: Vec<_> = first.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { return Err(format!("request line {first:?}")) };
    if target.bytes().any(|b| b <= b' ' || b == 0x7f) || !(target.starts_with('/') || target == "*") {
        return Err(format!("target {target:?}"));
    }
    let mut length = None;
    let mut chunked = false;
    let mut hosts = 0;
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or_else(|| format!("line {line:?}"))?;
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) || value.contains(['\r', '\n', '\0']) {
            return Err(format!("line {line:?}"));
        }
        match name {
            "host" => hosts += 1,
            "content-length" if length.is_none() => {
                length = Some(value.parse::<usize>().map_err(|_| format!("length {value:?}"))?);
            }
            "transfer-encoding" if value == "chunked" && !chunked => chunked = true,
            "content-length" | "transfer-encoding" => return Err(format!("framed twice: {head:?}")),
            _ => {}
        }
    }
    if hosts != 1 || chunked && length.is_some() {
        return Err(format!("{hosts} hosts, framing {chunked} {length:?}: {head:?}"));
    }
    let mut at = end + 4;
    let mut body = Vec::new();
    if chunked {
        loop {
            let Some(line) = bytes[at..].windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
            let text = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
            let size = usize::from_str_radix(&text, 16).map_err(|_| format!("chunk {text:?}"))?;
            at += line + 2;
            if size == 0 {
                break;
            }
            let Some(data) = bytes.get(at..at + size) else { return Ok(None) };
            body.extend_from_slice(data);
            at += size;
            match bytes.get(at..at + 2) {
                Some(b"\r\n") => at += 2,
                Some(_) => return Err("no line end behind a chunk".to_owned()),
                None => return Ok(None),
            }
        }
        // Trailers are recorded with the body.
        loop {
            let Some(line) = bytes[at..].windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
            let text = bytes[at..at + line].to_vec();
            at += line + 2;
            if text.is_empty() {
                break;
            }
            body.push(b'|');
            body.extend_from_slice(&text);
        }
    } else if let Some(length) = length {
        let Some(data) = bytes.get(at..at + length) else { return Ok(None) };
        body.extend_from_slice(data);
        at += length;
    }
    let line = format!("{method} {target}");
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some((Seen { line, head: head.to_lowercase(), body }, at)))
}

/// An HTTP/2 client that sends frames unchanged.
pub(crate) struct Frames {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

impl Frames {
    /// Connects, and sends the preface with `settings`, which are pairs of identifier and value.
    pub(crate) async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Self { stream, buffer: Vec::new() };
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        frames.send(&frame(SETTINGS, 0, 0, &payload)).await;
        frames
    }

    /// Sends `bytes`; returns true if the proxy still takes them.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// The next frame; `None`: the proxy has closed. Settings are acknowledged and skipped.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            while let Some(frame) = self.parse() {
                if frame.kind == SETTINGS {
                    if frame.flags & ACK == 0 {
                        self.send(&self::frame(SETTINGS, ACK, 0, &[])).await;
                    }
                    continue;
                }
                return Some(frame);
            }
            let mut part = vec![0; 64 << 10];
            match self.stream.read(&mut part).await {
                Ok(read @ 1..) => self.buffer.extend_from_slice(&part[..read]),
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// The next frame that arrives within `time`; `None`: none did, or the proxy has closed.
    pub(crate) async fn next_within(&mut self, time: Duration) -> Option<Frame> {
        tokio::time::timeout(time, self.next()).await.ok().flatten()
    }

    fn parse(&mut self) -> Option<Frame> {
        let length = usize::try_from(u32::from_be_bytes([
            0,
            *self.buffer.first()?,
            *self.buffer.get(1)?,
            *self.buffer.get(2)?,
        ]))
        .ok()?;
        if self.buffer.len() < 9 + length {
            return None;
        }
        let bytes: Vec<u8> = self.buffer.drain(..9 + length).collect();
        Some(Frame {
            kind: bytes[3],
            flags: bytes[4],
            stream: u32::from_be_bytes(bytes[5..9].try_into().unwrap()) & 0x7fff_ffff,
            payload: bytes[9..].to_vec(),
        })
    }
}

/// The bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Fields as literals that enter no table (RFC 7541, section 6.2.2).
pub(crate) fn literals<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            let mut rest = text.len();
            if rest < 127 {
                block.push(rest as u8);
            } else {
                block.push(127);
                rest -= 127;
                while rest >= 128 {
                    block.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                block.push(rest as u8);
            }
            block.extend_from_slice(text);
        }
    }
    block
}

/// A complete `GET /` on `stream`.
pub(crate) fn get(stream: u32) -> Vec<u8> {
    let block = literals(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")]);
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
}
