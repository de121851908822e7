import { Paper, Stack, Text, Title } from "@mantine/core";
import { type ReactNode, useId } from "react";
import { MapField, TagsField, TextField } from "./fields";

/** A part of a form with a heading. */
export function Section({
  title,
  about,
  children,
}: {
  title: string;
  about?: ReactNode;
  children: ReactNode;
}) {
  const id = useId();
  return (
    <Paper p="lg" component="section" aria-labelledby={id}>
      <Stack gap="md">
        <div>
          <Title order={2} size="h4" id={id}>
            {title}
          </Title>
          {about && (
            <Text size="sm" c="dimmed">
              {about}
            </Text>
          )}
        </div>
        {children}
      </Stack>
    </Paper>
  );
}

/** A name cannot be changed, because references use it. After creation it is the title of the page. */
export function NameField({ creating, placeholder }: { creating: boolean; placeholder?: string }) {
  if (!creating) return null;
  return (
    <TextField
      path="name"
      label="Name"
      description="Lower-case letters, digits, dots, dashes and underscores. The name cannot be changed later"
      placeholder={placeholder}
      required
      mono
    />
  );
}

/** The fields that every resource has; a fleet is in no fleet. */
export function DescriptionFields({ hasFleets = true }: { hasFleets?: boolean }) {
  return (
    <Section title={hasFleets ? "Description, labels and fleets" : "Description and labels"}>
      <TextField path="description" label="Description" rows={2} />
      <MapField path="labels" label="Labels" />
      {hasFleets && (
        <TagsField path="fleets" label="Fleets" placeholder="all fleets" description="Only proxies of these fleets get the resource" />
      )}
    </Section>
  );
}
