// What needs no training graph of the tool: files, values, and the trainer's bookkeeping on a made-up runtime.

import assert from "node:assert/strict";
import { test } from "node:test";
import ort from "onnxruntime-node";
import * as web from "onnxruntime-web";
import { strToU8, zipSync } from "fflate";
import { Trainer, modelMetadata, readSafetensors, weights, writeSafetensors } from "../src/index.js";
import { floats, toTensor } from "../src/tensors.js";
import { Dataset, randomFrom, readNpy, readNpz, shuffled } from "../page/data.js";

const port = (type, shape, name = "x") => ({ name, type, shape });

test("numbers become tensors of the type and shape that an input has", () => {
  const of = (p, value) => {
    const t = toTensor(ort, p, value);
    return [t.type, [...t.dims], Array.from(t.data, Number)];
  };
  assert.deepEqual(of(port("int64", ["n"]), [1, 2n, 3]), ["int64", [3], [1, 2, 3]]);
  assert.deepEqual(of(port("int64", ["n"]), Uint8Array.of(1, 255)), ["int64", [2], [1, 255]]);
  assert.deepEqual(of(port("float32", ["n", 2]), [[1, 2], [3, 4], [5, 6]]), ["float32", [3, 2], [1, 2, 3, 4, 5, 6]]);
  assert.deepEqual(of(port("float32", ["n", 2]), Float64Array.of(1, 2, 3, 4)), ["float32", [2, 2], [1, 2, 3, 4]]);
  assert.deepEqual(of(port("float32", ["n", "m"]), { data: [1, 2, 3], dims: [1, 3] }), ["float32", [1, 3], [1, 2, 3]]);
  assert.deepEqual(of(port("float32", []), 0.5), ["float32", [], [0.5]]);
  assert.deepEqual(of(port("bool", ["n"]), [true, false]), ["bool", [2], [1, 0]]);
  assert.deepEqual(of(port("float32", ["n"]), new ort.Tensor("int32", [7], [1])), ["float32", [1], [7]]);
  const same = new ort.Tensor("float32", [1, 2], [2]);
  assert.equal(toTensor(ort, port("float32", ["n"]), same), same);
});

test("half precision goes there and back", () => {
  const values = [1, -2.5, 65504, 6e-8, 1 / 3, Infinity];
  const t = toTensor(ort, port("float16", ["n"]), values);
  assert.equal(t.type, "float16");
  const back = Array.from(floats("float16", t.data));
  assert.deepEqual(back, [1, -2.5, 65504, 2 ** -24, 0.333251953125, Infinity]);
  assert.deepEqual(Array.from(toTensor(ort, port("float32", ["n"]), t).data), back.map(Math.fround));
});

test("values that do not fit are refused by name", () => {
  const refuse = (p, value, why) => assert.throws(() => toTensor(ort, p, value), why);
  refuse(port("int64", ["n"], "labels"), [0.5], /input "labels" is int64, and element 0 is 0.5/);
  refuse(port("int64", ["n"]), [NaN], /element 0 is NaN/);
  refuse(port("uint8", ["n"]), [1, 256], /element 1 is 256/);
  refuse(port("float32", ["n"]), Uint8Array.of(1), /bytes were given: scale them/);
  refuse(port("float32", ["n", 3]), [[1, 2]], /has the shape \[n, 3\], \[1, 2\] was given/);
  refuse(port("float32", ["n", 3]), Float32Array.of(1, 2), /2 elements do not make \[n, 3\]/);
  refuse(port("float32", ["n", "m"]), Float32Array.of(1, 2), /pass \{data, dims\}/);
  refuse(port("float32", ["n"]), [[1], 2], /lists of different lengths/);
  refuse(port("float32", ["n"]), undefined, /input "x" \(float32 \[n\]\) is missing/);
  refuse(port("float32", ["n"]), [1, undefined], /element 1 is undefined/);
  refuse(port("float32", ["n"]), { data: [null], dims: [1] }, /element 0 is null/);
  refuse(port("float32", ["n"]), { pixels: 1 }, /neither a tensor, numbers, nor/);
  refuse(port("float32", ["n"]), { data: [1, 2], dims: [3] }, /2 elements do not make \[3\]/);
});

