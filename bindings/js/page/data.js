// Data sets in the browser: arrays of a .npz, or folders of images, as batches for a training graph.

import { unzipSync } from "fflate";

/** Mean and deviation of ImageNet's images, which networks of three channels are usually trained with. */
const IMAGENET = { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
const IMAGE = /\.(png|jpe?g|bmp|webp|gif|avif)$/i;

const NPY = {
  f4: Float32Array, f8: Float64Array, i8: BigInt64Array, u8: BigUint64Array, i4: Int32Array, u4: Uint32Array,
  i2: Int16Array, u2: Uint16Array, i1: Int8Array, u1: Uint8Array, b1: Uint8Array,
};

/** The array of a .npy file: `{data, dims}`. */
export function readNpy(name, bytes) {
  const fail = (why) => new Error(`${name}: ${why}`);
  if (bytes.length < 12 || String.fromCharCode(...bytes.subarray(1, 6)) !== "NUMPY") throw fail("not a .npy file");
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [length, start] = bytes[6] === 1 ? [view.getUint16(8, true), 10] : [view.getUint32(8, true), 12];
  const header = new TextDecoder().decode(bytes.subarray(start, start + length));
  const descr = /'descr': *'([<|=>])(\w+)'/.exec(header);
  const shape = /'shape': *\(([^)]*)\)/.exec(header);
  const array = NPY[descr?.[2]];
  if (!array || !shape) throw fail(`arrays of type ${/'descr': *([^,]*)/.exec(header)?.[1]} are not read`);
  if (descr[1] === ">") throw fail("big-endian arrays are not read");
  const dims = shape[1].split(",").filter((d) => d.trim()).map(Number);
  if (/'fortran_order': *True/.test(header) && dims.length > 1) throw fail("arrays in Fortran's order are not read: numpy.ascontiguousarray");
  const count = dims.reduce((a, b) => a * b, 1);
  const body = new Uint8Array(bytes.subarray(start + length));
  if (body.length < count * array.BYTES_PER_ELEMENT) throw fail("it ends within its array");
  return { data: new array(body.buffer, 0, count), dims };
}

/** The arrays of a .npz file by name. */
export function readNpz(bytes) {
  const files = Object.entries(unzipSync(bytes)).filter(([name]) => name.endsWith(".npy"));
  return Object.fromEntries(files.map(([name, file]) => [name.slice(0, -4), readNpy(name, file)]));
}

/** Samples by input name, along the first axis of each array. */
export class Dataset {
  constructor(arrays, classes) {
    this.arrays = arrays;
    this.classes = classes;
    this.size = Object.values(arrays)[0].dims[0];
  }

  /**
   * The arrays that a graph's inputs ask for. As `ancre-rewrite train` does it, bytes become 0 … 1 for float inputs.
   * @param {{ name: string, type: string, shape: readonly (number | string)[] }[]} inputs
   */
  static of(arrays, inputs, classes) {
    const missing = inputs.filter((p) => !arrays[p.name]).map((p) => p.name);
    if (missing.length) throw new Error(`the data have no array “${missing.join("”, “")}”; they have “${Object.keys(arrays).join("”, “")}”`);
    const taken = Object.fromEntries(inputs.map((p) => [p.name, arrays[p.name]]));
    const sizes = new Set(Object.values(taken).map((a) => a.dims[0]));
    if (sizes.size !== 1) throw new Error(`the arrays have different numbers of samples: ${[...sizes].join(", ")}`);
    if (!Object.values(taken)[0].dims[0]) throw new Error("the data have no samples");
    for (const p of inputs) {
      const { data, dims } = taken[p.name];
      if (dims.length !== p.shape.length || dims.some((d, i) => i > 0 && typeof p.shape[i] === "number" && p.shape[i] !== d)) {
        throw new Error(`“${p.name}” of the data has the shape [${dims}], the graph takes [${p.shape}]`);
      }
      if (p.type.startsWith("float") && data instanceof Uint8Array) taken[p.name] = { data: Float32Array.from(data, (b) => b / 255), dims };
    }
    return new Dataset(taken, classes);
  }

  /** Samples by their numbers. */
  batch(indices) {
    const take = ({ data, dims }) => {
      const each = data.length / dims[0];
      const out = new data.constructor(indices.length * each);
      indices.forEach((from, to) => out.set(data.subarray(from * each, (from + 1) * each), to * each));
      return { data: out, dims: [indices.length, ...dims.slice(1)] };
    };
    return Object.fromEntries(Object.entries(this.arrays).map(([name, array]) => [name, take(array)]));
  }

