//! Limits of the operating system: open files, address space.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit on open files as far as this process may; how many it may have open then.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many files a program needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// Below this it does not start.
    pub least: u64,
    /// Below this it warns.
    pub wanted: u64,
}

/// Says if a limit on open files is high enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It is.
    Enough,
    /// The program runs, but not with all that it is asked for. The text is for people.
    Low(String),
    /// The program cannot run. The text is for people.
    TooLow(String),
}

impl OpenFiles {
    /// Judges `limit`. `capacity` says what the limit allows.
    pub fn judge(self, limit: u64, capacity: &str) -> Judgement {
        let Self { least, wanted } = self;
        let how = "`ulimit -n`, `LimitNOFILE=` of a systemd unit, or `ulimits` of a container";
        if limit < least {
            Judgement::TooLow(format!(
                "the limit on open files is {limit}; at least {least} are needed, and {wanted} are wanted: set it with {how}"
            ))
        } else if limit < wanted {
            Judgement::Low(format!(
                "the limit on open files is {limit}, which allows {capacity}; set it to {wanted} or more with {how}"
            ))
        } else {
            Judgement::Enough
        }
    }

    /// Raises the limit and judges it: warns, or returns why the program cannot run. The limit, else.
    pub fn require(self, capacity: impl FnOnce(u64) -> String) -> anyhow::Result<u64> {
        let limit = raise_open_files();
        match self.judge(limit, &capacity(limit)) {
            Judgement::Enough => {}
            Judgement::Low(reason) => tracing::warn!(limit, wanted = self.wanted, "{reason}"),
            Judgement::TooLow(reason) => anyhow::bail!(reason),
        }
        Ok(limit)
    }
}

/// Checks the limit on address space (`ulimit -v`) for a program with so many threads. Below it threads could not be
/// started, and the first allocation that fails would end the process without a word of why.
pub fn require_address_space(threads: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::As).current.unwrap_or(u64::MAX);
    let least = least_address_space(threads);
    if limit < least {
        let (has, needs) = (limit >> 10, least.div_ceil(1 << 10));
        anyhow::bail!(
            "the limit on address space is {has} KiB; at least {needs} are needed with {threads} threads: set it with `ulimit -v`, or have fewer workers"
        );
    }
    Ok(())
}

/// Stacks and the allocators' reserves of so many threads, and what the program needs beside them: bytes.
fn least_address_space(threads: u64) -> u64 {
    const OTHERS: u64 = 128 << 20;
    const THREAD: u64 = 8 << 20;
    OTHERS.saturating_add(threads.saturating_mul(THREAD))
}

/// Turns a write beyond the limit on file sizes (`ulimit -f`) into an error of that write. By default the signal ends the
/// process. To be called within a tokio runtime; it holds as long as the process runs.
pub fn survive_file_size_limit() -> std::io::Result<()> {
    let kind = tokio::signal::unix::SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // The handler stays when this is dropped.
    tokio::signal::unix::signal(kind).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_needs_address_space() {
        assert!(least_address_space(4) > 150_000 << 10);
        assert_eq!(least_address_space(u64::MAX), u64::MAX);
        assert!(require_address_space(4).is_ok(), "the tests run without such a limit");
    }

    #[test]
    fn a_limit_on_open_files_is_enough_or_low_or_too_low_and_the_number_to_set_is_named() {
        let files = OpenFiles { least: 100, wanted: 1000 };
        assert_eq!(files.judge(1000, ""), Judgement::Enough);
        assert_eq!(files.judge(u64::MAX, ""), Judgement::Enough);
        let Judgement::Low(text) = files.judge(100, "40 connections") else { panic!() };
        assert!(text.contains("100, which allows 40 connections; set it to 1000"), "{text}");
        let Judgement::TooLow(text) = files.judge(99, "") else { panic!() };
        assert!(text.contains("99; at least 100"), "{text}");
    }
}
