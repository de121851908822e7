//! The form in which series are stored: rows with the traffic that was taken in since the row before.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use prost::Message as _;
use signalbox_proto::signalbox::report::v1::TrafficSeries;
use signalbox_proto::signalbox::report::v1::traffic_series::Scope;

use super::point::Point;
use super::resolutions::RESOLUTIONS;
use super::series::{Dimension, SeriesKey};

/// The traffic that a control plane took in during a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The process of the control plane.
    pub(super) instance: Arc<str>,
    /// The length of its slots, in seconds.
    pub(super) resolution: u64,
    /// The numbers of the first and the last part that it has. The control plane numbers its parts from 1, each of ten seconds.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) cells: Vec<Cell>,
}

/// A point of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    /// The start of the slot, in seconds since 1970.
    pub(super) at: u64,
    pub(super) key: SeriesKey,
    pub(super) point: Point,
}

/// The traffic that is not stored yet, in slots of one length.
#[derive(Debug)]
pub(super) struct Unsaved {
    resolution: u64,
    points: HashMap<(u64, SeriesKey), Point>,
}

/// The most points that wait to be stored while the database is away; beyond, further series are not stored.
const MAX_UNSAVED: usize = 200_000;

impl Unsaved {
    /// None, in slots of `resolution` seconds.
    pub(super) fn new(resolution: u64) -> Self {
        Self { resolution, points: HashMap::new() }
    }

    /// Takes all that is in it.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.resolution))
    }

    pub(super) fn add(&mut self, at: u64, key: &SeriesKey, point: &Point) {
        let is_full = self.points.len() >= MAX_UNSAVED;
        let coarse = if self.resolution > RESOLUTIONS[1] { point.without_targets() } else { None };
        let point = coarse.as_ref().unwrap_or(point);
        let at = at - at % self.resolution;
        if let Some(sum) = self.points.get_mut(&(at, key.clone())) {
            sum.add(point);
        } else if !is_full {
            self.points.insert((at, key.clone()), point.clone());
        }
    }

    /// The points.
    pub(super) fn cells(self) -> Vec<Cell> {
        self.points.into_iter().map(|((at, key), point)| Cell { at, key, point }).collect()
    }

    /// Adds the points of others.
    pub(super) fn extend(&mut self, other: &Self) {
        for ((at, key), point) in &other.points {
            self.add(*at, key, point);
        }
    }
}

/// The cells of a row, as they are stored.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredCells {
    /// The names of fleets, proxies and resources, which cells name by their place.
    #[prost(string, repeated, tag = "1")]
    names: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    cells: Vec<StoredCell>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredCell {
    #[prost(uint64, tag = "1")]
    at: u64,
    #[prost(uint32, tag = "2")]
    fleet: u32,
    #[prost(uint32, tag = "3")]
    kind: u32,
    /// The place of the name, or the number of a revision.
    #[prost(uint64, tag = "4")]
    name: u64,
    #[prost(message, optional, tag = "5")]
    counts: Option<TrafficSeries>,
}

/// The kinds of dimensions in [`StoredCell::kind`].
const KINDS: [&str; 5] = ["route", "upstream", "consumer", "proxy", "revision"];

/// The greatest size of cells before compression, in bytes.
const MAX_SIZE: usize = 256 << 20;

/// Writes the cells of a row: protobuf, compressed with zstd.
pub(super) fn encode(cells: &[Cell]) -> io::Result<Vec<u8>> {
    let mut names = Names::default();
    let cells = cells.iter().map(|cell| {
        let (kind, name) = match &cell.key.dimension {
            Dimension::All => (0, 0),
            Dimension::Revision(number) => (5, *number),
            dimension => {
                let (kind, name) = dimension.label().unwrap_or_default();
                let place = KINDS.iter().position(|known| *known == kind).unwrap_or(0);
                (place as u32 + 1, u64::from(names.place(&name)))
            }
        };
        StoredCell {
            at: cell.at,
            fleet: names.place(&cell.key.fleet),
            kind,
            name,
            counts: Some(counts(&cell.point)),
        }
    });
    let cells = cells.collect();
    let stored = StoredCells { names: names.list, cells };
    zstd::encode_all(&*stored.encode_to_vec(), 3)
}

