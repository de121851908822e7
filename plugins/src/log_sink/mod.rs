//! The parts that the logs share: the fields of an entry, the bounded queue, and the task that sends batches.

use std::time::Duration;

mod delivery;
mod entry;
mod losses;
mod queue;
mod settings;

pub(crate) use self::delivery::{Format, HttpSink, Taken};
pub(crate) use self::entry::{Field, FieldName, Selection, SelectionSpec, Value};
pub(crate) use self::losses::Losses;
pub(crate) use self::queue::Gate;
pub(crate) use self::settings::{BatchSpec, Endpoint, EndpointSpec, HeaderValues, QueueSpec};

/// The outcome that is counted for an entry that the sink has taken.
pub(crate) const SENT: &str = "sent";
/// The same for an entry for which the queue had no room.
pub(crate) const DROPPED: &str = "dropped";
/// The same for an entry that the sink has not taken.
pub(crate) const FAILED: &str = "failed";
/// All of them.
pub(crate) const OUTCOMES: &[&str] = &[SENT, DROPPED, FAILED];

/// An entry as it is sent.
pub(crate) type Entry = Box<[u8]>;

/// The time to wait for the answer to a batch, where the configuration has none.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of times that a batch is sent again, where the configuration has none.
pub(crate) const DEFAULT_RETRIES: u8 = 3;
