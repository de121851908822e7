import { isObject, type Json, type JsonObject, join } from "../lib/json";
import type { FieldError } from "./form";
import { type Shape, shapeOf } from "./schema";

/** The API returns this placeholder for a secret. To write it back keeps the stored secret. */
export const REDACTED = "<redacted>";

/** The error for a text that contains the placeholder and something else. */
const HALF_EDITED = `contains a part of “${REDACTED}”: write the whole secret, or exactly ${REDACTED} to keep the stored one`;

/** A text with this many characters of the placeholder in a row was made from the placeholder. */
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

/** True if a shape is that of a secret: one of its forms is a text that must not be shown. */
export function isSecret(shape: Shape): boolean {
  if (shape.is === "text") return shape.secret === true;
  return (
    shape.is === "union" &&
    shape.variants.some(({ rest }) => isObject(rest?.schema) && rest.schema.format === "password")
  );
}

/** The treatment of secrets and unknown fields in a copy. */
export type Hiding = {
  /** The text in place of a secret. */
  secret: string;
  /** True if fields that the schema does not describe are kept. */
  keepsUnknown: boolean;
};

/** For the browser's storage, which must not contain anything that may be a secret. */
export const FOR_STORAGE: Hiding = { secret: "", keepsUnknown: false };

/** For display, which has everything except secrets. */
export const FOR_DISPLAY: Hiding = { secret: "<new secret>", keepsUnknown: true };

/**
 * A copy of `value` without its secrets: the texts where the schema has a secret, and private keys anywhere. What stands
 * for a stored secret, or says where a proxy finds it, stays.
 */
export function withoutSecrets(value: Json, schema: Json, root: Json, hiding: Hiding): Json | undefined {
  if (typeof value === "string" && value.includes("PRIVATE KEY-----")) return hiding.secret;
  const shape = shapeOf(schema, root);
  if (isSecret(shape)) return typeof value === "string" && value !== REDACTED ? hiding.secret : value;
  const unknown = hiding.keepsUnknown ? value : undefined;
  const fields = (schemaOf: (key: string) => Json | undefined) => {
    if (!isObject(value)) return plain(value) ?? unknown;
    const kept: JsonObject = {};
    for (const [key, item] of Object.entries(value)) {
      const schema = schemaOf(key);
      const copy =
        schema !== undefined
          ? withoutSecrets(item, schema, root, hiding)
          : hiding.keepsUnknown
            ? item
            : undefined;
      if (copy !== undefined) kept[key] = copy;
    }
    return kept;
  };
  switch (shape.is) {
    case "object":
      return fields((key) => shape.properties.find((property) => property.name === key)?.schema);
    case "map":
      return fields(() => shape.value);
    case "list":
      return Array.isArray(value)
        ? value.map((item) => withoutSecrets(item, shape.item, root, hiding) ?? null)
        : (plain(value) ?? unknown);
    case "union": {
      const rest = shape.variants.find((variant) => variant.fits(value))?.rest;
      if (!rest) return plain(value) ?? unknown;
      if (rest.key === "") return withoutSecrets(value, rest.schema, root, hiding);
      return fields((key) => (key === rest.key ? rest.schema : undefined));
    }
    case "any":
      return unknown;
    default:
      return plain(value) ?? unknown;
  }
}

/** A plain value, which is all that a schema of a number or a text describes. */
function plain(value: Json): Json | undefined {
  return typeof value === "object" && value !== null ? undefined : value;
}
