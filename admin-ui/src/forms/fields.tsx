import {
  ActionIcon,
  Button,
  Group,
  MultiSelect,
  NumberInput,
  PasswordInput,
  Select,
  Stack,
  Switch,
  TagsInput,
  Text,
  Textarea,
  TextInput,
} from "@mantine/core";
import { type ReactNode, useState } from "react";
import { IconPlus, IconTrash } from "../components/icons";
import { isObject, type Json, sameJson } from "../lib/json";
import { useField } from "./form";

export type FieldProps = {
  path: string;
  label: string;
  description?: ReactNode;
  placeholder?: string;
  required?: boolean;
  /** Shows the label to screen readers only. */
  hideLabel?: boolean;
};

/** The props that all inputs share. */
function common({ label, description, placeholder, required, hideLabel }: FieldProps) {
  return {
    ...(hideLabel ? { "aria-label": label } : { label }),
    description,
    placeholder,
    withAsterisk: required,
  };
}

type TextProps = FieldProps & {
  mono?: boolean;
  disabled?: boolean;
  rows?: number;
  /** True if the API accepts both `65536` and `64KiB`: digits alone are then written as a number. */
  digitsAreNumber?: boolean;
  /** Hides the text while it is typed. A field of several rows is only kept out of the browser's autocompletion. */
  secret?: boolean;
};

/** A text. An empty optional field is absent; an empty required field is the empty text. */
export function TextField(props: TextProps) {
  const field = useField(props.path);
  const shared = {
    ...common(props),
    disabled: props.disabled,
    error: field.error,
    value: asText(field.value),
    "data-mono": props.mono || undefined,
    autoComplete: props.secret ? "new-password" : "off",
    spellCheck: false,
  };
  const change = (text: string) => {
    if (text === "" && !props.required) field.set(undefined);
    else field.set(props.digitsAreNumber && /^\d{1,15}$/.test(text) ? Number(text) : text);
  };
  if (props.rows) {
    return <Textarea {...shared} rows={props.rows} onChange={(event) => change(event.currentTarget.value)} />;
  }
  const Line = props.secret ? PasswordInput : TextInput;
  return <Line {...shared} onChange={(event) => change(event.currentTarget.value)} />;
}

/** A number. Other text stays in the field, and the API refuses it. */
export function NumberField(
  props: FieldProps & { integer?: boolean; min?: number; max?: number; disabled?: boolean },
) {
  const field = useField(props.path);
  return (
    <NumberInput
      {...common(props)}
      disabled={props.disabled}
      error={field.error}
      value={typeof field.value === "number" || typeof field.value === "string" ? field.value : ""}
      onChange={(value) => field.set(value === "" ? undefined : value)}
      allowDecimal={!props.integer}
      min={props.min}
      max={props.max}
      clampBehavior="none"
    />
  );
}

/** A switch. A value that equals the default is left out, so that the specification stays short. */
export function SwitchField(props: FieldProps & { byDefault: boolean }) {
  const field = useField(props.path);
  const checked = typeof field.value === "boolean" ? field.value : props.byDefault;
  return (
    <Switch
      label={props.label}
      description={props.description}
      error={field.error}
      aria-invalid={field.error !== undefined || undefined}
      checked={checked}
      onChange={(event) => {
        const next = event.currentTarget.checked;
        field.set(next === props.byDefault && !props.required ? undefined : next);
      }}
    />
  );
}

export type Choice = { value: string; label: string; description?: ReactNode };

type SelectProps = FieldProps & {
  choices: Choice[];
  numeric?: boolean;
  searchable?: boolean;
  disabled?: boolean;
  /** After another one was chosen. */
  onChosen?: () => void;
};

