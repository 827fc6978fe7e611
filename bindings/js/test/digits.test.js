// The digits, trained from graphs of the tool in both runtimes.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import node from "onnxruntime-node";
import * as web from "onnxruntime-web";
import { Trainer, readSafetensors, writeSafetensors } from "../src/index.js";
import { digits, makeGraphs, run } from "./graphs.js";
import { firstLosses } from "./steps.js";

const quiet = { sessionOptions: { logSeverityLevel: 3 } };
const graphs = makeGraphs("init");
const separate = makeGraphs("separate");
const inline = makeGraphs("inline");
const losses = {};
// Of one batch again and again, as docs/bindings.md has them: other batches let rounding grow faster.
const repeated = {};

/** The model without its metadata, as another tool may leave it. */
function withoutMetadata(path) {
  const bytes = readFileSync(path);
  const kept = [];
  const varint = (at) => {
    let [value, scale] = [0, 1];
    for (; bytes[at] > 127; at++, scale *= 128) value += (bytes[at] & 127) * scale;
    return [value + bytes[at] * scale, at + 1];
  };
  for (let at = 0; at < bytes.length; ) {
    const [key, value] = varint(at);
    const [number, body] = varint(value);
    const end = key % 8 === 2 ? body + number : body;
    if (key >> 3 !== 14) kept.push(bytes.subarray(at, end));
    at = end;
  }
  return Buffer.concat(kept);
}