/// Reads what [`encode`] has written.
pub(super) fn decode(content: &[u8]) -> io::Result<Vec<Cell>> {
    let bytes = zstd::bulk::decompress(content, MAX_SIZE)?;
    let StoredCells { names, cells } = StoredCells::decode(&*bytes).map_err(io::Error::other)?;
    let names: Vec<Arc<str>> = names.into_iter().map(Arc::from).collect();
    let name = |place: u64| usize::try_from(place).ok().and_then(|place| names.get(place));
    // A later version may have dimensions that this one does not know.
    let cells = cells.into_iter().filter_map(|cell| {
        let fleet = Arc::clone(name(cell.fleet.into())?);
        let kind = usize::try_from(cell.kind).ok()?;
        let dimension = match kind.checked_sub(1) {
            None => Dimension::All,
            Some(4) => Dimension::Revision(cell.name),
            Some(kind) => Dimension::from_label(KINDS.get(kind)?, name(cell.name)?)?,
        };
        let point = Point::from(&cell.counts.unwrap_or_default());
        Some(Cell { at: cell.at, key: SeriesKey { fleet, dimension }, point })
    });
    Ok(cells.collect())
}

#[derive(Default)]
struct Names {
    list: Vec<String>,
    places: HashMap<String, u32>,
}

impl Names {
    fn place(&mut self, name: &str) -> u32 {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let place = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.list.push(name.to_owned());
        self.places.insert(name.to_owned(), place);
        place
    }
}

fn counts(point: &Point) -> TrafficSeries {
    let (buckets, bucket_counts) = Vec::<(i32, u64)>::from(point.latency.clone())
        .into_iter()
        .map(|(bucket, count)| (u32::try_from(bucket).unwrap_or(0), count))
        .unzip();
    TrafficSeries {
        scope: Scope::All.into(),
        name: String::new(),
        succeeded: point.succeeded,
        client_errors: point.client_errors,
        no_route: point.no_route,
        server_errors: point.server_errors,
        bytes_in: point.bytes_in,
        bytes_out: point.bytes_out,
        buckets,
        bucket_counts,
        flags: (&point.flags).into(),
        failed_targets: (&point.failed_targets).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::tally::Tally;

    #[test]
    fn cells_are_read_as_they_were_written() {
        let dimensions = [
            Dimension::All,
            Dimension::Route("a".into()),
            Dimension::Upstream("a".into()),
            Dimension::Consumer("b".into()),
            Dimension::Proxy("a".into()),
            Dimension::Revision(1 << 40),
            Dimension::Route(Dimension::OTHER.into()),
        ];
        let cells: Vec<Cell> = (dimensions.into_iter().enumerate())
            .map(|(index, dimension)| Cell {
                at: 1000 + index as u64,
                key: SeriesKey { fleet: format!("f{}", index % 2).into(), dimension },
                point: Point {
                    succeeded: index as u64,
                    flags: Tally::from(&[("UT".to_owned(), 1)].into()),
                    failed_targets: Tally::from(&[("10.0.0.1:80".to_owned(), 7)].into()),
                    bytes_in: u64::MAX,
                    latency: vec![(0, 1), (255, index as u64 + 1)].into(),
                    ..Point::default()
                },
            })
            .collect();
        assert_eq!(decode(&encode(&cells).unwrap()).unwrap(), cells);
        assert_eq!(decode(&encode(&[]).unwrap()).unwrap(), []);
        assert!(decode(b"nonsense").is_err());
    }

    #[test]
    fn unsaved_points_are_joined_in_coarser_slots() {
        let key = SeriesKey { fleet: "f".into(), dimension: Dimension::All };
        let point = Point { succeeded: 1, ..Point::default() };
        let mut unsaved = Unsaved::new(10);
        for at in [61, 70, 75, 120] {
            unsaved.add(at, &key, &point);
        }
        assert_eq!(unsaved.points.len(), 3);
        let mut all = Unsaved::new(60);
        all.extend(&unsaved);
        all.extend(&unsaved.take());
        assert!(unsaved.cells().is_empty());
        let mut cells: Vec<_> = all.cells().into_iter().map(|cell| (cell.at, cell.point.succeeded)).collect();
        cells.sort_unstable();
        assert_eq!(cells, [(60, 6), (120, 2)]);
    }
}
