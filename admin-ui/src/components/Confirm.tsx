import { Alert, Button, Group, List, Modal, Stack, Text } from "@mantine/core";
import { type ReactNode, useEffect, useRef } from "react";
import { messageOf, Problem } from "../api/problem";

type Props = {
  opened: boolean;
  close: () => void;
  title: string;
  children: ReactNode;
  /** What the button says. */
  action: string;
  mutation: { run: () => void; isPending: boolean; error: unknown; reset: () => void };
};

/** Asks before something is done, and shows why it could not be. */
export function Confirm({ opened, close, title, children, action, mutation }: Props) {
  const dismiss = () => {
    mutation.reset();
    close();
  };
  const { error } = mutation;
  const errorRef = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (error) errorRef.current?.focus();
  }, [error]);
  // A single error is often all that the detail says.
  const errors =
    error instanceof Problem ? error.errors.filter(({ message }) => message !== error.detail) : [];
  return (
    <Modal opened={opened} onClose={dismiss} title={<Text fw={600}>{title}</Text>}>
      <Stack gap="md">
        <Text size="sm" component="div">
          {children}
        </Text>
        {error !== null && error !== undefined && (
          <Alert color="red" role="alert" title="It was not done" ref={errorRef} tabIndex={-1}>
            <Text size="sm" className="breaks">
              {messageOf(error)}
            </Text>
            {errors.length > 0 && (
              <List size="sm" mt={4}>
                {errors.map((each) => (
                  <List.Item key={`${each.field} ${each.message}`} className="breaks">
                    {each.field !== "" && <span className="mono">{each.field}: </span>}
                    {each.message}
                  </List.Item>
                ))}
              </List>
            )}
          </Alert>
        )}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={dismiss} data-autofocus>
            Cancel
          </Button>
          <Button color="red" onClick={mutation.run} loading={mutation.isPending}>
            {action}
          </Button>
        </Group>
      </Stack>
    </Modal>
  );
}
