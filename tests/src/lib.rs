//! The harness of the system tests: it starts the real programs and a real database, watches them through their
//! own interfaces, and ends them again, whatever becomes of the test.

pub mod backend;
pub mod client;
pub mod control_plane;
pub mod nginx;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod receiver;
pub mod redis;

pub use backend::{Backend, Behaviour, Echo};
pub use client::{Answer, Load, LoadReport, Protocol, eventually, get};
pub use control_plane::{Api, ApiAnswer, ControlPlane, Metrics};
pub use nginx::Nginx;
pub use pgbouncer::{PgBouncer, PoolMode};
pub use postgres::Postgres;
pub use process::{Daemon, find_program, free_port, program, wait_until};
pub use prometheus::{Alertmanager, Prometheus};
pub use proxy::Proxy;
pub use receiver::{Received, Receiver, Reply};
pub use redis::Redis;
