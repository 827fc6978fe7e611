// What differs between Node and the web: which runtime is the default, and what a string names.

/** @returns {Promise<any>} ONNX Runtime's module */
export async function importRuntime() {
  try {
    return await import("onnxruntime-web");
  } catch (cause) {
    throw new Error("the package `onnxruntime-web` cannot be loaded: install it, or pass it as `ort`", { cause });
  }
}

/**
 * The bytes of a file.
 * @param {string | URL} source a URL
 * @returns {Promise<Uint8Array>}
 */
export async function readBytes(source) {
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${source} cannot be fetched: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

/**
 * What a runtime opens by itself, so that data beside the model are found; undefined where it needs the bytes.
 * @param {string | URL} _source
 * @returns {string | undefined}
 */
export const path = (_source) => undefined;
