import { Anchor, Group, Table, Text, Tooltip } from "@mantine/core";
import { Link } from "react-router";
import type { Convergence } from "../lib/board";
import { formatDuration, plural } from "../lib/format";
import { Age } from "./Age";
import { RevisionBadge } from "./StateBadge";
import { Empty } from "./states";

/** The last revisions, newest first: author, number of proxies that serve it, and propagation. */
export function ConvergenceTable({ rows }: { rows: Convergence[] }) {
  if (rows.length === 0) {
    return <Empty title="No revisions yet">Create an upstream and a route, and watch the revisions reach the proxies.</Empty>;
  }
  return (
    <Table className="table" verticalSpacing={6} data-testid="convergence">
      <Table.Thead>
        <Table.Tr>
          <Table.Th w={70}>Revision</Table.Th>
          <Table.Th>Message</Table.Th>
          <Table.Th w={150} visibleFrom="lg">
            Author
          </Table.Th>
          <Table.Th w={90}>Age</Table.Th>
          <Table.Th className="live-on">Live on</Table.Th>
          <Table.Th w={70} className="num">
            p50
          </Table.Th>
          <Table.Th w={70} className="num">
            p99
          </Table.Th>
          <Table.Th w={70} className="num" visibleFrom="lg">
            Max
          </Table.Th>
          <Table.Th w={132}>State</Table.Th>
        </Table.Tr>
      </Table.Thead>
      <Table.Tbody>
        {rows.map((row) => (
          <Table.Tr key={row.revision} data-revision={row.revision}>
            <Table.Td>
              <Anchor component={Link} to={`/revisions/${row.revision}`} size="sm" fw={600}>
                {row.revision}
              </Anchor>
            </Table.Td>
            <Table.Td className="breaks">
              <Text size="sm" lineClamp={1}>
                {row.summary?.message || plural(row.summary?.change_count ?? 0, "change")}
              </Text>
            </Table.Td>
            <Table.Td visibleFrom="lg" className="mono breaks" c="dimmed">
              {row.summary?.author}
            </Table.Td>
            <Table.Td>{row.summary && <Age at={row.summary.committed_at} size="sm" />}</Table.Td>
            <Table.Td>
              <Reach row={row} />
            </Table.Td>
            <Table.Td className="num">{milliseconds(row.p50)}</Table.Td>
            <Table.Td className="num">{milliseconds(row.p99)}</Table.Td>
            <Table.Td className="num" visibleFrom="lg">
              {milliseconds(row.max)}
            </Table.Td>
            <Table.Td>
              {row.rollout ? (
                <Tooltip label={row.reason} disabled={row.reason === null} multiline maw={420}>
                  <Anchor
                    component={Link}
                    to={`/rollouts/${row.rollout.id}`}
                    underline="never"
                    display="block"
                    w="max-content"
                    title={`Rollout of revision ${row.revision}`}
                  >
                    <RevisionBadge rollout={row.rollout} />
                  </Anchor>
                </Tooltip>
              ) : (
                <Text size="sm" c="dimmed">
                  –
                </Text>
              )}
            </Table.Td>
          </Table.Tr>
        ))}
      </Table.Tbody>
    </Table>
  );
}

function Reach({ row }: { row: Convergence }) {
  if (row.total === 0) return <Text c="dimmed">–</Text>;
  const part = (count: number, color: string) => (
    <span style={{ width: `${(count / row.total) * 100}%`, background: `var(--mantine-color-${color}-6)` }} />
  );
  return (
    <Group gap="sm" wrap="nowrap">
      <div className="stack-bar" style={{ flex: 1, height: 6, minWidth: 24 }} aria-hidden>
        {part(row.applied, "teal")}
        {part(row.rejected, "red")}
        {part(row.pending, "blue")}
      </div>
      <Text size="sm" className="nowrap">
        {row.applied} of {row.total}
      </Text>
    </Group>
  );
}

/** A chart with one column for each revision, the newest at the right: the p99, and in a darker colour the median. */
export function PropagationChart({ rows }: { rows: Convergence[] }) {
  const columns = rows.toReversed();
  const highest = Math.max(1, ...columns.map((row) => row.p99 ?? 0));
  const height = 36;
  const scale = (ms: number) => Math.max(2, (ms / highest) * height);
  return (
    <svg
      viewBox={`0 0 ${columns.length * 10} ${height}`}
      width={Math.min(columns.length, 20) * 9}
      height={height}
      style={{ marginTop: 8, maxWidth: "100%", display: "block" }}
      role="img"
      aria-label={`Propagation of the last ${columns.length} revisions; the slowest took ${formatDuration(highest)}`}
    >
      {columns.map((row, index) =>
        row.p99 === null || row.p50 === null ? (
          <rect
            key={row.revision}
            x={index * 10}
            y={height - 1}
            width={7}
            height={1}
            fill="var(--mantine-color-dimmed)"
          />
        ) : (
          <g key={row.revision}>
            <title>{`Revision ${row.revision}: p50 ${formatDuration(row.p50)}, p99 ${formatDuration(row.p99)}`}</title>
            <rect
              x={index * 10}
              y={height - scale(row.p99)}
              width={7}
              height={scale(row.p99)}
              rx={1.5}
              fill="var(--mantine-primary-color-filled)"
              opacity={0.35}
            />
            <rect
              x={index * 10}
              y={height - scale(row.p50)}
              width={7}
              height={scale(row.p50)}
              rx={1.5}
              fill="var(--mantine-primary-color-filled)"
            />
          </g>
        ),
      )}
    </svg>
  );
}

function milliseconds(ms: number | null) {
  return ms === null ? (
    <Text size="sm" c="dimmed">
      –
    </Text>
  ) : (
    <Tooltip label={`${ms.toFixed(2)} ms`}>
      <Text size="sm">{formatDuration(ms)}</Text>
    </Tooltip>
  );
}
