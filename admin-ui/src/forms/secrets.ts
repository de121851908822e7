import { isObject, type Json, type JsonObject, join } from "../lib/json";
import type { FieldError } from "./form";
import { type Shape, shapeOf } from "./schema";

/** What the API gives in the place of a secret; written back, it keeps what is stored. */
export const REDACTED = "<redacted>";

/** Says what is wrong with a text that is neither the placeholder nor free of it. */
const HALF_EDITED = `still holds a part of “${REDACTED}”: write the whole secret, or ${REDACTED} to keep what is stored`;

/** So many characters of the placeholder in a row are no chance. */
const RUN = 6;

/**
 * The fields that someone has begun to edit where the placeholder of a secret stands: such a text would be stored as
 * the secret. `stored` says where placeholders stood; elsewhere only a text that holds all of it is refused.
 */
export function halfEdited(spec: Json, stored: Json | undefined): FieldError[] {
  const found: FieldError[] = [];
  const walk = (value: Json | undefined, before: Json | undefined, path: string) => {
    if (typeof value === "string" && value !== REDACTED) {
      const holds = before === REDACTED ? sharesRun(value) : value.includes(REDACTED);
      if (holds) found.push({ field: path, message: HALF_EDITED });
    } else if (Array.isArray(value)) {
      const others = Array.isArray(before) ? before : [];
      value.forEach((item, index) => walk(item, others[index], join(path, index)));
    } else if (isObject(value)) {
      const other = isObject(before) ? before : {};
      for (const [key, item] of Object.entries(value)) walk(item, other[key], join(path, key));
    }
  };
  walk(spec, stored, "");
  return found;
}

function sharesRun(text: string): boolean {
  for (let start = 0; start + RUN <= REDACTED.length; start++) {
    if (text.includes(REDACTED.slice(start, start + RUN))) return true;
  }
  return false;
}

/** Whether a shape is that of a secret: one of its forms is a text that is not to be shown. */
export function isSecret(shape: Shape): boolean {
  if (shape.is === "text") return shape.secret === true;
  return (
    shape.is === "union" &&
    shape.variants.some(({ rest }) => isObject(rest?.schema) && rest.schema.format === "password")
  );
}

/**
 * A copy of `value` without what may be a secret: texts where the schema has a secret are emptied, and what the schema
 * does not describe is left out. What stands for a stored secret, or says where a proxy finds it, stays.
 */
export function withoutSecrets(value: Json, schema: Json, root: Json): Json | undefined {
  if (typeof value === "string" && value.includes("PRIVATE KEY-----")) return "";
  const shape = shapeOf(schema, root);
  if (isSecret(shape)) return typeof value === "string" && value !== REDACTED ? "" : value;
  switch (shape.is) {
    case "object":
      return isObject(value) ? fields(value, (key) => known(shape.properties, key), root) : plain(value);
    case "map":
      return isObject(value) ? fields(value, () => shape.value, root) : plain(value);
    case "list":
      return Array.isArray(value)
        ? value.map((item) => withoutSecrets(item, shape.item, root) ?? null)
        : plain(value);
    case "union": {
      const rest = shape.variants.find((variant) => variant.fits(value))?.rest;
      if (!rest) return plain(value);
      if (rest.key === "") return withoutSecrets(value, rest.schema, root);
      return isObject(value)
        ? fields(value, (key) => (key === rest.key ? rest.schema : undefined), root)
        : plain(value);
    }
    case "any":
      return undefined;
    default:
      return plain(value);
  }
}

function fields(value: JsonObject, schemaOf: (key: string) => Json | undefined, root: Json): JsonObject {
  const kept: JsonObject = {};
  for (const [key, item] of Object.entries(value)) {
    const schema = schemaOf(key);
    const copy = schema === undefined ? undefined : withoutSecrets(item, schema, root);
    if (copy !== undefined) kept[key] = copy;
  }
  return kept;
}

function known(properties: { name: string; schema: Json }[], key: string): Json | undefined {
  return properties.find((property) => property.name === key)?.schema;
}

/** Where the schema has a number or a text, nothing deeper is described. */
function plain(value: Json): Json | undefined {
  return typeof value === "object" && value !== null ? undefined : value;
}
