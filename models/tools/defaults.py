"""Compare `train` with its defaults and `train` tuned by hand: exports of eight networks, each fine-tuned on two data sets.

    python models/tools/defaults.py DIR [--tool target/release/ancre-rewrite] [--seeds N] [--threads N] [--only PART]
    python models/tools/defaults.py DIR --table

The networks are those of this folder. The tool trains them first on something else (letters in fonts, Python's library), and two
are also folded, as exporters do. A seed draws the training data and the order of the samples, the same for all ways to train.
DIR/results.jsonl gets a line for each run, and what stands there is not run again, so that it can be stopped. The fonts are those of
Debian's fonts-dejavu, fonts-liberation and fonts-freefont-ttf. Needs numpy, pillow and onnxruntime.
"""

import argparse
import functools
import itertools
import json
import random
import statistics
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent.parent
SIZE, WINDOW = 32, 64
# Name: the file, what the main job is told, the data it is trained on first.
CLASSIFIER = ["--output", "pooler_output", "--loss", "cross-entropy"]
NETWORKS = {
    "ResNet-20, batch norms folded": ("resnet_cifar", [], "letters"),
    "ResNet-20, batch norms kept": ("resnet_cifar", [], "letters"),
    "MobileNetV2, folded": ("mobilenetv2", [], "letters"),
    "MobileNetV2, kept": ("mobilenetv2", [], "letters"),
    "ViT": ("vit", [], "letters"),
    "ConvNeXt": ("convnext", [], "letters"),
    "GPT-2": ("gpt2", [], "library"),
    "BERT": ("bert", CLASSIFIER, "packages"),
}
# Without batch normalisation a network needs images with a mean of zero, and longer to read letters.
PLAIN = {
    "vit": ["--steps", 2000, "--lr", 2e-3, "--schedule", "cosine", "--warmup", 200],
    "convnext": ["--steps", 800, "--lr", 4e-3, "--schedule", "cosine"],
}
# Data: classes, samples (or bytes) of training, what `train` is told.
DATA = {
    "letters": (26, 2600, ["--steps", 400, "--lr", 2e-3, "--schedule", "cosine"]),
    "library": (None, 400_000, ["--window", WINDOW, "--steps", 400, "--batch-size", 16, "--lr", 5e-3, "--schedule", "cosine"]),
    "packages": (8, 4000, ["--steps", 400, "--lr", 2e-3, "--schedule", "cosine"]),
    "Greek letters": (5, 60, ["--epochs", 8]),
    "digits": (10, 200, ["--epochs", 5]),
    "a play": (None, 40_000, ["--window", WINDOW, "--epochs", 1]),
    "Rust": (None, 40_000, ["--window", WINDOW, "--epochs", 1]),
    "which language": (4, 240, ["--epochs", 5]),
    "which format": (5, 240, ["--epochs", 5]),
}
CELLS = list(itertools.product(list(NETWORKS)[:6], ("Greek letters", "digits")))
CELLS += [("GPT-2", "a play"), ("GPT-2", "Rust"), ("BERT", "which language"), ("BERT", "which format")]
WAYS = {"default": []}
WAYS |= {f"cosine {lr}": ["--schedule", "cosine", "--lr", lr] for lr in ("3e-4", "1e-3", "3e-3")}
WAYS |= {"constant 1e-3": ["--schedule", "constant", "--lr", "1e-3"]}
PACKAGES = ["json", "http", "idlelib", "xml", "logging", "ctypes", "urllib", "sqlite3"]
FORMATS = ["lock", "drawing", "graph", "documents", "rust"]


@functools.cache
def fonts():
    names = ("DejaVuSans", "DejaVuSerif", "Liberation", "FreeS", "FreeM")
    return sorted(str(f) for f in Path("/usr/share/fonts").rglob("*.ttf") if f.name.startswith(names))


