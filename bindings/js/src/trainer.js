// A training graph and its state, stepped in ONNX Runtime.

import { importRuntime, path, readBytes } from "#host";
import { modelMetadata } from "./metadata.js";
import { readSafetensors, writeSafetensors } from "./safetensors.js";
import { arrayOf, checkDims, floats, shapeText, toTensor } from "./tensors.js";
import { weights } from "./topology.js";

/** @typedef {import("./tensors.js").Tensor} Tensor */
/** @typedef {import("./tensors.js").Value} Value */
/** @typedef {import("./tensors.js").Port} Port */
/**
 * Bytes of a file, or where they are: a path or URL in Node, a URL or Blob on the web.
 * @typedef {string | URL | Uint8Array | ArrayBuffer | Blob} Source
 */
/**
 * A graph; where its weights lie beside it and it is no path in Node, `externalData` names them.
 * @typedef {Source | { model: Source, externalData: { path: string, data: Uint8Array }[] }} GraphSource
 */
/**
 * @typedef {object} LoadOptions
 * @property {GraphSource} train `STEM.ancre.train.onnx`
 * @property {GraphSource} [init] `STEM.ancre.init.onnx`, which gives the state of the start
 * @property {Source} [state] instead of `init`: a state as .safetensors, of `--state separate`, `save` or `ancre-rewrite train`
 * @property {GraphSource} [eval] `STEM.ancre.eval.onnx`, which `evaluate` needs
 * @property {GraphSource} [infer] `STEM.ancre.infer.onnx`, which `predict` needs
 * @property {any} [ort] ONNX Runtime's module; else `onnxruntime-node` in Node and `onnxruntime-web` on the web
 * @property {readonly any[]} [executionProviders] as ONNX Runtime takes them
 * @property {object} [sessionOptions] further options of ONNX Runtime's sessions
 * @property {number} [lr] the learning rate, 1e-3 if not given; `trainer.lr` changes it
 * @property {(progress: Progress) => void} [onProgress] called when a graph is open, after each step, and after each batch of `evaluate`
 */
/**
 * @typedef {{ kind: "open", graph: string, seconds: number }
 *   | { kind: "step", step: number, loss: number, accuracy: number | undefined, gradNorm: number | undefined, seconds: number }
 *   | { kind: "evaluate", samples: number, loss: number }} Progress
 */
/**
 * A value for each input that is not state, by name; `lr` may be among them.
 * @typedef {Record<string, Value>} Batch
 */
/**
 * `step` counts what the state has been through, `accuracy` is there where the targets are classes and one output has a score for each,
 * `outputs` holds what the step was asked for.
 * @typedef {{ step: number, loss: number, accuracy: number | undefined, gradNorm: number | undefined, seconds: number, outputs: Record<string, Tensor> }} StepResult
 */
/**
 * Means over the samples whose label is not ignored; `samples` counts all.
 * @typedef {{ loss: number, accuracy: number | undefined, samples: number }} Evaluation
 */
/** @typedef {{ session: any, label: string, metadata: Record<string, string>, inputs: Map<string, Port> }} Graph */

export class Trainer {
  #ort;
  #options;
  /** @type {Graph} */ #train;
  /** @type {Map<string, string>} the state's inputs and the outputs that give their next values */ #pairs;
  /** @type {Map<string, Tensor>} */ #state = new Map();
  /** @type {Map<string, Graph>} */ #graphs = new Map();
  /** @type {{ labels: string, scores: string, ignored?: number } | undefined} */ #classes;
  /** @type {Promise<unknown>} */ #turn = Promise.resolve();
  #names;
  /** Steps that the state has been through. */
  steps = 0;
  /** The learning rate of the next step. */
  lr;

  /**
   * Opens a training graph and gives it the state of its start.
   * @param {LoadOptions} options
   * @returns {Promise<Trainer>}
   */
  static async load(options) {
    if (!options?.train) throw new Error("`train` is missing: the training graph, STEM.ancre.train.onnx");
    if (!options.init === !options.state) {
      throw new Error("one of `init` (STEM.ancre.init.onnx) and `state` (a .safetensors file) gives the state of the start: pass it");
    }
    const ort = options.ort ?? (await importRuntime());
    const train = await open(ort, "train", options.train, options);
    const trainer = new Trainer(ort, options, train);
    try {
      if (options.state) await trainer.load(options.state);
      else await trainer.#initialise(/** @type {GraphSource} */ (options.init));
    } catch (e) {
      await trainer.release();
      throw e;
    }
    return trainer;
  }

