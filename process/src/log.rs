//! The program's own log, on standard error.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::ProcessArgs;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// What is logged: a level for everything, and levels for modules. Checked when it is parsed.
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

/// Starts the log. It goes to standard error: standard output is for what the programs print for others to read. A log
/// that was started before, by a test, stays.
pub fn start(args: &ProcessArgs) {
    let terminal = std::io::stderr().is_terminal();
    let format = args.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let filter = EnvFilter::new(&args.log_level.0);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => builder.with_ansi(terminal).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
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

    /// Whether a line of this kind may be logged now; then how many were not since the last one that was.
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
    fn a_log_level_is_a_level_or_one_for_each_module() {
        for good in ["info", "OFF", "warn,signalbox_proxy::upstream=debug", "h2=error"] {
            assert!(good.parse::<LogLevel>().is_ok(), "{good}");
        }
        for bad in ["verbose", "", "3", "info,", "=debug", "a b=info", "info;warn", "x[y]=info"] {
            assert!(bad.parse::<LogLevel>().is_err(), "{bad}");
        }
    }
}
