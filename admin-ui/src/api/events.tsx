import { type InfiniteData, type QueryClient, useQueryClient } from "@tanstack/react-query";
import { createContext, type ReactNode, useContext, useEffect, useState } from "react";
import { noteHeard } from "../lib/liveness";
import { newestFirst } from "../lib/rollout";
import {
  FLEET_KEY,
  HEALTH_REPORT_KEY,
  KEPT_ROLLOUTS,
  onRevision,
  PROXIES_KEY,
  REVISIONS_KEY,
  type RevisionPage,
  ROLLOUT_KEY,
  ROLLOUTS_KEY,
  SESSION_KEY,
} from "./queries";
import type { ProxyStatus, RevisionSummary, Rollout } from "./types";

/** `since`: when the stream of events last showed a sign of life, milliseconds since 1970. */
export type Connection = { state: "connecting" } | { state: "live" } | { state: "lost"; since: number };

/** The time for which events are collected before the page is drawn, in milliseconds: a thousand proxies report one revision. */
const GATHER = 80;
/** The delay before a refused stream is opened again, in milliseconds. */
const REOPEN = 2_000;
/** The control plane sends a heartbeat every five seconds; after two and a half of them the stream counts as lost. */
const SILENCE = 12_500;
/** The interval of the checks for silence, in milliseconds. */
const CHECK = 1_000;

/** The queries that events keep up to date. */
const KEPT_UP: string[] = [...PROXIES_KEY, ...ROLLOUTS_KEY, ...REVISIONS_KEY];

const ConnectionContext = createContext<Connection>({ state: "connecting" });

/** The state of the event stream, which keeps the pages up to date. */
export function useConnection(): Connection {
  return useContext(ConnectionContext);
}

/** Follows `GET /events`, and writes what it tells into what the pages have read. */
export function EventsProvider({ children }: { children: ReactNode }) {
  const queries = useQueryClient();
  const [connection, setConnection] = useState<Connection>({ state: "connecting" });
  useEffect(() => follow(queries, setConnection), [queries]);
  return <ConnectionContext value={connection}>{children}</ConnectionContext>;
}

function follow(queries: QueryClient, tell: (connection: Connection) => void): () => void {
  let source: EventSource | undefined;
  let reopening: number | undefined;
  let flushing: number | undefined;
  let gathered = new Gathered();
  let state: Connection["state"] = "connecting";
  // The times when the stream was opened, and when an event last came; at first both are now.
  let openedAt = Date.now();
  let heardAt = openedAt;

  const flush = () => {
    flushing = undefined;
    // A query in progress may return data that is older than the events, and must not replace them.
    if (queries.isFetching({ predicate: ({ queryKey }) => KEPT_UP.includes(String(queryKey[0])) }) > 0) {
      flushing = window.setTimeout(flush, GATHER);
      return;
    }
    const events = gathered;
    gathered = new Gathered();
    events.writeTo(queries);
  };
  const gather = (take: (gathered: Gathered) => void) => {
    take(gathered);
    flushing ??= window.setTimeout(flush, GATHER);
  };
  const readAgain = () => {
    void queries.invalidateQueries({ predicate: ({ queryKey }) => KEPT_UP.includes(String(queryKey[0])) });
    void queries.invalidateQueries({ queryKey: ROLLOUT_KEY });
    void queries.invalidateQueries({ queryKey: FLEET_KEY });
    onRevision(queries);
  };

  const heard = () => {
    heardAt = Date.now();
    noteHeard();
    if (state !== "live") tell({ state: "live" });
    state = "live";
  };
  const lost = () => {
    if (state !== "lost") tell({ state: "lost", since: heardAt });
    state = "lost";
  };
  // A frozen connection ends with no error.
  const checkSilence = () => {
    const silence = Date.now() - Math.max(openedAt, heardAt);
    if (reopening !== undefined || silence <= SILENCE) return;
    lost();
    open();
  };
  const reopenAtOnce = () => {
    if (state === "lost") open();
  };

  const open = () => {
    window.clearTimeout(reopening);
    reopening = undefined;
    source?.close();
    openedAt = Date.now();
    source = new EventSource("/api/v1/events");
    source.onopen = () => {
      heard();
      // Between what was read and the first event, or while the stream was down, something may have happened.
      readAgain();
    };
    source.onerror = () => {
      // The browser tries again by itself, unless the answer was no stream of events at all.
      const closed = source?.readyState === EventSource.CLOSED;
      if (closed || state === "live") lost();
      if (closed) {
        void queries.invalidateQueries({ queryKey: SESSION_KEY });
        reopening ??= window.setTimeout(open, REOPEN);
      }
    };
    const on = <T,>(name: string, take: (gathered: Gathered, data: T) => void) =>
      source?.addEventListener(name, (event: MessageEvent<string>) => {
        heard();
        // The control plane writes these from the types of its OpenAPI document.
        const data = JSON.parse(event.data) as T;
        gather((gathered) => take(gathered, data));
      });
    on<ProxyStatus>("proxy", (gathered, proxy) => gathered.proxies.set(proxy.id, proxy));
    on<{ id: string }>("forgotten", (gathered, { id }) => gathered.proxies.set(id, null));
    on<Rollout>("rollout", (gathered, rollout) => gathered.rollouts.set(rollout.id, rollout));
    on<RevisionSummary>("revision", (gathered, revision) =>
      gathered.revisions.set(revision.number, revision),
    );
    source.addEventListener("incident", () => {
      heard();
      void queries.invalidateQueries({ queryKey: HEALTH_REPORT_KEY });
    });
    source.addEventListener("heartbeat", heard);
    source.addEventListener("reset", () => {
      heard();
      readAgain();
    });
  };
  open();
  const checking = window.setInterval(checkSilence, CHECK);
  // After a sleep, the timer may be late.
  document.addEventListener("visibilitychange", checkSilence);
  window.addEventListener("online", reopenAtOnce);

  return () => {
    source?.close();
    window.clearInterval(checking);
    document.removeEventListener("visibilitychange", checkSilence);
    window.removeEventListener("online", reopenAtOnce);
    window.clearTimeout(reopening);
    window.clearTimeout(flushing);
  };
}

