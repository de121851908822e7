import { Alert, Button, Group, List, Modal, Stack, Text } from "@mantine/core";
import { type ReactNode, useEffect, useRef } from "react";
import { messageOf, Problem } from "../api/problem";

type Props = {
  opened: boolean;
  close: () => void;
  title: string;
  children: ReactNode;
  /** The text of the button. */
  action: string;
  /** The colour of the button; red by default. */
  color?: string;
  /** True if something that the action needs is not entered yet. */
  isIncomplete?: boolean;
  mutation: { run: () => void; isPending: boolean; error: unknown; reset: () => void };
};

/** Asks for confirmation before an action, and shows the error if the action fails. */
export function Confirm({ opened, close, title, children, action, color = "red", isIncomplete, mutation }: Props) {
  const dismiss = () => {
    mutation.reset();
    close();
  };
  const { error } = mutation;
  const errorRef = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (error) errorRef.current?.focus();
  }, [error]);
  // The detail often repeats a single error.
  const errors =
    error instanceof Problem ? error.errors.filter(({ message }) => message !== error.detail) : [];
  return (
    <Modal opened={opened} onClose={dismiss} title={<Text fw={600}>{title}</Text>}>
      <Stack gap="md">
        <Text size="sm" component="div">
          {children}
        </Text>
        {error !== null && error !== undefined && (
          <Alert color="red" role="alert" title="The action failed" ref={errorRef} tabIndex={-1}>
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
          <Button color={color} onClick={mutation.run} loading={mutation.isPending} disabled={isIncomplete}>
            {action}
          </Button>
        </Group>
      </Stack>
    </Modal>
  );
}
