import type {
  ProxyState,
  ProxyStatus,
  ResourceFault,
  RevisionSummary,
  Rollout,
  RolloutState,
  TrafficClasses,
} from "../api/types";
import { isStepwise, isTakenBack, newestFirst, reachOf } from "./rollout";

/** `proxy-2` before `proxy-10`. Made once: it costs more than sorting a thousand proxies with it. */
const byNumbers = new Intl.Collator("en", { numeric: true });

/** Sorts proxies with problems first, then by id. */
export function byUrgency(a: ProxyStatus, b: ProxyStatus): number {
  return urgency(a) - urgency(b) || byNumbers.compare(a.id, b.id);
}

function urgency(proxy: ProxyStatus): number {
  if (proxy.state === "rejected" || proxy.error) return 0;
  return proxy.state === "drifted" ? 1 : 2;
}

export function countStates(proxies: ProxyStatus[]): Record<ProxyState, number> {
  const counts = { in_sync: 0, pending: 0, rejected: 0, drifted: 0, unknown: 0, disconnected: 0 };
  for (const proxy of proxies) counts[proxy.state]++;
  return counts;
}

/** True if a share of failed requests is large enough for a colour. */
export function isNotable(share: number): boolean {
  return share > 0.01;
}

/** `classes`: `null` where a proxy's version does not count them apart. */
export type Traffic = {
  requestsPerSecond: number;
  errorRatio: number;
  classes: TrafficClasses | null;
  worstP99: number | null;
};

/** The traffic of all connected proxies: shares weighted by requests, and the highest p99. */
export function sumTraffic(proxies: ProxyStatus[]): Traffic {
  let requestsPerSecond = 0;
  let errors = 0;
  let noRoute = 0;
  let clientErrors = 0;
  let isApart = true;
  let worstP99: number | null = null;
  for (const { connected, traffic } of proxies) {
    if (!connected || !traffic || traffic.requests_per_second <= 0) continue;
    const rate = traffic.requests_per_second;
    requestsPerSecond += rate;
    errors += rate * traffic.error_ratio;
    noRoute += rate * (traffic.classes?.no_route ?? 0);
    clientErrors += rate * (traffic.classes?.["4xx"] ?? 0);
    isApart &&= traffic.classes != null;
    worstP99 = Math.max(worstP99 ?? 0, traffic.p99_ms);
  }
  const share = (count: number) => (requestsPerSecond > 0 ? count / requestsPerSecond : 0);
  const classes = { no_route: share(noRoute), "4xx": share(clientErrors), "5xx": share(errors) };
  return { requestsPerSecond, errorRatio: share(errors), classes: isApart ? classes : null, worstP99 };
}

/** Proxies that rejected the same revision, or drifted from it. */
export type Rejection = {
  revision: number;
  what: "rejected" | "drifted";
  proxies: string[];
  /** The revisions that these proxies serve instead. */
  served: number[];
  /** The reasons that these proxies report, the most frequent first. */
  reasons: Reason[];
};

export type Reason = { fault: ResourceFault; proxies: string[] };

/** The newest revision first. */
export function groupRejections(proxies: ProxyStatus[]): Rejection[] {
  const groups = new Map<string, { rejection: Rejection; reasons: Map<string, Reason> }>();
  for (const { id, error, state, revision } of proxies) {
    if (!error) continue;
    const what = state === "drifted" ? "drifted" : "rejected";
    const key = `${error.revision} ${what}`;
    let group = groups.get(key);
    if (!group) {
      const rejection: Rejection = { revision: error.revision, what, proxies: [], served: [], reasons: [] };
      group = { rejection, reasons: new Map() };
      groups.set(key, group);
    }
    group.rejection.proxies.push(id);
    if (!group.rejection.served.includes(revision.applied)) group.rejection.served.push(revision.applied);
    for (const fault of error.resources) {
      const said = JSON.stringify([fault.kind, fault.name, fault.field, fault.message]);
      const reason: Reason = group.reasons.get(said) ?? { fault, proxies: [] };
      // One proxy may report the same reason twice.
      if (reason.proxies.at(-1) !== id) reason.proxies.push(id);
      group.reasons.set(said, reason);
    }
  }
  return [...groups.values()]
    .map(({ rejection, reasons }) => ({
      ...rejection,
      reasons: [...reasons.values()].sort((a, b) => b.proxies.length - a.proxies.length),
    }))
    .sort((a, b) => b.revision - a.revision);
}

