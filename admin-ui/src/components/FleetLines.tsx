import { Anchor, Group, Paper, Table, Text, Title } from "@mantine/core";
import { Link } from "react-router";
import type { ProxyStatus, Rollout } from "../api/types";
import { type FleetLine, fleetLines, lineOf, reachOf, sentenceOf } from "../lib/rollout";
import { RolloutBadge } from "./StateBadge";

/** The fleets whose proxies get revisions step by step: what each serves, with the rollout that is under way or holds it. */
export function FleetLines({ proxies, rollouts }: { proxies: ProxyStatus[]; rollouts: Rollout[] }) {
  const lines = fleetLines(proxies, rollouts);
  if (lines.length === 0) return null;
  return (
    <Paper>
      <Group px="md" pt="md" pb={4} justify="space-between">
        <Title order={2} size="h4">
          Fleets with steps
        </Title>
        <Anchor component={Link} to="/rollouts" size="sm">
          All rollouts
        </Anchor>
      </Group>
      <Table className="table" verticalSpacing={6} data-testid="fleet-lines">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Fleet</Table.Th>
            <Table.Th>Serves</Table.Th>
            <Table.Th>Rollout</Table.Th>
            <Table.Th w={120}>State</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {lines.map((line) => (
            <Line key={line.fleet} line={line} proxies={proxies} />
          ))}
        </Table.Tbody>
      </Table>
    </Paper>
  );
}

function Line({ line, proxies }: { line: FleetLine; proxies: ProxyStatus[] }) {
  const shown = line.rollout ?? line.held;
  return (
    <Table.Tr data-fleet={line.fleet} className={line.held ? "rejected-row" : undefined}>
      <Table.Td className="breaks" miw={90}>
        <Anchor component={Link} to={`/fleets/${line.fleet}`} size="sm" fw={600}>
          {line.fleet}
        </Anchor>
      </Table.Td>
      <Table.Td fz="sm">{lineOf(line)}</Table.Td>
      <Table.Td className="breaks">
        {shown ? (
          <>
            <Anchor component={Link} to={`/rollouts/${shown.id}`} size="sm">
              {sentenceOf(shown, reachOf(shown, proxies))}
            </Anchor>
            {line.held && (
              <Text className="cell-sub" lineClamp={2}>
                {line.held.reason?.text}
              </Text>
            )}
          </>
        ) : (
          <Text size="sm" c="dimmed">
            none under way
          </Text>
        )}
      </Table.Td>
      <Table.Td>{shown && <RolloutBadge rollout={shown} />}</Table.Td>
    </Table.Tr>
  );
}
