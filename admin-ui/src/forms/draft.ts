import { useEffect, useMemo } from "react";
import { usePluginTypes, useResourceSchema } from "../api/queries";
import type { KindPlural } from "../api/types";
import { isObject, type Json, type JsonObject, sameJson } from "../lib/json";
import { withoutSecrets } from "./secrets";

/**
 * What was typed into a form and not saved. It outlives the form in this tab, for a session may expire at any time;
 * secrets are never part of it.
 */
export type Draft = {
  /** The name of the token that typed it: nobody else gets it. */
  by: string;
  /** Milliseconds since 1970. */
  at: number;
  /** The version of the resource that was changed; `null`: a new resource. */
  version: string | null;
  spec: JsonObject;
  message: string;
  /** Whether something was left out that may be a secret. */
  isIncomplete: boolean;
};

export function draftKey(kind: KindPlural, name: string | null): string {
  return `signalbox-draft ${kind} ${name ?? ""}`;
}

export function readDraft(key: string, by: string): Draft | null {
  try {
    const draft = JSON.parse(sessionStorage.getItem(key) ?? "null") as Json;
    if (!isObject(draft) || draft.by !== by || !isObject(draft.spec)) return null;
    return {
      by,
      at: Number(draft.at),
      version: typeof draft.version === "string" ? draft.version : null,
      spec: draft.spec,
      message: String(draft.message ?? ""),
      isIncomplete: draft.isIncomplete === true,
    };
  } catch {
    return null;
  }
}

export function dropDraft(key: string) {
  try {
    sessionStorage.removeItem(key);
  } catch {
    // A browser without storage has no draft either.
  }
}

type Typed = { spec: JsonObject; message: string; by: string; version: string | null };

/** Keeps a draft as long as the form differs from what is stored. */
export function useDraft(kind: KindPlural, key: string, isChanged: boolean, typed: Typed) {
  const schema = useResourceSchema(kind).data;
  const types = usePluginTypes(kind === "plugins").data;
  const { spec, message, by, version } = typed;
  const kept = useMemo(() => {
    if (!schema) return null;
    const kept = withoutSecrets(spec, schema.schema, schema.root);
    if (!isObject(kept)) return null;
    // A plugin's configuration has the schema of its type.
    const type = types?.find((type) => type.name === spec.type);
    if (type && spec.config !== undefined) {
      const config = withoutSecrets(spec.config, type.schema, type.schema);
      if (config !== undefined) kept.config = config;
    }
    return kept;
  }, [schema, types, spec]);
  useEffect(() => {
    if (!isChanged) {
      dropDraft(key);
    } else if (kept) {
      const isIncomplete = !sameJson(kept, spec);
      const draft: Draft = { by, at: Date.now(), version, spec: kept, message, isIncomplete };
      try {
        sessionStorage.setItem(key, JSON.stringify(draft));
      } catch {
        // Full, or not allowed: the form goes on without.
      }
    }
  }, [key, isChanged, kept, spec, message, by, version]);
}
