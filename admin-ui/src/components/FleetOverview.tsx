import { Alert, Anchor, Button, Group, Paper, SimpleGrid, Stack, Text, Title } from "@mantine/core";
import type { ReactNode } from "react";
import { Link } from "react-router";
import { Problem } from "../api/problem";
import { useFleet, useProxies, useRollouts } from "../api/queries";
import type { FleetRollouts, ProxyStatus, Rollout } from "../api/types";
import { formatCount, plural } from "../lib/format";
import { hasWholeFleet, isStepwise, newestFirst, reachOf, sentenceOf, stepwiseFleets } from "../lib/rollout";
import { Fact } from "./Facts";
import { IconAlert } from "./icons";
import { PlaceTable } from "./PlaceTable";
import { RolloutSteps } from "./RolloutSteps";
import { RolloutTable } from "./RolloutTable";
import { RolloutBadge } from "./StateBadge";
import { Empty, Failed, Loading } from "./states";

/** The last rollouts that the page of a fleet shows. */
const SHOWN_ROLLOUTS = 10;

/** What a fleet serves and why, its proxies, and its last rollouts. */
export function FleetOverview({ name }: { name: string }) {
  const fleet = useFleet(name);
  const proxies = useProxies();
  const rollouts = useRollouts();
  if (fleet.error instanceof Problem && fleet.error.status === 404) {
    return (
      <Paper>
        <Empty title={`There is no fleet ${name}`}>It has neither a policy nor proxies.</Empty>
      </Paper>
    );
  }
  for (const [what, query] of [
    ["the state of the fleet", fleet],
    ["the proxies", proxies],
    ["the rollouts", rollouts],
  ] as const) {
    if (query.error && !query.data)
      return <Failed what={what} error={query.error} retry={() => query.refetch()} />;
  }
  if (!fleet.data || !proxies.data || !rollouts.data) return <Loading what="the state of the fleet" />;
  const own = proxies.data.filter((proxy) => proxy.fleet === name);
  const past = rollouts.data.filter((rollout) => rollout.fleet === name).sort(newestFirst);
  // The events bring the progress of the rollout; the status of the fleet says only which one it is.
  const current = (rollout: Rollout | null | undefined) =>
    rollout && (past.find(({ id }) => id === rollout.id) ?? rollout);
  return (
    <Stack gap="lg" data-testid="fleet">
      <Held rollout={current(fleet.data.held_by)} />
      <Status fleet={fleet.data} proxies={own} isPinned={stepwiseFleets(own, past).has(name)} />
      <UnderWay rollout={current(fleet.data.rollout)} proxies={own} />
      <Part title="Members">
        <PlaceTable proxies={own} rollout={current(fleet.data.rollout)} />
      </Part>
      <Part title="Last rollouts" link={{ to: `/rollouts?fleet=${name}`, text: "All rollouts of the fleet" }}>
        {past.length === 0 ? (
          <Empty title="No rollouts yet">A rollout begins when a revision is written and the fleet has proxies.</Empty>
        ) : (
          <RolloutTable rollouts={past.slice(0, SHOWN_ROLLOUTS)} proxies={own} fleet={name} />
        )}
      </Part>
    </Stack>
  );
}

function Held({ rollout }: { rollout: Rollout | null | undefined }) {
  if (!rollout) return null;
  return (
    <Alert
      color="red"
      icon={<IconAlert />}
      role="alert"
      data-testid="held"
      title={
        <>
          Held at revision {rollout.stable_revision} by{" "}
          <Anchor component={Link} to={`/rollouts/${rollout.id}`} inherit>
            the rollout of revision {rollout.revision}
          </Anchor>
        </>
      }
    >
      <Text size="sm" className="breaks">
        {rollout.reason?.text}
      </Text>
      <Text size="xs" c="dimmed" mt={4}>
        Retry or revert it there, or write a revision with other content.
      </Text>
    </Alert>
  );
}

