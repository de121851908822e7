import { Group, SimpleGrid, Stack } from "@mantine/core";
import { ListField, NumberField, SelectField, TextField } from "./fields";
import { DescriptionFields, NameField, Section } from "./sections";

const POLICIES = [
  { value: "round_robin", label: "Round robin", description: "In turn, smoothly weighted" },
  {
    value: "least_request",
    label: "Least request",
    description: "The less busy of two that are drawn by weight",
  },
  { value: "random", label: "Random", description: "Drawn by weight" },
  {
    value: "peak_ewma",
    label: "Peak EWMA",
    description: "The faster, and less busy, of two that are drawn by weight",
  },
];

export function UpstreamForm({ creating }: { creating: boolean }) {
  return (
    <Stack gap="md">
      <Section title="Upstream">
        <NameField creating={creating} placeholder="users-v1" />
        <ListField
          path="targets"
          label="Targets"
          description="10.0.0.1:8080, [::1]:8080 or users.internal:8080; names are resolved again and again"
          required
          newItem={() => ({ address: "" })}
          addLabel="Add target"
          row={(path, index) => (
            <Group gap="xs" wrap="nowrap" align="flex-start">
              <div style={{ flex: 1, minWidth: 0 }}>
                <TextField
                  path={`${path}.address`}
                  label={`Address of target ${index + 1}`}
                  hideLabel
                  placeholder="host:port"
                  required
                  mono
                />
              </div>
              <div style={{ width: 130 }}>
                <NumberField
                  path={`${path}.weight`}
                  label={`Weight of target ${index + 1}`}
                  hideLabel
                  placeholder="weight 100"
                  integer
                  min={0}
                />
              </div>
            </Group>
          )}
        />
      </Section>
      <Section title="Policy">
        <SimpleGrid cols={{ base: 1, sm: 2 }}>
          <SelectField
            path="load_balancing.policy"
            label="Load balancing"
            placeholder="Round robin"
            description="How a target is picked"
            choices={POLICIES}
          />
          <SelectField
            path="protocol"
            label="Protocol"
            placeholder="HTTP/1.1"
            description="What the targets speak"
            choices={[
              { value: "http1", label: "HTTP/1.1" },
              { value: "http2", label: "HTTP/2" },
              { value: "auto", label: "As targets choose (ALPN)" },
            ]}
          />
          <TextField
            path="connect_timeout"
            label="Connect timeout"
            placeholder="1s"
            description="For a connection to be made"
          />
          <TextField
            path="idle_timeout"
            label="Idle timeout"
            placeholder="60s"
            description="How long an idle connection is kept"
          />
        </SimpleGrid>
      </Section>
      <DescriptionFields />
    </Stack>
  );
}
