import { type InfiniteData, type QueryClient, useQueryClient } from "@tanstack/react-query";
import { createContext, type ReactNode, useContext, useEffect, useState } from "react";
import {
  KEPT_ROLLOUTS,
  onRevision,
  PROXIES_KEY,
  REVISIONS_KEY,
  type RevisionPage,
  ROLLOUTS_KEY,
  SESSION_KEY,
} from "./queries";
import type { ProxyStatus, RevisionSummary, Rollout } from "./types";

export type Connection = "connecting" | "live" | "lost";

/** How long events are gathered before the page is drawn, milliseconds: a thousand proxies tell of one revision. */
const GATHER = 80;
/** Before a stream that the server refused is opened again, milliseconds. */
const REOPEN = 2_000;

/** What the events keep up. */
const KEPT_UP: string[] = [...PROXIES_KEY, ...ROLLOUTS_KEY, ...REVISIONS_KEY];

const ConnectionContext = createContext<Connection>("connecting");

/** Whether what one sees is kept up by the control plane's events. */
export function useConnection(): Connection {
  return useContext(ConnectionContext);
}

/** Follows `GET /events`, and writes what it tells into what the pages have read. */
export function EventsProvider({ children }: { children: ReactNode }) {
  const queries = useQueryClient();
  const [connection, setConnection] = useState<Connection>("connecting");
  useEffect(() => follow(queries, setConnection), [queries]);
  return <ConnectionContext value={connection}>{children}</ConnectionContext>;
}

function follow(queries: QueryClient, tell: (connection: Connection) => void): () => void {
  let source: EventSource | undefined;
  let reopening: number | undefined;
  let flushing: number | undefined;
  let opened = false;
  let gathered = new Gathered();

  const flush = () => {
    flushing = undefined;
    // What is being read may be older than the events, and must not take their place.
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
    onRevision(queries);
  };

  const open = () => {
    source = new EventSource("/api/v1/events");
    source.onopen = () => {
      tell("live");
      // Between what was read and the first event, or while the stream was down, something may have happened.
      readAgain();
      opened = true;
    };
    source.onerror = () => {
      tell(opened ? "lost" : "connecting");
      // The browser tries again by itself, unless the answer was no stream of events at all.
      if (source?.readyState === EventSource.CLOSED) {
        tell("lost");
        void queries.invalidateQueries({ queryKey: SESSION_KEY });
        reopening = window.setTimeout(open, REOPEN);
      }
    };
    const on = <T,>(name: string, take: (gathered: Gathered, data: T) => void) =>
      source?.addEventListener(name, (event: MessageEvent<string>) => {
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
    source.addEventListener("reset", readAgain);
  };
  open();

  return () => {
    source?.close();
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
      queries.setQueryData<Rollout[]>(ROLLOUTS_KEY, (old) => old && this.mergeRollouts(old));
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

  private mergeRollouts(old: Rollout[]): Rollout[] {
    const merged = new Map(old.map((rollout) => [rollout.id, rollout]));
    for (const [id, rollout] of this.rollouts) merged.set(id, rollout);
    return [...merged.values()].sort((a, b) => b.revision - a.revision).slice(0, KEPT_ROLLOUTS);
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
