import { Box, Button, Fieldset, Group, Select, Stack, Text } from "@mantine/core";
import type { ReactNode } from "react";
import { isObject, type Json, join } from "../lib/json";
import {
  FieldMessage,
  JsonField,
  ListField,
  MapField,
  MultiSelectField,
  NumberField,
  SelectField,
  SwitchField,
  TagsField,
  TextField,
} from "./fields";
import { FileField } from "./FileField";
import { useField } from "./form";
import { SecretField } from "./SecretField";
import { isSecret } from "./secrets";
import { initialOf, labelOf, type Property, type Shape, shapeOf, type Variant } from "./schema";

type Props = {
  /** The JSON schema of an object. */
  schema: Json;
  /** The document that `$ref` refers to; default: the schema itself. */
  root?: Json;
  /** The path of the object in the specification. */
  path: string;
  /** Fields that are drawn elsewhere. */
  omit?: string[];
};

/** The fields of an object, drawn from its JSON schema. */
export function SchemaForm({ schema, root = schema, path, omit = [] }: Props) {
  const shape = shapeOf(schema, root);
  if (shape.is !== "object") {
    return <SchemaField name={labelOf(path)} schema={schema} root={root} path={path} required />;
  }
  const properties = shape.properties.filter((property) => !omit.includes(property.name));
  if (properties.length === 0) {
    return (
      <Text size="sm" c="dimmed">
        There are no fields to set.
      </Text>
    );
  }
  return <Properties properties={properties} root={root} path={path} />;
}

/** Draws required fields first. */
function Properties({ properties, root, path }: { properties: Property[]; root: Json; path: string }) {
  const ordered = [
    ...properties.filter((each) => each.required),
    ...properties.filter((each) => !each.required),
  ];
  return (
    <Stack gap="md">
      {ordered.map(({ name, label, schema, required }) => (
        <SchemaField
          key={name}
          name={label}
          schema={schema}
          root={root}
          path={join(path, name)}
          required={required}
        />
      ))}
    </Stack>
  );
}

/** The fields that hold PEM, whose lines an input of one line would join. */
const MULTILINE = /(^|\.)public_key$/;

type FieldProps = {
  name: string;
  schema: Json;
  root: Json;
  path: string;
  required: boolean;
  hideLabel?: boolean;
};

function SchemaField({ name, schema, root, path, required, hideLabel }: FieldProps) {
  const shape = shapeOf(schema, root);
  const base = {
    path,
    label: name,
    description: hideLabel ? undefined : prose(shape.description),
    placeholder: placeholderOf(shape),
    required,
    hideLabel,
  };
  switch (shape.is) {
    case "text":
      if (MULTILINE.test(path)) return <TextField {...base} rows={6} mono />;
      if (shape.file) return <FileField {...base} />;
      if (!shape.secret) return <TextField {...base} />;
      return (
        <SecretField {...base}>
          <TextField {...base} secret />
        </SecretField>
      );
    case "text-or-number":
      return <TextField {...base} digitsAreNumber />;
    case "number":
      return <NumberField {...base} integer={shape.integer} min={shape.min} max={shape.max} />;
    case "switch":
      return <SwitchField {...base} byDefault={shape.fallback === true} />;
    case "optional-switch":
      return <OptionalSwitch {...base} />;
    case "choice":
      return (
        <SelectField
          {...base}
          numeric={shape.choices.every((choice) => typeof choice.value === "number")}
          choices={shape.choices.map(({ value, label, description }) => ({
            value: String(value),
            label,
            description: prose(description),
          }))}
        />
      );
    case "list":
      return <SchemaList {...base} item={shape.item} root={root} />;
    case "map":
      return (
        <MapField
          {...base}
          {...(shapeOf(shape.value, root).is === "text"
            ? {}
            : {
                newValue: () => initialOf(shape.value, root),
                value: (path: string) => (
                  <SchemaField name="Value" schema={shape.value} root={root} path={path} required hideLabel />
                ),
              })}
        />
      );
    case "object":
      return (
        <ObjectField {...base} initial={() => initialOf(schema, root)}>
          <Properties properties={shape.properties} root={root} path={path} />
        </ObjectField>
      );
    case "union":
      return isSecret(shape) ? (
        <SecretUnion {...base} variants={shape.variants} root={root} />
      ) : (
        <Union {...base} variants={shape.variants} root={root} />
      );
    case "constant":
      return null;
    case "any":
      return <JsonField {...base} />;
  }
}

type BaseProps = {
  path: string;
  label: string;
  description?: ReactNode;
  placeholder?: string;
  required: boolean;
  hideLabel?: boolean;
};

function SchemaList({ item, root, ...base }: BaseProps & { item: Json; root: Json }) {
  const shape = shapeOf(item, root);
  if (shape.is === "text") return <TagsField {...base} />;
  if (shape.is === "choice" && shape.choices.every((choice) => typeof choice.value === "string")) {
    const choices = shape.choices.map((choice) => ({ ...choice, value: String(choice.value) }));
    return <MultiSelectField {...base} choices={choices} />;
  }
  return (
    <ListField
      {...base}
      newItem={() => initialOf(item, root)}
      addLabel="Add"
      row={(path, index) =>
        shape.is === "object" ? (
          <Box className="nested">
            <Properties properties={shape.properties} root={root} path={path} />
          </Box>
        ) : (
          <SchemaField
            name={`${base.label} ${index + 1}`}
            schema={item}
            root={root}
            path={path}
            required
            hideLabel
          />
        )
      }
    />
  );
}

