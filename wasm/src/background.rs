//! The task beside requests: ticks of modules, and the calls that no request waits for.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use signalbox_plugin::{CallError, TaskContext};
use tokio::sync::Mutex;
use tokio::sync::mpsc::Receiver;

use crate::context::Nothing;
use crate::fault::Fault;
use crate::pause::{Ended, send};
use crate::pool::{Pool, Slot, Work};
use crate::state::Call;

/// The most calls under way.
const MAX_RUNNING: usize = 256;

/// Works until the plugin is gone.
pub(crate) async fn run(context: TaskContext, pool: Weak<Pool>, work: Arc<Mutex<Receiver<Work>>>) {
    let mut work = work.lock().await;
    let mut running = FuturesUnordered::new();
    // By the address of the slot, which lives as long as the pool.
    let mut due: HashMap<usize, Duration> = HashMap::new();
    let begin = |slot: Weak<Slot>, generation: u64, call: Call| {
        let outbound = context.outbound.clone();
        async move { (slot, generation, send(outbound, call).await) }
    };
    loop {
        let Some(strong) = pool.upgrade() else { return };
        let now = context.clock.monotonic();
        let mut next: Option<Duration> = None;
        for slot in strong.slots() {
            let key = Arc::as_ptr(&slot).addr();
            let Some(period) = slot.tick_period() else {
                due.remove(&key);
                continue;
            };
            let at = due.entry(key).or_insert(now + period);
            // A period that was shortened counts from now.
            *at = (*at).min(now + period);
            if *at <= now {
                let ticked = slot.run(&strong, |vm| {
                    vm.tick()?;
                    Ok((vm.generation, vm.take_calls()))
                });
                match ticked {
                    Ok((generation, calls)) => {
                        let weak = Arc::downgrade(&slot);
                        let calls = within(calls, running.len(), &pool, &weak, generation);
                        running.extend(calls.map(|call| begin(weak.clone(), generation, call)));
                    }
                    Err(fault) => failed(&strong, &fault),
                }
                *at = context.clock.monotonic() + period;
                // A module that takes its time has other tasks wait, and not for good.
                tokio::task::yield_now().await;
            }
            next = Some(next.map_or(*at, |next| next.min(*at)));
        }
        drop(strong);
        let pause = async {
            match next {
                Some(next) => context.clock.sleep(next.saturating_sub(context.clock.monotonic())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            work = work.recv() => match work {
                None => return,
                Some(Work::Ticks) => {}
                Some(Work::Call { slot, generation, call }) => {
                    let calls = within(vec![*call], running.len(), &pool, &slot, generation);
                    running.extend(calls.map(|call| begin(slot.clone(), generation, call)));
                }
            },
            Some((slot, generation, ended)) = running.next() => {
                let calls = answered(&pool, &slot, generation, ended);
                let calls = within(calls, running.len(), &pool, &slot, generation);
                running.extend(calls.map(|call| begin(slot.clone(), generation, call)));
            }
            () = pause => {}
        }
    }
}

/// Those of `calls` for which there is room. The others have failed, and the module is told so; what it begins thereupon is dropped.
fn within(
    mut calls: Vec<Call>,
    running: usize,
    pool: &Weak<Pool>,
    slot: &Weak<Slot>,
    generation: u64,
) -> impl Iterator<Item = Call> + use<> {
    let room = MAX_RUNNING.saturating_sub(running).min(calls.len());
    for Call { owner, id, .. } in calls.split_off(room) {
        answered(pool, slot, generation, Ended { owner, id, answer: Err(CallError::Overflow) });
    }
    calls.into_iter()
}

/// Tells a module of the end of its call. Returns the calls that it begins thereupon.
fn answered(pool: &Weak<Pool>, slot: &Weak<Slot>, generation: u64, ended: Ended) -> Vec<Call> {
    let Some((pool, slot)) = pool.upgrade().zip(slot.upgrade()) else { return Vec::new() };
    let told = slot.run_in(&pool, generation, |vm| {
        vm.answered(ended.owner, ended.id, ended.answer, &mut Nothing)?;
        Ok(vm.take_calls())
    });
    told.unwrap_or_else(|fault| {
        failed(&pool, &fault);
        Vec::new()
    })
}

fn failed(pool: &Pool, fault: &Fault) {
    // An instance that was thrown away takes its calls along.
    if !matches!(fault, Fault::Lost) {
        pool.note(fault);
        pool.outcomes.count(0, fault.outcome());
    }
}
