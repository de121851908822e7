import { Stack } from "@mantine/core";
import { useResourceSchema } from "../api/queries";
import { Failed, Loading } from "../components/states";
import { isObject } from "../lib/json";
import { TextField } from "./fields";
import { useField } from "./form";
import { SchemaForm } from "./SchemaForm";
import { DescriptionFields, NameField, Section } from "./sections";

const ELSEWHERE = ["name", "kind", "meta", "description", "labels", "fleets", "certificate", "ocsp_staple"];

export function CertificateForm({ creating }: { creating: boolean }) {
  const schema = useResourceSchema("certificates");
  const key = useField("private_key");
  if (schema.error) return <Failed what="the form" error={schema.error} retry={() => schema.refetch()} />;
  if (!schema.data) return <Loading what="the form" />;
  const { schema: own, root } = schema.data;
  // A reference has its fields; a key has many lines.
  const reference = isObject(key.value);
  return (
    <Stack gap="md">
      <Section title="Certificate">
        <NameField creating={creating} />
        <TextField
          path="certificate"
          label="Certificate"
          description="In PEM; behind it those of the authorities that issued it, each issued by the next."
          required
          mono
          rows={8}
        />
        {!reference && (
          <TextField
            path="private_key"
            label="Private key"
            description={
              creating
                ? "In PEM. It is kept encrypted, and cannot be read back."
                : "Leave it as it is to keep the stored key, or paste the new one in PEM."
            }
            required
            mono
            rows={6}
          />
        )}
        <SchemaForm
          schema={own}
          root={root}
          path=""
          omit={reference ? ELSEWHERE : [...ELSEWHERE, "private_key"]}
        />
        <TextField
          path="ocsp_staple"
          label="OCSP response"
          description="What its authority says of its revocation, in PEM or base64."
          mono
          rows={3}
        />
      </Section>
      <DescriptionFields />
    </Stack>
  );
}