/** A choice of one among a few texts or numbers. */
export function SelectField(props: SelectProps) {
  const field = useField(props.path);
  const value = asText(field.value);
  const known = props.choices.some((choice) => choice.value === value);
  const data = known || value === "" ? props.choices : [...props.choices, { value, label: value }];
  const chosen = props.choices.find((choice) => choice.value === value);
  return (
    <Select
      {...common(props)}
      description={chosen?.description ?? props.description}
      disabled={props.disabled}
      error={field.error}
      data={data.map(({ value, label }) => ({ value, label }))}
      value={value === "" ? null : value}
      onChange={(next) => {
        field.set(next === null ? undefined : props.numeric ? Number(next) : next);
        props.onChosen?.();
      }}
      clearable={!props.required}
      allowDeselect={false}
      searchable={props.searchable ?? false}
    />
  );
}

/** A value without a schema, as JSON. */
export function JsonField(props: FieldProps) {
  const field = useField(props.path, true);
  const [text, setText] = useState(() =>
    field.value === undefined ? "" : JSON.stringify(field.value, null, 2),
  );
  const [wrong, setWrong] = useState<string>();
  return (
    <Textarea
      {...common(props)}
      error={wrong ?? field.error}
      value={text}
      rows={4}
      data-mono
      spellCheck={false}
      onChange={(event) => {
        const text = event.currentTarget.value;
        setText(text);
        try {
          field.set(text.trim() === "" ? undefined : (JSON.parse(text) as Json));
          setWrong(undefined);
        } catch (error) {
          setWrong(error instanceof Error ? error.message : "This is not JSON");
        }
      }}
    />
  );
}

/** Several free texts. */
export function TagsField(props: FieldProps & { suggestions?: string[] }) {
  const field = useField(props.path, true);
  const values = asTexts(field.value);
  return (
    <TagsInput
      {...common(props)}
      error={field.error}
      placeholder={values.length === 0 ? props.placeholder : undefined}
      data={props.suggestions ?? []}
      value={values}
      onChange={(values) => field.set(values.length === 0 && !props.required ? undefined : values)}
      splitChars={[",", " "]}
      clearable
    />
  );
}

/** Several of given texts; those that are not (or no longer) among them stay and can be taken out. */
export function MultiSelectField(props: FieldProps & { choices: Choice[] }) {
  const field = useField(props.path, true);
  const values = asTexts(field.value);
  const unknown = values.filter((value) => !props.choices.some((choice) => choice.value === value));
  return (
    <MultiSelect
      {...common(props)}
      placeholder={values.length === 0 ? props.placeholder : undefined}
      error={field.error}
      data={[
        ...props.choices.map(({ value, label }) => ({ value, label })),
        ...unknown.map((value) => ({ value, label: value })),
      ]}
      value={values}
      onChange={(values) => field.set(values.length === 0 && !props.required ? undefined : values)}
      searchable
      clearable
      hidePickedOptions
      nothingFoundMessage="Nothing found"
    />
  );
}

/** A list of rows, each drawn by `row` for the item's path. */
export function ListField(
  props: FieldProps & {
    newItem: () => Json;
    addLabel: string;
    row: (path: string, index: number) => ReactNode;
  },
) {
  const field = useField(props.path);
  const items = Array.isArray(field.value) ? field.value : [];
  return (
    <Stack gap="xs" role="group" aria-label={props.label}>
      <ListHead {...props} />
      {items.map((_, index) => (
        <Group key={index} gap="xs" wrap="nowrap" align="flex-start">
          <div style={{ flex: 1, minWidth: 0 }}>{props.row(`${props.path}[${index}]`, index)}</div>
          <ActionIcon
            variant="subtle"
            color="gray"
            size={36}
            aria-label={`Remove ${props.label.toLowerCase()} ${index + 1}`}
            onClick={() => {
              const left = items.filter((_, other) => other !== index);
              field.set(left.length === 0 && !props.required ? undefined : left);
            }}
          >
            <IconTrash />
          </ActionIcon>
        </Group>
      ))}
      {field.error && <FieldMessage text={field.error} />}
      <AddButton label={props.addLabel} onClick={() => field.set([...items, props.newItem()])} />
    </Stack>
  );
}

