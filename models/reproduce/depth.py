"""Depth: residual MLPs of 4 to 128 blocks, with and without learned skips, at equal steps and at equal parameters.

    python models/reproduce/depth.py DIR [--tool target/release/ancre-rewrite] [--only PART] [--tables]

The protocol stands in docs/evidence.md. Parts, in the order in which they run: 16, 64, norm, tau, equal, teacher, teacher-rates, rest, others, rates, 4,
128. Prints the tables and draws docs/depth.svg. Some four hours of processor time.
"""

import json
import subprocess
import sys

import common
import numpy as np

STEPS, WIDTH, THRESHOLD = 460, 48, 0.25
COURSE = ["--steps", STEPS, "--batch-size", 32, "--schedule", "cosine"]
MAIN = {"default": "", "paper": "", "softmax": "", "free": ""}
TAUS = {f"softmax-{tau}": f"--parametrization softmax --tau {tau}" for tau in (0.1, 1)}


def model(given, blocks, width=WIDTH, shape="1,8,8", outputs=10, norm=False):
    path = given.dir / f"mlp{blocks}-{width}-{outputs}{'-norm' if norm else ''}.onnx"
    if not path.exists():
        given.dir.mkdir(parents=True, exist_ok=True)
        command = [common.MODELS / "tools/residual_mlp.py", blocks, "--width", width, "--shape", shape, "--outputs", outputs, "-o", path]
        command += ["--norm"] if norm else []
        subprocess.run([sys.executable, *map(str, command)], check=True)
    return path


def digits(given, name, blocks, variants, seeds, lr=1e-3, **sizes):
    data = [x for part, option in (("train", "--data"), ("val", "--val")) for x in (option, common.MODELS / f"data/digits_{part}.npz")]
    options = ["--loss", "cross-entropy", *data, *COURSE, "--lr", lr]
    return common.compare(given, name, model(given, blocks, **sizes), variants, min(seeds, given.seeds), options)


def teacher(given):
    """Points of 16 normal numbers, and 4 numbers that a random network makes of each; 4096 to train on, 1024 held back."""
    random = np.random.default_rng(17)
    layers = [random.normal(0, 2 / n**0.5, (n, m)) for n, m in ((16, 32), (32, 32), (32, 4))]
    paths = [given.dir / f"teacher-{part}.npz" for part in ("train", "val")]
    shift = scale = None
    for path, n in zip(paths, (4096, 1024)):
        y = x = random.normal(size=(n, 16))
        for w in layers[:-1]:
            y = np.tanh(y @ w)
        y = y @ layers[-1]
        shift, scale = (y.mean(0), y.std(0)) if shift is None else (shift, scale)
        np.savez(path, input=x.astype(np.float32), target=((y - shift) / scale).astype(np.float32))
    return paths


def regression(given, blocks, seeds, lr=1e-3):
    data, val = teacher(given)
    options = ["--loss", "mse", "--data", data.resolve(), "--val", val.resolve(), *COURSE, "--lr", lr]
    # Equal weights that stay: is it the learning that helps?
    variants = MAIN | {"constant": ""} | common.OTHERS
    name = f"teacher-{blocks}"
    if lr != 1e-3:
        name, variants = f"{name}-rate-{lr}", {"softmax": ""} | {v: common.OTHERS[v] for v in ("input", "input-0.1")}
    return common.compare(given, name, model(given, blocks, shape="16", outputs=4), variants, min(seeds, given.seeds), options)


def parts(given):
    """What is run: {part: a function that gives its reports as {name: report}}."""
    return {
        "16": lambda: {"digits-16": digits(given, "digits-16", 16, MAIN | common.OTHERS, 5)},
        "64": lambda: {"digits-64": digits(given, "digits-64", 64, {"softmax": "", "free": ""}, 5)},
        "norm": lambda: {f"norm-{n}": digits(given, f"norm-{n}", n, MAIN | common.OTHERS, 5, norm=True) for n in (16, 64)},
        "tau": lambda: {"tau": digits(given, "digits-64", 64, TAUS, 3)},
        "equal": lambda: {"equal-16": digits(given, "equal-16", 16, MAIN | common.OTHERS, 5, width=97)},
        "teacher": lambda: {f"teacher-{n}": regression(given, n, 5) for n in (4, 8, 16, 64)},
        "teacher-rates": lambda: {f"teacher-{n}-rate-{lr}": regression(given, n, 3, lr) for n, lr in ((16, "3e-3"), (64, "3e-3"), (16, "1e-2"))},
        "rest": lambda: {"rest": digits(given, "digits-64", 64, {"default": "", "paper": ""}, 5)},
        "others": lambda: {"others": digits(given, "digits-64", 64, common.OTHERS, 5)},
        "rates": lambda: {f"rate-{lr}": digits(given, f"rate-{lr}", 64, MAIN | common.OTHERS, 3, lr) for lr in ("3e-4", "3e-3")},
        "4": lambda: {"digits-4": digits(given, "digits-4", 4, MAIN | common.OTHERS, 5)},
        "128": lambda: {"digits-128": digits(given, "digits-128", 128, MAIN | common.OTHERS, 3)},
    }


