//! The reasons of what happens to a rollout, for people and programs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::reading::{GateKind, Reading, Scope};

/// The reason of something that happened to a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The reason, for programs.
    pub code: Code,
    /// The reason, for people.
    pub text: Arc<str>,
    /// The resource that it concerns: `upstream/users`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Arc<str>>,
    /// The name of the route that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<str>>,
}

/// The reason of something that happened to a rollout, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// A revision was written.
    Written,
    /// The first step began.
    Started,
    /// The next step began, or the bake time.
    Advanced,
    /// The fleet keeps the revision, after its bake time.
    Proven,
    /// The fleet keeps the revision, without proof.
    Unproven,
    /// The revision has the content of the stable one.
    SameAsStable,
    /// The revision has the content of one that failed or was aborted.
    SameAsFailed,
    /// The policy gives revisions to the whole fleet at once.
    Immediate,
    /// A proxy takes part in the step that could not take the revision when the step began.
    MemberJoined,
    /// A canary is lost, and another proxy took its part.
    MemberReplaced,
    /// A canary was sick alone, and another proxy took its part.
    MemberSwapped,
    /// A lost canary is there again.
    MemberReturned,
    /// All proxies of a control plane are silent.
    Partition,
    /// A gate failed.
    GateFailed,
    /// More canaries are lost than the policy allows.
    MembersLost,
    /// A step had too little evidence at its deadline.
    Inconclusive,
    /// A newer revision took the place of this one.
    NewerRevision,
    /// A freeze window is open.
    Frozen,
    /// The rollout needs approval.
    NeedsApproval,
    /// No proxy can take the revision.
    NoProxies,
    /// Another rollout is under way.
    Behind,
    /// An earlier revision, whose changes this one contains, was aborted.
    IncludesAborted,
    /// A person did it.
    Operator,
    /// The changes are to be taken back by a new revision.
    Reverting,
    /// The changes could not be taken back by a new revision.
    RevertRefused,
}

impl Reason {
    /// A reason that concerns the rollout as a whole.
    pub fn new(code: Code, text: impl Into<Arc<str>>) -> Self {
        Self { code, text: text.into(), resource: None, route: None }
    }

    /// The reason of a failing gate.
    pub(super) fn of_gate(reading: &Reading) -> Self {
        let (at, resource, route) = match &reading.scope {
            Scope::Fleet => (String::new(), None, None),
            Scope::Route(name) => {
                (format!(" of route {name}"), Some(format!("route/{name}").into()), Some(name.clone()))
            }
            Scope::Upstream(name) => {
                (format!(" of upstream {name}"), Some(format!("upstream/{name}").into()), None)
            }
        };
        let (canary, rest) = (reading.canary, reading.rest);
        let (bad, all, rest_bad, rest_all) = (canary.failures, canary.requests, rest.failures, rest.requests);
        let requests = |what| {
            if rest_all == 0 {
                return format!("The canaries have {what}{at} than before: {bad} of {all} requests");
            }
            format!(
                "The canaries have {what}{at}: {bad} of {all} requests, the other proxies {rest_bad} of {rest_all}"
            )
        };
        let looks = |what| {
            format!(
                "The canaries {what}: so it was at {bad} of {all} looks at a canary, and at {rest_bad} of {rest_all} looks at another proxy"
            )
        };
        let text = match reading.gate {
            GateKind::Errors => requests("more responses with status 500 and above"),
            GateKind::Latency => requests("more slow responses"),
            GateKind::NotFound => requests("more responses without a route or with a status from 400 to 499"),
            GateKind::Coverage => format!("The canaries have served too few requests{at}: {all}"),
            GateKind::Rejected => {
                format!("{bad} of {all} canaries reject the revision, crash on it or have another digest")
            }
            GateKind::Lost => {
                format!("{bad} of {all} canaries were lost, and {rest_bad} of {rest_all} other proxies")
            }
            GateKind::Cpu => looks("need more CPU time for a request than before"),
            GateKind::Volume => looks("get fewer requests than before"),
        };
        let code = if reading.gate == GateKind::Lost { Code::MembersLost } else { Code::GateFailed };
        Self { code, text: text.into(), resource, route }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{Counts, Verdict};

    #[test]
    fn the_text_says_what_was_counted() {
        for (gate, scope, wanted) in [
            (
                GateKind::Errors,
                Scope::Route("users".into()),
                "The canaries have more responses with status 500 and above of route users: 3 of 9 requests, the other proxies 1 of 80",
            ),
            (
                GateKind::Rejected,
                Scope::Fleet,
                "3 of 9 canaries reject the revision, crash on it or have another digest",
            ),
            (GateKind::Lost, Scope::Fleet, "3 of 9 canaries were lost, and 1 of 80 other proxies"),
            (
                GateKind::Cpu,
                Scope::Fleet,
                "The canaries need more CPU time for a request than before: so it was at 3 of 9 looks at a canary, and at 1 of 80 looks at another proxy",
            ),
            (
                GateKind::Volume,
                Scope::Fleet,
                "The canaries get fewer requests than before: so it was at 3 of 9 looks at a canary, and at 1 of 80 looks at another proxy",
            ),
        ] {
            let reading = Reading {
                gate,
                scope,
                verdict: Verdict::Failing,
                evidence: 2.0,
                limit: 1.0,
                canary: Counts { requests: 9, failures: 3 },
                rest: Counts { requests: 80, failures: 1 },
            };
            assert_eq!(&*Reason::of_gate(&reading).text, wanted);
        }
    }
}
