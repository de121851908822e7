//! Applying a candidate on the data plane, and recording the result.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::data_plane::{Candidate, DataPlane, Rejected};
use super::status::{Serving, Status};

/// A candidate that was not applied.
#[derive(Debug)]
pub(super) struct RefusedCandidate {
    /// The candidate, to try it again; `None` if the data plane panicked over it.
    pub(super) candidate: Option<Candidate>,
    /// The reasons; never empty.
    pub(super) reasons: Vec<Rejected>,
}

/// Applies `candidate`, which came from `origin`, on a thread that may block.
pub(super) async fn apply(
    data_plane: &Arc<dyn DataPlane>,
    candidate: Candidate,
    status: &watch::Sender<Status>,
    origin: &str,
) -> Result<Candidate, RefusedCandidate> {
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
                generation: candidate.snapshot.assignment().generation,
                digest: candidate.snapshot.digest(),
                resources: candidate.snapshot.len(),
                applied_at_us: jiff::Timestamp::now().as_microsecond(),
                took,
            };
            status.send_modify(|status| {
                status.serving = Some(serving.after(status.serving.as_ref()));
                status.origin = Some(origin.to_owned());
                status.rejected = Vec::new();
            });
            return Ok(candidate);
        }
        Ok((candidate, Err(reasons), _)) => RefusedCandidate { candidate: Some(candidate), reasons },
        Err(error) => {
            let message = format!("applying it failed: {error}");
            RefusedCandidate {
                candidate: None,
                reasons: vec![Rejected { key: None, field: String::new(), message }],
            }
        }
    };
    record_rejection(status, &refused.reasons);
    Err(refused)
}

/// Records that a candidate was rejected.
pub(super) fn record_rejection(status: &watch::Sender<Status>, reasons: &[Rejected]) {
    status.send_modify(|status| {
        status.rejected_total += 1;
        status.rejected = reasons.to_vec();
    });
}
