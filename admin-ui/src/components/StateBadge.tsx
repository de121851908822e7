import { Badge } from "@mantine/core";
import type { ReactNode } from "react";
import type { ProxyState, RolloutState } from "../api/types";
import { IconAlert, IconCheck, IconClock, IconCross, IconDrift, IconOff, IconPause } from "./icons";

type Look = { label: string; color: string; icon: ReactNode };

export const PROXY_STATES: Record<ProxyState, Look> = {
  in_sync: { label: "in sync", color: "teal", icon: <IconCheck size={12} /> },
  pending: { label: "pending", color: "blue", icon: <IconClock size={12} /> },
  rejected: { label: "rejected", color: "red", icon: <IconCross size={12} /> },
  drifted: { label: "drifted", color: "orange", icon: <IconDrift size={12} /> },
  unknown: { label: "unknown", color: "yellow", icon: <IconAlert size={12} /> },
  disconnected: { label: "disconnected", color: "gray", icon: <IconOff size={12} /> },
};

const ROLLOUT_STATES: Record<RolloutState, Look> = {
  running: { label: "running", color: "blue", icon: <IconClock size={12} /> },
  paused: { label: "paused", color: "yellow", icon: <IconPause size={12} /> },
  succeeded: { label: "live", color: "teal", icon: <IconCheck size={12} /> },
  failed: { label: "rejected", color: "red", icon: <IconAlert size={12} /> },
  aborted: { label: "aborted", color: "orange", icon: <IconCross size={12} /> },
  superseded: { label: "superseded", color: "gray", icon: <IconOff size={12} /> },
};

export function ProxyBadge({ state }: { state: ProxyState }) {
  return <StateBadge {...PROXY_STATES[state]} />;
}

export function RolloutBadge({ state }: { state: RolloutState }) {
  return <StateBadge {...ROLLOUT_STATES[state]} />;
}

function StateBadge({ label, color, icon }: Look) {
  return (
    <Badge color={color} variant="light" radius="sm" leftSection={icon} tt="none" fw={600} w="max-content">
      {label}
    </Badge>
  );
}
