import type { ProxyStatus, Rollout, RolloutGate, RolloutStep } from "../api/types";
import { plural } from "./format";

/** The commands of people about a rollout, as the API names them. */
export type Action = "approve" | "pause" | "resume" | "promote" | "skip" | "abort" | "revert" | "retry";

/** True if the leader decides about the rollout; the proxies of an immediate one get the revision at once. */
export function isStepwise(rollout: Rollout): boolean {
  return rollout.strategy !== "immediate";
}

/** True if the rollout has not ended. */
export function isOpen({ state }: Rollout): boolean {
  return state === "waiting" || state === "running" || state === "paused" || state === "held" || state === "baking";
}

/** True if some proxy was to get the revision by a step of the rollout. */
export function hasBegun(rollout: Rollout): boolean {
  return rollout.steps.some((step) => step.state !== "pending");
}

/** True if all proxies of the fleet were to get the revision by the rollout. */
export function hasWholeFleet(rollout: Rollout): boolean {
  const last = rollout.steps.at(-1);
  return last !== undefined && last.state !== "pending";
}

/** True if the canaries, or the fleet, had to go back to the revision before. */
export function isTakenBack(rollout: Rollout): boolean {
  return isStepwise(rollout) && (rollout.state === "failed" || rollout.state === "aborted") && hasBegun(rollout);
}

/** `5-edge~2` is the second attempt. */
export function attemptOf({ id, revision, fleet }: Rollout): number {
  const rest = id.slice(`${revision}-${fleet}`.length);
  return rest.startsWith("~") ? Number(rest.slice(1)) || 1 : 1;
}

/** The newest revision first, and its last attempt. */
export function newestFirst(a: Rollout, b: Rollout): number {
  return b.revision - a.revision || (a.fleet < b.fleet ? -1 : a.fleet > b.fleet ? 1 : attemptOf(b) - attemptOf(a));
}

/** The proxies of a fleet that serve a revision or a later one, as a rollout counts them. */
export type Reach = { applied: number; pending: number; total: number };

/**
 * The reach of a rollout. The stored counts of a stepwise one are those of its end, so the present proxies are counted. A revision that
 * was taken back is on none.
 */
export function reachOf(rollout: Rollout, proxies: ProxyStatus[]): Reach {
  const { applied, pending, total } = rollout.counts;
  if (!isStepwise(rollout)) return { applied, pending, total };
  if (rollout.state === "failed" || rollout.state === "aborted") return { applied: 0, pending: 0, total };
  if (rollout.state === "superseded") return { applied, pending: 0, total };
  const own = proxies.filter((proxy) => proxy.fleet === rollout.fleet);
  const serving = own.filter((proxy) => proxy.connected && proxy.revision.applied >= rollout.revision);
  return { applied: serving.length, pending: isOpen(rollout) ? pending : 0, total: own.length };
}

/** What is going on, for a person. The reason of a rollout that was stopped or ended says more. */
export function sentenceOf(rollout: Rollout, reach: Reach): string {
  const { revision, state, stable_revision: stable } = rollout;
  const have = `${reach.applied} of ${plural(reach.total, "proxy", "proxies")} ${reach.applied === 1 && reach.total === 1 ? "has" : "have"} revision ${revision}`;
  if (!isStepwise(rollout)) return `${have}, or a later one.`;
  const whole = `All proxies of the fleet are to have revision ${revision}: ${have}`;
  const at = whereOf(rollout);
  switch (state) {
    case "waiting":
      return `It has not begun. ${sentenceEnd(rollout.reason?.text ?? "")}`.trim();
    case "running":
      return `${at}: ${have}${healthOf(rollout)}.`;
    case "baking":
      return `${whole}${healthOf(rollout)} of the bake time.`;
    case "paused":
      return hasBegun(rollout)
        ? `Paused ${inside(at)}: ${have}${healthOf(rollout)}. The gates are still watched.`
        : "Paused before its first step.";
    case "held":
      return hasBegun(rollout)
        ? `Held ${inside(at)}: ${have}${healthOf(rollout)}. Somebody must decide how it goes on.`
        : "Held before its first step. Somebody must decide how it goes on.";
    case "succeeded":
      return rollout.reason?.code === "proven"
        ? `The fleet kept revision ${revision}, which was proven by its bake time.`
        : `The fleet kept revision ${revision}.`;
    case "failed":
    case "aborted":
      return hasBegun(rollout)
        ? `Revision ${revision} was taken back. Its proxies went back to revision ${stable}.`
        : `Revision ${revision} never reached a proxy.`;
    case "superseded":
      return sentenceEnd(rollout.reason?.text ?? "A later revision took its place");
  }
}

