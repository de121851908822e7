import { Checkbox, Group, SegmentedControl, Select, SimpleGrid, Stack, Text, TextInput } from "@mantine/core";
import { useRef } from "react";
import { useResourceNames } from "../api/queries";
import { isObject, type Json, type JsonObject } from "../lib/json";
import {
  FieldMessage,
  ListField,
  MapField,
  MultiSelectField,
  NumberField,
  SelectField,
  SwitchField,
  TagsField,
  TextField,
} from "./fields";
import { useField, useForm } from "./form";
import { DescriptionFields, NameField, Section } from "./sections";

const METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

export function RouteForm({ creating }: { creating: boolean }) {
  const listeners = useResourceNames("listeners");
  const plugins = useResourceNames("plugins");
  return (
    <Stack gap="md">
      <Section title="Route">
        <NameField creating={creating} placeholder="users" />
        <SwitchField
          path="enabled"
          label="Enabled"
          description="A route that is not enabled matches nothing."
          byDefault
        />
        <MultiSelectField
          path="listeners"
          label="Listeners"
          placeholder="all listeners"
          choices={asChoices(listeners)}
        />
      </Section>
      <Section
        title="Match"
        about="A request must match one entry of each list that is not empty, and all conditions on headers and query parameters."
      >
        <TagsField
          path="match.hosts"
          label="Hosts"
          placeholder="any host"
          description="admin.example.com, or *.example.org, where the star stands for one label or more"
        />
        <ListField
          path="match.paths"
          label="Paths"
          description="Without paths, the route matches any path"
          newItem={() => ({ prefix: "/" })}
          addLabel="Add path"
          row={(path, index) => <PathRow path={path} index={index} />}
        />
        <TagsField path="match.methods" label="Methods" placeholder="any method" suggestions={METHODS} />
        <ListField
          path="match.headers"
          label="Headers"
          newItem={() => ({ name: "", exact: "" })}
          addLabel="Add header"
          row={(path, index) => <ValueMatchRow path={path} what={`Header ${index + 1}`} />}
        />
        <ListField
          path="match.query"
          label="Query parameters"
          newItem={() => ({ name: "", exact: "" })}
          addLabel="Add query parameter"
          row={(path, index) => <ValueMatchRow path={path} what={`Query parameter ${index + 1}`} />}
        />
        <SimpleGrid cols={{ base: 1, sm: 2 }}>
          <NumberField
            path="priority"
            label="Priority"
            placeholder="0"
            description="The route with the highest priority wins, before all other rules"
            integer
          />
          <SwitchField
            path="strict_slash"
            label="Strict slash"
            description="Redirects /x/ and /x to the form that the route has"
            byDefault={false}
          />
        </SimpleGrid>
      </Section>
      <Section title="Action">
        <ActionFields />
      </Section>
      <Section title="Plugins">
        <MultiSelectField
          path="plugins"
          label="Plugins"
          placeholder="none"
          description="These plugins run in addition to the global ones. Each plugin has its own order"
          choices={asChoices(plugins)}
        />
      </Section>
      <DescriptionFields />
    </Stack>
  );
}

const PATH_KINDS = [
  { value: "prefix", label: "Prefix", hint: "/api takes /api, /api/ and /api/x, not /apis" },
  { value: "exact", label: "Exact", hint: "this path alone" },
  { value: "template", label: "Template", hint: "/users/{id}, /files/{*rest}" },
  { value: "regex", label: "Regex", hint: "must match the whole path" },
];

function PathRow({ path, index }: { path: string; index: number }) {
  const field = useField(path, true);
  const entry = isObject(field.value) ? Object.entries(field.value)[0] : undefined;
  const [kind, text] = entry ?? ["prefix", ""];
  return (
    <Group gap="xs" wrap="nowrap" align="flex-start">
      <Select
        aria-label={`Kind of path ${index + 1}`}
        w={130}
        data={PATH_KINDS.map(({ value, label }) => ({ value, label }))}
        value={kind}
        allowDeselect={false}
        onChange={(next) => field.set({ [next ?? "prefix"]: text ?? "" })}
      />
      <TextInput
        aria-label={`Path ${index + 1}`}
        style={{ flex: 1 }}
        data-mono
        spellCheck={false}
        placeholder={PATH_KINDS.find((each) => each.value === kind)?.hint}
        value={typeof text === "string" ? text : ""}
        error={field.error}
        onChange={(event) => field.set({ [kind]: event.currentTarget.value })}
      />
    </Group>
  );
}

