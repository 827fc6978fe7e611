"""What the scripts of this folder share: runs of `ancre-rewrite compare`, their tables in Markdown, and figures.

A script takes a directory for its runs and does again only what is missing there, so that it can be stopped. Needs numpy, onnx,
onnxruntime (which the tool finds by itself or by ORT_DYLIB_PATH) and matplotlib.
"""

import argparse
import json
import re
import statistics
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS, DOCS = HERE.parent, HERE.parent.parent / "docs"
# t(0.975, degrees of freedom) of Student's distribution, for differences that `compare` has no pair for.
STUDENT = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 6: 2.44691, 7: 2.36462, 8: 2.306, 9: 2.26216}
# Rules beside the presets. In the skip's place: what each block added instead of the states, DenseFormer's sparse rows, attention over the
# states. For all that a block reads: a softmax, at 0.1 the preset `deep`, and DenseFormer and attention residuals as published, the latter over all layers and over blocks.
OTHERS = {
    "deltas": "--parametrization free --sources deltas",
    "dense": "--parametrization free --dilation 4 --period 4",
    "attention": "",
    "input": "--form input --parametrization softmax",
    "input-0.1": "--form input --parametrization softmax --tau 0.1",
    "denseformer": "--form input --parametrization free --dilation 4 --period 4",
    "attnres": "--form input --parametrization attention --sources deltas",
    "attnres-blocks": "--form input --parametrization attention --sources deltas --summaries 4",
}
# What figures show; the tables have all.
SHOWN = ("cascaded", "default", "paper", "softmax", "input-0.1", "attention")
TITLES = {"val_loss": "validation loss", "train_loss": "training loss", "step_seconds": "time a step", "peak_memory_bytes": "peak memory"}


def parser(doc, seeds=None):
    """The options of all scripts: DIR, --tool, --threads, --only PART; with a number of seeds also --seeds and --tables."""
    first, _, rest = doc.partition("\n")
    found = argparse.ArgumentParser(description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("dir", type=Path, help="where the runs lie")
    found.add_argument("--tool", type=Path, default=MODELS.parent / "target/release/ancre-rewrite")
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--only", action="append", metavar="PART", help="make these parts only (repeatable)")
    if seeds:
        found.add_argument("--seeds", type=int, default=seeds, help="at most so many of the planned seeds; more go on from there")
        found.add_argument("--tables", action="store_true", help="run nothing; tables and the figure of what was run")
    return found


def parsed(options):
    """What was given, with whole paths and a directory that is there."""
    given = options.parse_args()
    given.dir, given.tool = given.dir.resolve(), given.tool.resolve()
    given.dir.mkdir(parents=True, exist_ok=True)
    return given


def compare(given, name, model, variants, seeds, options, scratch=True):
    """Runs a comparison in DIR/NAME, as far as it is missing there, and gives its report. Variants: {name: options}, where no options
    stand for a name that the tool knows."""
    words = ",".join(f"{v}={o}" if o else v for v, o in variants.items())
    command = [given.tool.resolve(), "compare", Path(model).resolve(), "--variants", words, "--seeds", seeds, "--out", name, "--resume"]
    command += ["--json", "--device", getattr(given, "device", "cpu"), "--threads", given.threads, *(["--from-scratch"] if scratch else []), *options]
    given.dir.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    said = subprocess.run([str(w) for w in command], cwd=given.dir, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{name}: {seeds} seeds, {time.monotonic() - began:.0f} s", flush=True)
    return json.loads(said.stdout)


def join(*reports):
    """One report of comparisons of the same runs that differ in variants; of a variant that several hold, that of most seeds."""
    variants = {}
    for variant in [v for r in reports for v in r["variants"]]:
        known = variants.setdefault(variant["name"], variant)
        if len(variant["runs"]) > len(known["runs"]):
            variants[variant["name"]] = variant
    return reports[0] | {"variants": list(variants.values())}


def values(report, variant, key="val_loss"):
    """A figure of a variant's finished runs: {seed: value}."""
    runs = [r for v in report["variants"] if v["name"] == variant for r in v["runs"]]
    return {r["seed"]: r.get(key, r["metrics"].get(key)) for r in runs if r["end"] == "finished"}


def number(x):
    """Three figures that count."""
    if x == 0:
        return "0"
    text = f"{abs(x):.3g}" if 1e-3 <= abs(x) < 1e4 else f"{abs(x):.1e}"
    return ("−" if x < 0 else "") + (f"{abs(x):.3f}" if 0.1 <= abs(x) < 10 else text)


def spread(found):
    """Mean ± deviation of numbers."""
    found = list(found)
    return number(statistics.mean(found)) + (f" ± {number(statistics.stdev(found))}" if len(found) > 1 else "")


def interval(mean, low, high):
    """A difference with its interval; bold where that does not hold zero."""
    text = ("+" if mean > 0 else "") + number(mean)
    if low is None:
        return text
    text += f" ({number(low)} to {number(high)})"
    return f"**{text}**" if low > 0 or high < 0 else text


def paired(a, b):
    """The difference a − b of {seed: value}, with its 95% interval, as text."""
    d = [a[s] - b[s] for s in a if s in b]
    half = STUDENT[len(d) - 1] * statistics.stdev(d) / len(d) ** 0.5 if len(d) > 1 else None
    mean = statistics.mean(d)
    return interval(mean, *((mean - half, mean + half) if half is not None else (None, None)))


def table(report, losses=("val_loss", "train_loss"), metrics=("accuracy",), more=None):
    """A table in Markdown: a row a variant; losses with their paired difference, other figures, and columns {title: {variant: text}}."""
    more = more or {}
    titles = [t for key in losses for t in (TITLES.get(key, key), "difference")]
    titles = ["variant", "seeds", *titles, *[TITLES.get(m, m) for m in metrics], *more]
    rows = [titles, ["---", *["--:"] * (len(titles) - 1)]]
    for v in report["variants"]:
        done = [r for r in v["runs"] if r["end"] == "finished"]
        row = [v["name"], str(len(done)) + (f" of {len(v['runs'])}" if len(done) < len(v["runs"]) else "")]
        for key in losses:
            of, d = values(report, v["name"], key), v[key] and v[key]["difference"]
            row += [spread(of.values()) if of else "", interval(d["mean"], d["low"], d["high"]) if d else ""]
        row += [spread(of.values()) if (of := values(report, v["name"], m)) else "" for m in metrics]
        rows.append([*row, *[column.get(v["name"], "") for column in more.values()]])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def log(given, name, variant, seed, key="loss"):
    """The steps of a run's log that hold the key: [(step, value)]."""
    lines = (given.dir / name / variant / f"seed-{seed}/run/log.jsonl").read_text().splitlines()
    return [(r["step"], r[key]) for r in map(json.loads, lines) if r.get(key) is not None]


def smooth(points, window=20):
    """Means over windows of steps, at their ends."""
    parts = [points[i : i + window] for i in range(0, len(points), window)]
    return [(p[-1][0], statistics.mean(y for _, y in p)) for p in parts]


def curve(given, name, variant, seeds, key="loss", window=20):
    """The mean over seeds of a smoothed log: (steps, values)."""
    logs = [smooth(log(given, name, variant, s, key), window) for s in seeds]
    return [p[0][0] for p in zip(*logs)], [statistics.mean(y for _, y in p) for p in zip(*logs)]


# Lines differ in dashes and marks, so that they can be told apart without colour.
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 1))]
MARKS, COLOURS = "osD^vPX*", ["#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#777777"]


