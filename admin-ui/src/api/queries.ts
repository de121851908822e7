import {
  type QueryClient,
  useInfiniteQuery,
  useMutation,
  useQuery,
  useQueryClient,
} from "@tanstack/react-query";
import { useMemo } from "react";
import type { Json, JsonObject } from "../lib/json";
import { isObject } from "../lib/json";
import { type Action, newestFirst } from "../lib/rollout";
import { api, read, readAll } from "./client";
import { KIND_FACTS } from "./kinds";
import type {
  Change,
  FleetRollouts,
  KindPlural,
  Meta,
  PluginType,
  ProxyStatus,
  Resource,
  RevisionDetail,
  RevisionSummary,
  Rollout,
  RolloutState,
  Session,
} from "./types";

export const SESSION_KEY = ["session"] as const;
export const PROXIES_KEY = ["proxies"] as const;
export const ROLLOUTS_KEY = ["rollouts"] as const;
export const ROLLOUT_KEY = ["rollout"] as const;
export const HEALTH_REPORT_KEY = ["health-report"] as const;
export const FLEET_KEY = ["fleet"] as const;
export const REVISIONS_KEY = ["revisions"] as const;
const RESOURCES_KEY = ["resources"] as const;

/** The number of rollouts that are kept: those of the revisions that the pages show first. */
export const KEPT_ROLLOUTS = 200;

// Session

export function useSession() {
  return useQuery<Session>({
    queryKey: SESSION_KEY,
    queryFn: () => read(api.GET("/session")),
    staleTime: Number.POSITIVE_INFINITY,
  });
}

export function useLogin() {
  const queries = useQueryClient();
  return useMutation({
    mutationKey: SESSION_KEY,
    mutationFn: (token: string) => read(api.POST("/session", { body: { token } })),
    onSuccess: (session) => queries.setQueryData<Session>(SESSION_KEY, session),
  });
}

export function useLogout() {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: () => read(api.DELETE("/session")),
    onSuccess: async () => {
      // Asking anew who one is shows the login; then nothing of what this one has read is left for the next.
      await queries.resetQueries({ queryKey: SESSION_KEY });
      queries.removeQueries({ predicate: ({ queryKey }) => queryKey[0] !== SESSION_KEY[0] });
    },
  });
}

// The board: read once, then kept up by the events

export function useProxies() {
  return useQuery({ queryKey: PROXIES_KEY, queryFn: readProxies, staleTime: Number.POSITIVE_INFINITY });
}

/** What is wrong. The control plane looks every ten seconds. */
export function useHealthReport() {
  return useQuery({
    queryKey: HEALTH_REPORT_KEY,
    queryFn: () => read(api.GET("/health-report")),
    refetchInterval: 10_000,
  });
}

async function readProxies(): Promise<ProxyStatus[]> {
  const all: ProxyStatus[] = [];
  let cursor: string | undefined;
  do {
    const page = await read(api.GET("/proxies", { params: { query: { limit: 1000, cursor } } }));
    all.push(...page.items);
    cursor = page.next_cursor ?? undefined;
  } while (cursor !== undefined);
  return all;
}

export function useForgetProxy() {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: (id: string) => read(api.DELETE("/proxies/{id}", { params: { path: { id } } })),
    onSuccess: () => queries.invalidateQueries({ queryKey: PROXIES_KEY }),
  });
}

export function useRollouts() {
  return useQuery({
    queryKey: ROLLOUTS_KEY,
    queryFn: async (): Promise<Rollout[]> =>
      (await read(api.GET("/rollouts", { params: { query: { limit: KEPT_ROLLOUTS } } }))).items,
    staleTime: Number.POSITIVE_INFINITY,
  });
}

