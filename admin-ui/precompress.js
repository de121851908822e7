// Writes `FILE.br` and `FILE.gz` beside every built file that they make smaller. The control plane embeds those.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

for (const name of readdirSync("dist", { recursive: true })) {
  if (!/\.(js|css|html|svg|json)$/.test(name)) continue;
  const path = join("dist", name);
  const plain = readFileSync(path);
  const brotli = brotliCompressSync(plain, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: plain.length } });
  const gzip = gzipSync(plain, { level: 9 });
  if (Math.max(brotli.length, gzip.length) < plain.length) {
    writeFileSync(`${path}.br`, brotli);
    writeFileSync(`${path}.gz`, gzip);
  }
}
