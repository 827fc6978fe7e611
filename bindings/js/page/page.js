// What the page shows and asks for; the worker trains.

import "uplot/dist/uPlot.min.css";
import { Chart, drawChains, drawPredictions, moved, smooth } from "./charts.js";

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const send = (kind, more = {}) => worker.postMessage({ kind, ...more });

const lossChart = new Chart($("loss-chart"), ["batch", "running mean", "validation"]);
const accuracyChart = new Chart($("accuracy-chart"), ["running mean", "validation"], { range: [0, 1] });
let movedChart;

/** What has been seen of the run: a row for each step, the topology at some of them. */
let seen = { steps: [], loss: [], accuracy: [], valLoss: [], valAccuracy: [] };
let history = [];
let state = { opened: false, data: false, running: false, paused: false };
let rate = 0;

function refresh(changes = {}) {
  Object.assign(state, changes);
  $("start").disabled = !state.opened || !state.data || state.running;
  $("pause").disabled = $("stop").disabled = !state.running;
  $("pause").textContent = state.paused ? "Go on" : "Pause";
  $("save").disabled = !state.opened;
  $("device").disabled = $("digits").disabled = state.running;
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

// Network

let graphs;
/** Loads the chosen data again once other graphs are open. */
let follow;

/** Opens graphs; `data` loads the data that belong to them. */
function openGraphs(files, data) {
  const chosen = {};
  for (const file of files) {
    const part = /\.(train|init|eval|infer)\.onnx$/.exec(file.name)?.[1] ?? (file.name.endsWith(".safetensors") ? "state" : undefined);
    if (!part) return fail(`${file.name}: expected names that end in .train.onnx, .init.onnx, .eval.onnx, .infer.onnx or .safetensors`);
    chosen[part] = file;
  }
  if (chosen.init && chosen.state) delete chosen.init;
  graphs = chosen;
  if (data || follow?.shipped) follow = data;
  reopen();
}

function reopen() {
  fail("");
  history = [];
  seen = { steps: [], loss: [], accuracy: [], valLoss: [], valAccuracy: [] };
  refresh({ opened: false, data: false });
  $("data-said").textContent = "";
  $("network-said").textContent = "opening …";
  send("open", { graphs, device: $("device").value });
}

const shipped = async (name) => {
  const response = await fetch(new URL(`digits/${name}`, document.baseURI));
  if (!response.ok) throw new Error(`digits/${name} cannot be fetched: ${response.status}`);
  return new File([await response.blob()], name.split("/").pop());
};

/** Opens the digits that come with the page; WebGPU has graphs of its own. */
async function openDigits() {
  try {
    const folder = $("device").value === "webgpu" ? "webgpu/" : "";
    const files = await Promise.all(["train", "init", "eval", "infer"].map((part) => shipped(`${folder}resnet_batch1.ancre.${part}.onnx`)));
    const [train, val] = await Promise.all(["digits_train.npz", "digits_val.npz"].map(shipped));
    openGraphs(files, Object.assign(() => send("data", { npz: { train, val } }), { shipped: true }));
  } catch (e) {
    fail(e.message);
  }
}
$("digits").onclick = openDigits;
$("graph-files").onchange = (e) => openGraphs([...e.target.files]);
$("device").onchange = () => graphs && (follow?.shipped ? openDigits() : reopen());

// Data

function openData(files) {
  fail("");
  if (!state.opened) return fail("choose the network first");
  const npz = files.filter((f) => f.path.endsWith(".npz")).map((f) => f.file);
  if (npz.length) {
    const val = npz.length > 1 ? npz.find((f) => /val|test/i.test(f.name)) : undefined;
    follow = () => send("data", { npz: { train: npz.find((f) => f !== val), val } });
  } else follow = () => send("data", { files, scale: $("scale").value });
  $("data-said").textContent = "reading …";
  follow();
}
const pathOf = (file) => ({ path: file.webkitRelativePath || file.name, file });
$("data-files").onchange = (e) => openData([...e.target.files].map(pathOf));
$("data-folder").onchange = (e) => openData([...e.target.files].map(pathOf));
$("scale").onchange = () => state.data && follow?.();

/** All files of a drop, folders included, with their paths. */
async function dropped(transfer) {
  const walk = async (entry, prefix) => {
    if (entry.isFile) return [{ path: prefix + entry.name, file: await new Promise((ok, no) => entry.file(ok, no)) }];
    const reader = entry.createReader();
    const found = [];
    // A reader hands out its entries in portions.
    for (let some; (some = await new Promise((ok, no) => reader.readEntries(ok, no))).length; ) found.push(...some);
    return (await Promise.all(found.map((e) => walk(e, `${prefix}${entry.name}/`)))).flat();
  };
  const entries = [...transfer.items].map((i) => i.webkitGetAsEntry()).filter(Boolean);
  return (await Promise.all(entries.map((e) => walk(e, "")))).flat();
}
for (const [id, take] of [["drop-graphs", (files) => openGraphs(files.map((f) => f.file))], ["drop-data", openData]]) {
  const box = $(id);
  box.ondragover = (e) => (e.preventDefault(), box.classList.add("over"));
  box.ondragleave = () => box.classList.remove("over");
  box.ondrop = async (e) => {
    e.preventDefault();
    box.classList.remove("over");
    take(await dropped(e.dataTransfer));
  };
}

// Training

$("start").onclick = () => {
  fail("");
  refresh({ running: true, paused: false });
  const number = (id) => Number($(id).value);
  send("train", { epochs: number("epochs"), batchSize: number("batch"), lr: number("lr"), schedule: $("schedule").value, seed: number("seed") });
};
$("pause").onclick = () => {
  refresh({ paused: !state.paused });
  send("pause", { on: state.paused });
};
$("stop").onclick = () => send("stop");
$("save").onclick = () => send("save");
$("history").oninput = () => showTopology(Number($("history").value));

function showTopology(at) {
  if (!history.length) return;
  drawChains($("chains"), history[at].chains, history[0].chains);
  $("topology-step").textContent = `Step ${history[at].step} of ${history.at(-1).step}.`;
}

function addTopology(step, chains) {
  if (!chains?.length) return;
  const slider = $("history");
  const atEnd = Number(slider.value) === Number(slider.max);
  history.push({ step, chains });
  slider.max = history.length - 1;
  if (atEnd) slider.value = slider.max;
  $("topology").hidden = false;
  showTopology(Number(slider.value));
  const { names, courses } = moved(history);
  $("moved").hidden = !names.length;
  if (!names.length) return;
  if (movedChart?.names !== names.join()) {
    movedChart?.remove();
    movedChart = Object.assign(new Chart($("moved-chart"), names, { digits: 4 }), { names: names.join() });
  }
  movedChart.set(history.map((h) => h.step), ...courses);
}

function drawCurves() {
  lossChart.set(seen.steps, seen.loss, smooth(seen.loss), seen.valLoss);
  accuracyChart.set(seen.steps, smooth(seen.accuracy), seen.valAccuracy);
}

const clock = (s) => (s < 90 ? `${Math.ceil(s)} s` : `${Math.ceil(s / 60)} min`);

const on = {
  ready({ isolated, webgpu }) {
    $("device").querySelector("[value=webgpu]").disabled = !webgpu;
    if (!webgpu) $("device").querySelector("[value=webgpu]").textContent = "WebGPU (not in this browser)";
    document.documentElement.dataset.isolated = isolated;
  },
  status: ({ text }) => ($("network-said").textContent = text),
  opened({ device, inputs, states, canEvaluate, canPredict, notes, seconds, placement, chains, loss }) {
    const ports = inputs.map((p) => `${p.name}: ${p.type} [${p.shape.join(", ")}]`).join("\n");
    const lacks = [!canEvaluate && "no evaluation graph, so there is no validation", !canPredict && "no inference graph, so no predictions are shown"].filter(Boolean);
    $("network-said").textContent = [`open after ${seconds.toFixed(1)} s`, ...notes, ports, `${states} tensors of state${loss ? `, loss ${loss}` : ""}`, ...lacks].join("\n");
    showPlacement(placement);
    $("device").value = device;
    refresh({ opened: true });
    $("topology").hidden = !chains.length;
    movedChart?.remove();
    movedChart = undefined;
    $("history").max = $("history").value = 0;
    drawCurves();
    addTopology(0, chains);
    follow?.();
  },
  data({ samples, held, classes, note }) {
    $("data-said").textContent = [`${samples} samples to train on, ${held} held back`, classes && `classes: ${classes.join(", ")}`, note].filter(Boolean).join("\n");
    refresh({ data: true });
  },
  step({ step, loss, accuracy, seconds, done, total, epoch, samples, chains }) {
    seen.steps.push(step);
    seen.loss.push(loss);
    seen.accuracy.push(accuracy ?? null);
    seen.valLoss.push(null);
    seen.valAccuracy.push(null);
    rate = done === 1 ? seconds : 0.9 * rate + 0.1 * seconds;
    $("progress").value = done / total;
    $("training-said").textContent = `step ${done} of ${total}, epoch ${epoch}: loss ${loss.toFixed(4)}; ${(samples / rate).toFixed(0)} samples a second, ${clock((total - done) * rate)} left`;
    drawCurves();
    addTopology(step, chains);
  },
  validation({ epoch, loss, accuracy, samples }) {
    seen.valLoss[seen.valLoss.length - 1] = loss;
    seen.valAccuracy[seen.valAccuracy.length - 1] = accuracy ?? null;
    drawCurves();
    state.verdict = `validation after epoch ${epoch}: loss ${loss.toFixed(4)}${accuracy === undefined ? "" : `, ${(100 * accuracy).toFixed(1)}% of ${samples} right`}`;
    $("training-said").textContent += `\n${state.verdict}`;
  },
  predictions(p) {
    $("predictions").hidden = false;
    const wrong = p.best.filter((b, i) => b !== p.labels[i]).length;
    $("predictions").querySelector("figcaption").textContent = `Held-back samples, as the network reads them now: ${wrong} of ${p.best.length} wrong`;
    drawPredictions($("samples"), p);
  },
  finished({ stopped, steps }) {
    refresh({ running: false, paused: false });
    $("training-said").textContent = [`${stopped ? "stopped" : "finished"} after ${steps} steps`, state.verdict, "The state can be downloaded; `ancre-rewrite freeze STEM.ancre.onnx --state FILE` deploys it."].filter(Boolean).join("\n");
  },
  saved({ bytes, step }) {
    const url = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
    Object.assign(document.createElement("a"), { href: url, download: `state-${step}.safetensors` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  },
  error({ during, text }) {
    fail(text);
    if (during === "open") $("network-said").textContent = "";
    if (during === "open") graphs = undefined;
    if (during === "data") $("data-said").textContent = "";
    if (during === "train") refresh({ running: false, paused: false });
  },
};

function showPlacement(placement) {
  $("placement").hidden = !placement;
  if (!placement) return;
  const { device, fallback, operators } = placement;
  $("placement").querySelector("summary").textContent = `${device} nodes run on WebGPU, ${fallback} fall back to WebAssembly`;
  $("placement").querySelector("div").textContent = operators.map(([name, n]) => `${n} ${name}`).join(", ");
}

worker.onmessage = ({ data: { kind, ...message } }) => on[kind](message);
worker.onerror = (e) => fail(e.message || "the worker could not be started: serve the page over http, browsers start none from file:");
refresh();
