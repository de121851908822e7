//! Interrupts threads while they run, and copies what an interrupted thread has: its registers and the top of its stack.
//!
//! Each thread has a timer of its own CPU time, whose signal goes to just that thread. So a thread that waits is not sampled, and
//! busy threads do not take samples from each other. The handler takes no lock, allocates nothing, and follows no pointer of the
//! interrupted thread: the kernel copies the stack, and stops at memory that cannot be read.
#![allow(unsafe_code, reason = "signal handlers and timers of threads have no safe interface")]

use std::cell::UnsafeCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::procfs;

/// The number of registers that are copied, by their DWARF numbers. The last is the program counter.
#[cfg(target_arch = "x86_64")]
pub(super) const REGISTERS: usize = 17;
/// The DWARF number of the stack pointer.
#[cfg(target_arch = "x86_64")]
pub(super) const STACK_POINTER: usize = 7;

/// The number of registers that are copied, by their DWARF numbers. The last is the program counter.
#[cfg(target_arch = "aarch64")]
pub(super) const REGISTERS: usize = 33;
/// The DWARF number of the stack pointer.
#[cfg(target_arch = "aarch64")]
pub(super) const STACK_POINTER: usize = 31;

/// The number of bytes that are copied of a stack. Without optimisation, stacks are several times as large.
const STACK: usize = if cfg!(debug_assertions) { 512 << 10 } else { 128 << 10 };

/// The number of samples that wait to be drained, for each core: samples of all cores at 100 Hz for 40 ms.
const SLOTS_PER_CORE: usize = 4;
const MIN_SLOTS: usize = 32;
const MAX_SLOTS: usize = 128;

/// The number of slots that a handler tries before it gives its sample up.
const TRIES: usize = 8;

/// The number of threads that are sampled at most.
const MAX_THREADS: usize = 1024;

/// A thread as it was when it was interrupted.
pub(super) struct Sample {
    pub(super) thread: i32,
    pub(super) registers: [u64; REGISTERS],
    /// The number of bytes that were copied.
    filled: usize,
    stack: [u8; STACK],
}

impl Sample {
    /// The bytes from the stack pointer on.
    pub(super) fn stack(&self) -> &[u8] {
        self.stack.get(..self.filled).unwrap_or_default()
    }
}

const FREE: u8 = 0;
const WRITING: u8 = 1;
const FULL: u8 = 2;

struct Slot {
    state: AtomicU8,
    sample: UnsafeCell<Sample>,
}

/// The memory of the handler. It is made by the first profile and never freed, because a signal may arrive late.
struct Buffer {
    slots: Box<[Slot]>,
    next: AtomicUsize,
    lost: AtomicU64,
    /// True while samples are wanted.
    active: AtomicBool,
    /// The memory of this process.
    memory: File,
}

// SAFETY: the state of a slot says who may touch its sample: the one handler that changed it from FREE to WRITING, and then the
// one reader that finds it FULL (`Sampling` is unique).
unsafe impl Sync for Slot {}

static BUFFER: OnceLock<Buffer> = OnceLock::new();

/// Samples threads until it is dropped. At most one exists at a time.
pub(super) struct Sampling {
    buffer: &'static Buffer,
    interval: Duration,
    timers: BTreeMap<i32, Timer>,
    own_thread: i32,
}

/// A timer of the CPU time of one thread.
struct Timer(libc::timer_t);

impl Sampling {
    /// Begins with the threads that run now. The caller is not sampled.
    pub(super) fn start(interval: Duration) -> io::Result<Self> {
        let buffer = match BUFFER.get() {
            Some(buffer) => buffer,
            None => {
                let made = Buffer::new()?;
                BUFFER.get_or_init(|| made)
            }
        };
        // Before each profile, because without it the first signal would end the process.
        install_handler()?;
        buffer.clear();
        buffer.lost.store(0, Ordering::Relaxed);
        buffer.active.store(true, Ordering::Release);
        let mut sampling = Self { buffer, interval, timers: BTreeMap::new(), own_thread: this_thread() };
        sampling.follow_threads()?;
        Ok(sampling)
    }

