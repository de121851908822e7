import { Affix, Anchor, CloseButton, Group, Loader, Paper, Stack, Text, ThemeIcon } from "@mantine/core";
import { createContext, type ReactNode, useContext, useEffect, useMemo, useState } from "react";
import { Link } from "react-router";
import { useProxies, useRollouts } from "../api/queries";
import { convergenceOf } from "../lib/board";
import { formatDuration, plural } from "../lib/format";
import { IconAlert, IconCheck } from "./icons";

/** How long the card stays once its revision is live everywhere, milliseconds. */
const STAYS = 10_000;

type Watched = { revision: number | null; watch: (revision: number | null) => void };

const WatchedContext = createContext<Watched>({ revision: null, watch: () => {} });

/** Remembers the revision that was made here last, whose rollout the card shows. */
export function WatchedRevision({ children }: { children: ReactNode }) {
  const [revision, watch] = useState<number | null>(null);
  const value = useMemo(() => ({ revision, watch }), [revision]);
  return <WatchedContext value={value}>{children}</WatchedContext>;
}

/** Shows the rollout of a revision, live, over whatever page one goes to. */
export function useWatchRevision(): (revision: number | null) => void {
  return useContext(WatchedContext).watch;
}

export function RolloutCard() {
  const { revision, watch } = useContext(WatchedContext);
  return revision === null ? null : <Card key={revision} revision={revision} close={() => watch(null)} />;
}

function Card({ revision, close }: { revision: number; close: () => void }) {
  const rollouts = useRollouts();
  const proxies = useProxies();
  const row = convergenceOf(revision, undefined, rollouts.data ?? []);
  const connected = row.total - row.disconnected;
  const rejections = (proxies.data ?? []).filter((proxy) => proxy.error?.revision === revision);
  const live = row.state === "succeeded" || (row.state !== null && row.rejected === 0 && row.pending === 0);
  const failed = row.state === "failed" || row.rejected > 0;
  useEffect(() => {
    if (!live || failed) return;
    const timer = window.setTimeout(close, STAYS);
    return () => window.clearTimeout(timer);
  }, [live, failed, close]);
  return (
    <Affix position={{ bottom: 20, right: 20 }} zIndex={150}>
      <Paper
        shadow="md"
        p="md"
        w={360}
        maw="calc(100vw - 40px)"
        role="status"
        data-testid="rollout-card"
        data-rollout={row.state ?? "none"}
      >
        <Group wrap="nowrap" align="flex-start" gap="sm">
          {failed ? (
            <ThemeIcon color="red" variant="light" radius="xl">
              <IconAlert size={16} />
            </ThemeIcon>
          ) : live ? (
            <ThemeIcon color="teal" variant="light" radius="xl">
              <IconCheck size={16} />
            </ThemeIcon>
          ) : (
            <Loader size={22} m={3} />
          )}
          <Stack gap={2} style={{ flex: 1, minWidth: 0 }}>
            <Text size="sm" fw={600}>
              Revision {revision}
            </Text>
            <Text size="sm">
              {row.state === null &&
                (proxies.data?.some((proxy) => proxy.connected) === false
                  ? "Stored. No proxy is connected: each gets it when it comes."
                  : "Stored, on its way to the proxies…")}
              {row.state !== null && (
                <>
                  live on {row.applied} of {plural(row.total, "proxy", "proxies")}
                  {live && !failed && row.max !== null && ` in ${formatDuration(row.max)}`}
                </>
              )}
            </Text>
            {row.state !== null && connected < row.total && (
              <Text size="xs" c="dimmed">
                {row.disconnected} disconnected: they get it when they are back
              </Text>
            )}
            {rejections.map((proxy) => (
              <Text key={proxy.id} size="xs" c="red" className="breaks">
                {proxy.id}: {proxy.error?.resources.map((resource) => resource.message).join("; ")}
              </Text>
            ))}
            <Anchor component={Link} to={failed ? "/" : `/revisions/${revision}`} size="xs">
              {failed ? "See the board" : "See what changed"}
            </Anchor>
          </Stack>
          <CloseButton size="sm" aria-label="Close" onClick={close} />
        </Group>
      </Paper>
    </Affix>
  );
}
