import { Anchor, Badge, Button, Group, Stack, Table, Text, Tooltip } from "@mantine/core";
import { useState } from "react";
import { Link } from "react-router";
import type { RolloutGate } from "../api/types";
import { formatCount, formatPercent } from "../lib/format";
import { byVerdict, gateFacts, gateFill } from "../lib/rollout";

/** The readings that are shown at first. Those that fail or need evidence come first. */
const SHOWN = 12;

const VERDICTS: { [verdict: string]: { color: string; about: string } } = {
  passing: { color: "teal", about: "The canaries do as well as the other proxies, within the tolerance" },
  failing: { color: "red", about: "The canaries do worse than the tolerance allows" },
  inconclusive: { color: "yellow", about: "There is not enough evidence yet. It never counts as success" },
};

/** The last readings of a rollout's gates: what was measured, and how far that is from the limit. */
export function Gates({ gates }: { gates: RolloutGate[] }) {
  const [isWhole, setWhole] = useState(false);
  const sorted = gates.toSorted(byVerdict);
  const shown = isWhole ? sorted : sorted.slice(0, SHOWN);
  return (
    <>
      <Table className="table" verticalSpacing={6} data-testid="gates">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Gate</Table.Th>
            <Table.Th>Verdict</Table.Th>
            <Table.Th>Canaries</Table.Th>
            <Table.Th>Other proxies</Table.Th>
            <Table.Th className="gate-limit">Measured against the limit</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {shown.map((gate) => (
            <GateRow key={`${gate.name} ${gate.scope} ${gate.route ?? gate.upstream ?? ""}`} gate={gate} />
          ))}
        </Table.Tbody>
      </Table>
      {shown.length < sorted.length && (
        <Group justify="center" pb="md">
          <Button variant="default" size="compact-sm" onClick={() => setWhole(true)}>
            Show all {formatCount(sorted.length)} gates
          </Button>
        </Group>
      )}
    </>
  );
}

function GateRow({ gate }: { gate: RolloutGate }) {
  const { label, about } = gateFacts(gate);
  const verdict = VERDICTS[gate.verdict];
  return (
    <Table.Tr data-gate={gate.name} data-verdict={gate.verdict} className={gate.verdict === "failing" ? "rejected-row" : undefined}>
      <Table.Td>
        <Text size="sm" fw={600}>
          {label} <ScopeName gate={gate} />
        </Text>
        <Text className="cell-sub">{about}</Text>
      </Table.Td>
      <Table.Td>
        <Tooltip label={verdict?.about} disabled={!verdict} multiline maw={300}>
          <Badge color={verdict?.color ?? "gray"} variant="light" radius="sm" tt="none" fw={600} w="max-content">
            {gate.verdict}
          </Badge>
        </Tooltip>
      </Table.Td>
      <Table.Td>
        <Counted gate={gate} side="canary" />
      </Table.Td>
      <Table.Td>
        <Counted gate={gate} side="rest" />
      </Table.Td>
      <Table.Td>
        <Limit gate={gate} />
      </Table.Td>
    </Table.Tr>
  );
}

/** The route or the upstream whose requests the gate looks at. */
function ScopeName({ gate: { scope, route, upstream } }: { gate: RolloutGate }) {
  const [kind, name] = route != null ? ["routes", route] : upstream != null ? ["upstreams", upstream] : [null, null];
  if (kind === null) {
    return (
      <Text span size="xs" c="dimmed" fw={400}>
        {scope === "fleet" ? "" : scope}
      </Text>
    );
  }
  return (
    <Text span size="xs" fw={400} className="breaks">
      {scope}{" "}
      <Anchor component={Link} to={`/${kind}/${name}`} inherit className="mono">
        {name}
      </Anchor>
    </Text>
  );
}

function Counted({ gate, side }: { gate: RolloutGate; side: "canary" | "rest" }) {
  const { requests, failures } = gate[side];
  const { measure } = gateFacts(gate);
  if (measure === "coverage") {
    return side === "rest" ? <Nothing /> : <Text size="sm">{formatCount(requests)} requests</Text>;
  }
  if (requests === 0) return <Nothing text={measure === "requests" ? "no requests" : "–"} />;
  const of = `${formatCount(failures)} of ${formatCount(requests)}`;
  if (measure === "proxies") {
    return <Text size="sm">{of}</Text>;
  }
  return (
    <Stack gap={0}>
      <Text size="sm" className="nowrap">
        {formatPercent(failures / requests)}
      </Text>
      <Text className="cell-sub nowrap">
        {of} {measure === "looks" ? "looks" : "requests"}
      </Text>
    </Stack>
  );
}

function Nothing({ text = "–" }: { text?: string }) {
  return (
    <Text size="sm" c="dimmed" className="nowrap">
      {text}
    </Text>
  );
}

/** A bar from nothing to the limit, and the numbers in words. */
function Limit({ gate }: { gate: RolloutGate }) {
  const { measure } = gateFacts(gate);
  const { verdict, evidence, limit } = gate;
  const isWanted = measure === "coverage";
  const color = isWanted
    ? verdict === "passing"
      ? "teal"
      : "blue"
    : verdict === "failing"
      ? "red"
      : gateFill(gate) > 0.5
        ? "orange"
        : "teal";
  const isRatio = measure === "requests" || measure === "looks";
  return (
    <Tooltip
      label="How many times as likely these numbers are if the canaries are worse than the tolerance allows; the scale is logarithmic"
      disabled={!isRatio}
      multiline
      maw={320}
    >
      <Stack gap={4} miw={150}>
        <div className="meter" aria-hidden>
          <span style={{ width: `${gateFill(gate) * 100}%`, background: `var(--mantine-color-${color}-6)` }} />
        </div>
        <Text className="cell-sub">
          {isWanted
            ? `${number(evidence)} requests; needs ${number(limit)}`
            : measure === "proxies"
              ? `${number(evidence)}; fails at ${number(limit)}`
              : `evidence ${number(evidence)}; fails at ${number(limit)}`}
        </Text>
      </Stack>
    </Tooltip>
  );
}

/** Whole numbers from 100 on, two digits below. Evidence may be without bounds. */
function number(value: number): string {
  if (value >= 1e9) return "over 1,000 million";
  if (value >= 1e6) return `${formatCount(Math.round(value / 1e6))} million`;
  if (value >= 100 || Number.isInteger(value)) return formatCount(Math.round(value));
  return value.toPrecision(2);
}
