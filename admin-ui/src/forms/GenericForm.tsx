import { Stack } from "@mantine/core";
import { useResourceSchema } from "../api/queries";
import { KIND_FACTS } from "../api/kinds";
import type { KindPlural } from "../api/types";
import { Failed, Loading } from "../components/states";
import { SchemaForm } from "./SchemaForm";
import { DescriptionFields, NameField, Section } from "./sections";

/** The form of a kind without its own form, drawn from the schema in the OpenAPI document. */
export function GenericForm({
  kind,
  title,
  creating,
}: {
  kind: KindPlural;
  title: string;
  creating: boolean;
}) {
  const schema = useResourceSchema(kind);
  if (schema.error) return <Failed what="the form" error={schema.error} retry={() => schema.refetch()} />;
  if (!schema.data) return <Loading what="the form" />;
  return (
    <Stack gap="md">
      <Section title={title}>
        <NameField creating={creating} />
        <SchemaForm
          schema={schema.data.schema}
          root={schema.data.root}
          path=""
          omit={["name", "kind", "meta", "description", "labels", "fleets"]}
        />
      </Section>
      <DescriptionFields hasFleets={KIND_FACTS.find(({ plural }) => plural === kind)?.for_proxies} />
    </Stack>
  );
}
