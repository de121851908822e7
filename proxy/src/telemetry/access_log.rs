//! The access log: one JSON object per line and request.
//!
//! Workers write lines into their own buffers, and pass full buffers to one thread, which writes them and returns
//! them. If that thread falls behind, buffers are dropped and their lines counted: a slow disk must not slow requests.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{error, info};

use super::counters::WorkerStats;

/// The destination of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    Stdout,
    File(PathBuf),
}

impl FromStr for AccessLog {
    type Err = std::convert::Infallible;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(match s {
            "off" => Self::Off,
            "stdout" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

/// The logged data of a request. An empty text stands for an absent value.
pub struct Entry<'a> {
    /// The time at which its head was complete, since 1970.
    pub time: Duration,
    pub request_id: &'a [u8],
    pub trace_id: &'a [u8],
    /// The id of the request's span, if that is exported.
    pub span_id: &'a [u8],
    pub client: &'a [u8],
    pub head: &'a Head,
    pub status: u16,
    pub flags: &'a str,
    pub route: &'a str,
    pub upstream: &'a str,
    /// The reason why the target did not answer.
    pub upstream_error: &'a str,
    pub target: &'a str,
    pub attempts: u8,
    pub duration: Duration,
    pub upstream_duration: Option<Duration>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub consumer: &'a str,
    /// The plugin that answered or failed.
    pub plugin: &'a str,
    /// The answers that plugins in shadow would have given. The field is left out where this is empty.
    pub shadow: &'a str,
    pub revision: u64,
}

/// The logged parts of a request's head. They are encoded when the head arrives, because holding the head would cost
/// more.
#[derive(Debug, Default)]
pub struct Head {
    text: Vec<u8>,
    /// The position in `text` at which the user agent begins.
    user_agent: usize,
}

/// The channels by which workers send full buffers, and get empty ones.
#[derive(Debug, Clone)]
pub struct Sender {
    full: SyncSender<Vec<u8>>,
    written: Arc<Mutex<Vec<Vec<u8>>>>,
    reopen: Arc<AtomicBool>,
    /// Lines that could not be written, and that no worker has counted yet.
    unwritten: Arc<AtomicU64>,
}

/// One worker's end of the log.
pub struct Log {
    buffer: Rc<RefCell<Buffer>>,
    /// Notified when the buffer is no longer empty.
    begun: Rc<Notify>,
}

struct Buffer {
    bytes: Vec<u8>,
    lines: u64,
    clock: Clock,
    sender: Sender,
}

/// The text of the last millisecond.
struct Clock {
    millis: u64,
    text: [u8; 24],
}

/// A buffer is sent at this size in bytes, or [`FLUSH`] after its first line. The kernel writes large pieces at half
/// the cost of small ones.
const BUFFER: usize = 256 << 10;
const FLUSH: Duration = Duration::from_millis(200);

/// The number of buffers that may wait for the writer; together 16 MiB.
const QUEUE: usize = 64;

/// The number of written buffers that are kept for reuse: fresh memory would cost a page fault for every ten lines.
const KEPT: usize = 16;

/// Starts the writer; `None` if there is no access log. The thread ends after the last sender is dropped and
/// everything is written.
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
    let (written, unwritten) = (Arc::clone(&sender.written), Arc::clone(&sender.unwritten));
    let reopen = Arc::clone(&sender.reopen);
    let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || {
        let reopened = || reopen.swap(false, Ordering::Relaxed).then(&open);
        write_all(&receiver, &written, &unwritten, output, reopened);
    })?;
    Ok(Some((sender, thread)))
}

/// Creates the workers' and the writer's end, with at most `capacity` buffers in transit.
pub fn channel(capacity: usize) -> (Sender, Receiver<Vec<u8>>) {
    let (full, receiver) = sync_channel(capacity);
    let (written, reopen, unwritten) = Default::default();
    (Sender { full, written, reopen, unwritten }, receiver)
}