/** The convergence of one revision over all fleets. */
export type Convergence = {
  revision: number;
  summary: RevisionSummary | undefined;
  state: RolloutState | null;
  /** The rollout in that state; several fleets: one of those that are. */
  rollout: Rollout | null;
  /** True if that rollout has taken the revision back. */
  isTakenBack: boolean;
  total: number;
  applied: number;
  rejected: number;
  pending: number;
  disconnected: number;
  p50: number | null;
  p99: number | null;
  max: number | null;
  /** The reason why the rollout failed. */
  reason: string | null;
  /** The first rejection of it. */
  fault: NonNullable<Rollout["fault"]> | null;
};

/** The worst state of several fleets is the revision's. */
const BY_SEVERITY: RolloutState[] = [
  "failed",
  "aborted",
  "held",
  "paused",
  "running",
  "baking",
  "waiting",
  "superseded",
  "succeeded",
];

export function convergenceOf(
  revision: number,
  summary: RevisionSummary | undefined,
  rollouts: Rollout[],
  proxies: ProxyStatus[],
): Convergence {
  // The last one of several attempts counts.
  const attempts = rollouts.filter((rollout) => rollout.revision === revision).sort(newestFirst);
  const of = attempts.filter(({ fleet }, index) => attempts.findIndex((other) => other.fleet === fleet) === index);
  const worst = BY_SEVERITY.map((state) => of.find((rollout) => rollout.state === state)).find(Boolean);
  const reached = of.map((rollout) => reachOf(rollout, proxies));
  const sum = (count: (rollout: Rollout) => number) => of.reduce((all, rollout) => all + count(rollout), 0);
  const slowest = (value: (rollout: Rollout) => number | undefined) => {
    const values = of.map(value).filter((ms) => ms !== undefined);
    return values.length > 0 ? Math.max(...values) : null;
  };
  return {
    revision,
    summary,
    state: worst?.state ?? null,
    rollout: worst ?? null,
    isTakenBack: worst !== undefined && isTakenBack(worst),
    total: reached.reduce((all, { total }) => all + total, 0),
    applied: reached.reduce((all, { applied }) => all + applied, 0),
    rejected: sum((rollout) => rollout.counts.rejected),
    pending: reached.reduce((all, { pending }) => all + pending, 0),
    disconnected: sum((rollout) => rollout.counts.disconnected),
    p50: slowest((rollout) => rollout.propagation_ms?.p50),
    p99: slowest((rollout) => rollout.propagation_ms?.p99),
    max: slowest((rollout) => rollout.propagation_ms?.max),
    reason:
      of
        .map((rollout) => (isStepwise(rollout) && rollout.state === "succeeded" ? null : rollout.reason?.text))
        .filter(Boolean)
        .join("; ") || null,
    fault: of.map((rollout) => rollout.fault).find((fault) => fault != null) ?? null,
  };
}

/** By how many revisions a proxy is behind, and since when: the first revision it should serve and does not. */
export function lagOf(
  proxy: ProxyStatus,
  revisions: RevisionSummary[],
): { revisions: number; since: string | null } {
  const behind = Math.max(0, proxy.revision.assigned - proxy.revision.applied);
  if (behind === 0) return { revisions: 0, since: null };
  const first = revisions.find((revision) => revision.number === proxy.revision.applied + 1);
  return { revisions: behind, since: first?.committed_at ?? null };
}
