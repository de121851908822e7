use std::collections::BTreeMap;
use std::hint::black_box;
use std::thread;

use super::*;

#[inline(never)]
fn spin_for_the_profile(stop: &AtomicBool) -> u64 {
    let mut sum = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        for number in 0..1000_u64 {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(number));
        }
    }
    sum
}

#[inline(never)]
fn call_the_spinning_function(stop: &AtomicBool) -> u64 {
    black_box(spin_for_the_profile(stop)) + 1
}

/// Ends busy threads, also when the test fails.
struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `test` beside threads that are busy.
fn beside_busy_threads(count: usize, test: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for index in 0..count {
            let busy = || call_the_spinning_function(&stop);
            thread::Builder::new().name(format!("busy-{index}")).spawn_scoped(scope, busy).unwrap();
        }
        test();
    });
}

/// Profiles are taken one at a time, so are these tests.
static ONE_TEST: Mutex<()> = Mutex::new(());

fn take_for(millis: u64) -> Profile {
    take(Duration::from_millis(millis), DEFAULT_HZ, &AtomicBool::new(false)).unwrap()
}

#[test]
fn a_profile_has_the_names_of_functions_and_their_callers() {
    let _one = ONE_TEST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    beside_busy_threads(2, || {
        let profile = Profile::from_bytes(&take_for(700).to_gzip().unwrap()).unwrap();
        let stacks: Vec<_> = profile.sample.iter().map(|sample| profile.stack(sample)).collect();
        let whole = stacks.iter().filter(|stack| {
            let place = |name| stack.iter().position(|function: &&str| function.ends_with(name));
            let (inner, outer) = (place("::spin_for_the_profile"), place("::call_the_spinning_function"));
            let start =
                stack.iter().position(|function| function.contains("thread_start") || *function == "clone3");
            inner.is_some() && inner < outer && outer < start
        });
        assert!(whole.count() > 0, "{stacks:#?}");
        let threads =
            profile.sample.iter().flat_map(|sample| &sample.label).map(|label| profile.text(label.str));
        assert!(threads.filter(|thread| thread.starts_with("busy-")).count() > 0);
        assert!(
            profile.function.iter().any(|function| profile.text(function.filename).ends_with("tests.rs"))
        );
    });
}

#[test]
fn the_values_of_a_profile_are_the_cpu_time_of_its_threads() {
    let _one = ONE_TEST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    beside_busy_threads(1, || {
        let busy = || -> BTreeMap<_, u64> {
            let threads = procfs::threads().unwrap();
            let busy = threads.iter().filter(|thread| thread.name.starts_with("busy-"));
            busy.map(|thread| (thread.id, thread.cpu_ms)).collect()
        };
        let before = busy();
        let profile = take_for(1000);
        // Those of the test before may just be ending, and one of this test may have had no name yet.
        let since = |(id, cpu_ms): (&i32, &u64)| cpu_ms.saturating_sub(before.get(id).copied().unwrap_or(0));
        let spent: u64 = busy().iter().map(since).sum();
        let is_busy =
            |sample: &&Sample| sample.label.iter().any(|it| profile.text(it.str).starts_with("busy-"));
        let counted: i64 = profile.sample.iter().filter(is_busy).map(|sample| sample.value[1]).sum();
        let counted = counted as f64 / 1e6;
        assert!((counted - spent as f64).abs() < 200.0, "{counted} ms counted of {spent} ms");
    });
}

#[test]
fn two_profiles_at_once_are_refused() {
    let _one = ONE_TEST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let cancelled = AtomicBool::new(false);
    thread::scope(|scope| {
        let _cancel = StopOnDrop(&cancelled);
        let first = scope.spawn(|| take(Duration::from_secs(60), DEFAULT_HZ, &cancelled));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !matches!(TAKING.try_lock(), Err(TryLockError::WouldBlock)) {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        let second = take(Duration::from_secs(1), DEFAULT_HZ, &AtomicBool::new(false));
        assert!(matches!(second, Err(ProfileError::Busy)));
        cancelled.store(true, Ordering::Relaxed);
        assert!(matches!(first.join().unwrap(), Err(ProfileError::Cancelled)));
    });
}

#[test]
fn many_profiles_of_threads_that_come_and_go_crash_nothing() {
    let _one = ONE_TEST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let stop = AtomicBool::new(false);
    beside_busy_threads(16, || {
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    thread::spawn(|| black_box(vec![1_u8; 100_000]).len()).join().unwrap();
                }
            });
            let samples: i64 =
                (0..60).map(|_| take_for(50).sample.iter().map(|sample| sample.value[0]).sum::<i64>()).sum();
            assert!(samples > 0);
        });
    });
}
