//! Why a call into a module did not return.

use std::fmt;

use wasmtime::Trap;

/// A module failed. Its instance is not used any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// It took longer than `limits.time`.
    #[error("the module took longer than limits.time")]
    TimedOut,
    /// It broke off by itself, or broke a rule of its virtual machine.
    #[error("the module trapped: {0}")]
    Trapped(String),
    /// It refused to start, or its configuration.
    #[error("{0}")]
    Refused(&'static str),
    /// The instance in which the request had its context was thrown away when another request failed in it.
    #[error("another request failed in the same instance of the module")]
    Lost,
    /// It held a request or a response, and did not let it go in time.
    #[error("the module held the request for too long")]
    Held,
}

impl Fault {
    /// The outcome as which it is counted.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::TimedOut | Self::Held => "timed_out",
            Self::Trapped(_) | Self::Refused(_) => "trapped",
            Self::Lost => "lost",
        }
    }
}

/// The module called `proxy_exit` of WASI.
#[derive(Debug)]
pub(crate) struct Exit(pub(crate) u32);

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it exited with status {}", self.0)
    }
}

impl std::error::Error for Exit {}

impl From<wasmtime::Error> for Fault {
    fn from(error: wasmtime::Error) -> Self {
        if matches!(error.downcast_ref(), Some(Trap::Interrupt)) {
            return Self::TimedOut;
        }
        let mut text = String::new();
        for cause in error.chain() {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause.to_string());
        }
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        Self::Trapped(text.replace('\n', " "))
    }
}

const MAX_TEXT: usize = 1000;
