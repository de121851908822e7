use rustix::time::{ClockId, clock_gettime};

/// The CPU time of all threads of this process since its start, in microseconds.
pub fn process_cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec).saturating_mul(1_000_000).saturating_add(part(time.tv_nsec) / 1000)
}