/** A rollout: one of those that the events keep up, or an older one. */
export function useRollout(id: string) {
  const kept = useRollouts();
  const known = kept.data?.find((rollout) => rollout.id === id);
  const one = useQuery({
    queryKey: [...ROLLOUT_KEY, id],
    queryFn: (): Promise<Rollout> => read(api.GET("/rollouts/{id}", { params: { path: { id } } })),
    enabled: kept.data !== undefined && known === undefined,
    staleTime: Number.POSITIVE_INFINITY,
  });
  return {
    data: known ?? one.data,
    error: kept.data === undefined ? kept.error : known ? null : one.error,
    refetch: kept.data === undefined ? kept.refetch : one.refetch,
  };
}

export type RolloutFilter = { fleet: string | null; state: RolloutState | null };

/** The rollouts that match, newest revision first: those that the events keep up, and older ones. */
export function useRolloutList({ fleet, state }: RolloutFilter) {
  const kept = useRollouts();
  const older = useQuery({
    queryKey: [...ROLLOUT_KEY, "list", fleet, state],
    queryFn: async (): Promise<Rollout[]> => {
      const query = { limit: KEPT_ROLLOUTS, fleet: fleet ?? undefined, state: state ?? undefined };
      return (await read(api.GET("/rollouts", { params: { query } }))).items;
    },
    enabled: fleet !== null || state !== null,
  });
  const data = useMemo(() => {
    if (kept.data === undefined) return undefined;
    const all = new Map([...(older.data ?? []), ...kept.data].map((rollout) => [rollout.id, rollout]));
    const fits = (rollout: Rollout) =>
      (fleet === null || rollout.fleet === fleet) && (state === null || rollout.state === state);
    return [...all.values()].filter(fits).sort(newestFirst);
  }, [kept.data, older.data, fleet, state]);
  return { data, error: kept.error ?? older.error, refetch: kept.error ? kept.refetch : older.refetch };
}

/** What a fleet serves. The events say when that has changed. */
export function useFleet(name: string) {
  return useQuery({
    queryKey: [...FLEET_KEY, name],
    queryFn: (): Promise<FleetRollouts> => read(api.GET("/fleets/{name}/status", { params: { path: { name } } })),
    staleTime: Number.POSITIVE_INFINITY,
    refetchOnMount: "always",
  });
}

export function useRolloutCommand(id: string) {
  const queries = useQueryClient();
  return useMutation({
    /** `step`: the step in which it is to be carried out; `null`: in any. */
    mutationFn: ({ action, ...body }: { action: Action; reason: string; step: number | null }): Promise<Rollout> =>
      read(api.POST(command(action), { params: { path: { id } }, body })),
    onSuccess: (rollout) => {
      queries.setQueryData<Rollout[]>(ROLLOUTS_KEY, (old) =>
        old?.map((each) => (each.id === rollout.id ? rollout : each)),
      );
      queries.setQueryData<Rollout>([...ROLLOUT_KEY, id], (old) => old && rollout);
      return queries.invalidateQueries({ queryKey: FLEET_KEY });
    },
    // It was refused because it is not in the state that the page has shown.
    onError: () => queries.invalidateQueries({ queryKey: ROLLOUTS_KEY }),
  });
}

// Revisions

export type RevisionPage = { items: RevisionSummary[]; next_cursor?: string | null };

export function useRevisions() {
  return useInfiniteQuery({
    queryKey: REVISIONS_KEY,
    queryFn: ({ pageParam }): Promise<RevisionPage> =>
      read(api.GET("/revisions", { params: { query: { limit: 50, cursor: pageParam } } })),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next_cursor ?? undefined,
    staleTime: Number.POSITIVE_INFINITY,
  });
}

/** Revisions never change, so what was read once stays. */
export function useRevision(number: number) {
  return useQuery({
    queryKey: ["revision", number],
    queryFn: async (): Promise<RevisionDetail> => {
      const revision = await read(api.GET("/revisions/{number}", { params: { path: { number } } }));
      return { ...revision, changes: revision.changes.map(readChange) };
    },
    enabled: Number.isSafeInteger(number),
    staleTime: Number.POSITIVE_INFINITY,
  });
}

