import { Anchor, Box, CloseButton, Container, Group, Loader, Text, ThemeIcon } from "@mantine/core";
import { createContext, type ReactNode, useContext, useMemo, useState } from "react";
import { Link } from "react-router";
import { useProxies, useRollouts } from "../api/queries";
import { convergenceOf, groupRejections } from "../lib/board";
import { formatDuration, plural } from "../lib/format";
import { IconAlert, IconCheck } from "./icons";
import { Fault, whoAndWhat } from "./Rejections";

type Watched = { revision: number | null; watch: (revision: number | null) => void };

const WatchedContext = createContext<Watched>({ revision: null, watch: () => {} });

/** Remembers the revision that was made here last, whose rollout the strip shows. */
export function WatchedRevision({ children }: { children: ReactNode }) {
  const [revision, watch] = useState<number | null>(null);
  const value = useMemo(() => ({ revision, watch }), [revision]);
  return <WatchedContext value={value}>{children}</WatchedContext>;
}

/** Shows the rollout of a revision, live, over whatever page one goes to. */
export function useWatchRevision(): (revision: number | null) => void {
  return useContext(WatchedContext).watch;
}

/** Over the page, under the header: never in the way of what one does next, and in sight wherever one has scrolled. */
export function RolloutStrip() {
  const { revision, watch } = useContext(WatchedContext);
  return revision === null ? null : <Strip key={revision} revision={revision} close={() => watch(null)} />;
}

function Strip({ revision, close }: { revision: number; close: () => void }) {
  const rollouts = useRollouts();
  const proxies = useProxies();
  const row = convergenceOf(revision, undefined, rollouts.data ?? []);
  const rejections = groupRejections(proxies.data ?? []).filter((each) => each.revision === revision);
  const failed = row.state === "failed" || row.rejected > 0;
  const live = !failed && row.state !== null && row.pending === 0;
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
            {nobody && "is stored. No proxy is connected: each gets it when it comes."}
            {row.state === null && !nobody && "is stored, on its way to the proxies…"}
            {row.state !== null && (
              <>
                is live on {row.applied} of {plural(row.total, "proxy", "proxies")}
                {live && row.max !== null && ` in ${formatDuration(row.max)}`}
                {row.disconnected > 0 && ` · ${row.disconnected} disconnected`}
              </>
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
                {row.fault.proxy} rejected it: <Fault fault={row.fault} />
              </Text>
            )}
          </Text>
          <Anchor component={Link} to={failed ? "/" : `/revisions/${revision}`} size="sm" className="nowrap">
            {failed ? "See the board" : "See what changed"}
          </Anchor>
          <CloseButton size="sm" aria-label="Close" onClick={close} />
        </Group>
      </Container>
    </Box>
  );
}
