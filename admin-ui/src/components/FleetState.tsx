import { Anchor, Group, Paper, Table, Text, Title } from "@mantine/core";
import { Link } from "react-router";
import { useProxies, useResourceNames, useRollouts } from "../api/queries";
import { plural } from "../lib/format";
import { fleetLines, lineOf } from "../lib/rollout";
import { RolloutBadge } from "./StateBadge";

/** What a fleet serves, in one line, with the rollout that is under way or holds it. */
export function FleetState({ name }: { name: string }) {
  const proxies = useProxies().data ?? [];
  const rollouts = useRollouts().data ?? [];
  const line = fleetLines(proxies, rollouts).find(({ fleet }) => fleet === name);
  const own = proxies.filter((proxy) => proxy.fleet === name);
  const shown = line?.rollout ?? line?.held;
  return (
    <>
      <Group gap="xs" wrap="nowrap">
        {shown && (
          <Anchor component={Link} to={`/rollouts/${shown.id}`} underline="never" title={`Rollout ${shown.id}`}>
            <RolloutBadge rollout={shown} />
          </Anchor>
        )}
        <Text size="sm">{line ? lineOf(line) : own.length === 0 ? "no proxies" : "the newest revision"}</Text>
      </Group>
      {own.length > 0 && <Text className="cell-sub">{plural(own.length, "proxy", "proxies")}</Text>}
    </>
  );
}

/** The fleets that proxies belong to and that have no resource. */
export function FleetsWithoutPolicy() {
  const proxies = useProxies().data ?? [];
  const stored = useResourceNames("fleets");
  const fleets = [...new Set(proxies.map((proxy) => proxy.fleet))].filter((name) => !stored.includes(name)).sort();
  if (fleets.length === 0) return null;
  return (
    <Paper>
      <Group px="md" pt="md" pb={4} gap="xs" align="baseline">
        <Title order={2} size="h4">
          Without a policy
        </Title>
        <Text size="sm" c="dimmed">
          Proxies were started with these fleets. They get each revision at once.
        </Text>
      </Group>
      <Table className="table" verticalSpacing="xs" data-testid="fleets-without-policy">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Name</Table.Th>
            <Table.Th>State</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {fleets.map((name) => (
            <Table.Tr key={name}>
              <Table.Td>
                <Anchor component={Link} to={`/fleets/${name}`} size="sm" fw={600} className="mono breaks">
                  {name}
                </Anchor>
              </Table.Td>
              <Table.Td>
                <FleetState name={name} />
              </Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Paper>
  );
}
