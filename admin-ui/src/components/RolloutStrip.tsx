import { Anchor, Box, CloseButton, Container, Group, Loader, Text, ThemeIcon } from "@mantine/core";
import { createContext, type ReactNode, useContext, useMemo, useState } from "react";
import { Link } from "react-router";
import { useProxies, useRollouts } from "../api/queries";
import { convergenceOf, groupRejections } from "../lib/board";
import { formatDuration, plural } from "../lib/format";
import { isOpen, isStepwise, newestFirst, reachOf, sentenceOf } from "../lib/rollout";
import { IconAlert, IconCheck } from "./icons";
import { Fault, whoAndWhat } from "./Rejections";

/** The fleets with steps that the strip names. */
const SHOWN_FLEETS = 3;

type Watched = { revision: number | null; watch: (revision: number | null) => void };

const WatchedContext = createContext<Watched>({ revision: null, watch: () => {} });

/** Remembers the last revision that this page made; the strip shows its rollout. */
export function WatchedRevision({ children }: { children: ReactNode }) {
  const [revision, watch] = useState<number | null>(null);
  const value = useMemo(() => ({ revision, watch }), [revision]);
  return <WatchedContext value={value}>{children}</WatchedContext>;
}

/** Shows the rollout of a revision, live, on every page. */
export function useWatchRevision(): (revision: number | null) => void {
  return useContext(WatchedContext).watch;
}

/** The strip is under the header, so it is visible at every scroll position and hides no controls. */
export function RolloutStrip() {
  const { revision, watch } = useContext(WatchedContext);
  return revision === null ? null : <Strip key={revision} revision={revision} close={() => watch(null)} />;
}

function Strip({ revision, close }: { revision: number; close: () => void }) {
  const rollouts = useRollouts();
  const proxies = useProxies();
  const row = convergenceOf(revision, undefined, rollouts.data ?? [], proxies.data ?? []);
  const rejections = groupRejections(proxies.data ?? []).filter((each) => each.revision === revision);
  const stepwise = (rollouts.data ?? [])
    .filter((rollout) => rollout.revision === revision && isStepwise(rollout))
    .sort(newestFirst);
  const failed = row.state === "failed" || row.state === "aborted" || row.rejected > 0;
  const live = !failed && row.state !== null && row.pending === 0 && !stepwise.some(isOpen);
  const nobody = row.state === null && proxies.data?.every((proxy) => !proxy.connected) === true;
  const color = failed ? "red" : live || nobody ? "teal" : "blue";
  return (
    <Box
      className="rollout-strip"
      role="status"
      data-testid="rollout-strip"
      style={{ borderBottomColor: `var(--mantine-color-${color}-6)` }}
    >
      <Container size={1480} px="lg" py={8}>
        <Group wrap="nowrap" gap="sm">
          {failed ? (
            <ThemeIcon color="red" variant="light" radius="xl" size={24}>
              <IconAlert size={14} />
            </ThemeIcon>
          ) : live || nobody ? (
            <ThemeIcon color="teal" variant="light" radius="xl" size={24}>
              <IconCheck size={14} />
            </ThemeIcon>
          ) : (
            <Loader size={20} m={2} />
          )}
          <Text size="sm" style={{ flex: 1, minWidth: 0 }} className="breaks" component="div">
            <Text span inherit fw={600}>
              Revision {revision}
            </Text>{" "}
            {nobody && "is stored. No proxy is connected; each proxy gets the revision when it connects."}
            {row.state === null && !nobody && "is stored and is being sent to the proxies…"}
            {row.state !== null && (
              <>
                is live on {row.applied} of {plural(row.total, "proxy", "proxies")}
                {live && row.max !== null && ` in ${formatDuration(row.max)}`}
                {row.disconnected > 0 && ` · ${row.disconnected} disconnected`}
              </>
            )}
            {stepwise.slice(0, SHOWN_FLEETS).map((rollout) => (
              <Text key={rollout.id} size="sm" lineClamp={2}>
                <Anchor component={Link} to={`/rollouts/${rollout.id}`} inherit>
                  Rollout in fleet {rollout.fleet}
                </Anchor>
                {": "}
                {sentenceOf(rollout, reachOf(rollout, proxies.data ?? []))}
              </Text>
            ))}
            {stepwise.length > SHOWN_FLEETS && (
              <Text size="sm">and {plural(stepwise.length - SHOWN_FLEETS, "more fleet")}</Text>
            )}
            {rejections.map((rejection) => (
              <Text key={rejection.what} size="sm" c="var(--mantine-color-error)" lineClamp={2}>
                {whoAndWhat(rejection)} {revision}
                {rejection.reasons[0] && (
                  <>
                    {": "}
                    <Fault fault={rejection.reasons[0].fault} />
                  </>
                )}
                {rejection.reasons.length > 1 &&
                  ` and ${plural(rejection.reasons.length - 1, "more reason", "more reasons")}`}
              </Text>
            ))}
            {rejections.length === 0 && row.fault && (
              <Text size="sm" c="var(--mantine-color-error)" lineClamp={2}>
                {row.fault.proxy} rejected the revision: <Fault fault={row.fault} />
              </Text>
            )}
          </Text>
          <Anchor component={Link} to={failed ? "/" : `/revisions/${revision}`} size="sm" className="nowrap">
            {failed ? "Show the board" : "Show the changes"}
          </Anchor>
          <CloseButton size="sm" aria-label="Close" onClick={close} />
        </Group>
      </Container>
    </Box>
  );
}
