use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one plugin's outcomes, in the metric `signalbox_plugin_outcomes_total`. A clone counts in the same place.
#[derive(Debug, Clone)]
pub struct Outcomes(Arc<Cells>);

#[derive(Debug)]
struct Cells {
    names: Box<[&'static str]>,
    /// A row for each worker, so that no two write to one cache line.
    rows: Box<[Row]>,
}

#[derive(Debug)]
#[repr(align(128))]
struct Row(Box<[AtomicU64]>);

impl Outcomes {
    /// The outcome of every type that is counted when a plugin answers a request.
    pub const ANSWERED: &'static str = "answered";
    /// The outcome of every type that is counted when a plugin panics.
    pub const PANICKED: &'static str = "panicked";
    /// The outcome of every type that is counted when the condition of a plugin is neither true nor false for a request.
    pub const CONDITION_ERROR: &'static str = "condition_error";
    /// The outcome of every type that is counted when a plugin in shadow would have answered a request.
    pub const WOULD_ANSWER: &'static str = "would_answer";
    /// The outcome of every type that is counted when a plugin in shadow would have passed a request on.
    pub const WOULD_PASS: &'static str = "would_pass";
    /// The outcomes that every type has.
    const COMMON: [&'static str; 5] =
        [Self::ANSWERED, Self::PANICKED, Self::CONDITION_ERROR, Self::WOULD_ANSWER, Self::WOULD_PASS];

    /// The outcomes of a type with these `names`, besides those that every type has.
    pub fn new(names: &[&'static str], workers: usize) -> Self {
        let all: Box<[_]> = Self::COMMON.into_iter().chain(names.iter().copied()).collect();
        let row = || Row(all.iter().map(|_| AtomicU64::new(0)).collect());
        let rows = std::iter::repeat_with(row).take(workers.max(1)).collect();
        Self(Arc::new(Cells { names: all, rows }))
    }

    /// Counts an outcome. One that the type has not declared is counted nowhere.
    pub fn count(&self, worker: usize, outcome: &'static str) {
        self.add(worker, outcome, 1);
    }

    /// Counts an outcome several times.
    pub fn add(&self, worker: usize, outcome: &'static str, times: u64) {
        let place = self.0.names.iter().position(|name| *name == outcome);
        let row = self.0.rows.get(worker).or_else(|| self.0.rows.first());
        if let Some(cell) = row.zip(place).and_then(|(row, place)| row.0.get(place)) {
            cell.fetch_add(times, Ordering::Relaxed);
        }
    }

    /// The counts so far, by outcome.
    pub fn read(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.names.iter().enumerate().map(|(place, name)| {
            let cells = self.0.rows.iter().filter_map(|row| row.0.get(place));
            (*name, cells.map(|cell| cell.load(Ordering::Relaxed)).sum())
        })
    }

    /// The names of all outcomes.
    pub fn names(&self) -> &[&'static str] {
        &self.0.names
    }
}
