//! Takes in the reports of proxies, stores what was taken in, and answers queries.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use signalbox_proto::signalbox::report::v1::StatsReport;
use signalbox_proto::signalbox::report::v1::traffic_series::Scope;
use tokio_util::sync::CancellationToken;

use super::journal::{Row, Unsaved, decode, encode};
use super::point::Point;
use super::query::{Answer, Query};
use super::resolutions::{KEPT, RESOLUTIONS};
use super::rings::Rings;
use super::series::{Dimension, SeriesKey};
use crate::board::Sharing;
use crate::clock::now_us;
use crate::store::{StatsRow, Store, StoreError};

/// The traffic of the last seven days.
pub struct Stats {
    store: Arc<dyn Store>,
    /// This process among all that use the database.
    instance: Arc<str>,
    sharing: Sharing,
    state: Mutex<State>,
}

struct State {
    rings: Rings,
    /// The last report of each proxy that was taken in.
    taken: HashMap<Arc<str>, Taken>,
    /// The time between two reports of a proxy.
    interval: Duration,
    /// The traffic since the last part was numbered.
    part: Unsaved,
    /// The traffic since the last row of a minute, and of ten minutes.
    minute: Unsaved,
    ten_minutes: Unsaved,
    /// The number of the last part.
    parts: u64,
    /// Rows that are to be written, the oldest first.
    unwritten: VecDeque<StatsRow>,
    /// The number of the last row that was read.
    read: i64,
    /// True once everything that was stored is read.
    is_complete: bool,
}

/// The last report of a proxy that was taken in.
struct Taken {
    boot: u64,
    number: u64,
    at: Instant,
    /// The series that it had.
    series: usize,
}

/// The shortest time between two reports of a proxy.
pub const MIN_INTERVAL: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// The series that are taken in each second at most: reports of larger fleets come less often.
const SERIES_PER_SECOND: usize = 100_000;

/// A proxy that has not reported for this time is not counted, and is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The points that are added at once, while others wait.
const PIECE: usize = 1000;

/// The most points of a report: one of a long time with many series is spread over fewer slots.
const MAX_SPREAD: u64 = 20_000;

/// The time between two parts.
const PART: Duration = Duration::from_secs(10);

/// The most rows that wait for the database; beyond, the oldest are lost.
const MAX_UNWRITTEN: usize = 400;

/// How many rows are read at once.
const BATCH: u32 = 100;

/// The most rows that may become visible after one with a greater number.
const OVERLAP: i64 = 20;

/// The time that a row for ten seconds is kept for the other control planes, in seconds.
const SHORT_KEPT: u64 = 180;

impl Stats {
    /// Has no traffic yet. `instance` is this process among all that use the database.
    pub fn new(store: Arc<dyn Store>, instance: Arc<str>, sharing: Sharing) -> Arc<Self> {
        let state = State {
            rings: Rings::new(now_s()),
            taken: HashMap::new(),
            interval: MIN_INTERVAL,
            part: Unsaved::new(RESOLUTIONS[0]),
            minute: Unsaved::new(RESOLUTIONS[1]),
            ten_minutes: Unsaved::new(RESOLUTIONS[2]),
            parts: 0,
            unwritten: VecDeque::new(),
            read: 0,
            is_complete: false,
        };
        Arc::new(Self { store, instance, sharing, state: Mutex::new(state) })
    }

    /// Takes in a report, unless it was taken in before. Returns the number of the last one of the process.
    pub fn take(&self, fleet: &Arc<str>, node: &Arc<str>, report: &StatsReport) -> u64 {
        let now_ms = u64::try_from(now_us() / 1000).unwrap_or(0);
        let (boot, number, series) = (report.boot, report.number, report.series.len());
        {
            let mut state = self.state();
            let before = state.taken.get(node).filter(|taken| taken.boot == boot);
            if let Some(before) = before.filter(|before| before.number >= number) {
                return before.number;
            }
            state.taken.insert(Arc::clone(node), Taken { boot, number, at: Instant::now(), series });
        }
        let slots = slots_of(now_ms, report);
        let mut points = Vec::with_capacity(PIECE);
        for series in &report.series {
            let Ok(scope) = Scope::try_from(series.scope) else { continue };
            let point = Point::from(series);
            let mut keys = vec![Dimension::of(scope, &series.name)];
            if scope == Scope::All {
                keys.push(Dimension::Proxy(Arc::clone(node)));
                keys.extend((report.revision > 0).then_some(Dimension::Revision(report.revision)));
            }
            let parts = match slots.len() {
                1 => vec![point],
                parts => point.split(parts as u64),
            };
            for dimension in keys {
                let key = SeriesKey { fleet: Arc::clone(fleet), dimension };
                points.extend(slots.iter().zip(&parts).map(|(at, point)| (*at, key.clone(), point.clone())));
            }
            if points.len() >= PIECE {
                self.add(now_ms / 1000, points.drain(..));
            }
        }
        self.add(now_ms / 1000, points.drain(..));
        number
    }

