//! The traffic of the last seven days as time series, in memory.
//!
//! [`ring`] has the series of one resolution, [`rings`] all resolutions with the parts that came from other control planes. [`journal`] is the form
//! in which they are stored: for the next start, and for the other control planes. [`service`] takes in the reports of proxies, and answers
//! queries.

mod journal;
mod point;
mod query;
mod resolutions;
mod ring;
mod rings;
mod series;
mod service;
mod tally;

pub use point::Point;
pub use query::{Answer, AnsweredSeries, Query, Select};
pub use series::{Dimension, SeriesKey};
pub use service::{MIN_INTERVAL, Stats};
pub use tally::Tally;
