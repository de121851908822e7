//! The shared parts of the measurements: statistics, process figures, and tables.

pub mod simulated;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// Quantiles of a sample, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Quantiles {
    /// The size of the sample.
    pub count: usize,
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Quantiles {
    /// Computes them from durations in any order; all are 0 for an empty sample.
    pub fn of(sample: &[Duration]) -> Self {
        Self::of_ms(&sample.iter().map(|value| value.as_secs_f64() * 1000.0).collect::<Vec<_>>())
    }

    /// Computes them from milliseconds in any order.
    pub fn of_ms(sample: &[f64]) -> Self {
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        // The nearest rank: the smallest value that the given share of the sample does not exceed.
        let rank = |share: f64| {
            let index = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1);
            sorted.get(index).copied().unwrap_or_default()
        };
        Self { count: sorted.len(), p50: rank(0.5), p99: rank(0.99), max: rank(1.0) }
    }
}

/// The resident memory of a process, in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// The CPU time that a process has used, in steps of 10 ms.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may contain spaces; utime and stime are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(") ").context("not a stat line")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// Raises the limit on open files of this process and its children.
pub fn raise_open_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("cannot raise the limit of open files")
}

/// A Markdown table, from a heading and rows.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n", heading.join(" | "));
    let _ = writeln!(text, "|{}", " --- |".repeat(heading.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Prints a result, and writes it to `DIR/NAME.json` and `DIR/NAME.md`.
#[allow(clippy::print_stdout)]
pub fn publish(dir: &Path, name: &str, result: &impl Serialize, table: &str) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join(format!("{name}.json")), serde_json::to_vec_pretty(result)?)?;
    std::fs::write(dir.join(format!("{name}.md")), table)?;
    println!("{table}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_nearest_rank() {
        let sample: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let quantiles = Quantiles::of_ms(&sample);
        assert_eq!((quantiles.p50, quantiles.p99, quantiles.max), (100.0, 198.0, 200.0));
        assert_eq!(Quantiles::of_ms(&[]).max, 0.0);
        assert_eq!(Quantiles::of_ms(&[7.0]).p99, 7.0);
    }

    #[test]
    fn the_kernel_tells_of_this_process() {
        let pid = std::process::id();
        assert!(resident(pid).unwrap() > 1 << 20);
        let before = cpu(pid).unwrap();
        let mut sum = 0_u64;
        while cpu(pid).unwrap() < before + Duration::from_millis(30) {
            sum = std::hint::black_box(sum + 1);
        }
    }
}
