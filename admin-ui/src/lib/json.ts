export type Json = null | boolean | number | string | Json[] | JsonObject;
export type JsonObject = { [key: string]: Json };

export function isObject(value: Json | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** `match.paths[0].regex` → `["match", "paths", 0, "regex"]`, the form of paths in the API's field errors. */
export function parsePath(path: string): (string | number)[] {
  const parts: (string | number)[] = [];
  for (const found of path.matchAll(/\[(\d+)\]|([^.[\]]+)/g)) {
    parts.push(found[1] === undefined ? (found[2] ?? "") : Number(found[1]));
  }
  return parts;
}

/** The path of a field or an item below `base`. */
export function join(base: string, key: string | number): string {
  if (typeof key === "number") return `${base}[${key}]`;
  return base === "" ? key : `${base}.${key}`;
}

/** True if `path` is below `base`. */
export function isBelow(path: string, base: string): boolean {
  return base === "" || (path.startsWith(base) && (path[base.length] === "." || path[base.length] === "["));
}

export function getAt(value: Json | undefined, path: string): Json | undefined {
  let here = value;
  for (const part of parsePath(path)) {
    if (typeof part === "number") here = Array.isArray(here) ? here[part] : undefined;
    else here = isObject(here) ? here[part] : undefined;
  }
  return here;
}

/** A copy of `value` with `next` at `path`; `undefined` takes the field or the item out. */
export function setAt(value: JsonObject, path: string, next: Json | undefined): JsonObject {
  const result = set(value, parsePath(path), next);
  return isObject(result) ? result : {};
}

function set(value: Json | undefined, path: (string | number)[], next: Json | undefined): Json | undefined {
  const [part, ...rest] = path;
  if (part === undefined) return next;
  if (typeof part === "number") {
    const items = Array.isArray(value) ? [...value] : [];
    const item = set(items[part], rest, next);
    if (item === undefined) items.splice(part, 1);
    else items[part] = item;
    return items;
  }
  const object = isObject(value) ? { ...value } : {};
  const field = set(object[part], rest, next);
  if (field === undefined) delete object[part];
  else object[part] = field;
  return object;
}

/** A copy of `value` without those of the objects at `paths` that are empty. */
export function withoutEmpty(value: JsonObject, paths: string[]): JsonObject {
  return paths.reduce((result, path) => {
    const found = getAt(result, path);
    return isObject(found) && Object.keys(found).length === 0 ? setAt(result, path, undefined) : result;
  }, value);
}

export function sameJson(a: Json | undefined, b: Json | undefined): boolean {
  if (Object.is(a, b)) return true;
  if (Array.isArray(a) && Array.isArray(b)) {
    return a.length === b.length && a.every((item, index) => sameJson(item, b[index]));
  }
  if (isObject(a) && isObject(b)) {
    const keys = Object.keys(a);
    return keys.length === Object.keys(b).length && keys.every((key) => key in b && sameJson(a[key], b[key]));
  }
  return false;
}
