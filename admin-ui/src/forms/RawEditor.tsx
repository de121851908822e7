import { Alert, Group, SegmentedControl, Stack, Text, Textarea } from "@mantine/core";
import { useState } from "react";
import { parse, stringify } from "yaml";
import { isObject, type Json, type JsonObject } from "../lib/json";
import { useForm } from "./form";
import { halfEdited } from "./secrets";

type Format = "yaml" | "json";

/** The specification as text. The form does not take over text that cannot be read, and `onBroken` reports it. */
export function RawEditor({
  onBroken,
  readOnly,
}: {
  onBroken: (broken: boolean) => void;
  readOnly: boolean;
}) {
  const { spec, replace, stored } = useForm();
  const [format, setFormat] = useState<Format>("yaml");
  const [text, setText] = useState(() => write(spec, "yaml"));
  const [wrong, setWrong] = useState<{ title: string; text: string }>();
  const change = (text: string) => {
    setText(text);
    const read = readObject(text);
    const [half] = halfEdited(read.spec ?? {}, stored);
    if (read.error !== undefined) setWrong({ title: "The text cannot be read", text: read.error });
    else if (half) setWrong({ title: "The text cannot be saved", text: `${half.field} ${half.message}` });
    else setWrong(undefined);
    onBroken(read.error !== undefined || half !== undefined);
    if (read.spec && !half) replace(read.spec);
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
          The text has all fields, including those that the form does not show.
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
        readOnly={readOnly}
        error={wrong !== undefined}
        onChange={(event) => change(event.currentTarget.value)}
      />
      {wrong && (
        <Alert color="red" title={wrong.title} role="alert">
          <Text size="sm" className="mono" style={{ whiteSpace: "pre-wrap" }}>
            {wrong.text}
          </Text>
        </Alert>
      )}
    </Stack>
  );
}

function write(spec: JsonObject, format: Format): string {
  return format === "yaml" ? stringify(spec) : `${JSON.stringify(spec, null, 2)}\n`;
}

/** JSON is valid YAML, so one parser reads both. */
function readObject(text: string): { spec?: JsonObject; error?: string } {
  try {
    const value = parse(text, { schema: "core", maxAliasCount: 0 }) as Json;
    return isObject(value) ? { spec: value } : { error: "The specification must be an object with fields." };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  }
}
