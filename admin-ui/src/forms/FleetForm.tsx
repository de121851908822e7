import { ActionIcon, Group, NumberInput, SegmentedControl, Select, SimpleGrid, Stack, Table, Text, TextInput } from "@mantine/core";
import type { ReactNode } from "react";
import { IconDown, IconTrash, IconUp } from "../components/icons";
import { isObject, type Json, type JsonObject } from "../lib/json";
import { AddButton, FieldMessage, ListField, NumberField, SelectField, SwitchField, TextField } from "./fields";
import { useField } from "./form";
import { DescriptionFields, NameField, Section } from "./sections";

/** The form of a fleet: how revisions reach its proxies. */
export function FleetForm({ creating }: { creating: boolean }) {
  const strategy = useField("rollout.strategy");
  const isProgressive = strategy.value === "progressive";
  return (
    <Stack gap="md">
      <Section
        title="Rollout"
        about={
          isProgressive
            ? "Some proxies, the canaries, get a revision first. Gates compare them with the other proxies before the next step."
            : "All proxies of the fleet get a revision at once."
        }
      >
        <NameField creating={creating} placeholder="edge" />
        <SegmentedControl
          aria-label="Strategy"
          value={isProgressive ? "progressive" : "immediate"}
          onChange={(next) => strategy.set(next === "progressive" ? next : undefined)}
          data={[
            { value: "immediate", label: "Immediate" },
            { value: "progressive", label: "Progressive" },
          ]}
          style={{ alignSelf: "flex-start" }}
        />
        {strategy.error && <FieldMessage text={strategy.error} />}
      </Section>
      {isProgressive && (
        <>
          <Section
            title="Steps"
            about="Each step contains the proxies of those before it. The next one begins when its proxies were healthy, with enough requests to judge, for the soak time."
          >
            <StepsField />
            <SimpleGrid cols={{ base: 1, sm: 2 }} style={{ alignItems: "end" }}>
              <TextField
                path="rollout.bake"
                label="Bake time"
                placeholder="5m"
                description="After the last step, before the revision is proven. The gates are watched further"
              />
              <TextField
                path="rollout.step_deadline"
                label="Deadline of a step"
                placeholder="15m"
                description="The longest time of one step; it must be longer than each soak"
              />
            </SimpleGrid>
          </Section>
          <Section
            title="Gates"
            about="What the canaries may do worse than the other proxies. An empty field has the value that it shows."
          >
            <GateFields />
          </Section>
          <Section title="Decisions" about="What happens when a gate fails, when there is too little evidence, and when others write meanwhile.">
            <SimpleGrid cols={{ base: 1, sm: 2 }} style={{ alignItems: "end" }}>
              <SelectField
                path="rollout.on_failure"
                label="When a gate fails"
                placeholder="Hold"
                description="The canaries go back, and the fleet is held at the revision before until somebody acts"
                choices={[
                  { value: "hold", label: "Hold", description: "The canaries go back, and the fleet is held at the revision before until somebody acts" },
                  { value: "revert", label: "Revert", description: "The canaries go back, and a new revision takes the changes back" },
                ]}
              />
              <SelectField
                path="rollout.on_inconclusive"
                label="When there is too little evidence at the deadline"
                placeholder="Hold"
                description="The canaries keep the revision until somebody decides"
                choices={[
                  { value: "hold", label: "Hold", description: "The canaries keep the revision until somebody decides" },
                  { value: "promote", label: "Promote", description: "The rollout goes on without the evidence" },
                  { value: "abort", label: "Abort", description: "The canaries go back" },
                ]}
              />
              <SelectField
                path="rollout.on_new_write"
                label="When a revision is written meanwhile"
                placeholder="Wait"
                description="It waits for the end of the rollout under way"
                choices={[
                  { value: "wait", label: "Wait", description: "It waits for the end of the rollout under way" },
                  { value: "supersede", label: "Supersede", description: "The rollout starts anew with it, on the same canaries" },
                ]}
              />
              <SelectField
                path="rollout.when_empty"
                label="When the fleet has no proxy"
                placeholder="Wait"
                description="The rollout waits for a proxy"
                choices={[
                  { value: "wait", label: "Wait", description: "The rollout waits for a proxy" },
                  { value: "promote", label: "Promote", description: "The fleet is assigned the revision, which is not proven" },
                ]}
              />
            </SimpleGrid>
            <SwitchField
              path="rollout.approval.required"
              label="Needs approval"
              description="A rollout waits for somebody's approval before its first step"
              byDefault={false}
            />
            <ListField
              path="rollout.freeze"
              label="Freeze windows"
              description="Rollouts do not go forward in these windows of time. Abort and revert always work"
              newItem={() => ({ cron: "0 18 * * 5", for: "60h" })}
              addLabel="Add window"
              row={(path, index) => <FreezeRow path={path} index={index} />}
            />
          </Section>
        </>
      )}
      <DescriptionFields hasFleets={false} />
    </Stack>
  );
}