function Status({ fleet, proxies, isPinned }: { fleet: FleetRollouts; proxies: ProxyStatus[]; isPinned: boolean }) {
  const inSync = proxies.filter((proxy) => proxy.state === "in_sync").length;
  const connected = proxies.filter((proxy) => proxy.connected).length;
  return (
    <Paper p="md">
      <SimpleGrid cols={{ base: 2, sm: 4 }}>
        <Fact name={isPinned ? "Stable revision" : "Revision"}>
          <RevisionNumber number={fleet.stable} />
          <Text className="cell-sub">{aboutStable(fleet, isPinned)}</Text>
        </Fact>
        <Fact name="Candidate">
          {fleet.candidate == null ? (
            <Text size="sm" c="dimmed" mt={6}>
              none
            </Text>
          ) : (
            <>
              <RevisionNumber number={fleet.candidate} />
              <Text className="cell-sub">on {plural(fleet.members.length, "canary", "canaries")}</Text>
            </>
          )}
        </Fact>
        <Fact name="Proxies">
          <Text className="stat-value">{formatCount(proxies.length)}</Text>
          <Text className="cell-sub">
            {inSync} in sync
            {connected < proxies.length && `, ${proxies.length - connected} not connected`}
          </Text>
        </Fact>
        <Fact name="Generation">
          <Text className="stat-value">{formatCount(fleet.generation)}</Text>
          <Text className="cell-sub">{isPinned ? "decisions about the fleet" : "the fleet follows the newest revision"}</Text>
        </Fact>
      </SimpleGrid>
    </Paper>
  );
}

function aboutStable({ rollout }: FleetRollouts, isPinned: boolean): string {
  if (!isPinned) return "the newest, at once";
  if (rollout && hasWholeFleet(rollout)) {
    return `on the whole fleet, and not kept yet; before it ${rollout.stable_revision}`;
  }
  return "of all proxies that are no canaries";
}

function RevisionNumber({ number }: { number: number }) {
  return (
    <Anchor component={Link} to={`/revisions/${number}`} className="stat-value" c="inherit" display="block">
      {number}
    </Anchor>
  );
}

function UnderWay({ rollout, proxies }: { rollout: Rollout | null | undefined; proxies: ProxyStatus[] }) {
  if (!rollout || !isStepwise(rollout)) return null;
  return (
    <Part title="Under way" link={{ to: `/rollouts/${rollout.id}`, text: "Open the rollout" }}>
      <Group px="md" gap="sm">
        <Anchor component={Link} to={`/rollouts/${rollout.id}`} fw={600} size="sm">
          Revision {rollout.revision}
        </Anchor>
        <RolloutBadge rollout={rollout} />
        <Text size="sm">{sentenceOf(rollout, reachOf(rollout, proxies))}</Text>
      </Group>
      <RolloutSteps rollout={rollout} />
    </Part>
  );
}

function Part({
  title,
  link,
  children,
}: {
  title: string;
  link?: { to: string; text: string };
  children: ReactNode;
}) {
  return (
    <Paper component="section" aria-label={title}>
      <Group px="md" pt="md" pb={4} justify="space-between">
        <Title order={2} size="h4">
          {title}
        </Title>
        {link && (
          <Anchor component={Link} to={link.to} size="sm">
            {link.text}
          </Anchor>
        )}
      </Group>
      {children}
    </Paper>
  );
}

/** The page of a fleet that has proxies and no policy. */
export function FleetWithoutPolicy({ name }: { name: string }) {
  return (
    <Stack gap="lg">
      <Group justify="space-between" align="flex-start">
        <div>
          <Title order={1} size="h3" ff="monospace" className="breaks">
            {name}
          </Title>
          <Text size="sm" c="dimmed">
            No policy is written for this fleet: its proxies get each revision at once.
          </Text>
        </div>
        <Button component={Link} to={`/fleets/new?name=${encodeURIComponent(name)}`} variant="default">
          Write a policy
        </Button>
      </Group>
      <FleetOverview name={name} />
    </Stack>
  );
}
