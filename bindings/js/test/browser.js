// The page in Chromium, headless: `npm run test:browser`. CHROMIUM names the browser; screenshots go to page/dist/shots.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { crc32, deflateSync } from "node:zlib";
import { build } from "esbuild";
import puppeteer from "puppeteer-core";
import { readSafetensors } from "../src/index.js";
import { readNpz } from "../page/data.js";
import { buildPage, bundle, dist } from "../page/build.js";
import { serve } from "../page/serve.js";
import { root, run, tool } from "./graphs.js";

const shots = join(dist, "shots");
const downloads = mkdtempSync(join(tmpdir(), "ancre-js-"));
let browser, isolated, plain;

before(async () => {
  await buildPage(tool);
  mkdirSync(shots);
  // The losses of the first steps, by the package alone; test/losses.js makes the table of docs/bindings.md with it.
  await build({ ...bundle, entryPoints: [join(import.meta.dirname, "losses-web.js")], outdir: dist });
  [isolated, plain] = await Promise.all([serve(dist), serve(dist, { isolated: false })]);
  const executablePath = process.env.CHROMIUM ?? execFileSync("which", ["chromium"], { encoding: "utf8" }).trim();
  // A software adapter lets WebGPU be looked at where there is no graphics card.
  browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"] });
});
after(async () => {
  await browser?.close();
  isolated?.close();
  plain?.close();
});

/** Opens the page; any other host asked for, and any error of its scripts, fails the test that ends with `check`. */
async function open(server) {
  const page = await browser.newPage();
  await page.setViewport({ width: 1280, height: 1000 });
  const faults = [];
  page.on("pageerror", (e) => faults.push(e.message));
  page.on("request", (r) => /^(blob|data):/.test(r.url()) || r.url().startsWith(server.url) || faults.push(`asks for ${r.url()}`));
  await page.goto(server.url);
  const text = (id) => page.$eval(`#${id}`, (e) => e.textContent);
  const until = async (condition, what) => {
    const seen = await page.waitForFunction(`document.querySelector("#error:not([hidden])") || (${condition})`, { timeout: 90_000 }).catch((e) => assert.fail(`${what}: ${e.message}`));
    await seen.dispose();
    assert.equal(await text("error"), "", what);
  };
  const set = (id, value) => page.$eval(`#${id}`, (e, v) => (e.value = v), value);
  const shot = (name) => page.screenshot({ path: join(shots, `${name}.png`), fullPage: true });
  return { page, text, until, set, shot, check: () => assert.deepEqual(faults, []) };
}

const ready = `!document.querySelector("#start").disabled`;
const opened = `!document.querySelector("#save").disabled`;
const finished = `/^finished/.test(document.querySelector("#training-said").textContent)`;

test("the digits train, the topology moves, the state can be downloaded and deployed", async () => {
  const { page, text, until, set, shot, check } = await open(isolated);
  await shot("empty");
  await page.click("#digits");
  await until(ready, "opening");
  assert.match(await text("network-said"), /WebAssembly on [2-4] threads\ninput: float32 \[batch, 1, 8, 8\]\nlabels: int64 \[batch\]/);
  assert.match(await text("data-said"), /1437 samples to train on, 360 held back/);
  assert.equal((await page.$$("#chains .chain")).length, 3);
  const start = await text("chains");
  await set("epochs", 2);
  await page.click("#start");
  await until(`/step [1-9]/.test(document.querySelector("#training-said").textContent)`, "the first steps");
  await page.click("#pause");
  await until(`document.querySelector("#pause").textContent === "Go on"`, "pausing");
  await new Promise((wake) => setTimeout(wake, 1000));
  const still = await text("training-said");
  await new Promise((wake) => setTimeout(wake, 700));
  assert.equal(await text("training-said"), still);
  await shot("paused");
  await page.click("#pause");
  await until(finished, "training");
  const [, accuracy] = /([\d.]+)% of 360 right/.exec(await text("training-said"));
  assert.ok(Number(accuracy) > 80, `${accuracy}%`);
  assert.notEqual(await text("chains"), start);
  assert.match(await text("predictions"), /\d+ of 24 wrong/);
  await page.$eval("#history", (e) => ((e.value = 0), e.dispatchEvent(new Event("input"))));
  assert.equal(await text("chains"), start);
  await page.$eval("#history", (e) => ((e.value = e.max), e.dispatchEvent(new Event("input"))));
  await new Promise((wake) => setTimeout(wake, 300));
  await shot("trained");

  const session = await page.createCDPSession();
  await session.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: downloads });
  await page.click("#save");
  let file;
  for (let i = 0; i < 100 && !file; i++) {
    await new Promise((wake) => setTimeout(wake, 100));
    file = readdirSync(downloads).find((f) => f === "state-90.safetensors");
  }
  assert.ok(file, "no download");
  assert.equal(readSafetensors(readFileSync(join(downloads, file))).tensors.get("ancre.step").data[0], 90n);
  run("freeze", join(dist, "digits/resnet_batch1.ancre.onnx"), "--state", join(downloads, file), "-o", join(downloads, "frozen.onnx"));
  check();
  await page.close();
});

