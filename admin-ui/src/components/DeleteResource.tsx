import { ActionIcon, Button } from "@mantine/core";
import { useState } from "react";
import { useDeleteResource } from "../api/queries";
import type { KindInfo } from "../kinds";
import { Confirm } from "./Confirm";
import { Guard } from "./Guard";
import { IconTrash } from "./icons";
import { useWatchRevision } from "./RolloutStrip";

type Props = {
  kind: KindInfo;
  name: string;
  /** The version that the user has seen; the deletion of another version is refused. */
  version: string;
  compact?: boolean;
  onDeleted?: () => void;
};

export function DeleteResource({ kind, name, version, compact, onDeleted }: Props) {
  const [asking, setAsking] = useState(false);
  const remove = useDeleteResource(kind.plural);
  const watch = useWatchRevision();
  const run = () =>
    remove.mutate(
      { name, version },
      {
        onSuccess: ({ revision }) => {
          setAsking(false);
          watch(revision);
          onDeleted?.();
        },
      },
    );
  return (
    <>
      <Guard>
        {compact ? (
          <ActionIcon
            variant="subtle"
            color="gray"
            aria-label={`Delete ${name}`}
            onClick={() => setAsking(true)}
          >
            <IconTrash />
          </ActionIcon>
        ) : (
          <Button variant="subtle" color="red" c="var(--mantine-color-error)" onClick={() => setAsking(true)}>
            Delete
          </Button>
        )}
      </Guard>
      <Confirm
        opened={asking}
        close={() => setAsking(false)}
        title={`Delete ${kind.singular} ${name}?`}
        action="Delete"
        mutation={{ ...remove, run }}
      >
        This makes a new revision. The proxies stop using the {kind.singular} when they serve that revision. You can roll
        the revision back.
      </Confirm>
    </>
  );
}
