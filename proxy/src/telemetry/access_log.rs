//! The access log: a JSON object on a line for each request.
//!
//! Workers write lines into a buffer of their own, and hand over whole buffers to one thread, which writes them and gives
//! them back. When that thread does not keep up, buffers are dropped and their lines counted: a slow disk must not slow
//! requests.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::error;

use super::WorkerStats;
use crate::args::AccessLog;

/// A request, as the log tells of it. Empty text: there is none.
pub struct Entry<'a> {
    /// When its head had come, since 1970.
    pub time: Duration,
    pub request_id: &'a [u8],
    pub trace_id: &'a [u8],
    pub client: &'a [u8],
    pub head: &'a Head,
    pub status: u16,
    pub flags: &'a str,
    pub route: &'a str,
    pub upstream: &'a str,
    /// Why the target did not answer.
    pub upstream_error: &'a str,
    pub target: &'a str,
    pub attempts: u8,
    pub duration: Duration,
    pub upstream_duration: Option<Duration>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub consumer: &'a str,
    pub revision: u64,
}

/// What a line says of a request's head. Written when it has come, for holding on to the head would cost more.
#[derive(Debug, Default)]
pub struct Head {
    text: Vec<u8>,
    /// Where in `text` the user agent begins.
    user_agent: usize,
}

/// Where workers send buffers, and get empty ones.
#[derive(Debug, Clone)]
pub struct Sender {
    full: SyncSender<Vec<u8>>,
    written: Arc<Mutex<Vec<Vec<u8>>>>,
    reopen: Arc<AtomicBool>,
}

/// One worker's end of the log.
pub struct Log {
    buffer: Rc<RefCell<Buffer>>,
    /// The buffer is not empty any more.
    begun: Rc<Notify>,
}

struct Buffer {
    bytes: Vec<u8>,
    lines: u64,
    clock: Clock,
    sender: Sender,
}

/// The text of the last millisecond that was asked for.
struct Clock {
    millis: u64,
    text: [u8; 24],
}

/// A buffer is handed over when it has this size, bytes, or [`FLUSH`] after its first line. The kernel takes large pieces at
/// half the cost of small ones.
const BUFFER: usize = 256 << 10;
const FLUSH: Duration = Duration::from_millis(200);

/// Buffers that may wait for the writer; with all of them 16 MiB.
const QUEUE: usize = 64;

/// Written buffers that are kept to be used again: fresh memory would cost a page fault for every ten lines.
const KEPT: usize = 16;

/// Starts the writer; `None`: there is no access log. The thread ends when no sender is left, and then the log is written.
pub fn start(log: &AccessLog) -> io::Result<Option<(Sender, std::thread::JoinHandle<()>)>> {
    if *log == AccessLog::Off {
        return Ok(None);
    }
    let log = log.clone();
    let open = move || -> io::Result<Box<dyn Write + Send>> {
        Ok(match &log {
            AccessLog::Off => Box::new(io::sink()),
            AccessLog::Stdout => Box::new(io::stdout()),
            AccessLog::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        })
    };
    let output = open()?;
    let (sender, receiver) = channel(QUEUE);
    let (written, reopen) = (Arc::clone(&sender.written), Arc::clone(&sender.reopen));
    let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
        write_all(&receiver, &written, output, || reopen.swap(false, Ordering::Relaxed).then(&open));
    })?;
    Ok(Some((sender, thread)))
}

/// The two ends: for the workers, and for who writes; at most `capacity` buffers are on their way.
pub fn channel(capacity: usize) -> (Sender, Receiver<Vec<u8>>) {
    let (full, receiver) = sync_channel(capacity);
    (Sender { full, written: Arc::default(), reopen: Arc::default() }, receiver)
}

fn write_all(
    receiver: &Receiver<Vec<u8>>,
    written: &Mutex<Vec<Vec<u8>>>,
    mut output: Box<dyn Write + Send>,
    reopened: impl Fn() -> Option<io::Result<Box<dyn Write + Send>>>,
) {
    let mut failed = false;
    for mut buffer in receiver {
        match reopened() {
            None => {}
            Some(Ok(anew)) => output = anew,
            Some(Err(error)) => error!(%error, "cannot open the access log anew; the old one is written on"),
        }
        match output.write_all(&buffer).and_then(|()| output.flush()) {
            Ok(()) => failed = false,
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    error!(%error, "cannot write the access log");
                }
            }
        }
        buffer.clear();
        if let Ok(mut written) = written.lock()
            && written.len() < KEPT
        {
            written.push(buffer);
        }
    }
}

impl Sender {
    /// To be set when somebody has moved the file away: it is opened anew before the next lines are written.
    pub fn reopening(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.reopen)
    }

    /// An empty buffer. Waits for nobody.
    fn buffer(&self) -> Vec<u8> {
        let kept = self.written.try_lock().ok().and_then(|mut written| written.pop());
        kept.unwrap_or_else(|| Vec::with_capacity(BUFFER + 1024))
    }
}

