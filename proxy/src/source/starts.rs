//! The history of starts and crashes, and the decision which revision a start serves: functions over values.
//!
//! A run is **young** until it has lasted for the crash window (30 s) or has ended in order. A revision is **on trial**
//! from the moment before it is applied until it was served for the crash window, was rejected, was replaced, or the run
//! has ended in order. Both facts are on disk while they hold, so a run that finds them there knows that the run
//! before it crashed. The causes of a crash look alike: a panic, an abort, the OOM killer, SIGKILL.
//!
//! Three young runs in a row that crashed, or three crashes in a row with the same revision on trial, are a **crash
//! loop**. The first count also covers a configuration that changes faster than it crashes. The second one also covers
//! a revision that comes from a control plane long after each start. Neither count depends on a clock.

use std::fmt::{self, Write as _};
use std::time::Duration;

use signalbox_config::{RevisionId, Snapshot};

/// A revision with the digest of its content: a number alone could be another revision's after a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactRevision {
    /// The revision.
    pub revision: RevisionId,
    /// The digest, in hexadecimal digits.
    pub digest: String,
}

impl ExactRevision {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self { revision: snapshot.id().clone(), digest: snapshot.digest().to_string() }
    }

    /// Parses `EPOCH NUMBER DIGEST`, as [`fmt::Display`] writes it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.rsplitn(3, ' ');
        let (digest, number, epoch) = (parts.next()?, parts.next()?, parts.next()?);
        let revision = RevisionId { epoch: epoch.into(), number: number.parse().ok()? };
        Some(Self { revision, digest: digest.to_owned() })
    }
}

impl fmt::Display for ExactRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.revision.epoch, self.revision.number, self.digest)
    }
}

/// A revision that the proxy crashed on and refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crashed {
    pub(super) exact: ExactRevision,
    /// How often in a row the proxy crashed with it on trial; at least 1.
    pub(super) times: u32,
    /// The number of young runs in a row that crashed.
    pub(super) young_runs: u32,
}

impl Crashed {
    /// The reason of the refusal. `window` is the crash window.
    pub(super) fn message(&self, window: Duration) -> String {
        let seconds = window.as_secs_f64();
        let Self { times, young_runs, .. } = self;
        if *times >= CRASHES {
            format!("the proxy crashed {times} times within {seconds} s of starting with it")
        } else {
            format!(
                "the proxy crashed {young_runs} times within {seconds} s of starting, the last time with it"
            )
        }
    }
}

/// The number of crashes that make a crash loop.
pub(super) const CRASHES: u32 = 3;

/// The content of the start marker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History {
    /// Identifies the run that wrote it; for people.
    boot: String,
    /// True while the run is young.
    young: bool,
    /// The revision on trial.
    trial: Option<ExactRevision>,
    /// The number of young runs in a row that crashed before this run.
    young_crashes: u32,
    /// The revision that was on trial at the last crash, and how often in a row it was.
    crashes: Option<(ExactRevision, u32)>,
    refused: Option<Crashed>,
}

/// The snapshot that a start serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The last applied one.
    Applied,
    /// The last proven one.
    Proven,
    /// Whatever there is, but only after control planes had time to send another revision: either there is nothing, or
    /// the proxy crashed on it and nothing better is there.
    AskFirst,
}

/// Decides what a start serves. `crash_loop` is the result of [`History::next_run`]. `applied` and `proven` are the
/// revisions on disk. In a crash loop with a proven revision, `applied` does not matter and need not be read.
pub(super) fn choose(
    history: &History,
    crash_loop: bool,
    applied: Option<&ExactRevision>,
    proven: Option<&ExactRevision>,
) -> Start {
    let refused = history.refused.as_ref().map(|crashed| &crashed.exact);
    let allowed = applied.is_some() && applied != refused;
    let crashed_on = |proven: &ExactRevision| {
        history.crashes.as_ref().is_some_and(|(exact, times)| exact == proven && *times >= CRASHES)
    };
    match proven {
        _ if allowed && !crash_loop => Start::Applied,
        Some(proven) if crash_loop && crashed_on(proven) => Start::AskFirst,
        Some(_) => Start::Proven,
        None if allowed => Start::Applied,
        None => Start::AskFirst,
    }
}