    /// Adds points that were taken in.
    fn add(&self, now: u64, points: impl Iterator<Item = (u64, SeriesKey, Point)>) {
        let mut state = self.state();
        for (at, key, point) in points {
            state.rings.add(now, at, &key, &point);
            state.part.add(at, &key, &point);
        }
    }

    /// The time between two reports of a proxy.
    pub fn interval(&self) -> Duration {
        self.state().interval
    }

    /// The requests of each series from the second `from` to before `to`, in slots of at most `step` seconds. Latencies are those of the
    /// series that are `timed`.
    pub fn counts(
        &self,
        range: (u64, u64),
        step: u64,
        timed: fn(&Dimension) -> bool,
    ) -> HashMap<SeriesKey, Point> {
        self.state().rings.counts(now_s(), range, step, timed)
    }

    /// True once everything that was stored is read.
    pub fn is_complete(&self) -> bool {
        self.state().is_complete
    }

    /// Answers a query.
    pub fn answer(&self, query: &Query) -> Answer {
        self.state().rings.answer(now_s(), query)
    }

    /// Reads what is stored, then stores what is taken in and reads what others store, until `shutdown`. While the database is away,
    /// everything stays in memory.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let following = async {
            while let Err(error) = self.read_all().await {
                tracing::debug!(%error, "the stored traffic was not read; trying again");
                tokio::time::sleep(PART).await;
            }
            self.state().is_complete = true;
            let mut interval = tokio::time::interval(PART);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            interval.tick().await;
            loop {
                interval.tick().await;
                self.end_part(false);
                if let Err(error) = self.synchronize().await {
                    tracing::debug!(%error, "traffic was not stored, or that of others was not read; it is kept in memory");
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = following => {}
        }
        self.end_part(true);
        if !matches!(tokio::time::timeout(END_DEADLINE, self.write()).await, Ok(Ok(()))) {
            tracing::warn!("the traffic of the last minutes was not stored");
        }
    }

    /// Reads all rows, from the coarsest to the finest.
    async fn read_all(&self) -> Result<(), StoreError> {
        for resolution in RESOLUTIONS.into_iter().rev() {
            let mut after = 0;
            loop {
                let rows = self.store.stats_rows_of(resolution, after, BATCH).await?;
                let Some(last) = rows.last() else { break };
                after = last.id;
                self.add_rows(&rows);
            }
        }
        Ok(())
    }

    async fn synchronize(&self) -> Result<(), StoreError> {
        self.write().await?;
        if self.sharing == Sharing::Shared {
            loop {
                let before = self.state().read;
                let rows = self
                    .store
                    .stats_rows_after(before - OVERLAP, &self.instance, BATCH + OVERLAP as u32)
                    .await?;
                self.add_rows(&rows);
                if self.state().read == before {
                    break;
                }
            }
        }
        if self.state().parts.is_multiple_of(6) {
            let [_, day, week] = KEPT;
            let now = now_s();
            let before = [SHORT_KEPT, day, week].map(|kept| now.saturating_sub(kept));
            for (resolution, before) in RESOLUTIONS.into_iter().zip(before) {
                self.store.delete_stats_rows(resolution, before).await?;
            }
        }
        Ok(())
    }

