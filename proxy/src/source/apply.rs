//! Having the data plane apply a candidate, and saying how that went.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::{Candidate, DataPlane, Rejected, Serving, Status};

/// A candidate that was not applied.
#[derive(Debug)]
pub(super) struct Refused {
    /// To try again; `None` when the data plane panicked over it.
    pub(super) candidate: Option<Candidate>,
    /// Why; never empty.
    pub(super) reasons: Vec<Rejected>,
}

/// Applies `candidate`, which came from `origin`, on a thread that may block.
pub(super) async fn apply(
    data_plane: &Arc<dyn DataPlane>,
    candidate: Candidate,
    status: &watch::Sender<Status>,
    origin: &str,
) -> Result<Candidate, Refused> {
    let applying = tokio::task::spawn_blocking({
        let data_plane = data_plane.clone();
        move || {
            let started = Instant::now();
            let result = data_plane.apply(&candidate);
            (candidate, result, started.elapsed())
        }
    });
    let refused = match applying.await {
        Ok((candidate, Ok(()), took)) => {
            let serving = Serving {
                revision: candidate.snapshot.id().clone(),
                digest: candidate.snapshot.digest(),
                resources: candidate.snapshot.len(),
                applied_at_us: jiff::Timestamp::now().as_microsecond(),
                took,
            };
            status.send_modify(|status| {
                status.serving = Some(serving);
                status.origin = Some(origin.to_owned());
                status.rejected = Vec::new();
            });
            return Ok(candidate);
        }
        Ok((candidate, Err(reasons), _)) => Refused { candidate: Some(candidate), reasons },
        Err(error) => {
            let message = format!("applying it failed: {error}");
            Refused { candidate: None, reasons: vec![Rejected { key: None, field: String::new(), message }] }
        }
    };
    note(status, &refused.reasons);
    Err(refused)
}

/// Notes that a candidate was rejected.
pub(super) fn note(status: &watch::Sender<Status>, reasons: &[Rejected]) {
    status.send_modify(|status| {
        status.rejected_total += 1;
        status.rejected = reasons.to_vec();
    });
}
