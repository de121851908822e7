// Writes the kinds of resources, as the OpenAPI document has them, to src/api/kinds.ts. With --check it only compares.
import { readFileSync, writeFileSync } from "node:fs";

const target = new URL("./src/api/kinds.ts", import.meta.url);
const { "x-signalbox-kinds": kinds } = JSON.parse(
  readFileSync(new URL("./openapi.json", import.meta.url), "utf8"),
);
const text = `// Made from openapi.json by \`npm run generate\`; a test compares them.
export const KIND_FACTS = ${JSON.stringify(kinds, null, 2)} as const;
`;

if (!process.argv.includes("--check")) {
  writeFileSync(target, text);
} else if (readFileSync(target, "utf8") !== text) {
  console.error("src/api/kinds.ts is not current: run `npm run generate`");
  process.exit(1);
}
