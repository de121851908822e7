import { Alert, Anchor, Grid, Group, Paper, Stack, Text, Title } from "@mantine/core";
import { useCallback, useMemo, useState } from "react";
import { Link } from "react-router";
import { useProxies, useRevisions, useRollouts } from "../api/queries";
import type { ProxyState, ProxyStatus, RevisionSummary } from "../api/types";
import { Age } from "../components/Age";
import { ConvergenceTable, PropagationChart } from "../components/Convergence";
import { FleetDots, StateCounts } from "../components/Fleet";
import { IconAlert } from "../components/icons";
import { ProxyTable } from "../components/ProxyTable";
import { Failed, Loading } from "../components/states";
import { byUrgency, type Convergence, convergenceOf, sumTraffic } from "../lib/board";
import { formatDuration, formatPercent, formatRate, plural } from "../lib/format";

/** How many of the last revisions the board shows. */
const SHOWN_REVISIONS = 20;
/** From so many proxies on a grid of dots stands for them, and their table comes last. */
const DOTS_FROM = 12;

export function BoardPage() {
  const proxies = useProxies();
  const revisions = useRevisions();
  const rollouts = useRollouts();
  const [filter, setFilter] = useState<{ state: ProxyState | null; text: string }>({ state: null, text: "" });

  const selectProxy = useCallback((id: string) => setFilter({ state: null, text: id }), []);
  const log = useMemo(() => revisions.data?.pages.flatMap((page) => page.items) ?? [], [revisions.data]);
  const convergence = useMemo(
    () =>
      log
        .slice(0, SHOWN_REVISIONS)
        .map((summary) => convergenceOf(summary.number, summary, rollouts.data ?? [])),
    [log, rollouts.data],
  );
  const sorted = useMemo(() => [...(proxies.data ?? [])].sort(byUrgency), [proxies.data]);

  for (const [what, query] of [
    ["the proxies", proxies],
    ["the revisions", revisions],
    ["the rollouts", rollouts],
  ] as const) {
    if (query.error) return <Failed what={what} error={query.error} retry={() => query.refetch()} />;
  }
  if (!proxies.data || !revisions.data || !rollouts.data) return <Loading what="the board" />;

  const isMany = sorted.length >= DOTS_FROM;
  const lastRevisions = (
    <Paper>
      <Group px="md" pt="md" pb={4} justify="space-between">
        <Title order={2} size="h4">
          Last revisions
        </Title>
        <Anchor component={Link} to="/revisions" size="sm">
          All revisions
        </Anchor>
      </Group>
      <ConvergenceTable rows={convergence} />
    </Paper>
  );
  return (
    <Stack gap="lg">
      <h1 className="visually-hidden">Rollout board</h1>
      <Rejections proxies={sorted} />
      <div className="stats">
        <HeadCard head={log[0]} convergence={convergence[0]} />
        <Paper p="md">
          <CardTitle>Fleet</CardTitle>
          <StateCounts
            proxies={sorted}
            selected={filter.state}
            onSelect={(state) => setFilter({ ...filter, state })}
          />
        </Paper>
        <PropagationCard convergence={convergence} />
        <TrafficCard proxies={sorted} />
      </div>
      {isMany && (
        <Paper p="md">
          <CardTitle>Every proxy</CardTitle>
          <FleetDots proxies={sorted} onSelect={selectProxy} />
        </Paper>
      )}
      {isMany && lastRevisions}
      <ProxyTable proxies={sorted} revisions={log} filter={filter} onFilter={setFilter} />
      {!isMany && lastRevisions}
    </Stack>
  );
}