/** A required object is always shown; an optional one is set and unset as a whole. */
function ObjectField(props: BaseProps & { initial: () => Json; children: ReactNode }) {
  const field = useField(props.path);
  const about = props.description && (
    <Text size="xs" c="dimmed">
      {props.description}
    </Text>
  );
  const error = field.error && <FieldMessage text={field.error} />;
  if (!isObject(field.value) && !props.required) {
    return (
      <Group justify="space-between" wrap="nowrap" align="flex-start">
        <div>
          <Text size="sm" fw="var(--mantine-font-weight-medium)">
            {props.label}
          </Text>
          {about}
          {error}
        </div>
        <Button
          variant="default"
          size="compact-sm"
          aria-label={`Set ${props.label}`}
          onClick={() => field.set(props.initial())}
        >
          Set
        </Button>
      </Group>
    );
  }
  return (
    <Fieldset legend={props.label} variant="default">
      <Stack gap="sm">
        {about}
        {error}
        {props.children}
        {!props.required && (
          <div>
            <Button
              variant="default"
              size="compact-sm"
              aria-label={`Unset ${props.label}`}
              onClick={() => field.set(undefined)}
            >
              Unset
            </Button>
          </div>
        )}
      </Stack>
    </Fieldset>
  );
}

function Union({ variants, root, ...base }: BaseProps & { variants: Variant[]; root: Json }) {
  const field = useField(base.path);
  const index = variants.findIndex((variant) => variant.fits(field.value));
  const current = variants[index];
  const rest = current?.rest;
  const inner = rest && (rest.key === "" ? base.path : join(base.path, rest.key));
  const shape = rest && shapeOf(rest.schema, root);
  return (
    <Stack gap="xs">
      <Select
        {...(base.hideLabel ? { "aria-label": base.label } : { label: base.label })}
        description={current?.description ? prose(current.description) : base.description}
        placeholder={base.placeholder}
        withAsterisk={base.required}
        error={inner === base.path ? undefined : field.error}
        data={variants.map((variant, at) => ({ value: String(at), label: variant.label }))}
        value={current ? String(index) : null}
        onChange={(next) => field.set(next === null ? undefined : variants[Number(next)]?.initial)}
        clearable={!base.required}
        allowDeselect={false}
      />
      {rest && inner !== undefined && shape && (
        <Box className="nested">
          {shape.is === "object" ? (
            <Properties
              properties={shape.properties.filter((property) => property.name !== rest.without)}
              root={root}
              path={inner}
            />
          ) : (
            <SchemaField
              name={rest.key === "" ? base.label : labelOf(rest.key)}
              schema={rest.schema}
              root={root}
              path={inner}
              required
              hideLabel={rest.key === ""}
            />
          )}
        </Box>
      )}
    </Stack>
  );
}

/** A secret, or a reference that the proxy resolves. */
export function SecretUnion({
  variants,
  root,
  rows,
  ...base
}: BaseProps & { variants: Variant[]; root: Json; rows?: number }) {
  const field = useField(base.path);
  const index = variants.findIndex((variant) => variant.fits(field.value));
  const rest = variants[index]?.rest;
  const isText = typeof field.value === "string";
  return (
    <SecretField {...base}>
      <Stack gap="xs">
        {isText || rest === undefined ? (
          <TextField {...base} secret rows={rows} mono={rows !== undefined} />
        ) : (
          <SchemaField
            name={`${base.label}: ${labelOf(rest.key)}`}
            schema={rest.schema}
            root={root}
            path={join(base.path, rest.key)}
            required
          />
        )}
        <Select
          aria-label={`${base.label}: how it is given`}
          size="xs"
          maw={300}
          data={variants.map((variant, at) => ({ value: String(at), label: secretLabel(variant) }))}
          value={index < 0 ? null : String(index)}
          onChange={(next) => field.set(variants[Number(next)]?.initial)}
          allowDeselect={false}
        />
      </Stack>
    </SecretField>
  );
}

function secretLabel({ label, rest }: Variant): string {
  switch (rest?.key) {
    case "env":
      return "An environment variable of the proxy";
    case "file":
      return "A file on the proxy's host";
    case "sha256":
      return "The SHA-256 of the key";
    case "hash":
      return "A hash of the password (argon2id or bcrypt)";
    default:
      return label;
  }
}

/** A choice of yes, no and not set. */
function OptionalSwitch(props: BaseProps) {
  const field = useField(props.path);
  return (
    <Select
      label={props.hideLabel ? undefined : props.label}
      aria-label={props.hideLabel ? props.label : undefined}
      description={props.description}
      placeholder={props.placeholder ?? "not set"}
      error={field.error}
      data={["yes", "no"]}
      value={typeof field.value === "boolean" ? (field.value ? "yes" : "no") : null}
      onChange={(value) => field.set(value === null ? undefined : value === "yes")}
      clearable
    />
  );
}

/** Shows `code` in a description as code. */
export function prose(text: string | undefined): ReactNode {
  if (text === undefined) return undefined;
  return text.split("`").map((part, index) =>
    index % 2 === 0 ? (
      part
    ) : (
      <span key={index} className="mono">
        {part}
      </span>
    ),
  );
}

function placeholderOf(shape: Shape): string | undefined {
  if (shape.fallback === undefined || shape.fallback === null) return undefined;
  if (typeof shape.fallback === "object") {
    return Array.isArray(shape.fallback) && shape.fallback.length > 0 ? shape.fallback.join(", ") : undefined;
  }
  return String(shape.fallback);
}
