import { Anchor } from "@mantine/core";
import { useState } from "react";
import { useForgetProxy } from "../api/queries";
import { Confirm } from "./Confirm";
import { Guard } from "./Guard";

/** Removes a proxy that is gone for good from the board. */
export function ForgetProxy({ id }: { id: string }) {
  const [asking, setAsking] = useState(false);
  const forget = useForgetProxy();
  return (
    <>
      <Guard>
        <Anchor component="button" type="button" size="xs" ta="left" onClick={() => setAsking(true)}>
          Forget
        </Anchor>
      </Guard>
      <Confirm
        opened={asking}
        close={() => setAsking(false)}
        title={`Forget ${id}?`}
        action="Forget"
        mutation={{ ...forget, run: () => forget.mutate(id, { onSuccess: () => setAsking(false) }) }}
      >
        The proxy disappears from the board. If it connects again, the board shows it again.
      </Confirm>
    </>
  );
}
