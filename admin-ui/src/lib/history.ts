import type { Rollout } from "../api/types";
import { attemptOf, hasBegun, hasWholeFleet, isOpen, isStepwise } from "./rollout";

/** What has become of a revision in a fleet: exactly one of these. */
export type Standing =
  /** Proxies serve it. `partly`: not the whole fleet was to have it yet. */
  | { is: "serving"; partly: boolean }
  /** The fleet served it, until a later revision had come to the whole fleet. */
  | { is: "served-until"; until: string }
  /** No proxy has served it. `soFar`: it may still come. */
  | { is: "never-served"; soFar: boolean }
  /** A later revision took its place before the whole fleet had it. */
  | { is: "superseded" }
  /** Proxies had it, and went back to the revision before. */
  | { is: "taken-back" };

export type FleetStanding = {
  fleet: string;
  standing: Standing;
  /** The rollout that says so; `null`: there was none. */
  rollout: Rollout | null;
};

/** The standing of a revision in each fleet whose rollouts of that time are known, by name of the fleet. */
export function standingsOf(revision: number, rollouts: Rollout[]): FleetStanding[] {
  const fleets = [...new Set(rollouts.map((rollout) => rollout.fleet))].sort();
  return fleets.flatMap((fleet) => {
    const own = rollouts.filter((rollout) => rollout.fleet === fleet);
    const { standing, rollout } = standingIn(revision, own);
    return standing === null ? [] : [{ fleet, standing, rollout }];
  });
}

/**
 * The standing of a revision in the fleet of `rollouts`, and the last attempt to roll it out. `null`: older than the rollouts that are
 * known.
 *
 * | the last rollout of the revision in the fleet                                            | standing     |
 * | ---------------------------------------------------------------------------------------- | ------------ |
 * | none, and the fleet has later ones and earlier ones                                       | never served |
 * | none, and the revision is newer than the fleet's rollouts                                 | never served, so far |
 * | none, and the revision is older than the fleet's rollouts                                 | not known    |
 * | stepwise: under way, or paused or held after its first step                               | serving      |
 * | stepwise: waiting, or paused or held before its first step                                | never served, so far |
 * | stepwise: failed or aborted after its first step                                          | taken back   |
 * | stepwise: failed or aborted before its first step                                         | never served |
 * | stepwise: succeeded, or superseded when the whole fleet had it; no later one is complete  | serving      |
 * | the same, and a later one is complete                                                     | served until |
 * | stepwise: superseded before the whole fleet had it                                        | superseded   |
 * | immediate: superseded                                                                     | superseded   |
 * | immediate: running, succeeded or failed, and no proxy has acknowledged it                 | never served, so far if it is the newest |
 * | immediate: running, succeeded or failed, and proxies have; no later one is complete       | serving      |
 * | the same, and a later one is complete                                                     | served until |
 *
 * A rollout is complete when the whole fleet was to have its revision and has not gone back: see `completedAt`.
 */
export function standingIn(
  revision: number,
  rollouts: Rollout[],
): { standing: Standing | null; rollout: Rollout | null } {
  const attempts = rollouts.filter((rollout) => rollout.revision === revision);
  const rollout = attempts.reduce<Rollout | null>(
    (last, each) => (last === null || attemptOf(each) > attemptOf(last) ? each : last),
    null,
  );
  const isNewest = rollouts.every((other) => other.revision <= revision);
  if (rollout === null) {
    const isOldest = rollouts.every((other) => other.revision > revision);
    return { standing: isOldest ? null : { is: "never-served", soFar: isNewest }, rollout };
  }
  return { standing: standingBy(rollout, isNewest, endOf(revision, rollouts)), rollout };
}

function standingBy(rollout: Rollout, isNewest: boolean, end: string | null): Standing {
  const served: Standing = end === null ? { is: "serving", partly: false } : { is: "served-until", until: end };
  const { state } = rollout;
  if (!isStepwise(rollout)) {
    if (state === "superseded") return { is: "superseded" };
    const wasServed = rollout.counts.applied > 0 || rollout.propagation_ms != null;
    return wasServed ? served : { is: "never-served", soFar: isNewest };
  }
  if (isOpen(rollout)) {
    return hasBegun(rollout)
      ? { is: "serving", partly: !hasWholeFleet(rollout) }
      : { is: "never-served", soFar: true };
  }
  if (state === "succeeded") return served;
  if (state === "superseded") return hasWholeFleet(rollout) ? served : { is: "superseded" };
  return hasBegun(rollout) ? { is: "taken-back" } : { is: "never-served", soFar: false };
}

/** The time at which the first later revision had come to the whole fleet; `null`: none has. */
function endOf(revision: number, rollouts: Rollout[]): string | null {
  const later = rollouts.filter((other) => other.revision > revision);
  const times = later.map(completedAt).filter((time) => time !== null);
  return times.reduce<string | null>((first, time) => (first === null || time < first ? time : first), null);
}

/** The time at which a rollout gave its revision to the whole fleet; `null`: it has not, or took it back. */
function completedAt(rollout: Rollout): string | null {
  const { state, finished_at: finished, started_at: started, events } = rollout;
  if (!isStepwise(rollout)) return state === "succeeded" ? (finished ?? started) : null;
  if (state === "failed" || state === "aborted") return null;
  if (state === "succeeded" && !hasWholeFleet(rollout)) return finished ?? started;
  if (!hasWholeFleet(rollout)) return null;
  // The last step is the whole fleet.
  const last = events.findLast(({ code, state }) => state === "running" && (code === "advanced" || code === "started"));
  return last?.at ?? finished ?? started;
}
