import type {
  ProxyState,
  ProxyStatus,
  ResourceFault,
  RevisionSummary,
  Rollout,
  RolloutState,
  TrafficClasses,
} from "../api/types";


/** `proxy-2` before `proxy-10`. Made once: it costs more than sorting a thousand proxies with it. */
const byNumbers = new Intl.Collator("en", { numeric: true });

/** What is impossible to miss stands first, then by id. */
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

/** Whether so large a share of failed requests is worth a colour. */
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

/** All connected proxies together: shares weighted by requests, and the slowest p99 of any. */
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
  /** What they serve instead. */
  served: number[];
  /** What they say, the most frequent first. */
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
      // One proxy may say the same twice.
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

/** What became of one revision in all fleets together. */
export type Convergence = {
  revision: number;
  summary: RevisionSummary | undefined;
  state: RolloutState | null;
  total: number;
  applied: number;
  rejected: number;
  pending: number;
  disconnected: number;
  p50: number | null;
  p99: number | null;
  max: number | null;
  /** Why it ended otherwise than it should. */
  reason: string | null;
  /** The first rejection of it. */
  fault: NonNullable<Rollout["fault"]> | null;
};

/** The worst state of several fleets is the revision's. */
const BY_SEVERITY: RolloutState[] = ["failed", "aborted", "paused", "running", "superseded", "succeeded"];

export function convergenceOf(
  revision: number,
  summary: RevisionSummary | undefined,
  rollouts: Rollout[],
): Convergence {
  const of = rollouts.filter((rollout) => rollout.revision === revision);
  const sum = (count: (rollout: Rollout) => number) => of.reduce((all, rollout) => all + count(rollout), 0);
  const slowest = (value: (rollout: Rollout) => number | undefined) => {
    const values = of.map(value).filter((ms) => ms !== undefined);
    return values.length > 0 ? Math.max(...values) : null;
  };
  return {
    revision,
    summary,
    state: BY_SEVERITY.find((state) => of.some((rollout) => rollout.state === state)) ?? null,
    total: sum((rollout) => rollout.counts.total),
    applied: sum((rollout) => rollout.counts.applied),
    rejected: sum((rollout) => rollout.counts.rejected),
    pending: sum((rollout) => rollout.counts.pending),
    disconnected: sum((rollout) => rollout.counts.disconnected),
    p50: slowest((rollout) => rollout.propagation_ms?.p50),
    p99: slowest((rollout) => rollout.propagation_ms?.p99),
    max: slowest((rollout) => rollout.propagation_ms?.max),
    reason:
      of
        .map((rollout) => rollout.reason)
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
