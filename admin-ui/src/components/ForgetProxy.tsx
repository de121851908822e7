import { Anchor } from "@mantine/core";
import { useState } from "react";
import { useForgetProxy } from "../api/queries";
import { Confirm } from "./Confirm";
import { Guard } from "./Guard";

/** A proxy that is gone for good is taken off the board by hand. */
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
        action="Forget it"
        mutation={{ ...forget, run: () => forget.mutate(id, { onSuccess: () => setAsking(false) }) }}
      >
        It disappears from the board. Should it connect again, it is back.
      </Confirm>
    </>
  );
}
