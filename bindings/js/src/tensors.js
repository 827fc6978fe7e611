// Values of JavaScript as tensors of the type and shape that a graph asks for.

import { Float16Array as Half } from "@petamoriken/float16";

/**
 * An element type of ONNX Runtime.
 * @typedef {"float32" | "float64" | "float16" | "int64" | "uint64" | "int32" | "uint32" | "int16" | "uint16" | "int8" | "uint8" | "bool"} ElementType
 */
/** @typedef {Float32Array | Float64Array | BigInt64Array | BigUint64Array | Int32Array | Uint32Array | Int16Array | Uint16Array | Int8Array | Uint8Array} TypedArray */
/**
 * A tensor of ONNX Runtime, as far as it is used here.
 * @typedef {{ readonly type: string, readonly dims: readonly number[], readonly location: string, readonly data: any, getData(): Promise<any>, dispose(): void }} Tensor
 */
/**
 * Numbers, or lists of them as deep as the tensor's rank.
 * @typedef {number | bigint | boolean | readonly Nested[]} Nested
 */
/**
 * What a graph can be fed: a tensor, numbers with or without extents, or nested lists.
 * @typedef {Tensor | TypedArray | Uint8ClampedArray | { data: TypedArray | Uint8ClampedArray | readonly (number | bigint | boolean)[], dims: readonly number[] } | Nested} Value
 */
/**
 * An input of a graph. Free extents have names.
 * @typedef {{ name: string, type: string, shape: readonly (number | string)[] }} Port
 */

/** @type {Record<string, any>} */
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
  // As ONNX Runtime has it: numbers where the engine knows the type, else their bits.
  float16: /** @type {any} */ (globalThis).Float16Array ?? Uint16Array,
};

/**
 * The typed array of an element type.
 * @param {string} type
 */
export function arrayOf(type) {
  const array = ARRAYS[type];
  if (!array) throw new Error(`tensors of type ${type} are not known here`);
  return array;
}

/** @param {readonly (number | string)[]} shape */
export const shapeText = (shape) => `[${shape.join(", ")}]`;

/** @param {readonly number[]} dims */
export const count = (dims) => dims.reduce((n, d) => n * d, 1);

/**
 * A value as the tensor that an input takes.
 * @param {any} ort ONNX Runtime's module
 * @param {Port} port
 * @param {any} value a {@link Value}
 * @returns {Tensor}
 */
export function toTensor(ort, port, value) {
  const whole = `input "${port.name}"`;
  if (value === undefined || value === null) throw new Error(`${whole} (${port.type} ${shapeText(port.shape)}) is missing`);
  const given = parts(value, whole);
  const dims = given.dims ?? inferDims(port, given.data.length);
  checkDims(whole, port.shape, dims);
  if (value.type === port.type && "location" in value) return value;
  if (value.location && value.location !== "cpu") throw new Error(`${whole} is ${port.type}; a ${value.type} tensor on a device was given`);
  const data = convert(whole, given.data, port.type, value.type);
  if (data.length !== count(dims)) throw new Error(`${whole}: ${data.length} elements do not make ${shapeText(dims)}`);
  return new ort.Tensor(port.type, data, dims);
}

/**
 * Numbers and extents of a value; no extents where it does not tell them.
 * @param {any} value
 * @param {string} what
 * @returns {{ data: any, dims?: readonly number[] }}
 */
function parts(value, what) {
  if (ArrayBuffer.isView(value)) return { data: value };
  if (Array.isArray(value)) return flatten(value, what);
  if (typeof value === "object" && "dims" in value) return value.location && value.location !== "cpu" ? { data: [], dims: value.dims } : value;
  if (typeof value === "object") throw new Error(`${what}: neither a tensor, numbers, nor {data, dims}`);
  return { data: [value], dims: [] };
}

/**
 * @param {readonly any[]} value
 * @param {string} what
 */