const MAX_STEPS = 20;

/** The default steps, which begin a list that someone changes. */
const DEFAULT_STEPS: Json[] = [
  { percent: 10, soak: "60s" },
  { percent: 50, soak: "2m" },
];

function StepsField() {
  const field = useField("rollout.steps");
  const steps = Array.isArray(field.value) ? field.value : null;
  const write = (next: Json[]) => field.set(next.length === 0 ? undefined : next);
  const move = (from: number, to: number) => {
    const next = [...(steps ?? [])];
    const [step] = next.splice(from, 1);
    if (step !== undefined) next.splice(to, 0, step);
    write(next);
  };
  return (
    <Stack gap="xs" role="group" aria-label="Steps">
      {steps?.map((step, index) => (
        <Group key={index} gap="xs" wrap="nowrap" align="flex-start">
          <Text size="sm" c="dimmed" w={52} lh="36px" style={{ flex: "none" }}>
            Step {index + 1}
          </Text>
          <div style={{ flex: 1, minWidth: 0 }}>
            <StepRow path={`rollout.steps[${index}]`} index={index} step={isObject(step) ? step : {}} />
          </div>
          <Group gap={0} wrap="nowrap">
            <Move label={`Move step ${index + 1} up`} disabled={index === 0} onClick={() => move(index, index - 1)}>
              <IconUp />
            </Move>
            <Move
              label={`Move step ${index + 1} down`}
              disabled={index === steps.length - 1}
              onClick={() => move(index, index + 1)}
            >
              <IconDown />
            </Move>
            <Move label={`Remove step ${index + 1}`} onClick={() => write(steps.filter((_, other) => other !== index))}>
              <IconTrash />
            </Move>
          </Group>
        </Group>
      ))}
      {steps === null && (
        <Text size="sm" c="dimmed">
          The default steps: 10 % of the proxies for 60s, then 50 % for 2m.
        </Text>
      )}
      <Text size="sm" c="dimmed">
        {steps === null ? "Then" : `Step ${steps.length + 1}:`} the whole fleet.
      </Text>
      {field.error && <FieldMessage text={field.error} />}
      <Group gap="xs">
        <AddButton
          label={steps === null ? "Change the steps" : "Add step"}
          disabled={steps !== null && steps.length >= MAX_STEPS}
          onClick={() => write(steps === null ? DEFAULT_STEPS : [...steps, { percent: 75, soak: "60s" }])}
        />
      </Group>
    </Stack>
  );
}

function Move({ label, disabled, onClick, children }: { label: string; disabled?: boolean; onClick: () => void; children: ReactNode }) {
  return (
    <ActionIcon
      variant="transparent"
      color="gray"
      size={36}
      aria-label={label}
      disabled={disabled}
      style={disabled ? { opacity: 0.3 } : undefined}
      onClick={onClick}
    >
      {children}
    </ActionIcon>
  );
}

