//! Authentication: tokens, the sessions that stand for them, and the principals they lead to.

mod credentials;
mod follow;
mod given;
mod principal;
mod session;

pub use credentials::{Credentials, CredentialsError, OpenedSession, TokenText};
pub use given::{GivenToken, TokenFlags};
pub use principal::{Principal, Use};
pub use session::{LIFETIME, Session};