/** "Step 1 of 3", or the bake time. */
function whereOf(rollout: Rollout): string {
  return rollout.step >= rollout.steps.length ? "Bake time" : `Step ${rollout.step + 1} of ${rollout.steps.length}`;
}

function inside(where: string): string {
  return where.startsWith("Step") ? `in ${where.toLowerCase()}` : "in the bake time";
}

/** "; 32 of 60 s healthy" of the present step or of the bake time. */
function healthOf(rollout: Rollout): string {
  const step = rollout.steps[rollout.step];
  const [healthy, needed] = step
    ? [step.healthy_ms, step.soak_ms]
    : [rollout.bake?.healthy_ms ?? 0, rollout.bake?.needed_ms ?? 0];
  return needed === 0 ? "" : `; ${formatProgress(healthy, needed)} healthy`;
}

/** `32 of 60 s`, `1 min 5 s of 5 min`. */
export function formatProgress(healthyMs: number, neededMs: number): string {
  if (neededMs < 120_000) return `${Math.floor(healthyMs / 1000)} of ${Math.round(neededMs / 1000)} s`;
  return `${formatSpan(healthyMs)} of ${formatSpan(neededMs)}`;
}

/** `45 s`, `2 min 30 s`, `3 h 20 min`, `2 d 4 h`. */
export function formatSpan(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  const pair = (big: number, unit: string, small: number, less: string) =>
    small === 0 ? `${big} ${unit}` : `${big} ${unit} ${small} ${less}`;
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return pair(Math.floor(seconds / 60), "min", seconds % 60, "s");
  if (seconds < 86_400) return pair(Math.floor(seconds / 3600), "h", Math.floor((seconds % 3600) / 60), "min");
  return pair(Math.floor(seconds / 86_400), "d", Math.floor((seconds % 86_400) / 3600), "h");
}

/** The size of a step: `10 %`, `1 proxy`, `zone=a`, `whole fleet`. */
export function sizeOf(step: RolloutStep): string {
  if (step.labels) {
    const labels = Object.entries(step.labels);
    return labels.map(([key, value]) => `${key}=${value}`).join(" ");
  }
  if (step.count != null) return plural(step.count, "proxy", "proxies");
  return step.percent === 100 || step.percent == null ? "whole fleet" : `${step.percent} %`;
}

/** The rollout that keeps a fleet from its newest revision: it was taken back, and nothing has come after it. */
export function holdOf(fleet: string, rollouts: Rollout[]): Rollout | null {
  const own = rollouts.filter((rollout) => rollout.fleet === fleet && isStepwise(rollout));
  if (own.some(isOpen)) return null;
  const ended = (rollout: Rollout) => rollout.finished_at ?? "";
  const last = own
    .filter(({ state }) => state === "failed" || state === "aborted")
    .reduce<Rollout | null>((last, each) => (last === null || ended(each) > ended(last) ? each : last), null);
  const isOvertaken = own.some(({ state, revision }) => state === "succeeded" && last && revision >= last.revision);
  return isOvertaken ? null : last;
}

/** The commands that fit the state of a rollout. `isHold`: its end holds the fleet. The leader has the last word. */
export function actionsFor(rollout: Rollout, isHold: boolean): Action[] {
  if (!isStepwise(rollout)) return [];
  const { state } = rollout;
  if (!isOpen(rollout)) return isHold ? ["retry", "revert"] : [];
  const actions: Action[] = [];
  if (state === "waiting" && rollout.reason?.code === "needs_approval") actions.push("approve");
  if (state === "paused" || state === "held") actions.push("resume");
  if (state === "waiting" || state === "running" || state === "baking") actions.push("pause");
  if (hasBegun(rollout)) {
    actions.push("promote");
    if (!hasWholeFleet(rollout)) actions.push("skip");
  }
  return [...actions, "abort", "revert"];
}

/** How a gate is measured. */
export type GateMeasure =
  /** Requests, and those among them that count against the gate. */
  | "requests"
  /** Requests that are needed. */
  | "coverage"
  /** Proxies. */
  | "proxies"
  /** Looks at a proxy, and those among them at which it was worse than before. */
  | "looks";

type GateFacts = { label: string; about: string; measure: GateMeasure };

const GATES: { [name: string]: GateFacts } = {
  errors: { label: "Errors", about: "Responses with status 500 and above", measure: "requests" },
  latency: { label: "Latency", about: "Responses slower than usual", measure: "requests" },
  not_found: { label: "Not found", about: "No route, or status 400 to 499", measure: "requests" },
  coverage: { label: "Coverage", about: "Requests to the changed routes", measure: "coverage" },
  rejected: { label: "Rejected", about: "Canaries that reject the revision or crash on it", measure: "proxies" },
  lost: { label: "Lost", about: "Canaries that are gone", measure: "proxies" },
  cpu: { label: "CPU time", about: "More CPU time for a request than before", measure: "looks" },
  volume: { label: "Volume", about: "Fewer requests than before", measure: "looks" },
};