test(".safetensors files keep every type", () => {
  const arrays = [Float64Array, Float32Array, BigInt64Array, BigUint64Array, Int32Array, Uint32Array, Int16Array, Uint16Array, Int8Array, Uint8Array];
  const types = ["float64", "float32", "int64", "uint64", "int32", "uint32", "int16", "uint16", "int8", "uint8"];
  const tensors = arrays.map((A, i) => [types[i], { type: types[i], dims: [3], data: A.from(A.name.startsWith("Big") ? [1n, 2n, 3n] : [1, 2, 3]) }]);
  tensors.push(["none", { type: "float32", dims: [0, 4], data: new Float32Array() }], ["one", { type: "bool", dims: [], data: Uint8Array.of(1) }]);
  const bytes = writeSafetensors(tensors, { key: "wert ✓" });
  assert.deepEqual(writeSafetensors(tensors.reverse(), { key: "wert ✓" }), bytes);
  // At an odd offset, in a buffer of Node whose `slice` copies nothing.
  const odd = Buffer.concat([Buffer.of(0), bytes]).subarray(1);
  const read = readSafetensors(odd);
  assert.deepEqual(read.metadata, { key: "wert ✓" });
  assert.deepEqual(new Map([...read.tensors].sort()), new Map(tensors.sort(([a], [b]) => (a < b ? -1 : 1))));
});

test("a .safetensors file of Python is read", () => {
  const file = "wAAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJrIjoidiJ9LCJuIjp7ImR0eXBlIjoiSTY0Iiwic2hhcGUiOltdLCJkYXRhX29mZnNldHMiOlswLDhdfSwidyI6eyJkdHlwZSI6IkYxNiIsInNoYXBlIjpbMV0sImRhdGFfb2Zmc2V0cyI6WzgsMTBdfSwiYiI6eyJkdHlwZSI6IkJPT0wiLCJzaGFwZSI6WzJdLCJkYXRhX29mZnNldHMiOlsxMCwxMl19fSAgICAFAAAAAAAAAABCAQA=";
  const { tensors, metadata } = readSafetensors(Buffer.from(file, "base64"));
  assert.deepEqual(metadata, { k: "v" });
  assert.deepEqual([...tensors].map(([name, t]) => [name, t.type, t.dims, Array.from(t.type === "float16" ? floats(t.type, t.data) : t.data, Number)]).sort(), [
    ["b", "bool", [2], [1, 0]],
    ["n", "int64", [], [5]],
    ["w", "float16", [1], [3]],
  ]);
});