def steps_to(given, name, report):
    """Steps until the training loss, in means over 20 steps, is below the threshold: {variant: text}."""
    out = {}
    for v in report["variants"]:
        runs = [common.smooth(common.log(given, name, v["name"], r["seed"])) for r in v["runs"] if r["end"] == "finished"]
        found = [next((s for s, loss in run if loss < THRESHOLD), None) for run in runs]
        reached = [s for s in found if s]
        missed = f", {len(found) - len(reached)} of {len(found)} never" if 0 < len(reached) < len(found) else ""
        out[v["name"]] = (common.spread(reached) if reached else "never") + missed
    return out


def main():
    options = common.parser(__doc__, seeds=5)
    given = common.parsed(options)
    for part, run in parts(given).items():
        if not given.tables and part in (given.only or parts(given)):
            for name, report in run().items():
                (given.dir / f"{name}.report.json").write_text(json.dumps(report))
    reports = {f.name.removesuffix(".report.json"): json.loads(f.read_text()) for f in sorted(given.dir.glob("*.report.json"))}
    found = {n: r for n, r in reports.items() if n not in ("tau", "rest", "others")}
    if "digits-64" in found:
        found["digits-64"] = common.join(*[reports[n] for n in ("digits-64", "rest", "tau", "others") if n in reports])
    for name, report in found.items():
        metrics = () if name.startswith("teacher") else ("accuracy",)
        more = {} if name.startswith("teacher") else {f"steps to {THRESHOLD}": steps_to(given, name, report)}
        print(f"\n{name}\n\n{common.table(report, metrics=metrics, more=more)}")
    for task, others in (("digits", ("digits-16", "equal-16")), ("teacher", ("teacher-16",))):
        if deep := found.get(f"{task}-64"):
            for other in filter(found.get, others):
                for v in (v["name"] for v in found[other]["variants"]):
                    pairs = [(common.values(found[other], v, key), common.values(deep, "cascaded", key)) for key in ("val_loss", "train_loss")]
                    validation, training = (common.paired(*pair) for pair in pairs)
                    print(f"{other} {v} less {task}-64 cascaded: validation {validation}, training {training}")
    draw(given, found)


def draw(given, found):
    """docs/depth.svg: validation losses at the end against blocks, of both tasks, and the training loss of 64 blocks against steps."""
    panels = []
    for task, title, limits in (("teacher", "teacher: validation at the end", (0.2, 0.6)), ("digits", "digits: validation at the end", (0.2, 0.8))):
        depths = [n for n in (4, 8, 16, 64, 128) if f"{task}-{n}" in found]
        lines = {}
        for i, v in enumerate(common.SHOWN[:5]):
            # Beside one another, not on top of one another.
            beside = 1.06 ** (i - 2)
            known = [(n, list(common.values(found[f"{task}-{n}"], v).values())) for n in depths]
            known = [(n, k) for n, k in known if k]
            lines[v] = [n * beside for n, _ in known], [np.mean(k) for _, k in known], [np.std(k, ddof=1) if len(k) > 1 else 0 for _, k in known]
        # What diverged is far above.
        panels.append({"title": title, "x": "blocks", "y": "loss", "log": "x", "ticks": depths, "lines": lines, "limits": limits})
    for name, title in (("teacher-64", "teacher, 64 blocks: training"), ("digits-64", "digits, 64 blocks: training")):
        if name in found:
            lines = {v: common.curve(given, name, v, common.values(found[name], v)) for v in common.SHOWN[:5] if common.values(found[name], v)}
            panels.append({"title": title, "x": "steps", "y": "loss", "log": "y", "lines": lines, "limits": (None, 10)})
    if panels:
        common.figure(common.DOCS / "depth.svg", panels, 3.1)


if __name__ == "__main__":
    main()
