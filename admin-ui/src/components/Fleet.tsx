import { Group, Text, UnstyledButton } from "@mantine/core";
import { memo } from "react";
import type { ProxyState, ProxyStatus } from "../api/types";
import { countStates } from "../lib/board";
import { formatCount, plural } from "../lib/format";
import { PROXY_STATES } from "./StateBadge";

const ORDER: ProxyState[] = ["in_sync", "pending", "rejected", "drifted", "unknown", "disconnected"];

export function colorOf(state: ProxyState): string {
  return `var(--mantine-color-${PROXY_STATES[state].color}-${state === "disconnected" ? 5 : 6})`;
}

/** The number of proxies in each state. A click on a state shows only its proxies. */
export function StateCounts({
  proxies,
  selected,
  onSelect,
}: {
  proxies: ProxyStatus[];
  selected: ProxyState | null;
  onSelect: (state: ProxyState | null) => void;
}) {
  const counts = countStates(proxies);
  if (proxies.length === 0) {
    return (
      <Text size="sm" c="dimmed">
        No proxy has connected yet. Start one with <span className="mono">signalbox-proxy --token …</span>
      </Text>
    );
  }
  return (
    <>
      <Text className="stat-value" data-testid="fleet-summary">
        {formatCount(counts.in_sync)}
        <Text span size="sm" c="dimmed" fw={400}>
          {" "}
          of {plural(proxies.length, "proxy", "proxies")} in sync
        </Text>
      </Text>
      <div className="stack-bar" aria-hidden style={{ marginTop: 10 }}>
        {ORDER.map((state) => (
          <span
            key={state}
            style={{ width: `${(counts[state] / proxies.length) * 100}%`, background: colorOf(state) }}
          />
        ))}
      </div>
      <Group gap={6} mt={8}>
        {ORDER.filter((state) => counts[state] > 0).map((state) => (
          <UnstyledButton
            key={state}
            aria-pressed={selected === state}
            onClick={() => onSelect(selected === state ? null : state)}
            px={6}
            py={2}
            fz="xs"
            bdrs="sm"
            bg={selected === state ? "var(--mantine-color-default-hover)" : undefined}
          >
            <Group gap={6} wrap="nowrap">
              <span
                aria-hidden
                style={{ width: 8, height: 8, borderRadius: 2, background: colorOf(state), flex: "none" }}
              />
              {formatCount(counts[state])} {PROXY_STATES[state].label}
            </Group>
          </UnstyledButton>
        ))}
      </Group>
    </>
  );
}

/**
 * One dot for each proxy. The dots are for the mouse only: the table below has the same content for the keyboard and for
 * screen readers, for which a thousand buttons would be in the way.
 */
export const FleetDots = memo(function FleetDots({
  proxies,
  onSelect,
}: {
  proxies: ProxyStatus[];
  onSelect: (id: string) => void;
}) {
  return (
    <div className="dots" aria-hidden>
      {proxies.map(({ id, state }) => (
        <Dot key={id} id={id} state={state} onSelect={onSelect} />
      ))}
    </div>
  );
});

/** A dot is drawn again only when its proxy's state changes; most events change something else. */
const Dot = memo(function Dot({
  id,
  state,
  onSelect,
}: {
  id: string;
  state: ProxyState;
  onSelect: (id: string) => void;
}) {
  return (
    <button
      type="button"
      tabIndex={-1}
      data-state={state}
      title={`${id}: ${PROXY_STATES[state].label}`}
      style={{ background: colorOf(state) }}
      onClick={() => onSelect(id)}
    />
  );
});
