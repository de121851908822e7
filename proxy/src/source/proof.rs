//! The proof of a revision: it was served for long enough without a crash. A state machine over values.
//!
//! One revision at a time is the candidate for the proof. It is proven once the given time has passed since it was
//! applied, even if later revisions replaced it meanwhile: they mostly have its content, and a proxy whose configuration
//! changes every second must not be left without a proven revision. But a revision that was replaced before it was
//! served for the crash window, as a faulty one is by its repair, loses its candidacy to the next that is served that
//! long.

use std::time::Duration;

use signalbox_config::Snapshot;
use tokio::time::Instant;

use super::data_plane::Answers;
use super::starts::Origin;

/// A served revision.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) snapshot: Snapshot,
    pub(super) origin: Origin,
    /// The time since when it counts as served.
    since: Instant,
    /// The proxy's answers until then.
    answers: Answers,
    /// True once it was served for the crash window.
    survived: bool,
}

/// An event that time brings.
#[derive(Debug)]
pub(super) enum Elapsed {
    /// The present revision was served for the crash window.
    Survived(Served),
    /// A revision is proven.
    Proven(Snapshot),
}

/// The present revision and the candidate for the proof.
#[derive(Debug)]
pub(super) struct Proof {
    crash_window: Duration,
    proven_after: Duration,
    current: Option<Served>,
    candidate: Option<Served>,
}

impl Proof {
    pub(super) fn new(crash_window: Duration, proven_after: Duration) -> Self {
        // A proof is stronger than survival. Without any time, a failed proof would be repeated at once.
        let proven_after = proven_after.max(crash_window).max(Duration::from_millis(1));
        Self { crash_window, proven_after, current: None, candidate: None }
    }

    /// The present revision.
    pub(super) fn current(&self) -> Option<&Served> {
        self.current.as_ref()
    }

    /// The present revision, if it is on trial.
    pub(super) fn on_trial(&self) -> Option<&Served> {
        self.current.as_ref().filter(|served| !served.survived)
    }

    /// Notes that a revision is served now.
    pub(super) fn on_applied(&mut self, snapshot: Snapshot, origin: Origin, now: Instant, answers: Answers) {
        let served = Served { snapshot, origin, since: now, answers, survived: false };
        self.candidate.get_or_insert_with(|| served.clone());
        self.current = Some(served);
    }

    /// The time of the next event.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let survives = self.on_trial().map(|served| served.since + self.crash_window);
        let proven = self.candidate.as_ref().map(|served| served.since + self.proven_after);
        survives.into_iter().chain(proven).min()
    }

    /// Returns the next event that is due. `answers` are the proxy's answers until now.
    pub(super) fn elapse(&mut self, now: Instant, answers: Answers) -> Option<Elapsed> {
        if let Some(current) = self.current.as_mut().filter(|served| !served.survived)
            && now >= current.since + self.crash_window
        {
            current.survived = true;
            let current = current.clone();
            let replaced = |candidate: &mut Served| !candidate.survived;
            if self.candidate.take_if(replaced).is_some() {
                self.candidate = Some(current.clone());
            }
            return Some(Elapsed::Survived(current));
        }
        let due = |candidate: &mut Served| now >= candidate.since + self.proven_after;
        let candidate = self.candidate.take_if(due)?;
        let current = self.current.clone()?;
        if !answers.are_good_since(&candidate.answers) {
            self.candidate = Some(Served { since: now, answers, ..current });
            return None;
        }
        if current.snapshot.id() != candidate.snapshot.id() {
            self.candidate = Some(current);
        }
        Some(Elapsed::Proven(candidate.snapshot))
    }
}

impl Answers {
    /// False if clients sent requests and every answer since `before` was an error.
    fn are_good_since(self, before: &Self) -> bool {
        let requests = self.requests.saturating_sub(before.requests);
        requests == 0 || self.errors.saturating_sub(before.errors) < requests
    }
}

#[cfg(test)]
mod tests {
    use signalbox_config::Snapshot;

    use super::super::staging::tests::{next, route};
    use super::*;

    /// A proof under test. Times are in seconds.
    struct Clock {
        proof: Proof,
        start: Instant,
        last: Snapshot,
        answers: Answers,
    }

    impl Clock {
        fn new() -> Self {
            let proof = Proof::new(Duration::from_secs(30), Duration::from_secs(300));
            let last = Snapshot::empty("e");
            Self { proof, start: Instant::now(), last, answers: Answers::default() }
        }

        fn apply(&mut self, at: u64) {
            self.advance(at);
            self.last = next(&self.last, &[route("a", &at.to_string())]);
            let now = self.start + Duration::from_secs(at);
            self.proof.on_applied(self.last.clone(), Origin::ControlPlane, now, self.answers);
        }

        /// Lets time pass, and returns the numbers of the revisions that were proven.
        fn advance(&mut self, until: u64) -> Vec<u64> {
            let until = self.start + Duration::from_secs(until);
            let mut proven = Vec::new();
            while let Some(at) = self.proof.deadline().filter(|at| *at <= until) {
                if let Some(Elapsed::Proven(snapshot)) = self.proof.elapse(at, self.answers) {
                    proven.push(snapshot.id().number);
                }
            }
            proven
        }
    }

    #[test]
    fn a_revision_is_proven_after_the_time_and_once() {
        let mut clock = Clock::new();
        clock.apply(0);
        assert!(clock.advance(299).is_empty());
        assert_eq!(clock.advance(300), [1]);
        assert!(clock.advance(10_000).is_empty());
    }

    #[test]
    fn a_later_revision_is_proven_after_its_own_time() {
        let mut clock = Clock::new();
        clock.apply(0);
        clock.apply(60);
        assert_eq!(clock.advance(300), [1]);
        assert!(clock.advance(359).is_empty());
        assert_eq!(clock.advance(360), [2]);
    }

    #[test]
    fn a_revision_that_was_repaired_within_the_crash_window_is_never_proven() {
        let mut clock = Clock::new();
        clock.apply(0);
        clock.apply(20);
        assert_eq!(clock.advance(10_000), [2]);
    }

    #[test]
    fn revisions_are_proven_although_none_is_served_for_long() {
        let mut clock = Clock::new();
        let mut proven = Vec::new();
        for at in 0..100 {
            proven.extend(clock.advance(at * 10));
            clock.apply(at * 10);
        }
        // The first one is proven, and then the one that was present at that time.
        assert_eq!(proven, [1, 30, 59]);
    }

    #[test]
    fn errors_alone_prove_nothing() {
        let mut clock = Clock::new();
        clock.apply(0);
        clock.answers = Answers { requests: 10, errors: 10 };
        assert!(clock.advance(300).is_empty());
        clock.answers = Answers { requests: 20, errors: 19 };
        assert!(clock.advance(599).is_empty());
        assert_eq!(clock.advance(600), [1]);
    }
}
