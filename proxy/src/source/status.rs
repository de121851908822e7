//! The state of a source, and why it cannot start.

use std::path::PathBuf;
use std::time::Duration;

use signalbox_config::{Digest, RevisionId};
use signalbox_process::tls::{Expiry, TlsFileError};

use super::data_plane::Rejected;
use super::starts::ExactRevision;

/// The state of the source.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The served revision; `None` before the first.
    pub serving: Option<Serving>,
    /// The current origin: the control plane's address, the file, or the data directory.
    pub origin: Option<String>,
    /// True if a control plane's stream is open, or the file could be read.
    pub connected: bool,
    /// The time at which the last stream to a control plane ended, in microseconds since 1970; `None`: there was none.
    pub disconnected_at_us: Option<i64>,
    /// The number of candidates that were rejected since the start.
    pub rejected_total: u64,
    /// The reasons why the last candidate was rejected; empty once a later one is served.
    pub rejected: Vec<Rejected>,
    /// The proxy's identity, once it is known; empty with a file.
    pub node_id: String,
    /// The expiry of each certificate for control planes.
    pub certificates: Vec<Expiry>,
    /// The state of the copy on disk.
    pub persistence: Persistence,
    /// The revision that the proxy crashed on and refuses.
    pub crashed: Option<CrashedRevision>,
    /// The revision that is on disk as proven.
    pub proven: Option<ExactRevision>,
}

/// A revision that the proxy crashed on and refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashedRevision {
    /// The revision.
    pub exact: ExactRevision,
    /// How often in a row the proxy crashed on it.
    pub times: u32,
    /// The reason of the refusal, for a person.
    pub message: String,
}

/// The state of the last good snapshot on disk.
#[derive(Debug, Clone, Default)]
pub struct Persistence {
    /// The number of failed writes since the start.
    pub failures: u64,
    /// The error, if writing fails now.
    pub failing: Option<String>,
    /// The number of the revision that was written last; `None`: none was written since the start.
    pub revision: Option<u64>,
}

impl Persistence {
    /// Records a write. Returns true if the ones before failed.
    pub(super) fn written(&mut self, revision: u64) -> bool {
        self.revision = Some(revision);
        self.failing.take().is_some()
    }

    pub(super) fn failed(&mut self, reason: String) {
        self.failures = self.failures.saturating_add(1);
        self.failing = Some(reason);
    }
}

impl Status {
    /// The time of the last contact with a control plane, in microseconds since 1970; the present while there is a stream.
    pub fn last_contact_us(&self) -> Option<i64> {
        if self.connected { Some(jiff::Timestamp::now().as_microsecond()) } else { self.disconnected_at_us }
    }

    pub(super) fn disconnected(&mut self) {
        if std::mem::replace(&mut self.connected, false) {
            self.disconnected_at_us = Some(jiff::Timestamp::now().as_microsecond());
        }
    }

    /// Conditions that the operator should know about although the proxy serves.
    pub fn warnings(&self) -> Vec<String> {
        let persistence = self.persistence.failing.iter().map(|reason| {
            format!("the served revision is not kept on disk, so a restart may serve an older one: {reason}")
        });
        let crashed = self.crashed.iter().map(|CrashedRevision { exact, message, .. }| {
            format!("revision {} is refused: {message}; POST /revision/retry tries it again", exact.revision)
        });
        persistence.chain(crashed).collect()
    }
}

/// A served revision.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Its id; with a file, the number counts the applied versions.
    pub revision: RevisionId,
    /// The generation of the fleet under which it was told to serve it; 0 while the fleet follows the head.
    pub generation: u64,
    /// The digest of all its resources.
    pub digest: Digest,
    /// The number of its resources.
    pub resources: usize,
    /// The time since when it is served, in microseconds since 1970.
    pub applied_at_us: i64,
    /// How long compiling and swapping took.
    pub took: Duration,
}

impl Serving {
    /// The state after `before`. The same revision under another generation is served since it was applied first.
    pub(super) fn after(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) if before.revision == self.revision && before.digest == self.digest => {
                Self { applied_at_us: before.applied_at_us, ..self }
            }
            _ => self,
        }
    }
}

/// The reasons why the source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another proxy uses the data directory.
    #[error("the data directory {0} is in use by another proxy; give each its own --data-dir")]
    DataDirInUse(PathBuf),
    /// A file or directory cannot be created, read or written.
    #[error("cannot use {path}")]
    Io {
        /// The path that was used.
        path: PathBuf,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
    /// The certificates for the control planes cannot be used.
    #[error("--tls-ca, --tls-cert, --tls-key")]
    Tls(#[source] TlsFileError),
    /// An argument is not valid.
    #[error("{0}")]
    Invalid(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_under_another_generation_is_served_since_it_was_applied_first() {
        let serving = |number, generation, applied_at_us| Serving {
            revision: RevisionId { epoch: "e".into(), number },
            generation,
            digest: Digest::default(),
            resources: 0,
            applied_at_us,
            took: Duration::ZERO,
        };
        let first = serving(4, 1, 10).after(None);
        let again = serving(4, 2, 20).after(Some(&first));
        assert_eq!((again.applied_at_us, again.generation), (10, 2));
        assert_eq!(serving(5, 3, 30).after(Some(&again)).applied_at_us, 30);
    }
}
