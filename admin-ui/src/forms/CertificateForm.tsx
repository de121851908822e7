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
  // A hash cannot be a private key.
  const forms = key.is === "union" ? key.variants.filter((variant) => variant.rest?.key !== "sha256") : [];
  return (
    <Stack gap="md">
      <Section title="Certificate">
        <NameField creating={creating} />
        <TextField
          path="certificate"
          label="Certificate"
          description="The certificate in PEM, followed by the certificates of the authorities that issued it, each issued by the next"
          required
          mono
          rows={8}
        />
        <SecretUnion
          path="private_key"
          label="Private key"
          description="The private key in PEM. It is stored encrypted, and cannot be read back"
          required
          rows={6}
          variants={forms}
          root={root}
        />
        <SchemaForm schema={own} root={root} path="" omit={ELSEWHERE} />
        <TextField
          path="ocsp_staple"
          label="OCSP response"
          description="The OCSP response for this certificate, in PEM or base64. Listeners staple it to TLS handshakes"
          mono
          rows={3}
        />
      </Section>
      <DescriptionFields />
    </Stack>
  );
}
