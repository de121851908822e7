import { Alert, Anchor, Breadcrumbs, Button, Group, Paper, SimpleGrid, Stack, Table, Text, Title } from "@mantine/core";
import type { ReactNode } from "react";
import { Link, useParams } from "react-router";
import { Problem } from "../api/problem";
import { useProxies, useRollout, useRollouts } from "../api/queries";
import type { Rollout, RolloutEvent } from "../api/types";
import { Age } from "../components/Age";
import { Fact } from "../components/Facts";
import { Gates } from "../components/Gates";
import { IconAlert, IconPause } from "../components/icons";
import { PlaceTable } from "../components/PlaceTable";
import { Fault, ResourceLink } from "../components/Rejections";
import { RolloutCommands } from "../components/RolloutCommands";
import { tookOf } from "../components/RolloutTable";
import { RolloutSteps } from "../components/RolloutSteps";
import { ROLLOUT_STATES, RolloutBadge } from "../components/StateBadge";
import { Empty, Failed, Loading } from "../components/states";
import { formatTime, plural } from "../lib/format";
import { attemptOf, hasBegun, holdOf, isOpen, isStepwise, isTakenBack, newestFirst, reachOf, sentenceOf } from "../lib/rollout";

export function RolloutPage() {
  const { id = "" } = useParams();
  const rollout = useRollout(id);
  if (rollout.error instanceof Problem && rollout.error.status === 404) {
    return (
      <Paper>
        <Empty
          title={`There is no rollout ${id}`}
          action={
            <Button component={Link} to="/rollouts" variant="default">
              All rollouts
            </Button>
          }
        >
          It may not have begun yet, or be so old that it is no longer kept.
        </Empty>
      </Paper>
    );
  }
  if (rollout.error && !rollout.data) {
    return <Failed what={`rollout ${id}`} error={rollout.error} retry={() => rollout.refetch()} />;
  }
  if (!rollout.data) return <Loading what={`rollout ${id}`} />;
  return <Shown rollout={rollout.data} />;
}

function Shown({ rollout }: { rollout: Rollout }) {
  const proxies = useProxies();
  const own = (proxies.data ?? []).filter((proxy) => proxy.fleet === rollout.fleet);
  const stepwise = isStepwise(rollout);
  return (
    <Stack gap="lg" data-testid="rollout" data-state={rollout.state}>
      <Head rollout={rollout} sentence={sentenceOf(rollout, reachOf(rollout, own))} />
      <Why rollout={rollout} />
      {stepwise && (
        <Part title="Steps" about="Each step contains the proxies of the steps before it.">
          <RolloutSteps rollout={rollout} />
        </Part>
      )}
      <Facts rollout={rollout} />
      {stepwise && (
        <Part
          title="Gates"
          about="The gates compare the canaries with the other proxies. One that fails takes the revision back."
        >
          {rollout.gates.length > 0 ? (
            <Gates gates={rollout.gates} />
          ) : (
            <Empty title={isOpen(rollout) ? "Nothing is measured yet" : "Nothing was measured"}>
              {hasBegun(rollout) ? "The first readings come within seconds." : "The gates are read when the first step has begun."}
            </Empty>
          )}
        </Part>
      )}
      <Part title="Proxies" about={`The proxies of fleet ${rollout.fleet} as they are now.`}>
        {proxies.error && !proxies.data ? (
          <Failed what="the proxies" error={proxies.error} retry={() => proxies.refetch()} />
        ) : !proxies.data ? (
          <Loading what="the proxies" />
        ) : (
          <PlaceTable proxies={own} rollout={rollout} />
        )}
      </Part>
      {stepwise && (
        <Part title="Events">
          <Events events={rollout.events} />
        </Part>
      )}
    </Stack>
  );
}

function Head({ rollout, sentence }: { rollout: Rollout; sentence: string }) {
  const rollouts = useRollouts().data ?? [];
  const attempt = attemptOf(rollout);
  const isAttempt = (other: Rollout) => other.revision === rollout.revision && other.fleet === rollout.fleet;
  const later = rollouts.filter((other) => isAttempt(other) && attemptOf(other) > attempt).sort(newestFirst)[0];
  return (
    <div>
      <Breadcrumbs separator="›" fz="sm" mb={4}>
        <Anchor component={Link} to="/rollouts" size="sm">
          Rollouts
        </Anchor>
        <Text size="sm" c="dimmed" className="breaks">
          {rollout.id}
        </Text>
      </Breadcrumbs>
      <Group justify="space-between" align="flex-start" gap="md">
        <div style={{ minWidth: 0, flex: "1 1 380px" }}>
          <Group gap="sm">
            <Title order={1} size="h3" className="breaks">
              Revision{" "}
              <Anchor component={Link} to={`/revisions/${rollout.revision}`} inherit>
                {rollout.revision}
              </Anchor>{" "}
              in fleet{" "}
              <Anchor component={Link} to={`/fleets/${rollout.fleet}`} inherit>
                {rollout.fleet}
              </Anchor>
            </Title>
            <RolloutBadge rollout={rollout} />
            {attempt > 1 && (
              <Text size="sm" c="dimmed">
                attempt {attempt}
              </Text>
            )}
            {later && (
              <Anchor component={Link} to={`/rollouts/${later.id}`} size="sm">
                Open attempt {attemptOf(later)}
              </Anchor>
            )}
          </Group>
          <Text data-testid="sentence" aria-live="off" mt={4}>
            {sentence}
          </Text>
        </div>
        <RolloutCommands rollout={rollout} />
      </Group>
    </div>
  );
}

