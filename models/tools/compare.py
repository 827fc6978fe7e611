"""Train cascaded and routed networks from scratch, at equal steps, over several seeds.

    python models/tools/compare.py [--tool target/release/ancre-rewrite] [--steps N] [--seeds N] [--only digits|text]

The networks are those of this folder with fresh weights (`--reinit SEED`), the data that of `data/`. Each seed gives the weights
and the order of the samples, the same for every network; the learning rate, a cosine over the run, is the same too. Prints a
table of the validation after the last step: mean and standard deviation over the seeds.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
DATA = HERE / "data"

NETWORKS = {
    "cascaded (`--chains none`)": ["--chains", "none"],
    "ANCRe (`--preset paper`)": ["--preset", "paper"],
    "routed (default preset)": [],
}
TASKS = {
    "digits": {
        "model": "resnet_batch1",
        "rewrite": ["--classes", "10", "--batch", "dynamic"],
        "train": ["--data", "digits_train.npz", "--val", "digits_val.npz"],
        "course": ["--batch-size", "32", "--lr", "2e-3"],
        "steps": 225,
    },
    "text": {
        "model": "gpt2",
        "rewrite": ["--loss", "next-token", "--untied"],
        "train": ["--data", "coriolanus_train.bin", "--val", "coriolanus_val.bin"],
        "course": ["--window", "32", "--batch-size", "16", "--lr", "5e-3"],
        "steps": 300,
    },
}


def run(tool, *arguments):
    done = subprocess.run(
        [tool, *map(str, arguments)], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return json.loads(done.stdout)


def train(tool, task, flags, seed, steps, folder):
    run(
        tool, HERE / f"{task['model']}.onnx", *task["rewrite"], *flags, "--reinit", seed,
        "--eval-graph", "--verify", "none", "-o", folder / "m.onnx", "--json",
    )  # fmt: skip
    files = [DATA / f if f.endswith((".npz", ".bin")) else f for f in task["train"]]
    return run(
        tool, "train", folder / "m.train.onnx", *files, *task["course"],
        "--schedule", "cosine", "--warmup", steps // 20, "--steps", steps,
        "--seed", seed, "--device", "cpu", "--out", folder / "run", "--json",
    )  # fmt: skip


def spread(values):
    mean = statistics.mean(values)
    return f"{mean:.4f} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{mean:.4f}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", default=HERE.parent / "target/release/ancre-rewrite")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=TASKS)
    given = parser.parse_args()
    print("| Task | Network | Steps | Loss | Accuracy | Samples/s |\n|---|---|--:|--:|--:|--:|")
    for name, task in TASKS.items():
        if given.only not in (None, name):
            continue
        steps = given.steps or task["steps"]
        for network, flags in NETWORKS.items():
            results = []
            for seed in range(given.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    results.append(train(given.tool, task, flags, seed, steps, Path(folder)))
            of = lambda key: spread([r["validation"][key] for r in results])
            speed = statistics.median(r["samples_per_second"] for r in results)
            print(
                f"| {name} | {network} | {steps} | {of('loss')} | {of('accuracy')} | {speed:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
