//! Redis as a store that plugins share: few connections in each process, on a thread of their own.
//!
//! A request that needs Redis hands a script to that thread and waits for the answer, at most for the configured time. A
//! Redis that is slow or away therefore costs each request at most that time, and, once it is known, none.

mod breaker;
mod connect;
mod pool;
mod settings;

pub(crate) use pool::{Call, RedisPool, Script, Unavailable};
pub(crate) use settings::RedisSettings;