for (const [name, ort] of [["onnxruntime-node", node], ["onnxruntime-web", web]]) {
  describe(name, () => {
    let trainer, data, held;
    const opened = [];
    before(async () => {
      trainer = await Trainer.load({ ...graphs, state: undefined, ort, ...quiet, onProgress: (e) => e.kind === "open" && opened.push(e.graph) });
      data = digits(trainer.inputs);
      held = digits(trainer.inputs, "val");
    });
    after(() => trainer.release());

    test("ten steps bring the loss down", async () => {
      assert.deepEqual(trainer.inputs.map((p) => [p.name, p.type]), [["input", "float32"], ["labels", "int64"]]);
      const start = await trainer.evaluate(held.batches(120));
      losses[name] = await firstLosses(trainer, data);
      assert.ok(losses[name][0] > 2.2 && losses[name][9] < 1, `${losses[name]}`);
      const end = await trainer.evaluate(held.batches(120));
      assert.equal(end.samples, 360);
      assert.ok(end.loss < start.loss && end.accuracy > start.accuracy + 0.2, JSON.stringify([start, end]));
      assert.equal(trainer.steps, 10);
      assert.deepEqual(opened, ["train", "init", "eval"]);
    });

    test("ten steps on one batch bring its loss down", async () => {
      const own = await Trainer.load({ train: graphs.train, init: graphs.init, ort, lr: 2e-3, ...quiet });
      repeated[name] = await firstLosses(own, data, { stride: 0 });
      await own.release();
      assert.ok(repeated[name][9] < 0.1 * repeated[name][0], `${repeated[name]}`);
    });

    test("a saved state goes on with the same bits, and predicts the same", async () => {
      const state = await trainer.save();
      assert.deepEqual(JSON.parse(readSafetensors(state).metadata["ancre.state"]).length >= trainer.stateNames.length, true);
      const images = { input: held.batch([0, 1, 2, 3]).input };
      const again = await Trainer.load({ train: graphs.train, infer: graphs.infer, state, ort, lr: 2e-3, ...quiet });
      assert.equal(again.steps, 10);
      const [a, b] = [await trainer.predict(images), await again.predict(images)];
      assert.deepEqual(a.logits.data, b.logits.data);
      assert.deepEqual(a.logits.dims, [4, 10]);
      const batch = data.batch([...Array(32).keys()]);
      assert.equal((await again.step(batch)).loss, (await trainer.step(batch)).loss);
      assert.deepEqual(await again.save(), await trainer.save());
      await trainer.load(state);
      assert.equal(trainer.steps, 10);
      assert.deepEqual(await trainer.save(), state);
      await again.release();
    });

    test("freeze takes the saved state: the deployed model says what predict says, and has the same topology", async () => {
      const out = mkdtempSync(join(tmpdir(), "ancre-js-"));
      const [file, frozen, routed] = ["state.safetensors", "frozen.onnx", "routed.onnx"].map((f) => join(out, f));
      writeFileSync(file, await trainer.save());
      run("freeze", graphs.forward, "--state", file, "-o", frozen);
      run("freeze", graphs.forward, "--state", file, "--keep-router", "-o", routed);
      // The forward graph keeps the batch of the source, which is one.
      const session = await ort.InferenceSession.create(readFileSync(frozen), { logSeverityLevel: 3 });
      const { input } = held.batch([5]);
      const deployed = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", input.data, input.dims) });
      const { logits } = await trainer.predict({ input });
      logits.data.forEach((v, i) => assert.ok(Math.abs(v - deployed.logits.data[i]) < 1e-4, `${logits.data} is not ${deployed.logits.data}`));
      const chains = await trainer.topology();
      const { topology } = JSON.parse(run("inspect", routed, "--json"));
      assert.deepEqual(chains.map((c) => c.id), topology.map((c) => c.id));
      chains.forEach((c, i) => c.rows.flat().forEach((w, k) => assert.ok(Math.abs(w - topology[i].weights.flat()[k]) < 1e-6)));
      assert.ok(chains.some((c) => c.rows.some((row) => Math.abs(row.at(-1) - 1) > 1e-4)), "no weight has moved");
    });

    test("names alone suffice, where files have lost their metadata", async () => {
      const [train, init, evaluation] = [graphs.train, graphs.init, graphs.eval].map(withoutMetadata);
      const bare = await Trainer.load({ train, init, eval: evaluation, ort, ...quiet });
      assert.deepEqual(bare.metadata, {});
      assert.deepEqual(bare.stateNames.toSorted(), trainer.stateNames.toSorted());
      assert.deepEqual((await firstLosses(bare, data, { steps: 2 })), losses[name].slice(0, 2));
      assert.ok((await bare.evaluate(held.batches(120))).accuracy > 0);
      assert.deepEqual(await bare.topology(), []);
      assert.equal((await bare.topology(JSON.parse(trainer.metadata["ancre.router"]))).length, 3);
      await bare.release();
    });

    test("a separate state does, too", async () => {
      const other = await Trainer.load({ train: separate.train, state: separate.state, ort, ...quiet });
      assert.deepEqual((await firstLosses(other, data, { steps: 2 })), losses[name].slice(0, 2));
      await other.release();
    });

    test("a graph whose state has defaults is refused with the reason", async () => {
      await assert.rejects(Trainer.load({ train: inline.train, init: graphs.init, ort, ...quiet }), /train\.onnx has defaults for its state .* `--state inline` .* nothing would train/);
      const mixed = await Trainer.load({ train: graphs.train, init: graphs.init, eval: inline.eval, infer: inline.forward, ort, ...quiet });
      await assert.rejects(mixed.evaluate(held.batch([0])), /eval\.onnx has defaults for its state/);
      await assert.rejects(mixed.predict({ input: held.batch([0]).input }), /takes no state of the training graph/);
      await mixed.release();
    });

    // The reason for all this, as docs/bindings.md tells it.
    test("the binding itself does not feed an input that has a default", async () => {
      const session = await ort.InferenceSession.create(readFileSync(inline.train), { logSeverityLevel: 3 });
      assert.ok(!session.inputNames.includes("ancre.step"));
      const { input, labels } = data.batch([0, 1]);
      const feeds = {
        input: new ort.Tensor("float32", input.data, input.dims),
        labels: new ort.Tensor("int64", BigInt64Array.from(labels.data, BigInt), labels.dims),
        lr: new ort.Tensor("float32", [1e-3], []),
        "ancre.step": new ort.Tensor("int64", [41n], []),
      };
      const second = session.run(feeds);
      if (ort === web) await assert.rejects(second, /invalid input 'ancre.step'/);
      else assert.equal((await second)["ancre.step.next"].data[0], 1n);
    });

    test("batches of two sizes and labels that are no class are refused, and what is ignored does not count", async () => {
      const { input, labels } = data.batch([0, 1, 2, 3]);
      const before = await trainer.save();
      for (const call of [(b) => trainer.step(b), (b) => trainer.evaluate(b)]) {
        await assert.rejects(call({ input, labels: labels.data.slice(0, 3) }), /input "labels" has 3 along "batch", "input" has 4/);
        await assert.rejects(call({ input, labels: [0, 1, 2, -1] }), /input "labels" holds -1; classes are 0 to 9, -100 for what is ignored/);
        await assert.rejects(call({ input, labels: [0, 1, 2, 10] }), /input "labels" holds 10/);
        await assert.rejects(call({ input: new Float32Array(), labels: [] }), /input "labels" is empty/);
      }
      assert.deepEqual(await trainer.save(), before);
      const [all, half] = [await trainer.evaluate(data.batch([0, 1])), await trainer.evaluate({ input, labels: [...labels.data].map((v, i) => (i < 2 ? v : -100)) })];
      assert.ok(Math.abs(all.loss - half.loss) < 1e-5, JSON.stringify([all, half]));
      assert.deepEqual([half.accuracy, half.samples], [all.accuracy, 4]);
    });

    test("what is not of this graph is refused by name", async () => {
      const { tensors } = readSafetensors(await trainer.save());
      const without = [...tensors].filter(([n]) => n !== "fc.weight");
      const wrong = [...without, ["fc.weight", { type: "float32", dims: [3, 48], data: new Float32Array(144) }]];
      await assert.rejects(trainer.load(writeSafetensors(without)), /lacks "fc\.weight", which resnet_batch1\.ancre\.train\.onnx takes/);
      await assert.rejects(trainer.load(writeSafetensors(wrong)), /"fc\.weight" of .* has the shape \[10, 48\], \[3, 48\] was given/);
      await assert.rejects(Trainer.load({ train: graphs.forward, init: graphs.init, ort, ...quiet }), /gives no state .* it is no training graph/);
      await assert.rejects(Trainer.load({ train: graphs.train, init: graphs.eval, ort, ...quiet }), /takes inputs .* it is no graph of `--state init`/);
      await assert.rejects(Trainer.load({ train: new TextEncoder().encode("no model"), init: graphs.init, ort, ...quiet }), /not an ONNX file|cannot be opened/);
    });
  });
}

test("both runtimes see the same losses, up to what rounding grows to", () => {
  const [a, b] = Object.values(repeated);
  a.forEach((v, i) => assert.ok(Math.abs(v - b[i]) < (i < 3 ? 1e-4 : 2e-2) * v, `step ${i + 1}: ${v} and ${b[i]}`));
});
