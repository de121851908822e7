import { Alert, Stack, Text } from "@mantine/core";
import { useHealthReport } from "../api/queries";
import type { Incident } from "../api/types";
import { plural } from "../lib/format";
import { Age } from "./Age";
import { IconAlert } from "./icons";
import { ResourceLink } from "./Rejections";

/** The incidents that are shown. The rest is counted. */
const SHOWN = 5;

/** The state of the whole in a sentence, or what is wrong. Rejected revisions have alerts of their own. */
export function Incidents() {
  const report = useHealthReport();
  if (!report.data) return null;
  const incidents = report.data.incidents.filter(({ rule }) => rule !== "rejected");
  if (incidents.length === 0) {
    // Rejections say it better.
    if (report.data.incidents.length > 0) return null;
    return (
      <Text size="sm" c="dimmed" data-testid="health">
        {report.data.sentence}
      </Text>
    );
  }
  return (
    <Stack gap="sm" role="alert" data-testid="health">
      {incidents.slice(0, SHOWN).map((incident) => (
        <Alert
          key={`${incident.rule} ${incident.resource.kind}/${incident.resource.name}`}
          color="orange"
          variant="light"
          icon={<IconAlert />}
          title={<Title incident={incident} />}
        >
          <Text size="sm" className="breaks">
            {incident.sentence}
          </Text>
          {incident.actions.length > 0 && (
            <Text size="xs" c="dimmed" className="mono breaks" mt={4}>
              {incident.actions.join(" · ")}
            </Text>
          )}
        </Alert>
      ))}
      {incidents.length > SHOWN && (
        <Text size="sm">and {plural(incidents.length - SHOWN, "more incident", "more incidents")}</Text>
      )}
    </Stack>
  );
}

function Title({ incident: { resource, since } }: { incident: Incident }) {
  return (
    <>
      <ResourceLink kind={resource.kind} name={resource.name} />, for <Age at={since} />
    </>
  );
}
