//! The control plane: keeps the configuration in a database, serves the admin API and the UI, and streams every
//! revision to the proxies.

pub mod board;
pub mod publish;
pub mod store;
