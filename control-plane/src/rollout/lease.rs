//! The lease of the leader, which is renewed beside everything else: a slow write must not cost it.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use signalbox_process::ErrorChain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::service::Rollouts;
use crate::store::Term;

/// How long a control plane leads without renewing its lease.
const LEASE: Duration = Duration::from_secs(5);

/// How often the lease is renewed, and how often a control plane that does not lead tries to acquire it.
const RENEWAL: Duration = Duration::from_secs(1);

impl Rollouts {
    /// Holds the lease, or tries to acquire it, while it is `needed`; gives it back at `end`. `held` says under which term it is held.
    pub(super) async fn hold_lease(
        &self,
        mut needed: watch::Receiver<bool>,
        held: watch::Sender<Option<Term>>,
        end: CancellationToken,
    ) {
        let holder = self.board.instance();
        let mut renewed = Instant::now();
        let mut failing = false;
        while !end.is_cancelled() {
            let is_needed = *needed.borrow_and_update();
            if is_needed {
                let began = Instant::now();
                match self.metrics.store_call("lead", self.store.lead(holder, LEASE)).await {
                    Ok(term) => {
                        (renewed, failing) = (began, false);
                        self.set_term(&held, term);
                        if term.is_none() {
                            self.set_another_led(began);
                        }
                        self.set_announces(term.is_some());
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::error!(error = %ErrorChain(&error), "the lease for rollouts cannot be renewed");
                        }
                        if renewed.elapsed() >= LEASE {
                            // It announces further, until it learns that another one leads.
                            self.set_term(&held, None);
                        }
                    }
                }
            } else {
                // Nobody is to pay for a lease who has neither progressive rollouts nor webhooks.
                self.step_down(&held).await;
            }
            tokio::select! {
                () = end.cancelled() => {}
                _ = needed.changed() => {}
                () = tokio::time::sleep(RENEWAL), if is_needed => {}
            }
        }
        self.step_down(&held).await;
    }

    fn set_term(&self, held: &watch::Sender<Option<Term>>, term: Option<Term>) {
        let changed = held.send_if_modified(|known| std::mem::replace(known, term) != term);
        self.is_leader.store(term.is_some(), Ordering::Relaxed);
        match term {
            Some(term) if changed => {
                tracing::info!(term = term.0, "this control plane decides about rollouts");
            }
            None if changed => tracing::info!("this control plane does not decide about rollouts any more"),
            _ => {}
        }
    }

    fn set_announces(&self, announces: bool) {
        self.announces.send_if_modified(|known| std::mem::replace(known, announces) != announces);
    }

    fn set_another_led(&self, at: Instant) {
        *self.another_led.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    async fn step_down(&self, held: &watch::Sender<Option<Term>>) {
        let term = *held.borrow();
        self.set_announces(false);
        self.set_term(held, None);
        if let Some(term) = term
            && let Err(error) = self.store.step_down(self.board.instance(), term).await
        {
            tracing::warn!(error = %ErrorChain(&error), "the lease could not be given back; it expires soon");
        }
    }
}
