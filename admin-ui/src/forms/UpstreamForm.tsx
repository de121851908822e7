import { Group, SimpleGrid, Stack } from "@mantine/core";
import { ListField, NumberField, SelectField, TextField } from "./fields";
import { DescriptionFields, NameField, Section } from "./sections";

const POLICIES = [
  { value: "round_robin", label: "Round robin", description: "Takes the targets in turn, by weight" },
  {
    value: "least_request",
    label: "Least request",
    description: "Takes the less busy of two random targets, by weight",
  },
  { value: "random", label: "Random", description: "Takes a random target, by weight" },
  {
    value: "peak_ewma",
    label: "Peak EWMA",
    description: "Takes the one of two random targets with the lower latency and load",
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
          description="10.0.0.1:8080, [::1]:8080 or users.internal:8080; names are resolved repeatedly"
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
            description="The policy that picks a target for a request"
            choices={POLICIES}
          />
          <SelectField
            path="protocol"
            label="Protocol"
            placeholder="HTTP/1.1"
            description="The protocol of the targets"
            choices={[
              { value: "http1", label: "HTTP/1.1" },
              { value: "http2", label: "HTTP/2" },
              { value: "auto", label: "Chosen by each target (ALPN)" },
            ]}
          />
          <TextField
            path="connect_timeout"
            label="Connect timeout"
            placeholder="1s"
            description="The maximum time to make a connection"
          />
          <TextField
            path="idle_timeout"
            label="Idle timeout"
            placeholder="60s"
            description="The time for which an idle connection is kept"
          />
        </SimpleGrid>
      </Section>
      <Section title="Limits" about="A response with a larger head is answered with 502">
        <SimpleGrid cols={{ base: 1, sm: 2 }}>
          <NumberField
            path="limits.response_header_count"
            label="Response header count"
            placeholder="1000"
            description="The maximum number of header fields of a response, at most 10000"
            integer
            min={1}
            max={10_000}
          />
          <TextField
            path="limits.response_header_size"
            label="Response header size"
            placeholder="128KiB"
            description="The maximum size of status line and headers together, 1KiB to 1MiB"
            digitsAreNumber
          />
        </SimpleGrid>
      </Section>
      <DescriptionFields />
    </Stack>
  );
}
