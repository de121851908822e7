import { Alert, Anchor, Stack, Text } from "@mantine/core";
import { Link } from "react-router";
import type { ProxyStatus, ResourceFault } from "../api/types";
import { KINDS } from "../kinds";
import { groupRejections, type Reason, type Rejection } from "../lib/board";
import { plural } from "../lib/format";
import { IconAlert } from "./icons";

/** The parts of a large failure that are shown. The rest is counted, and is in the table of proxies. */
const SHOWN_REJECTIONS = 3;
const SHOWN_REASONS = 5;
const SHOWN_PROXIES = 4;

/** One alert for each rejected revision, whatever the number of proxies that rejected it. */
export function Rejections({ proxies }: { proxies: ProxyStatus[] }) {
  const rejections = groupRejections(proxies);
  if (rejections.length === 0) return null;
  const hidden = rejections.slice(SHOWN_REJECTIONS);
  return (
    <Stack gap="sm" role="alert" data-testid="rejections">
      {rejections.slice(0, SHOWN_REJECTIONS).map((rejection) => (
        <Alert
          key={`${rejection.revision} ${rejection.what}`}
          color="red"
          variant="light"
          icon={<IconAlert />}
          title={
            <>
              {whoAndWhat(rejection)}{" "}
              <Anchor component={Link} to={`/revisions/${rejection.revision}`} inherit>
                {rejection.revision}
              </Anchor>
            </>
          }
        >
          <Stack gap={6}>
            {rejection.reasons.slice(0, SHOWN_REASONS).map((reason) => (
              <ReasonLine
                key={`${reason.fault.kind}/${reason.fault.name}/${reason.fault.field}/${reason.fault.message}`}
                reason={reason}
                of={rejection.proxies.length}
              />
            ))}
            {rejection.reasons.length > SHOWN_REASONS && (
              <Text size="sm">
                and {plural(rejection.reasons.length - SHOWN_REASONS, "more reason", "more reasons")}
              </Text>
            )}
            <Text size="xs" c="dimmed">
              {stillServing(rejection)}
            </Text>
          </Stack>
        </Alert>
      ))}
      {hidden.length > 0 && (
        <Text size="sm" c="var(--mantine-color-error)">
          and {plural(hidden.length, "more rejected revision", "more rejected revisions")}
        </Text>
      )}
    </Stack>
  );
}

/** "proxy-1 rejected revision", "300 proxies rejected revision". */
export function whoAndWhat({ proxies, what }: Rejection): string {
  const who = proxies.length === 1 ? proxies[0] : plural(proxies.length, "proxy", "proxies");
  return what === "rejected" ? `${who} rejected revision` : `${who} drifted from revision`;
}

function ReasonLine({ reason, of }: { reason: Reason; of: number }) {
  const { fault, proxies } = reason;
  const hidden = proxies.length - SHOWN_PROXIES;
  return (
    <div>
      <Text size="sm" className="breaks" lineClamp={3} title={fault.message}>
        <Fault fault={fault} />
      </Text>
      {of > 1 && (
        <Text size="xs" c="dimmed" className="breaks">
          {proxies.length < of && `${plural(proxies.length, "proxy", "proxies")}: `}
          {proxies.slice(0, SHOWN_PROXIES).join(", ")}
          {hidden > 0 && ` and ${hidden} more`}
        </Text>
      )}
    </div>
  );
}

/** The faulty resource, with a link, and the reason. */
export function Fault({ fault }: { fault: ResourceFault }) {
  return (
    <>
      {fault.name !== "" && (
        <span className="mono">
          <ResourceLink kind={fault.kind} name={fault.name} />
          {fault.field !== "" && ` · ${fault.field}`}
          {": "}
        </span>
      )}
      {fault.message}
      {fault.changed_in != null && (
        <>
          {" "}
          <Anchor component={Link} to={`/revisions/${fault.changed_in}`} inherit className="nowrap">
            (changed in revision {fault.changed_in})
          </Anchor>
        </>
      )}
    </>
  );
}

/** The name of a resource, with a link to its page. */
export function ResourceLink({ kind, name }: { kind: string; name: string }) {
  const known = KINDS.find((each) => each.singular === kind);
  const text = `${kind} ${name}`;
  if (!known) return text;
  return (
    <Anchor component={Link} to={`/${known.plural}/${name}`} inherit>
      {text}
    </Anchor>
  );
}

function stillServing({ served }: Rejection): string {
  const [lowest, highest] = [Math.min(...served), Math.max(...served)];
  return lowest === highest
    ? `Still serving revision ${lowest}.`
    : `Still serving revisions ${lowest} to ${highest}.`;
}
