// Trains, away from the page's own thread. The page sends {kind, …} and gets {kind, …} back.

import { Trainer } from "../src/index.js";
import { Dataset, randomFrom, readFolders, readNpz, shuffled } from "./data.js";

const say = (kind, more = {}, transfer = []) => postMessage({ kind, ...more }, transfer);
let trainer, data, validation, running;

const verbs = {
  /** Opens the graphs: {graphs: {train, init | state, eval?, infer?}, device}. What WebGPU cannot open, WebAssembly does. */
  async open({ graphs, device }) {
    await trainer?.release();
    trainer = undefined;
    if (device !== "webgpu") return openOn("wasm", graphs);
    try {
      await openOn("webgpu", graphs);
    } catch (e) {
      say("status", { text: "WebGPU cannot open it; WebAssembly is tried …" });
      await openOn("wasm", graphs, `WebGPU cannot open this graph (${e.message.split("\n")[0].replace(/.*(ERROR_MESSAGE:|was false\.) /, "")})`);
    }
  },

  /** Reads the data: {npz: {train, val?}} or {files: [{path, file}], scale}. Without a second set a tenth is held back. */
  async data({ npz, files, scale }) {
    need(trainer, "choose the graphs first");
    const inputs = trainer.inputs;
    let note = "";
    if (npz) {
      const read = async (blob) => Dataset.of(readNpz(new Uint8Array(await blob.arrayBuffer())), inputs);
      data = await read(npz.train);
      validation = npz.val && (await read(npz.val));
    } else {
      ({ train: data, val: validation, note } = await readFolders(files, inputs, scale, (text) => say("status", { text })));
    }
    if (!validation && data.size >= 20) {
      [data, validation] = data.split(0.1, randomFrom(0));
      note += `${note && "; "}a tenth is held back for validation`;
    }
    say("data", { samples: data.size, held: validation?.size ?? 0, classes: data.classes, note });
  },

  /** Trains: {epochs, batchSize, lr, schedule, seed}. */
  async train({ epochs, batchSize, lr, schedule, seed }) {
    need(trainer && data, "choose graphs and data first");
    need(!running, "a run is under way");
    const fixed = trainer.inputs.map((p) => p.shape[0]).find((d) => typeof d === "number");
    const size = fixed ?? batchSize;
    need(data.size >= (fixed ?? 1), `the graph takes batches of ${fixed}, the data have ${data.size} samples`);
    const perEpoch = fixed ? Math.floor(data.size / size) : Math.ceil(data.size / size);
    const total = perEpoch * epochs;
    const random = randomFrom(seed);
    running = { paused: false, stopped: false };
    let done = 0;
    try {
      for (let epoch = 1; epoch <= epochs && !running.stopped; epoch++) {
        for (const batch of data.batches(size, fixed, shuffled(data.size, random))) {
          while (running.paused && !running.stopped) await new Promise((wake) => setTimeout(wake, 50));
          if (running.stopped) break;
          trainer.lr = lr * rate(done, total, schedule);
          const { step, loss, accuracy, gradNorm, seconds } = await trainer.step(batch);
          done++;
          // A second's worth of steps has some ten pictures of the topology, so that they cost little.
          const chains = done % Math.max(1, Math.round(0.1 / seconds)) === 0 || done === total ? await trainer.topology() : undefined;
          say("step", { step, loss, accuracy, gradNorm, seconds, done, total, epoch, lr: trainer.lr, samples: Object.values(batch)[0].dims[0], chains });
          if (!Number.isFinite(loss)) throw new Error(`the loss is ${loss} at step ${step}: try a lower rate`);
          await breathe();
        }
        if (running.stopped) break;
        await validate(epoch, size, fixed);
      }
      say("finished", { stopped: running.stopped, steps: trainer.steps });
    } finally {
      running = undefined;
    }
  },

  pause: ({ on }) => running && (running.paused = on),
  stop: () => running && (running.stopped = true),

  /** The state as a .safetensors file. */
  async save() {
    need(trainer, "choose the graphs first");
    const bytes = await trainer.save();
    say("saved", { bytes, step: trainer.steps }, [bytes.buffer]);
  },
};

/** Opens the graphs on a device. `because`: why it is not the one that was asked for. */
async function openOn(device, graphs, because) {
  const { ort, executionProviders, note } = await runtimeFor(device);
  const placement = device === "webgpu" ? listenForPlacement() : undefined;
  const seconds = {};
  trainer = await Trainer.load({
    ...graphs,
    ort,
    executionProviders,
    sessionOptions: placement ? { logSeverityLevel: 0, logVerbosityLevel: 0 } : { logSeverityLevel: 3 },
    onProgress: (p) => {
      if (p.kind !== "open") return;
      seconds[p.graph] = p.seconds;
      if (p.graph === "train") say("status", { text: "the training graph is open; its state is made …" });
    },
  });
  const { inputs, stateNames, canEvaluate, canPredict, metadata } = trainer;
  const loss = JSON.parse(metadata["ancre.loss"] ?? "null")?.kind;
  const notes = [because, note].filter(Boolean);
  say("opened", { device, inputs, states: stateNames.length, canEvaluate, canPredict, notes, seconds: seconds.train, placement: placement?.(), chains: await trainer.topology(), loss });
}

