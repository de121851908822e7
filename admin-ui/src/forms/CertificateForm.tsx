import { Stack } from "@mantine/core";
import { useResourceSchema } from "../api/queries";
import { Failed, Loading } from "../components/states";
import { TextField } from "./fields";
import { SchemaForm, SecretUnion } from "./SchemaForm";
import { shapeOf } from "./schema";
import { DescriptionFields, NameField, Section } from "./sections";

const ELSEWHERE = [
  "name",
  "kind",
  "meta",
  "description",
  "labels",
  "fleets",
  "certificate",
  "private_key",
  "ocsp_staple",
];

export function CertificateForm({ creating }: { creating: boolean }) {
  const schema = useResourceSchema("certificates");
  if (schema.error) return <Failed what="the form" error={schema.error} retry={() => schema.refetch()} />;
  if (!schema.data) return <Loading what="the form" />;
  const { schema: own, root } = schema.data;
  const key = shapeOf({ $ref: "#/components/schemas/Secret" }, root);
  // A hash is no key.
  const forms = key.is === "union" ? key.variants.filter((variant) => variant.rest?.key !== "sha256") : [];
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
        <SecretUnion
          path="private_key"
          label="Private key"
          description="In PEM. It is kept encrypted, and cannot be read back."
          required
          rows={6}
          variants={forms}
          root={root}
        />
        <SchemaForm schema={own} root={root} path="" omit={ELSEWHERE} />
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