const VALUE_KINDS = [
  { value: "exact", label: "is" },
  { value: "prefix", label: "starts with" },
  { value: "regex", label: "matches regex" },
  { value: "present", label: "is present" },
  { value: "absent", label: "is absent" },
];

function ValueMatchRow({ path, what }: { path: string; what: string }) {
  const field = useField(path, true);
  const value: JsonObject = isObject(field.value) ? field.value : {};
  const { name, invert, ...test } = value;
  const found = Object.keys(test).find((key) => VALUE_KINDS.some((kind) => kind.value === key)) ?? "exact";
  const kind = found === "present" && test.present === false ? "absent" : found;
  const text = typeof test[kind] === "string" ? test[kind] : "";
  const write = (kind: string, text: string, change: JsonObject = {}) => {
    const test: JsonObject =
      kind === "present" ? { present: true } : kind === "absent" ? { present: false } : { [kind]: text };
    field.set({ name: name ?? "", ...test, ...(invert ? { invert: true } : {}), ...change });
  };
  return (
    <Stack gap={4}>
      <Group gap="xs" align="center" wrap="wrap">
        <TextInput
          aria-label={`${what}: name`}
          placeholder="name"
          data-mono
          spellCheck={false}
          w={170}
          value={typeof name === "string" ? name : ""}
          error={field.error !== undefined}
          onChange={(event) => write(kind, text, { name: event.currentTarget.value })}
        />
        <Select
          aria-label={`${what}: test`}
          w={150}
          data={VALUE_KINDS}
          value={kind}
          allowDeselect={false}
          onChange={(next) => write(next ?? "exact", text)}
        />
        {kind !== "present" && kind !== "absent" && (
          <TextInput
            aria-label={`${what}: value`}
            placeholder="value"
            data-mono
            spellCheck={false}
            style={{ flex: 1, minWidth: 140 }}
            value={text}
            error={field.error !== undefined}
            onChange={(event) => write(kind, event.currentTarget.value)}
          />
        )}
        <Checkbox
          label="invert"
          checked={invert === true}
          onChange={(event) => {
            const { invert: _, ...rest } = value;
            field.set(event.currentTarget.checked ? { ...rest, invert: true } : rest);
          }}
        />
      </Group>
      {field.error && <FieldMessage text={field.error} />}
    </Stack>
  );
}

const ACTIONS = ["forward", "redirect", "respond"] as const;
type Action = (typeof ACTIONS)[number];

const NEW_ACTION: Record<Action, JsonObject> = {
  forward: { upstreams: [{ name: "" }] },
  redirect: { status: 302 },
  respond: { status: 200, body: "" },
};

function ActionFields() {
  const { spec, replace } = useForm();
  // The values of the other actions, in case the user returns to one of them.
  const left = useRef<Partial<Record<Action, Json>>>({});
  const forward = useField("forward");
  const redirect = useField("redirect");
  const respond = useField("respond");
  const error = forward.error ?? redirect.error ?? respond.error;
  const action = ACTIONS.find((each) => spec[each] !== undefined) ?? "forward";
  const choose = (next: Action) => {
    if (next === action) return;
    const { [action]: old, ...rest } = spec;
    if (old !== undefined) left.current[action] = old;
    replace({ ...rest, [next]: left.current[next] ?? NEW_ACTION[next] });
  };
  return (
    <Stack gap="md">
      <SegmentedControl
        aria-label="Action"
        value={action}
        onChange={(next) => choose(next as Action)}
        data={[
          { value: "forward", label: "Forward" },
          { value: "redirect", label: "Redirect" },
          { value: "respond", label: "Respond" },
        ]}
        style={{ alignSelf: "flex-start" }}
      />
      {error && <FieldMessage text={error} />}
      {action === "forward" && <ForwardFields />}
      {action === "redirect" && <RedirectFields />}
      {action === "respond" && <RespondFields />}
    </Stack>
  );
}

