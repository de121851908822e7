import { Anchor, Group, Paper, SimpleGrid, Stack, Text, Title } from "@mantine/core";
import { useCallback, useMemo, useState } from "react";
import { Link } from "react-router";
import { useProxies, useRevisions, useRollouts } from "../api/queries";
import type { ProxyState, ProxyStatus, RevisionSummary } from "../api/types";
import { Age } from "../components/Age";
import { ConvergenceTable, PropagationChart } from "../components/Convergence";
import { FleetLines } from "../components/FleetLines";
import { FleetDots, StateCounts } from "../components/Fleet";
import { Incidents } from "../components/Incidents";
import { ProxyTable } from "../components/ProxyTable";
import { Rejections } from "../components/Rejections";
import { Failed, Loading } from "../components/states";
import { byUrgency, type Convergence, convergenceOf, isNotable, sumTraffic } from "../lib/board";
import { formatDuration, formatPercent, formatRate, plural } from "../lib/format";

/** The number of revisions that the board shows. */
const SHOWN_REVISIONS = 20;
/** With this many proxies or more, the board shows a grid of dots, and the table comes last. */
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
        .map((summary) => convergenceOf(summary.number, summary, rollouts.data ?? [], proxies.data ?? [])),
    [log, rollouts.data, proxies.data],
  );
  const sorted = useMemo(() => [...(proxies.data ?? [])].sort(byUrgency), [proxies.data]);

  for (const [what, query] of [
    ["the proxies", proxies],
    ["the revisions", revisions],
    ["the rollouts", rollouts],
  ] as const) {
    if (query.error && !query.data)
      return <Failed what={what} error={query.error} retry={() => query.refetch()} />;
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
      <Incidents />
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
      <FleetLines proxies={sorted} rollouts={rollouts.data} />
      {isMany && (
        <Paper p="md">
          <CardTitle>Every proxy</CardTitle>
          <FleetDots proxies={sorted} onSelect={selectProxy} />
        </Paper>
      )}
      {isMany && lastRevisions}
      <ProxyTable proxies={sorted} revisions={log} rollouts={rollouts.data} filter={filter} onFilter={setFilter} />
      {!isMany && lastRevisions}
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
          There is no revision yet. The first write makes one.
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
          The time appears after a proxy has acknowledged a revision.
        </Text>
      )}
    </Paper>
  );
}

function TrafficCard({ proxies }: { proxies: ProxyStatus[] }) {
  const traffic = sumTraffic(proxies);
  const { classes } = traffic;
  return (
    <Paper p="md" data-testid="traffic">
      <CardTitle>Traffic</CardTitle>
      <Text className="stat-value">
        {formatRate(traffic.requestsPerSecond)}
        <Text span size="sm" c="dimmed" fw={400}>
          {" "}
          requests/s
        </Text>
      </Text>
      <SimpleGrid cols={4} spacing="xs" mt={8}>
        <Figure name="no route" share={classes?.no_route} color="orange" />
        <Figure name="4xx" share={classes?.["4xx"]} />
        <Figure name="5xx" share={traffic.errorRatio} color="red" />
        <div>
          <Text size="sm">{traffic.worstP99 === null ? "–" : formatDuration(traffic.worstP99)}</Text>
          <Text size="xs" c="dimmed" className="nowrap">
            max p99
          </Text>
        </div>
      </SimpleGrid>
    </Paper>
  );
}

/** A share of the requests. A notable share has a colour. */
function Figure({ name, share, color }: { name: string; share: number | undefined; color?: string }) {
  return (
    <div>
      <Text size="sm" c={share !== undefined && isNotable(share) ? color : undefined}>
        {share === undefined ? "–" : formatPercent(share)}
      </Text>
      <Text size="xs" c="dimmed" className="nowrap">
        {name}
      </Text>
    </div>
  );
}

function CardTitle({ children }: { children: React.ReactNode }) {
  return (
    <Title order={2} fz="xs" fw={600} c="dimmed" mb={6}>
      {children}
    </Title>
  );
}
