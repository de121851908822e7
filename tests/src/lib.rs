//! The harness of the system tests: it starts the real programs and a real database, watches them through their
//! own interfaces, and ends them again, whatever becomes of the test.

pub mod postgres;
pub mod process;

pub use postgres::Postgres;
pub use process::{Daemon, free_port};
