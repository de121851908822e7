import { Tooltip } from "@mantine/core";
import { cloneElement, type MouseEvent, type ReactElement, useId } from "react";
import { useSession } from "../api/queries";
import type { Role } from "../api/types";

/** The roles, each with the rights of those before it and more. */
const RANKS: Role[] = ["proxy", "viewer", "editor", "admin"];

/**
 * The reason why the session's role does not have the rights of `needs`, or `null` if it has. For a role that is unknown
 * here, the server decides.
 */
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
 * A button or link that only works for sessions with the role. For others it shows the reason on hover, on focus and to
 * screen readers. It therefore stays in the focus order, which an element with `disabled` does not.
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
