import { isObject, type Json, type JsonObject } from "../lib/json";

/** The kinds of input for the keywords that the control plane's schemas use. */
export type Shape = { description?: string; fallback?: Json } & (
  /** `secret`: not to be shown. `file`: the SHA-256 of an uploaded file. */
  | { is: "text"; secret?: boolean; file?: boolean }
  | { is: "number"; integer: boolean; min?: number; max?: number }
  /** Digits are a number, all else is a text: `65536`, `64KiB`. */
  | { is: "text-or-number" }
  | { is: "switch" }
  | { is: "optional-switch" }
  | { is: "choice"; choices: { value: string | number; label: string; description?: string }[] }
  | { is: "list"; item: Json }
  | { is: "map"; value: Json }
  | { is: "object"; properties: Property[] }
  | { is: "union"; variants: Variant[] }
  | { is: "constant"; value: Json }
  | { is: "any" }
);

export type Property = { name: string; label: string; schema: Json; required: boolean };

/** One of several shapes: its label, a test for values of the shape, and the initial value. */
export type Variant = {
  label: string;
  description?: string;
  fits: (value: Json | undefined) => boolean;
  initial: Json;
  /** The part that the user fills in, and its key below the value (`""`: the value itself). */
  rest?: { schema: Json; key: string; without?: string };
};

/** `root` holds what `$ref` points to. */
export function shapeOf(schema: Json, root: Json): Shape {
  const { schema: found, nullable } = resolve(schema, root);
  const description = text(found.description);
  const fallback = found.default ?? undefined;
  const shape = (of: Shape): Shape => ({ description, fallback, ...of });

  if (found.const !== undefined) return shape({ is: "constant", value: found.const });
  const values = list(found.enum).filter((value) => value !== null);
  if (values.length > 0) return shape({ is: "choice", choices: values.map((value) => choice(value)) });

  const branches = [...list(found.oneOf), ...list(found.anyOf)].filter((branch) => !isNull(branch));
  if (branches.length > 0) {
    const flat = branches.flatMap((branch) => alternatives(branch, root));
    const constants = flat.filter((branch) => branch.const !== undefined);
    if (constants.length === flat.length) {
      return shape({
        is: "choice",
        choices: constants.map((branch) => choice(branch.const ?? null, text(branch.description))),
      });
    }
    return shape({ is: "union", variants: flat.map((branch) => variant(branch, root)) });
  }

  const types = [found.type].flat().filter((type) => type !== "null");
  if (types.includes("string")) {
    const also = types.includes("integer") || types.includes("number");
    if (also) return shape({ is: "text-or-number" });
    return shape({
      is: "text",
      ...(found.format === "password" ? { secret: true } : {}),
      ...(found.format === "blob" ? { file: true } : {}),
    });
  }
  if (types.includes("integer") || types.includes("number")) {
    const format = text(found.format) ?? "";
    return shape({
      is: "number",
      integer: types.includes("integer"),
      min: number(found.minimum) ?? (format.startsWith("uint") ? 0 : undefined),
      max: number(found.maximum),
    });
  }
  if (types.includes("boolean")) {
    const optional = nullable || [found.type].flat().includes("null");
    return shape({ is: optional ? "optional-switch" : "switch" });
  }
  if (types.includes("array")) return shape({ is: "list", item: found.items ?? true });
  if (isObject(found.properties)) {
    const required = list(found.required);
    const properties = Object.entries(found.properties).map(([name, schema]) => ({
      name,
      label: (isObject(schema) && text(schema.title)) || labelOf(name),
      schema,
      required: required.includes(name),
    }));
    return shape({ is: "object", properties });
  }
  if (types.includes("object")) {
    const value = found.additionalProperties;
    return value === undefined || value === false
      ? shape({ is: "object", properties: [] })
      : shape({ is: "map", value });
  }
  return shape({ is: "any" });
}

/** The initial value of a required field. */
export function initialOf(schema: Json, root: Json): Json {
  const shape = shapeOf(schema, root);
  if (shape.fallback !== undefined) return shape.fallback;
  switch (shape.is) {
    case "number":
      return shape.min ?? 0;
    case "switch":
    case "optional-switch":
      return false;
    case "choice":
      return shape.choices[0]?.value ?? "";
    case "list":
      return [];
    case "map":
    case "any":
      return {};
    case "object":
      return Object.fromEntries(
        shape.properties
          .filter((property) => property.required)
          .map((property) => [property.name, initialOf(property.schema, root)]),
      );
    case "union":
      return shape.variants[0]?.initial ?? {};
    case "constant":
      return shape.value;
    default:
      return "";
  }
}