/** Validates, and shows the first samples that were held back beside what the network says of them. */
async function validate(epoch, size, fixed) {
  // A fixed batch may be larger than what was held back.
  if (!validation || validation.size < (fixed ?? 1)) return;
  if (trainer.canEvaluate) say("validation", { epoch, step: trainer.steps, ...(await trainer.evaluate(validation.batches(size, fixed))) });
  const image = trainer.inputs.find((p) => p.shape.length === 4 && [1, 3].includes(p.shape[1]));
  const target = trainer.inputs.find((p) => p.shape.length === 1);
  if (!trainer.canPredict || !image || !target || trainer.inputs.length !== 2) return;
  const shown = validation.batch([...Array(fixed ?? Math.min(24, validation.size)).keys()]);
  const scores = Object.values(await trainer.predict({ [image.name]: shown[image.name] })).find((t) => t.dims.length === 2);
  if (!scores) return;
  const [rows, classes] = scores.dims;
  const all = await scores.getData();
  const best = Array.from({ length: rows }, (_, r) => {
    const row = Array.from(all.subarray(r * classes, (r + 1) * classes), Number);
    return row.indexOf(Math.max(...row));
  });
  say("predictions", { images: shown[image.name], labels: Array.from(shown[target.name].data, Number), best, classes: data.classes });
}

/** The share of the rate at a step: a rise over the first steps, then as the schedule has it. */
function rate(step, total, schedule) {
  const warmup = Math.min(5, Math.floor(total / 10));
  if (step < warmup) return (step + 1) / (warmup + 1);
  return schedule === "cosine" ? 0.5 * (1 + Math.cos((Math.PI * (step - warmup)) / Math.max(1, total - warmup))) : 1;
}

/**
 * ONNX Runtime for a device, and what to say of it. The build with WebGPU is larger, so it is fetched when it is wanted. It has no
 * float64, in which Adam's bias correction is computed unless a graph is written for it.
 */
async function runtimeFor(device) {
  const ort = device === "webgpu" ? await import("onnxruntime-web/webgpu") : await import("onnxruntime-web/wasm");
  ort.env.wasm.wasmPaths = new URL("./", self.location.href).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const threads = ort.env.wasm.numThreads;
  const why = self.crossOriginIsolated ? "" : " (the page is not cross-origin isolated: its server sends no COOP and COEP headers)";
  const note = `${device === "webgpu" ? "WebGPU, the rest in " : ""}WebAssembly on ${threads} thread${threads > 1 ? "s" : ""}${why}`;
  return { ort, note, executionProviders: device === "webgpu" ? ["webgpu", "wasm"] : ["wasm"] };
}

/**
 * Listens to ONNX Runtime's log, which at its lowest level says where each node runs, and keeps the two lowest levels off the console.
 * Returns what tells of the first graph that was opened: the nodes on the device and, by operator, those that fall back.
 */
function listenForPlacement() {
  const { error } = console;
  const lines = [];
  console.error = (...words) => {
    const text = words.join(" ");
    if (!/\[[VI]:onnxruntime/.test(text)) error.apply(console, words);
    else if (text.includes("VerifyEachNode")) lines.push(text.slice(text.indexOf("]", text.indexOf("VerifyEachNode")) + 1).trim());
  };
  return () => {
    // A graph's lines: "Node placements", then of each provider its name and number of nodes, and "Operator (node)" for each of them.
    const of = { device: 0, fallback: 0 };
    const operators = new Map();
    let place;
    for (const line of lines.slice(1, lines.indexOf("Node placements", 1) >>> 0)) {
      const [, provider, nodes] = /placed on \[(\w+)\]\. Number of nodes: (\d+)/.exec(line) ?? [];
      if (provider) of[(place = provider === "CPUExecutionProvider" ? "fallback" : "device")] += Number(nodes);
      else if (place === "fallback") operators.set(line.split(" ")[0], (operators.get(line.split(" ")[0]) ?? 0) + 1);
    }
    lines.length = 0;
    return { ...of, operators: [...operators].sort((a, b) => b[1] - a[1]) };
  };
}

/** Lets the page's messages in between two steps. */
const breathe = () =>
  new Promise((wake) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => (port1.close(), wake());
    port2.postMessage(0);
  });

function need(condition, why) {
  if (!condition) throw new Error(why);
}

onmessage = async ({ data: message }) => {
  try {
    await verbs[message.kind](message);
  } catch (e) {
    say("error", { during: message.kind, text: e instanceof Error ? e.message : String(e) });
  }
};
say("ready", { isolated: self.crossOriginIsolated, webgpu: "gpu" in navigator && (await navigator.gpu.requestAdapter()) !== null });
