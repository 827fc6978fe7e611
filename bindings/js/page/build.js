// Bundles the page into page/dist, with ONNX Runtime's WebAssembly and the digits: `npm run page [-- TOOL]`, where TOOL is `ancre-rewrite`.

import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../../..");
export const dist = join(here, "dist");
const runtime = dirname(createRequire(import.meta.url).resolve("onnxruntime-web/wasm"));

/** Options of a bundle for browsers. ONNX Runtime's loader stays beside it, since threads start from it. */
export const bundle = { bundle: true, format: "esm", target: "es2022", conditions: ["onnxruntime-web-use-extern-wasm"], logLevel: "warning" };

/** Bundles the page; `tool` writes the graphs of the digits. */
export async function buildPage(tool) {
  rmSync(dist, { recursive: true, force: true });
  mkdirSync(join(dist, "digits"), { recursive: true });
  const entryPoints = ["page.js", "worker.js"].map((file) => join(here, file));
  await build({ ...bundle, entryPoints, outdir: dist, splitting: true, minify: true });
  // page.css is the style of uPlot, which the script imports.
  for (const file of ["index.html", "style.css"]) cpSync(join(here, file), join(dist, file));
  for (const build of ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"]) {
    for (const end of ["mjs", "wasm"]) cpSync(join(runtime, `${build}.${end}`), join(dist, `${build}.${end}`));
  }
  for (const file of ["digits_train.npz", "digits_val.npz"]) cpSync(join(root, "models/data", file), join(dist, "digits", file));
  for (const [target, into] of [["cpu", "digits/"], ["webgpu", "digits/webgpu/"]]) {
    mkdirSync(join(dist, into), { recursive: true });
    const options = ["--classes", "10", "--batch", "dynamic", "--eval-graph", "--infer-graph", "--target", target, "-o", join(dist, into)];
    execFileSync(tool, [join(root, "models/resnet_batch1.onnx"), ...options], { stdio: ["ignore", "ignore", "inherit"] });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await buildPage(process.argv[2] ?? process.env.ANCRE_REWRITE ?? "ancre-rewrite");
  console.log(dist);
}
