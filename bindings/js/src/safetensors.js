// The format `.safetensors`: the length of a header (u64), the header (JSON), the tensors' bytes, little-endian.

import { arrayOf, count } from "./tensors.js";

/**
 * A tensor of a file. `float16` has its numbers as `Float16Array` where the engine knows it, else their bits as `Uint16Array`.
 * @typedef {{ type: string, dims: number[], data: any }} StoredTensor
 */

const NAMES = /** @type {Record<string, string>} */ ({
  F64: "float64", F32: "float32", F16: "float16", I64: "int64", U64: "uint64", I32: "int32", U32: "uint32",
  I16: "int16", U16: "uint16", I8: "int8", U8: "uint8", BOOL: "bool",
});
const KEYS = Object.fromEntries(Object.entries(NAMES).map(([key, type]) => [type, key]));

/**
 * Reads a file.
 * @param {Uint8Array} bytes
 * @returns {{ tensors: Map<string, StoredTensor>, metadata: Record<string, string> }}
 */
export function readSafetensors(bytes) {
  const fail = (/** @type {string} */ why) => new Error(`not a readable .safetensors file: ${why}`);
  if (bytes.length < 8) throw fail("it is shorter than the header's length");
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  if (length > bytes.length - 8) throw fail("its header is longer than the file");
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)));
  } catch (cause) {
    throw Object.assign(fail("its header is no JSON"), { cause });
  }
  if (typeof header !== "object" || header === null) throw fail("its header is no JSON object");
  const { __metadata__: metadata = {}, ...entries } = header;
  const body = bytes.subarray(8 + length);
  const tensors = new Map();
  for (const [name, entry] of Object.entries(entries)) {
    const type = NAMES[entry?.dtype];
    if (!type) throw fail(`tensor "${name}" has the type ${entry?.dtype}, for which ONNX Runtime's JavaScript has none`);
    const { shape: dims, data_offsets: [start, end] = [] } = entry;
    const array = arrayOf(type);
    const sound = Array.isArray(dims) && [...dims, start, end].every((n) => Number.isSafeInteger(n) && n >= 0);
    if (!sound || end > body.length || end - start !== count(dims) * array.BYTES_PER_ELEMENT) throw fail(`tensor "${name}" does not lie where its header says`);
    // A copy, since an array must begin at a multiple of its elements' size. Node's buffers have a `slice` that copies nothing.
    tensors.set(name, { type, dims, data: new array(new Uint8Array(body.subarray(start, end)).buffer) });
  }
  return { tensors, metadata };
}

/**
 * Writes a file. The same tensors and metadata give the same bytes.
 * @param {Iterable<[string, StoredTensor]>} tensors
 * @param {Record<string, string>} [metadata]
 * @returns {Uint8Array}
 */
export function writeSafetensors(tensors, metadata = {}) {
  const wide = (/** @type {StoredTensor} */ t) => arrayOf(t.type).BYTES_PER_ELEMENT;
  // Wide elements first, so that every tensor begins at a multiple of its elements' size.
  const sorted = [...tensors].sort(([a, x], [b, y]) => wide(y) - wide(x) || (a < b ? -1 : 1));
  /** @type {Record<string, unknown>} */
  const header = Object.keys(metadata).length ? { __metadata__: metadata } : {};
  let size = 0;
  for (const [name, { type, dims, data }] of sorted) {
    if (!KEYS[type]) throw new Error(`tensor "${name}" has the type ${type}, which .safetensors files do not have`);
    header[name] = { dtype: KEYS[type], shape: dims, data_offsets: [size, size + data.byteLength] };
    size += data.byteLength;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(text.length / 8) * 8;
  const out = new Uint8Array(8 + padded + size).fill(0x20, 8, 8 + padded);
  new DataView(out.buffer).setBigUint64(0, BigInt(padded), true);
  out.set(text, 8);
  let at = 8 + padded;
  for (const [, { data }] of sorted) {
    out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += data.byteLength;
  }
  return out;
}
