//! The program's own log, on standard error.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing_subscriber::EnvFilter;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// The levels that are logged: one for everything, and others for modules. They are checked when they are parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel(String);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        for part in text.split(',').map(str::trim) {
            let (module, level) =
                part.split_once('=').map_or((None, part), |(module, level)| (Some(module), level));
            if level.parse::<LevelFilter>().is_err() || level.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!("{level:?} is not off, error, warn, info, debug or trace"));
            }
            let is_path = |module: &str| {
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte);
                !module.is_empty() && module.bytes().all(allowed)
            };
            if module.is_some_and(|module| !is_path(module)) {
                return Err(format!("{part:?} is not MODULE=LEVEL"));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl LogLevel {
    /// True if it asks for more than this build can log: `trace` is left out of release builds.
    fn exceeds(&self, most: LevelFilter) -> bool {
        let levels =
            self.0.split(',').map(|part| part.split_once('=').map_or(part, |(_, level)| level).trim());
        levels.filter_map(|level| level.parse::<LevelFilter>().ok()).any(|level| level > most)
    }
}

/// Starts the log. It goes to standard error: standard output is for what the programs print for others to read. A log
/// that was started before, by a test, stays.
pub fn start(level: &LogLevel, format: Option<LogFormat>) {
    let terminal = std::io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let filter = EnvFilter::new(&level.0);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Output(std::io::stderr()));
    let _ = match format {
        LogFormat::Text => builder.with_ansi(terminal).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if level.exceeds(STATIC_MAX_LEVEL) {
        tracing::warn!(
            "this build logs no more than {STATIC_MAX_LEVEL}, which is what --log-level counts as"
        );
    }
}

/// How many lines of the program's own log could not be written, because its disk is full for instance.
pub fn lines_lost() -> u64 {
    LINES_LOST.load(Ordering::Relaxed)
}

/// Like the log itself, there is one for the process.
static LINES_LOST: AtomicU64 = AtomicU64::new(0);

/// Takes every line. One that cannot be written is counted: the thread that logs it must go on, and the library would
/// panic when it cannot complain on the same standard error.
struct Output<W>(W);

impl<W: Write> Write for Output<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.write_all(line).is_err() {
            LINES_LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bounds how often lines of one kind are logged. There are as many kinds as `K` has values, so `K` is an enum.
#[derive(Debug)]
pub struct Throttle<K> {
    interval: Duration,
    /// When a line was logged last, and how many were not since.
    kinds: Mutex<BTreeMap<K, (Instant, u64)>>,
}

impl<K: Ord> Throttle<K> {
    /// One line in `interval` for each kind.
    pub fn new(interval: Duration) -> Self {
        Self { interval, kinds: Mutex::default() }
    }

    /// `Some` if a line of this kind may be logged now: how many were not logged since the last one that was.
    pub fn admit(&self, kind: K) -> Option<u64> {
        self.admit_at(kind, Instant::now())
    }

    fn admit_at(&self, kind: K, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        match kinds.get_mut(&kind) {
            Some((logged, withheld)) if now.duration_since(*logged) < self.interval => {
                *withheld += 1;
                None
            }
            Some((logged, withheld)) => {
                *logged = now;
                Some(std::mem::take(withheld))
            }
            None => {
                kinds.insert(kind, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttle_admits_one_line_of_a_kind_in_an_interval_and_counts_the_others() {
        let throttle = Throttle::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(throttle.admit_at('a', at(0)), Some(0));
        assert_eq!(throttle.admit_at('a', at(9)), None);
        assert_eq!(throttle.admit_at('b', at(9)), Some(0));
        assert_eq!(throttle.admit_at('a', at(9)), None);
        assert_eq!(throttle.admit_at('a', at(10)), Some(2));
        assert_eq!(throttle.admit_at('a', at(20)), Some(0));
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_nothing_else() {
        let before = lines_lost();
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut output = Output(full);
        output.write_all(b"a line\n").unwrap();
        output.write_all(b"another\n").unwrap();
        assert_eq!(lines_lost() - before, 2);
    }

    #[test]
    fn the_help_names_every_level_that_is_taken() {
        let command = <crate::ProcessArgs as clap::Args>::augment_args(clap::Command::new("program"));
        let flag = command.get_arguments().find(|argument| argument.get_long() == Some("log-level")).unwrap();
        let help = flag.get_help().unwrap().to_string();
        for level in ["off", "error", "warn", "info", "debug", "trace"] {
            assert!(level.parse::<LogLevel>().is_ok(), "{level}");
            assert!(help.contains(level), "{level} is not in {help:?}");
        }
    }

    #[test]
    fn a_level_that_a_build_leaves_out_is_seen() {
        let exceeds = |text: &str, most| text.parse::<LogLevel>().unwrap().exceeds(most);
        assert!(exceeds("trace", LevelFilter::DEBUG));
        assert!(exceeds("info,h2=TRACE", LevelFilter::DEBUG));
        assert!(!exceeds("debug", LevelFilter::DEBUG));
        assert!(!exceeds("trace", LevelFilter::TRACE));
        assert!(!exceeds("off", LevelFilter::DEBUG));
    }

    #[test]
    fn a_log_level_is_a_level_or_one_for_each_module() {
        for good in ["info", "OFF", "warn,signalbox_proxy::upstream=debug", "h2=error"] {
            assert!(good.parse::<LogLevel>().is_ok(), "{good}");
        }
        for bad in ["verbose", "", "3", "info,", "=debug", "a b=info", "info;warn", "x[y]=info"] {
            assert!(bad.parse::<LogLevel>().is_err(), "{bad}");
        }
    }
}
