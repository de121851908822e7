import { Anchor, Group, Stack, Text } from "@mantine/core";
import { Link } from "react-router";
import type { Rollout } from "../api/types";
import { formatTime } from "../lib/format";
import { type FleetStanding, standingsOf } from "../lib/history";
import { isStepwise, sentenceOf } from "../lib/rollout";
import { StandingBadge } from "./StateBadge";

/** The fleets that a row of a list names. The page of the revision has all. */
const SHOWN_FLEETS = 3;

/** What has become of a revision, fleet by fleet. `brief`: for a row of a list. */
export function Standings({ revision, rollouts, brief }: { revision: number; rollouts: Rollout[]; brief?: boolean }) {
  const standings = standingsOf(revision, rollouts);
  if (standings.length === 0) {
    return (
      <Text size="sm" c="dimmed">
        {brief ? "–" : "No rollout of that time is known"}
      </Text>
    );
  }
  const isOnlyDefault = standings.length === 1 && standings[0]?.fleet === "default";
  const shown = brief ? standings.slice(0, SHOWN_FLEETS) : standings;
  return (
    <Stack gap={brief ? 4 : 8}>
      {shown.map((each) => (
        <div key={each.fleet} data-standing={each.standing.is} data-fleet={each.fleet}>
          <Group gap="xs" wrap="nowrap">
            <Badge standing={each} />
            {!isOnlyDefault && (
              <Anchor component={Link} to={`/fleets/${each.fleet}`} size="xs" className="breaks">
                {each.fleet}
              </Anchor>
            )}
          </Group>
          <Detail standing={each} brief={brief} />
        </div>
      ))}
      {shown.length < standings.length && (
        <Text className="cell-sub">and {standings.length - shown.length} more fleets</Text>
      )}
    </Stack>
  );
}

/** The badge leads to the rollout. */
function Badge({ standing: { standing, rollout, fleet } }: { standing: FleetStanding }) {
  const badge = <StandingBadge standing={standing} />;
  if (!rollout) return badge;
  return (
    <Anchor
      component={Link}
      to={`/rollouts/${rollout.id}`}
      underline="never"
      title={`Rollout of revision ${rollout.revision} in fleet ${fleet}`}
    >
      {badge}
    </Anchor>
  );
}

function Detail({ standing: { standing, rollout }, brief }: { standing: FleetStanding; brief?: boolean }) {
  const text = detailOf({ standing, rollout });
  const rejected = rollout?.counts.rejected ?? 0;
  return (
    <>
      {text !== "" && <Text className="cell-sub">{text}</Text>}
      {brief && rejected > 0 && (
        <Text className="cell-sub" c="var(--mantine-color-error)">
          rejected by {rejected} of {rollout?.counts.total}
        </Text>
      )}
      {!brief && standing.is === "taken-back" && rollout?.reason && (
        <Text className="cell-sub breaks">{rollout.reason.text}</Text>
      )}
    </>
  );
}

function detailOf({ standing, rollout }: Pick<FleetStanding, "standing" | "rollout">): string {
  switch (standing.is) {
    case "serving":
      return standing.partly && rollout ? `on ${rollout.counts.applied} of ${rollout.counts.total} proxies` : "";
    case "served-until":
      return formatTime(standing.until);
    case "never-served":
      if (!standing.soFar) return "";
      return rollout && isStepwise(rollout) ? `so far. ${sentenceOf(rollout, rollout.counts)}` : "so far";
    case "superseded":
    case "taken-back":
      return "";
  }
}