/** A grey PNG. */
function png(pixels, width, height) {
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const out = Buffer.alloc(body.length + 8);
    out.writeUInt32BE(data.length);
    body.copy(out, 4);
    out.writeUInt32BE(crc32(body), body.length + 4);
    return out;
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width);
  header.writeUInt32BE(height, 4);
  header[8] = 8;
  const rows = Array.from({ length: height }, (_, y) => [0, ...pixels.subarray(y * width, (y + 1) * width)]).flat();
  return Buffer.concat([Buffer.from("89504e470d0a1a0a", "hex"), chunk("IHDR", header), chunk("IDAT", deflateSync(Buffer.from(rows))), chunk("IEND", Buffer.alloc(0))]);
}

test("folders of images train, on one thread where the page is not isolated; files that do not fit are refused in words", async () => {
  const { input, labels } = readNpz(readFileSync(join(root, "models/data/digits_train.npz")));
  const folder = join(downloads, "images");
  for (let i = 0; i < 200; i++) {
    const into = join(folder, `digit ${labels.data[i]}`);
    mkdirSync(into, { recursive: true });
    writeFileSync(join(into, `${i}.png`), png(input.data.subarray(i * 64, (i + 1) * 64), 8, 8));
  }
  const { page, text, until, set, shot, check } = await open(plain);
  const choose = async (id, ...files) => (await page.$(`#${id}`)).uploadFile(...files);
  const refused = async (why) => {
    await page.waitForFunction(`!document.querySelector("#error").hidden`, { timeout: 30_000 });
    assert.match(await text("error"), why);
  };
  await choose("graph-files", join(root, "models/data/digits_val.npz"));
  await refused(/digits_val\.npz: expected names that end in/);
  await choose("graph-files", join(dist, "digits/resnet_batch1.ancre.train.onnx"));
  await refused(/one of `init` .* gives the state of the start/);
  await shot("refused");
  await choose("graph-files", ...["train", "init", "eval"].map((part) => join(dist, `digits/resnet_batch1.ancre.${part}.onnx`)));
  await until(`/no inference graph/.test(document.querySelector("#network-said").textContent)`, "opening");
  assert.match(await text("network-said"), /WebAssembly on 1 thread \(the page is not cross-origin isolated/);
  await choose("data-folder", folder);
  await until(ready, "reading images");
  assert.match(await text("data-said"), /180 samples to train on, 20 held back\nclasses: digit 0, digit 1,.*digit 9\n10 classes; images resized to 8 × 8, scaled to 0 … 1; a tenth is held back/);
  await set("epochs", 1);
  await page.click("#start");
  await until(finished, "training");
  assert.match(await text("training-said"), /finished after 6 steps\nvalidation after epoch 1: loss [\d.]+, [\d.]+% of 20 right/);
  check();
  await page.close();
});

test("graphs for WebGPU open there; what cannot is left to WebAssembly, with the reason", async () => {
  const { page, text, until, shot, check } = await open(isolated);
  await until(`document.documentElement.dataset.isolated`, "start");
  assert.equal(await page.$eval("#device option[value=webgpu]", (e) => e.disabled), false);
  await page.select("#device", "webgpu");
  await page.click("#digits");
  await until(ready, "opening");
  assert.match(await text("network-said"), /WebGPU, the rest in WebAssembly on/);
  const [, device, fallback] = /(\d+) nodes run on WebGPU, (\d+) fall back/.exec(await text("placement"));
  assert.ok(Number(device) > 2000 && Number(fallback) < 300, `${device} and ${fallback}`);
  await shot("webgpu");
  await (await page.$("#graph-files")).uploadFile(...["train", "init"].map((part) => join(dist, `digits/resnet_batch1.ancre.${part}.onnx`)));
  await until(`/WebGPU cannot open/.test(document.querySelector("#network-said").textContent) && ${opened}`, "the other graph");
  assert.match(await text("network-said"), /WebGPU cannot open this graph \(.*optimizer\/Cast.*\)\nWebAssembly on/);
  assert.equal(await page.$eval("#device", (e) => e.value), "wasm");
  check();
  await page.close();
});

test("the first steps have the losses of Node", async () => {
  const { page, check } = await open(isolated);
  const losses = await page.evaluate(async () => (await import("/losses-web.js")).losses("/digits/resnet_batch1.ancre."));
  writeFileSync(join(shots, "losses.json"), JSON.stringify(losses));
  const { nodeLosses } = await import("./losses.js");
  const node = await nodeLosses(join(dist, "digits/resnet_batch1.ancre."), "onnxruntime-web");
  losses.forEach((v, i) => assert.ok(Math.abs(v - node[i]) < (i < 3 ? 1e-4 : 2e-2) * v, `step ${i + 1}: ${v} and ${node[i]}`));
  check();
  await page.close();
});