/** The last event of each thing. */
class Gathered {
  /** `null`: it was forgotten. */
  readonly proxies = new Map<string, ProxyStatus | null>();
  readonly rollouts = new Map<string, Rollout>();
  readonly revisions = new Map<number, RevisionSummary>();

  writeTo(queries: QueryClient) {
    if (this.proxies.size > 0) {
      queries.setQueryData<ProxyStatus[]>(PROXIES_KEY, (old) => old && this.mergeProxies(old));
    }
    if (this.rollouts.size > 0) {
      const old = queries.getQueryData<Rollout[]>(ROLLOUTS_KEY) ?? [];
      for (const fleet of this.fleetsMoved(old)) {
        void queries.invalidateQueries({ queryKey: [...FLEET_KEY, fleet] });
      }
      queries.setQueryData<Rollout[]>(ROLLOUTS_KEY, (old) => old && this.mergeRollouts(old));
      for (const [id, rollout] of this.rollouts) {
        queries.setQueryData<Rollout>([...ROLLOUT_KEY, id], (old) => old && rollout);
      }
    }
    if (this.revisions.size > 0) {
      queries.setQueryData<InfiniteData<RevisionPage, string | undefined>>(
        REVISIONS_KEY,
        (old) => old && this.mergeRevisions(old),
      );
      onRevision(queries);
    }
  }

  private mergeProxies(old: ProxyStatus[]): ProxyStatus[] {
    const merged = new Map(old.map((proxy) => [proxy.id, proxy]));
    for (const [id, proxy] of this.proxies) {
      if (proxy) merged.set(id, proxy);
      else merged.delete(id);
    }
    return [...merged.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  /** The fleets that serve something else now: a rollout is new, or in another state, or has other canaries. */
  private fleetsMoved(old: Rollout[]): Set<string> {
    const before = new Map(old.map((rollout) => [rollout.id, rollout]));
    const moved = [...this.rollouts.values()].filter((rollout) => {
      const known = before.get(rollout.id);
      return known?.state !== rollout.state || known.step !== rollout.step || known.generation !== rollout.generation;
    });
    return new Set(moved.map((rollout) => rollout.fleet));
  }

  private mergeRollouts(old: Rollout[]): Rollout[] {
    const merged = new Map(old.map((rollout) => [rollout.id, rollout]));
    for (const [id, rollout] of this.rollouts) merged.set(id, rollout);
    return [...merged.values()].sort(newestFirst).slice(0, KEPT_ROLLOUTS);
  }

  private mergeRevisions(
    old: InfiniteData<RevisionPage, string | undefined>,
  ): InfiniteData<RevisionPage, string | undefined> {
    const known = new Set(old.pages.flatMap((page) => page.items.map((item) => item.number)));
    const added = [...this.revisions.values()].filter((revision) => !known.has(revision.number));
    const [first, ...rest] = old.pages;
    if (!first || added.length === 0) return old;
    const items = [...added, ...first.items].sort((a, b) => b.number - a.number);
    return { ...old, pages: [{ ...first, items }, ...rest] };
  }
}
