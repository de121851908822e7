import { Anchor, Table, Text } from "@mantine/core";
import { Link, useNavigate } from "react-router";
import type { ProxyStatus, Rollout } from "../api/types";
import { formatDuration } from "../lib/format";
import { isStepwise, reachOf, sentenceOf } from "../lib/rollout";
import { Age } from "./Age";
import { RolloutBadge } from "./StateBadge";

/** Rollouts, one a row. `fleet`: all are of one fleet, which is not named. */
export function RolloutTable({
  rollouts,
  proxies,
  fleet,
}: {
  rollouts: Rollout[];
  proxies: ProxyStatus[];
  fleet?: string;
}) {
  const navigate = useNavigate();
  return (
    <Table className="table" verticalSpacing="xs" data-testid="rollouts-list">
      <Table.Thead>
        <Table.Tr>
          <Table.Th w={90}>Revision</Table.Th>
          {fleet === undefined && <Table.Th>Fleet</Table.Th>}
          <Table.Th w={120}>State</Table.Th>
          <Table.Th>Progress</Table.Th>
          <Table.Th visibleFrom="md">Strategy</Table.Th>
          <Table.Th w={110}>Began</Table.Th>
          <Table.Th w={90} className="num">
            Took
          </Table.Th>
        </Table.Tr>
      </Table.Thead>
      <Table.Tbody>
        {rollouts.map((rollout) => (
          <Table.Tr
            key={rollout.id}
            className="table-row-link"
            data-rollout={rollout.id}
            data-state={rollout.state}
            onClick={(event) => {
              if (!(event.target as Element).closest("a")) navigate(`/rollouts/${rollout.id}`);
            }}
          >
            <Table.Td>
              <Anchor
                component={Link}
                to={`/rollouts/${rollout.id}`}
                size="sm"
                fw={600}
                aria-label={`Rollout of revision ${rollout.revision} in fleet ${rollout.fleet}`}
              >
                {rollout.revision}
              </Anchor>
            </Table.Td>
            {fleet === undefined && (
              <Table.Td className="breaks" miw={90}>
                <Anchor component={Link} to={`/fleets/${rollout.fleet}`} size="sm">
                  {rollout.fleet}
                </Anchor>
              </Table.Td>
            )}
            <Table.Td>
              <RolloutBadge rollout={rollout} />
            </Table.Td>
            <Table.Td>
              <Text size="sm" lineClamp={2} className="breaks">
                {sentenceOf(rollout, reachOf(rollout, proxies))}
              </Text>
              {isStepwise(rollout) && (rollout.state === "failed" || rollout.state === "aborted") && (
                <Text className="cell-sub breaks" lineClamp={2}>
                  {rollout.reason?.text}
                </Text>
              )}
            </Table.Td>
            <Table.Td visibleFrom="md" fz="sm">
              {rollout.strategy}
            </Table.Td>
            <Table.Td>
              <Age at={rollout.started_at} ago size="sm" />
            </Table.Td>
            <Table.Td className="num" fz="sm">
              {tookOf(rollout)}
            </Table.Td>
          </Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  );
}

/** The time from the beginning to the end; `–`: it has not ended, or took no time. */
export function tookOf({ started_at: from, finished_at: to }: Rollout): string {
  const took = to == null ? 0 : new Date(to).getTime() - new Date(from).getTime();
  return took < 1 ? "–" : formatDuration(took);
}
