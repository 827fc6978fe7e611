// The losses of ten steps on the first 32 digits in Node: `node test/losses.js STEM RUNTIME`, with the graphs STEM.ancre.train.onnx and .init.onnx.

import { fileURLToPath } from "node:url";
import { Trainer } from "../src/index.js";
import { digits } from "./graphs.js";
import { firstLosses } from "./steps.js";

/** Trains on the graphs whose paths begin with `stem`, in the runtime of that name. */
export async function nodeLosses(stem, runtime) {
  const module = await import(runtime);
  const ort = module.default?.InferenceSession ? module.default : module;
  const trainer = await Trainer.load({ train: `${stem}train.onnx`, init: `${stem}init.onnx`, ort, sessionOptions: { logSeverityLevel: 3 } });
  const losses = await firstLosses(trainer, digits(trainer.inputs), { stride: 0 });
  await trainer.release();
  return losses;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(JSON.stringify(await nodeLosses(`${process.argv[2]}.ancre.`, process.argv[3])));
