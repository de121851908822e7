import { Alert, Group, SegmentedControl, Stack, Text, Textarea } from "@mantine/core";
import { useState } from "react";
import { parse, stringify } from "yaml";
import { isObject, type Json, type JsonObject } from "../lib/json";
import { useForm } from "./form";

type Format = "yaml" | "json";

/** The specification as text. What cannot be read is not taken over, and `onBroken` says so. */
export function RawEditor({ onBroken }: { onBroken: (broken: boolean) => void }) {
  const { spec, replace } = useForm();
  const [format, setFormat] = useState<Format>("yaml");
  const [text, setText] = useState(() => write(spec, "yaml"));
  const [wrong, setWrong] = useState<string>();
  const change = (text: string) => {
    setText(text);
    const read = readObject(text);
    setWrong(read.error);
    onBroken(read.error !== undefined);
    if (read.spec) replace(read.spec);
  };
  const reformat = (format: Format) => {
    setFormat(format);
    setText(write(spec, format));
    setWrong(undefined);
    onBroken(false);
  };
  return (
    <Stack gap="sm">
      <Group justify="space-between">
        <Text size="sm" c="dimmed">
          All fields, also those that the form does not show.
        </Text>
        <SegmentedControl
          aria-label="Format"
          size="xs"
          value={format}
          onChange={(next) => reformat(next as Format)}
          data={[
            { value: "yaml", label: "YAML" },
            { value: "json", label: "JSON" },
          ]}
        />
      </Group>
      <Textarea
        aria-label="Specification"
        data-mono
        autosize
        minRows={16}
        maxRows={40}
        spellCheck={false}
        value={text}
        error={wrong !== undefined}
        onChange={(event) => change(event.currentTarget.value)}
      />
      {wrong && (
        <Alert color="red" title="This cannot be read" role="alert">
          <Text size="sm" className="mono" style={{ whiteSpace: "pre-wrap" }}>
            {wrong}
          </Text>
        </Alert>
      )}
    </Stack>
  );
}

function write(spec: JsonObject, format: Format): string {
  return format === "yaml" ? stringify(spec) : `${JSON.stringify(spec, null, 2)}\n`;
}

/** JSON is YAML, so one reader does for both. */
function readObject(text: string): { spec?: JsonObject; error?: string } {
  try {
    const value = parse(text, { schema: "core", maxAliasCount: 0 }) as Json;
    return isObject(value) ? { spec: value } : { error: "It must be an object with fields." };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  }
}
