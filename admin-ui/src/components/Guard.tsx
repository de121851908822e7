import { Tooltip } from "@mantine/core";
import { cloneElement, type MouseEvent, type ReactElement, useId } from "react";
import { useSession } from "../api/queries";
import type { Role } from "../api/types";

/** What each role may do besides what those before it may. */
const RANKS: Role[] = ["proxy", "viewer", "editor", "admin"];

/** Why the session's role does not allow what `needs` may; `null`: it does. A role that is not known here is left to the server. */
export function useDenial(needs: Role): string | null {
  const { data: session } = useSession();
  const rank = session ? RANKS.indexOf(session.role) : -1;
  if (!session || rank < 0 || rank >= RANKS.indexOf(needs)) return null;
  return `Your token “${session.name}” has the role ${session.role}; this needs ${needs}.`;
}

type GuardedProps = {
  "aria-disabled"?: boolean;
  "aria-describedby"?: string;
  "data-disabled"?: boolean;
  onClick?: (event: MouseEvent) => void;
};

/**
 * A button or link for those who have the role. For others it does nothing, and says why on hover, on focus and to
 * screen readers; so it stays in the order of focus, which an element with `disabled` does not.
 */
export function Guard({ needs = "editor", children }: { needs?: Role; children: ReactElement<GuardedProps> }) {
  const denial = useDenial(needs);
  const id = useId();
  if (denial === null) return children;
  return (
    <>
      <Tooltip label={denial} multiline maw={300}>
        {cloneElement(children, {
          "aria-disabled": true,
          "aria-describedby": id,
          "data-disabled": true,
          onClick: (event) => {
            event.preventDefault();
            event.stopPropagation();
          },
        })}
      </Tooltip>
      <span id={id} className="visually-hidden">
        {denial}
      </span>
    </>
  );
}