export function useDiff(from: number, to: number) {
  return useQuery({
    queryKey: ["diff", from, to],
    queryFn: async (): Promise<Change[]> => {
      const diff = await read(
        api.GET("/revisions/{number}/diff", { params: { path: { number: to }, query: { from } } }),
      );
      return diff.changes.map(readChange);
    },
    staleTime: Number.POSITIVE_INFINITY,
  });
}

export function useRollback() {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: async (number: number) => {
      const revised = await read(
        api.POST("/revisions/{number}/rollback", {
          params: { path: { number }, header: writeHeaders(`Roll back to revision ${number}`) },
        }),
      );
      return { revision: revised.revision ?? null };
    },
    onSuccess: () => refreshAfterWrite(queries),
  });
}

// Resources

type ResourcePage = { items: Resource[]; next_cursor?: string | null };

export function useResources(kind: KindPlural, q: string) {
  return useInfiniteQuery({
    queryKey: [...RESOURCES_KEY, kind, "list", q],
    queryFn: async ({ pageParam }): Promise<ResourcePage> => {
      const query = { limit: 100, cursor: pageParam, q: q === "" ? undefined : q };
      const page = await read(api.GET(all(kind), { params: { query } }));
      return { items: page.items.map(readResource), next_cursor: page.next_cursor };
    },
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next_cursor ?? undefined,
    placeholderData: (last, query) => (query?.queryKey[1] === kind ? last : undefined),
  });
}

/** The names of the first thousand of a kind, for what refers to them. */
export function useResourceNames(kind: KindPlural): string[] {
  const names = useQuery({
    queryKey: [...RESOURCES_KEY, kind, "names"],
    queryFn: async () => {
      const page = await read(api.GET(all(kind), { params: { query: { limit: 1000 } } }));
      return page.items.map((item) => item.name);
    },
  });
  return names.data ?? [];
}

/** `fresh`: as it is stored now, whatever is known. */
export function useResource(kind: KindPlural, name: string, which: "known" | "fresh" = "known") {
  return useQuery({
    queryKey: [...RESOURCES_KEY, kind, "one", name],
    queryFn: async () => readResource(await read(api.GET(one(kind), { params: { path: { name } } }))),
    staleTime: 0,
    refetchOnMount: which === "fresh" ? "always" : true,
  });
}

export type Save = {
  name: string;
  /** The version that the write replaces; `null` creates the resource. */
  version: string | null;
  spec: JsonObject;
  message: string;
};

export type Saved = {
  resource: Resource;
  /** The revision that was made; `null`: nothing differed. */
  revision: number | null;
};

export function useSaveResource(kind: KindPlural) {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: async ({ name, version, spec, message }: Save): Promise<Saved> => {
      // Every kind's body has a type of its own; the control plane checks it, and knows better than this UI.
      const body = spec as JsonObject & { name: string; address: string; type: string; targets: [] };
      const answer =
        version === null
          ? await readAll(api.POST(all(kind), { body, params: { header: writeHeaders(message) } }))
          : await readAll(
              api.PUT(one(kind), {
                body,
                params: { path: { name }, header: { ...writeHeaders(message), "If-Match": `"${version}"` } },
              }),
            );
      return savedOf(answer, version);
    },
    onSuccess: ({ resource }) => {
      queries.setQueryData([...RESOURCES_KEY, kind, "one", resource.name], resource);
      return refreshAfterWrite(queries);
    },
  });
}

export type Patch = { name: string; version: string; change: JsonObject; message: string };

export function usePatchResource(kind: KindPlural) {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: async ({ name, version, change, message }: Patch): Promise<Saved> => {
      const answer = await readAll(
        api.PATCH(one(kind), {
          body: change as never,
          params: { path: { name }, header: { ...writeHeaders(message), "If-Match": `"${version}"` } },
          headers: { "Content-Type": "application/merge-patch+json" },
        }),
      );
      return savedOf(answer, version);
    },
    onSettled: () => refreshAfterWrite(queries),
  });
}

