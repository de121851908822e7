//! The sources of configuration: a control plane, a file, or the last good snapshot on disk.
//!
//! - [`xds`] exchanges messages between a control plane and [`staging`], which decides what each message means;
//! - [`last_good`] keeps the last applied revision and the last proven one on disk;
//! - [`blobs`] fetches and keeps the uploaded files that plugins use; [`purges`] follows the purges of cached responses;
//! - [`guard`] notices when revisions crash the proxy; [`starts`] and [`proof`] decide, [`open`] begins with it;
//! - [`file`] reads a declarative file instead.

mod apply;
mod authorize;
mod blobs;
mod connect;
mod counts;
mod data_plane;
mod file;
mod guard;
mod last_good;
mod open;
mod proof;
mod purges;
mod report;
mod selector;
mod settings;
mod side_stream;
mod staging;
mod starts;
mod stats;
mod status;
mod xds;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use blobs::BlobDir;
pub use data_plane::{Answers, Candidate, DataPlane, Rejected, ScopeTraffic, Traffic, TrafficScope};
pub use settings::{ControlPlanes, CrashLoops, Source, Tls};
pub use starts::ExactRevision;
pub use status::{CrashedRevision, Persistence, Serving, StartError, Status};

/// Fetches configuration from `source` and applies it until `shutdown`. Later failures are logged and retried; an
/// error is returned only at the start, before anything was applied.
pub async fn run(
    source: Source,
    data_plane: Arc<dyn DataPlane>,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    match source {
        Source::ControlPlanes(control_planes) => {
            xds::run(*control_planes, data_plane, status, shutdown).await
        }
        Source::File { path, fleet, types } => {
            let reader = file::Reader { path, fleet, types };
            file::run(reader, data_plane, status, shutdown).await
        }
    }
}
