"""What `--lora` makes of models: adapters, maps that get none, the proof that nothing changed, three steps.

    python models/tools/adapters.py [--tool target/release/ancre-rewrite] [--rank N] [--on GLOB]... MODEL.onnx...

Prints a row for each model: adapters; maps inside residual branches without one; their elements, and their part of the model's; is the
file written proved equal to its source; the losses of three AdamW steps at 1e-3 on one random batch. The models need their weights. Needs
numpy and onnxruntime.
"""

import argparse
import re
import tempfile
from pathlib import Path

from trains import HERE, Refused, emit, line, open_session, random_batch, steps

RATE = 1e-3


def row(tool, model, rank, on, threads):
    flags = ["--lora", rank, "--batch", "keep", *(word for glob in on for word in ("--lora-on", glob))]
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                report, path = emit(tool, model, folder, *flags)
                break
            except Refused as refused:
                why = str(refused).splitlines()[0].split(": ", 2)[-1]
            if "--output" in why and "--output" not in flags:
                # The first of the outputs that it lists.
                flags += ["--output", re.search(r"`([^`]+)` f", why)[1]]
            elif "--loss" in why and "--loss" not in flags:
                flags += ["--loss", "mse"]
            else:
                return line([Path(model).stem, f"refused: {why}"])
        adapters = report["adapters"]
        session = open_session(path, threads)
        losses, _ = steps(session, random_batch(session, 4, 100), RATE, 3)
        proved = report["verify"]["emitted"]["proved"]
        note = " (mse)" if "--loss" in flags else ""
        return line([
            Path(model).stem, len(adapters["adapters"]), len(adapters["refused"]), adapters["elements"], f"{100 * adapters['share']:.2f}%",
            "proved" if proved else "compared", " ".join(f"{v:.4f}" for v in losses) + note,
        ])  # fmt: skip


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