test("damaged .safetensors files are refused", () => {
  const good = writeSafetensors([["w", { type: "float32", dims: [2], data: Float32Array.of(1, 2) }]]);
  const header = (text) => {
    const bytes = new Uint8Array(8 + text.length);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
    bytes.set(strToU8(text), 8);
    return bytes;
  };
  assert.throws(() => readSafetensors(good.subarray(0, 4)), /shorter than the header's length/);
  assert.throws(() => readSafetensors(good.subarray(0, 20)), /header is longer than the file/);
  assert.throws(() => readSafetensors(good.subarray(0, good.length - 1)), /"w" does not lie where/);
  assert.throws(() => readSafetensors(header("{")), /its header is no JSON/);
  assert.throws(() => readSafetensors(header('{"w":{"dtype":"BF16","shape":[],"data_offsets":[0,0]}}')), /"w" has the type BF16/);
  assert.throws(() => readSafetensors(header('{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}')), /"w" does not lie where/);
  assert.throws(() => readSafetensors(header('{"w":{"dtype":"F32","shape":[1]}}')), /"w" does not lie where/);
});

test("a file that is no ONNX model is refused", () => {
  assert.throws(() => modelMetadata(strToU8("<!doctype html><html>")), /not an ONNX file/);
  assert.deepEqual(modelMetadata(new Uint8Array()), {});
});

test("weights follow from logits and gate", () => {
  const near = (a, b) => a.flat().forEach((v, i) => assert.ok(Math.abs(v - b.flat()[i]) < 1e-6, `${a} is not ${b}`));
  const logits = [9, 9, Math.log(3) * 0.5, 0];
  const how = { parametrization: "softmax", normalize: "incoming", tau: 0.5 };
  near(weights(logits, undefined, 2, how), [[1], [0.75, 0.25]]);
  near(weights(logits, [9, 0.5], 2, { ...how, parametrization: "gated" }), [[1], [0.375, 0.625]]);
  near(weights([0, 9, 0, 5], undefined, 2, { ...how, normalize: "outgoing" }), [[0.5], [0.5, 1]]);
  assert.deepEqual(weights([1, 9, -2, 3], undefined, 2, { ...how, parametrization: "free" }), [[1], [-2, 3]]);
  // With a state of an earlier chain in front, the first row has competitors too.
  near(weights([0, 0, 9, 0, 0, 0], [1, 0], 2, { ...how, parametrization: "gated" }), [[0.5, 0.5], [0, 0, 1]]);
});

/** y = w x, loss = mean(y²), in half precision but for loss and rate: `w` goes to w - lr · mean(x y). */
const HALF = Buffer.from(
  "CAg6twIKDgoBdwoBeBIBeSIDTXVsCg8KAXkKAXkSAnl5IgNNdWwKGQoCeXkSAnlmIgRDYXN0KgkKAnRvGAGgAQIKJwoCeWYSBGxvc3MiClJlZHVjZU1lYW4qDwoIa2VlcGRpbXMYAKABAgoOCgF4CgF5EgFnIgNNdWwKJAoBZxICZ20i" +
    "ClJlZHVjZU1lYW4qDwoIa2VlcGRpbXMYAKABAgoZCgJschICbGgiBENhc3QqCQoCdG8YCqABAgoQCgJnbQoCbGgSAWQiA011bAoTCgF3CgFkEgZ3Lm5leHQiA1N1YhIBZ1oQCgF4EgsKCQgKEgUKAxIBbloPCgF3EgoKCAgKEgQKAggBWgwKAmxyEgYKBAgBEgBiDgoEbG9zcxIGCgQIARIAYhQKBncubmV4dBIKCggIChIECgIIAUIECgAQEQ==",
  "base64",
);

for (const [name, runtime] of [["onnxruntime-node", ort], ["onnxruntime-web", web]]) {
  test(`${name}: a state in half precision trains`, async () => {
    const state = writeSafetensors([["w", { type: "float16", dims: [1], data: new globalThis[globalThis.Float16Array ? "Float16Array" : "Uint16Array"]([globalThis.Float16Array ? 3 : 0x4200]) }]]);
    const trainer = await Trainer.load({ train: HALF, state, ort: runtime, lr: 0.1 });
    const { loss, accuracy, gradNorm } = await trainer.step({ x: [1, 2] });
    assert.deepEqual([loss, accuracy, gradNorm], [22.5, undefined, undefined]);
    const w = await trainer.get("w");
    assert.deepEqual([w.type, Array.from(floats(w.type, w.data))], ["float16", [2.25]]);
    await trainer.release();
  });
}

/** A runtime whose graph has state `w` and counts what is freed. */
function fakeRuntime() {
  const seen = { freed: 0, running: 0, most: 0, fail: false };
  class Tensor {
    location = "cpu";
    constructor(type, data, dims) {
      Object.assign(this, { type, data, dims });
    }
    getData = async () => this.data;
    dispose = () => seen.freed++;
  }
  const meta = (name) => ({ name, isTensor: true, type: "float32", shape: [] });
  const session = {
    inputNames: ["x", "w", "lr"], outputNames: ["loss", "w.next"], inputMetadata: ["x", "w", "lr"].map(meta), outputMetadata: ["loss", "w.next"].map(meta),
    release: async () => {},
    async run(feeds) {
      seen.most = Math.max(seen.most, ++seen.running);
      await new Promise((wake) => setTimeout(wake, 5));
      seen.running--;
      if (seen.fail) throw new Error("out of memory");
      return { loss: new Tensor("float32", [feeds.w.data[0]], []), "w.next": new Tensor("float32", [feeds.w.data[0] - 1], []) };
    },
  };
  return { seen, ort: { Tensor, InferenceSession: { create: async () => session } } };
}
const ten = writeSafetensors([["w", { type: "float32", dims: [], data: Float32Array.of(10) }]]);

test("old state is freed, steps come one after the other, a failed step changes nothing", async () => {
  const { seen, ort } = fakeRuntime();
  const events = [];
  const trainer = await Trainer.load({ train: new Uint8Array(), state: ten, ort, onProgress: (e) => events.push(e.kind) });
  const steps = await Promise.all([1, 2, 3].map((x) => trainer.step({ x })));
  assert.deepEqual(steps.map((s) => [s.step, s.loss]), [[1, 10], [2, 9], [3, 8]]);
  assert.deepEqual([seen.most, seen.freed], [1, 3]);
  seen.fail = true;
  await assert.rejects(trainer.step({ x: 4 }), /out of memory/);
  seen.fail = false;
  assert.equal((await trainer.step({ x: 5 })).loss, 7);
  assert.equal(seen.freed, 4);
  assert.deepEqual(events, ["open", "step", "step", "step", "step"]);
  await trainer.load(ten);
  assert.equal((await trainer.step({ x: 6 })).loss, 10);
  await trainer.release();
  assert.equal(seen.freed, 7);
});

test("what is missing is named", async () => {
  const { ort } = fakeRuntime();
  const options = { train: new Uint8Array(), state: ten, ort };
  await assert.rejects(Trainer.load({}), /`train` is missing/);
  await assert.rejects(Trainer.load({ train: new Uint8Array(), ort }), /one of `init` .* and `state`/);
  await assert.rejects(Trainer.load({ ...options, state: writeSafetensors([]) }), /lacks "w", which `train` takes/);
  const more = writeSafetensors([["w", { type: "float32", dims: [], data: Float32Array.of(1) }], ["v", { type: "float32", dims: [], data: Float32Array.of(1) }]]);
  await assert.rejects(Trainer.load({ ...options, state: more }), /holds "v", of which `train` has nothing/);
  await assert.rejects(Trainer.load({ ...options, state: writeSafetensors([["w", { type: "int32", dims: [], data: Int32Array.of(1) }]]) }), /"w" of .* is int32, `train` takes float32/);
  const trainer = await Trainer.load(options);
  await assert.rejects(trainer.step(), /a batch is an object with a value for each of "x"/);
  await assert.rejects(trainer.evaluate(), /evaluate needs/);
  await assert.rejects(trainer.step({ x: 1, lr: NaN }), /the learning rate is NaN/);
  await assert.rejects(trainer.step({}), /input "x" .* is missing/);
  await assert.rejects(trainer.step({ x: 1, y: 2 }), /has no input "y"; a batch has "x"/);
  await assert.rejects(trainer.step({ x: 1, w: 2 }), /"w" of the batch is state/);
  await assert.rejects(trainer.step({ x: 1 }, { outputs: ["y"] }), /has no output "y"; it has "loss"/);
  await assert.rejects(trainer.evaluate({ x: 1 }), /evaluate needs STEM.ancre.eval.onnx: write it with --eval-graph/);
  await assert.rejects(trainer.predict({ x: 1 }), /predict needs STEM.ancre.infer.onnx: write it with --infer-graph/);
  await assert.rejects(trainer.get("v"), /has no state "v"/);
  assert.deepEqual(trainer.inputs.map((p) => p.name), ["x"]);
});

// The page's data.

/** A .npy file. */
function npy(descr, shape, data, order = "False") {
  const header = `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`.padEnd(117) + "\n";
  const out = new Uint8Array(10 + header.length + data.byteLength);
  out.set([0x93, ...strToU8("NUMPY"), 1, 0, header.length & 255, header.length >> 8]);
  out.set(strToU8(header), 10);
  out.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 10 + header.length);
  return out;
}