/** The reason of a rollout that was taken back, or that needs somebody. */
function Why({ rollout }: { rollout: Rollout }) {
  const rollouts = useRollouts().data ?? [];
  const { state, reason, fault } = rollout;
  if (!isStepwise(rollout)) {
    if (!fault) return null;
    return (
      <Alert color="red" icon={<IconAlert />} title={`${fault.proxy} rejected the revision`} role="alert">
        <Fault fault={fault} />
      </Alert>
    );
  }
  const isEnd = state === "failed" || state === "aborted";
  if (!isEnd && state !== "held" && state !== "paused") return null;
  const actor = rollout.events.findLast((event) => event.state === state && event.actor)?.actor;
  const by = reason?.code === "operator" && actor ? ` by ${actor}` : "";
  const title = isEnd
    ? isTakenBack(rollout)
      ? `Revision ${rollout.revision} was taken back${by}`
      : `Revision ${rollout.revision} was stopped before its first step${by}`
    : state === "held"
      ? "Held: somebody must decide"
      : `Paused${by}`;
  return (
    <Alert
      color={isEnd ? "red" : "yellow"}
      icon={state === "paused" ? <IconPause /> : <IconAlert />}
      title={title}
      role={isEnd ? "alert" : "status"}
      data-testid="why"
    >
      <Text size="sm" className="breaks">
        {reason?.text ?? "No reason is known."}
      </Text>
      {reason && <Concerned of={reason} />}
      {holdOf(rollout.fleet, rollouts)?.id === rollout.id && (
        <Text size="xs" c="dimmed" mt={6}>
          The fleet is held at revision {rollout.stable_revision} until somebody retries or reverts the rollout, or writes a revision with other
          content.
        </Text>
      )}
    </Alert>
  );
}

/** The resource that a reason is about. */
function Concerned({ of }: { of: { resource?: string | null; route?: string | null } }) {
  const [kind, ...rest] = (of.resource ?? "").split("/");
  if (!kind || rest.length === 0) return null;
  return (
    <Text size="sm" mt={4} className="mono">
      <ResourceLink kind={kind} name={rest.join("/")} />
    </Text>
  );
}

function Facts({ rollout }: { rollout: Rollout }) {
  const { stable_revision: stable, counts, strategy, started_at, finished_at } = rollout;
  return (
    <Paper p="md">
      <SimpleGrid cols={{ base: 2, sm: 3, lg: 5 }}>
        {stable > 0 && (
          <Fact name="Revision before">
            <Anchor component={Link} to={`/revisions/${stable}`} inherit>
              {stable}
            </Anchor>
            <Text className="cell-sub">
              <Anchor component={Link} to={`/revisions/${rollout.revision}?from=${stable}`} inherit>
                what differs
              </Anchor>
            </Text>
          </Fact>
        )}
        <Fact name="Strategy">
          {strategy}
          {rollout.generation > 0 && <Text className="cell-sub">generation {rollout.generation} of the fleet</Text>}
        </Fact>
        <Fact name={isStepwise(rollout) && !hasBegun(rollout) ? "Written" : "Began"}>
          {formatTime(started_at)}
          <Text className="cell-sub">
            <Age at={started_at} ago />
          </Text>
        </Fact>
        <Fact name="Ended">
          {finished_at == null ? (
            <Text span inherit c="dimmed">
              not yet
            </Text>
          ) : (
            <>
              {formatTime(finished_at)}
              <Text className="cell-sub">{tookOf(rollout) === "–" ? "at once" : `after ${tookOf(rollout)}`}</Text>
            </>
          )}
        </Fact>
        <Fact name="Problems">
          {counts.rejected > 0 || (counts.lost ?? 0) > 0 || counts.disconnected > 0 ? (
            <>
              {counts.rejected > 0 && <div>{plural(counts.rejected, "proxy", "proxies")} rejected it</div>}
              {(counts.lost ?? 0) > 0 && <div>{plural(counts.lost ?? 0, "canary", "canaries")} lost</div>}
              {counts.disconnected > 0 && <div>{plural(counts.disconnected, "proxy", "proxies")} disconnected</div>}
            </>
          ) : (
            "none"
          )}
        </Fact>
      </SimpleGrid>
    </Paper>
  );
}

/** The newest event first. */
function Events({ events }: { events: RolloutEvent[] }) {
  return (
    <Table className="table" verticalSpacing={6} data-testid="events">
      <Table.Thead>
        <Table.Tr>
          <Table.Th w={190}>Time</Table.Th>
          <Table.Th>Event</Table.Th>
          <Table.Th w={150}>By</Table.Th>
          <Table.Th w={120}>State after it</Table.Th>
        </Table.Tr>
      </Table.Thead>
      <Table.Tbody>
        {events.toReversed().map((event, index) => (
          <Table.Tr key={events.length - index} data-code={event.code}>
            <Table.Td fz="sm" className="nowrap">
              {formatTime(event.at)}
            </Table.Td>
            <Table.Td fz="sm" className="breaks">
              {event.text}
              <Concerned of={event} />
            </Table.Td>
            <Table.Td fz="sm" className={event.actor ? "mono breaks" : undefined} c={event.actor ? undefined : "dimmed"}>
              {event.actor ?? "the control plane"}
            </Table.Td>
            <Table.Td fz="sm">{ROLLOUT_STATES[event.state].label}</Table.Td>
          </Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  );
}

function Part({ title, about, children }: { title: string; about?: string; children: ReactNode }) {
  return (
    <Paper component="section" aria-label={title}>
      <Group px="md" pt="md" pb={4} gap="xs" align="baseline">
        <Title order={2} size="h4">
          {title}
        </Title>
        {about && (
          <Text size="sm" c="dimmed">
            {about}
          </Text>
        )}
      </Group>
      {children}
    </Paper>
  );
}
