import { Button, Group, Stack, Text, Textarea } from "@mantine/core";
import { type ReactNode, useState } from "react";
import { useRolloutCommand, useRollouts } from "../api/queries";
import type { Rollout } from "../api/types";
import { type Action, actionsFor, hasBegun, hasWholeFleet, holdOf, isOpen } from "../lib/rollout";
import { Confirm } from "./Confirm";
import { useDenial } from "./Guard";
import { IconCheck, IconCross, IconForward, IconPause, IconPlay, IconUndo } from "./icons";

type Look = {
  label: string;
  icon: ReactNode;
  /** The colour of the button that carries it out. */
  color: string;
  /** What will happen. */
  effect: (rollout: Rollout) => string;
};

const LOOKS: Record<Action, Look> = {
  approve: {
    label: "Approve",
    icon: <IconCheck size={16} />,
    color: "teal",
    effect: ({ revision, fleet }) => `The first step begins, and the first proxies of fleet ${fleet} get revision ${revision}.`,
  },
  resume: {
    label: "Resume",
    icon: <IconPlay size={16} />,
    color: "teal",
    effect: (rollout) =>
      hasBegun(rollout)
        ? "The rollout goes on where it stands. The healthy time so far counts further."
        : "The rollout begins as soon as nothing else stands against it.",
  },
  pause: {
    label: "Pause",
    icon: <IconPause size={16} />,
    color: "yellow",
    effect: (rollout) =>
      hasBegun(rollout)
        ? `The proxies that have revision ${rollout.revision} keep it, and no more get it. The gates are still watched: if one fails, the revision is taken back.`
        : "The rollout does not begin until somebody resumes it.",
  },
  promote: {
    label: "Promote",
    icon: <IconForward size={16} />,
    color: "teal",
    effect: (rollout) =>
      rollout.step >= rollout.steps.length
        ? `The bake time ends now, and the fleet keeps revision ${rollout.revision}.`
        : rollout.step + 1 === rollout.steps.length
          ? "The last step ends now, and the bake time begins."
          : `Step ${rollout.step + 1} ends now, without more evidence, and the proxies of step ${rollout.step + 2} get revision ${rollout.revision}.`,
  },
  skip: {
    label: "Skip to whole fleet",
    icon: <IconForward size={16} />,
    color: "orange",
    effect: ({ revision, fleet }) => `All proxies of fleet ${fleet} get revision ${revision} now, without the steps that are left.`,
  },
  abort: {
    label: "Abort",
    icon: <IconCross size={16} />,
    color: "red",
    effect: (rollout) =>
      `${goesBack(rollout)} The fleet is held at revision ${rollout.stable_revision} until somebody acts. The resources stay as they were written.`,
  },
  revert: {
    label: "Revert",
    icon: <IconUndo size={16} />,
    color: "red",
    effect: (rollout) =>
      `${isOpen(rollout) ? goesBack(rollout) : ""} A new revision takes the changes back, unless later writes touch the same resources.`,
  },
  retry: {
    label: "Retry",
    icon: <IconUndo size={16} />,
    color: "teal",
    effect: ({ revision }) => `A new rollout of revision ${revision} begins with its first step. No evidence of this one counts.`,
  },
};

function goesBack(rollout: Rollout): string {
  if (!hasBegun(rollout)) return `No proxy gets revision ${rollout.revision}.`;
  return `${hasWholeFleet(rollout) ? "All proxies" : "The canaries"} go back to revision ${rollout.stable_revision}.`;
}

/** The commands that fit the rollout's state, for those whose role allows them. */
export function RolloutCommands({ rollout }: { rollout: Rollout }) {
  const rollouts = useRollouts().data ?? [];
  const denial = useDenial("editor");
  const [asked, setAsked] = useState<Action | null>(null);
  const actions = actionsFor(rollout, holdOf(rollout.fleet, rollouts)?.id === rollout.id);
  if (denial !== null) return null;
  return (
    <>
      <Group gap="xs" data-testid="rollout-commands">
        {actions.map((action) => (
          <Button
            key={action}
            variant="default"
            leftSection={LOOKS[action].icon}
            c={LOOKS[action].color === "red" ? "var(--mantine-color-error)" : undefined}
            onClick={() => setAsked(action)}
          >
            {LOOKS[action].label}
          </Button>
        ))}
      </Group>
      {asked !== null && (
        <CommandDialog key={asked} rollout={rollout} action={asked} close={() => setAsked(null)} />
      )}
    </>
  );
}

function CommandDialog({ rollout: present, action, close }: { rollout: Rollout; action: Action; close: () => void }) {
  // The dialog says what happens to the rollout as it was when the dialog opened.
  const [rollout] = useState(present);
  const [reason, setReason] = useState("");
  const step = action === "promote" || action === "skip" ? rollout.step : null;
  const command = useRolloutCommand(rollout.id);
  const { label, color, effect } = LOOKS[action];
  const isIncomplete = reason.trim() === "";
  return (
    <Confirm
      opened
      close={close}
      title={`${label}: revision ${rollout.revision} in fleet ${rollout.fleet}`}
      action={label}
      color={color}
      isIncomplete={isIncomplete}
      mutation={{ ...command, run: () => command.mutate({ action, reason: reason.trim(), step }, { onSuccess: close }) }}
    >
      <Stack gap="md">
        <Text size="sm">{effect(rollout)}</Text>
        <Textarea
          label="Reason"
          description="For the events of the rollout and for the audit trail"
          placeholder="Why?"
          withAsterisk
          autosize
          minRows={2}
          maxLength={500}
          value={reason}
          onChange={(event) => setReason(event.currentTarget.value)}
          data-autofocus
        />
      </Stack>
    </Confirm>
  );
}
