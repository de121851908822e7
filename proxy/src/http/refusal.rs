//! Refusing input that is no request, or is late.

use std::rc::Rc;

use super::downstream::Downstream;
use super::exchange::Exchange;
use super::problem;
use crate::core::failure::Failure;

/// Counts and logs a refusal, and returns the response's bytes, after which an HTTP/1.1 connection is closed.
pub(super) fn refuse(downstream: &Rc<Downstream>, failure: Failure) -> Vec<u8> {
    let exchange = Exchange::begin_refused(Rc::clone(downstream), failure);
    let raw = problem::raw(failure, exchange.request.request_id());
    exchange.complete();
    raw
}