const SIZES = [
  { value: "percent", label: "Percent" },
  { value: "count", label: "Count" },
  { value: "labels", label: "Labels" },
];

const NEW_SIZE: { [size: string]: Json } = { percent: 10, count: 1, labels: {} };

function StepRow({ path, index, step }: { path: string; index: number; step: JsonObject }) {
  const field = useField(path, true);
  const size = SIZES.find(({ value }) => step[value] !== undefined)?.value ?? "percent";
  const write = (change: { [key: string]: Json | undefined }) => {
    const next = Object.entries({ ...step, ...change }).filter(([, value]) => value !== undefined);
    field.set(Object.fromEntries(next) as JsonObject);
  };
  const choose = (next: string) => {
    const { percent: _, count: __, labels: ___, min, ...rest } = step;
    const kept: JsonObject = next === "percent" && min !== undefined ? { min } : {};
    field.set({ [next]: NEW_SIZE[next] ?? 10, ...kept, ...rest });
  };
  const what = `Step ${index + 1}`;
  return (
    <Stack gap={4}>
      <Group gap="xs" wrap="wrap" align="flex-start">
        <Select
          aria-label={`${what}: size by`}
          w={110}
          data={SIZES}
          value={size}
          allowDeselect={false}
          onChange={(next) => choose(next ?? "percent")}
        />
        {size === "percent" && (
          <>
            <NumberInput
              aria-label={`${what}: percent of the proxies`}
              w={110}
              suffix=" %"
              min={0}
              max={100}
              clampBehavior="none"
              value={numberOf(step.percent)}
              error={field.error !== undefined}
              onChange={(value) => write({ percent: value === "" ? 0 : value })}
            />
            <NumberInput
              aria-label={`${what}: fewest proxies`}
              placeholder="at least 1"
              prefix="at least "
              w={120}
              min={1}
              allowDecimal={false}
              clampBehavior="none"
              value={numberOf(step.min)}
              onChange={(value) => write({ min: value === "" ? undefined : value })}
            />
          </>
        )}
        {size === "count" && (
          <NumberInput
            aria-label={`${what}: number of proxies`}
            w={140}
            suffix={step.count === 1 ? " proxy" : " proxies"}
            min={1}
            allowDecimal={false}
            clampBehavior="none"
            value={numberOf(step.count)}
            error={field.error !== undefined}
            onChange={(value) => write({ count: value === "" ? 0 : value })}
          />
        )}
        {size === "labels" && <LabelsInput what={what} labels={step.labels} write={(labels) => write({ labels })} />}
        <TextInput
          aria-label={`${what}: soak`}
          leftSection={
            <Text size="xs" c="dimmed">
              soak
            </Text>
          }
          leftSectionWidth={44}
          placeholder="60s"
          w={130}
          spellCheck={false}
          value={typeof step.soak === "string" ? step.soak : ""}
          onChange={(event) => write({ soak: event.currentTarget.value === "" ? undefined : event.currentTarget.value })}
        />
      </Group>
      {field.error && <FieldMessage text={field.error} />}
    </Stack>
  );
}

/** Labels as `key=value`, with spaces between. What is no such pair stays as a key without a value until it is one. */
function LabelsInput({ what, labels, write }: { what: string; labels: Json | undefined; write: (labels: JsonObject) => void }) {
  const known = isObject(labels) ? Object.entries(labels) : [];
  const text = known.map(([key, value]) => (value === "" ? key : `${key}=${String(value)}`)).join(" ");
  return (
    <TextInput
      key={text === "" ? "empty" : "set"}
      aria-label={`${what}: labels of the proxies`}
      placeholder="zone=a version=2"
      data-mono
      spellCheck={false}
      style={{ flex: 1, minWidth: 160 }}
      defaultValue={text}
      onBlur={(event) => {
        const pairs = event.currentTarget.value.split(/[\s,]+/).filter(Boolean);
        write(Object.fromEntries(pairs.map((pair) => [pair.split("=")[0] ?? "", pair.split("=").slice(1).join("=")])));
      }}
    />
  );
}

