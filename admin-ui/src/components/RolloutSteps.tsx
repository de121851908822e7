import { Text } from "@mantine/core";
import type { Rollout } from "../api/types";
import { plural } from "../lib/format";
import { formatProgress, isOpen, sizeOf } from "../lib/rollout";

type Stage = {
  key: string;
  title: string;
  size: string;
  about: string;
  state: "pending" | "current" | "done" | "gone";
  healthyMs: number;
  neededMs: number;
  label: string;
};

/** The steps and the bake time, from left to right, each with its healthy time. */
export function RolloutSteps({ rollout }: { rollout: Rollout }) {
  const stages = stagesOf(rollout);
  return (
    <ol className="steps" data-testid="steps">
      {stages.map((stage) => (
        <li key={stage.key} data-state={stage.state} aria-current={stage.state === "current" ? "step" : undefined}>
          <div className="meter" aria-hidden>
            <span style={{ width: `${fillOf(stage) * 100}%` }} />
          </div>
          <Text className="cell-sub" mt={8}>
            {stage.title} · {stage.label}
          </Text>
          <Text fw={600} className="breaks">
            {stage.size}
          </Text>
          <Text className="cell-sub">{stage.about}</Text>
        </li>
      ))}
    </ol>
  );
}

function stagesOf(rollout: Rollout): Stage[] {
  const open = isOpen(rollout);
  const isStopped = rollout.state === "paused" || rollout.state === "held";
  const steps = rollout.steps.map((step, index): Stage => {
    const isCurrent = open && step.state === "running";
    const isGone = !open && step.state === "running";
    const soak = step.soak_ms === 0 ? "no soak" : `${formatProgress(step.healthy_ms, step.soak_ms)} healthy`;
    const proxies = step.proxies > 0 ? `${plural(step.proxies, "proxy", "proxies")} · ` : "";
    return {
      key: String(index),
      title: `Step ${index + 1}`,
      size: sizeOf(step),
      about: step.state === "skipped" ? "left out" : `${proxies}${soak}`,
      state: step.state === "pending" || step.state === "skipped" ? "pending" : isGone ? "gone" : isCurrent ? "current" : "done",
      healthyMs: step.healthy_ms,
      neededMs: step.soak_ms,
      label: isCurrent && isStopped ? rollout.state : isGone ? "ended here" : step.state,
    };
  });
  const { bake } = rollout;
  if (!bake) return steps;
  const last = rollout.steps.at(-1)?.state;
  const hasBaked = last === "passed" || last === "promoted";
  const isBaking = open && hasBaked;
  const isKept = rollout.state === "succeeded";
  return [
    ...steps,
    {
      key: "bake",
      title: "Bake",
      size: "whole fleet",
      about: bake.needed_ms === 0 ? "no bake time" : `${formatProgress(bake.healthy_ms, bake.needed_ms)} healthy`,
      state: isBaking ? "current" : !hasBaked ? "pending" : isKept ? "done" : "gone",
      healthyMs: bake.healthy_ms,
      neededMs: bake.needed_ms,
      label: isBaking ? (isStopped ? rollout.state : "running") : !hasBaked ? "pending" : isKept ? "passed" : "ended here",
    },
  ];
}

/** A step that is done is full, whether its time has passed or a person ended it. */
function fillOf({ state, healthyMs, neededMs }: Stage): number {
  if (state === "done") return 1;
  if (state === "pending" || neededMs === 0) return 0;
  return Math.min(1, healthyMs / neededMs);
}
