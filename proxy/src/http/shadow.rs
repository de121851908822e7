//! Plugins that run in shadow: they decide about a copy of the request, and nothing follows from it.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use signalbox_plugin::{Exchange as PluginNotes, Flow, Outcomes, PluginRequest, Reply as PluginReply, host};

use super::exchange::Exchange;
use crate::active::Step;
use crate::core::failure::Failure;

/// Runs a plugin on a copy of the request. What it would have done is counted, and what it would have answered is noted for the
/// access log. It fails only when the time of the request is over.
pub(super) async fn run_in_shadow(
    exchange: &Exchange,
    step: &Step,
    request: &mut PluginRequest<'_>,
) -> Result<(), Failure> {
    let mut head = request.head.clone();
    let mut notes = PluginNotes::default();
    let decision = decide(exchange, step, host::copy_for_shadow(request, &mut head, &mut notes));
    let decided = AssertUnwindSafe(decision).catch_unwind().await;
    host::keep_of_shadow(request.exchange, notes);
    let outcome = match decided {
        Ok(Ok(None)) => Outcomes::WOULD_PASS,
        Ok(Ok(Some(reply))) => {
            exchange.note_shadow_answer(&step.name, reply.status());
            Outcomes::WOULD_ANSWER
        }
        Ok(Err(failure)) => return Err(failure),
        Err(_) => {
            tracing::error!(plugin = %step.name, "a plugin panicked in shadow");
            Outcomes::PANICKED
        }
    };
    step.stats.outcomes.count(exchange.request.downstream.worker.index, outcome);
    Ok(())
}

/// The answer of the plugin, if it would have answered.
async fn decide<'c>(
    exchange: &Exchange,
    step: &'c Step,
    mut copy: PluginRequest<'c>,
) -> Result<Option<Box<PluginReply>>, Failure> {
    host::enter(&mut copy, &*step.plugin, &step.stats.outcomes);
    let flow = match step.plugin.on_request(&mut copy) {
        Flow::Wait(future) => {
            step.stats.note_wait();
            exchange.in_time(future).await?
        }
        Flow::Continue => Flow::Continue,
        Flow::Respond(reply) => Flow::Respond(reply),
    };
    match flow {
        Flow::Respond(reply) => Ok(Some(reply)),
        Flow::Continue => Ok(None),
        Flow::Wait(_) => Err(Failure::Misconfigured),
    }
}
