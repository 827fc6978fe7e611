export { Trainer } from "./trainer.js";
export { readSafetensors, writeSafetensors } from "./safetensors.js";
export { modelMetadata } from "./metadata.js";
export { weights } from "./topology.js";
/** @typedef {import("./trainer.js").LoadOptions} LoadOptions */
/** @typedef {import("./trainer.js").GraphSource} GraphSource */
/** @typedef {import("./trainer.js").Progress} Progress */
/** @typedef {import("./trainer.js").Batch} Batch */
/** @typedef {import("./trainer.js").StepResult} StepResult */
/** @typedef {import("./trainer.js").Evaluation} Evaluation */
/** @typedef {import("./tensors.js").Value} Value */
/** @typedef {import("./tensors.js").Tensor} Tensor */
/** @typedef {import("./tensors.js").Port} Port */
/** @typedef {import("./safetensors.js").StoredTensor} StoredTensor */
/** @typedef {import("./topology.js").Chain} Chain */