def figure(path, panels, width=4.2, height=3.2):
    """Draws panels beside one another, with one legend: {title, x, y (labels), log: "", "x", "y" or "xy", lines: {label: (xs, ys) or
    (xs, ys, errors)}}."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "ancre", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, len(panels), figsize=(width * len(panels), height + 0.5), squeeze=False, layout="constrained")
    labels = list(dict.fromkeys(label for panel in panels for label in panel["lines"]))
    lines = {}
    for axis, panel in zip(axes[0], panels):
        for label, (xs, ys, *errors) in panel["lines"].items():
            i = labels.index(label)
            style = {"linestyle": DASHES[i % 8], "marker": MARKS[i % 8], "color": COLOURS[i % 8], "markersize": 4, "linewidth": 1.2}
            style |= {"markevery": (i * len(xs) // (8 * len(labels)), max(1, len(xs) // 8)), "markerfacecolor": "white"}
            lines[label] = axis.errorbar(xs, ys, *errors, **style, capsize=2, elinewidth=0.7)
        axis.set(title=panel["title"], xlabel=panel["x"], ylabel=panel["y"])
        scales = panel.get("log", "")
        axis.set(**{f"{s}scale": "log" for s in scales})
        axis.grid(alpha=0.3, linewidth=0.5)
        if "ticks" in panel:
            axis.set_xticks(panel["ticks"], [str(t) for t in panel["ticks"]], minor=False)
            axis.minorticks_off()
        if "limits" in panel:
            axis.set_ylim(*panel["limits"])
    names = ["input, τ = 0.1 (deep)" if label == "input-0.1" else label for label in lines]
    drawing.legend(lines.values(), names, loc="outside lower center", ncols=min(len(labels), 2 + 2 * len(panels)), frameon=False)
    is_svg = str(path).endswith("svg")
    drawing.savefig(path, metadata={"Date": None} if is_svg else None)
    plt.close(drawing)
    if is_svg:
        # Hundredths of a point are more than anyone sees.
        Path(path).write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", Path(path).read_text()))
