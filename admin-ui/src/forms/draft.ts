import { useEffect, useMemo } from "react";
import { usePluginTypes, useResourceSchema } from "../api/queries";
import type { KindPlural } from "../api/types";
import { isObject, type Json, type JsonObject, sameJson } from "../lib/json";
import { FOR_STORAGE, type Hiding, withoutSecrets } from "./secrets";

/**
 * What was typed into a form and not saved. It outlives the form in this tab, for a session may expire at any time;
 * secrets are never part of it.
 */
export type Draft = {
  /** Milliseconds since 1970. */
  at: number;
  /** The version of the resource that was changed; `null`: a new resource. */
  version: string | null;
  spec: JsonObject;
  message: string;
  /** True if something was left out that may be a secret. */
  isIncomplete: boolean;
};

/** The storage key of a draft. It contains the name of the token, so that nobody else gets the draft. */
export function draftKey(kind: KindPlural, name: string | null, by: string): string {
  return `signalbox-draft ${kind} ${name ?? ""} ${by}`;
}

export function readDraft(key: string): Draft | null {
  try {
    const draft = JSON.parse(sessionStorage.getItem(key) ?? "null") as Json;
    if (!isObject(draft) || !isObject(draft.spec)) return null;
    return {
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

/** A specification without its secrets; `null` until it is known which those are. */
export function useWithoutSecrets(kind: KindPlural, spec: JsonObject, hiding: Hiding): JsonObject | null {
  const schema = useResourceSchema(kind).data;
  const types = usePluginTypes(kind === "plugins").data;
  return useMemo(() => {
    if (!schema || (kind === "plugins" && !types)) return null;
    // A plugin's configuration has the schema of its type.
    const { config, ...rest } = spec;
    const type = kind === "plugins" ? types?.find((type) => type.name === spec.type) : undefined;
    const copy = withoutSecrets(type ? rest : spec, schema.schema, schema.root, hiding);
    if (!isObject(copy)) return null;
    if (!type || config === undefined) return copy;
    const shown = withoutSecrets(config, type.schema, type.schema, hiding);
    return shown === undefined ? copy : { ...copy, config: shown };
  }, [kind, schema, types, spec, hiding]);
}

type Typed = { spec: JsonObject; message: string; version: string | null };

/** Keeps a draft as long as the form differs from what is stored. */
export function useDraft(kind: KindPlural, key: string, isChanged: boolean, typed: Typed) {
  const { spec, message, version } = typed;
  const kept = useWithoutSecrets(kind, spec, FOR_STORAGE);
  useEffect(() => {
    if (!isChanged) {
      dropDraft(key);
    } else if (kept) {
      const isIncomplete = !sameJson(kept, spec);
      const draft: Draft = { at: Date.now(), version, spec: kept, message, isIncomplete };
      try {
        sessionStorage.setItem(key, JSON.stringify(draft));
      } catch {
        // Full, or not allowed: the form goes on without.
      }
    }
  }, [key, isChanged, kept, spec, message, version]);
}