impl Drop for Buffer {
    /// What ends with its worker is told even so.
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            let _ = self.sender.full.try_send(std::mem::take(&mut self.bytes));
        }
    }
}

impl Log {
    pub fn new(sender: Sender) -> Self {
        let clock = Clock { millis: u64::MAX, text: *b"1970-01-01T00:00:00.000Z" };
        let buffer = Buffer { bytes: sender.buffer(), lines: 0, clock, sender };
        Self { buffer: Rc::new(RefCell::new(buffer)), begun: Rc::default() }
    }

    /// Adds a line.
    pub fn write(&self, stats: &WorkerStats, entry: &Entry<'_>) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.bytes.is_empty() {
            self.begun.notify_one();
        }
        buffer.line(entry);
        if buffer.bytes.len() >= BUFFER {
            buffer.hand_over(stats);
        }
    }

    /// Hands over what is there.
    pub fn flush(&self, stats: &WorkerStats) {
        self.buffer.borrow_mut().hand_over(stats);
    }

    /// Hands over what has waited long enough, for ever.
    pub fn flusher(&self, stats: Arc<WorkerStats>) -> impl Future<Output = ()> + 'static {
        let (buffer, begun) = (Rc::clone(&self.buffer), Rc::clone(&self.begun));
        async move {
            loop {
                begun.notified().await;
                tokio::time::sleep(FLUSH).await;
                buffer.borrow_mut().hand_over(&stats);
            }
        }
    }
}

impl Head {
    /// In `memory`, which is cleared. Empty text: there is none. The path comes without the query, which may hold secrets.
    #[inline]
    pub fn new(
        mut memory: Vec<u8>,
        method: &str,
        host: &[u8],
        path: &str,
        protocol: &str,
        user_agent: &[u8],
    ) -> Self {
        memory.clear();
        plain(&mut memory, "\",\"method\":\"", method.as_bytes());
        text(&mut memory, "\",\"host\":\"", host);
        text(&mut memory, "\",\"path\":\"", path.as_bytes());
        plain(&mut memory, "\",\"protocol\":\"", protocol.as_bytes());
        let at = memory.len();
        text(&mut memory, "\",\"user_agent\":\"", user_agent);
        Self { text: memory, user_agent: at }
    }

    /// Its memory, for the next.
    pub fn into_memory(self) -> Vec<u8> {
        self.text
    }
}

impl Buffer {
    fn hand_over(&mut self, stats: &WorkerStats) {
        if self.bytes.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        let bytes = std::mem::replace(&mut self.bytes, self.sender.buffer());
        if let Err(TrySendError::Full(mut bytes) | TrySendError::Disconnected(mut bytes)) =
            self.sender.full.try_send(bytes)
        {
            stats.log_dropped.add(lines);
            bytes.clear();
            self.bytes = bytes;
        }
    }

    fn line(&mut self, entry: &Entry<'_>) {
        self.lines += 1;
        let out = &mut self.bytes;
        out.extend_from_slice(b"{\"time\":\"");
        out.extend_from_slice(self.clock.text(entry.time));
        plain(out, "\",\"request_id\":\"", entry.request_id);
        plain(out, "\",\"trace_id\":\"", entry.trace_id);
        plain(out, "\",\"client\":\"", entry.client);
        let (request, user_agent) = entry.head.text.split_at(entry.head.user_agent);
        out.extend_from_slice(request);
        number(out, "\",\"status\":", entry.status.into());
        plain(out, ",\"flags\":\"", entry.flags.as_bytes());
        plain(out, "\",\"route\":\"", entry.route.as_bytes());
        plain(out, "\",\"upstream\":\"", entry.upstream.as_bytes());
        plain(out, "\",\"upstream_error\":\"", entry.upstream_error.as_bytes());
        plain(out, "\",\"target\":\"", entry.target.as_bytes());
        number(out, "\",\"attempts\":", entry.attempts.into());
        millis(out, ",\"duration_ms\":", entry.duration);
        match entry.upstream_duration {
            Some(duration) => millis(out, ",\"upstream_ms\":", duration),
            None => out.extend_from_slice(b",\"upstream_ms\":null"),
        }
        number(out, ",\"bytes_in\":", entry.bytes_in);
        number(out, ",\"bytes_out\":", entry.bytes_out);
        plain(out, ",\"consumer\":\"", entry.consumer.as_bytes());
        out.extend_from_slice(user_agent);
        number(out, "\",\"revision\":", entry.revision);
        out.extend_from_slice(b"}\n");
    }
}