    fn add_rows(&self, rows: &[StatsRow]) {
        for row in rows {
            {
                let mut state = self.state();
                state.read = state.read.max(row.id);
                if *row.instance == *self.instance || state.rings.has(row) {
                    continue;
                }
            }
            let cells = match decode(&row.content) {
                Ok(cells) => cells,
                Err(error) => {
                    tracing::warn!(%error, id = row.id, "stored traffic cannot be read");
                    continue;
                }
            };
            let row = Row {
                instance: Arc::clone(&row.instance),
                resolution: row.resolution,
                first: row.first,
                last: row.last,
                cells,
            };
            let mut state = self.state();
            state.rings.add_row(now_s(), &row);
            state.rings.expire(now_s());
        }
    }

    /// Ends the present part, and makes the rows that end with it. `is_last`: all rows end.
    fn end_part(&self, is_last: bool) {
        let now = now_s();
        let mut state = self.state();
        let State { rings, taken, interval, part, minute, ten_minutes, parts, .. } = &mut *state;
        rings.expire(now);
        taken.retain(|_, taken| taken.at.elapsed() < FORGOTTEN);
        let recent = taken.values().filter(|taken| taken.at.elapsed() < 2 * MAX_INTERVAL);
        let series: usize = recent.map(|taken| taken.series).sum();
        *interval =
            Duration::from_secs((series / SERIES_PER_SECOND) as u64).clamp(MIN_INTERVAL, MAX_INTERVAL);
        *parts += 1;
        let part = part.take();
        minute.extend(&part);
        ten_minutes.extend(&part);
        let last = *parts;
        // Nobody else reads the rows of ten seconds of a control plane that is alone.
        let mut rows = vec![(RESOLUTIONS[0], 1, part)];
        if self.sharing == Sharing::Alone || is_last {
            rows.clear();
        }
        for (resolution, length, unsaved) in [(RESOLUTIONS[1], 6, minute), (RESOLUTIONS[2], 60, ten_minutes)]
        {
            let begun = (last - 1) % length + 1;
            if begun == length || is_last {
                rows.push((resolution, begun, unsaved.take()));
            }
        }
        drop(state);
        for (resolution, length, unsaved) in rows {
            let cells = unsaved.cells();
            if cells.is_empty() {
                continue;
            }
            match encode(&cells) {
                Ok(content) => self.state().unwritten.push_back(StatsRow {
                    id: 0,
                    instance: Arc::clone(&self.instance),
                    resolution,
                    first: last + 1 - length,
                    last,
                    at: now,
                    content: content.into(),
                }),
                Err(error) => tracing::error!(%error, "traffic cannot be written for the database"),
            }
        }
        let unwritten = &mut self.state().unwritten;
        // Nobody can use these any more.
        unwritten.retain(|row| row.resolution != RESOLUTIONS[0] || row.at + SHORT_KEPT > now);
        let surplus = unwritten.len().saturating_sub(MAX_UNWRITTEN);
        unwritten.drain(..surplus);
    }

    /// Writes the rows that wait for it.
    async fn write(&self) -> Result<(), StoreError> {
        loop {
            let Some(row) = self.state().unwritten.front().cloned() else { return Ok(()) };
            self.store.save_stats_row(&row).await?;
            // The oldest may have been dropped meanwhile.
            let mut state = self.state();
            if state
                .unwritten
                .front()
                .is_some_and(|front| front.last == row.last && front.resolution == row.resolution)
            {
                state.unwritten.pop_front();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the end of the program may wait for the last rows.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// The seconds, since 1970, of the slots to which the requests of a report belong: they are spread evenly over its length.
fn slots_of(now_ms: u64, report: &StatsReport) -> Vec<u64> {
    let length = report.length_ms.min(KEPT[2] * 1000);
    let end = now_ms.saturating_sub(report.age_ms);
    let start = end.saturating_sub(length);
    // A proxy that was without a control plane for long has one long report.
    let part_s = match length / 1000 {
        0..=600 => RESOLUTIONS[0],
        601..=7200 => RESOLUTIONS[1],
        _ => RESOLUTIONS[2],
    };
    let most = MAX_SPREAD / report.series.len().max(1) as u64;
    let parts = (length / (part_s * 1000)).min(most).max(1);
    // The middle of each part.
    (0..parts).map(|part| (start + (2 * part + 1) * length / (2 * parts)) / 1000).collect()
}

fn now_s() -> u64 {
    u64::try_from(now_us() / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests;