test(".npz files are read", () => {
  const file = zipSync({ "input.npy": npy("|u1", [3, 2], Uint8Array.of(0, 255, 1, 2, 3, 4)), "labels.npy": npy("<i8", [3], BigInt64Array.of(1n, 2n, 3n)) });
  const data = Dataset.of(readNpz(file), [port("float32", ["n", 2], "input"), port("int64", ["n"], "labels")]);
  assert.equal(data.size, 3);
  assert.deepEqual(Array.from(data.batch([2, 0]).input.data), [3 / 255, 4 / 255, 0, 1].map(Math.fround));
  assert.deepEqual(data.batch([2, 0]).labels, { data: BigInt64Array.of(3n, 1n), dims: [2] });
  assert.equal([...data.batches(2)].length, 2);
  assert.equal([...data.batches(2, 2)].length, 1);
  const [most, held] = data.split(0.3, randomFrom(1));
  assert.deepEqual([most.size, held.size], [2, 1]);
  assert.throws(() => readNpy("a", npy(">f4", [1], Float32Array.of(1))), /big-endian/);
  assert.throws(() => readNpy("a", npy("<f4", [1, 1], Float32Array.of(1), "True")), /Fortran/);
  assert.throws(() => readNpy("a", npy("<f4", [2], Float32Array.of(1))), /ends within its array/);
  assert.throws(() => readNpy("a", npy("<c8", [1], Float32Array.of(1, 2))), /arrays of type '<c8' are not read/);
  assert.throws(() => Dataset.of(readNpz(file), [port("float32", ["n", 2], "pixels")]), /no array “pixels”; they have “input”, “labels”/);
  assert.throws(() => Dataset.of(readNpz(file), [port("float32", ["n", 3], "input")]), /has the shape \[3,2\], the graph takes \[n,3\]/);
});

test("samples are shuffled by seed", () => {
  assert.deepEqual(shuffled(20, randomFrom(7)), shuffled(20, randomFrom(7)));
  assert.notDeepEqual(shuffled(20, randomFrom(7)), shuffled(20, randomFrom(8)));
  assert.deepEqual(shuffled(20, randomFrom(7)).sort((a, b) => a - b), [...Array(20).keys()]);
});