const RATES = [
  { gate: "errors", label: "Errors", about: "Responses with status 500 and above", ratio: "1.25", floor: "0.001" },
  { gate: "latency", label: "Latency", about: "Responses slower than those of the other proxies", ratio: "1.25", floor: "0.002" },
  { gate: "not_found", label: "Not found", about: "No route, or status 400 to 499", ratio: "2", floor: "0.01" },
];

function GateFields() {
  return (
    <Stack gap="md">
      <Table className="table" verticalSpacing={6} layout="fixed">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Share of responses</Table.Th>
            <Table.Th>Tolerated ratio</Table.Th>
            <Table.Th>Tolerated in any case</Table.Th>
            <Table.Th>Confidence</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {RATES.map(({ gate, label, about, ratio, floor }) => (
            <Table.Tr key={gate}>
              <Table.Td>
                <Text size="sm" fw={600}>
                  {label}
                </Text>
                <Text className="cell-sub">{about}</Text>
              </Table.Td>
              <Table.Td>
                <GateNumber gate={gate} field="tolerated_ratio" label={`${label}: tolerated ratio`} placeholder={ratio} min={1} max={100} />
              </Table.Td>
              <Table.Td>
                <GateNumber gate={gate} field="floor" label={`${label}: tolerated in any case`} placeholder={floor} min={0} max={1} />
              </Table.Td>
              <Table.Td>
                <GateNumber gate={gate} field="confidence" label={`${label}: confidence`} placeholder="0.999" min={0.5} max={0.999999} />
              </Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
      <SimpleGrid cols={{ base: 2, md: 4 }} style={{ alignItems: "end" }}>
          <NumberField
            path="rollout.gates.coverage.min_requests"
            label="Coverage"
            description="The fewest requests at the canaries to each changed route with traffic"
            placeholder="50"
            integer
            min={0}
          />
          <NumberField
            path="rollout.gates.rejected"
            label="Rejected"
            description="The most canaries that may reject the revision or crash on it"
            placeholder="0"
            integer
            min={0}
          />
          <NumberField
            path="rollout.gates.lost"
            label="Lost"
            description="The most canaries that may be gone while the others stay"
            placeholder="1"
            integer
            min={0}
          />
          <NumberField
            path="rollout.gates.cpu.tolerated_ratio"
            label="CPU time"
            description="The tolerated CPU time for a request, as a ratio to the other proxies'"
            placeholder="1.5"
            min={1}
          />
      </SimpleGrid>
    </Stack>
  );
}

function GateNumber({
  gate,
  field,
  ...props
}: {
  gate: string;
  field: string;
  label: string;
  placeholder: string;
  min: number;
  max: number;
}) {
  return <NumberField path={`rollout.gates.${gate}.${field}`} hideLabel {...props} />;
}

function FreezeRow({ path, index }: { path: string; index: number }) {
  return (
    <Group gap="xs" wrap="nowrap" align="flex-start">
      <div style={{ flex: 1, minWidth: 0 }}>
        <TextField path={`${path}.cron`} label={`Window ${index + 1}: begins at`} hideLabel placeholder="0 18 * * 5" required mono />
      </div>
      <div style={{ width: 110 }}>
        <TextField path={`${path}.for`} label={`Window ${index + 1}: length`} hideLabel placeholder="60h" required />
      </div>
      <div style={{ flex: 1, minWidth: 0 }}>
        <TextField path={`${path}.timezone`} label={`Window ${index + 1}: time zone`} hideLabel placeholder="UTC" />
      </div>
    </Group>
  );
}

function numberOf(value: Json | undefined): number | string {
  return typeof value === "number" || typeof value === "string" ? value : "";
}
