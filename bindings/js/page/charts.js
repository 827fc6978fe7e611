// The run's curves and the heatmaps of its topology.

import uPlot from "uplot";

const AXIS = { stroke: "#59636e", grid: { stroke: "#eaeef2" }, font: "12px system-ui, sans-serif" };
/** Told apart by width and dashes too, not by colour alone; the legend shows them. */
const STYLES = [
  { stroke: "#8a4b08" },
  { stroke: "#0550ae", dash: [7, 4] },
  { stroke: "#116329", dash: [2, 3] },
  { stroke: "#6639ba", width: 3 },
  { stroke: "#24292f", width: 3, dash: [9, 5] },
  { stroke: "#bf3989", width: 3, dash: [3, 4] },
];
const BORDERS = ["solid", "dashed", "dotted"];
const KNOWN = { batch: { stroke: "#c9b8a6", width: 1 }, "running mean": STYLES[0], validation: { ...STYLES[1], points: { show: true, size: 7, fill: STYLES[1].stroke } } };

/** A chart over steps; `set(steps, ...series)` draws it anew, at most once a frame. */
export class Chart {
  #plot;
  #data;
  #frame = 0;

  constructor(host, labels, { range, digits = 3 } = {}) {
    const value = (_, v) => (v == null ? "–" : v.toFixed(digits));
    const series = labels.map((label, i) => ({
      label, value, width: 1.75, spanGaps: true, points: { show: false }, ...(KNOWN[label] ?? STYLES[i]),
    }));
    const border = (_, i) => BORDERS[STYLES.findIndex((s) => s.stroke === series[i - 1]?.stroke) % 3] ?? "solid";
    const size = () => ({ width: Math.max(200, host.clientWidth), height: 190 });
    const options = { ...size(), axes: [{ ...AXIS }, { ...AXIS, size: 60 }], scales: { x: { time: false }, y: range ? { range } : {} }, series: [{ label: "step" }, ...series], legend: { markers: { width: 2, dash: border, fill: null } } };
    this.#data = [[], ...labels.map(() => [])];
    this.#plot = new uPlot(options, this.#data, host);
    this.observer = new ResizeObserver(() => this.#plot.setSize(size()));
    this.observer.observe(host);
  }

  set(...data) {
    this.#data = data;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#plot.setData(this.#data);
    });
  }

  remove() {
    cancelAnimationFrame(this.#frame);
    this.observer.disconnect();
    this.#plot.destroy();
  }
}

/** A running mean, so that a curve of single batches can be read. */
export function smooth(values, keep = 0.9) {
  let [mean, weight] = [0, 0];
  return values.map((v) => {
    mean = keep * mean + (1 - keep) * v;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

const shade = (w) => {
  const far = Math.min(1, Math.abs(w));
  // From white to brown; beyond half of it the text is white.
  const mix = (to) => Math.round(255 + (to - 255) * far);
  return `background: rgb(${mix(138)}, ${mix(75)}, ${mix(8)}); color: ${far > 0.55 ? "#fff" : "#1f2328"}`;
};

const short = (w) => w.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");

/** Shows the weights of all chains as tables, with what each was at the start in its title. */
export function drawChains(host, chains, start) {
  host.replaceChildren(
    ...chains.map((chain, at) => {
      const table = document.createElement("table");
      table.className = "chain";
      const width = chain.rows.at(-1).length;
      const extra = width - chain.rows.length;
      const names = Array.from({ length: width }, (_, c) => (c < extra ? `e${c}` : `h${c - extra}`));
      const head = `<caption>chain ${chain.id}</caption><tr><td class="none"></td>${names.map((n) => `<th scope="col">${n}</th>`).join("")}</tr>`;
      const cell = (w, r, c, last) => {
        const was = start[at].rows[r][c];
        return `<td style="${shade(w)}"${c === last ? ' class="skip"' : ""} title="${w.toFixed(5)}, ${was.toFixed(5)} at the start">${short(w)}</td>`;
      };
      const row = (ws, r) => `<tr><th scope="row">block ${r + 1}</th>${ws.map((w, c) => cell(w, r, c, ws.length - 1)).join("")}</tr>`;
      table.innerHTML = head + chain.rows.map(row).join("");
      return table;
    }),
  );
}

/** The six weights that moved furthest over a history of topologies: their names and how far they were from their start. */
export function moved(history) {
  const start = history[0].chains;
  const cells = start.flatMap((chain, at) => chain.rows.flatMap((row, r) => row.map((_, c) => ({ at, r, c, name: `${chain.id}: ${nameOf(chain, c)} → block ${r + 1}` }))));
  const value = (h, { at, r, c }) => h.chains[at].rows[r][c];
  const far = (cell) => Math.max(...history.map((h) => Math.abs(value(h, cell) - value(history[0], cell))));
  const first = cells.map((cell) => ({ cell, by: far(cell) })).filter((f) => f.by > 0).sort((a, b) => b.by - a.by).slice(0, 6);
  return { names: first.map((f) => f.cell.name), courses: first.map((f) => history.map((h) => value(h, f.cell) - value(history[0], f.cell))) };
}

const nameOf = (chain, c) => {
  const extra = chain.rows.at(-1).length - chain.rows.length;
  return c < extra ? `e${c}` : `h${c - extra}`;
};

/** Held-back images with what the network says of them. */
export function drawPredictions(host, { images, labels, best, classes }) {
  const [, channels, height, width] = images.dims;
  const area = width * height;
  const name = (label) => classes?.[label] ?? String(label);
  const values = images.data;
  const [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  host.replaceChildren(
    ...best.map((said, i) => {
      const figure = document.createElement("div");
      figure.className = said === labels[i] ? "sample" : "sample wrong";
      const canvas = Object.assign(document.createElement("canvas"), { width, height });
      const pixels = new ImageData(width, height);
      for (let p = 0; p < area; p++) {
        for (let c = 0; c < 3; c++) pixels.data[4 * p + c] = (255 * (values[(i * channels + Math.min(c, channels - 1)) * area + p] - low)) / (high - low || 1);
        pixels.data[4 * p + 3] = 255;
      }
      canvas.getContext("2d").putImageData(pixels, 0, 0);
      figure.append(canvas, said === labels[i] ? name(said) : `${name(said)} (is ${name(labels[i])})`);
      return figure;
    }),
  );
}
