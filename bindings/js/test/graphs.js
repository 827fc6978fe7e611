// The graphs and data that the tests train, made by the tool: ANCRE_REWRITE or the debug build of this repository.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Dataset, readNpz } from "../page/data.js";

const here = dirname(fileURLToPath(import.meta.url));
export const root = join(here, "../../..");
export const tool = process.env.ANCRE_REWRITE ?? join(root, "target/debug/ancre-rewrite");

/** Runs the tool and gives what it prints. */
export const run = (...args) => execFileSync(tool, args, { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"], maxBuffer: 1 << 28 });

/** The digits' network in a new directory: paths of its graphs by kind. `state`: how the training graph gets its state. */
export function makeGraphs(state) {
  const out = mkdtempSync(join(tmpdir(), "ancre-js-"));
  const more = state === "init" ? ["--infer-graph"] : [];
  run(join(root, "models/resnet_batch1.onnx"), "--classes", "10", "--batch", "dynamic", "--eval-graph", ...more, "--state", state, "--verify", "none", "-o", `${out}/`);
  const path = (kind) => join(out, `resnet_batch1.ancre.${kind}onnx`);
  return { forward: path(""), train: path("train."), init: path("init."), eval: path("eval."), infer: path("infer."), state: join(out, "resnet_batch1.ancre.state.safetensors") };
}

/** The digits, as a graph with these inputs takes them. */
export const digits = (inputs, which = "train") => Dataset.of(readNpz(readFileSync(join(root, `models/data/digits_${which}.npz`))), inputs);