export function gateFacts(gate: RolloutGate): GateFacts {
  return GATES[gate.name] ?? { label: gate.name, about: "", measure: "requests" };
}

/**
 * How near the measured value is to the limit, from 0 to 1. The evidence of requests and looks is a ratio of likelihoods, which begins at
 * 1 and grows by factors, so its scale is logarithmic.
 */
export function gateFill(gate: RolloutGate): number {
  const { evidence, limit } = gate;
  const { measure } = gateFacts(gate);
  const isRatio = measure === "requests" || measure === "looks";
  const fill = isRatio ? Math.log(Math.max(1, evidence)) / Math.log(Math.max(2, limit)) : evidence / Math.max(1, limit);
  return Number.isFinite(fill) ? Math.min(1, Math.max(0, fill)) : 0;
}

const VERDICTS = ["failing", "inconclusive", "passing"];

const GATE_ORDER = Object.keys(GATES);

/** Failing gates first, then those that need more evidence; each gate of the fleet before those of its routes and upstreams. */
export function byVerdict(a: RolloutGate, b: RolloutGate): number {
  return (
    VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict) ||
    GATE_ORDER.indexOf(a.name) - GATE_ORDER.indexOf(b.name) ||
    Number(a.scope !== "fleet") - Number(b.scope !== "fleet")
  );
}

/** What the board says of a fleet whose proxies get revisions by decisions. */
export type FleetLine = {
  fleet: string;
  stable: number;
  /** The canaries' revision, and their number. */
  candidate: { revision: number; canaries: number } | null;
  rollout: Rollout | null;
  held: Rollout | null;
};

/**
 * The fleets whose proxies get revisions by decisions: there was one, and the newest rollout is no immediate one, as it is in a fleet that
 * follows the newest revision again.
 */
export function stepwiseFleets(proxies: ProxyStatus[], rollouts: Rollout[]): Set<string> {
  const newest = new Map<string, Rollout>();
  for (const rollout of rollouts) {
    const known = newest.get(rollout.fleet);
    if (!known || newestFirst(rollout, known) < 0) newest.set(rollout.fleet, rollout);
  }
  const decided = proxies.filter((proxy) => (proxy.revision.generation ?? 0) > 0).map((proxy) => proxy.fleet);
  const open = rollouts.filter((rollout) => isStepwise(rollout) && isOpen(rollout)).map(({ fleet }) => fleet);
  const isImmediate = (fleet: string) => newest.get(fleet)?.strategy === "immediate";
  return new Set([...decided, ...open].filter((fleet) => !isImmediate(fleet)));
}

/** One line for each fleet whose proxies get revisions by decisions; by name. */
export function fleetLines(proxies: ProxyStatus[], rollouts: Rollout[]): FleetLine[] {
  return [...stepwiseFleets(proxies, rollouts)].sort().map((fleet) => {
    const own = proxies.filter((proxy) => proxy.fleet === fleet);
    const canaries = own.filter(isCanary);
    const open = rollouts.filter((each) => each.fleet === fleet && isStepwise(each) && isOpen(each)).sort(newestFirst);
    // One may be under way while the newest waits.
    const rollout = open.find(hasBegun) ?? open[0] ?? null;
    const stable = own.find((proxy) => !isCanary(proxy))?.revision.assigned ?? rollout?.stable_revision ?? 0;
    const revision = canaries[0]?.revision.assigned;
    return {
      fleet,
      stable,
      candidate: revision === undefined ? null : { revision, canaries: canaries.length },
      rollout,
      held: holdOf(fleet, rollouts),
    };
  });
}

/** "stable 3, 1 canary on 4". */
export function lineOf({ stable, candidate, rollout, held }: FleetLine): string {
  if (candidate) {
    return `stable ${stable}, ${plural(candidate.canaries, "canary", "canaries")} on ${candidate.revision}`;
  }
  if (rollout && hasWholeFleet(rollout)) return `${rollout.revision} on the whole fleet, before ${rollout.stable_revision}`;
  if (rollout) return `stable ${stable}, ${rollout.revision} has not begun`;
  if (held) return `stable ${stable}, ${held.revision} was ${isTakenBack(held) ? "taken back" : "stopped"}`;
  return `stable ${stable}`;
}

export function isCanary(proxy: ProxyStatus): boolean {
  return proxy.revision.assigned_because === "canary" || proxy.revision.assigned_because === "emergency";
}

function sentenceEnd(text: string): string {
  return text === "" || /[.!?]$/.test(text) ? text : `${text}.`;
}