/** An object whose keys are free: rows of name and value. `value` draws the value of a name; absent: a text. */
export function MapField(props: FieldProps & { newValue?: () => Json; value?: (path: string) => ReactNode }) {
  const field = useField(props.path, props.value === undefined);
  const current = isObject(field.value) ? field.value : {};
  // The rows as they are typed: two names may be equal for a while, which the object itself cannot hold.
  const [rows, setRows] = useState(() => Object.keys(current));
  const keys = Object.keys(current);
  const names = sameJson([...new Set(rows)].sort(), [...keys].sort()) ? rows : keys;
  const newValue = props.newValue ?? (() => "");
  const write = (names: string[], entries: [string, Json][]) => {
    setRows(names);
    field.set(entries.length === 0 && !props.required ? undefined : Object.fromEntries(entries));
  };
  const entriesOf = (names: string[], was: string[]): [string, Json][] =>
    names.map((name, index) => [name, current[was[index] ?? name] ?? newValue()]);
  return (
    <Stack gap="xs" role="group" aria-label={props.label}>
      <ListHead {...props} />
      {names.map((name, index) => (
        <Group key={index} gap="xs" wrap="nowrap" align="flex-start">
          <TextInput
            aria-label={`${props.label}: name ${index + 1}`}
            placeholder="name"
            value={name}
            style={{ flex: 1, minWidth: 0 }}
            error={names.indexOf(name) < index ? "This name is there twice" : undefined}
            onChange={(event) => {
              const next = names.map((other, at) => (at === index ? event.currentTarget.value : other));
              write(next, entriesOf(next, names));
            }}
          />
          <div style={{ flex: 2, minWidth: 0 }}>
            {props.value ? (
              props.value(`${props.path}.${name}`)
            ) : (
              <TextInput
                aria-label={`${props.label}: value of ${name || `row ${index + 1}`}`}
                placeholder="value"
                value={asText(current[name])}
                onChange={(event) => field.set({ ...current, [name]: event.currentTarget.value })}
              />
            )}
          </div>
          <ActionIcon
            variant="subtle"
            color="gray"
            size={36}
            aria-label={`Remove ${name || `row ${index + 1}`}`}
            onClick={() => {
              const next = names.filter((_, at) => at !== index);
              write(next, entriesOf(next, next));
            }}
          >
            <IconTrash />
          </ActionIcon>
        </Group>
      ))}
      {field.error && <FieldMessage text={field.error} />}
      <AddButton
        label="Add"
        disabled={names.includes("")}
        onClick={() => write([...names, ""], [...entriesOf(names, names), ["", newValue()]])}
      />
    </Stack>
  );
}

export function AddButton({
  label,
  onClick,
  disabled,
}: {
  label: string;
  onClick: () => void;
  disabled?: boolean;
}) {
  return (
    <div>
      <Button
        variant="default"
        size="compact-sm"
        leftSection={<IconPlus size={14} />}
        onClick={onClick}
        disabled={disabled}
      >
        {label}
      </Button>
    </div>
  );
}

function ListHead({ label, description, required }: FieldProps) {
  return (
    <div>
      <Text size="sm" fw="var(--mantine-font-weight-medium)" aria-hidden>
        {label}
        {required && <span style={{ color: "var(--mantine-color-error)" }}> *</span>}
      </Text>
      {description && (
        <Text size="xs" c="dimmed">
          {description}
        </Text>
      )}
    </div>
  );
}

/** An error of a field that is no input. */
export function FieldMessage({ text }: { text: string }) {
  return (
    <Text size="xs" c="var(--mantine-color-error)" role="alert" tabIndex={-1} data-field-error>
      {text}
    </Text>
  );
}

function asText(value: Json | undefined): string {
  return typeof value === "string" || typeof value === "number" ? String(value) : "";
}

function asTexts(value: Json | undefined): string[] {
  return Array.isArray(value)
    ? value.map((item) => (typeof item === "string" ? item : JSON.stringify(item)))
    : [];
}
