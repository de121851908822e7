//! The figures of the operating system about this process (proc(5)).

use std::fs;
use std::io;
use std::sync::OnceLock;

/// A thread of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Thread {
    /// Its number.
    pub(crate) id: i32,
    /// Its name, of which the system keeps 15 bytes.
    pub(crate) name: String,
    /// The CPU time that it has used, in milliseconds.
    pub(crate) cpu_ms: u64,
    /// Its state: `R` runs, `S` sleeps, `D` waits for a disk.
    pub(crate) state: char,
}

/// Figures of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// The files that are open.
    pub(crate) open_files: u64,
    /// The number of files that may be open; `None`: there is no limit.
    pub(crate) max_files: Option<u64>,
    /// The memory in use, in bytes.
    pub(crate) resident_bytes: u64,
    /// The address space in use, in bytes.
    pub(crate) virtual_bytes: u64,
    /// The threads.
    pub(crate) threads: u64,
    /// The CPU time of all threads, in milliseconds.
    pub(crate) cpu_ms: u64,
    /// The start, in milliseconds since 1970.
    pub(crate) started_at_ms: u64,
}

/// The number of threads that are listed at most.
const MAX_THREADS: usize = 10_000;

/// The numbers of the threads of this process.
pub(crate) fn thread_ids() -> io::Result<Vec<i32>> {
    let names =
        fs::read_dir("/proc/self/task")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).take(MAX_THREADS).collect())
}

/// The name of a thread; empty if it is gone.
pub(crate) fn thread_name(id: i32) -> String {
    fs::read_to_string(format!("/proc/self/task/{id}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The threads of this process, by number.
pub(crate) fn threads() -> io::Result<Vec<Thread>> {
    let mut threads: Vec<_> = thread_ids()?
        .into_iter()
        .filter_map(|id| {
            let stat = Stat::parse(&fs::read_to_string(format!("/proc/self/task/{id}/stat")).ok()?)?;
            Some(Thread { id, name: thread_name(id), cpu_ms: stat.cpu_ms(), state: stat.state })
        })
        .collect();
    threads.sort_unstable_by_key(|thread| thread.id);
    Ok(threads)
}

/// Reads the figures of this process. A figure that cannot be read is 0.
pub(crate) fn figures() -> Figures {
    let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
    let stat = stat.unwrap_or_default();
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = statm.split(' ').map(|field| field.parse::<u64>().unwrap_or_default());
    let page = rustix::param::page_size() as u64;
    let (virtual_pages, resident_pages) =
        (pages.next().unwrap_or_default(), pages.next().unwrap_or_default());
    Figures {
        open_files: open_files(),
        max_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        resident_bytes: resident_pages * page,
        virtual_bytes: virtual_pages * page,
        threads: stat.threads,
        cpu_ms: stat.cpu_ms(),
        started_at_ms: started_at_ms(&stat),
    }
}

fn open_files() -> u64 {
    const FILES: &str = "/proc/self/fd";
    // Since Linux 6.2 the size of the directory is their number.
    match fs::metadata(FILES).map_or(0, |files| files.len()) {
        // The listing itself has one open.
        0 => fs::read_dir(FILES).map_or(0, |files| (files.count() as u64).saturating_sub(1)),
        count => count,
    }
}

/// The figures of `/proc/self/smaps_rollup`, in bytes by name.
pub(crate) fn memory() -> io::Result<Vec<(String, u64)>> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let kib: u64 = rest.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some((name.to_lowercase(), kib * 1024))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// Fields of a line of `stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stat {
    state: char,
    user_ticks: u64,
    system_ticks: u64,
    threads: u64,
    start_ticks: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The second field, in parentheses, may contain blanks and parentheses.
        let (_, rest) = line.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            user_ticks: number(14)?,
            system_ticks: number(15)?,
            threads: number(20)?,
            start_ticks: number(22)?,
        })
    }

    fn cpu_ms(&self) -> u64 {
        in_ms(self.user_ticks + self.system_ticks)
    }
}

fn in_ms(ticks: u64) -> u64 {
    ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1)
}

/// The start of the process, read once: a clock that is set does not move it.
fn started_at_ms(stat: &Stat) -> u64 {
    static STARTED: OnceLock<u64> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        boot.map_or(0, |boot| boot * 1000 + in_ms(stat.start_ticks))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let line = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 0 0 20 0 4 0 4242 9 9";
        let stat = Stat::parse(line).unwrap();
        let expected = Stat { state: 'S', user_ticks: 11, system_ticks: 12, threads: 4, start_ticks: 4242 };
        assert_eq!(stat, expected);
    }

    #[test]
    fn this_process_has_files_threads_and_memory() {
        let figures = figures();
        assert!(
            figures.open_files > 2 && figures.threads > 0 && figures.resident_bytes > 1 << 20,
            "{figures:?}"
        );
        assert!(figures.max_files.is_none_or(|limit| limit >= figures.open_files));
        assert!(figures.started_at_ms > 1_500_000_000_000);
        assert!(memory().unwrap().iter().any(|(name, bytes)| name == "rss" && *bytes > 0));
        assert!(threads().unwrap().iter().any(|thread| thread.id > 0 && !thread.name.is_empty()));
    }
}