export function useDeleteResource(kind: KindPlural) {
  const queries = useQueryClient();
  return useMutation({
    mutationFn: async ({ name, version }: { name: string; version: string }) => {
      const { headers } = await readAll(
        api.DELETE(one(kind), { params: { path: { name }, header: { "If-Match": `"${version}"` } } }),
      );
      return { revision: revisionOf(headers) };
    },
    onSuccess: () => refreshAfterWrite(queries),
  });
}

// What the forms are drawn from

export function usePluginTypes(enabled = true) {
  return useQuery({
    enabled,
    queryKey: ["plugin-types"],
    queryFn: async (): Promise<PluginType[]> => {
      const types = await read(api.GET("/plugin-types"));
      return types.items.map((type) => ({ ...type, schema: plain(type.schema) }));
    },
    staleTime: Number.POSITIVE_INFINITY,
  });
}

/** The JSON schema of a kind's specification, and the document in which its references lie. */
export function useResourceSchema(kind: KindPlural) {
  return useQuery({
    queryKey: ["openapi"],
    queryFn: async () => plain(await read(api.GET("/openapi.json"))),
    staleTime: Number.POSITIVE_INFINITY,
    select: (root) => ({ root, schema: { $ref: `#/components/schemas/${specSchema(kind)}` } }),
  });
}

// Helpers

const specSchema = (kind: KindPlural) => KIND_FACTS.find((facts) => facts.plural === kind)?.schema;

/** All kinds have the same calls, so the types of one kind serve for all. */
const all = (kind: KindPlural) => `/${kind}` as "/routes";
/** All commands have the same call. */
const command = (action: Action) => `/rollouts/{id}/${action}` as "/rollouts/{id}/pause";
const one = (kind: KindPlural) => `/${kind}/{name}` as "/routes/{name}";

/** Headers carry no more than Latin-1; the control plane decodes the message. */
function writeHeaders(message: string) {
  const text = message.trim();
  return text === "" ? {} : { "X-Signalbox-Message": encodeURIComponent(text) };
}

function savedOf({ data, headers }: { data: unknown; headers: Headers }, version: string | null): Saved {
  const resource = readResource(data);
  return { resource, revision: resource.meta.version === version ? null : revisionOf(headers) };
}

function revisionOf(headers: Headers): number | null {
  const number = Number(headers.get("Signalbox-Revision") ?? Number.NaN);
  return Number.isSafeInteger(number) ? number : null;
}

function readResource(value: unknown): Resource {
  const { meta, kind: _, ...spec } = plain(value);
  return { name: String(spec.name), spec: nameFirst(spec), meta: meta as unknown as Meta };
}

function readChange(
  change: Omit<Change, "before" | "after"> & { before?: unknown; after?: unknown },
): Change {
  const side = (value: unknown) =>
    value === undefined || value === null ? undefined : nameFirst(plain(value));
  return { ...change, before: side(change.before), after: side(change.after) };
}

/** The API sorts fields by name, which puts that by which people know a resource in the middle. */
function nameFirst({ name, ...rest }: JsonObject): JsonObject {
  return name === undefined ? rest : { name, ...rest };
}

/** What came as JSON is JSON; an object where the API promises one. */
function plain(value: unknown): JsonObject {
  const json = value as Json;
  return isObject(json) ? json : {};
}

/** The events bring the rest, but the page one is on should not wait for them. */
function refreshAfterWrite(queries: QueryClient) {
  return queries.invalidateQueries({ queryKey: RESOURCES_KEY });
}

/** Marks all data about resources as stale after a new revision. */
export function onRevision(queries: QueryClient) {
  void queries.invalidateQueries({ queryKey: RESOURCES_KEY });
}
