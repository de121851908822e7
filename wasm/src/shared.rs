//! The data that all instances of a plugin share. It is kept from one revision to the next.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::status::Status;

/// The most bytes of keys and values, and the most keys.
const MAX_BYTES: usize = 4 << 20;
const MAX_KEYS: usize = 10_000;
/// The most metrics, and the longest name of one.
const MAX_METRICS: usize = 1000;
const MAX_METRIC_NAME: usize = 256;

/// The shared data of a plugin.
#[derive(Default)]
pub(crate) struct Shared {
    data: Mutex<Data>,
    metrics: Mutex<Metrics>,
}

#[derive(Default)]
struct Data {
    values: HashMap<Box<[u8]>, (Bytes, u32)>,
    size: usize,
    /// The version that was given last.
    version: u32,
}

#[derive(Default)]
struct Metrics {
    ids: HashMap<Box<[u8]>, u32>,
    cells: Vec<(MetricType, AtomicU64)>,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricType {
    Counter,
    Gauge,
    /// Its value is the last that was recorded.
    Histogram,
}

impl Shared {
    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A value and its version.
    pub(crate) fn get(&self, key: &[u8]) -> Option<(Bytes, u32)> {
        self.data().values.get(key).cloned()
    }

    /// Sets a value, if `cas` is zero or the version of the value that is there.
    pub(crate) fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), Status> {
        let mut data = self.data();
        let data = &mut *data;
        let before = data.values.get(key).map(|(value, version)| (value.len(), *version));
        if cas != 0 && before.is_none_or(|(_, version)| version != cas) {
            return Err(Status::CasMismatch);
        }
        let freed = before.map_or(0, |(size, _)| size + key.len());
        let size = data.size - freed + key.len() + value.len();
        if size > MAX_BYTES || (before.is_none() && data.values.len() >= MAX_KEYS) {
            return Err(Status::InternalFailure);
        }
        data.size = size;
        // Zero means that no version is asked for.
        data.version = data.version.checked_add(1).unwrap_or(1);
        data.values.insert(key.into(), (Bytes::copy_from_slice(value), data.version));
        Ok(())
    }

    /// The id of a metric, which is made if there is none of this name.
    pub(crate) fn define(&self, metric_type: MetricType, name: &[u8]) -> Result<u32, Status> {
        let mut metrics = self.metrics();
        if let Some(id) = metrics.ids.get(name) {
            return Ok(*id);
        }
        if metrics.cells.len() >= MAX_METRICS || name.len() > MAX_METRIC_NAME {
            return Err(Status::InternalFailure);
        }
        let id = u32::try_from(metrics.cells.len()).map_err(|_| Status::InternalFailure)?;
        metrics.cells.push((metric_type, AtomicU64::new(0)));
        metrics.ids.insert(name.into(), id);
        Ok(id)
    }

    fn with_metric<T>(&self, id: u32, then: impl FnOnce(MetricType, &AtomicU64) -> T) -> Result<T, Status> {
        let metrics = self.metrics();
        let (metric_type, cell) = metrics.cells.get(id as usize).ok_or(Status::NotFound)?;
        Ok(then(*metric_type, cell))
    }

    pub(crate) fn record(&self, id: u32, value: u64) -> Result<(), Status> {
        self.with_metric(id, |_, cell| cell.store(value, Ordering::Relaxed))
    }

    pub(crate) fn increment(&self, id: u32, by: i64) -> Result<(), Status> {
        self.with_metric(id, |metric_type, cell| {
            if metric_type == MetricType::Histogram || (metric_type == MetricType::Counter && by < 0) {
                return Err(Status::BadArgument);
            }
            // Two's complement: adding a negative number wraps to the difference.
            cell.fetch_add(by.cast_unsigned(), Ordering::Relaxed);
            Ok(())
        })?
    }

    pub(crate) fn read(&self, id: u32) -> Result<u64, Status> {
        self.with_metric(id, |_, cell| cell.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_set_only_over_the_version_that_was_read() {
        let shared = Shared::default();
        assert_eq!(shared.get(b"k"), None);
        assert_eq!(shared.set(b"k", b"1", 7), Err(Status::CasMismatch));
        shared.set(b"k", b"1", 0).unwrap();
        let (_, version) = shared.get(b"k").unwrap();
        shared.set(b"k", b"2", version).unwrap();
        assert_eq!(shared.set(b"k", b"3", version), Err(Status::CasMismatch));
        assert_eq!(shared.get(b"k").unwrap().0, "2");
    }

    #[test]
    fn shared_data_is_bounded_by_bytes_and_keys() {
        let shared = Shared::default();
        let large = vec![0; MAX_BYTES];
        assert_eq!(shared.set(b"k", &large, 0), Err(Status::InternalFailure));
        shared.set(b"k", &large[1..], 0).unwrap();
        // In its own place there is room.
        shared.set(b"k", &large[1..], 0).unwrap();
        assert_eq!(shared.set(b"l", b"", 0), Err(Status::InternalFailure));
        shared.set(b"k", b"", 0).unwrap();
        for key in 1..MAX_KEYS {
            shared.set(&key.to_le_bytes(), b"", 0).unwrap();
        }
        assert_eq!(shared.set(b"another", b"", 0), Err(Status::InternalFailure));
    }

    #[test]
    fn metrics_are_counted_by_their_type_and_bounded() {
        let shared = Shared::default();
        let counter = shared.define(MetricType::Counter, b"c").unwrap();
        assert_eq!(shared.define(MetricType::Counter, b"c"), Ok(counter));
        shared.increment(counter, 2).unwrap();
        assert_eq!(shared.increment(counter, -1), Err(Status::BadArgument));
        assert_eq!(shared.read(counter), Ok(2));
        let gauge = shared.define(MetricType::Gauge, b"g").unwrap();
        shared.record(gauge, 5).unwrap();
        shared.increment(gauge, -2).unwrap();
        assert_eq!(shared.read(gauge), Ok(3));
        assert_eq!(shared.read(99), Err(Status::NotFound));
        for index in 2..MAX_METRICS {
            shared.define(MetricType::Gauge, index.to_string().as_bytes()).unwrap();
        }
        assert_eq!(shared.define(MetricType::Gauge, b"one more"), Err(Status::InternalFailure));
    }
}
