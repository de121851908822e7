import { Anchor, Group, Pagination, Table, Text } from "@mantine/core";
import { useState } from "react";
import { Link } from "react-router";
import type { ProxyStatus, Rollout } from "../api/types";
import { byUrgency } from "../lib/board";
import { plural } from "../lib/format";
import { isCanary } from "../lib/rollout";
import { Age } from "./Age";
import { PlaceBadge, ProxyBadge } from "./StateBadge";
import { Empty } from "./states";

const PAGE = 25;

/** The proxies of a fleet, canaries first: the revision each should serve and why, the one it serves, and since when. */
export function PlaceTable({ proxies, rollout }: { proxies: ProxyStatus[]; rollout?: Rollout | null }) {
  const [wanted, setPage] = useState(1);
  if (proxies.length === 0) {
    return <Empty title="The fleet has no proxy">A proxy belongs to the fleet that it is started with.</Empty>;
  }
  const sorted = proxies.toSorted((a, b) => Number(isCanary(b)) - Number(isCanary(a)) || byUrgency(a, b));
  const pages = Math.ceil(sorted.length / PAGE);
  const page = Math.min(wanted, pages);
  return (
    <>
      <Table className="table" verticalSpacing={6} data-testid="places">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Proxy</Table.Th>
            <Table.Th>Place</Table.Th>
            <Table.Th className="num">Assigned</Table.Th>
            <Table.Th className="num">Serves</Table.Th>
            <Table.Th className="num">Since</Table.Th>
            <Table.Th>State</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {sorted.slice((page - 1) * PAGE, page * PAGE).map((proxy) => (
            <PlaceRow key={proxy.id} proxy={proxy} rollout={rollout ?? null} />
          ))}
        </Table.Tbody>
      </Table>
      {pages > 1 && (
        <Group justify="space-between" p="md">
          <Text size="sm" c="dimmed">
            {plural(sorted.length, "proxy", "proxies")}
          </Text>
          <Pagination total={pages} value={page} onChange={setPage} size="sm" />
        </Group>
      )}
    </>
  );
}

function PlaceRow({ proxy, rollout }: { proxy: ProxyStatus; rollout: Rollout | null }) {
  const { revision } = proxy;
  const hasIt = rollout !== null && proxy.connected && revision.applied >= rollout.revision;
  return (
    <Table.Tr data-place={revision.assigned_because} data-member={proxy.id} data-serves={revision.applied}>
      <Table.Td>
        <Text size="sm" fw={600} className="mono breaks">
          {proxy.id}
        </Text>
        <Text className="cell-sub breaks">
          {[proxy.address, ...Object.entries(proxy.labels).map(([key, value]) => `${key}=${value}`)].join(" · ")}
        </Text>
      </Table.Td>
      <Table.Td>
        <PlaceBadge place={revision.assigned_because} />
      </Table.Td>
      <Table.Td className="num">
        <RevisionLink number={revision.assigned} />
      </Table.Td>
      <Table.Td className="num" fw={hasIt ? 700 : undefined}>
        <RevisionLink number={revision.applied} />
      </Table.Td>
      <Table.Td className="num">{revision.applied_at ? <Age at={revision.applied_at} /> : "–"}</Table.Td>
      <Table.Td>
        <ProxyBadge state={proxy.state} />
        {proxy.error?.resources[0] && (
          <Text className="cell-sub breaks" c="var(--mantine-color-error)" lineClamp={2}>
            {proxy.error.resources[0].message}
          </Text>
        )}
      </Table.Td>
    </Table.Tr>
  );
}

function RevisionLink({ number }: { number: number }) {
  if (number === 0) return "–";
  return (
    <Anchor component={Link} to={`/revisions/${number}`} inherit>
      {number}
    </Anchor>
  );
}
