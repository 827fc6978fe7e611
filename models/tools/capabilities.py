"""Which ways to train a model's graph allows: one row a model, one column a way.

    python models/tools/capabilities.py [--tool target/release/ancre-rewrite] MODEL.onnx...

Each cell is the number of nodes of the training graph (of the gradient graph for `split`, of the graph with gradients for `grad`), or the
reason why there is none. The graphs are built and not run, so the models need no weights. Needs onnx.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import onnx

HERE = Path(__file__).resolve().parent
WAYS = {
    "plain": [],
    "--lora 4": ["--lora", "4"],
    "--precision bf16": ["--precision", "bf16", "--target", "cuda"],
    "--precision fp16": ["--precision", "fp16", "--target", "cuda"],
    "--recompute blocks": ["--recompute", "blocks"],
    "--step split": ["--step", "split"],
    "--distill source": ["--distill", "source"],
    "grad --wrt '*'": None,
}


def emit(command):
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [f"status {run.returncode}"]
        return "refused: " + lines[0].split(": ", 2)[-1]
    return json.loads(run.stdout) if run.stdout.startswith("{") else {}


def nodes(path):
    return len(onnx.load(path, load_external_data=False).graph.node)


def cell(tool, model, way):
    with tempfile.TemporaryDirectory() as folder:
        if way is None:
            path = Path(folder) / "grad.onnx"
            said = emit([tool, "grad", model, "--wrt", "*", "--verify", "none", "-o", path])
            return said if isinstance(said, str) else nodes(path)
        command = [tool, model, "-o", folder + "/", "--verify", "none", "--json", *way]
        # Where the graph shows no loss by its form, a mean squared error.
        for loss in [[], ["--loss", "distill-mse" if "--distill" in way else "mse"]]:
            said = emit(command + loss)
            if isinstance(said, dict):
                kinds = {o["kind"]: o["path"] for o in said["outputs"]}
                made = kinds.get("train") or kinds.get("grad")
                if made:
                    return nodes(made)
                said = "refused: " + str((said.get("training") or {}).get("reason", "no training graph"))
        return said


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--tool", default=HERE.parent.parent / "target/release/ancre-rewrite")
    given = parser.parse_args()
    print("| network | " + " | ".join(f"`{way}`" for way in WAYS) + " |")
    print("|---|" + "--:|" * len(WAYS))
    for model in given.models:
        cells = [str(cell(given.tool, model, way)).replace("|", "\\|") for way in WAYS.values()]
        print(f"| {Path(model).stem} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