  /** Batches in order; where the graph's batch is fixed, without what does not fill one. */
  *batches(size, fixed, order = [...Array(this.size).keys()]) {
    for (let at = 0; at < order.length; at += size) {
      const indices = order.slice(at, at + size);
      if (!fixed || indices.length === size) yield this.batch(indices);
    }
  }

  /** Two data sets, the second with so many of the samples, drawn at random. */
  split(share, random) {
    const order = shuffled(this.size, random);
    const held = Math.max(1, Math.round(this.size * share));
    const part = (indices) => new Dataset(this.batch(indices), this.classes);
    return [part(order.slice(held)), part(order.slice(0, held))];
  }
}

/** Numbers in [0, 1) that follow from a seed (mulberry32). */
export function randomFrom(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** 0 … n - 1 in random order. */
export function shuffled(n, random) {
  const order = [...Array(n).keys()];
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/**
 * Folders of images, one a class, in the order of their names; or such folders `train` and `val` in one.
 * @param {{ path: string, file: Blob }[]} files
 * @param {"0-1" | "0-255" | "imagenet" | "auto"} scale
 * @param {(text: string) => void} tell
 * @returns {Promise<{ train: Dataset, val: Dataset | undefined, note: string }>}
 */
export async function readFolders(files, inputs, scale, tell) {
  const images = files.filter((f) => IMAGE.test(f.path)).map((f) => ({ ...f, parts: f.path.split("/").filter(Boolean) }));
  if (!images.length) throw new Error("there are no images in the folder");
  if (images.some((f) => f.parts.length < 2)) throw new Error("images must lie in one folder for each class");
  const set = (f) => f.parts.at(-3)?.toLowerCase();
  const isSplit = images.every((f) => set(f) === "train" || set(f) === "val");
  const classes = [...new Set(images.map((f) => f.parts.at(-2)))].sort();
  if (classes.length < 2) throw new Error(`one folder of images a class is expected; there is only “${classes[0]}”`);

  const image = inputs.find((p) => p.shape.length === 4);
  const target = inputs.find((p) => p !== image);
  if (!image || inputs.length !== 2 || target.shape.length !== 1) throw new Error("folders of images suit a graph with one input of images and one of classes");
  const first = [1, 3].includes(image.shape[1]);
  const [channels, height, width] = first ? image.shape.slice(1) : [image.shape[3], image.shape[1], image.shape[2]];
  if (![1, 3].includes(channels)) throw new Error(`images of ${channels} channels are not read`);
  if (typeof height !== "number" || typeof width !== "number") throw new Error(`the graph's images have no fixed size: [${image.shape}]`);

  const how = scale === "auto" ? (channels === 3 ? "imagenet" : "0-1") : scale;
  const { mean, std } = how === "imagenet" ? IMAGENET : { mean: [0, 0, 0], std: how === "0-255" ? [1 / 255, 1 / 255, 1 / 255] : [1, 1, 1] };
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  const decode = async ({ path, file }, into, at) => {
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Error(`${path} is no image that this browser can decode`);
    });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
    const pixels = context.getImageData(0, 0, width, height).data;
    const area = width * height;
    for (let i = 0; i < area; i++) {
      const rgb = [pixels[4 * i], pixels[4 * i + 1], pixels[4 * i + 2]];
      // Luminance as in ITU-R 601, which Pillow and `train` use.
      const values = channels === 3 ? rgb : [0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]];
      values.forEach((v, c) => (into[at + (first ? c * area + i : i * channels + c)] = (v / 255 - mean[c]) / std[c]));
    }
  };
  const gather = async (chosen) => {
    const each = channels * height * width;
    const pixels = new Float32Array(chosen.length * each);
    for (const [i, f] of chosen.entries()) {
      await decode(f, pixels, i * each);
      if (i % 50 === 49) tell(`${i + 1} of ${chosen.length} images decoded`);
    }
    const labels = Int32Array.from(chosen, (f) => classes.indexOf(f.parts.at(-2)));
    const dims = [chosen.length, ...(first ? [channels, height, width] : [height, width, channels])];
    return Dataset.of({ [image.name]: { data: pixels, dims }, [target.name]: { data: labels, dims: [chosen.length] } }, inputs, classes);
  };
  const of = (name) => images.filter((f) => !isSplit || set(f) === name);
  const train = await gather(of("train"));
  const val = isSplit && of("val").length ? await gather(of("val")) : undefined;
  const note = `${classes.length} classes; images resized to ${height} × ${width}, ${{ imagenet: "normalised with ImageNet's mean and deviation", "0-1": "scaled to 0 … 1", "0-255": "0 … 255" }[how]}`;
  return { train, val, note };
}
