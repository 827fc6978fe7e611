"""What the training graphs of models do: the loss that is chosen, the batch that is proved, three steps, and whether the loss
falls as its gradient says.

    python models/tools/trains.py [--tool target/release/ancre-rewrite] [--batch N] [--loss LOSS] [--threads N] MODEL.onnx...

Prints a row for each model, as in `ZOO.md`: trained tensors; loss; how far a sample of a batch was at most from the same sample
alone; the losses of three AdamW steps on one random batch, at the first rate of 1e-4 and 1e-5 at which they fall; the slope (the
fall of the loss in one small SGD step, over rate times squared gradient norm: 1 when the gradient is right along its own
direction); nodes without a CUDA kernel. The models need their weights. Needs numpy and onnxruntime.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent.parent
TYPES = {
    "tensor(float)": "f4",
    "tensor(double)": "f8",
    "tensor(float16)": "f2",
    "tensor(int64)": "i8",
    "tensor(int32)": "i4",
    "tensor(bool)": "?",
}
RATES = (1e-4, 1e-5)
SMALL = 1e-3  # part of the loss that the small step is to take away


class Refused(Exception):
    """The tool's own words."""


def emit(tool, model, folder, *flags):
    command = [tool, model, "-o", f"{folder}/", "--state", "inline", "--json", *flags]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stderr.strip())
    report = json.loads(done.stdout)
    if "reason" in report["training"]:
        raise Refused(report["training"]["reason"])
    path = next(o["path"] for o in report["outputs"] if o["kind"] == "train")
    return report, path


def open_session(path, threads):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def random_batch(session, batch, ids):
    """Normal numbers; labels below the number of classes; ids in the first integer input, ones (a mask) in the others."""
    rng = np.random.default_rng(1)
    described = json.loads(session.get_modelmeta().custom_metadata_map["ancre.loss"])
    logits = next(o for o in session.get_outputs() if o.name == described["output"])
    last = described["kind"] == "next-token" or len(logits.shape) < 3
    classes = logits.shape[-1 if last else 1]
    feeds, integers = {}, 0
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else batch for d in i.shape]
        if i.name == "lr":
            continue
        if i.name == described["target"] and "int" in i.type:
            values = rng.integers(0, classes, shape)
        elif "int" in i.type:
            values = np.ones(shape) if integers else rng.integers(0, ids, shape)
            integers += 1
        else:
            values = rng.standard_normal(shape)
        feeds[i.name] = np.asarray(values).astype(TYPES[i.type])
    return feeds


def steps(session, feeds, rate, count):
    names = [o.name for o in session.get_outputs()]
    state, losses, norms = {}, [], []
    for _ in range(count):
        fed = {**feeds, "lr": np.array(rate, np.float32), **state}
        results = dict(zip(names, session.run(names, fed)))
        state = {n.removesuffix(".next"): v for n, v in results.items() if n.endswith(".next")}
        losses.append(float(results["loss"]))
        norms.append(float(results["grad_norm"]))
    return losses, norms


def measure(tool, model, batch=4, loss=None, threads=1, ids=100, inspect=lambda report, path: None):
    """Everything a row says. `inspect` sees the report and the training graph's path while that exists."""
    given = ["--loss", loss] if loss else []
    with tempfile.TemporaryDirectory() as folder:
        report, path = emit(tool, model, folder, *given)
        said = inspect(report, path)
        session = open_session(path, threads)
        feeds = random_batch(session, batch, ids)
        for rate in RATES:
            losses, norms = steps(session, feeds, rate, 3)
            if losses[2] < losses[1] < losses[0]:
                break
        del session
    change = report["training"]["batch_change"]
    with tempfile.TemporaryDirectory() as folder:
        # The same batch, which the first graph proved.
        same = ["--batch", "dynamic"] if change else []
        _, path = emit(tool, model, folder, *given, *same, "--optimizer", "sgd", "--verify", "none")
        session = open_session(path, threads)
        small = SMALL * losses[0] / norms[0] ** 2
        after, _ = steps(session, feeds, small, 2)
        del session
    return {
        "report": report,
        "losses": losses,
        "rate": rate,
        "slope": (after[0] - after[1]) / (SMALL * losses[0]),
        "batch": change["proof"]["max_abs"] if change and change["proof"] else "dynamic",
        "inspected": said,
    }


def line(cells):
    return f"| {' | '.join(map(str, cells))} |"


def row(model, m):
    training = m["report"]["training"]
    if not isinstance(training["batch"], str):
        batch = f"only {training['batch']}"
    else:
        batch = m["batch"] if m["batch"] == "dynamic" else f"{m['batch']:.1e}" if m["batch"] else "0"
    losses = " ".join(f"{v:.3f}" for v in m["losses"])
    fallbacks = len(m["report"]["placement"]["fallbacks"])
    return line([
        Path(model).stem, len(training["trainable"]), training["loss"], batch, losses, f"{m['rate']:g}",
        f"{m['slope']:.3f}", fallbacks,
    ])  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--tool", default=HERE.parent / "target/release/ancre-rewrite")
    parser.add_argument("--batch", type=int, default=4, help="samples, where the graph takes any number")
    parser.add_argument("--loss", help="where the model shows none by its form")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ids", type=int, default=100, help="ids are below this")
    given = parser.parse_args()
    print("| model | tensors | loss | batch | three steps | rate | slope | CUDA |\n|---|--:|---|---|---|--:|--:|--:|")
    for model in given.models:
        try:
            m = measure(given.tool, model, given.batch, given.loss, given.threads, given.ids)
            print(row(model, m), flush=True)
        except Refused as why:
            print(f"| {Path(model).stem} | {why} |", flush=True)


if __name__ == "__main__":
    main()
