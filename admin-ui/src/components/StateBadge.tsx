import { Badge } from "@mantine/core";
import type { ReactNode } from "react";
import type { ProxyState, ProxyStatus, Rollout, RolloutState } from "../api/types";
import type { Standing } from "../lib/history";
import { isStepwise, isTakenBack } from "../lib/rollout";
import { IconAlert, IconCheck, IconClock, IconCross, IconDrift, IconOff, IconPause, IconUndo } from "./icons";

type Look = { label: string; color: string; icon: ReactNode };

export const PROXY_STATES: Record<ProxyState, Look> = {
  in_sync: { label: "in sync", color: "teal", icon: <IconCheck size={12} /> },
  pending: { label: "pending", color: "blue", icon: <IconClock size={12} /> },
  rejected: { label: "rejected", color: "red", icon: <IconCross size={12} /> },
  drifted: { label: "drifted", color: "orange", icon: <IconDrift size={12} /> },
  unknown: { label: "unknown", color: "yellow", icon: <IconAlert size={12} /> },
  disconnected: { label: "disconnected", color: "gray", icon: <IconOff size={12} /> },
};

export const ROLLOUT_STATES: Record<RolloutState, Look> = {
  waiting: { label: "waiting", color: "gray", icon: <IconClock size={12} /> },
  running: { label: "running", color: "blue", icon: <IconClock size={12} /> },
  paused: { label: "paused", color: "yellow", icon: <IconPause size={12} /> },
  held: { label: "held", color: "yellow", icon: <IconAlert size={12} /> },
  baking: { label: "baking", color: "blue", icon: <IconClock size={12} /> },
  succeeded: { label: "succeeded", color: "teal", icon: <IconCheck size={12} /> },
  failed: { label: "failed", color: "red", icon: <IconAlert size={12} /> },
  aborted: { label: "aborted", color: "orange", icon: <IconCross size={12} /> },
  superseded: { label: "superseded", color: "gray", icon: <IconOff size={12} /> },
};

export function ProxyBadge({ state }: { state: ProxyState }) {
  return <StateBadge {...PROXY_STATES[state]} />;
}

/** What an immediate rollout is: all proxies got the revision at once, and nothing takes it back. */
const IMMEDIATE_LABELS: { [state in RolloutState]?: string } = { succeeded: "live", failed: "rejected" };

export function RolloutBadge({ rollout }: { rollout: Rollout }) {
  const look = ROLLOUT_STATES[rollout.state];
  const label = isStepwise(rollout) ? look.label : (IMMEDIATE_LABELS[rollout.state] ?? look.label);
  return <StateBadge {...look} label={label} />;
}

/** The state of a revision, by the worst of its rollouts. */
export function RevisionBadge({ rollout }: { rollout: Rollout }) {
  if (isTakenBack(rollout)) return <StateBadge {...STANDINGS["taken-back"]} />;
  if (rollout.state === "succeeded") return <StateBadge {...ROLLOUT_STATES.succeeded} label="live" />;
  return <RolloutBadge rollout={rollout} />;
}

const STANDINGS: Record<Standing["is"], Look> = {
  serving: { label: "serving", color: "teal", icon: <IconCheck size={12} /> },
  "served-until": { label: "served until", color: "gray", icon: <IconClock size={12} /> },
  "never-served": { label: "never served", color: "gray", icon: <IconOff size={12} /> },
  superseded: { label: "superseded", color: "gray", icon: <IconOff size={12} /> },
  "taken-back": { label: "taken back", color: "red", icon: <IconUndo size={12} /> },
};

export function StandingBadge({ standing }: { standing: Standing }) {
  return <StateBadge {...STANDINGS[standing.is]} />;
}

type Place = ProxyStatus["revision"]["assigned_because"];

const PLACES: Record<NonNullable<Place>, Look> = {
  stable: { label: "stable", color: "gray", icon: null },
  canary: { label: "canary", color: "blue", icon: null },
  emergency: { label: "emergency", color: "orange", icon: null },
  newcomer: { label: "newcomer", color: "gray", icon: null },
};

/** The reason why a proxy is to serve its revision. */
export function PlaceBadge({ place }: { place: Place }) {
  return <StateBadge {...PLACES[place ?? "stable"]} />;
}

function StateBadge({ label, color, icon }: Look) {
  return (
    <Badge color={color} variant="light" radius="sm" leftSection={icon} tt="none" fw={600} w="max-content">
      {label}
    </Badge>
  );
}