def draw(letter, rng):
    """A dark letter on light ground in a random font, size, place, angle and pair of colours, with noise."""
    image = Image.new("RGB", (64, 64), tuple(rng.choices(range(150, 256), k=3)))
    font = ImageFont.truetype(rng.choice(fonts()), rng.randint(34, 48))
    place, colour = (32 + rng.randint(-6, 6), 32 + rng.randint(-6, 6)), tuple(rng.choices(range(100), k=3))
    ImageDraw.Draw(image).text(place, letter, colour, font, anchor="mm")
    image = image.rotate(rng.uniform(-15, 15), Image.BILINEAR).resize((SIZE, SIZE), Image.BILINEAR)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 10, (SIZE, SIZE, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def text(name):
    """A text as bytes: the play, Rust sources, documents, or a package of Python's library; all of its modules for `library`."""
    if name == "play":
        parts = [np.fromfile(HERE / f"data/coriolanus_{p}.bin", "<u2") for p in ("train", "val")]
        return np.concatenate(parts).astype(np.uint8).tobytes()
    root, library = HERE.parent, Path(sysconfig.get_path("stdlib"))
    files = {"rust": root.glob("passes/src/**/*.rs"), "documents": root.glob("docs/*.md"), "library": library.glob("*.py")}
    files |= {"lock": [root / "Cargo.lock"], "drawing": [root / "docs/topology.svg"], "graph": root.glob("passes/tests/text/*.onnxtxt")}
    return b"".join(f.read_bytes() for f in sorted(files.get(name) or (library / name).rglob("*.py")))


def normalised(images):
    """Images of bytes, [N, 3, H, W], with ImageNet's mean and deviation."""
    mean, deviation = (np.array(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return ((images / 255 - mean) / deviation).astype(np.float32)


def make(data, seed, part, path, is_plain):
    """Writes a data set: the training data of a seed, or the validation data, which are the same for all seeds."""
    rng, n = (random.Random(seed + 1), DATA[data][1]) if part == "train" else (random.Random(0), 300)
    if data in ("letters", "Greek letters"):
        alphabet = "αδεσθ" if data == "Greek letters" else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        labels = [i % len(alphabet) for i in range(n)]
        arrays = {"input": np.stack([draw(alphabet[c], rng) for c in labels]).transpose(0, 3, 1, 2)}
    elif data == "digits":
        digits = np.load(HERE / f"data/digits_{part}.npz")
        rows = rng.sample(range(len(digits["labels"])), n)
        grown = [Image.fromarray(digits["input"][i, 0]).resize((SIZE, SIZE), Image.BILINEAR).convert("RGB") for i in rows]
        labels, arrays = digits["labels"][rows], {"input": np.stack([np.asarray(i).transpose(2, 0, 1) for i in grown])}
    elif data in ("a play", "Rust", "library"):
        whole = text({"a play": "play", "Rust": "rust"}.get(data, data))
        whole, begin = (whole[-20_000:], 0) if part == "val" else (whole[:-20_000], rng.randrange(len(whole) - 20_000 - n))
        whole = whole[begin:] if part == "val" else whole[begin : begin + n]
        return np.frombuffer(whole, np.uint8).astype("<u2").tofile(path)
    else:
        names = {"which language": ["play", "rust", "documents", "email"], "which format": FORMATS}.get(data, PACKAGES)
        texts = [text(name) for name in names]
        texts = [t[: len(t) * 2 // 3] if part == "train" else t[len(t) * 2 // 3 :] for t in texts]
        labels = [i % len(texts) for i in range(n)]
        begins = [rng.randrange(len(texts[c]) - WINDOW) for c in labels]
        ids = np.array([list(texts[c][at : at + WINDOW]) for c, at in zip(labels, begins)])
        arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    arrays = {name: normalised(a) if is_plain else a for name, a in arrays.items()}
    np.savez(path, labels=np.array(labels, np.int64), **arrays)


class Runs:
    def __init__(self, given):
        self.folder, self.tool, self.threads = given.folder, given.tool, given.threads

    def call(self, *arguments):
        done = subprocess.run([self.tool, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")
        return json.loads(done.stdout)

    def data(self, name, data, seed, part):
        is_plain = NETWORKS[name][0] in PLAIN
        path = self.folder / f"{data}{', normalised' if is_plain else ''}.{seed}.{part}{'.npz' if DATA[data][0] else '.bin'}"
        if not path.exists():
            make(data, seed, part, path, is_plain)
        return path

    def graph(self, model, more, data, folder):
        """The training graph of a model for a data set."""
        if not (folder / "m.train.onnx").exists():
            folder.mkdir(exist_ok=True)
            head = ["--classes", DATA[data][0]] if DATA[data][0] else []
            self.call(model, *more, *head, "--eval-graph", "--verify", "none", "-o", folder / "m.onnx", "--json")
        return folder / "m.train.onnx"

    def train(self, graph, name, data, seed, *more, course=None):
        where = ["--out", graph.parent / "run", "--overwrite", "--device", "cpu", "--threads", self.threads, "--json"]
        return self.call("train", graph, "--data", self.data(name, data, seed, "train"), *(course or DATA[data][2]), "--seed", seed, *more, *where)

    def network(self, name):
        """The export that is fine-tuned."""
        file, more, data = NETWORKS[name]
        path, trained = self.folder / f"{name}.onnx", self.folder / f"{file}.onnx"
        if not trained.exists():
            graph = self.graph(HERE / f"{file}.onnx", [*more, "--chains", "none"], data, self.folder / file)
            self.train(graph, name, data, 0, "--export", trained, course=PLAIN.get(file))
        if not path.exists() and name.endswith("folded"):
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(path)
            onnxruntime.InferenceSession(trained, options, providers=["CPUExecutionProvider"])
        return path if name.endswith("folded") else trained

    def compare(self, name, data, way, seed):
        graph = self.graph(self.network(name), NETWORKS[name][1], data, self.folder / f"{name}, {data}")
        report = self.train(graph, name, data, seed, "--val", self.data(name, data, 0, "val"), *WAYS[way])
        line = {"run": [name, data, way, seed], "best": report["best"], "last": report["validation"]}
        return line | {k: report[k] for k in ("accuracy", "lr", "jumps", "batch_size", "total_steps", "seconds")}


def table(results):
    found = {}
    for net, data, way, seed, accuracy in [(*line["run"], line["best"]["accuracy"]) for line in results]:
        found.setdefault((net, data), {}).setdefault(way, []).append(100 * accuracy)
    print(f"| export | fine-tuned on | {' | '.join(WAYS)} |\n|---|---|{'--:|' * len(WAYS)}")
    for (net, data), ways in found.items():
        spread = lambda v: f"{statistics.mean(v):.1f}" + (f" ± {statistics.stdev(v):.1f}" if len(v) > 1 else "")
        print(f"| {net} | {data} | {' | '.join(spread(ways[w]) if w in ways else '' for w in WAYS)} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tool", default=HERE.parent / "target/release/ancre-rewrite")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / "results.jsonl"
    results = [json.loads(line) for line in path.open()] if path.exists() else []
    runs, done = Runs(given), {tuple(line["run"]) for line in results}
    # Each way once for all networks, then the next: what is there when it is stopped compares.
    for seed, way, (name, data) in itertools.product(range(0 if given.table else given.seeds), WAYS, CELLS):
        if (name, data, way, seed) in done or given.only not in f"{name}, {data}":
            continue
        results.append(runs.compare(name, data, way, seed))
        with path.open("a") as file:
            print(json.dumps(results[-1]), file=file)
    table(results)


if __name__ == "__main__":
    main()