  /**
   * Use {@link Trainer.load}.
   * @param {any} ort
   * @param {LoadOptions} options
   * @param {Graph} train
   * @private
   */
  constructor(ort, options, train) {
    this.#ort = ort;
    this.#options = options;
    this.#train = train;
    this.lr = options.lr ?? 1e-3;
    this.#pairs = statePairs(train);
    this.#classes = classesOf(train, this.#pairs);
    const { outputNames } = train.session;
    // A name that the model has itself is the model's; the graph's own is then `ancre.<name>`.
    const own = (/** @type {string} */ name, /** @type {(n: string) => boolean} */ has) => [`ancre.${name}`, name].find(has);
    const output = (/** @type {string} */ name) => own(name, (n) => outputNames.includes(n));
    this.#names = { loss: output("loss"), gradNorm: output("grad_norm"), lr: own("lr", (n) => train.inputs.has(n)) };
    if (!this.#names.loss) throw new Error(`${train.label} has no output "loss": it is no training graph`);
  }

  /** The inputs that a batch has a value for. The learning rate is not among them. @returns {Port[]} */
  get inputs() {
    return [...this.#train.inputs.values()].filter((p) => !this.#pairs.has(p.name) && p.name !== this.#names.lr);
  }

  /** The names of the state's tensors. @returns {string[]} */
  get stateNames() {
    return [...this.#pairs.keys()];
  }

  /** The training graph's metadata; empty where the file has none. @returns {Record<string, string>} */
  get metadata() {
    return this.#train.metadata;
  }

  /** Whether `evaluate` has its graph. */
  get canEvaluate() {
    return this.#options.eval !== undefined;
  }

  /** Whether `predict` has its graph. */
  get canPredict() {
    return this.#options.infer !== undefined;
  }

  /**
   * One step of the optimiser. When it fails, the state is what it was.
   * @param {Batch} batch
   * @param {{ outputs?: readonly string[] }} [options] outputs of the graph to hand out besides loss and gradient norm
   * @returns {Promise<StepResult>}
   */
  step(batch, { outputs = [] } = {}) {
    return this.#inTurn(async () => {
      const begin = performance.now();
      const { session, label } = this.#train;
      const unknown = outputs.filter((n) => !session.outputNames.includes(n));
      if (unknown.length) throw new Error(`${label} has no output ${list(unknown)}; it has ${list(session.outputNames.filter((/** @type {string} */ n) => !n.endsWith(".next")))}`);
      const { loss, gradNorm, lr } = /** @type {{ loss: string, gradNorm?: string, lr?: string }} */ (this.#names);
      const feeds = this.#feeds(this.#train, lr && batch && batch[lr] === undefined ? { ...batch, [lr]: this.lr } : batch);
      const rate = lr ? await scalar(feeds[lr]) : 0;
      if (!Number.isFinite(rate)) throw new Error(`the learning rate is ${rate}, which would make the whole state so`);
      const scalars = gradNorm ? [loss, gradNorm] : [loss];
      const scores = this.#classes ? [this.#classes.scores] : [];
      const results = await session.run(feeds, [...new Set([...scalars, ...scores, ...outputs, ...this.#pairs.values()])]);
      for (const [input, output] of this.#pairs) this.#put(input, results[output]);
      const [lossValue, norm] = await Promise.all(scalars.map((n) => scalar(results[n])));
      const accuracy = this.#classes && ((judged) => judged.right / judged.counted)(await judge(this.#classes, feeds, results));
      const done = { step: ++this.steps, loss: lossValue, accuracy, gradNorm: norm, seconds: (performance.now() - begin) / 1000 };
      this.#options.onProgress?.({ kind: "step", ...done });
      return { ...done, outputs: Object.fromEntries(outputs.map((n) => [n, results[n]])) };
    });
  }

  /**
   * Loss and accuracy of the state as it is, without updates, with running statistics, without dropout.
   * @param {Batch | Iterable<Batch> | AsyncIterable<Batch>} batches
   * @returns {Promise<Evaluation>}
   */
  async evaluate(batches) {
    const graph = await this.#graph("eval", "evaluate", "--eval-graph");
    const isMany = typeof batches === "object" && batches !== null && (Symbol.iterator in batches || Symbol.asyncIterator in batches);
    const all = /** @type {Iterable<Batch>} */ (isMany ? batches : [batches]);
    const loss = ["ancre.loss", "loss"].find((n) => graph.session.outputNames.includes(n));
    if (!loss) throw new Error(`${graph.label} has no output "loss": it is no evaluation graph`);
    const classes = classesOf(graph, this.#pairs);
    const sum = { loss: 0, right: 0, samples: 0, counted: 0 };
    for await (const batch of all) {
      await this.#inTurn(async () => {
        const feeds = this.#feeds(graph, batch);
        const results = await graph.session.run(feeds, classes ? [loss, classes.scores] : [loss]);
        const free = [...graph.inputs.values()].find((p) => !this.#pairs.has(p.name) && feeds[p.name].dims.length > 0);
        const samples = free ? feeds[free.name].dims[0] : 1;
        const judged = classes ? await judge(classes, feeds, results) : { right: 0, counted: samples };
        sum.samples += samples;
        sum.counted += judged.counted;
        sum.right += judged.right;
        // The loss of a batch whose labels are all ignored is no number.
        if (judged.counted) sum.loss += judged.counted * (await scalar(results[loss]));
        this.#options.onProgress?.({ kind: "evaluate", samples: sum.samples, loss: sum.loss / sum.counted });
      });
    }
    if (!sum.samples) throw new Error("evaluate: there are no samples");
    return { loss: sum.loss / sum.counted, accuracy: classes ? sum.right / sum.counted : undefined, samples: sum.samples };
  }

  /**
   * What the model says with the state as it is.
   * @param {Batch} inputs
   * @returns {Promise<Record<string, Tensor>>} the model's outputs by name
   */
  async predict(inputs) {
    const graph = await this.#graph("infer", "predict", "--infer-graph");
    return this.#inTurn(() => graph.session.run(this.#feeds(graph, inputs)));
  }

  /**
   * A tensor of the state, copied from the device if it is on one.
   * @param {string} name
   * @returns {Promise<{ type: string, dims: readonly number[], data: any }>}
   */
  async get(name) {
    const tensor = this.#state.get(name);
    if (!tensor) throw new Error(`${this.#train.label} has no state "${name}"`);
    return { type: tensor.type, dims: tensor.dims, data: await tensor.getData() };
  }

  /**
   * The weights of the learned routes: of each chain a row for each block, whose last entry is the original skip.
   * @param {import("./topology.js").Router} [router] the record `ancre.router`, where the file has lost its metadata
   * @returns {Promise<import("./topology.js").Chain[]>} no chains where the graph has no router
   */
  async topology(router = JSON.parse(this.metadata["ancre.router"] ?? "null")) {
    const chains = router?.chains.filter((/** @type {any} */ c) => this.#pairs.has(c.logits)) ?? [];
    return Promise.all(
      chains.map(async (/** @type {any} */ chain) => {
        const [logits, gate] = await Promise.all([chain.logits, chain.gate].map(async (n) => (n ? this.get(n).then((t) => floats(t.type, t.data)) : undefined)));
        return { id: chain.id, rows: weights(/** @type {ArrayLike<number>} */ (logits), gate, chain.K, router) };
      }),
    );
  }

  /**
   * The whole state as the bytes of a .safetensors file, which `load`, `ancre-rewrite freeze` and Python read.
   * @returns {Promise<Uint8Array>}
   */
  save() {
    return this.#inTurn(async () => {
      /** @type {[string, import("./safetensors.js").StoredTensor][]} */
      const tensors = [];
      for (const [name, t] of this.#state) tensors.push([name, { type: t.type, dims: [...t.dims], data: await t.getData() }]);
      const record = this.metadata["ancre.state"];
      return writeSafetensors(tensors, record ? { "ancre.state": record } : {});
    });
  }

  /**
   * Goes on from a saved state.
   * @param {Source} source a .safetensors file
   */
  async load(source) {
    const { tensors } = readSafetensors(await bytesOf(source, "the state"));
    await this.#inTurn(async () => {
      const made = [...tensors].map(([name, t]) => /** @type {[string, Tensor]} */ ([name, new this.#ort.Tensor(t.type, t.data, t.dims)]));
      await this.#take(new Map(made), "the .safetensors file");
    });
  }

  /** Frees the state and the sessions. */
  async release() {
    await this.#inTurn(async () => {
      for (const tensor of this.#state.values()) tensor.dispose();
      this.#state.clear();
      for (const { session } of [this.#train, ...this.#graphs.values()]) await session.release();
      this.#graphs.clear();
    });
  }

  /** @param {GraphSource} source */
  async #initialise(source) {
    // Copies alone: the providers have nothing to gain here.
    const { session, label, inputs } = await open(this.#ort, "init", source, { ...this.#options, executionProviders: undefined });
    try {
      if (inputs.size) throw new Error(`${label} takes inputs (${list([...inputs.keys()])}): it is no graph of \`--state init\``);
      await this.#take(new Map(Object.entries(await session.run({}))), label);
    } finally {
      await session.release();
    }
  }

  /**
   * Makes tensors the state, if they are one.
   * @param {Map<string, Tensor>} tensors
   * @param {string} from
   */
  async #take(tensors, from) {
    const { inputs, label } = this.#train;
    const missing = [...this.#pairs.keys()].filter((n) => !tensors.has(n));
    const strange = [...tensors.keys()].filter((n) => !this.#pairs.has(n));
    if (missing.length) throw new Error(`${from} lacks ${list(missing)}, which ${label} takes: is it of the same rewrite?`);
    if (strange.length) throw new Error(`${from} holds ${list(strange)}, of which ${label} has nothing: is it of the same rewrite?`);
    for (const [name, tensor] of tensors) {
      const port = /** @type {Port} */ (inputs.get(name));
      if (tensor.type !== port.type) throw new Error(`"${name}" of ${from} is ${tensor.type}, ${label} takes ${port.type}`);
      checkDims(`"${name}" of ${label}`, port.shape, tensor.dims);
    }
    for (const [name, tensor] of tensors) this.#put(name, tensor);
    const counter = [...this.#pairs.keys()].find((n) => n === "ancre.step" || n === "ancre.ancre.step");
    this.steps = counter ? Number((await this.get(counter)).data[0]) : 0;
  }

  /** @param {string} name @param {Tensor} tensor */
  #put(name, tensor) {
    this.#state.get(name)?.dispose();
    this.#state.set(name, tensor);
  }

  /**
   * What a graph is fed: the state that it takes and the batch.
   * @param {Graph} graph
   * @param {Batch} batch
   * @returns {Record<string, Tensor>}
   */
  #feeds(graph, batch) {
    if (typeof batch !== "object" || batch === null) throw new Error(`a batch is an object with a value for each of ${list(this.inputs.map((p) => p.name))}`);
    const unknown = Object.keys(batch).filter((n) => !this.#train.inputs.has(n) && !graph.inputs.has(n));
    const own = Object.keys(batch).filter((n) => this.#pairs.has(n));
    if (unknown.length) throw new Error(`${graph.label} has no input ${list(unknown)}; a batch has ${list(this.inputs.map((p) => p.name))}`);
    if (own.length) throw new Error(`${list(own)} of the batch is state, which the trainer keeps`);
    /** @type {Record<string, Tensor>} */
    const feeds = {};
    for (const [name, port] of graph.inputs) feeds[name] = this.#state.get(name) ?? toTensor(this.#ort, port, batch[name]);
    checkSizes(graph, feeds);
    checkClasses(graph, feeds);
    return feeds;
  }

  /**
   * A graph that is opened when it is first needed.
   * @param {"eval" | "infer"} which
   * @param {string} method
   * @param {string} flag
   * @returns {Promise<Graph>}
   */
  async #graph(which, method, flag) {
    return this.#inTurn(async () => {
      const source = this.#options[which];
      if (!source) throw new Error(`${method} needs STEM.ancre.${which}.onnx: write it with ${flag}, and pass it to Trainer.load as \`${which}\``);
      const known = this.#graphs.get(which);
      if (known) return known;
      const graph = await open(this.#ort, which, source, this.#options);
      /** @type {{ input: string }[]} */
      const records = JSON.parse(graph.metadata["ancre.state"] ?? "[]");
      const hidden = records.filter((s) => !graph.inputs.has(s.input));
      if (hidden.length || ![...graph.inputs.keys()].some((n) => this.#pairs.has(n))) {
        await graph.session.release();
        throw new Error(`${graph.label} ${hidden.length ? inlineState(hidden.map((s) => s.input)) : "takes no state of the training graph, so it would not show what was learned"}`);
      }
      this.#graphs.set(which, graph);
      return graph;
    });
  }

  /**
   * Runs one thing at a time: a session is not run twice at once, and no state is freed under a run.
   * @template T
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  #inTurn(work) {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => {});
    return done;
  }
}

/**
 * Opens a graph.
 * @param {any} ort
 * @param {string} name
 * @param {GraphSource} source
 * @param {LoadOptions} options
 * @returns {Promise<Graph>}
 */
async function open(ort, name, source, { executionProviders, sessionOptions, onProgress }) {
  const begin = performance.now();
  const { model, externalData } = typeof source === "object" && "model" in source ? source : { model: source, externalData: undefined };
  const label = typeof model === "string" || model instanceof URL ? String(model).split(/[\\/]/).pop() || "?" : (model instanceof Blob && /** @type {File} */ (model).name) || `\`${name}\``;
  const bytes = await bytesOf(model, `\`${name}\``);
  let metadata;
  try {
    metadata = modelMetadata(bytes);
  } catch (cause) {
    throw new Error(`${label}: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
  const options = {
    ...sessionOptions,
    ...(executionProviders && { executionProviders }),
    ...(externalData && { externalData }),
    ...(executionProviders?.some((p) => (p.name ?? p) === "webgpu") && name === "train" && { preferredOutputLocation: await stateOnDevice(metadata) }),
  };
  const local = typeof model === "string" || model instanceof URL ? path(model) : undefined;
  let session;
  try {
    session = await ort.InferenceSession.create(local ?? bytes, options);
  } catch (cause) {
    throw new Error(`${label} cannot be opened: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
  /** @type {any[]} */
  const ports = session.inputMetadata;
  if (!ports) throw new Error("this version of ONNX Runtime does not tell the types of inputs: 1.22 and later do");
  onProgress?.({ kind: "open", graph: name, seconds: (performance.now() - begin) / 1000 });
  return { session, label, metadata, inputs: new Map(ports.map((p) => [p.name, p])) };
}

/**
 * Where the outputs go that are fed back: they stay on the device.
 * @param {Record<string, string>} metadata
 */
async function stateOnDevice(metadata) {
  /** @type {{ output: string, kind: string }[]} */
  const records = JSON.parse(metadata["ancre.state"] ?? "[]");
  return Object.fromEntries(records.filter((s) => s.output && !["counter", "loss-scale"].includes(s.kind)).map((s) => [s.output, "gpu-buffer"]));
}

/**
 * @param {Source} source
 * @param {string} what
 * @returns {Promise<Uint8Array>}
 */
async function bytesOf(source, what) {
  if (source instanceof Uint8Array) return source;
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  if (source instanceof Blob) return new Uint8Array(await source.arrayBuffer());
  if (typeof source === "string" || source instanceof URL) return readBytes(source);
  throw new Error(`${what} is neither a path or URL nor bytes`);
}

/**
 * The state's inputs and outputs: of the metadata, else by their names, `w` and `w.next`.
 * @param {Graph} graph
 * @returns {Map<string, string>}
 */
function statePairs({ session, label, metadata, inputs }) {
  /** @type {string[]} */
  const outputs = session.outputNames;
  /** @type {{ input: string, output: string | null }[]} */
  const records = JSON.parse(metadata["ancre.state"] ?? "null") ?? outputs.filter((o) => o.endsWith(".next")).map((output) => ({ input: output.slice(0, -5), output }));
  const pairs = records.filter((s) => s.output !== null && outputs.includes(s.output));
  if (!pairs.length) throw new Error(`${label} gives no state (no output ends in ".next"): it is no training graph`);
  const hidden = pairs.filter((s) => !inputs.has(s.input)).map((s) => s.input);
  // Without metadata, a model's own output may end in ".next".
  if (hidden.length && (metadata["ancre.state"] || hidden.length === pairs.length)) throw new Error(`${label} ${inlineState(hidden)}`);
  return new Map(pairs.filter((s) => inputs.has(s.input)).map((s) => [s.input, /** @type {string} */ (s.output)]));
}

/** @param {string[]} names */
const inlineState = (names) =>
  `has defaults for its state (${list(names)}), as \`--state inline\` writes it. ONNX Runtime for JavaScript does not take values for such inputs: ` +
  "onnxruntime-web refuses their names, onnxruntime-node drops them without a word, and nothing would train. Write the graph with `--state init`";

/** @param {readonly string[]} names */
function list(names) {
  const shown = names.slice(0, 4).map((n) => `"${n}"`).join(", ");
  return names.length > 4 ? `${shown} and ${names.length - 4} more` : shown;
}

/**
 * Extents of one name are equal. ONNX Runtime does not mind, and computes with what is there.
 * @param {Graph} graph
 * @param {Record<string, Tensor>} feeds
 */
function checkSizes({ inputs }, feeds) {
  /** @type {Map<string, [string, number]>} */
  const seen = new Map();
  for (const [name, { shape }] of inputs) {
    shape.forEach((symbol, i) => {
      if (typeof symbol !== "string" || !symbol) return;
      const extent = feeds[name].dims[i];
      const [other, size] = seen.get(symbol) ?? [name, extent];
      seen.set(symbol, [other, size]);
      if (size !== extent) throw new Error(`input "${name}" has ${extent} along "${symbol}", "${other}" has ${size}`);
    });
  }
}

/**
 * Are labels classes, or the one that is ignored? The graph takes -1 for the last class.
 * @param {Graph} graph
 * @param {Record<string, Tensor>} feeds
 */
function checkClasses(graph, feeds) {
  for (const loss of losses(graph)) checkLabels(graph, loss, feeds);
}

/**
 * The losses of a graph.
 * @param {Graph} graph
 * @returns {Loss[]}
 */
function losses({ metadata }) {
  const record = JSON.parse(metadata["ancre.loss"] ?? "{}");
  return record.terms ?? [record];
}

/**
 * @typedef {{ target?: string | null, output?: string, class_axis?: number, ignore_index?: number | null }} Loss
 * @param {Graph} graph
 * @param {Loss} loss
 * @param {Record<string, Tensor>} feeds
 */
function checkLabels({ session, inputs }, { target, output, class_axis: axis, ignore_index: ignored }, feeds) {
  if (!target || !inputs.has(target) || !/^u?int\d+$/.test(feeds[target].type) || feeds[target].location !== "cpu") return;
  /** @type {Port | undefined} */
  const scores = session.outputMetadata.find((/** @type {Port} */ o) => o.name === output);
  const classes = axis === undefined ? undefined : scores?.shape[axis];
  const top = typeof classes === "number" ? classes - 1 : Infinity;
  const labels = feeds[target].data;
  if (!labels.length) throw new Error(`input "${target}" is empty: a loss needs a sample`);
  for (const label of labels) {
    const v = Number(label);
    if (v === ignored || (v >= 0 && v <= top)) continue;
    throw new Error(`input "${target}" holds ${v}; classes are 0 to ${top === Infinity ? "N - 1" : top}${typeof ignored === "number" ? `, ${ignored} for what is ignored` : ""}`);
  }
}

/** @param {Tensor} tensor */
const scalar = async (tensor) => floats(tensor.type, await tensor.getData())[0];

/**
 * Which input holds classes and which output has a score for each: of the metadata, else the only ones that can.
 * @param {Graph} graph
 * @param {Map<string, string>} state
 */
function classesOf(graph, state) {
  const { session, inputs } = graph;
  /** @type {Port[]} */
  const outputs = session.outputMetadata;
  for (const { target, output, ignore_index: ignored } of losses(graph)) {
    // A loss without a target compares with a teacher.
    if (target === null) continue;
    const labels = [...inputs.values()].filter((p) => !state.has(p.name) && /^u?int\d+$/.test(p.type) && p.shape.length === 1 && (target ?? p.name) === p.name);
    const scores = outputs.filter((o) => o.type?.startsWith("float") && !o.name.endsWith(".next") && o.shape.length === 2 && (output ?? o.name) === o.name);
    if (labels.length === 1 && scores.length === 1) return { labels: labels[0].name, scores: scores[0].name, ignored: ignored ?? undefined };
  }
  return undefined;
}

/**
 * How many rows have a label that counts, and how many of them have their greatest score at it.
 * @param {{ labels: string, scores: string, ignored?: number }} names
 * @param {Record<string, Tensor>} feeds
 * @param {Record<string, Tensor>} results
 */
async function judge(names, feeds, results) {
  const scores = floats(results[names.scores].type, await results[names.scores].getData());
  const labels = await feeds[names.labels].getData();
  const classes = scores.length / labels.length;
  let [right, counted] = [0, 0];
  for (let i = 0; i < labels.length; i++) {
    if (Number(labels[i]) === names.ignored) continue;
    counted++;
    let best = 0;
    for (let c = 1; c < classes; c++) if (scores[i * classes + c] > scores[i * classes + best]) best = c;
    if (best === Number(labels[i])) right++;
  }
  return { right, counted };
}
