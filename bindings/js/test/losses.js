// The losses of the first steps in Node.

import { Trainer } from "../src/index.js";
import { digits } from "./graphs.js";
import { firstLosses } from "./steps.js";

/** Trains on the graphs whose paths begin with `stem`, in the runtime of that name. */
export async function nodeLosses(stem, runtime) {
  const module = await import(runtime);
  const ort = module.default?.InferenceSession ? module.default : module;
  const trainer = await Trainer.load({ train: `${stem}train.onnx`, init: `${stem}init.onnx`, ort, sessionOptions: { logSeverityLevel: 3 } });
  const losses = await firstLosses(trainer, digits(trainer.inputs));
  await trainer.release();
  return losses;
}
