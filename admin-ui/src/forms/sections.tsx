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

/** A name is given once, for what refers to a resource does it by name; then it is the title of the page. */
export function NameField({ creating, placeholder }: { creating: boolean; placeholder?: string }) {
  if (!creating) return null;
  return (
    <TextField
      path="name"
      label="Name"
      description="Lower-case letters, digits, dots, dashes and underscores; it cannot be changed later"
      placeholder={placeholder}
      required
      mono
    />
  );
}

/** What every resource may carry. */
export function DescriptionFields() {
  return (
    <Section title="For people and selectors">
      <TextField path="description" label="Description" rows={2} />
      <MapField path="labels" label="Labels" />
      <TagsField path="fleets" label="Fleets" placeholder="all fleets" description="Which fleets get it" />
    </Section>
  );
}
