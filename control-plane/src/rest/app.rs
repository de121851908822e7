//! The state that every endpoint works on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::bad_tokens::BadTokens;
use super::event_ring::EventRing;
use super::problem::{Problem, unauthorized};
use crate::auth::Credentials;
use crate::board::Board;
use crate::health_report::HealthReports;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::rollout::Rollouts;
use crate::spans::Spans;
use crate::stats::Stats;
use crate::store::Store;
use crate::webhook::Webhooks;
use crate::writer::Writer;

/// The parts of the control plane that the admin API works on.
pub struct Services {
    /// The published state.
    pub publisher: Arc<Publisher>,
    /// For history, which is not in memory.
    pub store: Arc<dyn Store>,
    /// The tokens and sessions.
    pub credentials: Arc<Credentials>,
    /// Proxies and immediate rollouts.
    pub board: Arc<Board>,
    /// Progressive rollouts.
    pub rollouts: Arc<Rollouts>,
    /// Traffic as time series.
    pub stats: Arc<Stats>,
    /// The reports of what is wrong.
    pub health: Arc<HealthReports>,
    /// Sends events to webhooks.
    pub webhooks: Arc<Webhooks>,
    /// Takes the spans of requests.
    pub spans: Arc<Spans>,
    /// To be counted and shown.
    pub metrics: Arc<Metrics>,
    /// The name of this control plane, as proxies' `connected_to` has it.
    pub replica: String,
    /// True if clients come by TLS.
    pub tls: bool,
    /// True if the debugging pages of the process are served.
    pub profiling: bool,
    /// Ends what goes on for long.
    pub shutdown: CancellationToken,
}

pub(crate) struct App {
    pub(super) services: Services,
    pub(super) writer: Writer,
    pub(super) events: EventRing,
    pub(super) bad_tokens: BadTokens,
    /// For those who read or write out a whole set: of 100,000 routes one takes some 300 MB.
    pub(super) whole_sets: Arc<Semaphore>,
}

impl std::ops::Deref for App {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.services
    }
}

/// How many whole sets may be read or written out at once, and how long one waits for that.
const WHOLE_SETS: usize = 2;
const WHOLE_SET_WAIT: Duration = Duration::from_secs(10);

impl App {
    pub(super) fn new(services: Services) -> Self {
        Self {
            writer: Writer::new(Arc::clone(&services.publisher)),
            services,
            events: EventRing::new(),
            bad_tokens: BadTokens::default(),
            whole_sets: Arc::new(Semaphore::new(WHOLE_SETS)),
        }
    }

    /// Waits until a whole set may be read or written out, for as long as what is returned is kept.
    pub(super) async fn whole_set(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = tokio::time::timeout(WHOLE_SET_WAIT, Arc::clone(&self.whole_sets).acquire_owned()).await;
        let busy = || Problem::unavailable("other requests for whole sets are running".to_owned(), 5);
        permit.map_err(|_| busy())?.map_err(|_| busy())
    }

    /// A token was presented in vain.
    pub(super) fn bad_token(&self, from: IpAddr, detail: &str) -> Problem {
        match self.bad_tokens.record(from, Instant::now()) {
            None => unauthorized(detail),
            Some(seconds) => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many tokens that are not known")
                    .header(header::RETRY_AFTER, seconds.into())
            }
        }
    }
}
