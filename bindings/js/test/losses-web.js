// The same in a browser.

import * as ort from "onnxruntime-web/wasm";
import { Trainer } from "../src/index.js";
import { Dataset, readNpz } from "../page/data.js";
import { firstLosses } from "./steps.js";

export async function losses(stem) {
  ort.env.wasm.wasmPaths = new URL("/", location.href).href;
  const trainer = await Trainer.load({ train: `${stem}train.onnx`, init: `${stem}init.onnx`, ort, sessionOptions: { logSeverityLevel: 3 } });
  const npz = new Uint8Array(await (await fetch("/digits/digits_train.npz")).arrayBuffer());
  return firstLosses(trainer, Dataset.of(readNpz(npz), trainer.inputs), { stride: 0 });
}
