import { SimpleGrid, Stack, Text } from "@mantine/core";
import { usePluginTypes } from "../api/queries";
import { Failed, Loading } from "../components/states";
import { NumberField, SelectField, SwitchField, TextField } from "./fields";
import { useForm } from "./form";
import { SchemaForm } from "./SchemaForm";
import { DescriptionFields, NameField, Section } from "./sections";

export function PluginForm({ creating }: { creating: boolean }) {
  const types = usePluginTypes();
  const { spec, set } = useForm();
  if (types.error)
    return <Failed what="the plugin types" error={types.error} retry={() => types.refetch()} />;
  if (!types.data) return <Loading what="the plugin types" />;
  const type = types.data.find((each) => each.name === spec.type);
  return (
    <Stack gap="md">
      <Section title="Plugin">
        <NameField creating={creating} placeholder="admin-limit" />
        <SelectField
          path="type"
          label="Type"
          placeholder="choose a type"
          required
          disabled={!creating}
          // The configuration of one type has no meaning for another type.
          onChosen={() => set("config", undefined)}
          choices={types.data.map(({ name, description }) => ({ value: name, label: name, description }))}
        />
        <SimpleGrid cols={{ base: 1, sm: 3 }}>
          <SwitchField
            path="enabled"
            label="Enabled"
            description="A plugin that is not enabled is skipped everywhere"
            byDefault
          />
          <SwitchField path="global" label="Global" description="The plugin runs on every route" byDefault={false} />
          <NumberField
            path="order"
            label="Order"
            placeholder={type ? String(type.default_order) : undefined}
            description="The plugin with the highest order runs first"
            integer
          />
        </SimpleGrid>
        <TextField
          path="when"
          label="Condition"
          placeholder='request.method == "POST" && !("staff" in consumer.groups)'
          description="The plugin runs only for requests that meet this condition, a subset of CEL. Empty: it runs for all requests"
          rows={2}
          mono
        />
        {(type?.can_shadow || spec.shadow === true) && (
          <SwitchField
            path="shadow"
            label="Shadow"
            description="The plugin has no effect. What it would do is counted and logged"
            byDefault={false}
          />
        )}
      </Section>
      <Section title="Configuration">
        {type ? (
          <SchemaForm key={type.name} schema={type.schema} path="config" />
        ) : (
          <Text size="sm" c="dimmed">
            Choose a type to see its fields.
          </Text>
        )}
      </Section>
      <DescriptionFields />
    </Stack>
  );
}
