"""Residual convolutional networks of 20, 56 and 110 layers, with and without learned skips, on letters of Debian's fonts.

    python models/reproduce/convolutional.py DIR [--tool target/release/ancre-rewrite] [--only 20|56|110|more|rates] [--seeds N] [--tables]

The protocol stands in docs/evidence.md. Prints the tables and draws docs/convolutional.svg. Needs torch and torchvision, which make the models,
pillow, and the fonts of fonts-dejavu, fonts-liberation and fonts-freefont-ttf, besides what common.py needs.
"""

import json
import random
import sys

import common
import numpy as np
from PIL import Image

sys.path.insert(0, str(common.MODELS / "tools"))

VARIANTS = {"default": "", "paper": "", "free": "", "softmax": "", **common.OTHERS}
SEEDS = {20: 3, 56: 3, 110: 3}
# Part `more`: where three seeds left most open, five of these.
MORE = {"paper": "", "softmax": "", "attention": ""} | {v: common.OTHERS[v] for v in ("input", "input-0.1")}
# At these rates the network of 20 layers is trained again.
LR, RATES = "2e-3", ("6e-3", "2e-2")
STEPS, SIZE, WIDTHS = 300, 16, (8, 16, 32)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(given):
    """Grey images of 16 x 16: 6500 letters to train on, 1300 held back, each of 26 as often."""
    from defaults import draw

    paths = [given.dir / f"letters-{part}.npz" for part in ("train", "val")]
    for seed, (path, n) in enumerate(zip(paths, (6500, 1300)), 1):
        if not path.exists():
            rng, labels = random.Random(seed), np.arange(n) % 26
            images = [Image.fromarray(draw(LETTERS[c], rng)).convert("L").resize((SIZE, SIZE), Image.BILINEAR) for c in labels]
            np.savez(path, input=np.stack([np.asarray(i) for i in images])[:, None], labels=labels)
    return paths


def model(given, layers):
    """A ResNet for small images: three stages of (layers - 2) / 6 blocks of two convolutions; batch norms stay nodes."""
    path = given.dir / f"resnet{layers}.onnx"
    if not path.exists():
        import torch
        from export import CifarResNet

        torch.manual_seed(0)
        net, image = CifarResNet((layers - 2) // 6, WIDTHS, len(LETTERS), 1), torch.zeros(2, 1, SIZE, SIZE)
        names = {"input_names": ["input"], "output_names": ["scores"], "dynamic_axes": {"input": {0: "batch"}, "scores": {0: "batch"}}}
        mode = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(net.eval(), (image,), path, dynamo=False, opset_version=17, training=mode, do_constant_folding=False, **names)
    return path


def run(given, layers, lr=LR, variants=VARIANTS, seeds=None, part=None):
    data, val = letters(given)
    course = ["--steps", STEPS, "--batch-size", 32, "--lr", lr, "--schedule", "cosine", "--warmup", 30]
    options = ["--loss", "cross-entropy", "--data", data, "--val", val, *course]
    name = f"resnet-{layers}" + (f"-rate-{lr}" if lr != LR else "")
    report = common.compare(given, name, model(given, layers), variants, min(seeds or SEEDS[layers], given.seeds), options)
    (given.dir / f"{name}{part or ''}.json").write_text(json.dumps(report))


def show(given):
    """The tables, and docs/convolutional.svg: training loss against steps, and validation loss against layers."""
    panels, ends = [], {}
    for layers in SEEDS:
        reports = [json.loads(p.read_text()) for p in (given.dir / f"resnet-{layers}{part}.json" for part in ("", "-more")) if p.exists()]
        if not reports:
            continue
        report = common.join(*reports)
        print(f"\n{layers} layers\n\n{common.table(report, metrics=('accuracy',))}")
        lines = {}
        for variant in [v for v in common.SHOWN if common.values(report, v)]:
            losses = common.values(report, variant)
            lines[variant] = common.curve(given, f"resnet-{layers}", variant, losses, window=15)
            ends.setdefault(variant, []).append((layers, np.mean(list(losses.values())), np.std(list(losses.values()), ddof=len(losses) > 1)))
        panels.append({"title": f"{layers} layers: training", "x": "steps", "y": "loss", "log": "y", "lines": lines})
    for layers, lr in [*((20, lr) for lr in RATES), (110, RATES[0])]:
        path = given.dir / f"resnet-{layers}-rate-{lr}.json"
        if path.exists():
            print(f"\n{layers} layers, rate {lr}\n\n{common.table(json.loads(path.read_text()))}")
    if panels:
        ticks = [layers for layers, _, _ in ends["cascaded"]]
        lines = {v: tuple(map(list, zip(*at))) for v, at in ends.items()}
        panels.append({"title": "validation at the end", "x": "layers", "y": "loss", "log": "x", "ticks": ticks, "lines": lines})
        common.figure(common.DOCS / "convolutional.svg", panels, 3)


def main():
    options = common.parser(__doc__, seeds=99)
    given = common.parsed(options)
    for part in [] if given.tables else given.only or [*SEEDS, "more", "rates"]:
        if part == "more":
            run(given, 110, variants=MORE, seeds=5, part="-more")
        elif part == "rates":
            for lr in RATES:
                run(given, 20, lr)
            run(given, 110, RATES[0], {"input-0.1": common.OTHERS["input-0.1"]})
        else:
            run(given, int(part))
    show(given)


if __name__ == "__main__":
    main()