function ForwardFields() {
  const upstreams = useResourceNames("upstreams");
  const field = useField("forward.upstreams");
  const weights = (Array.isArray(field.value) ? field.value : []).map((item) =>
    isObject(item) && typeof item.weight === "number" ? item.weight : 1,
  );
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return (
    <>
      <ListField
        path="forward.upstreams"
        label="Upstreams"
        description="Each request goes to one of these, chosen at random by weight"
        required
        newItem={() => ({ name: "" })}
        addLabel="Add upstream"
        row={(path, index) => (
          <Group gap="xs" wrap="nowrap" align="flex-start">
            <div style={{ flex: 1, minWidth: 0 }}>
              <SelectField
                path={`${path}.name`}
                label={`Upstream ${index + 1}`}
                hideLabel
                required
                searchable
                placeholder={upstreams.length === 0 ? "there is no upstream yet" : "choose an upstream"}
                choices={asChoices(upstreams)}
              />
            </div>
            <div style={{ width: 110 }}>
              <NumberField
                path={`${path}.weight`}
                label={`Weight of upstream ${index + 1}`}
                hideLabel
                placeholder="weight 1"
                integer
                min={0}
              />
            </div>
            {weights.length > 1 && (
              <Text size="sm" c="dimmed" w={48} ta="right" lh="36px">
                {total > 0 ? `${Math.round(((weights[index] ?? 0) / total) * 100)} %` : "–"}
              </Text>
            )}
          </Group>
        )}
      />
      <RewriteFields />
      <SimpleGrid cols={{ base: 1, sm: 2 }}>
        <TextField
          path="forward.timeout"
          label="Timeout"
          placeholder="30s"
          description="The maximum time for the whole request; 0s means no limit"
        />
      </SimpleGrid>
    </>
  );
}

const REWRITES = [
  { value: "none", label: "Keep the path" },
  { value: "path_prefix", label: "Replace the matched prefix by" },
  { value: "path", label: "Replace the path by" },
  { value: "path_regex", label: "Replace by regex" },
];

function RewriteFields() {
  const field = useField("forward.rewrite");
  const value = isObject(field.value) ? field.value : {};
  const kind = ["path_prefix", "path", "path_regex"].find((key) => value[key] !== undefined) ?? "none";
  const choose = (next: string) => {
    const host: JsonObject = value.host === undefined ? {} : { host: value.host };
    const path: JsonObject =
      next === "none" ? {} : { [next]: next === "path_regex" ? { pattern: "", substitution: "" } : "/" };
    const rewrite = { ...path, ...host };
    field.set(Object.keys(rewrite).length === 0 ? undefined : rewrite);
  };
  return (
    <Stack gap="xs">
      <SimpleGrid cols={{ base: 1, sm: 2 }}>
        <Select
          label="Rewrite"
          data={REWRITES}
          value={kind}
          allowDeselect={false}
          error={field.error}
          onChange={(next) => choose(next ?? "none")}
        />
        {(kind === "path_prefix" || kind === "path") && (
          <TextField path={`forward.rewrite.${kind}`} label="New path" required mono />
        )}
        <TextField path="forward.rewrite.host" label="Host" placeholder="keep the client's host" mono />
      </SimpleGrid>
      {kind === "path_regex" && (
        <SimpleGrid cols={{ base: 1, sm: 2 }}>
          <TextField path="forward.rewrite.path_regex.pattern" label="Pattern" required mono />
          <TextField
            path="forward.rewrite.path_regex.substitution"
            label="Substitution"
            description="$1 or ${name} is a group of the pattern"
            required
            mono
          />
        </SimpleGrid>
      )}
    </Stack>
  );
}

function RedirectFields() {
  return (
    <>
      <Text size="sm" c="dimmed">
        An empty field keeps the request's own value. The query is always kept.
      </Text>
      <SimpleGrid cols={{ base: 1, sm: 2 }}>
        <SelectField
          path="redirect.status"
          label="Status"
          numeric
          placeholder="302"
          choices={[301, 302, 303, 307, 308].map((status) => ({
            value: String(status),
            label: String(status),
          }))}
        />
        <SelectField
          path="redirect.scheme"
          label="Scheme"
          choices={["http", "https"].map((scheme) => ({ value: scheme, label: scheme }))}
        />
        <TextField path="redirect.host" label="Host" mono />
        <NumberField path="redirect.port" label="Port" integer min={1} max={65535} />
        <TextField path="redirect.path" label="Path" mono />
        <TextField
          path="redirect.path_prefix"
          label="New prefix"
          description="Replaces the matched prefix"
          mono
        />
      </SimpleGrid>
    </>
  );
}

function RespondFields() {
  return (
    <>
      <SimpleGrid cols={{ base: 1, sm: 2 }}>
        <NumberField path="respond.status" label="Status" placeholder="200" integer min={200} max={599} />
      </SimpleGrid>
      <TextField path="respond.body" label="Body" rows={5} mono />
      <MapField
        path="respond.headers"
        label="Headers"
        description="Without a content-type header the response is text/plain"
      />
    </>
  );
}

function asChoices(names: string[]) {
  return names.map((name) => ({ value: name, label: name }));
}