impl History {
    /// Accounts for the end of the last run, and begins the next one. Returns true if the proxy is in a crash loop; the
    /// revision of the last crash is refused then, unless it is the proven one, on which a start falls back.
    pub(super) fn next_run(self, boot: String, proven: Option<&ExactRevision>) -> (Self, bool) {
        let crashed = self.young || self.trial.is_some();
        let young_crashes =
            if self.young { self.young_crashes.saturating_add(1) } else { self.young_crashes };
        let crashes = match (self.trial, self.crashes) {
            (Some(trial), Some((exact, times))) if exact == trial => Some((exact, times.saturating_add(1))),
            (Some(trial), _) => Some((trial, 1)),
            (None, crashes) => crashes,
        };
        let with = crashes.as_ref().map_or(0, |(_, times)| *times);
        let crash_loop = crashed && (young_crashes >= CRASHES || with >= CRASHES);
        let blamed = crashes.as_ref().filter(|(exact, _)| crash_loop && proven != Some(exact));
        let blamed = blamed.map(|(exact, times)| Crashed {
            exact: exact.clone(),
            times: *times,
            young_runs: young_crashes,
        });
        let refused = blamed.or(self.refused);
        (Self { boot, young: true, trial: None, young_crashes, crashes, refused }, crash_loop)
    }

    /// The refused revision.
    pub(super) fn refused(&self) -> Option<&Crashed> {
        self.refused.as_ref()
    }

    /// The revision on trial.
    pub(super) fn trial(&self) -> Option<&ExactRevision> {
        self.trial.as_ref()
    }

    /// Notes the revision that is on trial from now on.
    pub(super) fn set_trial(&mut self, trial: Option<ExactRevision>) {
        self.trial = trial;
    }

    /// Notes that the run has lasted for the crash window.
    pub(super) fn on_lasted(&mut self) {
        self.young = false;
        self.young_crashes = 0;
    }

    /// Notes that a revision was served for the crash window. One that a control plane sent ends the refusal of another.
    /// One from disk does not: it is what the proxy fell back on.
    pub(super) fn on_survived(&mut self, exact: &ExactRevision, origin: Origin) {
        let cleared = |other: &ExactRevision| origin == Origin::ControlPlane || other == exact;
        self.trial.take_if(|trial| trial == exact);
        self.crashes.take_if(|(other, _)| cleared(other));
        self.refused.take_if(|crashed| cleared(&crashed.exact));
    }

    /// Notes that the run ends in order.
    pub(super) fn on_ended(&mut self) {
        self.on_lasted();
        if let Some(trial) = self.trial.take() {
            self.crashes.take_if(|(other, _)| *other == trial);
        }
    }

    /// Notes that an operator wants the refused revision to be tried again.
    pub(super) fn on_retry(&mut self) {
        self.young_crashes = 0;
        self.crashes = None;
        self.refused = None;
    }

    /// Encodes it as text: a line for each fact, and a hash over them.
    pub(super) fn encode(&self) -> String {
        let mut text = MAGIC.to_owned();
        let young = u8::from(self.young);
        // Writing to a string does not fail.
        let _ = write!(text, "boot {}\nyoung {young}\nyoung-crashes {}\n", self.boot, self.young_crashes);
        if let Some(trial) = &self.trial {
            let _ = writeln!(text, "trial {trial}");
        }
        if let Some((exact, times)) = &self.crashes {
            let _ = writeln!(text, "crashes {times} {exact}");
        }
        if let Some(Crashed { exact, times, young_runs }) = &self.refused {
            let _ = writeln!(text, "refused {times} {young_runs} {exact}");
        }
        let hash = blake3::hash(text.as_bytes());
        let _ = writeln!(text, "{END}{hash}");
        text
    }

    /// Decodes the text; `None` if it is torn or is none. Lines of a later version are skipped.
    pub(super) fn decode(text: &str) -> Option<Self> {
        let (facts, end) = text.split_at_checked(text.rfind(END)?)?;
        let hash = end.strip_prefix(END)?.trim_end();
        let lines = facts.strip_prefix(MAGIC)?;
        if blake3::hash(facts.as_bytes()).to_string() != hash {
            return None;
        }
        let mut history = Self::default();
        for line in lines.lines() {
            let (name, value) = line.split_once(' ')?;
            match name {
                "boot" => value.clone_into(&mut history.boot),
                "young" => history.young = value == "1",
                "young-crashes" => history.young_crashes = value.parse().ok()?,
                "trial" => history.trial = Some(ExactRevision::parse(value)?),
                "crashes" => {
                    let (times, exact) = value.split_once(' ')?;
                    history.crashes = Some((ExactRevision::parse(exact)?, times.parse().ok()?));
                }
                "refused" => {
                    let (times, rest) = value.split_once(' ')?;
                    let (young_runs, exact) = rest.split_once(' ')?;
                    history.refused = Some(Crashed {
                        exact: ExactRevision::parse(exact)?,
                        times: times.parse().ok()?,
                        young_runs: young_runs.parse().ok()?,
                    });
                }
                _ => {}
            }
        }
        Some(history)
    }
}

/// The source of a served revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Disk,
    ControlPlane,
}

const MAGIC: &str = "signalbox starts 1\n";

/// The beginning of the last line, which has the hash of all lines before it.
const END: &str = "end ";

#[cfg(test)]
mod tests;
