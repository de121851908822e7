import { Badge, Button, Group, Input, Stack, Text } from "@mantine/core";
import { type ReactNode, useId, useState } from "react";
import { IconCheck } from "../components/icons";
import { getAt } from "../lib/json";
import { FieldMessage, type FieldProps } from "./fields";
import { useField, useForm } from "./form";
import { REDACTED } from "./secrets";

/**
 * A secret. A stored secret is shown as set, because its placeholder must not be edited. `children` is the input for a
 * new secret.
 */
export function SecretField({
  path,
  label,
  description,
  required,
  children,
}: Pick<FieldProps, "path" | "label" | "description" | "required"> & { children: ReactNode }) {
  const field = useField(path);
  const { stored } = useForm();
  const [replaced, setReplaced] = useState(false);
  const id = useId();
  if (field.value !== REDACTED) {
    const isStored = replaced || getAt(stored, path) === REDACTED;
    return (
      <Stack gap="xs">
        {children}
        {isStored && (
          <div>
            <Button
              variant="default"
              size="compact-sm"
              aria-label={`Keep the stored ${label}`}
              onClick={() => field.set(REDACTED)}
            >
              Keep the stored secret
            </Button>
          </div>
        )}
      </Stack>
    );
  }
  return (
    <div role="group" aria-labelledby={`${id}-label`}>
      <Input.Label id={`${id}-label`} component="div" required={required}>
        {label}
      </Input.Label>
      {description && <Input.Description mb={6}>{description}</Input.Description>}
      <Group gap="sm">
        <Badge color="teal" variant="light" radius="sm" tt="none" leftSection={<IconCheck size={12} />}>
          set
        </Badge>
        <Text size="sm" c="dimmed" id={id}>
          The secret is stored, and cannot be read back.
        </Text>
        <Button
          variant="default"
          size="compact-sm"
          aria-label={`Replace ${label}`}
          aria-describedby={id}
          aria-invalid={field.error !== undefined || undefined}
          onClick={() => {
            setReplaced(true);
            field.set("");
          }}
        >
          Replace
        </Button>
      </Group>
      {field.error && <FieldMessage text={field.error} />}
    </div>
  );
}
