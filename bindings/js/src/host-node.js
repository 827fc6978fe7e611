// What differs between Node and the web: which runtime is the default, and what a string names.

import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

/** @returns {Promise<any>} ONNX Runtime's module */
export async function importRuntime() {
  try {
    return await import("onnxruntime-node");
  } catch (cause) {
    throw new Error("the package `onnxruntime-node` cannot be loaded: install it, or pass `ort: await import(\"onnxruntime-web\")`", { cause });
  }
}

/**
 * The bytes of a file.
 * @param {string | URL} source a path, or a URL of `file:`
 * @returns {Promise<Uint8Array>}
 */
export const readBytes = (source) => readFile(source);

/**
 * What a runtime opens by itself, so that data beside the model are found; undefined where it needs the bytes.
 * @param {string | URL} source
 * @returns {string | undefined}
 */
export const path = (source) => (source instanceof URL || source.startsWith("file:") ? fileURLToPath(source) : source);
