import { Button, FileButton, Group, Stack, Text } from "@mantine/core";
import { useState } from "react";
import { messageOf } from "../api/problem";
import { upload } from "../api/upload";
import { formatCount } from "../lib/format";
import { type FieldProps, TextField } from "./fields";
import { useField } from "./form";

/** The SHA-256 of an uploaded file, with a button that uploads one. */
export function FileField(props: FieldProps) {
  const field = useField(props.path);
  const [state, setState] = useState<{ text: string; failed?: boolean; busy?: boolean }>();
  const send = async (file: File | null) => {
    if (file === null) return;
    setState({ text: `Uploading ${file.name} …`, busy: true });
    try {
      const blob = await upload(file);
      field.set(blob.sha256);
      setState({ text: `${file.name} is uploaded: ${formatCount(blob.size)} bytes.` });
    } catch (error) {
      setState({ text: messageOf(error), failed: true });
    }
  };
  return (
    <Stack gap={6}>
      <TextField {...props} mono placeholder={props.placeholder ?? "SHA-256 of an uploaded file"} />
      <Group gap="sm">
        <FileButton onChange={(file) => void send(file)}>
          {(button) => (
            <Button variant="default" size="compact-sm" loading={state?.busy} {...button}>
              Upload a file
            </Button>
          )}
        </FileButton>
        {state && (
          <Text size="sm" c={state.failed ? "red" : "dimmed"} role={state.failed ? "alert" : "status"}>
            {state.text}
          </Text>
        )}
      </Group>
    </Stack>
  );
}