    /// Begins with the threads that are new, and forgets those that are gone.
    pub(super) fn follow_threads(&mut self) -> io::Result<()> {
        let running: BTreeSet<i32> = procfs::thread_ids()?.into_iter().collect();
        self.timers.retain(|thread, _| running.contains(thread));
        for thread in running {
            if thread == self.own_thread
                || self.timers.contains_key(&thread)
                || self.timers.len() >= MAX_THREADS
            {
                continue;
            }
            match Timer::start(thread, self.interval) {
                Ok(timer) => drop(self.timers.insert(thread, timer)),
                // The thread has just ended.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ESRCH)) => {}
                // No more timers are to be had. The others go on.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && !self.timers.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Shows the samples that were taken since the last call.
    pub(super) fn drain(&mut self, mut show: impl FnMut(&Sample)) {
        for slot in &self.buffer.slots {
            if slot.state.load(Ordering::Acquire) == FULL {
                // SAFETY: no handler touches a full slot, and only this unique value reads it.
                show(unsafe { &*slot.sample.get() });
                slot.state.store(FREE, Ordering::Release);
            }
        }
    }

    /// The number of samples that found no free slot.
    pub(super) fn lost(&self) -> u64 {
        self.buffer.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        self.buffer.active.store(false, Ordering::Release);
        self.timers.clear();
    }
}

impl Buffer {
    fn new() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = cores.saturating_mul(SLOTS_PER_CORE).clamp(MIN_SLOTS, MAX_SLOTS);
        // Zeroed by the allocator, so pages that no stack reaches take no memory.
        let slots = Box::<[Slot]>::new_zeroed_slice(count);
        Ok(Self {
            // SAFETY: all fields of a slot are numbers, for which zero is valid; zero is FREE.
            slots: unsafe { slots.assume_init() },
            next: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            active: AtomicBool::new(false),
            memory: File::open("/proc/self/mem")?,
        })
    }

    /// Frees the slots that a sampling before has left full.
    fn clear(&self) {
        for slot in &self.slots {
            let _ = slot.state.compare_exchange(FULL, FREE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    fn record(&self, context: &libc::ucontext_t) {
        for _ in 0..TRIES {
            let index = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len().max(1);
            let Some(slot) = self.slots.get(index) else { break };
            if slot.state.compare_exchange(FREE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: this handler has changed the state to WRITING, so nobody else touches the sample.
            let sample = unsafe { &mut *slot.sample.get() };
            sample.thread = this_thread();
            sample.registers = registers(context);
            let from = sample.registers.get(STACK_POINTER).copied().unwrap_or_default();
            // SAFETY: the buffer is as long as it says. The kernel copies up to the first page that cannot be read.
            let copied = unsafe {
                let into = sample.stack.as_mut_ptr().cast::<c_void>();
                libc::pread64(self.memory.as_raw_fd(), into, STACK, from.cast_signed())
            };
            sample.filled = usize::try_from(copied).unwrap_or(0);
            slot.state.store(FULL, Ordering::Release);
            return;
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
}

impl Timer {
    fn start(thread: i32, interval: Duration) -> io::Result<Self> {
        // SAFETY: a sigevent consists of numbers and a pointer, for which zero is valid.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are to values of this function.
        if unsafe { libc::timer_create(cpu_clock_of(thread), &raw mut event, &raw mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let timer = Self(timer);
        // A thread that uses less than the interval is to be sampled with the right probability, so the first time is any.
        let first = interval.mul_f64(f64::from(scatter(thread)) / f64::from(u32::MAX));
        let times = libc::itimerspec {
            it_interval: timespec(interval),
            it_value: timespec(first.max(Duration::from_nanos(1))),
        };
        // SAFETY: the timer exists, and the pointer is to a value of this function.
        if unsafe { libc::timer_settime(timer.0, 0, &raw const times, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(timer)
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

/// A number that looks random, for a thread and the present.
fn scatter(thread: i32) -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    RandomState::new().hash_one((thread, now)) as u32
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and is not used again.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// The clock of a thread's CPU time, as the kernel encodes it (`MAKE_THREAD_CPUCLOCK` in linux/posix-timers.h).
fn cpu_clock_of(thread: i32) -> libc::clockid_t {
    const OF_ONE_THREAD: i32 = 4;
    const SCHEDULED_TIME: i32 = 2;
    (!thread << 3) | OF_ONE_THREAD | SCHEDULED_TIME
}

fn this_thread() -> i32 {
    // SAFETY: the call has no argument, and cannot fail.
    i32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or_default()
}

/// Sets the handler of SIGPROF. It stays: without one, a late signal would end the process.
fn install_handler() -> io::Result<()> {
    // SAFETY: a sigaction consists of numbers, for which zero is valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the pointer is to a value of this function, and the handler has the type that SA_SIGINFO requires.
    if unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(buffer) = BUFFER.get() else { return };
    // SAFETY: the kernel passes a context to a handler with SA_SIGINFO, on the stack of this thread.
    let Some(context) = (unsafe { context.cast::<libc::ucontext_t>().as_ref() }) else { return };
    if !buffer.active.load(Ordering::Acquire) {
        return;
    }
    // The interrupted code may be about to read its error.
    // SAFETY: the pointer is to a variable of this thread.
    unsafe {
        let errno = *libc::__errno_location();
        buffer.record(context);
        *libc::__errno_location() = errno;
    }
}

#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> [u64; REGISTERS] {
    use libc::{
        REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX,
        REG_RCX, REG_RDI, REG_RDX, REG_RIP, REG_RSI, REG_RSP,
    };
    // The order of System V ABI, AMD64, figure 3.36.
    [
        REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP, REG_R8, REG_R9, REG_R10,
        REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP,
    ]
    .map(|index| {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        context.uc_mcontext.gregs.get(index).copied().unwrap_or_default().cast_unsigned()
    })
}

#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> [u64; REGISTERS] {
    let mut registers = [0; REGISTERS];
    let machine = &context.uc_mcontext;
    let values = machine.regs.iter().copied().chain([machine.sp, machine.pc]);
    for (register, value) in registers.iter_mut().zip(values) {
        *register = value;
    }
    registers
}
