import type { ProxyState, ProxyStatus, RevisionSummary, Rollout, RolloutState } from "../api/types";

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
  const counts = { in_sync: 0, pending: 0, rejected: 0, drifted: 0, disconnected: 0 };
  for (const proxy of proxies) counts[proxy.state]++;
  return counts;
}

export type Traffic = { requestsPerSecond: number; errorRatio: number; worstP99: number | null };

/** All connected proxies together: errors weighted by requests, and the slowest p99 of any. */
export function sumTraffic(proxies: ProxyStatus[]): Traffic {
  let requestsPerSecond = 0;
  let errors = 0;
  let worstP99: number | null = null;
  for (const { connected, traffic } of proxies) {
    if (!connected || !traffic) continue;
    requestsPerSecond += traffic.requests_per_second;
    errors += traffic.requests_per_second * traffic.error_ratio;
    if (traffic.requests_per_second > 0) worstP99 = Math.max(worstP99 ?? 0, traffic.p99_ms);
  }
  return { requestsPerSecond, errorRatio: requestsPerSecond > 0 ? errors / requestsPerSecond : 0, worstP99 };
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
