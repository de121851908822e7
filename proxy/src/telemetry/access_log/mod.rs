//! The access log: a line for each request.
//!
//! Workers write lines into their own buffers, and pass full buffers to one thread, which writes them and returns
//! them. If that thread falls behind, buffers are dropped and their lines counted: a slow disk must not slow requests.
//!
//! A listener without settings of its own has a line of [`json`] for each request, whose head is encoded when it arrives. With settings,
//! the [`parts`] of heads are copied, and only a line that is written is encoded, by [`listener_log`]'s decision, as [`json`] or [`text`].

mod clock;
mod destination;
mod digits;
mod entry;
mod json;
mod listener_log;
mod log;
mod lost;
mod parts;
mod queue;
mod redact;
mod resolve;
mod syslog;
mod text;
mod writer;

pub use destination::{Destination, HostPort, SyslogAddress};
pub use entry::Entry;
pub use json::Head;
pub use listener_log::ListenerLog;
pub use log::Log;
pub use parts::Parts;
pub use queue::{Sender, channel};
pub use redact::without_user;
pub use text::View;
pub use writer::start;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::telemetry::WorkerStats;

    fn head() -> Head {
        Head::new(Vec::new(), "GET", b"a.example", "/x", "HTTP/1.1", b"say \"hi\" \\ \x01\xff\xc3\xa4")
    }

    fn entry() -> Entry<'static> {
        Entry {
            time: Duration::from_millis(1_767_225_600_042),
            request_id: b"id-1",
            client: b"192.0.2.1",
            status: 200,
            route: "users",
            upstream: "u",
            target: "10.0.0.1:80",
            attempts: 1,
            duration: Duration::from_micros(1_234_567),
            upstream_duration: Some(Duration::from_micros(7)),
            bytes_out: u64::MAX,
            consumer: "alice",
            plugin: "limit",
            revision: 7,
            ..Entry::default()
        }
    }

    #[test]
    fn a_line_is_json_with_the_documented_fields() {
        let (sender, receiver) = channel(1);
        let log = Log::new(sender);
        log.write(&WorkerStats::default(), &head(), &entry());
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
        log.write(
            &WorkerStats::default(),
            &head(),
            &Entry { shadow: "limit:429", grpc_status: Some(14), ..entry() },
        );
        log.flush(&WorkerStats::default());
        let line: serde_json::Value = serde_json::from_slice(&receiver.try_recv().unwrap()).unwrap();
        assert_eq!((&line["shadow"], &line["revision"]), (&"limit:429".into(), &7.into()));
        assert_eq!(line["grpc_status"], 14);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_the_next_ones_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let (sender, thread) = start(&Destination::File(path.clone())).unwrap().unwrap();
        let (returned, reopen) = (sender.returned().clone(), sender.reopening());
        let (log, stats) = (Log::new(sender), WorkerStats::default());
        let write = || {
            log.write(&stats, &head(), &entry());
            log.flush(&stats);
        };
        write();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !returned.has_unwritten() {
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
            log.write(&stats, &head(), &entry());
            log.write(&stats, &head(), &entry());
            log.flush(&stats);
        }
        assert_eq!(stats.log_dropped.value(), 4);
        assert_eq!(receiver.try_iter().count(), 1);
    }
}
