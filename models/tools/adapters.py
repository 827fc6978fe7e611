"""What `--lora` makes of models: adapters, maps that get none, the proof that nothing changed, three steps.

    python models/tools/adapters.py [--tool target/release/ancre-rewrite] [--rank N] [--on GLOB]... MODEL.onnx...

Prints a row for each model: adapters; maps inside residual branches without one; their elements, and their part of the model's; is the
file written proved equal to its source; the losses of three AdamW steps at 1e-3 on one random batch. The models need their weights. Needs
numpy and onnxruntime.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

from trains import HERE, open_session, random_batch, steps

RATE = 1e-3


def emit(tool, model, folder, rank, on, *more):
    command = [tool, model, "-o", folder + "/", "--lora", rank, "--state", "inline", "--batch", "keep", "--json"]
    command += [word for glob in on for word in ("--lora-on", glob)] + list(more)
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return json.loads(run.stdout) if run.returncode == 0 else run.stderr.strip().splitlines()[0].split(": ", 2)[-1]


def row(tool, model, rank, on, threads):
    with tempfile.TemporaryDirectory() as folder:
        report = emit(tool, model, folder, rank, on)
        more, note = [], ""
        if isinstance(report, str) and "--output" in report:
            # The first of the outputs that it lists.
            more = ["--output", re.search(r"`([^`]+)` f", report)[1]]
            report = emit(tool, model, folder, rank, on, *more)
        if isinstance(report, str) and "--loss" in report:
            report, note = emit(tool, model, folder, rank, on, *more, "--loss", "mse"), " (mse)"
        if isinstance(report, str):
            return f"| {Path(model).stem} | refused: {report} |"
        adapters = report["adapters"]
        path = next(o["path"] for o in report["outputs"] if o["kind"] == "train")
        session = open_session(path, threads)
        losses, _ = steps(session, random_batch(session, 4, 100), RATE, 3)
        proved = report["verify"]["emitted"]["proved"]
        cells = [
            Path(model).stem, len(adapters["adapters"]), len(adapters["refused"]), adapters["elements"], f"{100 * adapters['share']:.2f}%",
            "proved" if proved else "compared", " ".join(f"{v:.4f}" for v in losses) + note,
        ]  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--tool", default=HERE.parent / "target/release/ancre-rewrite")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--on", action="append", default=[])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print("| model | adapters | without | elements | part | unchanged | three steps |\n|---|--:|--:|--:|--:|---|---|")
    for model in given.models:
        print(row(given.tool, model, given.rank, given.on, given.threads), flush=True)


if __name__ == "__main__":
    main()