/** Words that are not written as they are in a field's name. */
const WORDS: Record<string, string> = {
  alpn: "ALPN",
  ca: "CA",
  cors: "CORS",
  dns: "DNS",
  grpc: "gRPC",
  html: "HTML",
  http: "HTTP",
  http1: "HTTP/1.1",
  http2: "HTTP/2",
  https: "HTTPS",
  id: "ID",
  ip: "IP",
  ips: "IPs",
  json: "JSON",
  jwks: "JWKS",
  jwt: "JWT",
  ocsp: "OCSP",
  oidc: "OIDC",
  sni: "SNI",
  snis: "SNIs",
  tcp: "TCP",
  tls: "TLS",
  ttl: "TTL",
  uri: "URI",
  url: "URL",
};

/** `connect_timeout` → `Connect timeout`, `custom_id` → `Custom ID`, `snis` → `SNIs`. */
export function labelOf(name: string): string {
  const words = name.split(/[_-]/).map((word) => WORDS[word] ?? word);
  const text = words.join(" ");
  // gRPC is written so at the beginning, too.
  return words[0] !== undefined && Object.values(WORDS).includes(words[0])
    ? text
    : text.charAt(0).toUpperCase() + text.slice(1);
}

/** Follows references and takes `null` away; what stands beside a reference (a description) wins over its target. */
function resolve(schema: Json | undefined, root: Json, depth = 0): { schema: JsonObject; nullable: boolean } {
  if (!isObject(schema) || depth > 20) return { schema: {}, nullable: false };
  const { $ref, ...own } = schema;
  if (typeof $ref === "string") {
    const target = resolve(pointer(root, $ref), root, depth + 1);
    return { schema: { ...target.schema, ...own }, nullable: target.nullable };
  }
  for (const word of ["allOf", "anyOf", "oneOf"] as const) {
    const all = list(schema[word]);
    const branches = all.filter((branch) => !isNull(branch));
    if (branches.length === 1 && branches[0] !== undefined) {
      const { [word]: _, ...rest } = schema;
      const target = resolve(branches[0], root, depth + 1);
      return {
        schema: { ...target.schema, ...rest },
        nullable: target.nullable || branches.length < all.length,
      };
    }
  }
  return { schema, nullable: [schema.type].flat().includes("null") };
}

/** The branches of a branch: an `enum` of several texts is as many, a nested `oneOf` its own. */
function alternatives(branch: Json, root: Json): JsonObject[] {
  const { schema } = resolve(branch, root);
  const values = list(schema.enum);
  if (values.length > 0) return values.map((value) => ({ const: value }));
  const nested = [...list(schema.oneOf), ...list(schema.anyOf)];
  return nested.length > 0 ? nested.flatMap((each) => alternatives(each, root)) : [schema];
}

function variant(schema: JsonObject, root: Json): Variant {
  const description = text(schema.description);
  if (schema.const !== undefined) {
    const value = schema.const;
    return { label: labelOf(String(value)), description, fits: (other) => other === value, initial: value };
  }
  if (isObject(schema.properties)) {
    const properties = Object.entries(schema.properties);
    // `{"header": …}`: the only field names the variant.
    const [first] = properties;
    if (properties.length === 1 && first && list(schema.required).includes(first[0])) {
      const [key, inner] = first;
      const own = resolve(inner, root).schema;
      return {
        label: labelOf(key),
        description: description ?? text(own.description),
        fits: (value) => isObject(value) && key in value,
        initial: { [key]: initialOf(inner, root) },
        rest: { schema: inner, key },
      };
    }
    // `{"type": "header", …}`: a field of one possible value names it.
    for (const [key, inner] of properties) {
      const tag = resolve(inner, root).schema.const;
      if (tag !== undefined) {
        return {
          label: labelOf(String(tag)),
          description,
          fits: (value) => isObject(value) && value[key] === tag,
          initial: initialOf(schema, root),
          rest: { schema, key: "", without: key },
        };
      }
    }
  }
  const type = [schema.type].flat()[0] ?? "any";
  return {
    label: text(schema.title) ?? (schema.format === "password" ? "The secret itself" : labelOf(String(type))),
    description,
    fits: (value) => typeName(value) === type || (type === "integer" && typeName(value) === "number"),
    initial: initialOf(schema, root),
    rest: { schema, key: "" },
  };
}

function choice(value: Json, description?: string) {
  const plain = typeof value === "number" ? value : String(value);
  return { value: plain, label: String(value), description };
}

function pointer(root: Json, reference: string): Json | undefined {
  let here: Json | undefined = root;
  for (const part of reference.replace(/^#\/?/, "").split("/")) {
    here = isObject(here) ? here[part.replaceAll("~1", "/").replaceAll("~0", "~")] : undefined;
  }
  return here;
}

function isNull(schema: Json): boolean {
  return isObject(schema) && schema.type === "null";
}

function typeName(value: Json | undefined): string {
  if (value === null || value === undefined) return "null";
  return Array.isArray(value) ? "array" : typeof value;
}

function list(value: Json | undefined): Json[] {
  return Array.isArray(value) ? value : [];
}

function text(value: Json | undefined): string | undefined {
  return typeof value === "string" ? value : undefined;
}

function number(value: Json | undefined): number | undefined {
  return typeof value === "number" ? value : undefined;
}
