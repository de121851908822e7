//! Identity providers: their keys and endpoints, fetched over a named upstream and kept up to date.

mod document;
mod keys;
mod remote;
mod schedule;
mod settings;

pub(crate) use document::{Metadata, endpoint_of, is_issuer};
pub(crate) use remote::{Known, Provider, Refetch};
pub(crate) use settings::{KeysSpec, Source, TIMEOUT, check_upstream, upstream_reference};
