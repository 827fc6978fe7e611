// Serves the bundled page, cross-origin isolated, so that WebAssembly has threads. `node page/serve.js [PORT]`

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const TYPES = { ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };

/** A server of a directory's files; `isolated`: with the headers without which pages have no threads. */
export function serve(root, { port = 0, isolated = true } = {}) {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
    const file = join(root, path.endsWith("/") ? `${path}index.html` : path);
    if (isolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    try {
      const body = await readFile(file);
      response.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream").end(body);
    } catch {
      response.writeHead(404).end("not found");
    }
  });
  return new Promise((ready) => server.listen(port, "localhost", () => ready({ url: `http://localhost:${server.address().port}/`, close: () => server.close() })));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await serve(join(dirname(fileURLToPath(import.meta.url)), "dist"), { port: Number(process.argv[2] ?? 8000) });
  console.log(url);
}