function flatten(value, what) {
  /** @type {number[]} */
  const dims = [];
  for (let v = value; Array.isArray(v); v = v[0]) dims.push(v.length);
  /** @type {(v: any, depth: number) => boolean} */
  const even = (v, depth) => (depth === dims.length ? !Array.isArray(v) : v.length === dims[depth] && v.every((/** @type {any} */ e) => even(e, depth + 1)));
  if (!even(value, 0)) throw new Error(`${what}: lists of different lengths`);
  return { data: value.flat(Infinity), dims };
}

/**
 * Extents of plain numbers: one free extent follows from their number.
 * @param {Port} port
 * @param {number} length
 * @returns {number[]}
 */
function inferDims(port, length) {
  const { shape } = port;
  if (shape.length === 0) return length === 1 ? [] : [length];
  const free = shape.filter((d) => typeof d !== "number");
  const known = count(shape.filter((d) => typeof d === "number"));
  if (free.length > 1) throw new Error(`input "${port.name}" has the shape ${shapeText(shape)}: ${length} numbers alone do not tell the extents, pass {data, dims}`);
  if (free.length === 1 && length % known === 0) return shape.map((d) => (typeof d === "number" ? d : length / known));
  if (free.length === 0 && length === known) return /** @type {number[]} */ ([...shape]);
  throw new Error(`input "${port.name}": ${length} elements do not make ${shapeText(shape)}`);
}

/**
 * Do extents fit a declared shape? A shape of no extents says nothing: the runtimes give it for an unknown one too.
 * @param {string} what
 * @param {readonly (number | string)[]} shape
 * @param {readonly number[]} dims
 */
export function checkDims(what, shape, dims) {
  if (shape.length === 0) return;
  const fits = dims.length === shape.length && dims.every((d, i) => typeof shape[i] !== "number" || shape[i] === d);
  if (!fits) throw new Error(`${what} has the shape ${shapeText(shape)}, ${shapeText(dims)} was given`);
}

/**
 * Numbers as another type, without loss but for the rounding of floats.
 * @param {string} what
 * @param {any} data
 * @param {string} type
 * @param {string} [from] the type of the tensor they are from
 */
function convert(what, data, type, from) {
  const Target = arrayOf(type);
  const bits = type === "float16" && Target === Uint16Array;
  if (from === "float16" && data instanceof Uint16Array) data = new Half(data.buffer, data.byteOffset, data.length);
  // Without the engine's own type, 16-bit integers for a float16 input are its bits, as in ONNX Runtime.
  if (data instanceof Target && (from === undefined || from === type) && type !== "bool") return data;
  if (type.startsWith("float")) {
    if (data instanceof Uint8Array || data instanceof Uint8ClampedArray) {
      throw new Error(`${what} is ${type} and bytes were given: scale them as the model expects them (Float32Array.from(bytes, (b) => b / 255))`);
    }
    const numbers = Array.isArray(data) || typeof data[0] !== "bigint" ? data : Array.from(data, Number);
    // `Number` would make undefined and words no number, and null zero.
    const strange = Array.isArray(numbers) ? numbers.findIndex((v) => !["number", "bigint", "boolean"].includes(typeof v)) : -1;
    if (strange >= 0) throw new Error(`${what} is ${type}, and element ${strange} is ${numbers[strange]}`);
    if (!bits) return Target.from(numbers, Number);
    return new Uint16Array(Half.from(numbers, Number).buffer);
  }
  const wide = type === "int64" || type === "uint64";
  const out = new Target(data.length);
  for (let i = 0; i < data.length; i++) {
    const v = data[i];
    try {
      out[i] = wide ? BigInt(v) : Number(v);
    } catch {
      throw new Error(`${what} is ${type}, and element ${i} is ${v}`);
    }
    if (Number(out[i]) !== Number(v) || (type === "bool" && out[i] > 1)) throw new Error(`${what} is ${type}, and element ${i} is ${v}`);
  }
  return out;
}

/**
 * The elements of a float tensor as JavaScript's numbers.
 * @param {string} type
 * @param {any} data
 * @returns {Float32Array | Float64Array}
 */
export function floats(type, data) {
  if (type === "float16" && data instanceof Uint16Array) return Float32Array.from(new Half(data.buffer, data.byteOffset, data.length));
  return data instanceof Float64Array ? data : Float32Array.from(data, Number);
}
