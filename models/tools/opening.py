"""What the graphs of models cost to open: nodes, and the processor time in which ONNX Runtime makes a session, on one thread.

    python models/tools/opening.py [--tool target/release/ancre-rewrite] [--loss LOSS] MODEL.onnx...

Prints a row for each model, as in `docs/speed.md`, of the forward graph and of the training graph that the tool's defaults give.
A model that shows no loss by its form takes `--loss` of its first output. The models need their weights. Needs onnxruntime.
"""

import argparse
import tempfile
import time
from pathlib import Path

from trains import HERE, Refused, emit, open_session


def opened(path):
    """Seconds of processor time, the lesser of two."""

    def once():
        begin = time.process_time()
        session = open_session(path, 1)
        taken = time.process_time() - begin
        del session
        return taken

    return min(once(), once())


def row(tool, model, loss):
    with tempfile.TemporaryDirectory() as folder:
        try:
            report, train = emit(tool, model, folder, "--verify", "none")
        except Refused:
            first = open_session(model, 1).get_outputs()[0].name
            report, train = emit(tool, model, folder, "--verify", "none", "--loss", loss, "--output", first)
        outputs = {o["kind"]: o for o in report["outputs"]}
        cells = [Path(model).stem, report["nodes"]]
        for kind, path in (("forward", outputs["forward"]["path"]), ("train", train)):
            cells += [outputs[kind]["nodes"], f"{opened(path):.2f}"]
    return f"| {' | '.join(map(str, cells))} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--tool", default=HERE.parent / "target/release/ancre-rewrite")
    parser.add_argument("--loss", default="mse", help="where a model shows none by its form")
    given = parser.parse_args()
    print("| model | nodes | forward | s | training | s |\n|---|--:|--:|--:|--:|--:|")
    for model in given.models:
        try:
            print(row(given.tool, model, given.loss), flush=True)
        except Refused as why:
            print(f"| {Path(model).stem} | {why} |", flush=True)


if __name__ == "__main__":
    main()