fn write_all(
    receiver: &Receiver<Vec<u8>>,
    written: &Mutex<Vec<Vec<u8>>>,
    unwritten: &AtomicU64,
    mut output: Box<dyn Write + Send>,
    reopened: impl Fn() -> Option<io::Result<Box<dyn Write + Send>>>,
) {
    let (mut failed, mut partial) = (false, false);
    for mut buffer in receiver {
        match reopened() {
            None => {}
            Some(Ok(anew)) => {
                output = anew;
                partial = false;
            }
            Some(Err(error)) => {
                error!(%error, "cannot reopen the access log; lines still go to the old file");
            }
        }
        // A write that failed may have left a part of a line.
        let begun = if std::mem::take(&mut partial) { output.write_all(b"\n") } else { Ok(()) };
        match begun.and_then(|()| output.write_all(&buffer)).and_then(|()| output.flush()) {
            Ok(()) => {
                if std::mem::take(&mut failed) {
                    info!("the access log is written again");
                }
            }
            Err(error) => {
                let lines = buffer.iter().filter(|byte| **byte == b'\n').count();
                unwritten.fetch_add(lines as u64, Ordering::Relaxed);
                partial = true;
                if !std::mem::replace(&mut failed, true) {
                    error!(%error, "cannot write the access log; its lines are dropped and counted until it can be written");
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
    /// A flag to set after log rotation: the file is reopened before the next lines are written.
    pub fn reopening(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.reopen)
    }

    /// Returns an empty buffer without waiting.
    fn buffer(&self) -> Vec<u8> {
        let kept = self.written.try_lock().ok().and_then(|mut written| written.pop());
        kept.unwrap_or_else(|| Vec::with_capacity(BUFFER + 1024))
    }
}

impl Drop for Buffer {
    /// The last lines of a worker are written when it ends.
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

    /// Sends the buffered lines.
    pub fn flush(&self, stats: &WorkerStats) {
        self.buffer.borrow_mut().hand_over(stats);
    }

    /// Sends buffered lines after [`FLUSH`]; never returns.
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
    /// Encodes the head into `memory`, which is cleared. An empty text stands for an absent value. The path has no
    /// query, because that may hold secrets.
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

    /// Returns its memory, for the next head.
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
        if self.sender.unwritten.load(Ordering::Relaxed) > 0 {
            stats.log_dropped.add(self.sender.unwritten.swap(0, Ordering::Relaxed));
        }
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
        plain(out, "\",\"span_id\":\"", entry.span_id);
        let sampled: &[u8] = if entry.span_id.is_empty() { b"false" } else { b"true" };
        plain(out, "\",\"sampled\":", sampled);
        plain(out, ",\"client\":\"", entry.client);
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
        plain(out, "\",\"plugin\":\"", entry.plugin.as_bytes());
        if !entry.shadow.is_empty() {
            plain(out, "\",\"shadow\":\"", entry.shadow.as_bytes());
        }
        out.extend_from_slice(user_agent);
        number(out, "\",\"revision\":", entry.revision);
        out.extend_from_slice(b"}\n");
    }
}

impl Clock {
    /// Formats a time by RFC 3339, to the millisecond.
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

/// Writes values that need no escaping: names, methods, addresses, identifiers. `key` includes the closing quotation
/// mark of the value before it and the opening one of this value.
#[inline]
fn plain(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(value);
}

/// Writes a value of the client, escaped.
#[inline]
fn text(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend_from_slice(key.as_bytes());
    if has_special(value) {
        escape(out, &String::from_utf8_lossy(value));
    } else {
        out.extend_from_slice(value);
    }
}

/// True if a value must be escaped. Of a value that is no multiple of eight bytes, some bytes are compared twice.
#[inline]
fn has_special(value: &[u8]) -> bool {
    let is_special = |byte: &u8| (*byte < 0x20) | (*byte >= 0x7f) | (*byte == b'"') | (*byte == b'\\');
    match value.last_chunk::<8>() {
        Some(last) => value.as_chunks::<8>().0.iter().any(any_special) || any_special(last),
        None => value.iter().any(is_special),
    }
}

/// True if one of eight bytes must be escaped. They are compared in parallel (Sean Anderson, "Bit Twiddling Hacks").
#[inline]
fn any_special(eight: &[u8; 8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let word = u64::from_le_bytes(*eight);
    // The highest bit of a byte tells the result; the lowest byte with that bit is always right.
    let below = |word: u64, limit: u64| word.wrapping_sub(limit * ONES) & !word;
    let equal = |byte: u8| below(word ^ (u64::from(byte) * ONES), 1);
    let special = below(word, 0x20) | equal(b'"') | equal(b'\\') | word | word.wrapping_add(ONES);
    special & (0x80 * ONES) != 0
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

/// Writes a duration in milliseconds, to the microsecond.
fn millis(out: &mut Vec<u8>, key: &str, duration: Duration) {
    number(out, key, duration.as_secs() * 1000 + u64::from(duration.subsec_millis()));
    let rest = duration.subsec_micros() % 1000;
    out.extend_from_slice(&[
        b'.',
        b'0' + (rest / 100) as u8,
        b'0' + (rest / 10 % 10) as u8,
        b'0' + (rest % 10) as u8,
    ]);
}

fn push_digits(out: &mut Vec<u8>, mut value: u64) {
    if value < 10 {
        out.push(b'0' + value as u8);
        return;
    }
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
    use std::time::Instant;

    use super::*;

    fn head() -> Head {
        Head::new(Vec::new(), "GET", b"a.example", "/x", "HTTP/1.1", b"say \"hi\" \\ \x01\xff\xc3\xa4")
    }

    fn entry(head: &Head) -> Entry<'_> {
        Entry {
            time: Duration::from_millis(1_767_225_600_042),
            request_id: b"id-1",
            trace_id: b"",
            span_id: b"",
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
            plugin: "limit",
            shadow: "",
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
            "time": "2026-01-01T00:00:00.042Z", "request_id": "id-1", "trace_id": "", "span_id": "",
            "sampled": false, "client": "192.0.2.1",
            "method": "GET", "host": "a.example", "path": "/x", "protocol": "HTTP/1.1", "status": 200, "flags": "",
            "route": "users", "upstream": "u", "upstream_error": "", "target": "10.0.0.1:80", "attempts": 1, "duration_ms": 1234.567,
            "upstream_ms": 0.007, "bytes_in": 0, "bytes_out": u64::MAX, "consumer": "alice", "plugin": "limit",
            "user_agent": "say \"hi\" \\ \u{1}\u{fffd}\u{e4}", "revision": 7,
        });
        assert_eq!(line, expected);
        assert_eq!(bytes.last(), Some(&b'\n'));
        log.write(&WorkerStats::default(), &Entry { shadow: "limit:429", ..entry(&head()) });
        log.flush(&WorkerStats::default());
        let line: serde_json::Value = serde_json::from_slice(&receiver.try_recv().unwrap()).unwrap();
        assert_eq!((&line["shadow"], &line["revision"]), (&"limit:429".into(), &7.into()));
    }

    #[test]
    fn a_byte_to_be_escaped_is_found_at_any_place() {
        for length in 0..40 {
            let plain = vec![b' '; length];
            for byte in (b' '..=b'~').filter(|byte| !matches!(byte, b'"' | b'\\')) {
                assert!(!has_special(&vec![byte; length]), "{length} times {byte}");
            }
            for (place, byte) in
                (0..length).flat_map(|place| b"\x00\x1f\x7f\x80\xff\"\\".map(|byte| (place, byte)))
            {
                let mut value = plain.clone();
                value[place] = byte;
                assert!(has_special(&value), "{byte} at {place} of {length}");
            }
        }
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
    fn lines_that_cannot_be_written_are_counted_and_the_next_ones_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let (sender, thread) = start(&AccessLog::File(path.clone())).unwrap().unwrap();
        let (unwritten, reopen) = (Arc::clone(&sender.unwritten), sender.reopening());
        let (log, stats) = (Log::new(sender), WorkerStats::default());
        let write = || {
            log.write(&stats, &entry(&head()));
            log.flush(&stats);
        };
        write();
        let deadline = Instant::now() + Duration::from_secs(30);
        while unwritten.load(Ordering::Relaxed) == 0 {
            assert!(Instant::now() < deadline, "the lost line is not counted");
            std::thread::yield_now();
        }
        std::fs::remove_file(&path).unwrap();
        reopen.store(true, Ordering::Relaxed);
        write();
        assert_eq!(stats.log_dropped.value(), 1);
        drop(log);
        thread.join().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.len() == 1 && serde_json::from_str::<serde_json::Value>(lines[0]).is_ok(), "{text:?}");
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