/** One alert for all that was rejected: proxies that say the same are named together. */
function Rejections({ proxies }: { proxies: ProxyStatus[] }) {
  const groups = new Map<string, { proxies: string[]; proxy: ProxyStatus }>();
  for (const proxy of proxies) {
    if (!proxy.error) continue;
    const key = JSON.stringify(proxy.error);
    const group = groups.get(key) ?? { proxies: [], proxy };
    group.proxies.push(proxy.id);
    groups.set(key, group);
  }
  if (groups.size === 0) return null;
  return (
    <Stack gap="sm" role="alert">
      {[...groups.values()].map(({ proxies, proxy }) => (
        <Alert
          key={proxies[0]}
          color="red"
          variant="light"
          icon={<IconAlert />}
          title={`${proxies.length === 1 ? proxies[0] : plural(proxies.length, "proxy", "proxies")} rejected revision ${proxy.error?.revision}`}
        >
          <Stack gap={4}>
            {proxy.error?.resources.map((resource) => (
              <Text size="sm" key={`${resource.kind}/${resource.name}/${resource.field}`} className="breaks">
                {resource.name !== "" && (
                  <span className="mono">
                    {resource.kind} {resource.name}
                    {resource.field !== "" && ` · ${resource.field}`}
                    {": "}
                  </span>
                )}
                {resource.message}
              </Text>
            ))}
            <Text size="xs" c="dimmed" className="breaks">
              {proxies.length > 1 && `${proxies.slice(0, 8).join(", ")}${proxies.length > 8 ? " …" : ""}. `}
              Still serving revision {proxy.revision.applied}.
            </Text>
          </Stack>
        </Alert>
      ))}
    </Stack>
  );
}

function HeadCard({
  head,
  convergence,
}: {
  head: RevisionSummary | undefined;
  convergence: Convergence | undefined;
}) {
  return (
    <Paper p="md" data-testid="head">
      <CardTitle>Head revision</CardTitle>
      {head ? (
        <>
          <Group gap="sm" align="baseline" wrap="nowrap">
            <Anchor component={Link} to={`/revisions/${head.number}`} className="stat-value" c="inherit">
              {head.number}
            </Anchor>
            <Text size="sm" c="dimmed" truncate>
              <span className="mono">{head.author}</span> · <Age at={head.committed_at} ago />
            </Text>
          </Group>
          <Text size="sm" mt={6} lineClamp={2} className="breaks">
            {head.message || plural(head.change_count, "change")}
          </Text>
          {convergence && convergence.total > 0 && (
            <Text size="xs" c="dimmed" mt={4}>
              live on {convergence.applied} of {plural(convergence.total, "proxy", "proxies")}
            </Text>
          )}
        </>
      ) : (
        <Text size="sm" c="dimmed">
          Nothing was configured yet. Every write makes a revision.
        </Text>
      )}
    </Paper>
  );
}

function PropagationCard({ convergence }: { convergence: Convergence[] }) {
  const last = convergence.find((row) => row.p99 !== null);
  return (
    <Paper p="md">
      <CardTitle>Propagation: from commit to ACK</CardTitle>
      {last && last.p50 !== null && last.p99 !== null ? (
        <>
          <Text className="stat-value">{formatDuration(last.p99)}</Text>
          <Text size="xs" c="dimmed" mt={2}>
            p99 of revision {last.revision} · median {formatDuration(last.p50)}
          </Text>
          <PropagationChart rows={convergence} />
        </>
      ) : (
        <Text size="sm" c="dimmed">
          Known once a proxy has acknowledged a revision.
        </Text>
      )}
    </Paper>
  );
}

function TrafficCard({ proxies }: { proxies: ProxyStatus[] }) {
  const traffic = sumTraffic(proxies);
  return (
    <Paper p="md">
      <CardTitle>Traffic</CardTitle>
      <Text className="stat-value">
        {formatRate(traffic.requestsPerSecond)}
        <Text span size="sm" c="dimmed" fw={400}>
          {" "}
          requests/s
        </Text>
      </Text>
      <Grid gap="xs" mt={8}>
        <Grid.Col span={6}>
          <Text size="sm" c={traffic.errorRatio > 0.01 ? "red" : undefined}>
            {formatPercent(traffic.errorRatio)}
          </Text>
          <Text size="xs" c="dimmed">
            errors
          </Text>
        </Grid.Col>
        <Grid.Col span={6}>
          <Text size="sm">{traffic.worstP99 === null ? "–" : formatDuration(traffic.worstP99)}</Text>
          <Text size="xs" c="dimmed">
            slowest p99
          </Text>
        </Grid.Col>
      </Grid>
    </Paper>
  );
}

function CardTitle({ children }: { children: React.ReactNode }) {
  return (
    <Title order={2} fz="xs" fw={600} c="dimmed" mb={6}>
      {children}
    </Title>
  );
}