impl Clock {
    /// RFC 3339, to the millisecond.
    fn text(&mut self, time: Duration) -> &[u8; 24] {
        let millis = time.as_millis() as u64;
        if millis != self.millis {
            if millis / 1000 != self.millis / 1000 {
                let (year, month, day) = civil(millis / 86_400_000);
                let second = millis / 1000 % 86_400;
                digits(&mut self.text, 0, 4, year);
                digits(&mut self.text, 5, 2, month);
                digits(&mut self.text, 8, 2, day);
                digits(&mut self.text, 11, 2, second / 3600);
                digits(&mut self.text, 14, 2, second / 60 % 60);
                digits(&mut self.text, 17, 2, second % 60);
            }
            digits(&mut self.text, 20, 3, millis % 1000);
            self.millis = millis;
        }
        &self.text
    }
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn digits(text: &mut [u8; 24], at: usize, len: usize, mut value: u64) {
    for place in text.iter_mut().skip(at).take(len).rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// What is made or checked here: names, methods, addresses, identifiers. `key` has the quotation marks around it, that of the
/// value before it and that of this one.
#[inline]
fn plain(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(value);
}

/// What a client says.
#[inline]
fn text(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend_from_slice(key.as_bytes());
    // Without leaving early the compiler looks at many bytes at a time.
    let special = value.iter().fold(false, |special, byte| {
        special | (*byte < 0x20) | (*byte >= 0x7f) | (*byte == b'"') | (*byte == b'\\')
    });
    if special {
        escape(out, &String::from_utf8_lossy(value));
    } else {
        out.extend_from_slice(value);
    }
}

#[cold]
fn escape(out: &mut Vec<u8>, value: &str) {
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            '\0'..'\x20' | '\x7f' => {
                // Writing to a vector does not fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

fn number(out: &mut Vec<u8>, key: &str, value: u64) {
    out.extend_from_slice(key.as_bytes());
    push_digits(out, value);
}

/// Milliseconds to the microsecond.
fn millis(out: &mut Vec<u8>, key: &str, duration: Duration) {
    let micros = duration.as_micros() as u64;
    number(out, key, micros / 1000);
    let rest = micros % 1000;
    out.extend_from_slice(&[
        b'.',
        b'0' + (rest / 100) as u8,
        b'0' + (rest / 10 % 10) as u8,
        b'0' + (rest % 10) as u8,
    ]);
}

fn push_digits(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut first = digits.len();
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        first = index;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(first..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head::new(Vec::new(), "GET", b"a.example", "/x", "HTTP/1.1", b"say \"hi\" \\ \x01\xff\xc3\xa4")
    }

    fn entry(head: &Head) -> Entry<'_> {
        Entry {
            time: Duration::from_millis(1_767_225_600_042),
            request_id: b"id-1",
            trace_id: b"",
            client: b"192.0.2.1",
            head,
            status: 200,
            flags: "",
            route: "users",
            upstream: "u",
            upstream_error: "",
            target: "10.0.0.1:80",
            attempts: 1,
            duration: Duration::from_micros(1_234_567),
            upstream_duration: Some(Duration::from_micros(7)),
            bytes_in: 0,
            bytes_out: u64::MAX,
            consumer: "alice",
            revision: 7,
        }
    }

    #[test]
    fn a_line_is_json_with_the_documented_fields() {
        let (sender, receiver) = channel(1);
        let log = Log::new(sender);
        log.write(&WorkerStats::default(), &entry(&head()));
        log.flush(&WorkerStats::default());
        let bytes = receiver.try_recv().unwrap();
        let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let expected = serde_json::json!({
            "time": "2026-01-01T00:00:00.042Z", "request_id": "id-1", "trace_id": "", "client": "192.0.2.1",
            "method": "GET", "host": "a.example", "path": "/x", "protocol": "HTTP/1.1", "status": 200, "flags": "",
            "route": "users", "upstream": "u", "upstream_error": "", "target": "10.0.0.1:80", "attempts": 1, "duration_ms": 1234.567,
            "upstream_ms": 0.007, "bytes_in": 0, "bytes_out": u64::MAX, "consumer": "alice",
            "user_agent": "say \"hi\" \\ \u{1}\u{fffd}\u{e4}", "revision": 7,
        });
        assert_eq!(line, expected);
        assert_eq!(bytes.last(), Some(&b'\n'));
    }

    #[test]
    fn times_agree_with_a_calendar() {
        let mut clock = Clock { millis: u64::MAX, text: *b"1970-01-01T00:00:00.000Z" };
        for millis in [0, 951_782_399_999, 951_782_400_000, 1_709_164_800_001, 4_102_444_799_999] {
            let expected = jiff::Timestamp::from_millisecond(millis).unwrap();
            let text = std::str::from_utf8(clock.text(Duration::from_millis(millis as u64))).unwrap();
            assert_eq!(text.parse::<jiff::Timestamp>().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn lines_that_the_writer_does_not_take_are_counted() {
        let (sender, receiver) = channel(1);
        let log = Log::new(sender);
        let stats = WorkerStats::default();
        for _ in 0..3 {
            log.write(&stats, &entry(&head()));
            log.write(&stats, &entry(&head()));
            log.flush(&stats);
        }
        assert_eq!(stats.log_dropped.value(), 4);
        assert_eq!(receiver.try_iter().count(), 1);
    }
}
