//! The metrics that both programs have. The names of those about the process are the conventional ones of Prometheus' clients.

use crate::prometheus::Exposition;
use crate::{log, procfs};

metrics! {
    BUILD: Gauge "signalbox_build_info" ["version", "debug"] "1", "The version of the program; `debug` is true for a build without optimisation.", "Compare the versions during an upgrade. Never run a debug build in production.";
    PROFILING: Gauge "signalbox_profiling_enabled" [] "0 or 1", "1 if the debugging pages are served (`--profiling`), else 0.", "Turn it on where you look for what is slow.";
    LOG_LOST: Counter "signalbox_log_lines_lost_total" [] "lines", "Lines of the program's own log that could not be written.", "Look for a full disk, or a reader of standard error that has stopped.";
    START: Gauge "process_start_time_seconds" [] "seconds since 1970", "Time at which the process started.", "A time that changes again and again is a crash loop: read the end of the log.";
    CPU: Counter "process_cpu_seconds_total" [] "seconds", "CPU time of all threads.", "If its rate is near the number of cores, take a profile (docs/PROFILING.md) or add processes.";
    RESIDENT: Gauge "process_resident_memory_bytes" [] "bytes", "Memory that the process has in use.", "If it grows without end, compare it with `/debug/memory`.";
    VIRTUAL: Gauge "process_virtual_memory_bytes" [] "bytes", "Address space that the process has in use.", "It matters only where the address space is limited (`ulimit -v`).";
    OPEN_FILES: Gauge "process_open_fds" [] "files", "Open files, sockets among them.", "Alert when it is above 80 % of `process_max_fds`.";
    MAX_FILES: Gauge "process_max_fds" [] "files", "Number of files that may be open.", "Raise it with `LimitNOFILE` (systemd) or `ulimit -n`.";
    THREADS: Gauge "process_threads" [] "threads", "Threads of the process.", "If it grows without end, `/debug/tasks` names them.";
}

/// Writes them.
pub fn write(page: &mut Exposition, version: &str, profiling: bool) {
    let debug = if cfg!(debug_assertions) { "true" } else { "false" };
    page.family(&BUILD).sample(&[("version", version), ("debug", debug)], 1_u8);
    page.single(&PROFILING, u8::from(profiling));
    page.single(&LOG_LOST, log::lines_lost());
    let figures = procfs::figures();
    page.single(&START, figures.started_at_ms as f64 / 1e3);
    page.single(&CPU, figures.cpu_ms as f64 / 1e3);
    page.single(&RESIDENT, figures.resident_bytes);
    page.single(&VIRTUAL, figures.virtual_bytes);
    page.single(&OPEN_FILES, figures.open_files);
    match figures.max_files {
        Some(limit) => page.single(&MAX_FILES, limit),
        None => page.single(&MAX_FILES, f64::INFINITY),
    }
    page.single(&THREADS, figures.threads);
}
